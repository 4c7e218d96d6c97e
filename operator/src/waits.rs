//! How long a node has been where it is, by a clock that nobody sets (pure: both clocks are arguments).
//!
//! The date stands on the node, so that another operator goes on. Who has seen it there counts by its own steady clock from
//! then on: a date that is set in the meantime, forward or back, neither ends a wait nor makes it longer. A date of the
//! future, which another clock wrote, is one of now.

use std::collections::BTreeMap;
use std::time::Instant;

use nkd_api::update::Note;
use time::{Duration, OffsetDateTime};

use crate::seen::NodeSeen;

/// What was seen of each node's note: since when, and how old it was by then.
#[derive(Debug, Default)]
pub struct Waits(BTreeMap<String, (Note, Instant, Duration)>);

impl Waits {
    /// Tells every node how long its note is as it is.
    pub fn measure(&mut self, nodes: &mut [NodeSeen], date: OffsetDateTime, at: Instant) {
        let before = std::mem::take(&mut self.0);
        for node in nodes {
            let Some(note) = node.note.clone() else { continue };
            let known = before.get(&node.name).filter(|(known, ..)| *known == note);
            let (since, age) =
                known.map_or_else(|| (at, (date - note.since).max(Duration::ZERO)), |(_, since, age)| (*since, *age));
            node.waited =
                age.saturating_add(Duration::try_from(at.saturating_duration_since(since)).unwrap_or_default());
            self.0.insert(node.name.clone(), (note, since, age));
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "there is no other way to get an instant")]
mod tests {
    use nkd_api::update::NoteState;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_date_that_is_set_in_the_meantime_changes_no_wait() {
        let (date, at) = (datetime!(2026-01-02 22:00 UTC), Instant::now());
        let note = |since| Note {
            uid: "u".into(),
            attempt: 1,
            state: NoteState::Begun,
            since,
            retry: 0,
            reason: String::new(),
            heard: None,
        };
        let mut waits = Waits::default();
        let mut waited = |since, date, seconds| {
            let mut nodes = [NodeSeen { name: "w1".into(), note: Some(note(since)), ..NodeSeen::default() }];
            waits.measure(&mut nodes, date, at + std::time::Duration::from_secs(seconds));
            nodes[0].waited.whole_seconds()
        };
        let hour = Duration::HOUR;
        // Another operator wrote it a minute ago.
        assert_eq!(waited(date - Duration::MINUTE, date, 0), 60);
        for jump in [hour, -hour, Duration::ZERO] {
            assert_eq!(waited(date - Duration::MINUTE, date + jump, 30), 90);
        }
        // What it writes itself after its clock was set is new.
        assert_eq!(waited(date - hour, date - hour, 40), 0);
        assert_eq!(waited(date - hour, date, 50), 10);
        // A clock that is ahead wrote it.
        assert_eq!(waited(date + hour, date, 60), 0);
        assert_eq!(waited(date + hour, date, 75), 15);
    }
}
