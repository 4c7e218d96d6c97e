//! Clusters and their history.

use nkd_api::cluster::ClusterEvent;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, conflict, from_millis, millis};
use crate::cluster::record::Record;

/// The newest so many events of a cluster are kept.
const EVENTS_PER_CLUSTER: i64 = 1000;

impl Store {
    /// Writes a cluster with what is said about it, all or nothing. `revision` is the one that was read; 0: it is new.
    pub async fn save_cluster(
        &self,
        record: &Record,
        revision: i64,
        said: &[String],
        cause: &str,
        now: OffsetDateTime,
    ) -> Result<i64, StoreError> {
        let (id, doc) = (record.id.to_string(), self.seal.encode("cluster", record)?);
        let mut tx = self.write.begin().await?;
        if revision == 0 {
            sqlx::query("INSERT INTO cluster (id, name, doc, revision) VALUES (?, ?, ?, 1)")
                .bind(&id)
                .bind(record.name())
                .bind(doc)
                .execute(&mut *tx)
                .await
                .map_err(|e| conflict(e, || format!("there is a cluster `{}` already", record.name())))?;
        } else {
            let done = sqlx::query("UPDATE cluster SET doc = ?, revision = revision + 1 WHERE id = ? AND revision = ?")
                .bind(doc)
                .bind(&id)
                .bind(revision)
                .execute(&mut *tx)
                .await?;
            if done.rows_affected() != 1 {
                return Err(StoreError::Stale);
            }
        }
        for message in said {
            sqlx::query("INSERT INTO cluster_event (cluster, at, message, cause) VALUES (?, ?, ?, ?)")
                .bind(&id)
                .bind(millis(now))
                .bind(message)
                .bind(cause)
                .execute(&mut *tx)
                .await?;
        }
        if !said.is_empty() {
            sqlx::query(
                "DELETE FROM cluster_event WHERE cluster = ?1 AND id NOT IN
                 (SELECT id FROM cluster_event WHERE cluster = ?1 ORDER BY id DESC LIMIT ?2)",
            )
            .bind(&id)
            .bind(EVENTS_PER_CLUSTER)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(revision + 1)
    }

    /// Removes a cluster with its history and everything under seal whose name begins with `secrets`.
    pub async fn delete_cluster(&self, id: Uuid, revision: i64, secrets: &str) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        let done = sqlx::query("DELETE FROM cluster WHERE id = ? AND revision = ?")
            .bind(id.to_string())
            .bind(revision)
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() != 1 {
            return Err(StoreError::Stale);
        }
        sqlx::query("DELETE FROM cluster_event WHERE cluster = ?").bind(id.to_string()).execute(&mut *tx).await?;
        sqlx::query("DELETE FROM secret WHERE substr(name, 1, length(?1)) = ?1")
            .bind(secrets)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// A cluster with its revision.
    pub async fn cluster(&self, id: Uuid) -> Result<Option<(Record, i64)>, StoreError> {
        let row = sqlx::query("SELECT doc, revision FROM cluster WHERE id = ?").bind(id.to_string());
        row.fetch_optional(&self.read).await?.as_ref().map(|row| self.cluster_row(row)).transpose()
    }

    /// A cluster by its name.
    pub async fn cluster_by_name(&self, name: &str) -> Result<Option<(Record, i64)>, StoreError> {
        let row = sqlx::query("SELECT doc, revision FROM cluster WHERE name = ?").bind(name);
        row.fetch_optional(&self.read).await?.as_ref().map(|row| self.cluster_row(row)).transpose()
    }

    /// All clusters, by name.
    pub async fn clusters(&self) -> Result<Vec<(Record, i64)>, StoreError> {
        self.clusters_by(&self.read).await
    }

    /// The same by this connection.
    pub(super) async fn clusters_by(
        &self,
        by: impl sqlx::SqliteExecutor<'_>,
    ) -> Result<Vec<(Record, i64)>, StoreError> {
        let rows = sqlx::query("SELECT doc, revision FROM cluster ORDER BY name").fetch_all(by).await?;
        rows.iter().map(|row| self.cluster_row(row)).collect()
    }

    /// The newest events of a cluster, oldest first.
    pub async fn cluster_events(&self, id: Uuid, limit: u32) -> Result<Vec<ClusterEvent>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM (SELECT id, at, message, cause FROM cluster_event WHERE cluster = ? ORDER BY id DESC LIMIT ?) ORDER BY id",
        )
        .bind(id.to_string())
        .bind(i64::from(limit))
        .fetch_all(&self.read)
        .await?;
        let event = |row: &SqliteRow| ClusterEvent {
            id: row.get(0),
            at: from_millis(row.get(1)),
            message: row.get(2),
            cause: row.get(3),
        };
        Ok(rows.iter().map(event).collect())
    }

    fn cluster_row(&self, row: &SqliteRow) -> Result<(Record, i64), StoreError> {
        Ok((self.seal.decode("cluster", row.get(0))?, row.get(1)))
    }
}
