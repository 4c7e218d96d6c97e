//! Reports on their way out, in order.
//!
//! A newer heartbeat, progress, facts or certificates report takes the place of the older one that still waits; what happened to the
//! disk (`Installed`, `Wiped`, `Failed`) waits until the service has it.

use std::collections::VecDeque;
use std::time::Duration;

use nkd_api::agent::ReportEvent;

use super::Failure;
use super::lane::Lane;

/// The queue and its lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbox {
    queue: VecDeque<(u64, ReportEvent)>,
    next: u64,
    lane: Lane,
}

impl Outbox {
    /// An empty queue.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { queue: VecDeque::new(), next: 0, lane: Lane::at(now) }
    }

    /// Adds a report, in place of a waiting one that it makes pointless.
    pub fn push(&mut self, event: ReportEvent) {
        let in_flight = usize::from(self.lane.is_busy());
        let place = self.queue.iter().skip(in_flight).position(|(_, waiting)| replaces(&event, waiting));
        if let Some(place) = place {
            self.queue.remove(place + in_flight);
        }
        self.queue.push_back((self.next, event));
        self.next += 1;
    }

    /// The report to send now, with its number; the number stays the same when it is sent again.
    pub fn take(&mut self, now: Duration) -> Option<(u64, ReportEvent)> {
        if self.queue.is_empty() || !self.lane.take(now) {
            return None;
        }
        self.queue.front().cloned()
    }

    /// The service has report `number`. None when it is not the one in flight.
    pub fn acknowledged(&mut self, number: u64, now: Duration) -> Option<ReportEvent> {
        if !self.lane.is_busy() || self.queue.front().is_none_or(|(n, _)| *n != number) {
            return None;
        }
        self.lane.succeeded(now);
        self.queue.pop_front().map(|(_, event)| event)
    }

    /// The report in flight failed. One that the service refuses and that does not matter is dropped.
    pub fn failed(&mut self, number: u64, now: Duration, failure: &Failure, jitter: u8) {
        let Some((sent, event)) = self.queue.front() else {
            return;
        };
        if !self.lane.is_busy() || *sent != number {
            return;
        }
        let matters =
            matches!(event, ReportEvent::Installed { .. } | ReportEvent::Failed { .. } | ReportEvent::Wiped { .. });
        self.lane.failed(now, failure, jitter);
        if !failure.retry && !matters {
            self.queue.pop_front();
        }
    }

    /// When the next report is due, if any waits.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        if self.queue.is_empty() { None } else { self.lane.due() }
    }
}

/// True when `new` says all that `old` said.
fn replaces(new: &ReportEvent, old: &ReportEvent) -> bool {
    use ReportEvent::{Certificates, Facts, Heartbeat, InstallProgress};
    matches!(
        (new, old),
        (Heartbeat { .. }, Heartbeat { .. })
            | (InstallProgress { .. }, InstallProgress { .. })
            | (Facts { .. }, Facts { .. })
            | (Certificates { .. }, Certificates { .. })
    )
}
