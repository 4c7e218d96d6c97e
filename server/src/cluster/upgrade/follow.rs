//! Begins upgrades, and follows them: tells the operator in the cluster what is wanted, and writes down what it says.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;
use std::time::Duration;

use nkd_api::cluster::Role;
use nkd_api::update::NodeState;
use nkd_api::upgrade::{Planned, Upgrade, UpgradeOrder, UpgradeState, UpgradeVerb};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::metrics;
use super::preflight::{self, NotAsked, Seen};
use super::prepare::{held, prepare};
use super::resource;
use crate::cluster::bringup::BringUpError;
use crate::cluster::etcd::{CLIENT_PORT, Etcd};
use crate::cluster::kubernetes::{Cluster, KubeError};
use crate::cluster::order::pki;
use crate::cluster::record::Record;
use crate::cluster::snapshot::take;
use crate::cluster::{kubeadm, reach};
use crate::machine::Selector;
use crate::service::Service;
use crate::store::StoreError;

/// Between two looks at the upgrades that go on.
const LOOK: Duration = Duration::from_secs(3);

/// An upgrade was not begun, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// No such channel.
    #[error("there is no channel `{0}`: `nkd channel list` shows those there are")]
    NoChannel(String),
    /// The cluster's file names no channel.
    #[error("the file of {0} names no channel (spec.os.channel): give --channel")]
    NoChannelNamed(String),
    /// The release.
    #[error(transparent)]
    NotAsked(#[from] NotAsked),
    /// Something was found.
    #[error("the upgrade of {cluster} was not begun: {}", .reasons.join("; "))]
    Refused {
        /// Cluster.
        cluster: String,
        /// Why.
        reasons: Vec<String>,
    },
    /// Another one goes on.
    #[error("upgrade {number} of {cluster} is {state}: wait for its end, or `nkd upgrade abort {cluster}`")]
    GoesOn {
        /// Cluster.
        cluster: String,
        /// Its number.
        number: u32,
        /// Where it stands.
        state: &'static str,
    },
    /// There is none to be changed.
    #[error("{0}")]
    Nothing(String),
    /// The cluster does not answer.
    #[error(transparent)]
    Reach(#[from] BringUpError),
    /// The cluster says no.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What can be seen of the cluster now.
async fn look(service: &Service, record: &Record, to: Option<&str>) -> Result<Seen, UpgradeError> {
    let (_, api) = reach::reach(service, record).await?;
    let mut seen = Seen { kubelets: api.kubelets().await?, ..Seen::default() };
    seen.stuck = api.stuck_pods().await?;
    seen.operator = api.operator().await?.is_some_and(|operator| operator.available);
    if let Some(minor) = to.and_then(|version| kubeadm::minor(version).ok()) {
        let (pages, not_asked) = pages_of(service, record, &api).await?;
        seen.deprecated = metrics::gone_by(&pages, minor.into());
        seen.not_asked = not_asked;
    }
    let planes = record.members.iter().filter(|m| m.role == Role::ControlPlane).filter_map(|m| m.address);
    let endpoints: Vec<_> = planes.map(|ip| std::net::SocketAddr::new(ip, CLIENT_PORT)).collect();
    let keys = pki(service, record).await?;
    let etcd = match Etcd::connect(&keys, &endpoints, OffsetDateTime::now_utc()) {
        Ok(etcd) => etcd.health().await,
        Err(error) => Err(error),
    };
    match etcd {
        Ok(members) => {
            let ill = crate::cluster::etcd::for_quorum(&members).into_iter().filter(|member| !member.healthy);
            seen.etcd = ill.map(|member| format!("the member {} is not healthy", member.name)).collect();
        }
        Err(error) => seen.etcd = vec![crate::http::chain(&error)],
    }
    facts(service, record, &mut seen).await;
    Ok(seen)
}

/// The metrics of the API servers of all control planes: each counts what it was asked itself. And whose are missing.
async fn pages_of(
    service: &Service,
    record: &Record,
    api: &Cluster,
) -> Result<(Vec<String>, Vec<String>), UpgradeError> {
    let all = reach::each(service, record).await?;
    let answers = futures_util::future::join_all(all.iter().map(|(_, api)| api.metrics())).await;
    let (mut pages, mut missing) = (Vec::new(), Vec::new());
    for ((node, _), answer) in all.iter().zip(answers) {
        match answer {
            Ok(page) => pages.push(page),
            Err(error) => {
                tracing::debug!(cluster = record.name(), node, why = crate::http::chain(&error), "no metrics");
                missing.push(node.clone());
            }
        }
    }
    if pages.is_empty() {
        // Only a balancer reaches them: whoever is behind it now.
        pages.push(api.metrics().await?);
    }
    Ok((pages, missing))
}

/// What the agents of its nodes have said.
async fn facts(service: &Service, record: &Record, seen: &mut Seen) {
    for member in &record.members {
        let Some(id) = member.machine else { continue };
        let Ok(machine) = service.registry.find(&Selector::Id(id)).await else { continue };
        let Some(facts) = machine.facts else { continue };
        if let Some(commit) = facts.booted_deployment {
            seen.commits.insert(member.hostname.clone(), commit);
        }
        if !facts.room.is_empty() {
            seen.room.insert(member.hostname.clone(), facts.room);
        }
    }
}

/// Checks, and begins unless it is a rehearsal. What is begun is in the store.
///
/// # Errors
/// [`UpgradeError`]; a rehearsal is never refused for what was found.
pub async fn start(
    service: &Service,
    record: &Record,
    order: &UpgradeOrder,
    by: &str,
) -> Result<Planned, UpgradeError> {
    let store = service.registry.store();
    let cluster = record.name().to_owned();
    let name = order.channel.clone().or_else(|| record.cluster.spec.os.channel.clone());
    let name = name.ok_or_else(|| UpgradeError::NoChannelNamed(cluster.clone()))?;
    let none = || UpgradeError::NoChannel(name.clone());
    let mut channel = store.channel(&name).await?.ok_or_else(none)?;
    let before = store.newest_upgrade(record.id).await?.map(|(upgrade, _)| upgrade);
    let release = preflight::release(&channel.0, order)?;
    let wanted = release.kubernetes.clone();
    // What is looked for is looked for this release; one that is published in the meantime is for the next upgrade.
    let order = &UpgradeOrder { release: Some(release.number), ..order.clone() };
    let seen = look(service, record, wanted.as_deref()).await?;
    let number = before.as_ref().map_or(1, |before| before.number + 1);
    loop {
        let (releases, revision) = &channel;
        let planned = preflight::plan(record, releases, order, &seen, number, by, OffsetDateTime::now_utc())?;
        if order.dry_run {
            return Ok(planned);
        }
        if let Some(before) = before.as_ref().filter(|before| !before.state.is_end()) {
            return Err(UpgradeError::GoesOn { cluster, number: before.number, state: before.state.as_str() });
        }
        if !preflight::may_begin(&planned.findings) {
            let refused = planned.findings.into_iter().filter(|finding| finding.refused);
            return Err(UpgradeError::Refused { cluster, reasons: refused.map(|finding| finding.message).collect() });
        }
        match store.begin_upgrade(record.id, &planned.upgrade, (&name, *revision)).await {
            Ok(()) => {
                service.upgrades.notify_one();
                return Ok(planned);
            }
            // The looking around has taken its time: releases were marked or retired, and it may be this one.
            Err(StoreError::Stale) => channel = store.channel(&name).await?.ok_or_else(none)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Pauses, resumes, aborts, or tries again.
///
/// # Errors
/// [`UpgradeError`]
pub async fn change(service: &Service, record: &Record, verb: UpgradeVerb) -> Result<Upgrade, UpgradeError> {
    let store = service.registry.store();
    let cluster = record.name();
    loop {
        let none = || UpgradeError::Nothing(format!("{cluster} was never upgraded"));
        let (mut upgrade, revision) = store.newest_upgrade(record.id).await?.ok_or_else(none)?;
        let state = upgrade.state;
        if state.is_end() {
            let (number, state) = (upgrade.number, state.as_str());
            let next = format!("`nkd upgrade start {cluster}` begins another one");
            return Err(UpgradeError::Nothing(format!("upgrade {number} of {cluster} is over: {state}; {next}")));
        }
        match verb {
            UpgradeVerb::Pause => upgrade.paused = true,
            // The operator has not said yet that it goes on.
            UpgradeVerb::Resume if state == UpgradeState::Paused => upgrade.paused = false,
            UpgradeVerb::Resume if !upgrade.paused => {
                let (number, state) = (upgrade.number, state.as_str());
                let next = format!("`nkd upgrade status {cluster}` says what it waits for");
                return Err(UpgradeError::Nothing(format!(
                    "upgrade {number} of {cluster} is not paused, it is {state}: {next}"
                )));
            }
            UpgradeVerb::Resume => upgrade.paused = false,
            // What was said of it before is over: who watches must not take it for the end of this.
            UpgradeVerb::Abort => {
                (upgrade.aborted, upgrade.state) = (true, UpgradeState::Aborting);
                upgrade.detail.clear();
            }
            UpgradeVerb::Retry if upgrade.snapshot.as_ref().is_some_and(|wanted| !wanted.is_taken()) => {
                upgrade.snapshot = upgrade.snapshot.map(|wanted| wanted.again(OffsetDateTime::now_utc()));
                upgrade.state = UpgradeState::Preparing;
                upgrade.detail.clear();
            }
            UpgradeVerb::Retry if upgrade.nodes.iter().any(|node| node.state == NodeState::Failed) => {
                (upgrade.retry, upgrade.state) = (upgrade.retry + 1, UpgradeState::Running);
                upgrade.detail.clear();
            }
            UpgradeVerb::Retry => {
                let state = state.as_str();
                return Err(UpgradeError::Nothing(format!(
                    "no node of {cluster} has failed in its upgrade, which is {state}"
                )));
            }
        }
        match store.save_upgrade(record.id, &upgrade, revision).await {
            Ok(_) => {
                service.upgrades.notify_one();
                return Ok(upgrade);
            }
            Err(StoreError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Follows every upgrade that goes on, until the service ends.
pub async fn run(service: Arc<Service>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
            () = service.upgrades.notified() => {}
        }
        if let Err(error) = take::look(&service).await {
            tracing::error!(error = &error as &dyn std::error::Error, "snapshots of etcd cannot be looked at");
        }
        let clusters = match service.registry.store().clusters().await {
            Ok(clusters) => clusters,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "clusters cannot be read");
                continue;
            }
        };
        // One that does not answer holds up no other.
        let looks = clusters.iter().map(|(record, _)| look_after(&service, record));
        tokio::select! {
            () = stop.cancelled() => return,
            _ = futures_util::future::join_all(looks) => {}
        }
    }
}

/// A look, and what is said when it fails.
async fn look_after(service: &Service, record: &Record) {
    let Err(error) = follow(service, record).await else { return };
    let why = crate::http::chain(&error);
    tracing::debug!(cluster = record.name(), why, "an upgrade cannot be looked at");
    if matches!(error, UpgradeError::Reach(_) | UpgradeError::Kube(_))
        && let Err(error) = say_away(service, record).await
    {
        tracing::error!(error = &error as &dyn std::error::Error, cluster = record.name(), "an upgrade is not kept");
    }
}

/// Who asks is to know that what the upgrade says is old.
async fn say_away(service: &Service, record: &Record) -> Result<(), StoreError> {
    let store = service.registry.store();
    let Some((upgrade, revision)) = store.newest_upgrade(record.id).await? else { return Ok(()) };
    let detail = format!("the API of {} does not answer now; what goes on in it goes on", record.name());
    if upgrade.state.is_end() || upgrade.detail == detail {
        return Ok(());
    }
    match store.save_upgrade(record.id, &Upgrade { detail, ..upgrade }, revision).await {
        Err(StoreError::Stale) => Ok(()),
        saved => saved.map(drop),
    }
}

/// One look at the upgrade of a cluster.
async fn follow(service: &Service, record: &Record) -> Result<(), UpgradeError> {
    let store = service.registry.store();
    let Some((upgrade, revision)) = store.newest_upgrade(record.id).await? else { return Ok(()) };
    if upgrade.state.is_end() {
        return finish(service, record, &upgrade).await;
    }
    let now = OffsetDateTime::now_utc();
    if let Some(prepared) = prepare(service, record, &upgrade).await? {
        return keep(service, record, (&upgrade, revision), prepared, now).await;
    }
    let (_, api) = reach::reach(service, record).await?;
    let name = resource::name(&upgrade);
    let wanted = resource::spec(&upgrade);
    let followed = match api.update(&name).await? {
        Some((spec, status)) if spec == wanted => resource::followed(&upgrade, &status),
        _ => {
            if upgrade.state == UpgradeState::Preparing
                && let Some(detail) = held(service, record).await?
            {
                let waits = Upgrade { detail, ..upgrade.clone() };
                return keep(service, record, (&upgrade, revision), waits, now).await;
            }
            api.apply_update(&name, &wanted).await?;
            let state = if upgrade.state == UpgradeState::Preparing { UpgradeState::Running } else { upgrade.state };
            Upgrade { state, detail: String::new(), ..upgrade.clone() }
        }
    };
    keep(service, record, (&upgrade, revision), followed, now).await
}

/// Writes down how far an upgrade is, and says it, if that is something else than before.
async fn keep(
    service: &Service,
    record: &Record,
    (upgrade, revision): (&Upgrade, i64),
    followed: Upgrade,
    now: OffsetDateTime,
) -> Result<(), UpgradeError> {
    let followed = Upgrade { ended_at: followed.state.is_end().then_some(now), ..followed };
    if followed == *upgrade {
        return Ok(());
    }
    match service.registry.store().save_upgrade(record.id, &followed, revision).await {
        // Somebody has paused it in this moment: the next look sees that.
        Err(StoreError::Stale) => return Ok(()),
        saved => drop(saved?),
    }
    // What is said of a snapshot is among the events already.
    let prepares = followed.state == UpgradeState::Preparing;
    if followed.state != upgrade.state || (followed.detail != upgrade.detail && !prepares) {
        let number = followed.number;
        let state = followed.state.as_str();
        let colon = if followed.detail.is_empty() { "" } else { ": " };
        let said = format!("upgrade {number} is {state}{colon}{}", followed.detail);
        tracing::info!(cluster = record.name(), "{said}");
        tell(service, record, said).await?;
    }
    if followed.state.is_end() { finish(service, record, &followed).await } else { Ok(()) }
}

/// A line in the history of the cluster.
async fn tell(service: &Service, record: &Record, said: String) -> Result<(), StoreError> {
    let store = service.registry.store();
    let Some((record, revision)) = store.cluster_by_name(record.name()).await? else { return Ok(()) };
    match store.save_cluster(&record, revision, &[said], "service", OffsetDateTime::now_utc()).await {
        // The history lacks a line; the upgrade itself has it.
        Err(StoreError::Stale) => Ok(()),
        saved => saved.map(drop),
    }
}

/// The cluster is now of the version that it was upgraded to: nodes that join from here on are too.
async fn finish(service: &Service, record: &Record, upgrade: &Upgrade) -> Result<(), UpgradeError> {
    let Some(version) = upgrade.kubernetes.clone().filter(|_| upgrade.state == UpgradeState::Complete) else {
        return Ok(());
    };
    if record.cluster.spec.kubernetes.version == version {
        return Ok(());
    }
    let store = service.registry.store();
    let Some((mut record, revision)) = store.cluster_by_name(record.name()).await? else { return Ok(()) };
    record.cluster.spec.kubernetes.version.clone_from(&version);
    let said = format!("runs Kubernetes {version} now");
    match store.save_cluster(&record, revision, &[said], "service", OffsetDateTime::now_utc()).await {
        // The next look does it.
        Err(StoreError::Stale) => Ok(()),
        saved => Ok(saved.map(drop)?),
    }
}
