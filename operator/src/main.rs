//! The `housekeeper` program: watches, takes part in the election, and acts while it leads.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use nkd_operator::cluster::{Cluster, ClusterError, chain};
use nkd_operator::lease::{Election, Tenure};
use nkd_operator::lookups::Lookups;
use nkd_operator::registry::Registries;
use nkd_operator::run::{Operator, Own};
use nkd_operator::serve::{Metrics, serve};
use nkd_operator::watch::Watched;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Between two questions to an API server that does not answer.
const AGAIN: Duration = Duration::from_secs(5);

/// Upgrades the nodes of a cluster one by one, as its Update resources ask for.
#[derive(Parser)]
#[command(name = "housekeeper", version)]
struct Arguments {
    /// Reach the cluster by this file [default: as a pod of it]
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the lease, and of the operator's own pods
    #[arg(long, env = "POD_NAMESPACE", default_value = "nkd-system")]
    namespace: String,
    /// Name of this replica, which no other one has
    #[arg(long, env = "POD_NAME")]
    identity: String,
    /// The node that this replica runs on: it is upgraded last of its role
    #[arg(long, env = "NODE_NAME")]
    node: Option<String>,
    /// Where /metrics, /healthz and /readyz are
    #[arg(long, default_value = "0.0.0.0:9091")]
    listen: SocketAddr,
    /// How long the lease lasts
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(24..=600))]
    lease_seconds: u16,
    /// Certificate authorities of registries beside the web's: a file in PEM, or a folder of such. It may be missing
    #[arg(long, env = "NKD_REGISTRY_CAS")]
    registry_cas: Option<PathBuf>,
    /// Users of registries, as docker's config.json has them. It may be missing
    #[arg(long, env = "NKD_REGISTRY_CREDENTIALS")]
    registry_credentials: Option<PathBuf>,
    /// What is logged
    #[arg(long, env = "NKD_LOG", default_value = "info,kube_client=off,kube_runtime=error")]
    log: String,
    /// Log text for people instead of JSON
    #[arg(long)]
    text: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_new(&arguments.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.text {
        true => log.init(),
        false => log.json().flatten_event(true).init(),
    }
    // A second installation would be a defect, and is harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for the API server: an end, and another start by the kubelet, would wait longer each time.
async fn connected(kubeconfig: Option<&Path>) -> Result<Cluster, ClusterError> {
    loop {
        match Cluster::connect(kubeconfig).await {
            Err(error @ ClusterError::Config(_)) => return Err(error),
            Err(error) => tracing::warn!("{}; it is asked again", chain(&error)),
            connected => return connected,
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let metrics = Metrics::default();
    serve(arguments.listen, metrics.clone(), stop.clone()).await?;
    let cluster = tokio::select! {
        cluster = connected(arguments.kubeconfig.as_deref()) => cluster?,
        _ = terminated.recv() => return Ok(()),
        _ = interrupted.recv() => return Ok(()),
    };
    let (changed, tenure) = (Arc::new(Notify::new()), Tenure::default());
    let watched = Watched::begin(&cluster, &changed, &stop);
    let (namespace, pod) = (arguments.namespace, arguments.identity);
    let lasts = Duration::from_secs(arguments.lease_seconds.into());
    let election = Election::new(&cluster, &namespace, pod.clone(), lasts, tenure.clone());
    let mut election = tokio::spawn(election.run(stop.clone(), stopped.clone()));
    let own = Own { namespace, pod, node: arguments.node };
    let registries = Registries { cas: arguments.registry_cas, credentials: arguments.registry_credentials };
    let lookups = Lookups::new(registries, changed.clone());
    let operator = Operator::new(cluster, watched, tenure, own, metrics, lookups, stop.clone());
    let mut operator = tokio::spawn(operator.run(changed));
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
        // Neither ends by itself: started anew is better than half a program.
        ended = &mut operator => return ended.context("the operator ended badly"),
        ended = &mut election => return ended.context("the election ended badly"),
    }
    tracing::info!("stops");
    stop.cancel();
    // The lease is another's only when nothing is under way here any more.
    let ended = operator.await;
    stopped.cancel();
    election.await.context("the election ended badly")?;
    ended.context("the operator ended badly")
}
