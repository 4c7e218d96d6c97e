//! What is to be done next for a cluster (pure).
//!
//! ```text
//! first control plane: Enrolled ── init ──▶ Joined ──▶ Ready          add-ons: cni ── all Ready ── hooks.after
//! other control planes:              Enrolled ── join, one at a time ──▶ Joined ──▶ Ready
//! workers:                           Enrolled ── join, all at once ────▶ Joined ──▶ Ready
//! leaving, see `leave`:     drained ── reset ──▶ parted
//! ```
//! Everything is derived from the record and from what is seen now, so that a service that was killed goes on where it
//! was. Never: a second `init` once a control plane has joined; two control planes joining or leaving at the same time; a
//! join before the API answers; a control plane that leaves and takes etcd's majority with it; one that begins to join or
//! leave while an upgrade has another one at work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nkd_api::agent::KubeadmAction;
use nkd_api::cluster::{MemberState, Role};
use nkd_api::machine::{Machine, Phase};
use nkd_api::upgrade::Upgrade;
use time::OffsetDateTime;
use uuid::Uuid;

use super::peer::EtcdWord;
use super::record::{MemberRecord, Record, is_in, labels};
use super::recovery::{self, InVain};
use super::upgrade::beside;
use super::{housekeeper, kubeadm, leave, renewal, taints};

/// A run that failed is tried again so many times.
pub const TRIES: u32 = 5;
/// Wait before the second try; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// The network plugin.
pub const CNI: &str = "cni";

/// What the cluster's API server says of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Name.
    pub name: String,
    /// Its condition Ready is true.
    pub ready: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Keys of the labels that we gave it.
    pub managed: BTreeSet<String>,
    /// Its taints, as [`taints`] writes them.
    pub taints: BTreeSet<String>,
    /// Those of them that are ours; none: nothing is said about that.
    pub own_taints: Option<BTreeSet<String>>,
}

/// What is seen now.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The machines of its members, as far as they exist.
    pub machines: &'a [Machine],
    /// The nodes, if the API answers.
    pub nodes: Option<&'a [NodeView]>,
    /// Why the control plane of [`leave::next_control_plane`] must not leave etcd now; none: it may.
    pub quorum: Option<&'a str>,
    /// What the etcd of [`recovery::suspect`] says, if the API does not answer.
    pub etcd: Option<&'a EtcdWord>,
    /// Agents that have asked for their orders in vain.
    pub in_vain: &'a [InVain],
    /// The newest upgrade of the cluster.
    pub upgrade: Option<&'a Upgrade>,
    /// Now.
    pub now: OffsetDateTime,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A machine is to be taken for this member: declared, accepted and assigned.
    Claim {
        /// Index of the member.
        member: usize,
    },
    /// Something about a member has changed by itself.
    Note {
        /// Index of the member.
        member: usize,
        /// Its state.
        state: MemberState,
        /// Why it waits.
        detail: Option<String>,
        /// Its address.
        address: Option<std::net::IpAddr>,
    },
    /// kubeadm is to run.
    Run {
        /// Index of the member.
        member: usize,
        /// What.
        action: KubeadmAction,
    },
    /// The bootstrap token of a member that has joined is to be revoked.
    Revoke {
        /// Index of the member.
        member: usize,
    },
    /// The labels of a member's node are to be as the file says.
    Label {
        /// Index of the member.
        member: usize,
        /// All that it is to carry from us.
        set: BTreeMap<String, String>,
        /// Those of kubeadm that its Node has lost.
        lost: &'static [&'static str],
        /// Those that it carried from us and is to lose.
        remove: BTreeSet<String>,
    },
    /// The taints of a member's node are to be as the file says.
    Taint {
        /// Index of the member.
        member: usize,
        /// What.
        change: taints::Change,
        /// It is written down on the node as ours: from then on the node has to have it.
        is_ours: bool,
    },
    /// A member's machine holds another system than the one that joined: it begins anew.
    Lose {
        /// Index of the member.
        member: usize,
    },
    /// The pods of a member that leaves are to be moved, as far as that goes now.
    Drain {
        /// Index of the member.
        member: usize,
    },
    /// A member has left: etcd, the API and the machine are to forget it.
    Part {
        /// Index of the member.
        member: usize,
    },
    /// Every node is Ready for the first time.
    Complete,
    /// A cluster that was taken apart has no member left: it is to be forgotten.
    Gone,
    /// Certificates are to be renewed, or have been.
    Renew(renewal::Turn),
    /// etcd is to be brought back.
    Recover(recovery::Turn),
    /// An add-on is to be applied.
    Apply {
        /// `cni`, `after-1`, ...
        addon: String,
    },
}

impl Step {
    /// Which member it is about; none: the whole cluster.
    #[must_use]
    pub fn member(&self) -> Option<usize> {
        match self {
            Self::Claim { member }
            | Self::Note { member, .. }
            | Self::Run { member, .. }
            | Self::Revoke { member }
            | Self::Label { member, .. }
            | Self::Taint { member, .. }
            | Self::Lose { member }
            | Self::Drain { member }
            | Self::Part { member } => Some(*member),
            Self::Recover(turn) => Some(turn.member),
            Self::Complete | Self::Gone | Self::Renew(_) | Self::Apply { .. } => None,
        }
    }
}

/// The add-ons of a cluster in their order.
#[must_use]
pub fn addons(record: &Record) -> Vec<String> {
    let spec = &record.cluster.spec;
    let cni = spec.kubernetes.cni.iter().map(|_| CNI.to_owned());
    let after = (1..=spec.hooks.after.len()).map(|n| format!("after-{n}"));
    let housekeeper = spec.housekeeper.enabled.then(|| housekeeper::ADDON.clone());
    cni.chain(after).chain(housekeeper).collect()
}

/// True when there is nothing left to do.
#[must_use]
pub fn is_complete(record: &Record) -> bool {
    !record.destroying
        && record.members.iter().all(|m| m.state == MemberState::Ready)
        && addons(record).iter().all(|addon| record.applied.contains(addon))
}

/// What is to be done now; nothing when everything waits for somebody else.
#[must_use]
pub fn plan(record: &Record, seen: Seen<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    if record.destroying && record.members.is_empty() {
        return vec![Step::Gone];
    }
    for (index, member) in record.members.iter().enumerate() {
        match machine_of(member, seen.machines) {
            _ if member.leaving.is_some() => steps.extend(leave::step(record, index, seen)),
            machine if is_other(member, machine) => steps.extend(lost(record, index, seen)),
            None => steps.extend(claim(record, index)),
            Some(machine) => steps.extend(note(index, member, machine, seen)),
        }
        if is_in(member.state) && member.token.is_some() && seen.nodes.is_some() {
            steps.push(Step::Revoke { member: index });
        }
    }
    // A control plane that begins to leave in this turn keeps the others from joining in it.
    let begins =
        |step: &Step| matches!(step, Step::Run { member, .. } if record.members[*member].role == Role::ControlPlane);
    let going = steps.iter().any(begins);
    steps.extend(runs(record, seen, going));
    // After the joins: neither begins while the other is under way, and they are ordered one look after the other.
    if !record.destroying && !steps.iter().any(|step| matches!(step, Step::Run { .. })) {
        steps.extend(renewal::next(record, seen.upgrade, seen.now).into_iter().map(Step::Renew));
    }
    if let (true, None, Some(etcd)) = (record.is_initialised(), seen.nodes, seen.etcd) {
        steps.extend(recovery::next(record, etcd, seen.in_vain, seen.now).map(Step::Recover));
    }
    if let (true, Some(_)) = (record.is_initialised(), seen.nodes) {
        let all_ready = record.members.iter().all(|m| m.state == MemberState::Ready);
        let next = addons(record).into_iter().find(|addon| !record.applied.contains(addon) && !record.destroying);
        steps.extend(mark(record, seen));
        steps.extend(next.filter(|addon| addon == CNI || all_ready).map(|addon| Step::Apply { addon }));
    }
    if record.completed_at.is_none() && is_complete(record) {
        steps.push(Step::Complete);
    }
    steps
}

/// A member of the cluster whose machine nobody knows any more, or was installed anew.
fn is_other(member: &MemberRecord, machine: Option<&Machine>) -> bool {
    let joined = member.generation.filter(|_| is_in(member.state));
    joined.is_some_and(|joined| machine.is_none_or(|machine| machine.generation != joined))
}

/// What is done about it: it leaves and comes again. The last control plane cannot, etcd was on its disk.
fn lost(record: &Record, index: usize, seen: Seen<'_>) -> Option<Step> {
    let member = &record.members[index];
    let others = record.members.iter().enumerate().any(|(i, m)| i != index && leave::carries(m));
    if member.role == Role::Worker || others {
        return seen.nodes.map(|_| Step::Lose { member: index });
    }
    let why = "its machine was installed anew, and etcd was on no other one: `nkd cluster destroy` the cluster";
    (member.detail.as_deref() != Some(why)).then(|| Step::Note {
        member: index,
        state: MemberState::Joined,
        detail: Some(why.to_owned()),
        address: member.address,
    })
}

/// Takes a machine, unless one that leaves still has the name or the address.
fn claim(record: &Record, index: usize) -> Option<Step> {
    let member = &record.members[index];
    let same = |m: &&MemberRecord| {
        m.leaving.is_some() && (m.hostname == member.hostname || (m.address.is_some() && m.address == member.address))
    };
    let Some(other) = record.members.iter().find(same) else {
        return (!record.destroying).then_some(Step::Claim { member: index });
    };
    let detail = Some(format!("the {} that was here before has to leave first", other.hostname));
    (member.detail != detail).then_some(Step::Note {
        member: index,
        state: MemberState::Waiting,
        detail,
        address: member.address,
    })
}

/// Nodes whose labels or taints are not as the file says.
fn mark(record: &Record, seen: Seen<'_>) -> Vec<Step> {
    let nodes = seen.nodes.unwrap_or_default();
    let mut steps = Vec::new();
    for (index, member) in record.members.iter().enumerate() {
        let node = nodes.iter().find(|node| node.name == member.hostname);
        let Some(node) = node.filter(|_| is_in(member.state) && member.leaving.is_none()) else { continue };
        // A Node that was deleted and registers again has nothing of what kubeadm gave it. Its labels tell, and come last.
        let lost = role_labels(record, &record.members[index]);
        let lost = if lost.iter().any(|key| node.labels.contains_key(*key)) { &[] } else { lost };
        steps.extend(retaint(record, index, node, !lost.is_empty()));
        steps.extend(relabel(record, index, node, lost));
    }
    steps
}

/// The labels that kubeadm gives this member.
fn role_labels(record: &Record, member: &MemberRecord) -> &'static [&'static str] {
    let kubernetes = &record.cluster.spec.kubernetes;
    let skipped = kubernetes.skip_phases.iter().any(|phase| phase.contains("mark-control-plane"));
    match kubeadm::minor(&kubernetes.version) {
        Ok(minor) if member.role == Role::ControlPlane && !skipped => taints::role_labels(minor),
        _ => &[],
    }
}

fn relabel(record: &Record, index: usize, node: &NodeView, lost: &'static [&'static str]) -> Option<Step> {
    let set = labels(&record.cluster, &record.members[index]);
    let keys: BTreeSet<String> = set.keys().cloned().collect();
    let right = set.iter().all(|(key, value)| node.labels.get(key) == Some(value)) && keys == node.managed;
    let remove = &node.managed - &keys;
    (!right || !lost.is_empty()).then_some(Step::Label { member: index, set, lost, remove })
}

fn retaint(record: &Record, index: usize, node: &NodeView, is_new: bool) -> Option<Step> {
    let (member, spec) = (&record.members[index], &record.cluster.spec);
    let pool = spec.pools.iter().find(|pool| pool.name == member.pool)?;
    let minor = kubeadm::minor(&spec.kubernetes.version).ok()?;
    let wanted = pool.taints.as_deref();
    let ours = node.own_taints.clone().or_else(|| is_new.then(BTreeSet::new));
    let change = taints::change(wanted, member.role, minor, &node.taints, ours.as_ref())?;
    // What kubeadm gave it comes back once, and is an administrator's to take away, as it was before.
    let is_ours = wanted.is_some() || node.own_taints.is_some();
    Some(Step::Taint { member: index, change, is_ours })
}

pub(super) fn machine_of<'a>(member: &MemberRecord, machines: &'a [Machine]) -> Option<&'a Machine> {
    let id = member.machine?;
    machines.iter().find(|machine| machine.id == id)
}

/// What has changed about a member without our doing.
fn note(index: usize, member: &MemberRecord, machine: &Machine, seen: Seen<'_>) -> Option<Step> {
    let address = member.address.or(machine.address);
    let (state, detail) = match member.state {
        MemberState::Waiting if has_enrolled(machine) => (MemberState::Enrolled, None),
        // Installed anew: whatever it was in the cluster, it is no more.
        state if !has_enrolled(machine) && matches!(state, MemberState::Waiting | MemberState::Enrolled) => {
            (MemberState::Waiting, Some(why_not_enrolled(machine)))
        }
        state @ (MemberState::Joined | MemberState::Ready) => match seen.nodes {
            None => (state, member.detail.clone()),
            Some(nodes) => match nodes.iter().find(|node| node.name == member.hostname) {
                Some(node) if node.ready => (MemberState::Ready, None),
                Some(_) => (MemberState::Joined, Some("the node is not Ready".to_owned())),
                None => (MemberState::Joined, Some("the cluster does not know this node".to_owned())),
            },
        },
        state => (state, member.detail.clone()),
    };
    let changed = (state, &detail, address) != (member.state, &member.detail, member.address);
    changed.then_some(Step::Note { member: index, state, detail, address })
}

/// True when an agent speaks for the installed system of this machine.
pub(super) fn has_enrolled(machine: &Machine) -> bool {
    machine.stopped.is_none()
        && machine.installed_generation == Some(machine.generation)
        && matches!(machine.phase, Phase::Enrolled | Phase::Joining | Phase::Ready | Phase::Updating)
}

pub(super) fn why_not_enrolled(machine: &Machine) -> String {
    match (&machine.stopped, &machine.waiting) {
        (Some(reason), _) => format!("{} is stopped: {reason}", machine.name),
        (None, Some(waiting)) => format!("{}: {waiting}", machine.phase.name()),
        (None, None) => machine.phase.name().to_owned(),
    }
}

/// Which runs of kubeadm may begin.
fn runs(record: &Record, seen: Seen<'_>, going: bool) -> Vec<Step> {
    if record.destroying {
        return Vec::new();
    }
    let is_up = |member: &MemberRecord| machine_of(member, seen.machines).is_some_and(has_enrolled);
    let may_run = |(_, member): &(usize, &MemberRecord)| match member.state {
        _ if !is_up(member) => false,
        MemberState::Enrolled => member.address.is_some(),
        MemberState::Failed => member.failures < TRIES && is_due(member, seen.now),
        _ => false,
    };
    let members = || record.members.iter().enumerate();
    if !record.is_initialised() {
        // Only ever the first one, so that a service that was killed never makes two clusters of one.
        let first = members().find(|(_, m)| m.role == Role::ControlPlane).filter(may_run);
        return first.map(|(member, _)| Step::Run { member, action: KubeadmAction::Init }).into_iter().collect();
    }
    if seen.nodes.is_none() {
        return Vec::new();
    }
    let join = |(member, _): (usize, &MemberRecord)| Step::Run { member, action: KubeadmAction::Join };
    let joining = going || members().any(|(_, m)| leave::is_busy(m));
    let upgraded = |name: &str| beside::at_work(record, seen.upgrade).any(|node| node != name);
    let may_join = |m: &MemberRecord| m.role == Role::ControlPlane && !joining && !upgraded(&m.hostname);
    let control_plane = members().find(|(i, m)| may_join(m) && may_run(&(*i, m)));
    let workers = members().filter(|(i, m)| m.role == Role::Worker && may_run(&(*i, m)));
    control_plane.into_iter().chain(workers).map(join).collect()
}

pub(super) fn is_due(member: &MemberRecord, now: OffsetDateTime) -> bool {
    // A clock that was put back must not make anybody wait for years.
    let ended = member.run.and_then(|run| run.ended_at).filter(|ended| *ended <= now);
    member.failures == 0 || ended.is_none_or(|ended| now >= ended + wait(member.failures))
}

/// Between a run that failed, the so many-th in a row, and the next one.
#[must_use]
pub fn wait(failures: u32) -> Duration {
    FIRST_WAIT * 2u32.saturating_pow(failures.saturating_sub(1))
}

/// The number of an add-on of `hooks.after`, from 1.
#[must_use]
pub fn after_number(addon: &str) -> Option<usize> {
    addon.strip_prefix("after-").and_then(|n| n.parse().ok()).filter(|n| *n > 0)
}

/// The member that an operation belongs to.
#[must_use]
pub fn member_of_operation(record: &Record, operation: Uuid) -> Option<usize> {
    record.members.iter().position(|m| m.run.is_some_and(|run| run.operation == operation))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(super) mod tests;
