//! `nkd backup` and `nkd restore`: one tar file with a consistent copy of the database and the key file.
#![expect(clippy::disallowed_methods, reason = "copies files")]

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

/// Backing up or restoring failed. The state directory is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file operation failed.
    #[error("{what} {path}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The folder holds no state.
    #[error(
        "there is no state of nkd in {path}, for it has no nkd.db: name the service's state folder with --state-dir, or its settings with --config",
        path = .0.display()
    )]
    NoState(PathBuf),
    /// It is no file.
    #[error("{path} is no file: name one, which is made, or replaced by the backup", path = .0.display())]
    NoFile(PathBuf),
    /// The backup cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Unreadable {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// SQLite failed.
    #[error("copying the state database failed")]
    Database(#[from] sqlx::Error),
    /// There is a state already.
    #[error("{path} holds a state already: move it away, or name another folder with --state-dir", path = .0.display())]
    Occupied(PathBuf),
    /// The file is not a backup of nkd.
    #[error("{path} is not a backup of nkd: {reason}", path = path.display())]
    NotABackup {
        /// File.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
}

impl BackupError {
    /// Whether what was named is wrong, rather than that something has failed.
    #[must_use]
    pub fn is_input(&self) -> bool {
        matches!(self, Self::NoState(_) | Self::NoFile(_) | Self::Unreadable { .. } | Self::NotABackup { .. })
    }
}

const MAGIC: &[u8; 8] = b"NKDBAK1\n";

/// Writes `archive` (mode 0600): a magic, then for each file its name, length and bytes. Works while the service runs.
pub async fn backup(state_dir: &Path, key_file: &Path, archive: &Path) -> Result<u64, BackupError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| BackupError::Io { what, path, source }
    };
    let database = state_dir.join("nkd.db");
    if !database.try_exists().map_err(io("cannot look at", &database))? {
        return Err(BackupError::NoState(state_dir.into()));
    }
    // A device would be a file from then on, and a link too.
    let real = match std::fs::canonicalize(archive) {
        Ok(real) if real.is_file() => real,
        Ok(_) => return Err(BackupError::NoFile(archive.into())),
        Err(_) => archive.to_owned(),
    };
    let archive = real.as_path();
    let dir = archive.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let scratch = tempfile::tempdir_in(dir).map_err(io("cannot write beside", archive))?;
    let copy = scratch.path().join("nkd.db");
    let mut from = SqliteConnectOptions::new().filename(database).connect().await?;
    sqlx::query("VACUUM INTO ?").bind(copy.to_string_lossy().into_owned()).execute(&mut from).await?;
    let mut out = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(io("cannot write", archive))?;
    let mut digest = Sha256::new_with_prefix(MAGIC);
    out.write_all(MAGIC).map_err(io("cannot write", archive))?;
    for (name, path) in [("nkd.db", copy.as_path()), ("secret.key", key_file)] {
        let bytes = std::fs::read(path).map_err(io("cannot read", path))?;
        let head = format!("{name} {}\n", bytes.len());
        digest.update(head.as_bytes());
        digest.update(&bytes);
        out.write_all(head.as_bytes()).and_then(|()| out.write_all(&bytes)).map_err(io("cannot write", archive))?;
    }
    let seal = format!("sha256 64\n{}", hex::encode(digest.finalize()));
    out.write_all(seal.as_bytes()).map_err(io("cannot write", archive))?;
    out.as_file().sync_all().map_err(io("cannot write", archive))?;
    let size = out.as_file().metadata().map_err(io("cannot read", archive))?.len();
    out.persist(archive).map_err(|e| BackupError::Io {
        what: "cannot write",
        path: archive.into(),
        source: e.error,
    })?;
    // Its name too is there after a power cut.
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("cannot write beside", archive))?;
    Ok(size)
}

/// What is true of machines now may not be what was true then: nothing of an old state may lead to an installation.
///
/// Machines whose disk was not known to hold the wanted generation are stopped, rules lose what they assign, and every
/// token and boot is gone. Upgrades that went on are held, and returned.
async fn make_safe(database: &Path) -> Result<Vec<HeldUpgrade>, BackupError> {
    let options = SqliteConnectOptions::new().filename(database).journal_mode(SqliteJournalMode::Delete);
    let mut restored = options.connect().await?;
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut restored).await?;
    if sound != "ok" {
        return Err(BackupError::NotABackup {
            path: database.into(),
            reason: format!("its database is damaged: {sound}"),
        });
    }
    sqlx::query("DELETE FROM token").execute(&mut restored).await?;
    sqlx::query("DELETE FROM boot").execute(&mut restored).await?;
    sqlx::query(
        "UPDATE machine SET doc = json_set(doc, '$.stopped', ?1, '$.waiting', ?1)
         WHERE json_extract(doc, '$.generation') > 0
           AND json_extract(doc, '$.installedGeneration') IS NOT json_extract(doc, '$.generation')",
    )
    .bind("the state was restored from a backup: look at what its disk holds, then release it")
    .execute(&mut restored)
    .await?;
    sqlx::query("UPDATE accept_rule SET doc = json_set(doc, '$.assignment', json('null'))")
        .execute(&mut restored)
        .await?;
    let held = hold_upgrades(&mut restored).await?;
    restored.close().await?;
    Ok(held)
}

/// An upgrade that went on when its backup was made. Nothing is done for it until somebody resumes it, or calls it off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldUpgrade {
    /// Cluster.
    pub cluster: String,
    /// Its number.
    pub number: u32,
}

/// It may have ended since, or have been called off. One that was called off then is so still: that goes on.
async fn hold_upgrades(restored: &mut SqliteConnection) -> Result<Vec<HeldUpgrade>, BackupError> {
    let there = sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'upgrade'");
    if there.fetch_optional(&mut *restored).await?.is_none() {
        // The backup is of before there were any.
        return Ok(Vec::new());
    }
    let held = sqlx::query(
        "UPDATE upgrade SET revision = revision + 1, doc = json_set(doc,
           '$.state', 'paused', '$.paused', json('true'), '$.restored', json('true'),
           '$.detail', replace(?1, 'CLUSTER', json_extract(doc, '$.cluster')))
         WHERE json_extract(doc, '$.state') NOT IN ('aborted', 'complete') AND NOT json_extract(doc, '$.aborted')
         RETURNING json_extract(doc, '$.cluster'), number",
    )
    .bind(
        "it was restored from a backup, and may be further by now, or over: look at the nodes, then `nkd upgrade resume CLUSTER` lets it \
         go on and `nkd upgrade abort CLUSTER` calls it off; until then nothing is done for it",
    )
    .fetch_all(restored)
    .await?;
    let held = held.iter().map(|row| Ok(HeldUpgrade { cluster: row.try_get(0)?, number: row.try_get(1)? }));
    Ok(held.collect::<Result<_, sqlx::Error>>()?)
}

/// Whose a restored state is.
#[derive(Clone, Copy)]
struct Owner {
    user: u32,
    group: u32,
}

/// The service runs as a user of its own: what root restores belongs to the owner of the state folder, or of the folder
/// that it will be made in. Nobody but root can give files away.
fn owner_for(state_dir: &Path) -> std::io::Result<Option<Owner>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let state_dir = std::path::absolute(state_dir)?;
    let there = state_dir.ancestors().find(|dir| !is_missing(dir)).unwrap_or(Path::new("/"));
    let there = std::fs::metadata(there)?;
    Ok(Some(Owner { user: there.uid(), group: there.gid() }))
}

fn is_missing(dir: &Path) -> bool {
    !dir.as_os_str().is_empty() && !dir.exists()
}

/// Unpacks a backup into `state_dir`, which must not hold a state. The database is put in place last. Returns the upgrades that
/// are held.
pub async fn restore(archive: &Path, state_dir: &Path, key_file: &Path) -> Result<Vec<HeldUpgrade>, BackupError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| BackupError::Io { what, path, source }
    };
    let bad = |reason: &str| BackupError::NotABackup { path: archive.into(), reason: reason.to_owned() };
    if state_dir.join("nkd.db").exists() || key_file.exists() {
        return Err(BackupError::Occupied(state_dir.into()));
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::open(archive).and_then(|mut f| f.read_to_end(&mut bytes));
    read.map_err(|source| BackupError::Unreadable { path: archive.into(), source })?;
    let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("its first line is another"))?;
    let (mut database, mut key, mut whole) = (None, None, false);
    while !rest.is_empty() {
        let before = &bytes[..bytes.len() - rest.len()];
        let end = rest.iter().position(|&b| b == b'\n').ok_or_else(|| bad("it is cut off"))?;
        let head = std::str::from_utf8(&rest[..end]).map_err(|_| bad("it is damaged"))?;
        let (name, length) = head.split_once(' ').ok_or_else(|| bad("it is damaged"))?;
        let length: usize = length.parse().map_err(|_| bad("it is damaged"))?;
        let body = rest.get(end + 1..).and_then(|r| r.get(..length)).ok_or_else(|| bad("it is cut off"))?;
        match name {
            "nkd.db" => database = Some(body),
            "secret.key" => key = Some(body),
            "sha256" if body == hex::encode(Sha256::digest(before)).as_bytes() => whole = true,
            "sha256" => return Err(bad("its digest does not fit: it is damaged")),
            _ => return Err(bad("it was written by a newer nkd")),
        }
        rest = &rest[end + 1 + length..];
    }
    if !whole {
        return Err(bad("it is cut off"));
    }
    let database = database.ok_or_else(|| bad("it has no database"))?;
    let key = key.ok_or_else(|| bad("it has no key"))?;
    let owner = owner_for(state_dir).map_err(io("cannot look at", state_dir))?;
    let missing: Vec<&Path> = state_dir.ancestors().take_while(|dir| is_missing(dir)).collect();
    std::fs::create_dir_all(state_dir).map_err(io("cannot make", state_dir))?;
    if let Some(Owner { user, group }) = owner {
        for dir in missing {
            chown(dir, Some(user), Some(group)).map_err(io("cannot give away", dir))?;
        }
    }
    std::fs::set_permissions(state_dir, std::fs::Permissions::from_mode(0o700))
        .map_err(io("cannot make", state_dir))?;
    let (database_file, mut held) = (state_dir.join("nkd.db"), Vec::new());
    for (path, bytes) in [(key_file, key), (database_file.as_path(), database)] {
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(dir)
            .map_err(io("cannot write", path))?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io("cannot write", path))?;
        if path == database_file {
            held = make_safe(file.path()).await?;
            file.as_file().sync_all().map_err(io("cannot write", path))?;
        }
        if let Some(Owner { user, group }) = owner {
            fchown(file.as_file(), Some(user), Some(group)).map_err(io("cannot give away", path))?;
        }
        file.persist_noclobber(path).map_err(|e| BackupError::Io {
            what: "cannot write",
            path: path.into(),
            source: e.error,
        })?;
        std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io("cannot sync", dir))?;
    }
    Ok(held)
}
