//! Carries the plan out: takes machines, orders runs of kubeadm, applies add-ons, watches the API.
#![expect(clippy::disallowed_methods, reason = "the edge where clock, randomness and the network come in")]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use nkd_api::agent::{KubeadmAction, KubeadmTask};
use nkd_api::cluster::MemberState;
use nkd_api::machine::{Machine, Phase};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::asks::Asks;
use super::claim::{self, ClaimError};
use super::etcd::EtcdError;
use super::kubeadm::KubeadmError;
use super::kubernetes::{Cluster as Api, KubeError};
use super::order::{pki, text, token_name};
use super::pki::PkiError;
use super::plan::{self, NodeView, Seen, Step};
use super::quorum::Why;
use super::reach;
use super::record::{Record, Run};
use super::snapshot::turn;
use super::watch::observe;
use super::{health, housekeeper, recovery, renewal};
use crate::fleet::secret::{self, NoRandomness};
use crate::machine::RegistryError;
use crate::machine::lifecycle::Input;
use crate::service::Service;
use crate::store::{RowEffects, StoreError};

/// Between two looks at every cluster, unless something happens.
const LOOK: Duration = Duration::from_secs(1);
/// From an event of a machine to the look that it is worth.
const SOON: Duration = Duration::from_millis(100);
/// Between two looks at a cluster that is complete.
const HEALTH: Duration = Duration::from_secs(10);

/// A cluster does not go on.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// Store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Machines.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Taking a machine.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// kubeadm's configuration.
    #[error(transparent)]
    Kubeadm(#[from] KubeadmError),
    /// The cluster's API.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// Randomness.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// A sealed document is missing or does not read.
    #[error("the {0} of this cluster is not in the store: restore a backup")]
    Missing(&'static str),
    /// A manifest by address could not be had.
    #[error("the manifest {0} could not be fetched")]
    Fetch(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// A text is still a path.
    #[error("`{0}` is a path on the operator's machine: apply the file with `nkd cluster apply`, which reads it")]
    Path(String),
    /// A member of etcd cannot be taken out.
    #[error("a join that was cut off left a member of etcd: {0}")]
    Left(#[from] Why),
    /// Nobody joins now.
    #[error("etcd of {0} is brought back first")]
    Recovery(String),
    /// No such run, or not any more.
    #[error("this run of kubeadm is over")]
    Over,
}

/// What nodes are to do for their clusters and to know of them, at hand for every agent that asks.
#[derive(Debug, Default)]
pub struct Orders {
    tasks: Mutex<HashMap<Uuid, KubeadmTask>>,
    /// The API servers of each machine's cluster; whoever holds a question of an agent hears of changes.
    api_servers: watch::Sender<HashMap<Uuid, Vec<SocketAddr>>>,
    /// Somebody has changed a cluster: it is worth a look.
    changed: Notify,
    /// How agents ask for their orders to join.
    pub(super) asks: Asks,
}

impl Orders {
    /// What this machine is to do.
    #[must_use]
    pub fn of(&self, machine: Uuid) -> Option<KubeadmTask> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).get(&machine).cloned()
    }

    /// The API servers that the balancer of this machine is to know; none: as it is.
    #[must_use]
    pub fn api_servers(&self, machine: Uuid) -> Vec<SocketAddr> {
        self.api_servers.borrow().get(&machine).cloned().unwrap_or_default()
    }

    /// Hears when the API servers of any machine change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<HashMap<Uuid, Vec<SocketAddr>>> {
        self.api_servers.subscribe()
    }

    /// A cluster has changed: it is looked at now.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// A machine has left its cluster.
    pub(super) fn forget(&self, machine: Uuid) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
        self.asks.close(machine);
        self.api_servers.send_if_modified(|known| known.remove(&machine).is_some());
    }

    pub(super) fn learn(&self, record: &Record) {
        let servers = record.api_servers();
        self.api_servers.send_if_modified(|known| {
            let mut changed = false;
            for machine in record.members.iter().filter_map(|m| m.machine) {
                changed |= match servers.is_empty() {
                    true => known.remove(&machine).is_some(),
                    false => known.insert(machine, servers.clone()).as_ref() != Some(&servers),
                };
            }
            changed
        });
        if self.assign(record) {
            // Who holds a question of an agent looks again: a reset or a renewal moves no machine.
            self.api_servers.send_modify(|_| ());
        }
    }

    /// Writes down what the machines of a cluster are to do. True when that is something else than before.
    fn assign(&self, record: &Record) -> bool {
        let mut orders = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for member in &record.members {
            let Some(machine) = member.machine else { continue };
            let may_run = match member.leaving {
                None => {
                    let stays = renewal::under_way(member) || recovery::under_way(member) || turn::under_way(member);
                    member.state == MemberState::Joining || stays
                }
                Some(leaving) => !leaving.lost,
            };
            match member.run.filter(|run| run.ended_at.is_none() && may_run) {
                Some(run) => {
                    let task = KubeadmTask { operation: run.operation, action: run.action };
                    changed |= orders.insert(machine, task.clone()) != Some(task);
                }
                None => changed |= orders.remove(&machine).is_some(),
            }
        }
        changed
    }
}

/// Reads what nodes are to do: before the first agent asks, so that none is told that there is nothing.
pub async fn learn(service: &Service) -> Result<(), StoreError> {
    for (record, _) in service.registry.store().clusters().await? {
        service.orders.learn(&record);
    }
    Ok(())
}

/// Looks after every cluster until the service ends. One whose API server keeps us waiting keeps no other waiting.
pub async fn run(service: Arc<Service>, stop: CancellationToken) {
    let mut events = service.registry.subscribe();
    let mut turns = FuturesUnordered::new();
    let mut busy = HashSet::new();
    let mut looked = HashMap::new();
    loop {
        let mut open = false;
        match service.registry.store().clusters().await {
            Ok(clusters) => {
                service.watches.keep(&clusters.iter().map(|(record, _)| record.id).collect::<Vec<_>>());
                open = clusters.iter().any(|(record, _)| !plan::is_complete(record));
                for (record, revision) in clusters {
                    let id = record.id;
                    let rests = |at: &Instant| plan::is_complete(&record) && at.elapsed() < HEALTH;
                    if looked.get(&id).is_some_and(rests) || !busy.insert(id) {
                        continue;
                    }
                    looked.insert(id, Instant::now());
                    turns.push(turn(&service, record, revision).map(move |went_on| (id, went_on)));
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
                Some((id, went_on)) = turns.next() => {
                    busy.remove(&id);
                    // What was done may be what the next step waited for.
                    if went_on {
                        break;
                    }
                }
                () = service.orders.changed.notified() => {
                    looked.clear();
                    break;
                }
                // Machines have moved: look soon, and not more than a few times a second.
                _ = events.recv(), if open => {
                    let soon = pause.deadline().min(Instant::now() + SOON);
                    pause.as_mut().reset(soon);
                }
            }
            events = events.resubscribe();
        }
    }
}

/// One look at one cluster, and everything that can be done now. True when something was done.
async fn turn(service: &Arc<Service>, record: Record, revision: i64) -> bool {
    let name = record.name().to_owned();
    let mut work = Work { service: Arc::clone(service), record, revision };
    let Err(error) = work.turn().await else { return work.revision != revision };
    // If somebody else wrote first, the next look sees it.
    if !matches!(error, BringUpError::Store(StoreError::Stale)) {
        let reason = crate::http::chain(&error);
        if work.record.waiting.as_ref() != Some(&reason) {
            tracing::warn!(cluster = name, reason, "a cluster waits");
            work.record.waiting = Some(reason.clone());
            if let Err(error) = work.save(vec![format!("waits: {reason}")]).await {
                tracing::warn!(cluster = name, error = &error as &dyn std::error::Error, "a cluster was not saved");
            }
        }
    }
    false
}

pub(super) struct Work {
    pub(super) service: Arc<Service>,
    pub(super) record: Record,
    pub(super) revision: i64,
}

impl Work {
    pub(super) async fn save(&mut self, said: Vec<String>) -> Result<(), StoreError> {
        let now = OffsetDateTime::now_utc();
        let store = self.service.registry.store();
        self.revision = store.save_cluster(&self.record, self.revision, &said, "service", now).await?;
        self.service.orders.learn(&self.record);
        for message in said {
            tracing::info!(cluster = self.record.name(), "{message}");
        }
        Ok(())
    }

    async fn turn(&mut self) -> Result<(), BringUpError> {
        self.service.orders.learn(&self.record);
        let mut machines = Vec::new();
        for id in self.record.members.iter().filter_map(|m| m.machine) {
            if let Some((machine, _)) = self.service.registry.store().machine(id).await? {
                machines.push(machine);
            }
        }
        let api = match self.record.is_initialised() {
            true => Some(self.api().await?),
            false => None,
        };
        let nodes = match &api {
            Some(api) => self.judge(api).await?,
            None => None,
        };
        let quorum = match nodes {
            Some(_) => self.quorum().await,
            None => None,
        };
        if nodes.is_some() && recovery::forget(&mut self.record) {
            self.save(Vec::new()).await?;
        }
        let in_vain = self.service.orders.asks.in_vain();
        let etcd = match (&api, &nodes) {
            (Some(_), None) => self.word_of_etcd(&in_vain).await?,
            _ => None,
        };
        // Read after the cluster itself: see how an upgrade is told.
        let upgrade = self.service.registry.store().newest_upgrade(self.record.id).await?.map(|(upgrade, _)| upgrade);
        let upgrade = upgrade.as_ref();
        let (nodes, quorum, now) = (nodes.as_deref(), quorum.as_deref(), OffsetDateTime::now_utc());
        let seen = Seen { machines: &machines, nodes, quorum, etcd: etcd.as_ref(), in_vain: &in_vain, upgrade, now };
        let mut steps = plan::plan(&self.record, seen);
        let went_on = !steps.is_empty();
        // Members that have left are taken off the list at the end, the last first: the steps name them by their places.
        steps.sort_by_key(|step| match step {
            Step::Part { member } => usize::MAX - member,
            _ => 0,
        });
        // One member that cannot go on holds up itself, and no other one.
        let (mut stuck, mut first) = (BTreeSet::new(), None);
        for step in steps {
            let member = step.member();
            if stuck.contains(&member) {
                continue;
            }
            match self.take(step, api.as_ref(), &machines).await {
                Ok(()) => {}
                // What is held here is not what is written down.
                Err(BringUpError::Store(error)) => return Err(error.into()),
                Err(error) => {
                    stuck.insert(member);
                    first.get_or_insert(error);
                }
            }
        }
        self.tell_ready(&machines).await?;
        if let Some(error) = first {
            return Err(error);
        }
        if went_on && self.record.waiting.take().is_some() {
            self.save(Vec::new()).await?;
        }
        Ok(())
    }

    /// Looks at the cluster, keeps its health when that changes, and says what has held for a while. Its nodes, if it
    /// answers.
    async fn judge(&mut self, api: &Api) -> Result<Option<Vec<NodeView>>, BringUpError> {
        let now = OffsetDateTime::now_utc();
        let pki = pki(&self.service, &self.record).await?;
        let nodes = api.nodes().await.map_err(|error| crate::http::chain(&error));
        let views = nodes.as_deref().ok().map(health::views);
        // Nodes that leave are away on purpose.
        let leaves = |name: &str| self.record.members.iter().any(|m| m.hostname == name && m.leaving.is_some());
        let nodes = nodes.map(|nodes| nodes.into_iter().filter(|node| !leaves(&node.name)).collect());
        let observed = observe(&self.service.watches, &self.record, &pki, api, nodes, now).await?;
        let health = health::judge(&observed, &self.record.health, now);
        let said = self.service.watches.hear(&self.record, &health, now);
        if said.is_some() || health != self.record.health {
            self.record.health = health;
            self.save(said.into_iter().collect()).await?;
        }
        Ok(views)
    }

    async fn api(&self) -> Result<Api, BringUpError> {
        Ok(reach::reach(&self.service, &self.record).await?.1)
    }

    async fn take(&mut self, step: Step, api: Option<&Api>, machines: &[Machine]) -> Result<(), BringUpError> {
        match step {
            Step::Claim { member } => {
                let id = claim::claim(&self.service, &self.record, member).await?;
                let Some(id) = id else { return Ok(()) };
                self.record.members[member].machine = Some(id);
                let hostname = &self.record.members[member].hostname;
                self.save(vec![format!("{hostname}: machine {id} is taken")]).await?;
            }
            Step::Note { member, state, detail, address } => {
                let member = &mut self.record.members[member];
                let before = std::mem::replace(&mut member.state, state);
                (member.detail, member.address) = (detail, address);
                let hostname = member.hostname.clone();
                let said = (before != state).then(|| format!("{hostname}: {state:?}").to_lowercase());
                self.save(said.into_iter().collect()).await?;
            }
            Step::Renew(turn) => {
                let said = renewal::take(&mut self.record, &turn, Uuid::now_v7(), OffsetDateTime::now_utc());
                self.save(said).await?;
            }
            Step::Recover(turn) => self.recover(&turn).await?,
            Step::Run { member, action } => self.order(member, action, api, machines).await?,
            Step::Revoke { member } => {
                let (Some(api), Some(token)) = (api, self.record.members[member].token.clone()) else { return Ok(()) };
                api.revoke_token(&token).await?;
                self.forget_tokens().await?;
                self.record.members[member].token = None;
                let hostname = &self.record.members[member].hostname;
                self.save(vec![format!("{hostname}: its bootstrap token is revoked")]).await?;
            }
            Step::Label { member, set, lost, remove } => {
                let Some(api) = api else { return Ok(()) };
                let hostname = self.record.members[member].hostname.clone();
                api.label(&hostname, &set, lost, &remove).await?;
                let keys: Vec<&str> = set.keys().map(String::as_str).chain(lost.iter().copied()).collect();
                self.save(vec![format!("{hostname}: labelled: {}", keys.join(", "))]).await?;
            }
            Step::Taint { member, change, is_ours } => {
                let Some(api) = api else { return Ok(()) };
                let hostname = self.record.members[member].hostname.clone();
                api.taint(&hostname, &change, is_ours).await?;
                let taints: Vec<&str> = change.set.iter().map(String::as_str).collect();
                let taints = if taints.is_empty() { "none".to_owned() } else { taints.join(", ") };
                self.save(vec![format!("{hostname}: its taints: {taints}")]).await?;
            }
            Step::Lose { member } => self.lose(member).await?,
            Step::Drain { member } => {
                if let Some(api) = api {
                    self.drain(member, api).await?;
                }
            }
            Step::Part { member } => self.part(member, api).await?,
            Step::Complete => {
                self.record.completed_at = Some(OffsetDateTime::now_utc());
                self.save(vec!["complete: every node is Ready".to_owned()]).await?;
            }
            Step::Gone => self.gone().await?,
            Step::Apply { addon } => {
                let Some(api) = api else { return Ok(()) };
                let manifest = self.manifest(&addon).await?;
                api.apply(&addon, &manifest).await?;
                // It is there in place of an earlier one.
                self.record.applied.retain(|of| !(housekeeper::is_addon(of) && housekeeper::is_addon(&addon)));
                self.record.applied.push(addon.clone());
                self.save(vec![format!("applied {addon}")]).await?;
            }
        }
        Ok(())
    }

    /// Orders a run of kubeadm. The order is durable before the agent hears of it, and so is the token of a join, which
    /// comes into the cluster when the node asks for its order.
    async fn order(
        &mut self,
        index: usize,
        action: KubeadmAction,
        api: Option<&Api>,
        machines: &[Machine],
    ) -> Result<(), BringUpError> {
        let now = OffsetDateTime::now_utc();
        let operation = Uuid::now_v7();
        let hostname = self.record.members[index].hostname.clone();
        let mut token = None;
        if let (KubeadmAction::Join, Some(api)) = (action, api) {
            if let Some(old) = &self.record.members[index].token {
                api.revoke_token(old).await?;
            }
            self.forget_tokens().await?;
            api.forget_node(&hostname).await?;
            let (id, secret) = bootstrap_token()?;
            let text = format!("{id}.{secret}");
            let name = token_name(&self.record, operation);
            self.service.registry.store().save_secrets(&[(&name, text.as_bytes())]).await?;
            token = Some(id);
        }
        let member = &mut self.record.members[index];
        member.run = Some(Run { operation, action, ordered_at: now, ended_at: None });
        member.detail = None;
        let machine = member.machine;
        if action == KubeadmAction::Reset {
            return Ok(self.save(vec![format!("{hostname}: kubeadm reset is ordered")]).await?);
        }
        member.token = token;
        member.state = MemberState::Joining;
        let verb = if action == KubeadmAction::Init { "init" } else { "join" };
        self.save(vec![format!("{hostname}: kubeadm {verb} is ordered")]).await?;
        let cluster = self.record.name().to_owned();
        match machine.filter(|id| machines.iter().any(|m| m.id == *id)) {
            Some(id) => self.tell(id, Input::Joining { cluster }).await,
            None => Ok(()),
        }
    }

    /// Tells the machines what became of their nodes. By comparison, not when it changes: a service that was killed in
    /// between tells it later.
    async fn tell_ready(&self, machines: &[Machine]) -> Result<(), BringUpError> {
        for member in &self.record.members {
            let ready = member.state == MemberState::Ready;
            let Some(machine) = machines.iter().find(|m| Some(m.id) == member.machine) else { continue };
            let other = match machine.phase {
                Phase::Enrolled | Phase::Joining => ready,
                Phase::Ready => member.state == MemberState::Joined,
                _ => false,
            };
            if other {
                self.tell(machine.id, Input::NodeReady { cluster: self.record.name().to_owned(), ready }).await?;
            }
        }
        Ok(())
    }

    async fn tell(&self, machine: Uuid, input: Input) -> Result<(), BringUpError> {
        self.service.registry.apply(machine, input, RowEffects::default()).await?;
        Ok(())
    }

    async fn manifest(&self, addon: &str) -> Result<String, BringUpError> {
        let spec = &self.record.cluster.spec;
        if housekeeper::is_addon(addon) {
            return Ok(housekeeper::manifest(&self.record.cluster, self.service.pki.ca_pem()));
        }
        let source = match plan::after_number(addon) {
            Some(number) => spec.hooks.after.get(number - 1),
            None => spec.kubernetes.cni.as_ref().map(|cni| &cni.manifest),
        };
        text(source.ok_or(BringUpError::Missing("manifest"))?).await
    }
}

/// Id and secret of a bootstrap token: 6 and 16 of a-z and 0-9, 82 random bits in the secret.
fn bootstrap_token() -> Result<(String, String), NoRandomness> {
    let text = |length| secret::new_word(length);
    Ok((text(6)?, text(16)?))
}
