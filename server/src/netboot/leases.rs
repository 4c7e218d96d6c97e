//! DHCP leases in the service's store.

use std::net::IpAddr;

use async_trait::async_trait;
use nkd_api::MacAddr;

use super::dhcp::{Lease, LeaseChange, LeaseState, LeaseStore, LeaseStoreError};
use crate::store::{Store, StoreError};

/// Leases over the store.
#[derive(Debug)]
pub struct Leases {
    store: Store,
}

impl Leases {
    /// Over this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

/// Who holds an address, or held it last.
pub async fn holder(store: &Store, ip: IpAddr) -> Result<Option<MacAddr>, StoreError> {
    let Some(document) = store.lease(ip).await? else { return Ok(None) };
    let lease: Option<Lease> = serde_json::from_str(&document).ok();
    Ok(lease.filter(|lease| lease.state != LeaseState::Declined).map(|lease| lease.mac))
}

#[async_trait]
impl LeaseStore for Leases {
    async fn load(&self) -> Result<Vec<Lease>, LeaseStoreError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| LeaseStoreError { action: "load leases", source };
        let documents = self.store.leases().await.map_err(|e| failed(e.into()))?;
        documents.iter().map(|d| serde_json::from_str(d).map_err(|e| failed(e.into()))).collect()
    }

    async fn save(&self, changes: &[LeaseChange]) -> Result<(), LeaseStoreError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| LeaseStoreError { action: "save leases", source };
        let mut rows = Vec::with_capacity(changes.len());
        for change in changes {
            rows.push(match change {
                LeaseChange::Put(lease) => {
                    (lease.ip.to_string(), Some(serde_json::to_string(lease).map_err(|e| failed(e.into()))?))
                }
                LeaseChange::Remove(ip) => (ip.to_string(), None),
            });
        }
        self.store.save_leases(&rows).await.map_err(|e| failed(e.into()))
    }
}
