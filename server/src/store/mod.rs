//! The state of the service: SQLite in WAL mode with `synchronous=FULL`, so that what was committed survives a
//! power cut. One connection writes, a few read; what machines cause is committed in groups.
//!
//! A failing store is [`StoreError`], never an empty answer: "no such machine" and "the store is broken" lead to
//! different HTTP codes.

mod access;
mod backup;
mod channels;
mod clusters;
mod conceal;
mod fleet_lock;
mod group;
mod machines;
mod pulse;
mod registry;
mod seal;
mod sealed_file;
mod snapshots;
mod tokens;
mod upgrades;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection, SqlitePool};
use time::OffsetDateTime;
use tokio::sync::watch;

pub use backup::{BackupError, HeldUpgrade, backup, restore};
pub use machines::{Change, NewEvent, RowEffects, Supersede};
pub use registry::{Gone, HeldBlob, Kept, NewManifest, StoredManifest, Unused};
pub use seal::{Seal, SealError};
pub use sealed_file::{SealedFileError, SealedReader, SealedWriter};
pub use tokens::{Boot, NewToken, Scope, Token, TokenUse};

/// The store failed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database could not be opened.
    #[error("cannot open the state database {path}: check that the folder exists, is writable and has room", path = path.display())]
    Open {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("cannot migrate the state database: was it written by a newer nkd?")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error("the state database failed")]
    Database(#[source] sqlx::Error),
    /// There is no room. Reading goes on.
    #[error("the disk of the state folder is full: nothing can be written down until there is room")]
    Full(#[source] Arc<sqlx::Error>),
    /// A commit failed, and with it every write in it.
    #[error("the state database could not commit")]
    Commit(#[source] Arc<sqlx::Error>),
    /// A stored document does not read.
    #[error("a stored {what} does not read: restore a backup, or report this as a defect")]
    Document {
        /// What it should have been.
        what: &'static str,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// A sealed value could not be opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The record changed between read and write.
    #[error("the record keeps changing: try again")]
    Stale,
    /// A name or key is taken.
    #[error("{0}")]
    Conflict(String),
}

/// The state database.
#[derive(Clone, Debug)]
pub struct Store {
    write: SqlitePool,
    writer: group::Writer,
    read: SqlitePool,
    seal: Seal,
    pulses: pulse::Pulses,
    /// An upgrade was begun, or is another one than before.
    upgrades: watch::Sender<()>,
}

impl Store {
    /// Opens or makes the database `nkd.db` in `state_dir` (mode 0700, files 0600) and migrates it.
    pub async fn open(state_dir: &Path, seal: Seal) -> Result<Self, StoreError> {
        let path = state_dir.join("nkd.db");
        let open_error = |source| StoreError::Open { path: path.clone(), source };
        private_file(&path).map_err(|e| open_error(sqlx::Error::Io(e)))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(30))
            .after_release(|connection, _| Box::pin(is_clean(connection)))
            .connect_with(options.clone())
            .await
            .map_err(open_error)?;
        sqlx::migrate!("migrations/sqlite").run(&write).await?;
        let read = SqlitePoolOptions::new()
            .max_connections(3)
            .connect_with(options.read_only(true))
            .await
            .map_err(open_error)?;
        let writer = group::Writer::start(write.clone());
        Ok(Self { write, writer, read, seal, pulses: pulse::Pulses::default(), upgrades: watch::Sender::new(()) })
    }

    /// True when a trivial read works.
    pub async fn ready(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.read).await?;
        Ok(())
    }

    /// Checkpoints the log and closes every connection.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

/// False, so that the connection is closed, when a transaction is still counted on it.
///
/// SQLite itself rolls back when the disk is full. The driver's own rollback then fails, and it goes on counting one
/// transaction: every later one would be a savepoint in a transaction that nobody commits, acknowledged and then lost.
async fn is_clean(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // Behind a rollback that may still be on its way to the driver's thread.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// Makes an empty file with mode 0600 unless it is there; SQLite gives its side files the same mode.
#[expect(clippy::disallowed_methods, reason = "opens the database file")]
fn private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        }
        Err(e) => Err(e),
    }
}

fn millis(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn from_millis(millis: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn encode<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Document { what, source })
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if is_full(&error) { Self::Full(Arc::new(error)) } else { Self::Database(error) }
    }
}

fn is_full(error: &sqlx::Error) -> bool {
    /// SQLITE_FULL: the disk has no room.
    const FULL: &str = "13";
    error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == FULL)
}

/// Turns a violated UNIQUE constraint into a conflict with a sentence of its own.
fn conflict(error: sqlx::Error, sentence: impl FnOnce() -> String) -> StoreError {
    match &error {
        sqlx::Error::Database(db) if db.is_unique_violation() => StoreError::Conflict(sentence()),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests;
