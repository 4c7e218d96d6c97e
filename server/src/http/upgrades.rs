//! Upgrades of clusters.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;

use axum::extract::State;
use nkd_api::ErrorBody;
use nkd_api::update::Window;
use nkd_api::upgrade::{NodeExplained, Planned, Upgrade, UpgradeChange, UpgradeOrder, UpgradeState};
use nkd_api::user::Role;
use time::OffsetDateTime;

use super::ApiError;
use super::auth::Caller;
use super::error::chain;
use super::extract::{Json, Path};
use super::{clusters, updates};
use crate::cluster::upgrade::follow::{self, UpgradeError};
use crate::content::graph::Asker;
use crate::machine::Selector;
use crate::service::Service;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

impl From<UpgradeError> for ApiError {
    fn from(error: UpgradeError) -> Self {
        match error {
            UpgradeError::NoChannel(_) | UpgradeError::NotAsked(_) => Self::not_found(chain(&error)),
            UpgradeError::NoChannelNamed(_) => Self::invalid(error.to_string()),
            UpgradeError::Refused { ref cluster, .. } => {
                let hint = format!("`nkd upgrade start {cluster} --dry-run` shows everything that was found");
                Self::conflict(error.to_string()).hint(hint)
            }
            UpgradeError::GoesOn { .. } | UpgradeError::Nothing(_) => Self::conflict(error.to_string()),
            UpgradeError::Reach(reach) => reach.into(),
            UpgradeError::Store(store) => store.into(),
            UpgradeError::Kube(_) => Self::unavailable(chain(&error))
                .hint("`nkd cluster status` says how its API servers are; ask again when they answer"),
        }
    }
}

/// Begins an upgrade of a cluster, or only says what it would do.
#[utoipa::path(post, path = "/api/v1/clusters/{cluster}/upgrades", tag = "upgrades", request_body = UpgradeOrder, responses((status = 200, body = Planned), (status = "4XX", body = ErrorBody)))]
pub(super) async fn start(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
    Json(order): Json<UpgradeOrder>,
) -> Result<Json<Planned>> {
    caller.require(if order.dry_run { Role::Viewer } else { Role::Operator })?;
    let record = clusters::find(&service, &cluster).await?;
    let is_check = |name: &str| name != "all" && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if let Some(name) = order.ignore_preflight_errors.iter().find(|name| name.is_empty() || !is_check(name)) {
        let message = format!("ignorePreflightErrors: {name:?} is not the name of one check, like ImagePull");
        return Err(ApiError::invalid(message));
    }
    if let Some(Err(why)) = order.window.as_ref().map(Window::minutes) {
        return Err(ApiError::invalid(format!("window: {why}")));
    }
    if !order.dry_run {
        let detail = serde_json::to_string(&order).unwrap_or_default();
        caller.audit(&service, "cluster.upgrade", &cluster, &detail).await?;
    }
    Ok(Json(follow::start(&service, &record, &order, &caller.0.name).await?))
}

/// All upgrades of a cluster, the newest first.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}/upgrades", tag = "upgrades", responses((status = 200, body = Vec<Upgrade>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
) -> Result<Json<Vec<Upgrade>>> {
    caller.require(Role::Viewer)?;
    let record = clusters::find(&service, &cluster).await?;
    Ok(Json(service.registry.store().upgrades(record.id).await?))
}

/// The newest upgrade of a cluster.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}/upgrade", tag = "upgrades", responses((status = 200, body = Upgrade), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(State(service): App, caller: Caller, Path(cluster): Path<String>) -> Result<Json<Upgrade>> {
    caller.require(Role::Viewer)?;
    let record = clusters::find(&service, &cluster).await?;
    let newest = service.registry.store().newest_upgrade(record.id).await?;
    let none = || {
        ApiError::not_found(format!("{cluster} was never upgraded")).hint(format!("`nkd upgrade start {cluster}` does"))
    };
    Ok(Json(newest.ok_or_else(none)?.0))
}

/// Pauses the upgrade of a cluster, resumes it, stops it, or tries again what failed.
#[utoipa::path(patch, path = "/api/v1/clusters/{cluster}/upgrade", tag = "upgrades", request_body = UpgradeChange, responses((status = 200, body = Upgrade), (status = "4XX", body = ErrorBody)))]
pub(super) async fn change(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
    Json(change): Json<UpgradeChange>,
) -> Result<Json<Upgrade>> {
    caller.require(Role::Operator)?;
    let record = clusters::find(&service, &cluster).await?;
    let detail = serde_json::to_string(&change).unwrap_or_default();
    caller.audit(&service, "cluster.upgrade.change", &cluster, &detail).await?;
    Ok(Json(follow::change(&service, &record, change.verb).await?))
}

/// Why a machine stands where it stands: in its cluster's upgrade, and in the graph of its channel.
#[utoipa::path(get, path = "/api/v1/machines/{machine}/upgrade", tag = "upgrades", responses((status = 200, body = NodeExplained), (status = "4XX", body = ErrorBody)))]
pub(super) async fn explain(
    State(service): App,
    caller: Caller,
    Path(machine): Path<String>,
) -> Result<Json<NodeExplained>> {
    caller.require(Role::Viewer)?;
    let Ok(selector) = machine.parse::<Selector>();
    let machine = service.registry.find(&selector).await?;
    let store = service.registry.store();
    let commit = machine.facts.as_ref().and_then(|facts| facts.booted_deployment.clone());
    let mut sentences = Vec::new();
    match &commit {
        Some(commit) => sentences.push(format!("it runs the commit {commit}")),
        None => sentences.push("it has not said which commit it runs".to_owned()),
    }
    let clusters = store.clusters().await?;
    let cluster = clusters.iter().find_map(|(record, _)| Some((record, record.member_of(machine.id)?)));
    let mut channel = None;
    match cluster {
        None => sentences.push("it belongs to no cluster".to_owned()),
        Some((record, member)) => {
            channel.clone_from(&record.cluster.spec.os.channel);
            match store.newest_upgrade(record.id).await? {
                None => sentences.push(format!("{} was never upgraded", record.name())),
                Some((upgrade, _)) => {
                    channel = channel.or_else(|| upgrade.order.channel.clone());
                    sentences.extend(in_upgrade(&upgrade, &member.hostname));
                }
            }
        }
    }
    let found = match &channel {
        Some(name) => store.channel(name).await?,
        None => None,
    };
    if let Some((channel, _)) = found {
        let id = machine.id.to_string();
        let asker = Asker { node: Some(&id), wariness: None };
        let now = OffsetDateTime::now_utc();
        let explained = updates::explained(machine.name.clone(), &channel, commit.clone(), &asker, now);
        if !explained.summary.is_empty() {
            sentences.push(format!("by the channel {}: {}", channel.name, explained.summary));
        }
        for release in &explained.newer {
            let why = release.closed.as_deref().unwrap_or("open");
            sentences.push(format!("release {} ({}): {why}", release.release, release.version));
        }
    }
    let cluster = cluster.map(|(record, member)| format!("{} in {}", member.hostname, record.name()));
    Ok(Json(NodeExplained { machine: machine.name, cluster, commit, sentences }))
}

/// What an upgrade says of a node.
fn in_upgrade(upgrade: &Upgrade, hostname: &str) -> Vec<String> {
    let Upgrade { cluster, number, version, detail, .. } = upgrade;
    let colon = if detail.is_empty() { "" } else { ": " };
    let state = upgrade.state.as_str();
    let mut sentences = vec![format!("upgrade {number} of {cluster}, to {version}, is {state}{colon}{detail}")];
    if let Some(window) = &upgrade.order.window {
        sentences.push(format!("nodes begin only within {window} (UTC)"));
    }
    if let Some(snapshot) = upgrade.snapshot.as_ref().and_then(|wanted| wanted.newest.as_ref()) {
        let (state, node, by) = (snapshot.state.as_str(), &snapshot.node, &snapshot.by);
        sentences.push(format!("its snapshot of etcd, {} of {node}, asked for by {by}, is {state}", snapshot.id));
    }
    match upgrade.nodes.iter().find(|node| node.name == hostname) {
        None if upgrade.state == UpgradeState::Preparing => {
            sentences.push("no node was told yet: a snapshot of etcd comes first".to_owned());
        }
        None => sentences.push("the operator in the cluster has not said anything of it yet".to_owned()),
        Some(node) => {
            let colon = if node.reason.is_empty() { "" } else { ": " };
            sentences.push(format!("there it is {:?}{colon}{}", node.state, node.reason));
        }
    }
    sentences
}
