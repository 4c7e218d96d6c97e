//! Upgrades of clusters and their history.

use nkd_api::upgrade::Upgrade;
use sqlx::Row;
use tokio::sync::watch;
use uuid::Uuid;

use super::{Store, StoreError, conflict};
use crate::fleet::lock::Locks;

impl Store {
    /// The upgrades of a cluster, the newest first.
    pub async fn upgrades(&self, cluster: Uuid) -> Result<Vec<Upgrade>, StoreError> {
        let rows =
            sqlx::query("SELECT doc FROM upgrade WHERE cluster = ? ORDER BY number DESC").bind(cluster.to_string());
        let rows = rows.fetch_all(&self.read).await?;
        rows.iter().map(|row| self.seal.decode("upgrade", row.get(0))).collect()
    }

    /// The newest upgrade of a cluster, and the revision to save it with.
    pub async fn newest_upgrade(&self, cluster: Uuid) -> Result<Option<(Upgrade, i64)>, StoreError> {
        let row = sqlx::query("SELECT doc, revision FROM upgrade WHERE cluster = ? ORDER BY number DESC LIMIT 1");
        let row = row.bind(cluster.to_string()).fetch_optional(&self.read).await?;
        row.map(|row| Ok((self.seal.decode("upgrade", row.get(0))?, row.get(1)))).transpose()
    }

    /// The upgrades of all clusters that have not come to their end.
    pub async fn upgrades_under_way(&self) -> Result<Vec<Upgrade>, StoreError> {
        self.under_way(&self.read).await
    }

    /// The same by this connection.
    pub(super) async fn under_way(&self, by: impl sqlx::SqliteExecutor<'_>) -> Result<Vec<Upgrade>, StoreError> {
        let newest =
            "SELECT doc FROM upgrade AS u WHERE number = (SELECT max(number) FROM upgrade WHERE cluster = u.cluster)";
        let rows = sqlx::query(newest).fetch_all(by).await?;
        let upgrades = rows.iter().map(|row| self.seal.decode::<Upgrade>("upgrade", row.get(0)));
        upgrades.filter(|upgrade| !matches!(upgrade, Ok(upgrade) if upgrade.state.is_end())).collect()
    }

    /// Writes a new upgrade of a cluster to a release of a channel. Both are as they were read with these revisions: no member
    /// was removed, and no release retired or marked since. Nor is there a lease of the right to restart that it must not
    /// begin beside, as `free` has it. Otherwise [`StoreError::Stale`].
    pub async fn begin_upgrade(
        &self,
        (cluster, members): (Uuid, i64),
        upgrade: &Upgrade,
        (channel, revision): (&str, i64),
        free: impl FnOnce(&Locks) -> bool + Send,
    ) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        let same = sqlx::query("SELECT 1 FROM cluster WHERE id = ? AND revision = ?").bind(cluster.to_string());
        if same.bind(members).fetch_optional(&mut *tx).await?.is_none() {
            return Err(StoreError::Stale);
        }
        let same = sqlx::query("SELECT 1 FROM channel WHERE name = ? AND revision = ?").bind(channel).bind(revision);
        if same.fetch_optional(&mut *tx).await?.is_none() {
            return Err(StoreError::Stale);
        }
        if !free(&self.locks_by(&mut *tx).await?) {
            return Err(StoreError::Stale);
        }
        let insert = sqlx::query("INSERT INTO upgrade (cluster, number, doc, revision) VALUES (?, ?, ?, 1)");
        let insert = insert.bind(cluster.to_string()).bind(i64::from(upgrade.number));
        let done = insert.bind(self.seal.encode("upgrade", upgrade)?).execute(&mut *tx).await;
        done.map_err(|error| conflict(error, || "another upgrade has begun in this moment".to_owned()))?;
        tx.commit().await?;
        self.upgrades.send_replace(());
        Ok(())
    }

    /// Hears whenever an upgrade of any cluster was written.
    #[must_use]
    pub fn upgrade_changes(&self) -> watch::Receiver<()> {
        self.upgrades.subscribe()
    }

    /// Writes an upgrade that has begun. `revision` is the one that was read.
    pub async fn save_upgrade(&self, cluster: Uuid, upgrade: &Upgrade, revision: i64) -> Result<i64, StoreError> {
        let (id, number) = (cluster.to_string(), i64::from(upgrade.number));
        let doc = self.seal.encode("upgrade", upgrade)?;
        let update =
            "UPDATE upgrade SET doc = ?, revision = revision + 1 WHERE cluster = ? AND number = ? AND revision = ?";
        let done = sqlx::query(update).bind(doc).bind(id).bind(number).bind(revision).execute(&self.write).await?;
        if done.rows_affected() != 1 {
            return Err(StoreError::Stale);
        }
        self.upgrades.send_replace(());
        Ok(revision + 1)
    }
}
