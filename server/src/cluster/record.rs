//! What the service keeps of a cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nkd_api::agent::{KubeadmAction, NodeCertificate};
use nkd_api::cluster::{
    API_PORT, BALANCER_PORT, Cluster, ClusterPhase, ClusterStatus, Health, Member, MemberState, Pool, PoolMachine, Role,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::file;
use super::kubeadm::{Endpoint, KubeadmError};
use super::pki::NamedEndpoint;
use super::recovery::Recovery;
use super::renewal::Renewal;

/// A cluster with its members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Stable identity.
    pub id: Uuid,
    /// As it was applied.
    pub cluster: Cluster,
    /// When it was applied first.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Its nodes, in the order of the file. The first control plane is the first that is made.
    pub members: Vec<MemberRecord>,
    /// Add-ons that are in the cluster.
    pub applied: Vec<String>,
    /// What its API server said last.
    pub health: Health,
    /// Why it does not go on.
    pub waiting: Option<String>,
    /// When every node was Ready and every add-on applied for the first time.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub completed_at: Option<OffsetDateTime>,
    /// It is being taken apart.
    #[serde(default)]
    pub destroying: bool,
}

/// A member, as far as it has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    /// Host name and node name.
    pub hostname: String,
    /// Pool.
    pub pool: String,
    /// Role.
    pub role: Role,
    /// As it stands in the file.
    pub wanted: PoolMachine,
    /// Machine; none until one was taken.
    pub machine: Option<Uuid>,
    /// Its address, once it is known.
    pub address: Option<IpAddr>,
    /// How far it is.
    pub state: MemberState,
    /// Why it waits or failed, or where kubeadm is.
    pub detail: Option<String>,
    /// The run of kubeadm that is under way, or was the last one.
    pub run: Option<Run>,
    /// Runs that failed, one after the other.
    pub failures: u32,
    /// A bootstrap token that is to be revoked, by its id.
    pub token: Option<String>,
    /// Install generation of its machine when kubeadm made it part of the cluster.
    #[serde(default)]
    pub generation: Option<u32>,
    /// It is to leave, and how far that is.
    #[serde(default)]
    pub leaving: Option<Leaving>,
    /// The certificates on its node, as the agent told last.
    #[serde(default)]
    pub certificates: Vec<NodeCertificate>,
    /// Those that do not read.
    #[serde(default)]
    pub unreadable: Vec<String>,
    /// The renewal of its certificates that was asked for, runs, or was the last one.
    #[serde(default)]
    pub renewal: Option<Renewal>,
    /// It brings etcd back, or could not.
    #[serde(default)]
    pub recovery: Option<Recovery>,
}

/// A member on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaving {
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Its machine is gone, or holds another system: nothing is asked of it.
    pub lost: bool,
    /// Its pods are elsewhere.
    pub drained: bool,
    /// kubeadm has undone what it had done.
    pub reset: bool,
    /// What comes after.
    pub then: Then,
}

impl Leaving {
    /// At its beginning.
    #[must_use]
    pub fn new(since: OffsetDateTime, lost: bool, then: Then) -> Self {
        Self { since, lost, drained: false, reset: false, then }
    }
}

/// What becomes of a member that has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// It is no member any more, and its machine goes back to the pool.
    Gone,
    /// Its machine goes back to the pool, and another one takes its place.
    OtherMachine,
    /// It joins again: its machine was installed anew.
    SameMachine,
}

/// A run of kubeadm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Identity.
    pub operation: Uuid,
    /// What is done.
    pub action: KubeadmAction,
    /// When it was ordered.
    #[serde(with = "time::serde::rfc3339")]
    pub ordered_at: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
}

impl Record {
    /// A cluster that nothing has been done for yet.
    #[must_use]
    pub fn new(id: Uuid, cluster: Cluster, now: OffsetDateTime) -> Self {
        let members = members(&cluster);
        let (applied, health) = (Vec::new(), Health::Unknown);
        Self {
            id,
            cluster,
            created_at: now,
            members,
            applied,
            health,
            waiting: None,
            completed_at: None,
            destroying: false,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.cluster.metadata.name
    }

    /// True once the first control plane is made: from then on everybody joins.
    #[must_use]
    pub fn is_initialised(&self) -> bool {
        let joined = |m: &MemberRecord| m.generation.is_some() || (is_in(m.state) && m.leaving.is_none());
        self.members.iter().any(|m| m.role == Role::ControlPlane && joined(m))
    }

    /// The first control plane.
    #[must_use]
    pub fn first(&self) -> Option<&MemberRecord> {
        self.members.iter().find(|m| m.role == Role::ControlPlane)
    }

    /// Where nodes reach the API, and what kubeadm is told: as the operator says, or the balancer that every node has, also
    /// with one control plane, so that there can be more of them later.
    pub fn node_endpoint(&self) -> Result<Endpoint, KubeadmError> {
        match &self.cluster.spec.endpoint {
            Some(endpoint) => endpoint.parse(),
            None => Ok(Endpoint { host: Ipv4Addr::LOCALHOST.to_string(), port: BALANCER_PORT }),
        }
    }

    /// Where the API is reached from outside: as the operator says, or every control plane that is in; the first one's
    /// address before that.
    #[must_use]
    pub fn endpoints(&self) -> Vec<NamedEndpoint> {
        let alone = |address: String| vec![NamedEndpoint { name: self.name().to_owned(), address }];
        let own = |ip| SocketAddr::new(ip, API_PORT).to_string();
        if let Some(endpoint) = &self.cluster.spec.endpoint {
            // Checked when the file was applied.
            return endpoint.parse::<Endpoint>().map(|e| alone(e.to_string())).unwrap_or_default();
        }
        let mut planes: Vec<(&MemberRecord, IpAddr)> = self.standing_control_planes().collect();
        if planes.is_empty() {
            // All of them leave: the cluster is destroyed, and asked for its nodes to the end.
            planes = self.control_planes().filter(|(m, _)| is_in(m.state)).collect();
        }
        match planes[..] {
            [] => self.first().and_then(|m| m.address).map(|ip| alone(own(ip))).unwrap_or_default(),
            [(_, ip)] => alone(own(ip)),
            _ => {
                let name = |m: &MemberRecord| format!("{}-{}", self.name(), m.hostname);
                planes.iter().map(|(m, ip)| NamedEndpoint { name: name(m), address: own(*ip) }).collect()
            }
        }
    }

    /// What the balancers of its nodes go to, in the order of the file; none where the operator has an endpoint.
    #[must_use]
    pub fn api_servers(&self) -> Vec<SocketAddr> {
        match self.cluster.spec.endpoint {
            Some(_) => Vec::new(),
            None => self.standing_control_planes().map(|(_, ip)| SocketAddr::new(ip, API_PORT)).collect(),
        }
    }

    /// Control planes that kubeadm has made and that are to stay, whether they answer now or not.
    fn standing_control_planes(&self) -> impl Iterator<Item = (&MemberRecord, IpAddr)> {
        self.control_planes().filter(|(m, _)| is_in(m.state) && m.state != MemberState::Leaving && m.leaving.is_none())
    }

    fn control_planes(&self) -> impl Iterator<Item = (&MemberRecord, IpAddr)> {
        let planes = self.members.iter().filter(|m| m.role == Role::ControlPlane);
        planes.filter_map(|m| Some((m, m.address?)))
    }

    /// The member whose machine this is.
    #[must_use]
    pub fn member_of(&self, machine: Uuid) -> Option<&MemberRecord> {
        self.members.iter().find(|m| m.machine == Some(machine))
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> ClusterPhase {
        let begun =
            |m: &MemberRecord| is_in(m.state) || m.state == MemberState::Joining || m.state == MemberState::Failed;
        if self.destroying {
            ClusterPhase::Destroying
        } else if super::plan::is_complete(self) {
            ClusterPhase::Ready
        } else if self.completed_at.is_some() {
            ClusterPhase::Changing
        } else if self.members.iter().any(begun) {
            ClusterPhase::BringUp
        } else {
            ClusterPhase::Pending
        }
    }

    /// As the API shows it.
    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        let member = |m: &MemberRecord| Member {
            machine: m.machine,
            hostname: m.hostname.clone(),
            pool: m.pool.clone(),
            role: m.role,
            address: m.address,
            state: m.state,
            detail: super::retry::detail(self.name(), m),
        };
        ClusterStatus {
            id: self.id,
            name: self.name().to_owned(),
            version: self.cluster.spec.kubernetes.version.clone(),
            phase: self.phase(),
            waiting: self.waiting.clone(),
            health: self.health.clone(),
            endpoints: self.endpoints().into_iter().map(|endpoint| endpoint.address).collect(),
            members: self.members.iter().map(member).collect(),
            created_at: self.created_at,
        }
    }
}

/// True for a member that kubeadm has made part of the cluster.
#[must_use]
pub fn is_in(state: MemberState) -> bool {
    matches!(state, MemberState::Joined | MemberState::Ready | MemberState::Leaving)
}

/// The labels that a member's node is to carry: its pool's, and its own over them.
#[must_use]
pub fn labels(cluster: &Cluster, member: &MemberRecord) -> BTreeMap<String, String> {
    let pool = cluster.spec.pools.iter().find(|pool| pool.name == member.pool);
    let mut labels = pool.map(|pool| pool.labels.clone()).unwrap_or_default();
    labels.extend(member.wanted.labels.clone());
    labels
}

/// The members that a file asks for, control planes first, each pool in its order.
pub(super) fn members(cluster: &Cluster) -> Vec<MemberRecord> {
    let mut pools: Vec<&Pool> = cluster.spec.pools.iter().collect();
    pools.sort_by_key(|pool| pool.role);
    let mut members = Vec::new();
    for pool in pools {
        for number in 0..file::pool_size(pool) {
            let wanted = pool.machines.get(number).cloned().unwrap_or_default();
            let address = wanted.ip.as_deref().and_then(|ip| ip.split('/').next()?.parse().ok());
            members.push(MemberRecord {
                hostname: file::hostname(&cluster.metadata.name, pool, number),
                pool: pool.name.clone(),
                role: pool.role,
                wanted,
                machine: None,
                address,
                state: MemberState::Waiting,
                detail: None,
                run: None,
                failures: 0,
                token: None,
                generation: None,
                leaving: None,
                certificates: Vec::new(),
                unreadable: Vec::new(),
                renewal: None,
                recovery: None,
            });
        }
    }
    members
}
