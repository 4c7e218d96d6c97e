//! Carries the plan out: takes machines, orders runs of kubeadm, applies add-ons, watches the API.
#![expect(clippy::disallowed_methods, reason = "the edge where clock, randomness and the network come in")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nkd_api::agent::{KubeadmAction, KubeadmTask};
use nkd_api::cluster::MemberState;
use nkd_api::machine::Machine;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::claim::{self, ClaimError};
use super::etcd::EtcdError;
use super::kubeadm::KubeadmError;
use super::kubernetes::{Cluster as Api, KubeError};
use super::order::{pki, text, token_name};
use super::pki::PkiError;
use super::plan::{self, NodeView, Seen, Step};
use super::reach;
use super::record::{Record, Run};
use super::watch::observe;
use super::{health, renewal};
use crate::fleet::secret::{self, NoRandomness};
use crate::machine::RegistryError;
use crate::machine::lifecycle::Input;
use crate::service::Service;
use crate::store::{RowEffects, StoreError};

/// Between two looks at every cluster, unless something happens.
const LOOK: Duration = Duration::from_secs(2);
/// Between two questions to the API of a cluster that is complete.
const HEALTH: time::Duration = time::Duration::seconds(10);
/// Life of a bootstrap token, in case that nobody can revoke it.
const TOKEN_LIFE: time::Duration = time::Duration::hours(1);

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

    /// A machine has left its cluster.
    pub(super) fn forget(&self, machine: Uuid) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
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
        let mut orders = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for member in &record.members {
            let Some(machine) = member.machine else { continue };
            let may_run = match member.leaving {
                None => member.state == MemberState::Joining || renewal::under_way(member),
                Some(leaving) => !leaving.lost,
            };
            match member.run.filter(|run| run.ended_at.is_none() && may_run) {
                Some(run) => {
                    orders.insert(machine, KubeadmTask { operation: run.operation, action: run.action });
                }
                None => drop(orders.remove(&machine)),
            }
        }
    }
}

/// Looks after every cluster until the service ends.
pub async fn run(service: Arc<Service>, stop: CancellationToken) {
    let mut events = service.registry.subscribe();
    loop {
        match service.registry.store().clusters().await {
            Ok(clusters) => {
                service.watches.keep(&clusters.iter().map(|(record, _)| record.id).collect::<Vec<_>>());
                let turns = clusters.into_iter().map(|(record, revision)| turn(&service, record, revision));
                futures_util::future::join_all(turns).await;
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "clusters cannot be read"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
            // Machines have moved: look at once, and not more than a few times a second.
            _ = events.recv() => tokio::time::sleep(Duration::from_millis(200)).await,
        }
        events = events.resubscribe();
    }
}

/// One look at one cluster, and everything that can be done now.
async fn turn(service: &Arc<Service>, record: Record, revision: i64) {
    let name = record.name().to_owned();
    let mut work = Work { service: Arc::clone(service), record, revision };
    if let Err(error) = work.turn().await {
        if matches!(error, BringUpError::Store(StoreError::Stale)) {
            // Somebody else wrote first: the next look sees it.
            return;
        }
        let reason = crate::http::chain(&error);
        if work.record.waiting.as_ref() != Some(&reason) {
            tracing::warn!(cluster = name, reason, "a cluster waits");
            work.record.waiting = Some(reason.clone());
            if let Err(error) = work.save(vec![format!("waits: {reason}")]).await {
                tracing::warn!(cluster = name, error = &error as &dyn std::error::Error, "a cluster was not saved");
            }
        }
    }
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
        let api = match self.record.is_initialised() && self.is_due() {
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
        let (nodes, quorum, now) = (nodes.as_deref(), quorum.as_deref(), OffsetDateTime::now_utc());
        let mut steps = plan::plan(&self.record, Seen { machines: &machines, nodes, quorum, now });
        let went_on = !steps.is_empty();
        // Members that have left are taken off the list at the end, the last first: the steps name them by their places.
        steps.sort_by_key(|step| match step {
            Step::Part { member } => usize::MAX - member,
            _ => 0,
        });
        for step in steps {
            self.take(step, api.as_ref(), &machines).await?;
        }
        if went_on && self.record.waiting.take().is_some() {
            self.save(Vec::new()).await?;
        }
        Ok(())
    }

    /// A complete cluster is not asked at every look.
    fn is_due(&self) -> bool {
        let now = OffsetDateTime::now_utc();
        !plan::is_complete(&self.record)
            || self.service.watches.asked_at(self.record.id).is_none_or(|at| now >= at + HEALTH)
    }

    /// Looks at the cluster, keeps its health when that changes, and says what has held for a while. Its nodes, if it
    /// answers.
    async fn judge(&mut self, api: &Api) -> Result<Option<Vec<NodeView>>, BringUpError> {
        let now = OffsetDateTime::now_utc();
        let pki = pki(&self.service, &self.record).await?;
        let nodes = api.nodes().await.map_err(|error| crate::http::chain(&error));
        let observed = observe(&self.record, &pki, api, nodes, now).await?;
        let health = health::judge(&observed, &self.record.health, now);
        let said = self.service.watches.hear(&self.record, &health, now);
        if said.is_some() || health != self.record.health {
            self.record.health = health;
            self.save(said.into_iter().collect()).await?;
        }
        Ok(observed.nodes.ok().map(|nodes| health::views(&nodes)))
    }

    async fn api(&self) -> Result<Api, BringUpError> {
        Ok(reach::reach(&self.service, &self.record).await?.1)
    }

    async fn take(&mut self, step: Step, api: Option<&Api>, machines: &[Machine]) -> Result<(), BringUpError> {
        let cluster = self.record.name().to_owned();
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
                let (hostname, machine) = (member.hostname.clone(), member.machine);
                let said = (before != state).then(|| format!("{hostname}: {state:?}").to_lowercase());
                self.save(said.into_iter().collect()).await?;
                let ready = state == MemberState::Ready;
                if let (Some(id), true) = (machine, before != state && (ready || before == MemberState::Ready)) {
                    self.tell(id, Input::NodeReady { cluster, ready }).await?;
                }
            }
            Step::Renew(turn) => {
                let said = renewal::take(&mut self.record, &turn, Uuid::now_v7(), OffsetDateTime::now_utc());
                self.save(said).await?;
            }
            Step::Run { member, action } => self.order(member, action, api, machines).await?,
            Step::Revoke { member } => {
                let (Some(api), Some(token)) = (api, self.record.members[member].token.clone()) else { return Ok(()) };
                api.revoke_token(&token).await?;
                self.record.members[member].token = None;
                let hostname = &self.record.members[member].hostname;
                self.save(vec![format!("{hostname}: its bootstrap token is revoked")]).await?;
            }
            Step::Label { member, set, remove } => {
                let Some(api) = api else { return Ok(()) };
                let hostname = self.record.members[member].hostname.clone();
                api.label(&hostname, &set, &remove).await?;
                let keys: Vec<&str> = set.keys().map(String::as_str).collect();
                self.save(vec![format!("{hostname}: labelled: {}", keys.join(", "))]).await?;
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
                self.record.applied.push(addon.clone());
                self.save(vec![format!("applied {addon}")]).await?;
            }
        }
        Ok(())
    }

    /// Orders a run of kubeadm. A join's token is in the cluster before the order is durable, and the order before the
    /// agent hears of it.
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
            let (id, secret) = bootstrap_token()?;
            api.create_token(&id, &secret, &hostname, now + TOKEN_LIFE).await?;
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

    async fn tell(&self, machine: Uuid, input: Input) -> Result<(), BringUpError> {
        self.service.registry.apply(machine, input, RowEffects::default()).await?;
        Ok(())
    }

    async fn manifest(&self, addon: &str) -> Result<String, BringUpError> {
        let spec = &self.record.cluster.spec;
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
