//! The addresses of one subnet: who holds which, and which is given next.
//!
//! ```text
//!  free ──offer──▶ Offered ──bind──▶ Bound ──release──▶ Released ┐
//!                     │                │                         ├─ expired ─▶ free (remembered for its machine)
//!                     └───── decline, conflict ─────▶ Declined ──┘
//! ```
//!
//! Never-used addresses are given first, in order, then those that have been free for longest. An allocation costs
//! O(log n), also when the pool is nearly full.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use nkd_api::MacAddr;

use super::config::InterfaceConfig;
use super::lease::{Lease, LeaseChange, LeaseState};

/// Use of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// Offered, not yet taken; not durable.
    Offered,
    /// As in the durable lease.
    Kept(LeaseState),
}

/// One address and its latest holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The holder.
    pub mac: MacAddr,
    /// What it is used for.
    pub usage: Use,
    /// When it was granted, in Unix seconds.
    pub granted_at: u64,
    /// When the use ends, in Unix seconds.
    pub expires_at: u64,
    /// Host name that the holder sent.
    pub hostname: Option<String>,
}

impl Entry {
    /// True while nobody else may get the address.
    #[must_use]
    pub fn holds(&self, now: u64) -> bool {
        self.expires_at > now && self.usage != Use::Kept(LeaseState::Released)
    }

    /// True while `mac` may use the address, or take up its offer.
    #[must_use]
    pub fn is_held_by(&self, mac: MacAddr, now: u64) -> bool {
        self.mac == mac && self.holds(now) && self.usage != Use::Kept(LeaseState::Declined)
    }
}

/// How the addresses are used now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Addresses of the pool, without our own and the router's.
    pub size: u64,
    /// Unexpired leases, reserved addresses included.
    pub bound: u64,
    /// Unexpired offers.
    pub offered: u64,
    /// Addresses in quarantine.
    pub declined: u64,
}

/// The addresses of one subnet.
#[derive(Debug)]
pub struct Pool {
    range: Option<RangeInclusive<u32>>,
    excluded: HashSet<Ipv4Addr>,
    entries: HashMap<Ipv4Addr, Entry>,
    by_mac: HashMap<MacAddr, Ipv4Addr>,
    /// All entries by the end of their use.
    by_expiry: BTreeSet<(u64, Ipv4Addr)>,
    /// Addresses from here on have never been given; none when there are no more.
    unused_from: Option<u32>,
}

impl Pool {
    /// An empty pool. Our own address, the router's, the network's and the broadcast address are never given.
    #[must_use]
    pub fn new(config: &InterfaceConfig) -> Self {
        let mut excluded = HashSet::from([config.server_ip]);
        excluded.extend(config.gateway);
        if config.subnet.prefix_len() < 31 {
            excluded.extend([config.subnet.network(), config.subnet.broadcast()]);
        }
        let range = config.pool.as_ref().map(|pool| u32::from(*pool.start())..=u32::from(*pool.end()));
        Self {
            unused_from: range.as_ref().map(|range| *range.start()),
            range,
            excluded,
            entries: HashMap::new(),
            by_mac: HashMap::new(),
            by_expiry: BTreeSet::new(),
        }
    }

    /// Puts a durable lease back.
    pub fn restore(&mut self, ip: Ipv4Addr, lease: Lease) {
        let Lease { mac, state, granted_at, expires_at, hostname, .. } = lease;
        self.put(ip, Entry { mac, usage: Use::Kept(state), granted_at, expires_at, hostname });
    }

    /// Looks for free addresses from the start again, after reservations have changed.
    pub fn rescan(&mut self) {
        self.unused_from = self.range.as_ref().map(|range| *range.start());
    }

    /// The latest holder of an address.
    #[must_use]
    pub fn entry(&self, ip: Ipv4Addr) -> Option<&Entry> {
        self.entries.get(&ip)
    }

    /// The address that a machine holds or held last.
    #[must_use]
    pub fn address_of(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).copied()
    }

    /// True for addresses that the pool may give to any machine.
    #[must_use]
    pub fn is_dynamic(&self, ip: Ipv4Addr) -> bool {
        self.range.as_ref().is_some_and(|range| range.contains(&u32::from(ip))) && !self.excluded.contains(&ip)
    }

    /// True when nobody but `mac` holds the address.
    #[must_use]
    pub fn is_free_for(&self, ip: Ipv4Addr, mac: MacAddr, now: u64) -> bool {
        self.entries.get(&ip).is_none_or(|entry| !entry.holds(now) || entry.is_held_by(mac, now))
    }

    /// An address that nobody holds and that is not `reserved`; none when the pool is exhausted.
    pub fn free_address(&mut self, reserved: impl Fn(Ipv4Addr) -> bool, now: u64) -> Option<Ipv4Addr> {
        let end = self.range.as_ref().map(|range| *range.end());
        while let (Some(candidate), Some(end)) = (self.unused_from, end) {
            let ip = Ipv4Addr::from(candidate);
            if !self.entries.contains_key(&ip) && !self.excluded.contains(&ip) && !reserved(ip) {
                return Some(ip);
            }
            self.unused_from = candidate.checked_add(1).filter(|next| *next <= end);
        }
        let ended = self.by_expiry.iter().take_while(|(expires_at, _)| *expires_at <= now);
        ended.map(|(_, ip)| *ip).find(|ip| self.is_dynamic(*ip) && !reserved(*ip))
    }

    /// Holds the address for a machine that has not taken it yet.
    pub fn offer(&mut self, ip: Ipv4Addr, mac: MacAddr, now: u64, expires_at: u64) {
        self.put(ip, Entry { mac, usage: Use::Offered, granted_at: now, expires_at, hostname: None });
    }

    /// Gives the address to the machine, and takes back any other one it had in this subnet.
    pub fn bind(
        &mut self,
        ip: Ipv4Addr,
        mac: MacAddr,
        hostname: Option<String>,
        now: u64,
        until: u64,
    ) -> Vec<LeaseChange> {
        let mut changes = Vec::with_capacity(1);
        if let Some(former) = self.address_of(mac).filter(|former| *former != ip)
            && let Some(entry) = self.remove(former)
        {
            // Also when it was only offered: an older lease of it may be kept.
            changes.push(LeaseChange::Remove(former.into()));
            // Free, and found again by `free_address`.
            self.put(former, Entry { usage: Use::Kept(LeaseState::Released), expires_at: now, ..entry });
        }
        let entry = Entry { mac, usage: Use::Kept(LeaseState::Bound), granted_at: now, expires_at: until, hostname };
        changes.push(self.keep(ip, LeaseState::Bound, entry));
        changes
    }

    /// Takes the address back from its holder.
    pub fn release(&mut self, ip: Ipv4Addr, now: u64) -> Option<LeaseChange> {
        let entry = Entry { expires_at: now, ..self.entries.get(&ip)?.clone() };
        Some(self.keep(ip, LeaseState::Released, entry))
    }

    /// Forgets an offer that was turned down.
    pub fn withdraw_offer(&mut self, ip: Ipv4Addr, now: u64) {
        if let Some(entry) = self.entries.get(&ip).filter(|entry| entry.usage == Use::Offered).cloned() {
            self.put(ip, Entry { expires_at: now, ..entry });
        }
    }

    /// Keeps the address from everybody: somebody else was found at it.
    pub fn quarantine(&mut self, ip: Ipv4Addr, mac: MacAddr, now: u64, until: u64) -> LeaseChange {
        let usage = Use::Kept(LeaseState::Declined);
        self.keep(ip, LeaseState::Declined, Entry { mac, usage, granted_at: now, expires_at: until, hostname: None })
    }

    /// Counts the addresses.
    #[must_use]
    pub fn usage(&self, now: u64) -> Usage {
        let mut usage = Usage::default();
        if let Some(range) = &self.range {
            let ours = self.excluded.iter().filter(|ip| range.contains(&u32::from(**ip))).count() as u64;
            usage.size = u64::from(range.end() - range.start()) + 1 - ours;
        }
        for entry in self.entries.values().filter(|entry| entry.holds(now)) {
            match entry.usage {
                Use::Offered => usage.offered += 1,
                Use::Kept(LeaseState::Declined) => usage.declined += 1,
                Use::Kept(_) => usage.bound += 1,
            }
        }
        usage
    }

    fn keep(&mut self, ip: Ipv4Addr, state: LeaseState, entry: Entry) -> LeaseChange {
        let entry = Entry { usage: Use::Kept(state), ..entry };
        let Entry { mac, granted_at, expires_at, hostname, .. } = entry.clone();
        self.put(ip, entry);
        LeaseChange::Put(Lease { ip: IpAddr::V4(ip), mac, state, granted_at, expires_at, hostname })
    }

    fn put(&mut self, ip: Ipv4Addr, entry: Entry) {
        self.remove(ip);
        self.by_expiry.insert((entry.expires_at, ip));
        if entry.usage != Use::Kept(LeaseState::Declined) {
            self.by_mac.insert(entry.mac, ip);
        }
        self.entries.insert(ip, entry);
    }

    fn remove(&mut self, ip: Ipv4Addr) -> Option<Entry> {
        let entry = self.entries.remove(&ip)?;
        self.by_expiry.remove(&(entry.expires_at, ip));
        if self.by_mac.get(&entry.mac) == Some(&ip) {
            self.by_mac.remove(&entry.mac);
        }
        Some(entry)
    }
}
