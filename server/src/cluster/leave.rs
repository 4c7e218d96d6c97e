//! How a member leaves its cluster (pure).
//!
//! ```text
//! Leaving ── drain ──▶ drained ── kubeadm reset ──▶ reset ── part ──▶ its machine is wiped and back in the pool
//!        └── its machine is gone (lost) ──────────────────── part ──▶ (etcd's member and the node are removed for it)
//! ```
//! One control plane at a time, never the last one, and only when etcd's other members have a majority afterwards. A
//! cluster that is taken apart drains nothing and asks nobody; its control planes go when its workers have gone.

use nkd_api::agent::KubeadmAction;
use nkd_api::cluster::{MemberState, Role};
use time::Duration;

use super::plan::{Seen, Step, TRIES, has_enrolled, is_due, machine_of, why_not_enrolled};
use super::record::{Leaving, MemberRecord, Record, is_in};
use super::renewal;
use super::upgrade::beside;

/// An agent that has been silent for so long is said to be away.
const SILENT: Duration = Duration::seconds(120);

/// True for a control plane that etcd can count on.
pub(super) fn carries(member: &MemberRecord) -> bool {
    member.role == Role::ControlPlane && is_in(member.state) && member.leaving.is_none()
}

/// True for a control plane that has begun to take its etcd out.
pub(super) fn leaves_etcd(member: &MemberRecord) -> bool {
    member.role == Role::ControlPlane && member.leaving.is_some() && touched(member)
}

/// True for a control plane that joins etcd, leaves it or restarts now: no other one may begin meanwhile.
pub(super) fn is_busy(member: &MemberRecord) -> bool {
    let lost = member.leaving.is_some_and(|leaving| leaving.lost);
    let runs = member.run.is_some_and(|run| run.ended_at.is_none()) && !lost;
    let resets = member.leaving.is_some_and(|leaving| leaving.reset);
    member.role == Role::ControlPlane && (runs || resets || renewal::under_way(member))
}

/// The control plane whose turn it is to leave: one after the other.
#[must_use]
pub fn next_control_plane(record: &Record) -> Option<usize> {
    let is_in = |m: &MemberRecord| leaves_etcd(m) && m.leaving.is_some_and(|leaving| !leaving.reset);
    record.members.iter().position(is_in)
}

/// kubeadm has been at work on it.
fn touched(member: &MemberRecord) -> bool {
    member.generation.is_some() || member.run.is_some()
}

/// What is to be done next for a member that leaves.
pub(super) fn step(record: &Record, index: usize, seen: Seen<'_>) -> Option<Step> {
    let member = &record.members[index];
    let leaving = member.leaving?;
    match decide(record, index, leaving, seen) {
        Ok(step) => Some(step),
        Err(why) if member.detail.as_ref() == Some(&why) => None,
        Err(why) => {
            Some(Step::Note { member: index, state: MemberState::Leaving, detail: Some(why), address: member.address })
        }
    }
}

/// The step, or why it waits.
fn decide(record: &Record, index: usize, leaving: Leaving, seen: Seen<'_>) -> Result<Step, String> {
    let member = &record.members[index];
    let part = Ok(Step::Part { member: index });
    if !touched(member) {
        return part;
    }
    let machine = machine_of(member, seen.machines);
    let running = member.run.filter(|run| run.ended_at.is_none() && machine.is_some() && !leaving.lost);
    if let Some(run) = running.filter(|run| run.action != KubeadmAction::Reset) {
        let (verb, name) = (word(run.action), &member.hostname);
        return Err(format!(
            "kubeadm {verb} has to end first: if its machine is gone, `nkd cluster remove CLUSTER {name} --lost`"
        ));
    }
    if record.destroying {
        let workers = record.members.iter().any(|m| m.role == Role::Worker);
        if member.role == Role::ControlPlane && workers {
            return Err("the workers go first".into());
        }
    } else {
        if !record.is_initialised() {
            return if leaving.lost || leaving.reset { part } else { reset(index, member, seen) };
        }
        if seen.nodes.is_none() {
            return Err("the API of the cluster does not answer".into());
        }
        if member.role == Role::ControlPlane {
            control_plane(record, index, seen)?;
        }
    }
    if leaving.lost || leaving.reset {
        return part;
    }
    let known = seen.nodes.is_some_and(|nodes| nodes.iter().any(|node| node.name == member.hostname));
    if !record.destroying && !leaving.drained && known {
        return Ok(Step::Drain { member: index });
    }
    reset(index, member, seen)
}

/// Whether this control plane may go now.
fn control_plane(record: &Record, index: usize, seen: Seen<'_>) -> Result<(), String> {
    // Once it is out of etcd, nobody counts it any more.
    if record.members[index].leaving.is_some_and(|leaving| leaving.reset) {
        return Ok(());
    }
    if next_control_plane(record) != Some(index) {
        return Err("another control plane leaves before it".into());
    }
    if !record.members.iter().any(carries) {
        return Err("it is the last control plane: another one has to join first".into());
    }
    if record.members.iter().enumerate().any(|(i, m)| i != index && is_busy(m)) {
        return Err("another control plane joins or leaves".into());
    }
    // One that is gone is only taken off etcd's list: whoever asks for that may be waiting for just this.
    let member = &record.members[index];
    let lost = member.leaving.is_some_and(|leaving| leaving.lost);
    let other = beside::at_work(record, seen.upgrade).find(|node| !lost && *node != member.hostname);
    if let Some(other) = other {
        return Err(format!("{other} is being upgraded"));
    }
    match seen.quorum {
        Some(why) => Err(why.to_owned()),
        None => Ok(()),
    }
}

/// kubeadm reset, by its agent.
fn reset(index: usize, member: &MemberRecord, seen: Seen<'_>) -> Result<Step, String> {
    let name = &member.hostname;
    let Some(machine) = machine_of(member, seen.machines) else { return Ok(Step::Part { member: index }) };
    let silent = seen.now - machine.last_seen > SILENT;
    let away = format!(
        "its agent is away: power {name} on, or `nkd cluster remove CLUSTER {name} --lost` if its machine is gone"
    );
    if !has_enrolled(machine) {
        return Err(format!("{}; {away}", why_not_enrolled(machine)));
    }
    match member.run.filter(|run| run.action == KubeadmAction::Reset) {
        Some(run) if run.ended_at.is_none() && silent => Err(away),
        Some(run) if run.ended_at.is_none() => Err(member.detail.clone().unwrap_or_else(|| "kubeadm reset".into())),
        Some(_) if member.failures >= TRIES => {
            Err(member.detail.clone().unwrap_or_else(|| "kubeadm reset failed".into()))
        }
        Some(_) if !is_due(member, seen.now) => {
            Err(member.detail.clone().unwrap_or_else(|| "kubeadm reset failed".into()))
        }
        _ => Ok(Step::Run { member: index, action: KubeadmAction::Reset }),
    }
}

fn word(action: KubeadmAction) -> &'static str {
    match action {
        KubeadmAction::Init => "init",
        KubeadmAction::Join => "join",
        KubeadmAction::Reset => "reset",
        KubeadmAction::Renew => "certs renew",
        KubeadmAction::Recover => "(etcd is brought back)",
        KubeadmAction::Snapshot => "(a snapshot of etcd)",
    }
}
