//! When the certificates that kubeadm made on the control planes are renewed, and whose turn it is (pure).
//!
//! ```text
//!   due, or asked for            kubeadm is done            the node shows new ones
//! ─────────▶ Wanted ──▶ Running ───────────────▶ Reporting ────────────────────────▶ Done
//!              ▲           └──────────▶ Failed ◀──────┘ it shows the old ones
//!              └── waits, longer each time ┘
//! ```
//! One control plane at a time, and none while another joins, leaves or is away, or an upgrade of the cluster goes on (unless
//! days are left only): its API server and its etcd are restarted on the way. The member keeps its state: it is in the
//! cluster all the while.

use nkd_api::agent::{KubeadmAction, KubeadmState, NodeCertificate};
use nkd_api::cluster::{Health, MemberState, NodeRenewal, RenewalState, Role};
use nkd_api::upgrade::Upgrade;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::health::due;
use super::record::{MemberRecord, Record, Run, is_in};
use super::recovery;
use super::snapshot::turn;
use super::upgrade::beside;

/// The kubelet's own client certificate: the kubelet renews it.
pub const KUBELET: &str = "kubelet";
/// With less than this left, nothing is waited for but a control plane that an upgrade has away.
const URGENT: Duration = Duration::days(7);
/// With less than this left, nothing at all.
const LAST: Duration = Duration::days(1);
/// How long a node may take to show its new certificates.
const REPORT: Duration = Duration::minutes(5);
/// How long a run may take before somebody should look.
const LONG: Duration = Duration::minutes(30);
/// Wait after the first failure; each further one waits four times as long.
const FIRST_WAIT: Duration = Duration::minutes(1);
/// The longest wait.
const LAST_WAIT: Duration = Duration::hours(6);

/// The renewal of a member's certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Renewal {
    /// Where it stands.
    pub state: RenewalState,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Where kubeadm is, or why it failed.
    pub detail: Option<String>,
    /// Failures one after the other.
    pub failures: u32,
    /// The certificates as they were when the run was ordered.
    pub before: Vec<NodeCertificate>,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// kubeadm is to run.
    Order {
        /// Index of the member.
        member: usize,
    },
    /// The node has shown its new certificates.
    Done {
        /// Index of the member.
        member: usize,
    },
    /// It has not.
    Failed {
        /// Index of the member.
        member: usize,
        /// Why.
        reason: String,
    },
}

/// Why nothing can be renewed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such node.
    #[error("no node {0} in this cluster")]
    Unknown(String),
    /// A worker.
    #[error("{0} is a worker: it has only its kubelet's certificate, and the kubelet renews that by itself")]
    Worker(String),
    /// Not made yet.
    #[error("{0} has not joined: there is nothing to renew yet")]
    NotIn(String),
    /// No control plane is made yet.
    #[error("no control plane has joined: there is nothing to renew yet")]
    Nobody,
}

/// True while the certificates of this member are being renewed.
#[must_use]
pub fn under_way(member: &MemberRecord) -> bool {
    let runs = || member.run.is_some_and(|run| run.action == KubeadmAction::Renew && run.ended_at.is_none());
    is_in(member.state)
        && match member.renewal.as_ref().map(|renewal| renewal.state) {
            Some(RenewalState::Running) => runs(),
            Some(RenewalState::Reporting) => true,
            _ => false,
        }
}

/// Whose turn it is; at most one control plane is restarted at a time. `upgrade`: the newest of the cluster.
#[must_use]
pub fn next(record: &Record, upgrade: Option<&Upgrade>, now: OffsetDateTime) -> Vec<Turn> {
    let control_planes = || record.members.iter().enumerate().filter(|(_, m)| m.role == Role::ControlPlane);
    let mut turns: Vec<Turn> = control_planes().filter_map(|(index, member)| shown(index, member, now)).collect();
    let moves = |m: &MemberRecord| matches!(m.state, MemberState::Joining | MemberState::Leaving);
    let busy = |m: &MemberRecord| under_way(m) || recovery::under_way(m) || turn::under_way(m) || moves(m);
    if control_planes().any(|(_, member)| busy(member)) {
        return turns;
    }
    let may = |member: &MemberRecord| wanted(member, now) && waits(record, upgrade, member, now).is_none();
    let candidate = control_planes().find(|(_, member)| may(member));
    turns.extend(candidate.map(|(member, _)| Turn::Order { member }));
    turns
}

/// What has become of a run that ended well.
fn shown(index: usize, member: &MemberRecord, now: OffsetDateTime) -> Option<Turn> {
    let renewal = member.renewal.as_ref().filter(|r| r.state == RenewalState::Reporting && is_in(member.state))?;
    let old: Vec<&str> = made(&renewal.before)
        .filter(|old| {
            // One that is gone was not renewed either.
            let new = member.certificates.iter().find(|new| new.name == old.name);
            new.is_none_or(|new| new.serial == old.serial || new.not_after < old.not_after)
        })
        .map(|old| old.name.as_str())
        .collect();
    if old.is_empty() && made(&member.certificates).next().is_some() {
        return Some(Turn::Done { member: index });
    }
    is_over(renewal.at, REPORT, now).then(|| Turn::Failed {
        member: index,
        reason: match old.as_slice() {
            [] => "kubeadm said that it is done, and the node shows no certificates".to_owned(),
            old => format!("kubeadm said that it is done, and the node still shows the old {}", old.join(", ")),
        },
    })
}

/// Those that kubeadm made.
fn made(certificates: &[NodeCertificate]) -> impl Iterator<Item = &NodeCertificate> {
    certificates.iter().filter(|certificate| certificate.name != KUBELET)
}

/// Somebody asked for it, or it is time; and not just after it failed.
fn wanted(member: &MemberRecord, now: OffsetDateTime) -> bool {
    let settled = matches!(member.state, MemberState::Joined | MemberState::Ready) && member.machine.is_some();
    let asked = member.renewal.as_ref().is_some_and(|r| r.state == RenewalState::Wanted);
    let failed = member.renewal.as_ref().filter(|r| r.state == RenewalState::Failed);
    let rested = failed.is_none_or(|r| is_over(r.at, wait(r.failures), now));
    let is_due = || made(&member.certificates).any(|c| now >= due(c.since, c.not_after));
    settled && rested && (asked || failed.is_some() || is_due())
}

/// True when a wait since then is over. A date further ahead than the wait is long is that of a clock which was set back.
fn is_over(since: OffsetDateTime, wait: Duration, now: OffsetDateTime) -> bool {
    now >= since + wait || since > now + wait
}

fn wait(failures: u32) -> Duration {
    (FIRST_WAIT * 4i32.saturating_pow(failures.saturating_sub(1).min(8))).min(LAST_WAIT)
}

/// Why this one has to wait for others.
fn waits(record: &Record, upgrade: Option<&Upgrade>, member: &MemberRecord, now: OffsetDateTime) -> Option<String> {
    let left = made(&member.certificates).map(|c| c.not_after - now).min();
    let has_less_than = |limit| left.is_some_and(|left| left < limit);
    let urgent = has_less_than(URGENT);
    let told = upgrade.filter(|upgrade| beside::is_told(upgrade));
    if has_less_than(LAST) || (urgent && told.is_none()) {
        return None;
    }
    if let Some(Upgrade { number, state, .. }) = told {
        if !urgent {
            return Some(format!("upgrade {number} has to end first, it is {}", state.as_str()));
        }
        if let Some(node) = beside::at_work(record, told).next() {
            return Some(format!("upgrade {number} is at work on {node}"));
        }
    }
    let others = record.members.iter().filter(|m| m.role == Role::ControlPlane && m.hostname != member.hostname);
    let away = others.filter(|m| is_in(m.state) && m.state != MemberState::Ready).map(|m| m.hostname.as_str()).next();
    match (&record.health, away) {
        // Who is away is not known then.
        (Health::Unreachable { .. }, _) if urgent => None,
        (Health::Unreachable { .. }, _) => Some("the cluster's API does not answer".to_owned()),
        (_, Some(away)) => Some(format!("{away} is not Ready")),
        _ => None,
    }
}

/// Writes down that it is so; gives what is said of it.
pub fn take(record: &mut Record, turn: &Turn, operation: Uuid, now: OffsetDateTime) -> Vec<String> {
    let index = match turn {
        Turn::Order { member } | Turn::Done { member } | Turn::Failed { member, .. } => *member,
    };
    let Some(member) = record.members.get_mut(index) else { return Vec::new() };
    let hostname = member.hostname.clone();
    match turn {
        Turn::Order { .. } => {
            let failures =
                member.renewal.as_ref().map_or(0, |r| if r.state == RenewalState::Done { 0 } else { r.failures });
            let before = member.certificates.clone();
            member.renewal = Some(Renewal { state: RenewalState::Running, at: now, detail: None, failures, before });
            member.run = Some(Run { operation, action: KubeadmAction::Renew, ordered_at: now, ended_at: None });
            vec![format!("{hostname}: the renewal of its certificates is ordered")]
        }
        Turn::Done { .. } => {
            let end = made(&member.certificates).map(|c| c.not_after).min();
            settle(member, RenewalState::Done, None, now);
            let until = end.map(|end| format!(", good until {}", end.date())).unwrap_or_default();
            vec![format!("{hostname}: its certificates are renewed{until}")]
        }
        Turn::Failed { reason, .. } => {
            settle(member, RenewalState::Failed, Some(reason.clone()), now);
            vec![format!("{hostname}: its certificates are not renewed: {reason}")]
        }
    }
}

fn settle(member: &mut MemberRecord, state: RenewalState, detail: Option<String>, now: OffsetDateTime) {
    if let Some(renewal) = member.renewal.as_mut() {
        let failures = match state {
            RenewalState::Failed => renewal.failures + 1,
            RenewalState::Done => 0,
            _ => renewal.failures,
        };
        (renewal.state, renewal.at, renewal.detail, renewal.failures) = (state, now, detail, failures);
        if state == RenewalState::Done {
            renewal.before.clear();
        }
    }
}

/// Hears how the run goes; gives what is said of it. The member's own state stays as it is.
pub fn heard(member: &mut MemberRecord, progress: &KubeadmState, now: OffsetDateTime) -> Vec<String> {
    if let (Some(run), false) = (member.run.as_mut(), matches!(progress, KubeadmState::Running { .. })) {
        run.ended_at = Some(now);
    }
    match progress {
        KubeadmState::Running { step } => {
            if let Some(renewal) = member.renewal.as_mut() {
                renewal.detail = Some(step.clone());
            }
            Vec::new()
        }
        KubeadmState::Done => {
            settle(member, RenewalState::Reporting, None, now);
            Vec::new()
        }
        KubeadmState::Failed { step, reason, .. } => {
            let reason = format!("{step}: {reason}");
            settle(member, RenewalState::Failed, Some(reason.clone()), now);
            vec![format!("{}: its certificates are not renewed: {reason}", member.hostname)]
        }
    }
}

/// An operator asks for it: on one control plane, or on all. Those that are under way are left to it.
pub fn request(record: &mut Record, node: Option<&str>, now: OffsetDateTime) -> Result<Vec<String>, Refused> {
    if let Some(name) = node {
        let member = record.members.iter().find(|m| m.hostname == name);
        let member = member.ok_or_else(|| Refused::Unknown(name.to_owned()))?;
        if member.role == Role::Worker {
            return Err(Refused::Worker(name.to_owned()));
        }
        if !is_in(member.state) {
            return Err(Refused::NotIn(name.to_owned()));
        }
    }
    let chosen =
        |m: &MemberRecord| m.role == Role::ControlPlane && is_in(m.state) && node.is_none_or(|n| m.hostname == n);
    let mut said = Vec::new();
    let mut any = false;
    for member in record.members.iter_mut().filter(|m| chosen(m)) {
        any = true;
        if !under_way(member) && member.renewal.as_ref().is_none_or(|r| r.state != RenewalState::Wanted) {
            member.renewal =
                Some(Renewal { state: RenewalState::Wanted, at: now, detail: None, failures: 0, before: Vec::new() });
            said.push(format!("{}: its certificates are to be renewed", member.hostname));
        }
    }
    if any { Ok(said) } else { Err(Refused::Nobody) }
}

/// As the API shows it. `upgrade`: the newest of the cluster.
#[must_use]
pub fn view(record: &Record, upgrade: Option<&Upgrade>, now: OffsetDateTime) -> Vec<NodeRenewal> {
    let one = |member: &MemberRecord| {
        let renewal = member.renewal.as_ref()?;
        let detail = match renewal.state {
            RenewalState::Wanted => waits(record, upgrade, member, now).map(|reason| format!("waits: {reason}")),
            _ => renewal.detail.clone(),
        };
        Some(NodeRenewal { node: member.hostname.clone(), state: renewal.state, detail, at: renewal.at })
    };
    record.members.iter().filter_map(one).collect()
}

/// What of it is wrong with the cluster, a sentence each.
#[must_use]
pub fn reasons(record: &Record, now: OffsetDateTime) -> Vec<String> {
    let one = |member: &MemberRecord| {
        let renewal = member.renewal.as_ref().filter(|_| is_in(member.state))?;
        let (node, cluster) = (&member.hostname, record.name());
        match renewal.state {
            RenewalState::Failed => Some(format!(
                "the certificates of {node} could not be renewed ({}): `nkd cluster certs renew {cluster} --node {node}` tries again at once",
                renewal.detail.as_deref().unwrap_or("no reason was given")
            )),
            RenewalState::Running if under_way(member) && now >= renewal.at + LONG => Some(format!(
                "the renewal of the certificates of {node} does not end: `journalctl -u 'nkd-kubeadm-*'` there says why"
            )),
            _ => None,
        }
    };
    record.members.iter().filter_map(one).collect()
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
