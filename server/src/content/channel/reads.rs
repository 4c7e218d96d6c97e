//! Which commits clients are reading (pure).
//!
//! All times are those of the steady clock: a date that is set in the meantime ends no reading.
//!
//! A client reads a commit first, then folders and files, which may belong to many commits. So whatever it reads counts
//! for the commits that it has begun, until it has been silent for a while. Clients are told apart by their address:
//! those behind one address count as one, which keeps more and loses nothing.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// A client of a profile's repository.
type Client = (String, IpAddr);

/// So many clients are told apart; all others count as one. Whoever asks from ever new addresses takes no more memory.
const MOST_CLIENTS: usize = 65_536;
/// The address of all others.
const OTHERS: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

/// What clients read.
#[derive(Debug, Default)]
pub struct Reads {
    clients: BTreeMap<Client, Session>,
}

#[derive(Debug)]
struct Session {
    commits: BTreeSet<String>,
    last: Instant,
    /// Answers that are being sent.
    open: usize,
}

impl Reads {
    /// A client asks for a file of the repository; [`Self::end`] is to follow, with the address that this gives. `has`
    /// says whether a commit is there: what is only asked for is not kept.
    pub fn begin(
        &mut self,
        profile: &str,
        client: IpAddr,
        path: &str,
        now: Instant,
        has: impl Fn(&str) -> bool,
    ) -> IpAddr {
        let known = self.clients.contains_key(&(profile.to_owned(), client));
        let client = if known || self.clients.len() < MOST_CLIENTS { client } else { OTHERS };
        let new = || Session { commits: BTreeSet::new(), last: now, open: 0 };
        let session = self.clients.entry((profile.to_owned(), client)).or_insert_with(new);
        session.last = now;
        session.open += 1;
        session.commits.extend(commits_of(path).into_iter().filter(|commit| has(commit)));
        client
    }

    /// The answer is sent, or broke off.
    pub fn end(&mut self, profile: &str, client: IpAddr, now: Instant) {
        if let Entry::Occupied(mut session) = self.clients.entry((profile.to_owned(), client)) {
            session.get_mut().last = now;
            session.get_mut().open = session.get().open.saturating_sub(1);
            // Of somebody who has begun no commit there is nothing to remember.
            if session.get().open == 0 && session.get().commits.is_empty() {
                session.remove();
            }
        }
    }

    /// Whether nobody has read anything of a commit for so long.
    #[must_use]
    pub fn is_quiet(&self, profile: &str, commit: &str, quiet: Duration, now: Instant) -> bool {
        let reads = |(client, session): (&Client, &Session)| {
            client.0 == profile && session.commits.contains(commit) && !session.is_over(quiet, now)
        };
        !self.clients.iter().any(reads)
    }

    /// Forgets clients that have been silent for so long.
    pub fn forget(&mut self, quiet: Duration, now: Instant) {
        self.clients.retain(|_, session| !session.is_over(quiet, now));
    }
}

impl Session {
    fn is_over(&self, quiet: Duration, now: Instant) -> bool {
        self.open == 0 && now.saturating_duration_since(self.last) >= quiet
    }
}

/// The commits that a path is about.
fn commits_of(path: &str) -> Vec<String> {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["objects", first, rest] => {
            let name = rest.strip_suffix(".commit").or_else(|| rest.strip_suffix(".commitmeta"));
            let commit = name.map(|name| format!("{first}{name}"));
            commit.filter(|name| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())).into_iter().collect()
        }
        // Both ends of a difference, in base64 with _ for /, of which the first two characters are a folder.
        ["deltas", first, rest, ..] => format!("{first}{rest}").split('-').filter_map(hex_of).collect(),
        _ => Vec::new(),
    }
}

fn hex_of(name: &str) -> Option<String> {
    let bytes = STANDARD_NO_PAD.decode(name.replace('_', "/")).ok()?;
    (bytes.len() == 32).then(|| hex::encode(bytes))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "there is no other way to get an instant")]
mod tests {
    use std::sync::OnceLock;

    use super::*;

    const ONE: &str = "77feac3b160f4857f72f994a39a211362e77477c70cf65f83ae41a30f57faef9";

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(minute: u64) -> Instant {
        static START: OnceLock<Instant> = OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(60 * minute)
    }

    fn quiet(reads: &Reads, now: u64) -> bool {
        reads.is_quiet("lab", ONE, HOUR, at(now))
    }

    #[test]
    fn whatever_a_client_reads_counts_for_the_commit_that_it_has_begun() {
        let (mut reads, one, other) = (Reads::default(), IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        assert!(quiet(&reads, 0));
        let mut read = |client, path: &str, minute| {
            reads.begin("lab", client, path, at(minute), |_| true);
            reads.end("lab", client, at(minute));
            (quiet(&reads, minute + 59), quiet(&reads, minute + 60))
        };
        let file = "objects/00/11.filez";
        assert_eq!(read(one, file, 0), (true, true), "of nothing that is known");
        assert_eq!(read(one, &format!("objects/{}/{}.commit", &ONE[..2], &ONE[2..]), 10), (false, true));
        assert_eq!(read(one, file, 60), (false, true), "it goes on");
        assert_eq!(read(other, file, 100), (true, true), "somebody else's does not count");
        assert!(quiet(&reads, 120));
        assert!(reads.is_quiet("nestos", ONE, HOUR, at(61)));
    }

    #[test]
    fn an_answer_that_takes_hours_is_a_read_all_the_while() {
        let (mut reads, client) = (Reads::default(), IpAddr::from([10, 0, 0, 1]));
        reads.begin("lab", client, "deltas/aa/aaaa/0", at(0), |_| true);
        assert!(quiet(&reads, 500), "that is no difference");
        reads.begin("lab", client, "deltas/d_/6sOxYPSFf3L5lKOaIRNi53R3xwz2X4OuQaMPV_rvk/0", at(0), |_| true);
        reads.forget(HOUR, at(500));
        assert!(!quiet(&reads, 500));
        reads.end("lab", client, at(500));
        reads.end("lab", client, at(500));
        assert_eq!((quiet(&reads, 559), quiet(&reads, 560)), (false, true));
        reads.forget(HOUR, at(560));
        assert!(reads.clients.is_empty());
    }

    #[test]
    fn what_strangers_ask_for_takes_no_memory() {
        let (mut reads, path) = (Reads::default(), format!("objects/{}/{}.commit", &ONE[..2], &ONE[2..]));
        for number in 0..200_u32 {
            let client = IpAddr::from(number.to_be_bytes());
            for path in [path.as_str(), "objects/aa/x.commit", "objects/00/11.filez", "summary"] {
                let client = reads.begin("lab", client, path, at(0), |_| false);
                reads.end("lab", client, at(0));
            }
            assert!(reads.clients.is_empty(), "{number}");
        }
        for number in 0..MOST_CLIENTS as u32 + 200 {
            let client = reads.begin("lab", IpAddr::from(number.to_be_bytes()), &path, at(0), |_| true);
            reads.end("lab", client, at(0));
        }
        assert_eq!(reads.clients.len(), MOST_CLIENTS + 1, "all others count as one");
        reads.forget(HOUR, at(59));
        assert!(reads.clients.contains_key(&("lab".into(), OTHERS)) && !quiet(&reads, 59));
    }
}
