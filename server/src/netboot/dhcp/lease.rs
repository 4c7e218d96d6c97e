//! Leases as they are kept, and where they are kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;

use async_trait::async_trait;
use nkd_api::MacAddr;
use serde::{Deserialize, Serialize};

/// One address and who has it. Keyed by `ip`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub ip: IpAddr,
    /// The machine that has it, or had it last.
    pub mac: MacAddr,
    /// Whether the machine may use it.
    pub state: LeaseState,
    /// When it was granted or last renewed, in Unix seconds.
    pub granted_at: u64,
    /// When the state ends, in Unix seconds.
    pub expires_at: u64,
    /// Host name that the machine sent (option 12).
    pub hostname: Option<String>,
}

/// State of a lease. An expired lease of any state is free; it is kept so that its machine gets the same address again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// The machine may use the address until it expires.
    Bound,
    /// The machine gave it back.
    Released,
    /// Somebody else was found at the address: not given to anyone until it expires.
    Declined,
}

/// What is to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseChange {
    /// Insert or replace the lease of this address.
    Put(Lease),
    /// Forget the lease of this address.
    Remove(IpAddr),
}

/// The store could not do it.
#[derive(Debug, thiserror::Error)]
#[error("the lease store failed to {action}")]
pub struct LeaseStoreError {
    /// `load leases` or `save leases`.
    pub action: &'static str,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Keeps leases over a crash.
#[async_trait]
pub trait LeaseStore: Send + Sync + 'static {
    /// All leases, in any order.
    async fn load(&self) -> Result<Vec<Lease>, LeaseStoreError>;

    /// Makes the changes durable, in order, all or none. Replies leave only after this returned `Ok`.
    async fn save(&self, changes: &[LeaseChange]) -> Result<(), LeaseStoreError>;
}

/// Keeps leases in memory, for tests and benchmarks.
#[derive(Debug, Default)]
pub struct MemoryLeaseStore {
    leases: Mutex<BTreeMap<IpAddr, Lease>>,
}

impl MemoryLeaseStore {
    /// The leases now, by address.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        self.locked().values().cloned().collect()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, Lease>> {
        self.leases.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[async_trait]
impl LeaseStore for MemoryLeaseStore {
    async fn load(&self) -> Result<Vec<Lease>, LeaseStoreError> {
        Ok(self.leases())
    }

    async fn save(&self, changes: &[LeaseChange]) -> Result<(), LeaseStoreError> {
        let mut leases = self.locked();
        for change in changes {
            match change {
                LeaseChange::Put(lease) => drop(leases.insert(lease.ip, lease.clone())),
                LeaseChange::Remove(ip) => drop(leases.remove(ip)),
            }
        }
        Ok(())
    }
}
