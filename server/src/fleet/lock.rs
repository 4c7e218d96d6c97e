//! Who may restart (pure): leases of slots in groups, as the FleetLock protocol asks for them.
//!
//! What always holds: a group has no more leases that last than it has slots; a node that asks again keeps its lease and
//! its fencing number; a new lease has a greater number than any before it; a lease that has ended keeps nobody out.

use nkd_api::lock::Lease;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

/// No more leases than these are kept: whoever reaches the port may ask.
pub const MOST: usize = 10_000;
/// Longest name of a node or a group.
pub const LONGEST: usize = 128;

/// What is decided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// So many nodes of a group may restart at a time.
    pub slots: usize,
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
    /// There are too many leases.
    #[error("{MOST} leases are held in all groups together: `nkd lock list` shows them")]
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
    /// A node asks for a lease, or for its lease to last longer.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn lock(&mut self, group: &str, id: &str, rules: &Rules, now: OffsetDateTime) -> Result<Lease, Refused> {
        let expires = now.saturating_add(rules.lease);
        let of = |lease: &Lease| lease.group == group && lease.expires > now;
        if let Some(own) = self.leases.iter_mut().find(|lease| of(lease) && lease.id == id) {
            // A clock that went back takes nothing away.
            own.expires = own.expires.max(expires);
            return Ok(own.clone());
        }
        let held: Vec<Lease> = self.leases.iter().filter(|lease| of(lease)).cloned().collect();
        if held.len() >= rules.slots {
            return Err(Refused::Taken { group: group.into(), slots: rules.slots, held });
        }
        let lasting = self.lasting(now).count();
        if lasting >= MOST {
            return Err(Refused::Full);
        }
        // Milliseconds: a backup that is put back knows nothing of the numbers that were given after it was made.
        let clock = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        self.fencing = clock.max(self.fencing.saturating_add(1));
        let lease = Lease { group: group.into(), id: id.into(), fencing: self.fencing, since: now, expires };
        self.leases.retain(|lease| lease.expires > now);
        self.leases.push(lease.clone());
        Ok(lease)
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

    const RULES: Rules = Rules { slots: 2, lease: Duration::minutes(60) };

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
                        match locks.lock(&group, &id, &RULES, now) {
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
        let first = locks.lock("rack", "a", &rules, now).unwrap();
        let told = locks.lock("rack", "b", &rules, now + Duration::minutes(1)).unwrap_err().to_string();
        let expected =
            "1 of 1 slots of the group `rack` are taken: a since 2026-01-01T12:00:00Z until 2026-01-01T13:00:00Z";
        assert_eq!(told, expected);
        let second = locks.lock("rack", "b", &rules, now + rules.lease).unwrap();
        assert!(second.fencing > first.fencing);
        assert!(locks.lock("rack", "a", &rules, now + rules.lease).is_err(), "it comes too late");
        assert!(locks.unlock("rack", "b") && !locks.unlock("rack", "b"));
    }

    #[test]
    fn a_backup_that_is_put_back_gives_no_number_twice() {
        let (mut locks, now) = (Locks::default(), datetime!(2026-01-01 12:00 UTC));
        let backup = locks.clone();
        let given = (0..100).map(|n| locks.lock(&n.to_string(), "a", &RULES, now).unwrap().fencing).max().unwrap();
        locks = backup;
        assert!(locks.lock("0", "a", &RULES, now + Duration::SECOND).unwrap().fencing > given);
    }

    #[test]
    fn there_is_an_end_to_what_strangers_may_fill() {
        let (mut locks, now) = (Locks::default(), datetime!(2026-01-01 12:00 UTC));
        locks.leases = (0..MOST)
            .map(|n| Lease { group: n.to_string(), id: "a".into(), fencing: 1, since: now, expires: now + RULES.lease })
            .collect();
        assert_eq!(locks.lock("new", "a", &RULES, now), Err(Refused::Full));
        assert!(locks.lock("new", "a", &RULES, now + RULES.lease).is_ok());
    }
}
