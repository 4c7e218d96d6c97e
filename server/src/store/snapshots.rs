//! Snapshots of etcd, as far as they have come.

use nkd_api::snapshot::EtcdSnapshot;
use sqlx::Row;
use uuid::Uuid;

use super::{Store, StoreError, millis};

impl Store {
    /// The snapshots of a cluster, the one that was written down last first: dates are those of a clock that may have been
    /// set.
    pub async fn snapshots(&self, cluster: Uuid) -> Result<Vec<EtcdSnapshot>, StoreError> {
        let rows = sqlx::query("SELECT doc FROM etcd_snapshot WHERE cluster = ? ORDER BY rowid DESC");
        let rows = rows.bind(cluster.to_string()).fetch_all(&self.read).await?;
        rows.iter().map(|row| self.seal.decode("snapshot", row.get(0))).collect()
    }

    /// The snapshots of all clusters, each with the cluster's identity.
    pub async fn all_snapshots(&self) -> Result<Vec<(Uuid, EtcdSnapshot)>, StoreError> {
        let rows = sqlx::query("SELECT cluster, doc FROM etcd_snapshot").fetch_all(&self.read).await?;
        let known = rows.iter().filter_map(|row| Some((row.get::<&str, _>(0).parse().ok()?, row.get(1))));
        known.map(|(cluster, doc)| Ok((cluster, self.seal.decode("snapshot", doc)?))).collect()
    }

    /// Writes a new one down.
    pub async fn add_snapshot(&self, cluster: Uuid, snapshot: &EtcdSnapshot) -> Result<(), StoreError> {
        let doc = self.seal.encode("snapshot", snapshot)?;
        let insert = sqlx::query("INSERT INTO etcd_snapshot (id, cluster, ordered_at, doc) VALUES (?, ?, ?, ?)");
        let insert = insert.bind(snapshot.id.to_string()).bind(cluster.to_string()).bind(millis(snapshot.ordered_at));
        insert.bind(doc).execute(&self.write).await?;
        Ok(())
    }

    /// Writes down how far one has come that is under way. False: it has ended already, and stays as it is.
    pub async fn change_snapshot(&self, snapshot: &EtcdSnapshot) -> Result<bool, StoreError> {
        let doc = self.seal.encode("snapshot", snapshot)?;
        let update =
            "UPDATE etcd_snapshot SET doc = ? WHERE id = ? AND json_extract(doc, '$.state') = 'taking' RETURNING id";
        let done = sqlx::query(update).bind(doc).bind(snapshot.id.to_string()).fetch_optional(&self.write).await?;
        Ok(done.is_some())
    }

    /// Forgets one.
    pub async fn delete_snapshot(&self, id: Uuid) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM etcd_snapshot WHERE id = ?").bind(id.to_string()).execute(&self.write).await?;
        Ok(())
    }
}
