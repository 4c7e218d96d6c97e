//! What the service keeps of a cluster.

use std::net::{IpAddr, SocketAddr};

use nkd_api::agent::KubeadmAction;
use nkd_api::cluster::{
    API_PORT, Cluster, ClusterPhase, ClusterStatus, Health, Member, MemberState, Pool, PoolMachine, Role,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::file;
use super::kubeadm::Endpoint;

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
    /// When its API server was asked last.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub asked_at: Option<OffsetDateTime>,
    /// Why it does not go on.
    pub waiting: Option<String>,
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
        Self { id, cluster, created_at: now, members, applied, health, asked_at: None, waiting: None }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.cluster.metadata.name
    }

    /// True once the first control plane is made: from then on everybody joins.
    #[must_use]
    pub fn is_initialised(&self) -> bool {
        self.members.iter().any(|m| m.role == Role::ControlPlane && is_in(m.state))
    }

    /// The first control plane.
    #[must_use]
    pub fn first(&self) -> Option<&MemberRecord> {
        self.members.iter().find(|m| m.role == Role::ControlPlane)
    }

    /// Host and port of the API: as the operator says, or the first control plane's.
    #[must_use]
    pub fn endpoint(&self) -> Option<String> {
        match &self.cluster.spec.endpoint {
            // Checked when the file was applied.
            Some(endpoint) => endpoint.parse::<Endpoint>().ok().map(|endpoint| endpoint.to_string()),
            None => self.first()?.address.map(|ip| SocketAddr::new(ip, API_PORT).to_string()),
        }
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
        if super::plan::is_complete(self) {
            ClusterPhase::Ready
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
            endpoint: self.endpoint(),
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

/// The members that a file asks for, control planes first, each pool in its order.
fn members(cluster: &Cluster) -> Vec<MemberRecord> {
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
            });
        }
    }
    members
}
