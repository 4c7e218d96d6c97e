//! When a worker looks again for a packet before it sleeps. Pure.
//!
//! Sleep and wake-up cost more than a whole block: on a virtual machine tens of microseconds, paid in part by whoever
//! sends the packet that wakes. In lock-step at the speed of a fast network the answer comes sooner than that. So a
//! worker looks for a short time first, as long as that pays: looking in vain uses up credit, and without credit only
//! one round in [`PROBE_EVERY`] tries again whether the network has become quick.

use std::time::Duration;

/// How long to look for a packet.
pub const LOOK: Duration = Duration::from_micros(60);
/// The most credit: looks in vain in a row before looking stops.
const MAX_CREDIT: u32 = 16;
/// What a found packet earns.
const EARNED: u32 = 2;
/// Without credit, how many rounds pass from look to look.
const PROBE_EVERY: u32 = 64;

/// The memory of what looking brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin {
    credit: u32,
    passed: u32,
}

impl Spin {
    /// Whether to look this time.
    pub fn worthwhile(&mut self) -> bool {
        if self.credit > 0 {
            return true;
        }
        self.passed = (self.passed + 1) % PROBE_EVERY;
        self.passed == 0
    }

    /// Tells what came of a look.
    pub fn looked(&mut self, found: bool) {
        self.credit = if found { (self.credit + EARNED).min(MAX_CREDIT) } else { self.credit.saturating_sub(1) };
    }
}
