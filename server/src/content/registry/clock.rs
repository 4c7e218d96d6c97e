//! Whether somebody has set the clock (pure: both clocks are arguments).
//!
//! How old something of the registry is stands in the database as a date, and every run of the service goes on by it. A date
//! that was written down before the clock was set is put right when that is seen: beside a clock that nobody sets, it is.

use std::time::Instant;

use time::{Duration, OffsetDateTime};

/// What a clock may go wrong by itself between two looks.
const TOLERANCE: Duration = Duration::seconds(30);

/// A date, and the time of the steady clock then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    date: OffsetDateTime,
    at: Instant,
}

/// How the clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// To an earlier date, or by another run of the service, so that nobody knows: dates may lie ahead.
    Back,
    /// Dates are older by so much than what they stand for.
    Forward(Duration),
}

impl Look {
    /// Of now.
    pub(super) fn new(date: OffsetDateTime, at: Instant) -> Self {
        Self { date, at }
    }

    /// How the clock was set between a look and this one. None: it was not.
    pub(super) fn since(self, before: Option<Self>) -> Option<Set> {
        let Some(before) = before else { return Some(Set::Back) };
        // Another look was taken in between.
        let passed = self.at.checked_duration_since(before.at)?;
        let ahead = self.date - before.date - Duration::try_from(passed).ok()?;
        match () {
            () if ahead >= TOLERANCE => Some(Set::Forward(ahead)),
            () if ahead <= -TOLERANCE => Some(Set::Back),
            () => None,
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "there is no other way to get an instant")]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_from_one_that_goes_on() {
        let (start, date) = (Instant::now(), OffsetDateTime::UNIX_EPOCH + Duration::days(20_000));
        let look = |minutes, seconds| Look::new(date + Duration::minutes(minutes), start + Duration::seconds(seconds));
        let first = look(0, 0);
        assert_eq!(first.since(None), Some(Set::Back));
        assert_eq!(look(60, 3600).since(Some(first)), None);
        assert_eq!(look(60, 3590).since(Some(first)), None);
        assert_eq!(look(180, 3600).since(Some(first)), Some(Set::Forward(Duration::hours(2))));
        assert_eq!(look(-60, 60).since(Some(first)), Some(Set::Back));
        assert_eq!(first.since(Some(look(180, 3600))), None, "that one is newer");
    }
}
