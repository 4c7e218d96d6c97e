//! When an etcd without its majority is brought back, and by whom (pure).
//!
//! ```text
//! cp1 alone ── cp2 begins to join ──▶ etcd: cp1, and one that never started ── its etcd starts ──▶ cp1, cp2
//!     ▲                                   │ cp2's power goes, its run of kubeadm is no more
//!     └── cp1 goes on without it ◀── Recover ◀┘                   then cp2 joins anew
//! ```
//! kubeadm adds a second control plane to etcd before its etcd runs, and for that moment the first one has no majority. If
//! the second one stops there, nothing can be changed any more, not even by taking it out again. A join that goes on looks
//! the same from outside. So what counts is the word of the joining node: its agent asks for an order only while no
//! kubeadm runs there, and one that has asked in vain for a while, and was given nothing since, does not join. While a
//! recovery is on, nobody is given an order to join; and the agent that carries it out asks its own etcd again.

use nkd_api::agent::{KubeadmAction, KubeadmState};
use nkd_api::cluster::{MemberState, Role};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::peer::EtcdWord;
use super::record::{MemberRecord, Record, Run, is_in};
use super::renewal;

/// The kubelet of a node whose join has ended, or was cut off, may start its etcd all the same, within this.
const PATIENCE: Duration = Duration::minutes(2);
/// Wait after the first failure; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::seconds(30);
/// The longest wait.
const LAST_WAIT: Duration = Duration::minutes(10);

/// A member brings etcd back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// Host name of the member that was added and never started.
    pub other: String,
    /// When it was ordered, or failed.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Why it failed.
    pub detail: Option<String>,
    /// Failures one after the other.
    pub failures: u32,
}

/// An agent that was given no order when it asked for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InVain {
    /// The run that it asked for.
    pub operation: Uuid,
    /// When it did so first, since it was given one.
    pub since: OffsetDateTime,
}

/// It is to be ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Index of the member that goes on alone.
    pub member: usize,
    /// Index of the member that never started.
    pub other: usize,
    /// Its run, if that was asked for in vain: nobody may have been given it since.
    pub operation: Option<Uuid>,
}

/// True while this member brings etcd back.
#[must_use]
pub fn under_way(member: &MemberRecord) -> bool {
    let runs = |run: Run| run.action == KubeadmAction::Recover && run.ended_at.is_none();
    is_in(member.state) && member.run.is_some_and(runs)
}

/// The member that brings etcd back now: nobody joins meanwhile.
#[must_use]
pub fn by(record: &Record) -> Option<&MemberRecord> {
    record.members.iter().find(|m| under_way(m) && m.leaving.is_none_or(|leaving| !leaving.lost))
}

/// The member whose etcd is worth a question: it alone carries etcd, and another one has begun to join and does not go on.
#[must_use]
pub fn suspect(record: &Record, in_vain: &[InVain], now: OffsetDateTime) -> Option<usize> {
    let planes = || record.members.iter().enumerate().filter(|(_, m)| m.role == Role::ControlPlane);
    // One that leaves and was in may have its etcd still.
    let carries = |m: &MemberRecord| is_in(m.state) && (m.leaving.is_none() || m.generation.is_some());
    let mut carriers = planes().filter(|(_, m)| carries(m));
    let (index, member) = carriers.next().filter(|_| carriers.next().is_none())?;
    let settled = matches!(member.state, MemberState::Joined | MemberState::Ready) && member.leaving.is_none();
    let idle = member.run.is_none_or(|run| run.ended_at.is_some()) && !renewal::under_way(member);
    let rested =
        member.recovery.as_ref().is_none_or(|r| r.failures == 0 || r.at > now || now >= r.at + wait(r.failures));
    let able = settled && idle && rested && member.machine.is_some() && member.address.is_some();
    let stands = planes().any(|(_, m)| !carries(m) && stands_still(m, in_vain, now).is_some());
    (able && stands).then_some(index)
}

/// What is to be done, by the word of the suspect's own etcd.
#[must_use]
pub fn next(record: &Record, word: &EtcdWord, in_vain: &[InVain], now: OffsetDateTime) -> Option<Turn> {
    let index = suspect(record, in_vain, now)?;
    let hostname = &record.members[index].hostname;
    let [a, b] = word.members.as_slice() else { return None };
    let (own, other) = if a.name == *hostname { (a, b) } else { (b, a) };
    let alone = own.name == *hostname && other.never_started() && !word.has_leader;
    let is_other = |(i, m): &(usize, &MemberRecord)| {
        *i != index && m.role == Role::ControlPlane && m.address.is_some_and(|address| other.is_at(address))
    };
    let (place, added) = record.members.iter().enumerate().find(is_other).filter(|_| alone)?;
    let operation = stands_still(added, in_vain, now)?;
    Some(Turn { member: index, other: place, operation })
}

/// Some when its run of kubeadm is no more, or never comes to its etcd; with the run, if that could be given out again.
fn stands_still(member: &MemberRecord, in_vain: &[InVain], now: OffsetDateTime) -> Option<Option<Uuid>> {
    let run = member.run.filter(|run| run.action == KubeadmAction::Join && !is_settled(member))?;
    match run.ended_at {
        // Somebody has looked, and says that the machine is gone. It is given no order any more.
        _ if member.leaving.is_some_and(|leaving| leaving.lost) => Some(None),
        Some(ended) => (now >= ended + PATIENCE).then_some(None),
        None => {
            let asked = in_vain.iter().find(|asked| asked.operation == run.operation)?;
            (now >= asked.since + PATIENCE).then_some(Some(run.operation))
        }
    }
}

fn is_settled(member: &MemberRecord) -> bool {
    member.generation.is_some() || matches!(member.state, MemberState::Joined | MemberState::Ready)
}

fn wait(failures: u32) -> Duration {
    (FIRST_WAIT * 2i32.saturating_pow(failures.saturating_sub(1).min(8))).min(LAST_WAIT)
}

/// Writes the order down; gives what is said of it. The member keeps its state.
pub fn take(record: &mut Record, turn: &Turn, operation: Uuid, now: OffsetDateTime) -> Vec<String> {
    let Some(other) = record.members.get(turn.other).map(|m| m.hostname.clone()) else { return Vec::new() };
    let Some(member) = record.members.get_mut(turn.member) else { return Vec::new() };
    let failures = member.recovery.as_ref().map_or(0, |r| r.failures);
    member.run = Some(Run { operation, action: KubeadmAction::Recover, ordered_at: now, ended_at: None });
    member.detail = Some("etcd is brought back".to_owned());
    let said = format!(
        "{}: etcd is brought back: {other} was added to it, never started, and does not go on",
        member.hostname
    );
    member.recovery = Some(Recovery { other, at: now, detail: None, failures });
    vec![said]
}

/// Hears how the run goes; gives what is said of it.
pub fn heard(member: &mut MemberRecord, progress: &KubeadmState, now: OffsetDateTime) -> Vec<String> {
    let host = member.hostname.clone();
    if let (Some(run), false) = (member.run.as_mut(), matches!(progress, KubeadmState::Running { .. })) {
        run.ended_at = Some(now);
    }
    match progress {
        KubeadmState::Running { step } => {
            member.detail = Some(format!("etcd is brought back: {step}"));
            Vec::new()
        }
        KubeadmState::Done => {
            let other = member.recovery.take().map(|r| r.other).unwrap_or_default();
            member.detail = None;
            vec![format!("{host}: etcd goes on with {host} alone, and {other} may join again")]
        }
        KubeadmState::Failed { step, reason, .. } => {
            let reason = format!("{step}: {reason}");
            if let Some(recovery) = member.recovery.as_mut() {
                recovery.failures += 1;
                (recovery.at, recovery.detail) = (now, Some(reason.clone()));
            }
            member.detail = Some(format!("etcd could not be brought back: {reason}"));
            vec![format!("{host}: etcd could not be brought back: {reason}")]
        }
    }
}

/// The API answers: a recovery that failed is not needed any more. True when something changed.
pub fn forget(record: &mut Record) -> bool {
    let failed = |m: &&mut MemberRecord| m.recovery.is_some() && !under_way(m);
    record.members.iter_mut().filter(failed).map(|m| m.recovery = None).count() > 0
}

/// Why the API does not answer, if it does not: etcd has not come back, or may wait for one that joins.
#[must_use]
pub fn reason(record: &Record) -> Option<String> {
    let Some(member) = record.members.iter().find(|m| m.recovery.is_some() && is_in(m.state)) else {
        return waits_for(record);
    };
    let recovery = member.recovery.as_ref()?;
    let (host, other) = (&member.hostname, &recovery.other);
    let what = match &recovery.detail {
        None => format!("etcd of {host} is brought back without it"),
        Some(detail) => format!("etcd of {host} could not be brought back without it, and is tried again ({detail})"),
    };
    Some(format!("etcd has no majority, because {other} was added to it and never started; {what}"))
}

/// The second control plane, while it joins: until its etcd runs, there may be no majority.
fn waits_for(record: &Record) -> Option<String> {
    let planes = || record.members.iter().filter(|m| m.role == Role::ControlPlane);
    let joins = |m: &&MemberRecord| m.run.is_some_and(|run| run.action == KubeadmAction::Join) && !is_settled(m);
    let (cluster, other) =
        (record.name(), &planes().find(joins).filter(|_| planes().filter(|m| is_settled(m)).count() == 1)?.hostname);
    Some(format!(
        "the API does not answer while {other} joins: if it stays so, power {other} on, or `nkd cluster remove {cluster} {other} --lost` if its machine is gone"
    ))
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
