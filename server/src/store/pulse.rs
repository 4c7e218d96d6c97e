//! Signs of life between two writes of a machine's record: a thousand nodes that have nothing else to say cost no flush of
//! the disk each. What is lost with the service is when a machine was heard last, by five minutes at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nkd_api::machine::Machine;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// A sign of life is written down when the last one that was is older than this.
const WRITE: Duration = Duration::minutes(5);

#[derive(Debug, Clone, Default)]
pub(super) struct Pulses(Arc<Mutex<HashMap<Uuid, Pulse>>>);

#[derive(Debug, Clone, Copy)]
struct Pulse {
    written: OffsetDateTime,
    heard: OffsetDateTime,
}

impl Pulses {
    /// Takes note of a sign of life. False when it has to be written down.
    pub(super) fn hear(&self, machine: Uuid, now: OffsetDateTime) -> bool {
        let mut all = self.all();
        let Some(pulse) = all.get_mut(&machine) else { return false };
        // A clock that was put back must not keep it from the disk for years.
        let recent = pulse.written <= now && now - pulse.written < WRITE;
        if recent {
            pulse.heard = pulse.heard.max(now);
        }
        recent
    }

    /// A record was written.
    pub(super) fn wrote(&self, machine: &Machine) {
        let pulse = Pulse { written: machine.last_seen, heard: machine.last_seen };
        self.all().insert(machine.id, pulse);
    }

    /// A record is gone.
    pub(super) fn forget(&self, machine: Uuid) {
        self.all().remove(&machine);
    }

    /// Drops what is older than the records that were dropped.
    pub(super) fn forget_before(&self, time: OffsetDateTime) {
        self.all().retain(|_, pulse| pulse.heard >= time);
    }

    /// Adds what was heard since to a record as it was read.
    pub(super) fn add_to(&self, machine: &mut Machine) {
        if let Some(pulse) = self.all().get(&machine.id) {
            machine.last_seen = machine.last_seen.max(pulse.heard);
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Uuid, Pulse>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
