//! Channels and their releases.

use nkd_api::channel::Channel;
use nkd_api::user::AuditEntry;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row, Sqlite, SqliteExecutor};
use time::OffsetDateTime;

use super::{Store, StoreError, conflict, from_millis, millis};
use crate::content::channel::hold::{Hold, holds};
use crate::content::channel::retire::Retired;
use crate::content::channel::{Polled, mirror};

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

    /// Writes a channel, and which numbers its releases have. `revision` is the one that was read; 0: it is new.
    pub async fn save_channel(&self, channel: &Channel, revision: i64) -> Result<(), StoreError> {
        let doc = self.seal.encode("channel", channel)?;
        let mut tx = self.write.begin().await?;
        if revision == 0 {
            // No channel has had it, not one of this name that was deleted either: whoever read that one is not to take this
            // one for it.
            let insert = sqlx::query("INSERT INTO channel (name, doc, revision) VALUES (?, ?, abs(random() / 4) + 1)");
            let done = insert.bind(&channel.name).bind(doc).execute(&mut *tx).await;
            done.map_err(|error| conflict(error, || format!("there is a channel `{}` already", channel.name)))?;
        } else {
            let update = "UPDATE channel SET doc = ?, revision = revision + 1 WHERE name = ? AND revision = ?";
            let done = sqlx::query(update).bind(doc).bind(&channel.name).bind(revision).execute(&mut *tx).await?;
            if done.rows_affected() != 1 {
                return Err(StoreError::Stale);
            }
        }
        let given = "INSERT INTO channel_number (name, last) VALUES (?, ?)
             ON CONFLICT (name) DO UPDATE SET last = max(last, excluded.last)";
        let newest = channel.releases.iter().map(|release| release.number).max().unwrap_or(0);
        sqlx::query(given).bind(&channel.name).bind(newest).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The number of a channel's next release: one that no release of a channel of this name has had.
    pub async fn next_release(&self, name: &str) -> Result<u32, StoreError> {
        let select = sqlx::query_scalar("SELECT last FROM channel_number WHERE name = ?").bind(name);
        let last: Option<u32> = select.fetch_optional(&self.read).await?;
        Ok(last.unwrap_or(0) + 1)
    }

    /// A release of a channel of this name has had this number.
    pub async fn keep_number(&self, name: &str, number: u32) -> Result<(), StoreError> {
        let insert = "INSERT INTO channel_number (name, last) VALUES (?, ?)
             ON CONFLICT (name) DO UPDATE SET last = max(last, excluded.last)";
        sqlx::query(insert).bind(name).bind(number).execute(&self.write).await?;
        Ok(())
    }

    /// All mirrors by channel, each with the revision to save it with.
    pub async fn mirrors(&self) -> Result<Vec<(mirror::Record, i64)>, StoreError> {
        let rows = sqlx::query("SELECT doc, revision FROM channel_mirror ORDER BY name").fetch_all(&self.read).await?;
        rows.iter().map(|row| Ok((self.seal.decode("channel_mirror", row.get(0))?, row.get(1)))).collect()
    }

    /// The mirror of a channel.
    pub async fn mirror(&self, name: &str) -> Result<Option<(mirror::Record, i64)>, StoreError> {
        self.mirror_by(name, &self.read).await
    }

    /// The same by this connection.
    async fn mirror_by(
        &self,
        name: &str,
        by: impl SqliteExecutor<'_>,
    ) -> Result<Option<(mirror::Record, i64)>, StoreError> {
        let row = sqlx::query("SELECT doc, revision FROM channel_mirror WHERE name = ?").bind(name);
        let row = row.fetch_optional(by).await?;
        row.map(|row| Ok((self.seal.decode("channel_mirror", row.get(0))?, row.get(1)))).transpose()
    }

    /// Writes a mirror. `revision` is the one that was read; 0: it is new.
    pub async fn save_mirror(&self, record: &mirror::Record, revision: i64) -> Result<(), StoreError> {
        let (name, doc) = (&record.mirror.channel, self.seal.encode("channel_mirror", record)?);
        if revision == 0 {
            let insert = sqlx::query("INSERT INTO channel_mirror (name, doc, revision) VALUES (?, ?, 1)");
            let done = insert.bind(name).bind(doc).execute(&self.write).await;
            done.map_err(|error| conflict(error, || format!("the channel `{name}` follows an upstream already")))?;
            return Ok(());
        }
        let update = "UPDATE channel_mirror SET doc = ?, revision = revision + 1 WHERE name = ? AND revision = ?";
        let done = sqlx::query(update).bind(doc).bind(name).bind(revision).execute(&self.write).await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Stale) }
    }

    /// Forgets a mirror.
    pub async fn remove_mirror(&self, name: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM channel_mirror WHERE name = ?").bind(name).execute(&self.write).await?;
        Ok(())
    }

    /// Takes releases off a channel, all in one: the channel as it is then, their commits as retired, the audit trail.
    pub async fn retire(
        &self,
        channel: &Channel,
        revision: i64,
        commits: &[&str],
        trail: &[AuditEntry],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        let update = "UPDATE channel SET doc = ?, revision = revision + 1 WHERE name = ? AND revision = ?";
        let update = sqlx::query(update).bind(self.seal.encode("channel", channel)?).bind(&channel.name).bind(revision);
        if update.execute(&mut *tx).await?.rows_affected() != 1 {
            return Err(StoreError::Stale);
        }
        // One may have begun since somebody looked who needs them.
        let goes = self.under_way(&mut *tx).await?.into_iter().filter_map(|upgrade| upgrade.commit);
        if goes.into_iter().any(|commit| commits.contains(&commit.as_str())) {
            return Err(StoreError::Stale);
        }
        for commit in commits {
            retired(&channel.profile, commit, now).execute(&mut *tx).await?;
            let delete = sqlx::query("DELETE FROM channel_polled WHERE channel = ? AND commit_id = ?");
            delete.bind(&channel.name).bind(*commit).execute(&mut *tx).await?;
        }
        for entry in trail {
            super::access::audit(entry).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Forgets a channel, all in one: the list without it, its commits as retired, the audit trail. Who needs it, in which case
    /// nothing has changed.
    pub async fn delete_channel(
        &self,
        channel: &Channel,
        revision: i64,
        trail: &[AuditEntry],
        now: OffsetDateTime,
    ) -> Result<Vec<Hold>, StoreError> {
        let (name, mut tx) = (&channel.name, self.write.begin().await?);
        let delete = sqlx::query("DELETE FROM channel WHERE name = ? AND revision = ?").bind(name).bind(revision);
        if delete.execute(&mut *tx).await?.rows_affected() != 1 {
            return Err(StoreError::Stale);
        }
        // All within this write: nothing begins while it is looked for.
        let clusters = self.clusters_by(&mut *tx).await?;
        let mirror = self.mirror_by(name, &mut *tx).await?;
        let upgrades = self.under_way(&mut *tx).await?;
        let holds = holds(
            name,
            clusters.iter().map(|(record, _)| record),
            &upgrades,
            mirror.as_ref().map(|(record, _)| record),
        );
        if !holds.is_empty() {
            return Ok(holds);
        }
        for release in &channel.releases {
            retired(&channel.profile, &release.commit, now).execute(&mut *tx).await?;
        }
        sqlx::query("DELETE FROM channel_polled WHERE channel = ?").bind(name).execute(&mut *tx).await?;
        for entry in trail {
            super::access::audit(entry).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(Vec::new())
    }

    /// Writes down that a system which asks for the graph runs a release.
    pub async fn save_polled(&self, channel: &str, polled: &Polled) -> Result<(), StoreError> {
        let insert = "INSERT INTO channel_polled (channel, commit_id, node, last_at) VALUES (?, ?, ?, ?)
             ON CONFLICT (channel, commit_id) DO UPDATE SET node = excluded.node, last_at = excluded.last_at";
        let insert = sqlx::query(insert).bind(channel).bind(&polled.commit).bind(&polled.node).bind(millis(polled.at));
        insert.execute(&self.write).await?;
        Ok(())
    }

    /// A date that lies ahead was written down before the clock was set back: it is one of now, so that no release is needed
    /// until the clock has come there again.
    pub async fn set_polled_back(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        let update = sqlx::query("UPDATE channel_polled SET last_at = ?1 WHERE last_at > ?1").bind(millis(now));
        update.execute(&self.write).await?;
        Ok(())
    }

    /// What such systems have run since then.
    pub async fn polled(&self, channel: &str, since: OffsetDateTime) -> Result<Vec<Polled>, StoreError> {
        let select = "SELECT commit_id, node, last_at FROM channel_polled WHERE channel = ? AND last_at >= ?";
        let rows = sqlx::query(select).bind(channel).bind(millis(since)).fetch_all(&self.read).await?;
        let polled = |row: &SqliteRow| Polled { commit: row.get(0), node: row.get(1), at: from_millis(row.get(2)) };
        Ok(rows.iter().map(polled).collect())
    }

    /// The commits that were retired and whose objects may be there still.
    pub async fn retired(&self) -> Result<Vec<Retired>, StoreError> {
        let rows =
            sqlx::query("SELECT profile, commit_id, retired_at FROM channel_retired").fetch_all(&self.read).await?;
        let retired =
            |row: &SqliteRow| Retired { profile: row.get(0), commit: row.get(1), at: from_millis(row.get(2)) };
        Ok(rows.iter().map(retired).collect())
    }

    /// Commits that are no release are as good as retired; one that is keeps its time.
    pub async fn retire_loose(
        &self,
        profile: &str,
        commits: &[&String],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        for commit in commits {
            retired(profile, commit, now).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Forgets retired commits, unless they were retired again.
    pub async fn forget_retired(&self, gone: &[Retired]) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        for one in gone {
            let delete =
                sqlx::query("DELETE FROM channel_retired WHERE profile = ? AND commit_id = ? AND retired_at = ?");
            delete.bind(&one.profile).bind(&one.commit).bind(millis(one.at)).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// A commit has left its channel.
fn retired<'a>(profile: &'a str, commit: &'a str, now: OffsetDateTime) -> Query<'a, Sqlite, SqliteArguments> {
    let insert = "INSERT INTO channel_retired (profile, commit_id, retired_at) VALUES (?, ?, ?)
         ON CONFLICT (profile, commit_id) DO UPDATE SET retired_at = excluded.retired_at";
    sqlx::query(insert).bind(profile).bind(commit).bind(millis(now))
}
