//! The update graph of a channel (pure): to which release a system may go, and why not to another one.
//!
//! The wire form is Cincinnati's as zincati reads it. A client picks the target with the greatest age index among those
//! that an edge leads to, so each release has at most one edge: to the newest release that is open to the asker.
//!
//! What always holds: an edge leads to a newer release; it never passes a barrier without stopping there; nothing leads to
//! a dead end or away from one, or to a commit that is not here; a rollout, once it has let a system in, does not shut it out again.

use std::collections::{BTreeMap, BTreeSet};

use nkd_api::channel::{Channel, Release};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

/// Before the names of metadata.
const PREFIX: &str = "org.fedoraproject.coreos.";

/// Releases and the ways between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Graph {
    /// The releases, the oldest first.
    pub nodes: Vec<Node>,
    /// From and to, as places in `nodes`.
    pub edges: Vec<(usize, usize)>,
}

/// A release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Version.
    pub version: String,
    /// ostree commit.
    pub payload: String,
    /// Texts only.
    pub metadata: BTreeMap<String, String>,
}

/// Who asks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Asker<'a> {
    /// Its application-specific machine id.
    pub node: Option<&'a str>,
    /// 0: among the first to take a release, 1: among the last. Not given: it follows from node and release.
    pub wariness: Option<f64>,
}

/// Why no edge leads from one release to a newer one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Absent {
    /// The release of the asker is a dead end.
    #[error("release {0} is a dead end: {1}")]
    From(u32, String),
    /// The target is a dead end.
    #[error("it is a dead end: {0}")]
    DeadEnd(String),
    /// A backup was restored, which holds no commits.
    #[error("its commit is not here: publish it again")]
    NotHere,
    /// There is a release between them that must not be left out.
    #[error("release {0} is a barrier and comes first")]
    Barrier(u32),
    /// The rollout has not come that far.
    #[error("its rollout has reached {reached} % of the nodes, and this one comes at {at} %")]
    Rollout {
        /// How far it is, rounded down.
        reached: u32,
        /// When this node's turn is, rounded up.
        at: u32,
    },
    /// A newer one is open.
    #[error("release {0} is newer, and open")]
    Newer(u32),
}

/// The graph for an asker. `missing`: commits that the repository does not have.
#[must_use]
pub fn graph(channel: &Channel, missing: &BTreeSet<String>, asker: &Asker<'_>, now: OffsetDateTime) -> Graph {
    let releases = distinct(channel);
    let nodes = releases.iter().enumerate().map(|(age, release)| node(age, release)).collect();
    let way = Way { releases: &releases, missing, asker, now };
    let edges = (0..releases.len()).filter_map(|from| Some((from, way.target(from)?))).collect();
    Graph { nodes, edges }
}

/// For each release that is newer than the one with this commit: open, or why not. None: the channel has no such commit.
#[must_use]
pub fn explain<'a>(
    channel: &'a Channel,
    missing: &BTreeSet<String>,
    commit: &str,
    asker: &Asker<'_>,
    now: OffsetDateTime,
) -> Option<Vec<(&'a Release, Option<Absent>)>> {
    let releases = distinct(channel);
    let from = releases.iter().position(|release| release.commit == commit)?;
    let way = Way { releases: &releases, missing, asker, now };
    let best = way.target(from);
    let of = |to: usize| match best {
        Some(best) if best == to => None,
        Some(best) if best > to && way.closed(from, to).is_none() => Some(Absent::Newer(releases[best].number)),
        _ => way.closed(from, to),
    };
    Some((from + 1..releases.len()).map(|to| (releases[to], of(to))).collect())
}

/// Clients are told apart by commit, so each may stand once: as its newest release.
fn distinct(channel: &Channel) -> Vec<&Release> {
    let all = &channel.releases;
    let newest = |i: usize| all.iter().rposition(|release| release.commit == all[i].commit) == Some(i);
    (0..all.len()).filter(|i| newest(*i)).map(|i| &all[i]).collect()
}

fn node(age: usize, release: &Release) -> Node {
    let mut metadata = BTreeMap::from([
        (format!("{PREFIX}scheme"), "checksum".to_owned()),
        (format!("{PREFIX}releases.age_index"), age.to_string()),
    ]);
    if let Some(reason) = &release.dead_end {
        metadata.insert(format!("{PREFIX}updates.deadend"), "true".into());
        metadata.insert(format!("{PREFIX}updates.deadend_reason"), reason.clone());
    }
    Node { version: release.version.clone(), payload: release.commit.clone(), metadata }
}

/// What the ways between releases depend on.
struct Way<'a> {
    releases: &'a [&'a Release],
    missing: &'a BTreeSet<String>,
    asker: &'a Asker<'a>,
    now: OffsetDateTime,
}

impl Way<'_> {
    /// The newest release that is open.
    fn target(&self, from: usize) -> Option<usize> {
        (from + 1..self.releases.len()).rev().find(|to| self.closed(from, *to).is_none())
    }

    /// Why the way from one release to a newer one is closed.
    fn closed(&self, from: usize, to: usize) -> Option<Absent> {
        let (here, there) = (self.releases[from], self.releases[to]);
        if let Some(reason) = &here.dead_end {
            return Some(Absent::From(here.number, reason.clone()));
        }
        if let Some(reason) = &there.dead_end {
            return Some(Absent::DeadEnd(reason.clone()));
        }
        if self.missing.contains(&there.commit) {
            return Some(Absent::NotHere);
        }
        let between = self.releases[from + 1..to].iter().find(|release| release.barrier && release.dead_end.is_none());
        if let Some(barrier) = between {
            return Some(Absent::Barrier(barrier.number));
        }
        let (reached, turn) = (reached(there, self.now), wariness(self.asker, there));
        let percent = |share: f64| share * 100.0;
        (reached < turn)
            .then(|| Absent::Rollout { reached: percent(reached).floor() as u32, at: percent(turn).ceil() as u32 })
    }
}

/// The share of nodes that may have a release by now, from 0 to 1.
fn reached(release: &Release, now: OffsetDateTime) -> f64 {
    if release.rollout_minutes == 0 {
        return 1.0;
    }
    let gone = (now - release.published_at).as_seconds_f64() / 60.0;
    (gone / f64::from(release.rollout_minutes)).clamp(0.0, 1.0)
}

/// When a node's turn is. It differs from release to release, so that no node is always among the first.
fn wariness(asker: &Asker<'_>, release: &Release) -> f64 {
    if let Some(wariness) = asker.wariness.filter(|wariness| wariness.is_finite()) {
        return wariness.clamp(0.0, 1.0);
    }
    // Nobody knows whose turn it is: among the last.
    let Some(node) = asker.node else { return 1.0 };
    let digest = Sha256::new().chain_update(node).chain_update([0]).chain_update(&release.commit).finalize();
    let number = digest.iter().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    f64::from(number) / f64::from(u32::MAX)
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
