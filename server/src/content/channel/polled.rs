//! Systems that ask for the update graph and run a release of the channel (pure). They are no machines of ours: this is all that
//! is known of them, and it says which releases are needed. Written down at most once an hour for each release.

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};

use super::unknown::node_name;

/// From one time that a release is written down to the next.
const STEP: Duration = Duration::hours(1);
/// A release is needed for so long after somebody has run it.
pub(super) const NEEDED_FOR: Duration = Duration::days(7);

/// A release that such a system ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Polled {
    /// Which.
    pub commit: String,
    /// How the system called itself; empty: not at all.
    pub node: String,
    /// When it asked last, to the hour.
    pub at: OffsetDateTime,
}

/// What was written down of each channel's commits in this run of the service.
#[derive(Debug, Default)]
pub(super) struct Noted {
    at: BTreeMap<(String, String), OffsetDateTime>,
}

impl Noted {
    /// What to write down, if it is time. The commit is one of the channel: nobody can make this large.
    pub(super) fn asked(
        &mut self,
        channel: &str,
        commit: &str,
        node: Option<&str>,
        now: OffsetDateTime,
    ) -> Option<Polled> {
        let key = (channel.to_owned(), commit.to_owned());
        if self.at.get(&key).is_some_and(|at| now - *at < STEP && now >= *at) {
            return None;
        }
        self.at.insert(key, now);
        Some(Polled { commit: commit.to_owned(), node: node.map(node_name).unwrap_or_default(), at: now })
    }

    /// It could not be written down, or is there no more.
    pub(super) fn forget(&mut self, channel: &str, commit: &str) {
        self.at.remove(&(channel.to_owned(), commit.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_written_down_once_an_hour() {
        let at = |minutes| OffsetDateTime::UNIX_EPOCH + Duration::minutes(minutes);
        let mut noted = Noted::default();
        let first = Polled { commit: "c".into(), node: "n[1m".into(), at: at(0) };
        assert_eq!(noted.asked("stable", "c", Some("n\u{1b}[1m"), at(0)), Some(first));
        assert_eq!(noted.asked("stable", "c", Some("m"), at(59)), None);
        assert!(noted.asked("edge", "c", None, at(59)).is_some());
        assert!(noted.asked("stable", "c", None, at(60)).is_some());
        // A clock that was set back holds up nothing.
        assert!(noted.asked("stable", "c", None, at(5)).is_some());
        noted.forget("stable", "c");
        assert!(noted.asked("stable", "c", None, at(6)).is_some());
    }
}
