//! One trace for each machine: a short identity that stands as `trace=` in every log line about it, from its first
//! DHCP packet on.
//!
//! A trace follows from the MAC address alone, so it is the same before there is a record, after a restart, and in
//! every part of the service. [`Traces`] knows which further MAC and which IP address belong to which machine.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use nkd_api::MacAddr;
use nkd_api::machine::Machine;
use sha2::{Digest, Sha256};

/// The trace of a machine: 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Trace([u8; 8]);

impl Trace {
    /// The trace of the machine that boots from this MAC address.
    #[must_use]
    pub fn of_mac(mac: MacAddr) -> Self {
        Self::of_bytes(&mac.0)
    }

    /// The trace of a record: that of its first MAC address, or of its identity while it has none.
    #[must_use]
    pub fn of(machine: &Machine) -> Self {
        machine.identity.macs.first().map_or_else(|| Self::of_bytes(machine.id.as_bytes()), |mac| Self::of_mac(*mac))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        let mut trace = [0; 8];
        trace.copy_from_slice(&digest[..8]);
        Self(trace)
    }
}

impl std::fmt::Display for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Entries of each kind; a full table is begun anew, and refills with the next packets.
const ENTRIES: usize = 65_536;

/// Which addresses belong to which machine, as far as seen since the start.
#[derive(Debug, Clone, Default)]
pub struct Traces(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    macs: HashMap<MacAddr, Trace>,
    addresses: HashMap<IpAddr, Trace>,
}

impl Traces {
    /// Remembers a machine's MAC addresses and where it speaks from.
    pub fn learn(&self, machine: &Machine) {
        let trace = Trace::of(machine);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for mac in machine.identity.macs.iter().skip(1) {
            put(&mut seen.macs, *mac, trace);
        }
        if let Some(address) = machine.address {
            put(&mut seen.addresses, address.to_canonical(), trace);
        }
    }

    /// Remembers that a MAC address has this IP address.
    pub fn learn_address(&self, mac: MacAddr, address: IpAddr) {
        let trace = self.of_mac(mac);
        put(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).addresses, address.to_canonical(), trace);
    }

    /// The trace of the machine with this MAC address.
    #[must_use]
    pub fn of_mac(&self, mac: MacAddr) -> Trace {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.macs.get(&mac).copied().unwrap_or_else(|| Trace::of_mac(mac))
    }

    /// The trace of the machine that speaks from this address, if one was seen there.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Option<Trace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).addresses.get(&address.to_canonical()).copied()
    }
}

fn put<K: std::hash::Hash + Eq>(table: &mut HashMap<K, Trace>, key: K, trace: Trace) {
    if table.len() >= ENTRIES && !table.contains_key(&key) {
        table.clear();
    }
    table.insert(key, trace);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::lifecycle::new_machine;
    use nkd_api::machine::Identity;

    #[test]
    fn every_address_of_a_machine_leads_to_one_trace() {
        let (first, second) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        let identity = Identity { macs: vec![first, second], ..Identity::default() };
        let mut machine = new_machine(uuid::Uuid::from_u128(1), identity, time::OffsetDateTime::UNIX_EPOCH);
        machine.address = Some("192.0.2.7".parse().unwrap());
        let traces = Traces::default();
        assert_ne!(traces.of_mac(first), traces.of_mac(second), "nothing is known yet");
        traces.learn(&machine);
        assert_eq!(traces.of_mac(second), Trace::of_mac(first));
        assert_eq!(traces.at("::ffff:192.0.2.7".parse().unwrap()), Some(Trace::of(&machine)));
        traces.learn_address(second, "192.0.2.8".parse().unwrap());
        assert_eq!(traces.at("192.0.2.8".parse().unwrap()), Some(Trace::of(&machine)));
        assert_eq!(Trace::of(&machine).to_string().len(), 16);
    }
}
