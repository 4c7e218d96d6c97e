//! Upgrades of clusters.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use nkd_api::ErrorBody;
use nkd_api::machine::Machine;
use nkd_api::update::{MaxUnavailable, Window};
use nkd_api::upgrade::{NodeExplained, Planned, Upgrade, UpgradeChange, UpgradeOrder, UpgradeState};
use nkd_api::user::Role;
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::Instant;
use utoipa::IntoParams;
use uuid::Uuid;

use super::ApiError;
use super::auth::Caller;
use super::clusters;
use super::error::chain;
use super::extract::{Json, Path, Query, lines_of};
use super::updates::{self, Asks};
use crate::cluster::upgrade::follow::{self, UpgradeError};
use crate::content::channel::LastPoll;
use crate::machine::Selector;
use crate::service::Service;
use crate::store::Store;

/// The longest that one answer tells of changes: whoever asks again shows a token again.
const WATCHED_FOR: Duration = Duration::from_secs(300);
/// After so long the same is told again: whoever hears nothing for longer has lost the connection.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

impl From<UpgradeError> for ApiError {
    fn from(error: UpgradeError) -> Self {
        match error {
            UpgradeError::NoChannel(_) | UpgradeError::NotAsked(_) | UpgradeError::Gone(_) => {
                Self::not_found(chain(&error))
            }
            UpgradeError::NoChannelNamed(_) => Self::invalid(error.to_string()),
            UpgradeError::Refused { ref cluster, .. } => {
                let hint = format!("`nkd upgrade start {cluster} --dry-run` shows everything that was found");
                Self::conflict(error.to_string()).hint(hint)
            }
            UpgradeError::GoesOn { .. } | UpgradeError::Nothing(_) | UpgradeError::NotUp(_) => {
                Self::conflict(error.to_string())
            }
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
    if order.max_unavailable == Some(MaxUnavailable::Count(0)) {
        return Err(ApiError::invalid("maxUnavailable is 0, so that no node could ever begin: give at least 1"));
    }
    if order.drain_seconds == Some(0) {
        return Err(ApiError::invalid("drainSeconds is 0, so that no pod could ever leave in time: give at least 1"));
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

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WatchQuery {
    /// Answer with one upgrade a line (JSON lines): as it is now, again each time that it changes, and at least every 30
    /// seconds, until it is over or five minutes have passed.
    #[serde(default)]
    watch: bool,
}

/// The newest upgrade of a cluster.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}/upgrade", tag = "upgrades", params(WatchQuery), responses((status = 200, content((Upgrade = "application/json"), (Upgrade = "application/x-ndjson"))), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
    Query(query): Query<WatchQuery>,
) -> Result<Response> {
    caller.require(Role::Viewer)?;
    let record = clusters::find(&service, &cluster).await?;
    let newest = service.registry.store().newest_upgrade(record.id).await?;
    let none = || {
        ApiError::not_found(format!("{cluster} was never upgraded")).hint(format!("`nkd upgrade start {cluster}` does"))
    };
    let (upgrade, _) = newest.ok_or_else(none)?;
    if !query.watch {
        return Ok(Json(upgrade).into_response());
    }
    // Whoever reads slowly is told of less.
    let (lines, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        // As it is now, also while the service stops.
        let told = upgrade.clone();
        if lines.send(upgrade).await.is_err() || told.state.is_end() {
            return;
        }
        tokio::select! {
            () = tell_changes(service.registry.store(), record.id, told, lines) => {}
            () = service.stopping.cancelled() => {}
            () = tokio::time::sleep(WATCHED_FOR) => {}
        }
    });
    Ok(lines_of(stream))
}

/// Tells of an upgrade, of which this was told, until it is over or nobody listens any more.
async fn tell_changes(store: &Store, cluster: Uuid, told: Upgrade, lines: mpsc::Sender<Upgrade>) {
    let (mut changes, mut told) = (store.upgrade_changes(), Some(told));
    let sign = tokio::time::sleep(SIGN_OF_LIFE);
    tokio::pin!(sign);
    loop {
        changes.mark_unchanged();
        // Whoever listens asks again, and is told then why not.
        let Ok(Some((upgrade, _))) = store.newest_upgrade(cluster).await else { return };
        if told.as_ref() != Some(&upgrade) {
            if lines.send(upgrade.clone()).await.is_err() || upgrade.state.is_end() {
                return;
            }
            told = Some(upgrade);
            sign.as_mut().reset(Instant::now() + SIGN_OF_LIFE);
        }
        tokio::select! {
            // It may be one of another cluster.
            _ = changes.changed() => {}
            () = &mut sign => told = None,
            () = lines.closed() => return,
        }
    }
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
    let asks = Asks::of(&service, &machine);
    let mut sentences = Vec::new();
    match &asks.commit {
        Some(commit) => sentences.push(format!("it runs the commit {commit}")),
        None => sentences.push("it has not said which commit it runs".to_owned()),
    }
    sentences.extend(asks.poll.as_ref().map(asked));
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
    sentences.extend(in_channels(&service, &machine, channel, &asks).await?);
    let cluster = cluster.map(|(record, member)| format!("{} in {}", member.hostname, record.name()));
    Ok(Json(NodeExplained { machine: machine.name, cluster, commit: asks.commit, sentences }))
}

/// How a node that updates itself has asked.
fn asked(poll: &LastPoll) -> String {
    let LastPoll { channel, node, wariness, at, .. } = poll;
    let name = node.as_deref().map(|node| format!(", as {node}")).unwrap_or_default();
    let wariness = wariness.map(|wariness| format!(", with a rollout wariness of {wariness}")).unwrap_or_default();
    let (date, hour, minute) = (at.date(), at.hour(), at.minute());
    format!("it asked for the graph of the channel {channel} on {date} at {hour:02}:{minute:02} UTC{name}{wariness}")
}

/// Where the graph leads a machine, and why not elsewhere: in the channel of its cluster and in the one that it asks for; in
/// those that hold what it runs, if nobody names one.
async fn in_channels(service: &Service, machine: &Machine, named: Option<String>, asks: &Asks) -> Result<Vec<String>> {
    let mut channels = service.registry.store().channels().await?;
    let mut names: Vec<&str> = named.as_deref().into_iter().collect();
    names.extend(asks.poll.as_ref().map(|poll| poll.channel.as_str()));
    if names.is_empty() {
        channels.retain(|channel| channel.releases.iter().any(|release| Some(&release.commit) == asks.commit.as_ref()));
    } else {
        channels.retain(|channel| names.contains(&channel.name.as_str()));
    }
    let mut sentences = Vec::new();
    if channels.is_empty() && asks.commit.is_some() {
        sentences.push("no channel leads it anywhere: `nkd channel list` shows those there are".to_owned());
    }
    for channel in channels {
        let missing = service.channels.missing(&channel.profile);
        let explained = updates::explained(machine.name.clone(), &channel, &missing, asks, OffsetDateTime::now_utc());
        if !explained.summary.is_empty() {
            sentences.push(format!("by the channel {}: {}", channel.name, explained.summary));
        }
        for release in &explained.newer {
            let why = release.closed.as_deref().unwrap_or("open");
            sentences.push(format!("release {} ({}): {why}", release.release, release.version));
        }
    }
    Ok(sentences)
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
            let saves = upgrade.snapshot.as_ref().is_some_and(|wanted| !wanted.is_taken());
            let first = if saves { ": a snapshot of etcd comes first" } else { "" };
            sentences.push(format!("no node was told yet{first}"));
        }
        None => sentences.push("the operator in the cluster has not said anything of it yet".to_owned()),
        Some(node) => {
            let colon = if node.reason.is_empty() { "" } else { ": " };
            sentences.push(format!("there it is {:?}{colon}{}", node.state, node.reason));
        }
    }
    sentences
}
