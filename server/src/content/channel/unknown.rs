//! Systems that ask for updates from a release that their channel does not have (pure).
//!
//! A client of the update graph finds no edge then, and is silently never updated: so it is shown. This lives in memory:
//! such a system asks again within minutes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use nkd_api::channel::UnknownRelease;
use time::{Duration, OffsetDateTime};

use crate::origin::origin;

/// So many are remembered, of all channels together.
const MOST: usize = 256;
/// And so many that one client ([`origin`]) was the first to ask from.
const MOST_OF_ONE: usize = 16;
/// Whoever has not asked for so long makes room first, however often that was before: such a system asks every few minutes.
const GONE: Duration = Duration::DAY;
/// Of what a system says that it runs, in characters. The name of an image stands before its digest, which tells them apart.
const LONGEST_PAYLOAD: usize = 256;
/// Of what it calls itself.
const LONGEST_NODE: usize = 80;

/// A channel, and what a system says that it runs.
type Key = (String, String);

/// Who has asked.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// How it calls itself.
    pub node: Option<&'a str>,
    /// Where it asks from.
    pub address: IpAddr,
}

/// What was asked from.
#[derive(Debug, Default)]
pub struct Unknown {
    seen: BTreeMap<Key, Seen>,
    /// How often one of a channel has made room.
    left_out: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Seen {
    release: UnknownRelease,
    /// The client that asked from it first.
    origin: IpAddr,
}

impl Unknown {
    /// A system has asked. What it says is anybody's text: what is made up makes room before what systems ask from again and
    /// again.
    pub fn asked(&mut self, channel: &str, payload: &str, who: Who<'_>, now: OffsetDateTime) {
        let (payload, origin) = (payload_name(payload), origin(who.address));
        let key = (channel.to_owned(), payload.clone());
        if !self.seen.contains_key(&key) {
            if self.seen.values().filter(|seen| seen.origin == origin).count() >= MOST_OF_ONE {
                self.make_room(|seen| seen.origin == origin, now);
            } else if self.seen.len() >= MOST {
                self.make_room(|_| true, now);
            }
        }
        let release = || UnknownRelease { payload, times: 0, first_at: now, last_at: now, node: None };
        let seen = &mut self.seen.entry(key).or_insert_with(|| Seen { release: release(), origin }).release;
        seen.times += 1;
        seen.last_at = now;
        seen.node = who.node.map(node_name);
    }

    /// The one that is missed least: nobody asks from it any more, or it was asked from least often.
    fn make_room(&mut self, among: impl Fn(&Seen) -> bool, now: OffsetDateTime) {
        let rank = |seen: &Seen| (now - seen.release.last_at < GONE, seen.release.times, seen.release.last_at);
        let least = self.seen.iter().filter(|(_, seen)| among(seen)).min_by_key(|(_, seen)| rank(seen));
        let Some(key) = least.map(|(key, _)| key.clone()) else { return };
        self.seen.remove(&key);
        *self.left_out.entry(key.0).or_default() += 1;
    }

    /// Forgets those of a channel that is no more.
    pub fn forget(&mut self, channel: &str) {
        self.seen.retain(|(name, _), _| name != channel);
        self.left_out.remove(channel);
    }

    /// Those of a channel, who asked last first; and how often one was left out to make room for another.
    #[must_use]
    pub fn of(&self, channel: &str) -> (Vec<UnknownRelease>, u64) {
        let of_it = self.seen.iter().filter(|((name, _), _)| name == channel);
        let mut of: Vec<UnknownRelease> = of_it.map(|(_, seen)| seen.release.clone()).collect();
        of.sort_by_key(|seen| Reverse(seen.last_at));
        (of, self.left_out.get(channel).copied().unwrap_or_default())
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

    fn from(last: u8) -> Who<'static> {
        Who { node: None, address: [192, 0, 2, last].into() }
    }

    #[test]
    fn who_asked_last_stands_first_and_is_counted() {
        let mut unknown = Unknown::default();
        unknown.asked("stable", "a\n\u{1b}[1m", Who { node: Some("n1"), ..from(1) }, at(1));
        unknown.asked("stable", "b", from(1), at(2));
        unknown.asked("stable", "a[1m", Who { node: Some("n2"), ..from(2) }, at(3));
        unknown.asked("edge", "c", from(1), at(4));
        let (of, left_out) = unknown.of("stable");
        let of: Vec<_> = of.into_iter().map(|u| (u.payload, u.times, u.node, u.first_at)).collect();
        assert_eq!(of, [("a[1m".into(), 2, Some("n2".into()), at(1)), ("b".into(), 1, None, at(2))]);
        unknown.forget("stable");
        assert_eq!((unknown.of("stable").0.len(), unknown.of("edge").0.len(), left_out), (0, 1, 0));
    }

    #[test]
    fn images_of_one_name_are_told_apart_by_their_digests() {
        let image = |end: &str| format!("registry.example:5000/fedora/fedora-coreos@sha256:{}{end}", "0".repeat(63));
        let mut unknown = Unknown::default();
        for (seconds, end) in [(1, "1"), (2, "2"), (3, "1")] {
            unknown.asked("stable", &image(end), Who { node: Some(&"n".repeat(1000)), ..from(1) }, at(seconds));
        }
        let (of, _) = unknown.of("stable");
        let times: Vec<_> = of.iter().map(|seen| (seen.payload.clone(), seen.times)).collect();
        assert_eq!(times, [(image("1"), 2), (image("2"), 1)]);
        assert_eq!(of[0].node.as_ref().map(String::len), Some(LONGEST_NODE));
        unknown.asked("stable", &"x".repeat(1000), from(1), at(4));
        assert_eq!(unknown.of("stable").0[0].payload.len(), LONGEST_PAYLOAD);
    }

    #[test]
    fn whoever_makes_up_releases_pushes_out_his_own() {
        let mut unknown = Unknown::default();
        unknown.asked("stable", "true", from(1), at(0));
        // Behind the same address as who makes things up, and asked from twice.
        for seconds in [1, 2] {
            unknown.asked("stable", "shared", from(2), at(seconds));
        }
        for number in 10..1010 {
            unknown.asked("stable", &format!("{number}"), from(2), at(number));
        }
        let (of, left_out) = unknown.of("stable");
        let there = |payload: &str| of.iter().any(|seen| seen.payload == payload);
        assert!(there("true") && there("shared") && there("1009") && there("995") && !there("994"), "{of:?}");
        assert_eq!((of.len(), left_out), (1 + MOST_OF_ONE, 1000 - 15));
        // What nobody has asked from for long goes first, and what makes room is counted where it was.
        let later = GONE.whole_seconds() + 1000;
        for number in 995..1010 {
            unknown.asked("stable", &format!("{number}"), from(2), at(later));
        }
        unknown.asked("edge", "new", from(2), at(later));
        let (of, left_out) = unknown.of("stable");
        assert!(!of.iter().any(|seen| seen.payload == "shared") && of.len() == MOST_OF_ONE, "{of:?}");
        assert_eq!((left_out, unknown.of("edge").1), (1000 - 14, 0));
    }

    #[test]
    fn many_who_make_up_releases_fill_no_memory_and_leave_what_is_asked_from_again_and_again() {
        let mut unknown = Unknown::default();
        let ask = |unknown: &mut Unknown, number: i64, seconds: i64| {
            let address = IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
            unknown.asked("stable", &format!("{number}"), Who { node: None, address }, at(seconds));
        };
        ask(&mut unknown, 0, 0);
        for number in 0..1000 {
            ask(&mut unknown, number, number);
        }
        let (of, left_out) = unknown.of("stable");
        let last: Vec<_> = [0, MOST - 2, MOST - 1].map(|at: usize| of[at].payload.as_str()).into();
        assert_eq!((of.len(), last, left_out), (MOST, vec!["999", "745", "0"], 744));
    }
}
