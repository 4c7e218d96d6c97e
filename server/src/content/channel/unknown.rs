//! Systems that ask for updates from a release that their channel does not have (pure).
//!
//! A client of the update graph finds no edge then, and is silently never updated: so it is shown. This lives in memory:
//! such a system asks again within minutes.

use std::collections::BTreeMap;

use nkd_api::channel::UnknownRelease;
use time::OffsetDateTime;

/// So many are remembered; the one that was heard of longest ago makes room.
const MOST: usize = 256;
/// Of what a system says that it runs, in characters. The name of an image stands before its digest, which tells them apart.
const LONGEST_PAYLOAD: usize = 256;
/// Of what it calls itself.
const LONGEST_NODE: usize = 80;

/// What was asked from, by channel and by what the system says that it runs.
#[derive(Debug, Default)]
pub struct Unknown {
    seen: BTreeMap<(String, String), UnknownRelease>,
}

impl Unknown {
    /// A system has asked. What it says is anybody's text.
    pub fn asked(&mut self, channel: &str, payload: &str, node: Option<&str>, now: OffsetDateTime) {
        let payload = payload_name(payload);
        let key = (channel.to_owned(), payload.clone());
        if !self.seen.contains_key(&key)
            && self.seen.len() >= MOST
            && let Some(oldest) = self.seen.iter().min_by_key(|(_, seen)| seen.last_at).map(|(key, _)| key.clone())
        {
            self.seen.remove(&oldest);
        }
        let new = || UnknownRelease { payload, times: 0, first_at: now, last_at: now, node: None };
        let seen = self.seen.entry(key).or_insert_with(new);
        seen.times += 1;
        seen.last_at = now;
        seen.node = node.map(node_name);
    }

    /// Forgets those of a channel that is no more.
    pub fn forget(&mut self, channel: &str) {
        self.seen.retain(|(name, _), _| name != channel);
    }

    /// Those of a channel, who asked last first.
    #[must_use]
    pub fn of(&self, channel: &str) -> Vec<UnknownRelease> {
        let mut of: Vec<UnknownRelease> =
            self.seen.iter().filter(|((name, _), _)| name == channel).map(|(_, seen)| seen.clone()).collect();
        of.sort_by_key(|seen| std::cmp::Reverse(seen.last_at));
        of
    }
}

/// What a system says that it runs, as it can be shown.
pub(super) fn payload_name(text: &str) -> String {
    printable(text, LONGEST_PAYLOAD)
}

/// What a system calls itself, as it can be shown.
pub(super) fn node_name(text: &str) -> String {
    printable(text, LONGEST_NODE)
}

fn printable(text: &str, longest: usize) -> String {
    text.chars().filter(char::is_ascii_graphic).take(longest).collect()
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
    }

    #[test]
    fn who_asked_last_stands_first_and_is_counted() {
        let mut unknown = Unknown::default();
        unknown.asked("stable", "a\n\u{1b}[1m", Some("n1"), at(1));
        unknown.asked("stable", "b", None, at(2));
        unknown.asked("stable", "a[1m", Some("n2"), at(3));
        unknown.asked("edge", "c", None, at(4));
        let of: Vec<_> = unknown.of("stable").into_iter().map(|u| (u.payload, u.times, u.node, u.first_at)).collect();
        assert_eq!(of, [("a[1m".into(), 2, Some("n2".into()), at(1)), ("b".into(), 1, None, at(2))]);
        unknown.forget("stable");
        assert_eq!((unknown.of("stable").len(), unknown.of("edge").len()), (0, 1));
    }

    #[test]
    fn images_of_one_name_are_told_apart_by_their_digests() {
        let image = |end: &str| format!("registry.example:5000/fedora/fedora-coreos@sha256:{}{end}", "0".repeat(63));
        let mut unknown = Unknown::default();
        for (seconds, end) in [(1, "1"), (2, "2"), (3, "1")] {
            unknown.asked("stable", &image(end), Some(&"n".repeat(1000)), at(seconds));
        }
        let of = unknown.of("stable");
        let times: Vec<_> = of.iter().map(|seen| (seen.payload.clone(), seen.times)).collect();
        assert_eq!(times, [(image("1"), 2), (image("2"), 1)]);
        assert_eq!(of[0].node.as_ref().map(String::len), Some(LONGEST_NODE));
        unknown.asked("stable", &"x".repeat(1000), None, at(4));
        assert_eq!(unknown.of("stable")[0].payload.len(), LONGEST_PAYLOAD);
    }

    #[test]
    fn whoever_makes_up_releases_fills_no_memory() {
        let mut unknown = Unknown::default();
        for number in 0..1000 {
            unknown.asked("stable", &format!("{number}"), None, at(number));
        }
        let of = unknown.of("stable");
        assert_eq!((of.len(), of[0].payload.as_str(), of[MOST - 1].payload.as_str()), (MOST, "999", "744"));
    }
}
