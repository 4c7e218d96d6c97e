//! Nodes that may not begin because of their pods, kept from one look to the next (pure).
//!
//! A node that is blocked takes nobody's place: the next one is asked for, and so on. Each round asks the API server for pods,
//! so that a look has only so many. Without a memory every look would begin with the same nodes, and never come to the rest. A
//! look asks again for those of which was heard the longest time ago; a few are asked for in every look.

use std::collections::{BTreeMap, BTreeSet};

use crate::seen::{NodeSeen, PodsSeen};

/// How many times one look goes back for the pods of further nodes.
pub const ROUNDS: usize = 64;
/// How many nodes are asked for again in one look; the other rounds are for new ones.
const AGAIN: usize = ROUNDS / 2;

/// What was found, by the uid of an update; of each node, the oldest first.
#[derive(Debug, Default)]
pub struct Blocked(BTreeMap<String, Vec<(String, PodsSeen)>>);

impl Blocked {
    /// Tells nodes that have not begun what looks before this one have found. Whose pods leave is looked at anew.
    pub fn recall(&self, uid: &str, nodes: &mut [NodeSeen]) {
        let known: BTreeMap<&str, &PodsSeen> = self.known(uid).map(|(name, pods)| (name.as_str(), pods)).collect();
        for node in nodes.iter_mut().filter(|node| node.busy_for().is_none()) {
            node.pods = known.get(node.name.as_str()).copied().cloned();
        }
    }

    /// Remembers who is blocked after a look.
    pub fn remember(&mut self, uid: &str, nodes: &[NodeSeen]) {
        let blocked = nodes.iter().filter_map(|node| {
            let pods = node.pods.as_ref().filter(|pods| !pods.obstacles.is_empty())?;
            Some((node.name.as_str(), pods))
        });
        let mut blocked: BTreeMap<&str, &PodsSeen> = blocked.collect();
        let before = self.known(uid).filter(|(name, _)| blocked.remove(name.as_str()).is_some()).cloned();
        let mut all: Vec<(String, PodsSeen)> = before.collect();
        all.extend(blocked.into_iter().map(|(name, pods)| (name.to_owned(), pods.clone())));
        self.0.insert(uid.to_owned(), all);
    }

    /// Forgets updates that are none of these.
    pub fn keep(&mut self, uids: &BTreeSet<&str>) {
        self.0.retain(|uid, _| uids.contains(uid.as_str()));
    }

    fn known(&self, uid: &str) -> impl Iterator<Item = &(String, PodsSeen)> {
        self.0.get(uid).into_iter().flatten().skip(AGAIN)
    }
}
