//! Systems that ask for the update graph and run a release of the channel (pure). They are no machines of ours: this is all that
//! is known of them, and it says which releases are needed. Written down at most once an hour for each release.
//!
//! The dates are for those that asked before the service has started: what was asked since counts by the steady clock, so that
//! a date that is set in the meantime makes no release needless.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Instant;

use time::{Duration, OffsetDateTime};

use super::Channels;
use super::unknown::{node_name, payload_name};

/// From one time that a release is written down to the next.
const STEP: Duration = Duration::hours(1);
/// A release is needed for so long after somebody has run it.
pub(super) const NEEDED_FOR: Duration = Duration::days(7);
/// The last poll of so many addresses is remembered; the one that was heard of longest ago makes room.
const MOST: usize = 16_384;

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

/// What a system has said when it asked for the graph last. What it says of itself is anybody's text.
#[derive(Debug, Clone, PartialEq)]
pub struct LastPoll {
    /// The channel that it follows.
    pub channel: String,
    /// What it runs; empty: it has not said.
    pub commit: String,
    /// How it calls itself: its turn in a rollout follows from that.
    pub node: Option<String>,
    /// How much it would rather be among the last.
    pub wariness: Option<f64>,
    /// When.
    pub at: OffsetDateTime,
}

/// What was written down of each channel's commits in this run of the service, and who has asked last. The latter lives in
/// memory only: such a system asks again within minutes.
#[derive(Debug, Default)]
pub(super) struct Noted {
    at: BTreeMap<(String, String), (Polled, Instant)>,
    last: BTreeMap<IpAddr, LastPoll>,
}

impl Channels {
    /// A system has asked for a graph from this address.
    pub fn polled_from(&self, address: IpAddr, poll: LastPoll) {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner).heard(address.to_canonical(), poll);
    }

    /// What was asked from this address last, since the service has started.
    #[must_use]
    pub fn last_poll(&self, address: IpAddr) -> Option<LastPoll> {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner).last.get(&address.to_canonical()).cloned()
    }
}

impl Noted {
    /// What to write down, if it is time. The commit is one of the channel: nobody can make this large.
    pub(super) fn asked(
        &mut self,
        channel: &str,
        commit: &str,
        node: Option<&str>,
        (now, at): (OffsetDateTime, Instant),
    ) -> Option<Polled> {
        let key = (channel.to_owned(), commit.to_owned());
        // Once more when the clock was set, whichever way: another run of the service knows the date only.
        let is_new = |(last, since): &(Polled, Instant)| {
            at.saturating_duration_since(*since) < STEP && now - last.at < STEP && now >= last.at
        };
        if self.at.get(&key).is_some_and(is_new) {
            return None;
        }
        let polled = Polled { commit: commit.to_owned(), node: node.map(node_name).unwrap_or_default(), at: now };
        self.at.insert(key, (polled.clone(), at));
        Some(polled)
    }

    /// What systems that follow a channel run by what they have asked in this run of the service, not longer ago than releases
    /// are needed.
    pub(super) fn needed(&self, channel: &str, at: Instant) -> Vec<Polled> {
        let is_needed = |since: Instant| at.saturating_duration_since(since) < NEEDED_FOR;
        let of_channel = self.at.iter().filter(|((of, _), _)| of == channel);
        of_channel.filter(|(_, (_, since))| is_needed(*since)).map(|(_, (polled, _))| polled.clone()).collect()
    }

    fn heard(&mut self, address: IpAddr, poll: LastPoll) {
        if !self.last.contains_key(&address)
            && self.last.len() >= MOST
            && let Some(oldest) = self.last.iter().min_by_key(|(_, poll)| poll.at).map(|(address, _)| *address)
        {
            self.last.remove(&oldest);
        }
        let (commit, node) = (payload_name(&poll.commit), poll.node.as_deref().map(node_name));
        self.last.insert(address, LastPoll { commit, node, ..poll });
    }

    /// It could not be written down, or is there no more.
    pub(super) fn forget(&mut self, channel: &str, commit: &str) {
        self.at.remove(&(channel.to_owned(), commit.to_owned()));
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "there is no other way to get an instant")]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_written_down_once_an_hour() {
        let start = Instant::now();
        let date = |minutes| OffsetDateTime::UNIX_EPOCH + Duration::minutes(minutes);
        let at = |minutes| (date(minutes), start + Duration::minutes(minutes));
        let mut noted = Noted::default();
        let first = Polled { commit: "c".into(), node: "n[1m".into(), at: date(0) };
        assert_eq!(noted.asked("stable", "c", Some("n\u{1b}[1m"), at(0)), Some(first));
        assert_eq!(noted.asked("stable", "c", Some("m"), at(59)), None);
        assert!(noted.asked("edge", "c", None, at(59)).is_some());
        assert!(noted.asked("stable", "c", None, at(60)).is_some());
        // A clock that was set, back or forward, holds up nothing.
        for date in [date(5), date(70), date(0)] {
            assert!(noted.asked("stable", "c", None, (date, at(61).1)).is_some());
            assert!(noted.asked("stable", "c", None, (date, at(61).1)).is_none());
        }
        assert!(noted.asked("stable", "c", None, (date(59), at(121).1)).is_some());
        noted.forget("stable", "c");
        assert!(noted.asked("stable", "c", None, (date(59), at(121).1)).is_some());
    }

    #[test]
    fn what_was_asked_in_this_run_is_needed_for_seven_days_whatever_the_date() {
        let start = Instant::now();
        let mut noted = Noted::default();
        noted.asked("stable", "c", None, (OffsetDateTime::UNIX_EPOCH, start)).unwrap();
        let needed = |channel, after| noted.needed(channel, start + after).pop().map(|polled| polled.commit);
        assert_eq!(needed("stable", NEEDED_FOR - Duration::SECOND).as_deref(), Some("c"));
        assert_eq!(needed("stable", NEEDED_FOR), None);
        assert_eq!(needed("edge", Duration::ZERO), None);
    }

    #[test]
    fn the_last_poll_of_each_address_is_kept_and_fills_no_memory() {
        let mut noted = Noted::default();
        let poll = |seconds: i64| LastPoll {
            channel: "stable".into(),
            commit: "c\n".into(),
            node: Some("n\u{1b}".into()),
            wariness: None,
            at: OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds),
        };
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        let most = u32::try_from(MOST).unwrap();
        for number in 0..most + 100 {
            noted.heard(address(number), poll(number.into()));
        }
        assert_eq!(noted.last.len(), MOST);
        assert!(!noted.last.contains_key(&address(0)), "the oldest has made room");
        noted.heard(address(most), poll(90_000));
        assert_eq!(noted.last.len(), MOST);
        let last = &noted.last[&address(most)];
        assert_eq!((last.commit.as_str(), last.node.as_deref(), last.at), ("c", Some("n"), poll(90_000).at));
    }
}
