//! The service's clock, as this process knows it.
//!
//! The machine's own clock may be years off, so nothing here reads it: what the service last said, plus the time that
//! the monotonic clock counted since. TLS, the renewal and every judgement of a date use this.
#![expect(clippy::disallowed_methods, reason = "the monotonic clock is read here")]

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

/// Both clocks of [`crate::state::Now`].
#[derive(Debug, Clone)]
pub struct Clock {
    /// Uptime when the process started, and the moment of that reading.
    start: (Duration, Instant),
    /// What the service said, and when.
    service: Arc<RwLock<Option<(Instant, OffsetDateTime)>>>,
}

impl Clock {
    /// A clock that knows the uptime and not yet the service's time.
    #[must_use]
    pub fn new(uptime: Duration) -> Self {
        Self { start: (uptime, Instant::now()), service: Arc::default() }
    }

    /// Since the kernel started.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.start.0 + self.start.1.elapsed()
    }

    /// The service's clock, once it said it.
    #[must_use]
    pub fn service(&self) -> Option<OffsetDateTime> {
        let anchor = *self.service.read().unwrap_or_else(PoisonError::into_inner);
        anchor.and_then(|(at, said)| said.checked_add(time::Duration::try_from(at.elapsed()).ok()?))
    }

    /// The service said its clock.
    pub fn set_service(&self, said: OffsetDateTime) {
        *self.service.write().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), said));
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.service().map_or(0, OffsetDateTime::unix_timestamp);
        Some(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
    }
}
