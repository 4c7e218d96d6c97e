//! `nkd backup` and `nkd restore`: one tar file with a consistent copy of the database and the key file.
#![expect(clippy::disallowed_methods, reason = "copies files")]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

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

const MAGIC: &[u8; 8] = b"NKDBAK1\n";

/// Writes `archive` (mode 0600): a magic, then for each file its name, length and bytes. Works while the service runs.
pub async fn backup(state_dir: &Path, key_file: &Path, archive: &Path) -> Result<u64, BackupError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| BackupError::Io { what, path, source }
    };
    let dir = archive.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let scratch = tempfile::tempdir_in(dir).map_err(io("cannot write beside", archive))?;
    let copy = scratch.path().join("nkd.db");
    let mut from = SqliteConnectOptions::new().filename(state_dir.join("nkd.db")).connect().await?;
    sqlx::query("VACUUM INTO ?").bind(copy.to_string_lossy().into_owned()).execute(&mut from).await?;
    let mut out = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(io("cannot write", archive))?;
    out.write_all(MAGIC).map_err(io("cannot write", archive))?;
    for (name, path) in [("nkd.db", copy.as_path()), ("secret.key", key_file)] {
        let bytes = std::fs::read(path).map_err(io("cannot read", path))?;
        let head = format!("{name} {}\n", bytes.len());
        out.write_all(head.as_bytes()).and_then(|()| out.write_all(&bytes)).map_err(io("cannot write", archive))?;
    }
    out.as_file().sync_all().map_err(io("cannot write", archive))?;
    let size = out.as_file().metadata().map_err(io("cannot read", archive))?.len();
    out.persist(archive).map_err(|e| BackupError::Io {
        what: "cannot write",
        path: archive.into(),
        source: e.error,
    })?;
    Ok(size)
}

/// Unpacks a backup into `state_dir`, which must not hold a state. The database is put in place last.
pub async fn restore(archive: &Path, state_dir: &Path, key_file: &Path) -> Result<(), BackupError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| BackupError::Io { what, path, source }
    };
    let bad = |reason: &str| BackupError::NotABackup { path: archive.into(), reason: reason.to_owned() };
    if state_dir.join("nkd.db").exists() || key_file.exists() {
        return Err(BackupError::Occupied(state_dir.into()));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(archive).and_then(|mut f| f.read_to_end(&mut bytes)).map_err(io("cannot read", archive))?;
    let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("its first line is another"))?;
    let (mut database, mut key) = (None, None);
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == b'\n').ok_or_else(|| bad("it is cut off"))?;
        let head = std::str::from_utf8(&rest[..end]).map_err(|_| bad("it is damaged"))?;
        let (name, length) = head.split_once(' ').ok_or_else(|| bad("it is damaged"))?;
        let length: usize = length.parse().map_err(|_| bad("it is damaged"))?;
        let body = rest.get(end + 1..).and_then(|r| r.get(..length)).ok_or_else(|| bad("it is cut off"))?;
        match name {
            "nkd.db" => database = Some(body),
            "secret.key" => key = Some(body),
            _ => return Err(bad("it was written by a newer nkd")),
        }
        rest = &rest[end + 1 + length..];
    }
    let database = database.ok_or_else(|| bad("it has no database"))?;
    let key = key.ok_or_else(|| bad("it has no key"))?;
    std::fs::create_dir_all(state_dir).map_err(io("cannot make", state_dir))?;
    std::fs::set_permissions(state_dir, std::fs::Permissions::from_mode(0o700))
        .map_err(io("cannot make", state_dir))?;
    let database_file = state_dir.join("nkd.db");
    for (path, bytes) in [(key_file, key), (database_file.as_path(), database)] {
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(dir)
            .map_err(io("cannot write", path))?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io("cannot write", path))?;
        file.persist_noclobber(path).map_err(|e| BackupError::Io {
            what: "cannot write",
            path: path.into(),
            source: e.error,
        })?;
        std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io("cannot sync", dir))?;
    }
    Ok(())
}
