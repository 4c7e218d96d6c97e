//! Who may restart, as it is kept: every decision is on the disk before it is told.

use nkd_api::lock::Lease;
use time::OffsetDateTime;
use tokio::sync::Mutex;

use super::lock::{Locks, Refused, Rules};
use crate::store::{Store, StoreError};

/// The leases of a service.
#[derive(Debug)]
pub struct Reboots {
    store: Store,
    rules: Rules,
    /// One at a time decides.
    deciding: Mutex<()>,
}

impl Reboots {
    /// Of a service.
    #[must_use]
    pub fn new(store: Store, rules: Rules) -> Self {
        Self { store, rules, deciding: Mutex::new(()) }
    }

    /// A node asks for a lease.
    ///
    /// # Errors
    /// [`StoreError`]; inside, why it gets none.
    pub async fn lock(&self, group: &str, id: &str, now: OffsetDateTime) -> Result<Result<Lease, Refused>, StoreError> {
        self.change(|locks| locks.lock(group, id, &self.rules, now)).await
    }

    /// A lease ends. False: there was none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unlock(&self, group: &str, id: &str) -> Result<bool, StoreError> {
        self.change(|locks| locks.unlock(group, id)).await
    }

    /// The leases that last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, now: OffsetDateTime) -> Result<Vec<Lease>, StoreError> {
        Ok(self.store.locks().await?.lasting(now).cloned().collect())
    }

    async fn change<T>(&self, decide: impl FnOnce(&mut Locks) -> T) -> Result<T, StoreError> {
        let _deciding = self.deciding.lock().await;
        let before = self.store.locks().await?;
        let mut locks = before.clone();
        let decided = decide(&mut locks);
        if locks != before {
            self.store.save_locks(&locks).await?;
        }
        Ok(decided)
    }
}
