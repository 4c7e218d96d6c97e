//! One kind of request: at most one in flight, and a time for the next.
//!
//! A transient failure is tried again after 1 s, doubling to 30 s; a final one every 60 s, because an operator may act.
//! The waits differ by up to a quarter from machine to machine, so that a rack does not ask in step.

use std::time::Duration;

use super::Failure;

/// Longest wait after transient failures.
const TRANSIENT_CAP: Duration = Duration::from_secs(30);
/// Wait after a final refusal.
const FINAL_WAIT: Duration = Duration::from_secs(60);

/// Whether a request is due, and how often it failed in a row. Times are uptimes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lane {
    /// To be sent at this time.
    Due {
        /// When.
        at: Duration,
        /// Failures in a row.
        failures: u32,
    },
    /// Sent and not answered.
    Busy {
        /// When it was sent.
        since: Duration,
        /// Failures in a row before.
        failures: u32,
    },
}

impl Lane {
    /// A lane whose first request is due at `at`.
    #[must_use]
    pub fn at(at: Duration) -> Self {
        Self::Due { at, failures: 0 }
    }

    /// Takes the lane when it is due. True: the caller must send.
    pub fn take(&mut self, now: Duration) -> bool {
        match *self {
            Self::Due { at, failures } if at <= now => {
                *self = Self::Busy { since: now, failures };
                true
            }
            _ => false,
        }
    }

    /// True while a request is in flight.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }

    /// When the request in flight was sent.
    #[must_use]
    pub fn since(&self) -> Option<Duration> {
        match self {
            Self::Busy { since, .. } => Some(*since),
            Self::Due { .. } => None,
        }
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        match self {
            Self::Busy { failures, .. } | Self::Due { failures, .. } => *failures,
        }
    }

    /// The request in flight was answered; the next is due at `next`.
    pub fn succeeded(&mut self, next: Duration) {
        *self = Self::at(next);
    }

    /// The request in flight failed.
    pub fn failed(&mut self, now: Duration, failure: &Failure, jitter: u8) {
        let failures = self.failures().saturating_add(1);
        let wait = if failure.retry { backoff(failures, TRANSIENT_CAP) } else { FINAL_WAIT };
        *self = Self::Due { at: now + spread(wait, jitter), failures };
    }

    /// When the next request is due, unless one is in flight.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        match self {
            Self::Due { at, .. } => Some(*at),
            Self::Busy { .. } => None,
        }
    }
}

/// The wait after `failures` failures in a row: 1 s, doubling, at most `cap`.
#[must_use]
pub fn backoff(failures: u32, cap: Duration) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(16)).min(cap)
}

/// `wait` times 1 to 1.25, by machine.
#[must_use]
pub fn spread(wait: Duration, jitter: u8) -> Duration {
    wait + wait.mul_f64(f64::from(jitter) / f64::from(u8::MAX) / 4.0)
}
