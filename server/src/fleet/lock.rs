//! Who may restart (pure): leases of slots in groups, as the FleetLock protocol asks for them.
//!
//! What always holds: a group has no more leases that last than it has slots; a node that asks again keeps its lease and
//! its fencing number; a new lease has a greater number than any before it; a lease that has ended keeps nobody out; no
//! node of a cluster gets one while an upgrade of that cluster has not ended; no two control planes of a cluster have one at a
//! time, as far as they can be told; no client has more than its share.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nkd_api::lock::Lease;
use nkd_api::upgrade::UpgradeState;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::origin::origin;

/// No more leases than these are kept: whoever reaches the port may ask.
pub const MOST: usize = 4096;
/// One client ([`origin`]) holds no more than these.
pub const MOST_OF_ONE: usize = 1024;
/// In no more groups than these at a time, unless its owner says so: a group is whatever a client says, and has slots of its own.
pub const GROUPS_OF_ONE: usize = 32;
/// Longest name of a node or a group.
pub const LONGEST: usize = 128;

/// What is decided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// So many nodes of a group may restart at a time.
    pub slots: usize,
    /// In so many groups one client may hold leases: many may be behind one address.
    pub groups_of_one: usize,
    /// So long a lease lasts after its node has asked last.
    pub lease: Duration,
}

/// All leases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locks {
    /// The last number that was given.
    fencing: u64,
    leases: Vec<Lease>,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Its group.
    pub group: &'a str,
    /// What it calls itself.
    pub id: &'a str,
    /// Where it asks from.
    pub address: IpAddr,
}

/// A node of a cluster, as far as a client of the lock can be told to be it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name in the cluster.
    pub hostname: String,
    /// Where it is seen.
    pub addresses: Vec<IpAddr>,
    /// What it calls itself where it asks for the update graph from there: zincati asks for the lock by the same name.
    pub asks_as: Vec<String>,
}

impl Node {
    /// Whether it is the client that calls itself so and asks from there.
    #[must_use]
    pub fn is(&self, id: &str, address: Option<IpAddr>) -> bool {
        let address = address.map(|address| address.to_canonical());
        self.addresses.iter().any(|own| Some(own.to_canonical()) == address)
            || self.asks_as.iter().any(|name| plain(name).next().is_some() && plain(name).eq(plain(id)))
    }
}

/// One name may be written with dashes or without.
fn plain(name: &str) -> impl Iterator<Item = char> {
    name.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase())
}

/// An upgrade that has not ended: the operator in its cluster says when a node restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// The cluster.
    pub cluster: String,
    /// Its number there.
    pub number: u32,
    /// How far it is.
    pub state: UpgradeState,
    /// All nodes of the cluster.
    pub nodes: Vec<Node>,
}

/// The control planes of a cluster: etcd may miss one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planes {
    /// The cluster.
    pub cluster: String,
    /// All of them.
    pub nodes: Vec<Node>,
}

/// What is known of clusters when a node asks.
#[derive(Debug, Clone, Copy)]
pub struct Clusters<'a> {
    /// Upgrades that have not ended.
    pub rollouts: &'a [Rollout],
    /// Control planes.
    pub planes: &'a [Planes],
}

/// The nodes that hold a lease which lasts, each with that.
#[must_use]
pub fn held<'a>(nodes: &'a [Node], locks: &'a Locks, now: OffsetDateTime) -> Vec<(&'a str, &'a Lease)> {
    let holder = |lease: &'a Lease| {
        let node = nodes.iter().find(|node| node.is(&lease.id, lease.address))?;
        Some((node.hostname.as_str(), lease))
    };
    locks.lasting(now).filter_map(holder).collect()
}

/// Why a node may not restart now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Others hold the slots of its group.
    #[error("{} of {slots} slots of the group `{group}` are taken: {}", .held.len(), holders(.held))]
    Taken {
        /// Its group.
        group: String,
        /// So many there are.
        slots: usize,
        /// By these.
        held: Vec<Lease>,
    },
    /// The operator in its cluster says when it restarts.
    #[error(
        "{node} is a node of {cluster}, whose upgrade {number} is {}: until that has ended, housekeeper alone says when it restarts; `nkd upgrade status {cluster}` shows how far it is, `nkd upgrade abort {cluster}` ends it",
        state.as_str()
    )]
    Rollout {
        /// Its name in the cluster.
        node: String,
        /// The cluster.
        cluster: String,
        /// Number of the upgrade.
        number: u32,
        /// How far that is.
        state: UpgradeState,
    },
    /// Another control plane of its cluster may be away.
    #[error(
        "{node}, another control plane of {cluster}, may restart now, and etcd could lose its majority: it has the lease {} since {} until {}; `nkd lock release` takes it away",
        .lease.id, whole(.lease.since), whole(.lease.expires)
    )]
    Plane {
        /// Who has it.
        node: String,
        /// The cluster.
        cluster: String,
        /// By this.
        lease: Box<Lease>,
    },
    /// Whoever asks from there holds too many already.
    #[error(
        "{leases} leases in {groups} groups were asked for from {origin}, and no client may hold more than {MOST_OF_ONE}, or in more than {most_groups} groups (fleet_lock.groups_per_client): `nkd lock list` shows them, and when they end"
    )]
    Share {
        /// The client's address, or its network.
        origin: IpAddr,
        /// So many it holds.
        leases: usize,
        /// In so many groups.
        groups: usize,
        /// In so many it may.
        most_groups: usize,
    },
    /// There are too many leases.
    #[error("{MOST} leases are held in all groups together: `nkd lock list` shows them, and when they end")]
    Full,
}

fn holders(held: &[Lease]) -> String {
    let one = |lease: &Lease| format!("{} since {} until {}", lease.id, whole(lease.since), whole(lease.expires));
    held.iter().take(5).map(one).collect::<Vec<_>>().join(", ")
}

/// Without parts of a second.
fn whole(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    time.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

impl Locks {
    /// Whether a node holds a lease that lasts.
    #[must_use]
    pub fn holds(&self, group: &str, id: &str, now: OffsetDateTime) -> bool {
        self.lasting(now).any(|lease| lease.group == group && lease.id == id)
    }

    /// A node asks for a lease, or for its lease to last longer. Only the former is held against upgrades that have not ended
    /// and other control planes.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn lock(
        &mut self,
        asker: &Asker<'_>,
        clusters: Clusters<'_>,
        rules: &Rules,
        now: OffsetDateTime,
    ) -> Result<Lease, Refused> {
        let (Asker { group, id, .. }, address) = (*asker, asker.address.to_canonical());
        let expires = now.saturating_add(rules.lease);
        let of = |lease: &Lease| lease.group == group && lease.expires > now;
        if let Some(own) = self.leases.iter_mut().find(|lease| of(lease) && lease.id == id) {
            // A clock that went back takes nothing away.
            own.expires = own.expires.max(expires);
            own.address = Some(address);
            return Ok(own.clone());
        }
        for Rollout { cluster, number, state, nodes } in clusters.rollouts {
            if let Some(node) = nodes.iter().find(|node| node.is(id, Some(address))) {
                let (node, cluster) = (node.hostname.clone(), cluster.clone());
                return Err(Refused::Rollout { node, cluster, number: *number, state: *state });
            }
        }
        for Planes { cluster, nodes } in clusters.planes {
            let own = nodes.iter().find(|node| node.is(id, Some(address)));
            let other = own.and_then(|own| held(nodes, self, now).into_iter().find(|(name, _)| *name != own.hostname));
            if let Some((node, lease)) = other {
                return Err(Refused::Plane {
                    node: node.to_owned(),
                    cluster: cluster.clone(),
                    lease: Box::new(lease.clone()),
                });
            }
        }
        let held: Vec<Lease> = self.leases.iter().filter(|lease| of(lease)).cloned().collect();
        if held.len() >= rules.slots {
            return Err(Refused::Taken { group: group.into(), slots: rules.slots, held });
        }
        self.share(group, address, rules.groups_of_one, now)?;
        if self.lasting(now).count() >= MOST {
            return Err(Refused::Full);
        }
        // Milliseconds: a backup that is put back knows nothing of the numbers that were given after it was made.
        let clock = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        self.fencing = clock.max(self.fencing.saturating_add(1));
        let (fencing, address) = (self.fencing, Some(address));
        let lease = Lease { group: group.into(), id: id.into(), address, fencing, since: now, expires };
        self.leases.retain(|lease| lease.expires > now);
        self.leases.push(lease.clone());
        Ok(lease)
    }

    /// Whether a client may hold one more, in this group.
    fn share(&self, group: &str, address: IpAddr, most_groups: usize, now: OffsetDateTime) -> Result<(), Refused> {
        let client = origin(address);
        let is_own = |lease: &&Lease| lease.address.is_some_and(|address| origin(address) == client);
        let of: Vec<&str> = self.lasting(now).filter(is_own).map(|lease| lease.group.as_str()).collect();
        let (leases, groups) = (of.len(), of.iter().collect::<BTreeSet<_>>().len());
        if leases >= MOST_OF_ONE || (groups >= most_groups && !of.contains(&group)) {
            return Err(Refused::Share { origin: client, leases, groups, most_groups });
        }
        Ok(())
    }

    /// A node gives its lease back, or somebody takes it away. False: there was none.
    pub fn unlock(&mut self, group: &str, id: &str) -> bool {
        let before = self.leases.len();
        self.leases.retain(|lease| lease.group != group || lease.id != id);
        self.leases.len() < before
    }

    /// The leases that last.
    pub fn lasting(&self, now: OffsetDateTime) -> impl Iterator<Item = &Lease> {
        self.leases.iter().filter(move |lease| lease.expires > now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const RULES: Rules = Rules { slots: 2, groups_of_one: GROUPS_OF_ONE, lease: Duration::minutes(60) };

    const NOBODY: Clusters<'_> = Clusters { rollouts: &[], planes: &[] };

    fn asker<'a>(group: &'a str, id: &'a str) -> Asker<'a> {
        Asker { group, id, address: [192, 0, 2, 9].into() }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Lock(u8, u8),
        Unlock(u8, u8),
        Pass(i64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let one = prop_oneof![
            4 => (0..2_u8, 0..6_u8).prop_map(|(group, id)| Event::Lock(group, id)),
            2 => (0..2_u8, 0..6_u8).prop_map(|(group, id)| Event::Unlock(group, id)),
            1 => (-30..90_i64).prop_map(Event::Pass),
        ];
        proptest::collection::vec(one, 1..200)
    }

    proptest! {
        #[test]
        fn a_group_has_no_more_leases_than_slots_and_numbers_grow(events in events()) {
            let (mut locks, mut now, mut last) = (Locks::default(), datetime!(2026-01-01 00:00 UTC), 0);
            for event in events {
                match event {
                    Event::Pass(minutes) => now += Duration::minutes(minutes),
                    Event::Unlock(group, id) => {
                        let (group, id) = (group.to_string(), id.to_string());
                        locks.unlock(&group, &id);
                        prop_assert!(!locks.lasting(now).any(|l| l.group == group && l.id == id));
                    }
                    Event::Lock(group, id) => {
                        let (group, id) = (group.to_string(), id.to_string());
                        let own = locks.lasting(now).find(|l| l.group == group && l.id == id).cloned();
                        let others = locks.lasting(now).filter(|l| l.group == group && l.id != id).count();
                        let before = locks.clone();
                        match locks.lock(&asker(&group, &id), NOBODY, &RULES, now) {
                            Ok(lease) => {
                                prop_assert!(lease.expires >= now + RULES.lease);
                                match own {
                                    Some(own) => prop_assert_eq!(own.fencing, lease.fencing, "it asks again"),
                                    None => {
                                        prop_assert!(others < RULES.slots);
                                        prop_assert!(lease.fencing > last);
                                        last = lease.fencing;
                                    }
                                }
                            }
                            Err(_) => {
                                prop_assert!(own.is_none() && others >= RULES.slots, "only who is too many is refused");
                                prop_assert_eq!(&before, &locks);
                            }
                        }
                    }
                }
                for group in ["0", "1"] {
                    prop_assert!(locks.lasting(now).filter(|lease| lease.group == group).count() <= RULES.slots);
                }
            }
        }
    }

    #[test]
    fn a_holder_that_died_makes_room_and_the_others_are_told_who_holds() {
        let (mut locks, now) = (Locks::default(), datetime!(2026-01-01 12:00 UTC));
        let rules = Rules { slots: 1, ..RULES };
        let first = locks.lock(&asker("rack", "a"), NOBODY, &rules, now).unwrap();
        let told = locks.lock(&asker("rack", "b"), NOBODY, &rules, now + Duration::minutes(1)).unwrap_err().to_string();
        let expected =
            "1 of 1 slots of the group `rack` are taken: a since 2026-01-01T12:00:00Z until 2026-01-01T13:00:00Z";
        assert_eq!(told, expected);
        let second = locks.lock(&asker("rack", "b"), NOBODY, &rules, now + rules.lease).unwrap();
        assert!(second.fencing > first.fencing);
        assert!(locks.lock(&asker("rack", "a"), NOBODY, &rules, now + rules.lease).is_err(), "it comes too late");
        assert!(locks.unlock("rack", "b") && !locks.unlock("rack", "b"));
    }

    #[test]
    fn a_node_of_a_cluster_that_is_upgraded_keeps_what_it_has_and_gets_nothing_new() {
        let (mut locks, now) = (Locks::default(), datetime!(2026-01-01 12:00 UTC));
        let rules = Rules { slots: 9, ..RULES };
        let node = |name: &str, ip: [u8; 4], asks_as: &[&str]| Node {
            hostname: name.into(),
            addresses: vec![ip.into()],
            asks_as: asks_as.iter().map(|name| (*name).to_owned()).collect(),
        };
        let nodes = vec![node("w1", [192, 0, 2, 1], &[]), node("w2", [192, 0, 2, 2], &["0A0B-0C"])];
        let rollout = Rollout { cluster: "rack7".into(), number: 3, state: UpgradeState::Paused, nodes };
        let rollouts = std::slice::from_ref(&rollout);
        let from = |id, ip: &str| Asker { group: "rack", id, address: ip.parse().unwrap() };

        // It has had it since before the upgrade began.
        let first = locks.lock(&from("a", "192.0.2.1"), NOBODY, &rules, now).unwrap();
        let again = locks
            .lock(&from("a", "192.0.2.1"), Clusters { rollouts, planes: &[] }, &rules, now + Duration::MINUTE)
            .unwrap();
        assert_eq!((again.fencing, again.expires), (first.fencing, first.expires + Duration::MINUTE));
        assert_eq!(held(&rollout.nodes, &locks, now), [("w1", &again)]);
        assert!(locks.unlock("rack", "a"));
        // By its address, however that is written, and by the name that zincati has.
        for (id, ip, name) in [
            ("a", "192.0.2.1", "w1"),
            ("new", "::ffff:192.0.2.1", "w1"),
            ("0a0b0c", "192.0.2.77", "w2"),
            ("0a0b-0c", "2001:db8::1", "w2"),
        ] {
            let before = locks.clone();
            let refused = locks.lock(&from(id, ip), Clusters { rollouts, planes: &[] }, &rules, now).unwrap_err();
            assert_eq!(locks, before);
            let told = refused.to_string();
            let start = format!("{name} is a node of rack7, whose upgrade 3 is paused: ");
            assert!(told.starts_with(&start) && told.contains("`nkd upgrade abort rack7`"), "{told}");
        }
        for (id, ip) in [("a", "192.0.2.3"), ("0a0b0", "192.0.2.77")] {
            locks.lock(&from(id, ip), Clusters { rollouts, planes: &[] }, &rules, now).unwrap();
        }
        assert_eq!(held(&rollout.nodes, &locks, now), [], "they are nobody's");
        locks.lock(&from("0a0b0c", "192.0.2.78"), NOBODY, &rules, now).unwrap();
        let holds = |at| held(&rollout.nodes, &locks, at).into_iter().map(|(node, _)| node).collect::<Vec<_>>();
        assert_eq!((holds(now), holds(now + rules.lease)), (vec!["w2"], vec![]), "until its lease ends");
    }

    #[test]
    fn one_control_plane_of_a_cluster_restarts_at_a_time_whatever_its_group_and_the_slots() {
        let (mut locks, now) = (Locks::default(), datetime!(2026-01-01 12:00 UTC));
        let rules = Rules { slots: 9, ..RULES };
        let node = |name: &str, last: u8| Node {
            hostname: name.into(),
            addresses: vec![[192, 0, 2, last].into()],
            asks_as: Vec::new(),
        };
        let planes = [
            Planes { cluster: "rack7".into(), nodes: vec![node("cp1", 1), node("cp2", 2), node("cp3", 3)] },
            Planes { cluster: "rack8".into(), nodes: vec![node("other", 4)] },
        ];
        let known = Clusters { rollouts: &[], planes: &planes };
        let from = |group, id, last: u8| Asker { group, id, address: [192, 0, 2, last].into() };
        locks.lock(&from("a", "one", 1), known, &rules, now).unwrap();
        for group in ["a", "b"] {
            let told = locks.lock(&from(group, "two", 2), known, &rules, now).unwrap_err().to_string();
            assert!(told.starts_with("cp1, another control plane of rack7, may restart now"), "{told}");
        }
        // Its own lease, a worker and another cluster are not held up.
        for (id, last) in [("one", 1), ("w1", 9), ("other", 4)] {
            locks.lock(&from("a", id, last), known, &rules, now).unwrap();
        }
        assert!(locks.unlock("a", "one"));
        locks.lock(&from("b", "two", 2), known, &rules, now).unwrap();
        let later = now + rules.lease;
        assert!(locks.lock(&from("a", "three", 3), known, &rules, later).is_ok(), "one that died keeps nobody out");
    }

    #[test]
    fn a_backup_that_is_put_back_gives_no_number_twice() {
        let (mut locks, now) = (Locks::default(), datetime!(2026-01-01 12:00 UTC));
        let backup = locks.clone();
        let given = (0..30)
            .map(|n| locks.lock(&asker(&n.to_string(), "a"), NOBODY, &RULES, now).unwrap().fencing)
            .max()
            .unwrap();
        locks = backup;
        assert!(locks.lock(&asker("0", "a"), NOBODY, &RULES, now + Duration::SECOND).unwrap().fencing > given);
    }

    #[test]
    fn whoever_makes_up_groups_keeps_nobody_else_out() {
        let (mut locks, now) = (Locks::default(), datetime!(2026-01-01 12:00 UTC));
        let from = |group, id, address: &str| Asker { group, id, address: address.parse().unwrap() };
        let names: Vec<String> = (0..GROUPS_OF_ONE).map(|n| n.to_string()).collect();
        for (n, name) in names.iter().enumerate() {
            locks.lock(&from(name, "a", &format!("2001:db8::{n:x}")), NOBODY, &RULES, now).unwrap();
        }
        let share = locks.lock(&from("new", "a", "2001:db8::ffff"), NOBODY, &RULES, now).unwrap_err();
        let origin = "2001:db8::".parse().unwrap();
        assert_eq!(
            share,
            Refused::Share { origin, leases: GROUPS_OF_ONE, groups: GROUPS_OF_ONE, most_groups: GROUPS_OF_ONE }
        );
        // Unless their owner knows that many are behind one address.
        let more = Rules { groups_of_one: GROUPS_OF_ONE + 1, ..RULES };
        assert!(locks.clone().lock(&from("new", "a", "2001:db8::ffff"), NOBODY, &more, now).is_ok());
        assert!(share.to_string().contains("32 leases in 32 groups were asked for from 2001:db8::"), "{share}");
        // Others are not held up, nor is who asks again, or in a group that is there.
        for (group, id, address) in
            [("new", "b", "2001:db8:0:1::1"), ("0", "a", "2001:db8::9"), ("0", "c", "2001:db8::ffff")]
        {
            locks.lock(&from(group, id, address), NOBODY, &RULES, now).unwrap();
        }
        assert!(locks.lock(&from("other", "a", "2001:db8::ffff"), NOBODY, &RULES, now + RULES.lease).is_ok());

        // As many slots as there can be, of a group or two.
        let (mut locks, rules) = (Locks::default(), Rules { slots: 1000, ..RULES });
        let mut lock = |group: &str, id: usize| locks.lock(&asker(group, &id.to_string()), NOBODY, &rules, now);
        let given = (0..MOST_OF_ONE).all(|n| lock(if n < 1000 { "a" } else { "b" }, n).is_ok());
        assert!(given && matches!(lock("b", 2000), Err(Refused::Share { leases: MOST_OF_ONE, groups: 2, .. })));
    }

    #[test]
    fn there_is_an_end_to_what_strangers_may_fill() {
        let (mut locks, now) = (Locks::default(), datetime!(2026-01-01 12:00 UTC));
        locks.leases = (0..MOST)
            .map(|n| {
                let (group, expires) = (n.to_string(), now + RULES.lease);
                Lease { group, id: "a".into(), address: None, fencing: 1, since: now, expires }
            })
            .collect();
        assert_eq!(locks.lock(&asker("new", "a"), NOBODY, &RULES, now), Err(Refused::Full));
        assert!(locks.lock(&asker("new", "a"), NOBODY, &RULES, now + RULES.lease).is_ok());
    }
}
