//! Channels and their releases.

use nkd_api::channel::Channel;
use sqlx::Row;

use super::{Store, StoreError, conflict};

impl Store {
    /// All channels by name.
    pub async fn channels(&self) -> Result<Vec<Channel>, StoreError> {
        let rows = sqlx::query("SELECT doc FROM channel ORDER BY name").fetch_all(&self.read).await?;
        rows.iter().map(|row| self.seal.decode("channel", row.get(0))).collect()
    }

    /// The channel of this name, and the revision to save it with.
    pub async fn channel(&self, name: &str) -> Result<Option<(Channel, i64)>, StoreError> {
        let row = sqlx::query("SELECT doc, revision FROM channel WHERE name = ?").bind(name);
        let row = row.fetch_optional(&self.read).await?;
        row.map(|row| Ok((self.seal.decode("channel", row.get(0))?, row.get(1)))).transpose()
    }

    /// Writes a channel. `revision` is the one that was read; 0: it is new.
    pub async fn save_channel(&self, channel: &Channel, revision: i64) -> Result<(), StoreError> {
        let doc = self.seal.encode("channel", channel)?;
        if revision == 0 {
            let insert = sqlx::query("INSERT INTO channel (name, doc, revision) VALUES (?, ?, 1)");
            let done = insert.bind(&channel.name).bind(doc).execute(&self.write).await;
            done.map_err(|error| conflict(error, || format!("there is a channel `{}` already", channel.name)))?;
            return Ok(());
        }
        let update = "UPDATE channel SET doc = ?, revision = revision + 1 WHERE name = ? AND revision = ?";
        let done = sqlx::query(update).bind(doc).bind(&channel.name).bind(revision).execute(&self.write).await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale) }
    }
}
