//! Begins upgrades, and follows them: tells the operator in the cluster what is wanted, and writes down what it says.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use nkd_api::channel::Channel;
use nkd_api::cluster::Role;
use nkd_api::upgrade::{Finding, Planned, Upgrade, UpgradeOrder, UpgradeState, UpgradeVerb};
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::preflight::{self, NotAsked, Seen};
use super::prepare::{held, prepare};
use super::{beside, metrics, resource, verb, verdict};
use crate::cluster::bringup::BringUpError;
use crate::cluster::etcd::{CLIENT_PORT, Etcd};
use crate::cluster::kubernetes::{Cluster, KubeError};
use crate::cluster::order::pki;
use crate::cluster::record::Record;
use crate::cluster::snapshot::take;
use crate::cluster::{kubeadm, reach};
use crate::fleet::lock::{self, Locks};
use crate::fleet::reboots;
use crate::machine::Selector;
use crate::service::Service;
use crate::store::StoreError;

/// Between two looks at the upgrades that go on.
const LOOK: Duration = Duration::from_secs(3);
/// Between two checks of an upgrade that may not be told to its cluster yet.
const CHECK: Duration = Duration::from_secs(60);

/// An upgrade was not begun, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// No such channel.
    #[error("there is no channel `{0}`: `nkd channel list` shows those there are")]
    NoChannel(String),
    /// There is nothing to be upgraded yet.
    #[error("{0} has not come up yet: `nkd cluster status {0} --watch` shows how far it is")]
    NotUp(String),
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
    /// It was taken apart in the meantime.
    #[error("the cluster {0} is gone")]
    Gone(String),
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
    let mut seen = Seen::default();
    look_by_api(service, record, to, &mut seen).await?;
    look_besides(service, record, &mut seen).await?;
    Ok(seen)
}

/// The same for a rehearsal, which also says what is known while the API says nothing.
async fn look_as_far_as_may_be(service: &Service, record: &Record, to: Option<&str>) -> Result<Seen, UpgradeError> {
    let mut seen = Seen::default();
    if let Err(error) = look_by_api(service, record, to, &mut seen).await {
        let (UpgradeError::Kube(kube) | UpgradeError::Reach(BringUpError::Kube(kube))) = &error else {
            return Err(error);
        };
        let why = kube.answer().unwrap_or_else(|| crate::http::chain(kube));
        seen.unseen = Some(match kube.is_silence() {
            true => format!("the API of {} does not answer: {why}", record.name()),
            false => why,
        });
    }
    look_besides(service, record, &mut seen).await?;
    Ok(seen)
}

/// What its API says.
async fn look_by_api(
    service: &Service,
    record: &Record,
    to: Option<&str>,
    seen: &mut Seen,
) -> Result<(), UpgradeError> {
    let (_, api) = reach::reach(service, record).await?;
    seen.kubelets = api.kubelets().await?;
    seen.stuck = api.stuck_pods().await?;
    seen.operator = api.operator().await?.is_some_and(|operator| operator.available);
    if let Some(minor) = to.and_then(|version| kubeadm::minor(version).ok()) {
        let servers = reach::each(service, record).await?;
        let (pages, not_asked) = pages_of(record, &servers, &api).await?;
        seen.deprecated = metrics::gone_by(&pages, minor.into());
        seen.not_asked = not_asked;
        seen.servers = versions_of(record, &servers, &api).await;
    }
    Ok(())
}

/// What its etcd says, and what its agents have said.
async fn look_besides(service: &Service, record: &Record, seen: &mut Seen) -> Result<(), UpgradeError> {
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
    facts(service, record, seen).await;
    Ok(())
}

/// Whether the commit of the release that is meant is nowhere to be fetched.
fn is_missing(service: &Service, channel: &Channel, order: &UpgradeOrder) -> Result<bool, NotAsked> {
    let release = preflight::release(channel, order)?;
    Ok(service.channels.missing(&channel.profile).contains(&release.commit))
}

/// The versions of the API servers of all control planes that answer; of whoever is behind a balancer, if none is reached.
async fn versions_of(record: &Record, servers: &[(String, Cluster)], api: &Cluster) -> BTreeMap<String, String> {
    let answers = join_all(servers.iter().map(|(_, api)| api.version())).await;
    let answered = servers.iter().zip(answers).filter_map(|((node, _), answer)| Some((node.clone(), answer.ok()?)));
    let mut versions: BTreeMap<String, String> = answered.collect();
    if versions.is_empty()
        && let Ok(version) = api.version().await
    {
        versions.insert(record.name().to_owned(), version);
    }
    versions
}

/// The metrics of the API servers of all control planes: each counts what it was asked itself. And whose are missing.
async fn pages_of(
    record: &Record,
    servers: &[(String, Cluster)],
    api: &Cluster,
) -> Result<(Vec<String>, Vec<String>), UpgradeError> {
    let answers = join_all(servers.iter().map(|(_, api)| api.metrics())).await;
    let (mut pages, mut missing) = (Vec::new(), Vec::new());
    for ((node, _), answer) in servers.iter().zip(answers) {
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
    let gone = || UpgradeError::Gone(record.name().to_owned());
    let cluster = record.name().to_owned();
    let mut known = store.cluster(record.id).await?.ok_or_else(gone)?;
    let name = order.channel.clone().or_else(|| record.cluster.spec.os.channel.clone());
    let name = name.ok_or_else(|| UpgradeError::NoChannelNamed(cluster.clone()))?;
    let none = || UpgradeError::NoChannel(name.clone());
    let mut channel = store.channel(&name).await?.ok_or_else(none)?;
    let before = store.newest_upgrade(record.id).await?.map(|(upgrade, _)| upgrade);
    let release = preflight::release(&channel.0, order)?;
    let wanted = release.kubernetes.clone();
    if !record.is_initialised() {
        return Err(UpgradeError::NotUp(cluster));
    }
    let named = order.release.is_some();
    // What is looked for is looked for this release; one that is published in the meantime is for the next upgrade.
    let order = &UpgradeOrder { release: Some(release.number), ..order.clone() };
    let mut seen = match order.dry_run {
        true => look_as_far_as_may_be(service, record, wanted.as_deref()).await?,
        false => look(service, record, wanted.as_deref()).await?,
    };
    let number = before.as_ref().map_or(1, |before| before.number + 1);
    loop {
        let ((record, members), (releases, revision)) = (&known, &channel);
        let now = OffsetDateTime::now_utc();
        let nodes = reboots::nodes(store, &service.channels, record).await?;
        let locks = store.locks().await?;
        let held = lock::held(&nodes, &locks, now).into_iter();
        seen.leases = held.map(|(node, lease)| (node.to_owned(), lease.clone())).collect();
        seen.missing = is_missing(service, releases, order)?;
        let mut planned = preflight::plan(record, releases, order, &seen, number, by, now)?;
        let back = preflight::leads_back(releases, preflight::release(releases, order)?, &seen);
        planned.findings.extend(back.filter(|_| !named));
        let goes_on = before.as_ref().filter(|before| !before.state.is_end());
        let goes_on = goes_on.map(|before| UpgradeError::GoesOn {
            cluster: cluster.clone(),
            number: before.number,
            state: before.state.as_str(),
        });
        if order.dry_run {
            let in_the_way = goes_on.map(|why| Finding { refused: true, message: why.to_string() });
            planned.findings.splice(0..0, in_the_way);
            return Ok(planned);
        }
        if let Some(goes_on) = goes_on {
            return Err(goes_on);
        }
        if !preflight::may_begin(&planned.findings) {
            let refused = planned.findings.into_iter().filter(|finding| finding.refused);
            return Err(UpgradeError::Refused { cluster, reasons: refused.map(|finding| finding.message).collect() });
        }
        let free = |locks: &Locks| lock::held(&nodes, locks, now).is_empty();
        match store.begin_upgrade((record.id, *members), &planned.upgrade, (&name, *revision), free).await {
            Ok(()) => {
                service.upgrades.notify_one();
                return Ok(planned);
            }
            // The looking around has taken its time: a release was marked or retired, a member was removed, and it may be one
            // of these; or one of the nodes may restart by now.
            Err(StoreError::Stale) => {
                channel = store.channel(&name).await?.ok_or_else(none)?;
                known = store.cluster(record.id).await?.ok_or_else(gone)?;
            }
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
        let none =
            || UpgradeError::Nothing(format!("{cluster} was never upgraded: `nkd upgrade start {cluster}` does"));
        let (upgrade, revision) = store.newest_upgrade(record.id).await?.ok_or_else(none)?;
        let upgrade = verb::said(record, &upgrade, verb, OffsetDateTime::now_utc()).map_err(UpgradeError::Nothing)?;
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

/// What is remembered of a cluster from one look to the next. Nothing is lost with it but patience.
#[derive(Debug, Default)]
struct Memory {
    /// Of which of its upgrades this is.
    number: u32,
    /// So many looks in a row have found that the Update says something else.
    unlike: u32,
    /// When it was found that the cluster may not be told yet.
    refused: Option<Instant>,
}

/// A look under way: at a cluster, or at the snapshots of all of them.
type Turn = BoxFuture<'static, (Option<Uuid>, Memory)>;

/// Follows every upgrade that goes on, until the service ends. A cluster that does not answer holds up no other.
pub async fn run(service: Arc<Service>, stop: CancellationToken) {
    let (mut turns, mut busy) = (FuturesUnordered::<Turn>::new(), HashSet::new());
    let mut memories: HashMap<Uuid, Memory> = HashMap::new();
    // Something has changed while it was looked at: it is looked at once more.
    let mut again = false;
    loop {
        if busy.insert(None) {
            turns.push(look_at_snapshots(Arc::clone(&service)).boxed());
        }
        match service.registry.store().clusters().await {
            Ok(clusters) => {
                memories.retain(|id, _| clusters.iter().any(|(record, _)| record.id == *id));
                for (record, _) in clusters {
                    if busy.insert(Some(record.id)) {
                        let memory = memories.remove(&record.id).unwrap_or_default();
                        turns.push(look_after(Arc::clone(&service), record, memory).boxed());
                    }
                }
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "clusters cannot be read"),
        }
        let pause = tokio::time::sleep(LOOK);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = &mut pause => break,
                () = service.upgrades.notified() => {
                    again = !busy.is_empty();
                    break;
                }
                Some((of, memory)) = turns.next() => {
                    busy.remove(&of);
                    if let Some(id) = of {
                        memories.insert(id, memory);
                    }
                    if std::mem::take(&mut again) {
                        break;
                    }
                }
            }
        }
    }
}

async fn look_at_snapshots(service: Arc<Service>) -> (Option<Uuid>, Memory) {
    if let Err(error) = take::look(&service).await {
        tracing::error!(error = &error as &dyn std::error::Error, "snapshots of etcd cannot be looked at");
    }
    (None, Memory::default())
}

/// A look, and what is said when it fails.
async fn look_after(service: Arc<Service>, record: Record, mut memory: Memory) -> (Option<Uuid>, Memory) {
    if let Err(error) = follow(&service, &record, &mut memory).await {
        let kept = match unseen(record.name(), &error) {
            Some(detail) => {
                tracing::debug!(cluster = record.name(), detail, "an upgrade cannot be looked at");
                say(&service, &record, detail).await
            }
            None => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    cluster = record.name(),
                    "no look at an upgrade"
                );
                Ok(())
            }
        };
        if let Err(error) = kept {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                cluster = record.name(),
                "an upgrade is not kept"
            );
        }
    }
    (Some(record.id), memory)
}

/// Why a look at an upgrade has failed, for its owner; none: it is the service's own fault.
fn unseen(cluster: &str, error: &UpgradeError) -> Option<String> {
    let asked = match error {
        UpgradeError::Store(_) | UpgradeError::Reach(BringUpError::Store(_)) => return None,
        UpgradeError::Kube(kube) | UpgradeError::Reach(BringUpError::Kube(kube)) => Some(kube),
        _ => None,
    };
    if asked.is_some_and(KubeError::is_silence) {
        return Some(format!("the API of {cluster} does not answer now; what goes on in it goes on"));
    }
    let why = asked.and_then(KubeError::answer).unwrap_or_else(|| crate::http::chain(error));
    Some(format!("it cannot be looked at now: {why}; what goes on in {cluster} goes on"))
}

/// Who asks is to know that what the upgrade says is old.
async fn say(service: &Service, record: &Record, detail: String) -> Result<(), StoreError> {
    let store = service.registry.store();
    let Some((upgrade, revision)) = store.newest_upgrade(record.id).await? else { return Ok(()) };
    let detail = verdict::of_one_called_off(&upgrade, detail);
    if upgrade.state.is_end() || upgrade.restored || upgrade.detail == detail {
        return Ok(());
    }
    match store.save_upgrade(record.id, &Upgrade { detail, ..upgrade }, revision).await {
        Err(StoreError::Stale) => Ok(()),
        saved => saved.map(drop),
    }
}

/// One look at the upgrade of a cluster.
async fn follow(service: &Service, record: &Record, memory: &mut Memory) -> Result<(), UpgradeError> {
    let store = service.registry.store();
    let Some((upgrade, revision)) = store.newest_upgrade(record.id).await? else { return Ok(()) };
    if upgrade.state.is_end() {
        return finish(service, record, &upgrade).await;
    }
    // The backup knows less of it than its cluster: nothing is done before a person has looked.
    if upgrade.restored {
        return Ok(());
    }
    if memory.number != upgrade.number {
        *memory = Memory { number: upgrade.number, ..Memory::default() };
    }
    let now = OffsetDateTime::now_utc();
    if let Some(prepared) = prepare(service, record, &upgrade).await? {
        return keep(service, record, (&upgrade, revision), prepared, now).await;
    }
    let (_, api) = reach::reach(service, record).await?;
    let followed = tell_and_hear(service, record, &api, &upgrade, memory).await?;
    let followed = match followed.state.is_end() {
        true => followed,
        false => verdict::of_the_operator(followed, api.operator().await?, now),
    };
    keep(service, record, (&upgrade, revision), followed, now).await
}

/// Tells the cluster what is wanted if it does not say so already, else hears what the operator says.
async fn tell_and_hear(
    service: &Service,
    record: &Record,
    api: &Cluster,
    upgrade: &Upgrade,
    memory: &mut Memory,
) -> Result<Upgrade, UpgradeError> {
    let (name, wanted) = (resource::name(upgrade), resource::spec(upgrade));
    let found = api.update(&name).await?;
    let unlike = match (&found, resource::unlike(found.as_ref(), &wanted)) {
        (Some(found), None) => {
            memory.unlike = 0;
            return Ok(verdict::of_all_members(record, resource::followed(upgrade, &found.status()?)));
        }
        (_, unlike) => unlike.unwrap_or_default(),
    };
    let told = found.as_ref().is_some_and(|found| resource::is_of_this(found, &wanted));
    if upgrade.state == UpgradeState::Preparing && !told {
        if upgrade.aborted && found.is_none() {
            return Ok(verdict::never_told(upgrade));
        }
        if !upgrade.aborted
            && let Some(why) = beside::waits(record)
        {
            return Ok(Upgrade { detail: format!("waits: {why}"), ..upgrade.clone() });
        }
        if !upgrade.aborted
            && let Some(waits) = check(service, record, upgrade, memory).await?
        {
            return Ok(waits);
        }
        if !upgrade.aborted
            && let Some(detail) = held(service, record).await?
        {
            return Ok(Upgrade { detail, ..upgrade.clone() });
        }
    }
    if !api.write_update(&name, found, &wanted).await? {
        return Ok(upgrade.clone());
    }
    memory.unlike = memory.unlike.saturating_add(1);
    let detail = verdict::of_another_writer(&name, &unlike, memory.unlike);
    let state = match upgrade.state {
        UpgradeState::Preparing if upgrade.aborted => UpgradeState::Aborting,
        UpgradeState::Preparing => UpgradeState::Running,
        state => state,
    };
    Ok(Upgrade { state, detail, ..upgrade.clone() })
}

/// Whether the cluster may be told of an upgrade: it may be days since that was looked at. None: it may.
async fn check(
    service: &Service,
    record: &Record,
    upgrade: &Upgrade,
    memory: &mut Memory,
) -> Result<Option<Upgrade>, UpgradeError> {
    if memory.refused.is_some_and(|at| at.elapsed() < CHECK) {
        return Ok(Some(upgrade.clone()));
    }
    let name = upgrade.order.channel.clone().unwrap_or_default();
    let channel = service.registry.store().channel(&name).await?;
    let (channel, _) = channel.ok_or(UpgradeError::NoChannel(name))?;
    let kubernetes = preflight::release(&channel, &upgrade.order)?.kubernetes.clone();
    let mut seen = look(service, record, kubernetes.as_deref()).await?;
    seen.missing = is_missing(service, &channel, &upgrade.order)?;
    let reasons = preflight::refusals(record, &channel, upgrade, &seen)?;
    if reasons.is_empty() {
        memory.refused = None;
        return Ok(None);
    }
    memory.refused = Some(Instant::now());
    Ok(Some(verdict::not_yet(upgrade, &reasons)))
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
    let saves = followed.snapshot.as_ref().is_some_and(|wanted| !wanted.is_taken());
    let prepares = followed.state == UpgradeState::Preparing && (saves || followed.detail.is_empty());
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
