//! `/metrics`, `/healthz` and `/readyz`.

#![expect(clippy::disallowed_methods, reason = "opens the listening socket, reads the clock")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster::chain;
use crate::wish::Wish;

/// Without a look for so long, it hangs. One look asks for many things, each with its own limit.
const HANGS: Duration = Duration::from_secs(600);
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for metrics and health: give a free address with --listen")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// What is counted.
#[derive(Clone)]
pub struct Metrics(Arc<Figures>);

struct Figures {
    registry: Registry,
    leads: Gauge,
    nodes: Family<NodeLabels, Gauge>,
    writes: Family<ReasonLabel, Counter>,
    evictions: Family<ResultLabel, Counter>,
    failures: Counter,
    seconds: Histogram,
    ready: AtomicBool,
    looked: Mutex<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    update: String,
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (leads, nodes, failures) = (Gauge::default(), Family::default(), Counter::default());
        let (writes, evictions) = (Family::default(), Family::default());
        let seconds = Histogram::new(exponential_buckets(0.005, 2.0, 14));
        registry.register("housekeeper_leads", "1 on the replica that acts", leads.clone());
        registry.register("housekeeper_nodes", "Nodes by update and state, as told last", nodes.clone());
        registry.register("housekeeper_writes", "Changes written on nodes", writes.clone());
        registry.register("housekeeper_evictions", "Evictions asked for, by what came of it", evictions.clone());
        registry.register("housekeeper_failures", "Looks that ended early", failures.clone());
        registry.register("housekeeper_look_seconds", "How long a look takes", seconds.clone());
        let (ready, looked) = (AtomicBool::new(false), Mutex::new(Instant::now()));
        Self(Arc::new(Figures { registry, leads, nodes, writes, evictions, failures, seconds, ready, looked }))
    }
}

impl Metrics {
    pub(crate) fn set_ready(&self) {
        self.0.ready.store(true, Ordering::Relaxed);
    }

    pub(crate) fn looked(&self, leads: bool) {
        self.0.leads.set(i64::from(leads));
        *self.0.looked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(crate) fn updates(&self, wishes: &[Wish]) {
        self.0.nodes.clear();
        for wish in wishes {
            for node in &wish.status.nodes {
                let labels = NodeLabels { update: wish.full_name(), state: format!("{:?}", node.state) };
                self.0.nodes.get_or_create(&labels).inc();
            }
        }
    }

    pub(crate) fn wrote(&self, reason: &'static str) {
        self.0.writes.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn evicted(&self, accepted: bool) {
        let result = if accepted { "accepted" } else { "held" };
        self.0.evictions.get_or_create(&ResultLabel { result }).inc();
    }

    pub(crate) fn failed(&self) {
        self.0.failures.inc();
    }

    pub(crate) fn took(&self, time: Duration) {
        self.0.seconds.observe(time.as_secs_f64());
    }
}

/// Answers until it is told to stop.
///
/// # Errors
/// The port cannot be had.
pub async fn serve(address: SocketAddr, metrics: Metrics, stop: CancellationToken) -> Result<(), BindError> {
    let listener = TcpListener::bind(address).await.map_err(|source| BindError { address, source })?;
    let router = Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(figures))
        .with_state(metrics);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::error!(error = %chain(&error), "the metrics port ended");
        }
    });
    Ok(())
}

async fn healthy(State(metrics): State<Metrics>) -> impl IntoResponse {
    let since = metrics.0.looked.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
    let known = metrics.0.ready.load(Ordering::Relaxed);
    match known && since > HANGS {
        true => (StatusCode::SERVICE_UNAVAILABLE, format!("no look for {} s\n", since.as_secs())),
        false => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn ready(State(metrics): State<Metrics>) -> impl IntoResponse {
    match metrics.0.ready.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "nodes and updates are not known yet\n"),
    }
}

async fn figures(State(metrics): State<Metrics>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &metrics.0.registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, TEXT)], text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], String::new()),
    }
}
