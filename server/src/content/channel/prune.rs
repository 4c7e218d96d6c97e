//! Which releases may leave a channel (pure).
//!
//! What always holds: the newest releases stay, and among them one that something leads to; so does a release that a
//! machine runs, that an upgrade goes to, that another channel has been given, or that a machine has yet to stop at.

use nkd_api::channel::{Channel, Release};
use time::OffsetDateTime;

use super::Polled;

/// Who uses releases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Names of machines, and the commits that they run.
    pub machines: Vec<(String, String)>,
    /// Names of clusters, and the commits that their upgrades go to.
    pub upgrades: Vec<(String, String)>,
    /// What systems run that are no machines of ours and have asked for this channel's graph lately.
    pub polled: Vec<Polled>,
}

impl Users {
    /// Whether a machine runs a commit or is on its way to it.
    #[must_use]
    pub fn has(&self, commit: &str) -> bool {
        self.machines.iter().chain(&self.upgrades).any(|(_, of)| of == commit)
    }
}

/// Why an old release stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Needed {
    /// Somebody runs it.
    #[error("{0} runs it")]
    Runs(String),
    /// Several do.
    #[error("{0} and {1} more run it")]
    RunMany(String, usize),
    /// A system that is no machine of ours runs it.
    #[error("a system that asks for the graph{} ran it on {} UTC: it may go seven days later", named(node), minute(*at))]
    Polled {
        /// How it calls itself.
        node: String,
        /// When it asked, to the hour.
        at: OffsetDateTime,
    },
    /// An upgrade is under way.
    #[error("an upgrade of the cluster {0} goes to it")]
    Upgrade(String),
    /// It was promoted.
    #[error("the channel {0} has it as release {1}: prune that one first")]
    Promoted(String, u32),
    /// Somebody older comes through here.
    #[error("it is a barrier, and {0} runs release {1}, which is older")]
    Barrier(String, u32),
    /// An older release of the same commit stays.
    #[error("it is the same commit as release {0}, which stays")]
    Again(u32),
}

/// The releases that are older than the newest `keep`, and why each of them stays. None: it may go.
#[must_use]
pub fn plan<'a>(channel: &'a Channel, keep: u32, all: &[Channel], users: &Users) -> Vec<(&'a Release, Option<Needed>)> {
    // A dead end is nothing to go to: it does not count.
    let open = channel.releases.iter().rev().filter(|release| release.dead_end.is_none());
    let Some(oldest_kept) = open.take(keep.max(1) as usize).last().map(|release| release.number) else {
        return Vec::new();
    };
    let newest = channel.newest().map(|release| release.number);
    let old = channel.releases.iter().filter(|release| release.number < oldest_kept && Some(release.number) != newest);
    let mut plan: Vec<_> = old.map(|release| (release, needed(channel, release, all, users))).collect();
    for i in 0..plan.len() {
        // A commit counts as its last release: were that one gone, an older one would count, with other marks.
        let stays = |(older, needed): &&(&Release, _)| older.commit == plan[i].0.commit && Option::is_some(needed);
        if let Some(older) = plan[..i].iter().find(stays).map(|(older, _)| older.number) {
            plan[i].1.get_or_insert(Needed::Again(older));
        }
    }
    plan
}

fn needed(channel: &Channel, release: &Release, all: &[Channel], users: &Users) -> Option<Needed> {
    let runs: Vec<&String> =
        users.machines.iter().filter(|(_, of)| *of == release.commit).map(|(name, _)| name).collect();
    match runs.as_slice() {
        [] => {}
        [only] => return Some(Needed::Runs((*only).clone())),
        [first, others @ ..] => return Some(Needed::RunMany((*first).clone(), others.len())),
    }
    if let Some((cluster, _)) = users.upgrades.iter().find(|(_, commit)| *commit == release.commit) {
        return Some(Needed::Upgrade(cluster.clone()));
    }
    if let Some(polled) = users.polled.iter().find(|polled| polled.commit == release.commit) {
        return Some(Needed::Polled { node: polled.node.clone(), at: polled.at });
    }
    for other in all.iter().filter(|other| other.name != channel.name) {
        let is_it = |there: &&Release| {
            let from = there.promoted_from.as_ref();
            // The channel may have been deleted since, and made anew.
            let is_same = there.commit == release.commit;
            is_same && from.is_some_and(|from| from.channel == channel.name && from.release == release.number)
        };
        if let Some(there) = other.releases.iter().find(is_it) {
            return Some(Needed::Promoted(other.name.clone(), there.number));
        }
    }
    if release.barrier && release.dead_end.is_none() {
        // A commit that was published twice stands where it came last.
        let stands = |commit: &str| channel.releases.iter().rfind(|release| release.commit == commit);
        let ours = users.machines.iter().map(|(name, commit)| (name.as_str(), commit));
        let others = users.polled.iter().map(|polled| ("a system that asks for the graph", &polled.commit));
        let mut older = ours.chain(others).filter_map(|(name, commit)| Some((name, stands(commit)?.number)));
        if let Some((name, number)) = older.find(|(_, number)| *number < release.number) {
            return Some(Needed::Barrier(name.to_owned(), number));
        }
    }
    None
}

fn named(node: &str) -> String {
    if node.is_empty() { String::new() } else { format!(" ({node})") }
}

fn minute(at: OffsetDateTime) -> String {
    format!("{} {:02}:{:02}", at.date(), at.hour(), at.minute())
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;
