//! How long commits have been retired, by a clock that nobody sets (pure).
//!
//! Counted from when this run of the service has seen them first: what clients read before it began is not known either. The
//! date of a retirement is not looked at, be it of the past or of the future.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::retire::Retired;

/// Retired commits, and since when each was seen.
#[derive(Debug, Default)]
pub(super) struct Waits(BTreeMap<Retired, Instant>);

impl Waits {
    /// Of all that are retired now, those that have been for so long. One that is among them no more, or was retired anew,
    /// waits from the beginning.
    pub(super) fn due(&mut self, all: Vec<Retired>, grace: Duration, now: Instant) -> Vec<Retired> {
        let mut before = std::mem::take(&mut self.0);
        for retired in all {
            let since = before.remove(&retired).unwrap_or(now);
            self.0.insert(retired, since);
        }
        let is_due = |since: &Instant| now.saturating_duration_since(*since) >= grace;
        self.0.iter().filter(|(_, since)| is_due(since)).map(|(retired, _)| retired.clone()).collect()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "there is no other way to get an instant")]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn a_commit_is_due_when_it_was_seen_for_so_long_whatever_its_date() {
        let (start, hour) = (Instant::now(), Duration::from_secs(3600));
        let retired = |commit: &str, days| Retired {
            profile: "lab".into(),
            commit: commit.into(),
            at: OffsetDateTime::UNIX_EPOCH + time::Duration::days(days),
        };
        let (past, future) = (retired("a", 0), retired("b", 365_000));
        let mut waits = Waits::default();
        let mut due = |all: &[&Retired], seconds| {
            let due = waits.due(all.iter().copied().cloned().collect(), hour, start + Duration::from_secs(seconds));
            due.into_iter().map(|retired| retired.commit).collect::<Vec<_>>()
        };
        assert_eq!(due(&[&past, &future], 0), [""; 0]);
        assert_eq!(due(&[&past, &future], 3599), [""; 0]);
        assert_eq!(due(&[&past, &future], 3600), ["a", "b"]);
        assert_eq!(due(&[&future], 3700), ["b"], "it could not be removed: the next time");
        // It was a release in the meantime, and is retired anew.
        assert_eq!(due(&[&past, &retired("b", 1)], 3800), [""; 0]);
        assert_eq!(due(&[&past, &retired("b", 1)], 7400), ["a", "b"]);
    }
}
