//! The leases of the right to restart.

use sqlx::Row;

use super::{Store, StoreError};
use crate::fleet::lock::Locks;

impl Store {
    /// All leases, those that have ended among them.
    pub async fn locks(&self) -> Result<Locks, StoreError> {
        let row = sqlx::query("SELECT doc FROM fleet_lock WHERE id = 1").fetch_optional(&self.read).await?;
        Ok(row.map(|row| self.seal.decode("fleet_lock", row.get(0))).transpose()?.unwrap_or_default())
    }

    /// Writes them; they are on the disk when this returns.
    pub async fn save_locks(&self, locks: &Locks) -> Result<(), StoreError> {
        let save = "INSERT INTO fleet_lock (id, doc) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc";
        sqlx::query(save).bind(self.seal.encode("fleet_lock", locks)?).execute(&self.write).await?;
        Ok(())
    }
}
