//! The leases of the right to restart.

use nkd_api::upgrade::Upgrade;
use sqlx::Row;

use super::{Store, StoreError};
use crate::fleet::lock::{Locks, Rollout};

impl Store {
    /// All leases, those that have ended among them.
    pub async fn locks(&self) -> Result<Locks, StoreError> {
        self.locks_by(&self.read).await
    }

    /// Writes them; they are on the disk when this returns. `seen`: one of them is new, and these are the upgrades that it
    /// was held against; [`StoreError::Stale`] when another one has begun since.
    pub async fn save_locks(&self, locks: &Locks, seen: Option<&[Rollout]>) -> Result<(), StoreError> {
        let doc = self.seal.encode("fleet_lock", locks)?;
        let mut tx = self.write.begin().await?;
        if let Some(seen) = seen {
            let under_way = self.under_way(&mut *tx).await?;
            let is_seen = |upgrade: &Upgrade| {
                seen.iter().any(|seen| (&seen.cluster, seen.number) == (&upgrade.cluster, upgrade.number))
            };
            if !under_way.iter().all(is_seen) {
                return Err(StoreError::Stale);
            }
        }
        let save = "INSERT INTO fleet_lock (id, doc) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc";
        sqlx::query(save).bind(doc).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// All leases by this connection.
    pub(super) async fn locks_by(&self, by: impl sqlx::SqliteExecutor<'_>) -> Result<Locks, StoreError> {
        let row = sqlx::query("SELECT doc FROM fleet_lock WHERE id = 1").fetch_optional(by).await?;
        Ok(row.map(|row| self.seal.decode("fleet_lock", row.get(0))).transpose()?.unwrap_or_default())
    }
}
