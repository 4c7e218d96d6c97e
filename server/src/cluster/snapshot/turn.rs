//! Who takes a snapshot of etcd, when it has failed, and what an upgrade that needs one does next (pure).
//!
//! The clock may be set while all this goes on. A date after now is not believed: nobody waits for it. Which snapshot is the
//! newest, and how often an upgrade has tried, is no matter of dates.

use std::collections::BTreeSet;

use nkd_api::agent::{KubeadmAction, KubeadmState};
use nkd_api::cluster::{MemberState, Role};
use nkd_api::snapshot::{EtcdSnapshot, SnapshotState};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::cluster::etcd::EtcdMember;
use crate::cluster::leave;
use crate::cluster::record::{MemberRecord, Record, Run, is_in};

/// So many that were verified are kept of a cluster, and so many that failed; those of an upgrade that goes on besides.
pub const KEPT: usize = 5;
/// An upgrade tries so many times.
pub const TRIES: usize = 5;
/// An agent that has said nothing of its run for so long does not carry it out.
const SILENT: Duration = Duration::minutes(5);
/// A step may take so long.
const LONG: Duration = Duration::minutes(45);
/// Wait after the first failure; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::seconds(30);

/// Nobody takes one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Nobody {
    /// Not now.
    #[error("{0}")]
    Now(String),
    /// As things are, nobody can.
    #[error("{0}")]
    AtAll(String),
}

/// True while this member takes one.
#[must_use]
pub fn under_way(member: &MemberRecord) -> bool {
    let runs = |run: Run| run.action == KubeadmAction::Snapshot && run.ended_at.is_none();
    is_in(member.state) && member.run.is_some_and(runs)
}

/// The member that takes it: its etcd is healthy, its agent can, and, if there is a choice, it is none that has failed
/// already and not the leader.
///
/// # Errors
/// [`Nobody`].
pub fn choose(
    record: &Record,
    able: &BTreeSet<Uuid>,
    members: &[(EtcdMember, Result<(), String>)],
    leader: Option<u64>,
    failed: &[String],
) -> Result<usize, Nobody> {
    if let Some(busy) = record.members.iter().find(|m| leave::is_busy(m)) {
        let what = if under_way(busy) { "takes a snapshot already" } else { "joins, leaves or restarts" };
        return Err(Nobody::Now(format!("{} {what}", busy.hostname)));
    }
    let mut chosen = None;
    let mut why = Vec::new();
    for (index, member) in record.members.iter().enumerate().filter(|(_, m)| m.role == Role::ControlPlane) {
        let host = &member.hostname;
        let of_it = members.iter().find(|(etcd, _)| etcd.is_of(host, member.address));
        let reason = match (member.state, member.machine, of_it) {
            (MemberState::Ready, Some(machine), Some((etcd, Ok(())))) if member.leaving.is_none() => {
                if able.contains(&machine) {
                    let before = failed.iter().filter(|name| *name == host).count();
                    let rank = (before, leader == Some(etcd.id), index);
                    if chosen.is_none_or(|(best, _)| rank < best) {
                        chosen = Some((rank, index));
                    }
                    continue;
                }
                "its agent is older than snapshots".to_owned()
            }
            (MemberState::Ready, _, Some((_, Err(ill)))) => format!("of its etcd: {ill}"),
            (MemberState::Ready, _, None) => "etcd does not know it".to_owned(),
            _ => "it is not Ready".to_owned(),
        };
        why.push(format!("{host}: {reason}"));
    }
    let nobody = || Nobody::AtAll(format!("no control plane can take a snapshot of etcd: {}", why.join("; ")));
    chosen.map(|(_, index)| index).ok_or_else(nobody)
}

/// Hears how the run goes; gives what is said of it. The member's own state stays as it is.
pub fn heard(member: &mut MemberRecord, progress: &KubeadmState, now: OffsetDateTime) -> Vec<String> {
    let host = member.hostname.clone();
    if let (Some(run), false) = (member.run.as_mut(), matches!(progress, KubeadmState::Running { .. })) {
        run.ended_at = Some(now);
    }
    match progress {
        KubeadmState::Running { step } => {
            member.detail = Some(format!("a snapshot of etcd is taken: {step}"));
            Vec::new()
        }
        KubeadmState::Done => {
            member.detail = None;
            vec![format!("{host}: a snapshot of etcd is taken, and was restored to prove it")]
        }
        KubeadmState::Failed { step, reason, .. } => {
            member.detail = None;
            vec![format!("{host}: no snapshot of etcd is taken: {step}: {reason}")]
        }
    }
}

/// The row when its run has told how it goes. `verified` it becomes by the upload alone.
#[must_use]
pub fn told(row: &EtcdSnapshot, progress: &KubeadmState, now: OffsetDateTime) -> EtcdSnapshot {
    let (state, detail) = match progress {
        KubeadmState::Running { step } => (SnapshotState::Taking, step.clone()),
        KubeadmState::Done => (SnapshotState::Failed, "its node said that it is done, and sent none".to_owned()),
        KubeadmState::Failed { step, reason, .. } => (SnapshotState::Failed, format!("{step}: {reason}")),
    };
    EtcdSnapshot { state, detail, heard_at: Some(now), ..row.clone() }
}

/// One that is being taken, when the clock was set back since: its dates that lie ahead count from now on, so that its end is
/// not waited for until the clock has come there again. None: all of them are believed.
#[must_use]
pub fn set_back(row: &EtcdSnapshot, now: OffsetDateTime) -> Option<EtcdSnapshot> {
    let believed = EtcdSnapshot {
        ordered_at: row.ordered_at.min(now),
        heard_at: row.heard_at.map(|at| at.min(now)),
        ..row.clone()
    };
    (row.state == SnapshotState::Taking && believed != *row).then_some(believed)
}

/// Why one that is being taken is not taken any more. `record`: its cluster's; none: that is gone. `seen`: when the machine
/// was heard last, about whatever.
#[must_use]
pub fn over(
    row: &EtcdSnapshot,
    record: Option<&Record>,
    seen: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Option<String> {
    let runs = |m: &&MemberRecord| under_way(m) && m.run.is_some_and(|run| run.operation == row.id);
    let node = &row.node;
    if record.is_none_or(|record| !record.members.iter().any(|m| runs(&m))) {
        return Some(format!("the run on {node} was given up"));
    }
    let begun = now >= row.ordered_at + SILENT;
    match row.heard_at {
        _ if begun && seen.is_some_and(|seen| now >= seen + SILENT) => Some(format!("{node} is away")),
        None if begun => Some(format!("the agent of {node} does not begin: `journalctl -u nkd-agent` there says why")),
        Some(at) if now >= at + LONG => {
            let step = &row.detail;
            Some(format!("{step}: it does not end: `journalctl -u 'nkd-kubeadm-*'` on {node} says why"))
        }
        _ => None,
    }
}

/// True for a run that has done what it is for, and whose agent does not come to say so: others wait for its end.
#[must_use]
pub fn lingers(row: &EtcdSnapshot, now: OffsetDateTime) -> bool {
    row.state == SnapshotState::Verified && row.heard_at.is_none_or(|at| at > now || now >= at + SILENT)
}

/// Those that go, of the snapshots of a cluster, the newest first. Never the one that just `came`, nor those of the upgrade
/// that `goes_on`: it rests on one, and counts the others.
#[must_use]
pub fn surplus(all: &[EtcdSnapshot], came: Uuid, goes_on: Option<u32>) -> Vec<Uuid> {
    let stays = |row: &EtcdSnapshot| row.id == came || (row.upgrade.is_some() && row.upgrade == goes_on);
    let of = |state| all.iter().filter(move |row| row.state == state).skip(KEPT).filter(|row| !stays(row));
    of(SnapshotState::Verified).chain(of(SnapshotState::Failed)).map(|row| row.id).collect()
}

/// What an upgrade does that has to have a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// It has one.
    Open,
    /// It waits, and why.
    Wait(String),
    /// One is to be ordered.
    Order,
    /// It has failed too often.
    Halt(String),
}

/// By the snapshots that were ordered for this upgrade, the newest first, and the round of tries that it is in.
#[must_use]
pub fn gate(rows: &[EtcdSnapshot], round: u32, now: OffsetDateTime) -> Gate {
    let Some(newest) = rows.first() else { return Gate::Order };
    if rows.iter().any(|row| row.state == SnapshotState::Verified) {
        return Gate::Open;
    }
    let (node, detail) = (&newest.node, &newest.detail);
    if newest.state == SnapshotState::Taking {
        let step = if detail.is_empty() { "ordered" } else { detail };
        return Gate::Wait(format!("{node} takes a snapshot of etcd: {step}"));
    }
    let tries = rows.iter().filter(|row| row.round == round).count();
    if tries == 0 {
        return Gate::Order;
    }
    let on = if node.is_empty() { String::new() } else { format!(" on {node}") };
    if tries >= TRIES {
        return Gate::Halt(format!("no snapshot of etcd could be taken, tried {tries} times; the last{on}: {detail}"));
    }
    let wait = FIRST_WAIT * 2i32.saturating_pow(u32::try_from(tries - 1).unwrap_or(0).min(8));
    let ended = newest.heard_at.unwrap_or(newest.ordered_at);
    if ended <= now && now < ended + wait {
        let seconds = wait.whole_seconds();
        return Gate::Wait(format!(
            "no snapshot of etcd is taken yet{on}: {detail} (try {tries} of {TRIES}, the next one after {seconds} s)"
        ));
    }
    Gate::Order
}

#[cfg(test)]
#[path = "turn_tests.rs"]
mod tests;
