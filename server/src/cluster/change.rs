//! What applying another file does to a cluster (pure): who stays, who comes, who leaves, and what cannot be changed.
//!
//! A machine is told by its MAC, UUID or serial number, a machine of a counted pool by its host name. What a node was made
//! with is never changed under it: a field that only the making of a node reads takes effect on nodes that join later.

use nkd_api::Problem;
use nkd_api::cluster::{Change, Cluster, MemberState, PoolMachine, Source};
use time::OffsetDateTime;

use super::diff::diff;
use super::housekeeper;
use super::plan::{self, CNI};
use super::record::{Leaving, MemberRecord, Record, Then, members};

/// A cluster after a file was applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// The new record.
    pub record: Record,
    /// What differs.
    pub changes: Vec<Change>,
    /// Host names that come.
    pub joining: Vec<String>,
    /// Host names that leave.
    pub leaving: Vec<String>,
    /// What is good to know.
    pub warnings: Vec<Problem>,
}

/// Fields that a cluster is made with once.
const FIXED: [(&str, &str); 8] = [
    (
        "spec.kubernetes.version",
        "a new version comes by `nkd upgrade start`, and the file has to say the one that runs",
    ),
    ("spec.kubernetes.podSubnet", "pods have their addresses from it: it needs a new cluster"),
    ("spec.kubernetes.serviceSubnet", "services have their addresses from it: it needs a new cluster"),
    ("spec.kubernetes.dnsDomain", "every pod has it: it needs a new cluster"),
    ("spec.kubernetes.runtime", "nodes of one cluster have one runtime: it needs a new cluster"),
    ("spec.os.profile", "nodes of one cluster have one system: it needs a new cluster"),
    ("spec.endpoint", "every node and certificate has it: it needs a new cluster"),
    ("spec.certificates", "everything is signed by them: it needs a new cluster"),
];

/// Fields that only the making of a node reads.
const LATER: [&str; 15] = [
    "spec.kubernetes.imageRepository",
    "spec.kubernetes.pauseImage",
    "spec.kubernetes.registries",
    "spec.kubernetes.featureGates",
    "spec.kubernetes.certSans",
    "spec.kubernetes.apiServer",
    "spec.kubernetes.controllerManager",
    "spec.kubernetes.scheduler",
    "spec.kubernetes.etcd",
    "spec.kubernetes.kubelet",
    "spec.kubernetes.kubeProxyConfiguration",
    "spec.os.image",
    "spec.ntp",
    "spec.proxy",
    "spec.snippets",
];

/// The cluster as it is after `new` was applied.
///
/// # Errors
/// Every change that cannot be made, by its path; then nothing is to be changed.
pub fn change(record: &Record, new: Cluster, now: OffsetDateTime) -> Result<Changed, Vec<Problem>> {
    let changes = diff(&record.cluster, &new);
    let mut problems = Vec::new();
    if record.destroying {
        let message = format!("{} is being destroyed: apply it when it is gone", record.name());
        problems.push(Problem { path: String::new(), message });
    }
    let at = |change: &Change, path: &str| {
        change.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    for (path, why) in FIXED {
        if changes.iter().any(|change| at(change, path)) {
            let of = match path {
                "spec.kubernetes.version" => format!(", the cluster runs {}", record.cluster.spec.kubernetes.version),
                _ => String::new(),
            };
            problems.push(Problem { path: path.into(), message: format!("this cannot be changed{of}: {why}") });
        }
    }
    let warning = |path: &&str| Problem {
        path: (*path).to_owned(),
        message: "this takes effect on nodes that join from now on; those that are there keep what they have".into(),
    };
    let mut warnings: Vec<Problem> =
        LATER.iter().filter(|path| changes.iter().any(|change| at(change, path))).map(warning).collect();
    let (had, has) = (&record.cluster.spec.housekeeper, &new.spec.housekeeper);
    if had.enabled && !has.enabled {
        let message = "what is deployed of it stays: `kubectl delete namespace nkd-system` takes it away".to_owned();
        warnings.push(Problem { path: "spec.housekeeper.enabled".into(), message });
    }
    let is_same_operator = had.enabled == has.enabled && had.image == has.image;

    let mut after = record.clone();
    after.applied.retain(|addon| match housekeeper::is_addon(addon) {
        true => is_same_operator,
        false => source(&record.cluster, addon) == source(&new, addon),
    });
    let (mut kept, mut joining) = (Vec::new(), Vec::new());
    let mut old: Vec<MemberRecord> = record.members.clone();
    for mut wanted in members(&new) {
        match old.iter().position(|member| is_same(member, &wanted)) {
            Some(place) => {
                let member = old.remove(place);
                check(&member, &wanted, &mut problems);
                kept.push(MemberRecord { pool: wanted.pool, wanted: wanted.wanted, ..member });
            }
            None => {
                joining.push(wanted.hostname.clone());
                wanted.state = MemberState::Waiting;
                kept.push(wanted);
            }
        }
    }
    let mut leaving = Vec::new();
    for mut member in old {
        if member.leaving.is_none_or(|leaving| leaving.then != Then::Gone) {
            leaving.push(member.hostname.clone());
            let lost = member.leaving.is_some_and(|leaving| leaving.lost);
            leave(&mut member, Leaving::new(now, lost, Then::Gone));
        }
        kept.push(member);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    after.members = kept;
    after.cluster = new;
    Ok(Changed { record: after, changes, joining, leaving, warnings })
}

/// Sends a member out.
pub fn leave(member: &mut MemberRecord, leaving: Leaving) {
    member.leaving = Some(leaving);
    member.state = MemberState::Leaving;
    member.failures = 0;
    member.detail = None;
}

/// Takes the whole cluster apart: nobody is drained, nothing is kept. With `force` nothing is asked of the machines:
/// what they hold is wiped when they come back.
pub fn destroy(record: &mut Record, force: bool, now: OffsetDateTime) {
    record.destroying = true;
    for member in &mut record.members {
        let begun = member.leaving.filter(|_| !force);
        let leaving = begun.unwrap_or_else(|| Leaving::new(now, force, Then::Gone));
        leave(member, Leaving { then: Then::Gone, ..leaving });
    }
}

/// Whether it is this member that a file names.
pub(super) fn is_same(member: &MemberRecord, wanted: &MemberRecord) -> bool {
    if member.leaving.is_some_and(|leaving| leaving.then == Then::Gone) {
        return false;
    }
    let (old, new) = (&member.wanted, &wanted.wanted);
    match (is_named(old), is_named(new)) {
        (false, false) => (&member.pool, &member.hostname) == (&wanted.pool, &wanted.hostname),
        (true, true) => {
            let same = |a: bool, b: bool| a && b;
            same(old.mac.is_some(), old.mac == new.mac)
                || same(old.uuid.is_some(), old.uuid == new.uuid)
                || same(old.serial.is_some(), old.serial == new.serial)
        }
        _ => false,
    }
}

fn is_named(machine: &PoolMachine) -> bool {
    machine.mac.is_some() || machine.uuid.is_some() || machine.serial.is_some()
}

/// What a node that is there cannot change.
fn check(member: &MemberRecord, wanted: &MemberRecord, problems: &mut Vec<Problem>) {
    let path = format!("spec.pools[name={}]", wanted.pool);
    let mut say = |message: String| problems.push(Problem { path: path.clone(), message });
    let name = &member.hostname;
    if member.role != wanted.role {
        say(format!("{name} cannot change its role: take it out, apply, and put it in again"));
    }
    if member.hostname != wanted.hostname {
        say(format!("{name} cannot become {}: take it out, apply, and put it in again", wanted.hostname));
    }
    if member.wanted.ip != wanted.wanted.ip {
        say(format!("the address of {name} cannot change: take it out, apply, and put it in again"));
    }
}

fn source<'a>(cluster: &'a Cluster, addon: &str) -> Option<&'a Source> {
    let spec = &cluster.spec;
    match plan::after_number(addon) {
        Some(number) => spec.hooks.after.get(number - 1),
        None if addon == CNI => spec.kubernetes.cni.as_ref().map(|cni| &cni.manifest),
        None => None,
    }
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
