//! `/metrics`, `/healthz` and `/readyz`, on loopback unless told otherwise.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::clusters::ClusterMetrics;
use crate::service::Service;

/// The port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for metrics and health: set http.metrics_listen to a free address")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// The listener.
pub(super) struct Health {
    listener: TcpListener,
    state: Arc<Watched>,
}

struct Watched {
    service: Arc<Service>,
    state_dir: PathBuf,
    machines: Family<PhaseLabel, Gauge>,
    clusters: ClusterMetrics,
    metrics: Registry,
}

/// A phase of machines.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

impl Health {
    #[expect(clippy::disallowed_methods, reason = "opens the listening socket")]
    pub(super) async fn bind(
        address: SocketAddr,
        service: Arc<Service>,
        state_dir: &Path,
        mut metrics: Registry,
    ) -> Result<Self, BindError> {
        let machines = Family::<PhaseLabel, Gauge>::default();
        metrics.register("nkd_machines", "Machines by phase", machines.clone());
        let clusters = ClusterMetrics::register(&mut metrics);
        let listener = TcpListener::bind(address).await.map_err(|source| BindError { address, source })?;
        let state_dir = state_dir.to_owned();
        Ok(Self { listener, state: Arc::new(Watched { service, state_dir, machines, clusters, metrics }) })
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self.state);
        let served = axum::serve(self.listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the metrics port ended");
        }
    }
}

/// Room that has to be left on the disk of the state: below it, no machine can be given a boot.
const ROOM: u64 = 1 << 20;

async fn ready(State(watched): State<Arc<Watched>>) -> impl IntoResponse {
    let room = rustix::fs::statvfs(&watched.state_dir).map(|disk| disk.f_bavail * disk.f_frsize);
    match watched.service.registry.store().ready().await {
        Ok(()) if room.is_ok_and(|room| room < ROOM) => {
            let folder = watched.state_dir.display();
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: the disk of {folder} is full\n"))
        }
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {error}\n")),
    }
}

async fn metrics(State(watched): State<Arc<Watched>>) -> impl IntoResponse {
    // Counted when somebody looks. A broken store must not hide the other figures: readyz tells of it.
    if let Ok(machines) = watched.service.registry.store().machines().await {
        watched.machines.clear();
        for machine in machines {
            watched.machines.get_or_create(&PhaseLabel { phase: machine.phase.name() }).inc();
        }
    }
    watched.clusters.update(&watched.service).await;
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &watched.metrics) {
        Ok(()) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], String::new())
        }
    }
}
