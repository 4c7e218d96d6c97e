//! How many transfers run, for whom, and on which worker. Pure but for a lock.
//!
//! A slot belongs to a client's address and port: a client that asks again from the same port replaces its transfer
//! and needs no second slot. Each address has a share of the slots, so that one machine cannot take them all.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The slots of one server.
#[derive(Debug)]
pub struct Admissions {
    max_total: usize,
    max_per_address: usize,
    table: Mutex<Table>,
}

/// The right to run one transfer; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    admissions: Arc<Admissions>,
    client: SocketAddr,
    worker: usize,
}

#[derive(Debug)]
struct Table {
    slots: HashMap<SocketAddr, Slot>,
    addresses: HashMap<IpAddr, usize>,
    workers: Vec<usize>,
}

#[derive(Debug)]
struct Slot {
    permits: usize,
    worker: usize,
}

impl Admissions {
    /// A table of `max_total` slots, `max_per_address` of them for each address, over `workers` workers.
    #[must_use]
    pub fn new(max_total: usize, max_per_address: usize, workers: usize) -> Arc<Self> {
        let table = Table { slots: HashMap::new(), addresses: HashMap::new(), workers: vec![0; workers.max(1)] };
        Arc::new(Self { max_total, max_per_address, table: Mutex::new(table) })
    }

    /// A slot for the client, on the worker that has the fewest or on the one that serves this client already. `None`
    /// if all slots, or all of this address, are taken.
    #[must_use]
    pub fn admit(self: &Arc<Self>, client: SocketAddr) -> Option<Permit> {
        let mut table = self.lock();
        let table = &mut *table;
        if let Some(slot) = table.slots.get_mut(&client) {
            slot.permits += 1;
            return Some(Permit { admissions: Arc::clone(self), client, worker: slot.worker });
        }
        let of_address = table.addresses.get(&client.ip()).copied().unwrap_or_default();
        if table.slots.len() >= self.max_total || of_address >= self.max_per_address {
            return None;
        }
        let (worker, load) = table.workers.iter_mut().enumerate().min_by_key(|(_, load)| **load)?;
        *load += 1;
        *table.addresses.entry(client.ip()).or_default() += 1;
        table.slots.insert(client, Slot { permits: 1, worker });
        Some(Permit { admissions: Arc::clone(self), client, worker })
    }

    /// How many slots are taken.
    #[must_use]
    pub fn active(&self) -> usize {
        self.lock().slots.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The worker that carries this client's transfers.
    #[must_use]
    pub fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut table = self.admissions.lock();
        let table = &mut *table;
        let Some(slot) = table.slots.get_mut(&self.client) else { return };
        slot.permits -= 1;
        if slot.permits > 0 {
            return;
        }
        table.slots.remove(&self.client);
        table.workers[self.worker] -= 1;
        if let Some(count) = table.addresses.get_mut(&self.client.ip()) {
            *count -= 1;
            if *count == 0 {
                table.addresses.remove(&self.client.ip());
            }
        }
    }
}
