//! Whether an upgrade may begin, and what a person should know before (pure).

use std::collections::BTreeMap;

use nkd_api::channel::{Channel, Release};
use nkd_api::cluster::{Health, MemberState, Role};
use nkd_api::facts::Room;
use nkd_api::lock::Lease;
use nkd_api::upgrade::{Finding, Part, Planned, Upgrade, UpgradeOrder, UpgradeSnapshot, UpgradeState};
use time::OffsetDateTime;

use super::budgets::Stuck;
use super::metrics::Deprecated;
use crate::cluster::record::Record;

/// A version of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    minor: u64,
    patch: u64,
}

/// What is seen of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Why the API has not said all that was asked of it.
    pub unseen: Option<String>,
    /// Versions of the kubelets by node.
    pub kubelets: BTreeMap<String, String>,
    /// Versions of the API servers that have answered, by control plane.
    pub servers: BTreeMap<String, String>,
    /// Members of etcd that are not healthy, and why.
    pub etcd: Vec<String>,
    /// APIs in use that the new version does not have.
    pub deprecated: Vec<Deprecated>,
    /// Control planes whose API server has not said which APIs are in use.
    pub not_asked: Vec<String>,
    /// Commit that each node runs, as far as its agent has said.
    pub commits: BTreeMap<String, String>,
    /// What is free on each node, as far as its agent has said.
    pub room: BTreeMap<String, Vec<Room>>,
    /// Pods that no drain could ever move.
    pub stuck: Vec<Stuck>,
    /// Nodes that may restart now by a lease of the lock, each with that.
    pub leases: Vec<(String, Lease)>,
    /// The operator runs.
    pub operator: bool,
    /// The commit of the release is not in the channel's repository.
    pub missing: bool,
}

/// What is asked for cannot be at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAsked {
    /// The channel is empty, or all dead ends.
    #[error("the channel `{0}` has no release to upgrade to: `nkd channel publish`")]
    NoRelease(String),
    /// There is no such release.
    #[error("the channel `{channel}` has no release {number}: `nkd channel show {channel}` lists those there are")]
    Missing {
        /// Channel.
        channel: String,
        /// Number.
        number: u32,
    },
}

/// `v1.21.0`
fn version(text: &str) -> Option<Version> {
    let mut parts = text.strip_prefix('v')?.split(['.', '-', '+']);
    let mut number = || parts.next()?.parse::<u64>().ok();
    number().filter(|major| *major == 1)?;
    Some(Version { minor: number()?, patch: number()? })
}

/// The release that is meant.
///
/// # Errors
/// [`NotAsked`].
pub fn release<'a>(channel: &'a Channel, order: &UpgradeOrder) -> Result<&'a Release, NotAsked> {
    let name = channel.name.clone();
    match order.release {
        Some(number) => channel.release(number).ok_or(NotAsked::Missing { channel: name, number }),
        None => channel.releases.iter().rfind(|release| release.dead_end.is_none()).ok_or(NotAsked::NoRelease(name)),
    }
}

/// The upgrade as it would be, with everything that was found.
///
/// # Errors
/// [`NotAsked`].
pub fn plan(
    record: &Record,
    channel: &Channel,
    order: &UpgradeOrder,
    seen: &Seen,
    number: u32,
    by: &str,
    now: OffsetDateTime,
) -> Result<Planned, NotAsked> {
    let release = release(channel, order)?;
    let spec = &record.cluster.spec;
    let max_unavailable = order.max_unavailable.unwrap_or(spec.housekeeper.max_unavailable);
    let order = UpgradeOrder {
        channel: Some(channel.name.clone()),
        release: Some(release.number),
        max_unavailable: Some(max_unavailable),
        drain_seconds: Some(order.drain_seconds.unwrap_or(600)),
        // The file's was checked when it was applied.
        window: order.window.clone().or_else(|| spec.housekeeper.window.as_ref()?.parse().ok()),
        ignore_preflight_errors: ignored(record, order),
        ..order.clone()
    };
    let upgrade = Upgrade {
        cluster: record.name().to_owned(),
        number,
        version: release.version.clone(),
        commit: (order.part != Part::Kubernetes).then(|| release.commit.clone()),
        kubernetes: release.kubernetes.clone().filter(|_| order.part != Part::Os),
        from_kubernetes: spec.kubernetes.version.clone(),
        state: UpgradeState::Preparing,
        detail: String::new(),
        paused: false,
        aborted: false,
        retry: 0,
        restored: false,
        snapshot: (!order.skip_snapshot).then_some(UpgradeSnapshot { since: now, round: 0, newest: None }),
        by: by.to_owned(),
        started_at: now,
        ended_at: None,
        nodes: Vec::new(),
        order,
    };
    let mut names: Vec<(bool, &str)> =
        record.members.iter().map(|m| (m.role != Role::ControlPlane, m.hostname.as_str())).collect();
    names.sort_unstable();
    let order = names.into_iter().map(|(_, name)| name.to_owned()).collect();
    Ok(Planned { findings: findings(record, channel, release, &upgrade, seen), order, upgrade })
}

/// What stands in the way of an upgrade that was asked for earlier, as its cluster and its channel are now.
///
/// # Errors
/// [`NotAsked`].
pub fn refusals(record: &Record, channel: &Channel, upgrade: &Upgrade, seen: &Seen) -> Result<Vec<String>, NotAsked> {
    let found = findings(record, channel, release(channel, &upgrade.order)?, upgrade, seen);
    Ok(found.into_iter().filter(|finding| finding.refused).map(|finding| finding.message).collect())
}

/// What kubeadm's checks may find: what was asked for, and its questions on a CoreDNS that the cluster's file leaves out.
fn ignored(record: &Record, order: &UpgradeOrder) -> Vec<String> {
    let mut ignored = order.ignore_preflight_errors.clone();
    let phases = &record.cluster.spec.kubernetes.skip_phases;
    if phases.iter().any(|phase| phase == "addon" || phase == "addon/coredns") {
        ignored.extend(["CoreDNSUnsupportedPlugins", "CoreDNSMigration"].map(str::to_owned));
    }
    ignored.sort();
    ignored.dedup();
    ignored
}

fn findings(record: &Record, channel: &Channel, release: &Release, upgrade: &Upgrade, seen: &Seen) -> Vec<Finding> {
    let mut found = Vec::new();
    let name = record.name();
    let mut say = |refused: bool, message: String| found.push(Finding { refused, message });
    if record.destroying {
        say(true, format!("{name} is being taken apart"));
    }
    for member in &record.members {
        if member.leaving.is_some() {
            say(true, format!("{} is leaving: wait until it has left", member.hostname));
        } else if member.state != MemberState::Ready {
            let next = format!("`nkd cluster status {name}` says why");
            say(true, format!("{} is not Ready: {next}", member.hostname));
        }
    }
    match (&seen.unseen, &record.health) {
        (Some(why), _) => {
            let next = format!("`nkd cluster status {name}` says how its API servers are");
            let lacks = "what only the API can say is not known: which versions run, removed APIs in use, pods that cannot move, whether housekeeper runs";
            say(true, format!("{why}: {next}; {lacks}"));
        }
        (None, Health::Healthy) => {}
        (None, Health::Unreachable { .. }) => say(true, format!("the API of {name} does not answer")),
        _ => say(false, format!("{name} is not healthy: `nkd cluster status {name}` says why")),
    }
    if !record.cluster.spec.housekeeper.enabled {
        let next = "set `housekeeper: {enabled: true}` in the cluster's file and apply it";
        say(true, format!("{name} has no housekeeper, which upgrades node by node: {next}"));
    } else if !seen.operator && seen.unseen.is_none() {
        say(true, format!("housekeeper does not run in {name}: `kubectl -n nkd-system get pods` says why"));
    }
    for (node, Lease { group, id, expires, .. }) in &seen.leases {
        let until = clock(*expires);
        let next = "wait until it has given that back";
        let lost = format!("`nkd lock release {group} {id}` if it does not come back");
        say(true, format!("{node} may restart by a lease of the group `{group}` until {until}: {next}, or {lost}"));
    }
    for why in &seen.etcd {
        say(true, format!("etcd: {why}"));
    }
    if let Some(reason) = &release.dead_end {
        say(true, format!("release {} is a dead end: {reason}", release.number));
    }
    if seen.missing && upgrade.commit.is_some() {
        let number = release.number;
        say(
            true,
            format!("the commit of release {number} is not here: `nkd channel publish {}` it again", channel.name),
        );
    }
    let profile = &record.cluster.spec.os.profile;
    if channel.profile != *profile {
        say(true, format!("the channel `{}` is for {}, and {name} runs {profile}", channel.name, channel.profile));
    }
    if upgrade.order.part == Part::Os && release.kubernetes.as_ref().is_some_and(|k| *k != upgrade.from_kubernetes) {
        let holds = release.kubernetes.as_deref().unwrap_or_default();
        let from = &upgrade.from_kubernetes;
        let next = match version(holds) > version(from) {
            true => ": upgrade both",
            false => "",
        };
        say(true, format!("release {} holds Kubernetes {holds}, and {name} runs {from}{next}", release.number));
    }
    if release.kubernetes.is_none() {
        let (number, from) = (release.number, &upgrade.from_kubernetes);
        let unsaid = format!("release {number} does not say which Kubernetes it holds");
        match upgrade.order.part {
            Part::Both => {
                let next = "publish it once more with --kubernetes, or upgrade --os-only";
                say(true, format!("{unsaid}: {next} if that is {from} still"));
            }
            Part::Os => say(
                false,
                format!(
                    "{unsaid}: nodes whose agent is of this release refuse it unless its kubelet is of the minor version of {from}"
                ),
            ),
            Part::Kubernetes => say(true, unsaid),
        }
    }
    barriers(record, channel, release, seen, &mut say);
    let there = there(record, upgrade, seen);
    if !there.is_empty() {
        say(false, format!("{} run it already: they are only looked at", there.join(", ")));
    }
    room(record, upgrade, seen, &mut say);
    for Stuck { node, why, way } in &seen.stuck {
        let forced = upgrade.order.force_drain;
        let by_hand = format!("{way}, or --force-drain deletes it");
        let next = if forced { "it is deleted (--force-drain)" } else { &by_hand };
        say(!forced, format!("{node}: {why}; {next}"));
    }
    if let Some(holds) = upgrade.kubernetes.as_ref().or(release.kubernetes.as_ref()) {
        kubelets_ahead(holds, seen, &mut say);
    }
    if let Some(wanted) = &upgrade.kubernetes {
        skew(record, upgrade, wanted, seen, &mut say);
        removed(upgrade, seen, &mut say);
    }
    if upgrade.order.skip_snapshot {
        say(false, "no snapshot of etcd is taken before (--skip-snapshot): have one of your own".to_owned());
    }
    let planes: Vec<&str> =
        record.members.iter().filter(|m| m.role == Role::ControlPlane).map(|m| m.hostname.as_str()).collect();
    if planes.len() == 1 && !there.contains(&planes[0]) {
        let why = "its API is away while its only control plane upgrades; what runs on workers goes on";
        say(false, format!("{name} has one control plane: {why}"));
    }
    found
}

/// Nodes that have nothing to do, as far as is known.
fn there<'a>(record: &'a Record, upgrade: &Upgrade, seen: &Seen) -> Vec<&'a str> {
    let runs = |node: &str| {
        let system = upgrade.commit.as_ref().is_none_or(|commit| seen.commits.get(node) == Some(commit));
        let kubelet = upgrade.kubernetes.as_ref().is_none_or(|wanted| seen.kubelets.get(node) == Some(wanted));
        let server = upgrade.kubernetes.as_ref().is_none_or(|w| seen.servers.get(node).is_none_or(|is| is == w));
        system && kubelet && server && (upgrade.commit.is_some() || upgrade.kubernetes.is_some())
    };
    record.members.iter().map(|member| member.hostname.as_str()).filter(|node| runs(node)).collect()
}

/// Nobody has named this release, and it would lead nodes back: which newer one runs, and where.
#[must_use]
pub fn leads_back(channel: &Channel, release: &Release, seen: &Seen) -> Option<Finding> {
    let newest = seen.commits.iter().filter_map(|(node, commit)| {
        let runs = channel.releases.iter().rfind(|r| r.commit == *commit)?;
        Some((runs.number, node))
    });
    let (number, node) = newest.max().filter(|(number, _)| *number > release.number)?;
    let message = format!(
        "the newest release of {} that is no dead end is {}, and {node} runs release {number}: give --release {} if it is to go back",
        channel.name, release.number, release.number
    );
    Some(Finding { refused: true, message })
}

fn clock(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute())
}

/// Something that has to have room.
struct Need {
    /// Where, if that is a file system of its own; an empty path is the system's.
    path: &'static str,
    what: &'static str,
    mebibytes: u64,
    is_asked: fn(&Upgrade) -> bool,
}

/// A second system beside the one that runs, its kernel, and the images of another Kubernetes.
const NEEDS: [Need; 3] = [
    Need { path: "", what: "a second system", mebibytes: 2048, is_asked: |upgrade| upgrade.commit.is_some() },
    Need { path: "/boot", what: "a second kernel", mebibytes: 100, is_asked: |upgrade| upgrade.commit.is_some() },
    Need {
        path: "/var",
        what: "another Kubernetes with its images",
        mebibytes: 1024,
        is_asked: |upgrade| upgrade.kubernetes.is_some(),
    },
];

/// No node has too little room for what it will be given.
fn room(record: &Record, upgrade: &Upgrade, seen: &Seen, say: &mut impl FnMut(bool, String)) {
    let mut unknown = Vec::new();
    for node in record.members.iter().filter(|m| m.leaving.is_none()).map(|m| m.hostname.as_str()) {
        let Some(all) = seen.room.get(node) else {
            unknown.push(node);
            continue;
        };
        for Room { path, free_bytes } in all {
            // What has no file system of its own is on the system's.
            let is_here = |needs: &Need| match all.iter().any(|room| room.path == needs.path) {
                true => needs.path == path,
                false => !NEEDS.iter().any(|other| other.path == path),
            };
            let here: Vec<&Need> = NEEDS.iter().filter(|needs| (needs.is_asked)(upgrade) && is_here(needs)).collect();
            let (wanted, free) = (here.iter().map(|needs| needs.mebibytes).sum::<u64>(), free_bytes >> 20);
            if free < wanted {
                let what = here.iter().map(|needs| needs.what).collect::<Vec<_>>().join(" and ");
                let take = if here.len() == 1 { "takes" } else { "take" };
                say(true, format!("{node}: {free} MiB are free in {path}, and {what} {take} {wanted} MiB: make room"));
            }
        }
    }
    if !unknown.is_empty() {
        let nodes = unknown.join(", ");
        say(false, format!("how much room they have is not known of {nodes}: their agents have not said"));
    }
}

/// Nobody asks for what the new version does not have.
fn removed(upgrade: &Upgrade, seen: &Seen, say: &mut impl FnMut(bool, String)) {
    let audit = "the audit log of the API servers, if one is kept, says who asks (annotation k8s.io/deprecated)";
    for Deprecated { name, removed_in, collected } in &seen.deprecated {
        let gone = format!("Kubernetes 1.{removed_in} does not have it any more");
        if upgrade.order.ignore_removed_apis {
            say(false, format!("{name} is in use, and {gone} (--ignore-removed-apis): who asks will get nothing"));
        } else if *collected {
            let who = "Kubernetes' own garbage collector reads it, until it is gone; others may read it too";
            say(false, format!("{name} is read, and {gone}: {who}: {audit}"));
        } else {
            let next = "--ignore-removed-apis goes on all the same";
            let since = "since an API server was started";
            say(true, format!("{name} is in use, or was {since}, and {gone}: {audit}; {next}"));
        }
    }
    if !seen.not_asked.is_empty() {
        let planes = seen.not_asked.join(", ");
        say(false, format!("whether removed APIs are in use is not known of the API servers of {planes}: no answer"));
    }
}

/// A system that is older than a barrier goes to it first.
fn barriers(record: &Record, channel: &Channel, release: &Release, seen: &Seen, say: &mut impl FnMut(bool, String)) {
    // A dead end holds up nobody: what it was a barrier for comes some other way.
    let holds = |r: &Release| r.barrier && r.dead_end.is_none();
    let known = |node: &&str| seen.commits.get(*node).is_some_and(|c| channel.releases.iter().any(|r| r.commit == *c));
    let nodes = record.members.iter().filter(|m| m.leaving.is_none()).map(|m| m.hostname.as_str());
    let unknown: Vec<&str> = nodes.filter(|node| !known(node)).collect();
    if let Some(barrier) = channel.releases.iter().rfind(|r| holds(r) && r.number < release.number)
        && !unknown.is_empty()
    {
        let (nodes, number) = (unknown.join(", "), barrier.number);
        let why = "the channel does not have what they run, or their agents have not said it";
        say(false, format!("whether they have passed the barrier {number} is not known of {nodes}: {why}"));
    }
    for (node, commit) in &seen.commits {
        let Some(runs) = channel.releases.iter().rfind(|r| r.commit == *commit) else { continue };
        if runs.number > release.number {
            let older = format!("release {} is older than release {}, which {node} runs", release.number, runs.number);
            say(false, older);
        }
        let between = |r: &&Release| holds(r) && r.number > runs.number && r.number < release.number;
        if let Some(barrier) = channel.releases.iter().find(between) {
            let number = barrier.number;
            say(true, format!("{node} runs release {}, and has to go to the barrier {number} first", runs.number));
        }
    }
}

/// No node goes back to an older Kubernetes than it runs.
fn kubelets_ahead(holds: &str, seen: &Seen, say: &mut impl FnMut(bool, String)) {
    for (node, kubelet) in &seen.kubelets {
        if version(kubelet).zip(version(holds)).is_some_and(|(kubelet, holds)| kubelet > holds) {
            say(true, format!("the kubelet of {node} is {kubelet} already: it does not go back to {holds}"));
        }
    }
}

/// One minor at a time, never back, and no kubelet that kubeadm would refuse to leave behind. What an upgrade has left half-way counts
/// with what it runs: the cluster's record has a new version only when all was done.
fn skew(record: &Record, upgrade: &Upgrade, wanted: &str, seen: &Seen, say: &mut impl FnMut(bool, String)) {
    let from = upgrade.from_kubernetes.as_str();
    let mut running: Vec<(String, &str)> =
        seen.servers.iter().map(|(node, version)| (format!("the API server of {node}"), version.as_str())).collect();
    let mut planes = record.members.iter().filter(|m| m.role == Role::ControlPlane);
    if running.is_empty() || planes.any(|plane| !seen.servers.contains_key(&plane.hostname)) {
        running.push((record.name().to_owned(), from));
    }
    let read = running.iter().map(|(who, text)| version(text).map(|version| (version, who, text)));
    let (Some(mut read), Some(to)) = (read.collect::<Option<Vec<_>>>(), version(wanted)) else {
        let texts = running.iter().map(|(_, text)| *text).chain([wanted]).collect::<Vec<_>>().join("`, `");
        return say(true, format!("`{texts}`: not all of these are versions of Kubernetes"));
    };
    read.sort();
    let (Some((oldest, old, at)), Some((newest, new, already))) = (read.first(), read.last()) else { return };
    if to < *newest {
        say(true, format!("{new} runs Kubernetes {already} already: kubeadm does not go back to {wanted}"));
    } else if to.minor > oldest.minor + 1 {
        let next = oldest.minor + 1;
        say(
            true,
            format!("{old} runs Kubernetes {at}, and {wanted} is asked for: one minor at a time, 1.{next} comes first"),
        );
    }
    // kubeadm's own limit, which is narrower than that of the API servers.
    let lag = if to.minor < 29 { 1 } else { 3 };
    for (node, kubelet) in &seen.kubelets {
        if let Some(kubelet) = version(kubelet).filter(|kubelet| kubelet.minor + lag < to.minor) {
            let (minor, minors) = (kubelet.minor, if lag == 1 { "minor" } else { "minors" });
            let kubeadm = format!("kubeadm takes at most {lag} {minors} behind {wanted}");
            say(true, format!("the kubelet of {node} is 1.{minor}: {kubeadm}"));
        }
    }
}

/// Nothing stands in the way.
#[must_use]
pub fn may_begin(findings: &[Finding]) -> bool {
    !findings.iter().any(|finding| finding.refused)
}

#[cfg(test)]
#[path = "preflight_tests.rs"]
mod tests;
