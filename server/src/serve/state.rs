//! The state folder: private, locked by one service, with the public CA certificate in it.
#![expect(clippy::disallowed_methods, reason = "files")]

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::fleet::fingerprint::Fingerprint;
use crate::fleet::secret;
use crate::http::{self, FirstToken};
use crate::store::{Store, StoreError};

/// The state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// Another service has it.
    #[error("another nkd serve uses {path}: stop it, or name another folder with --state-dir", path = .0.display())]
    Locked(PathBuf),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] secret::NoRandomness),
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StateError {
    let path = path.to_path_buf();
    move |source| StateError::Io { action, path, source }
}

/// Makes the folder (0700) and locks it for this process.
pub(super) fn prepare(dir: &Path) -> Result<nix::fcntl::Flock<File>, StateError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make the state folder", dir))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(io("close the state folder", dir))?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io("open", &path))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| StateError::Locked(dir.into()))
}

/// Writes `ca.pem`, which is public, for the command line on this host.
pub(super) fn publish_ca(dir: &Path, pem: &str) -> Result<(), StateError> {
    // A start on a full disk needs no room for what is there already.
    if std::fs::read(dir.join("ca.pem")).is_ok_and(|there| there == pem.as_bytes()) {
        return Ok(());
    }
    write(dir, "ca.pem", pem.as_bytes(), 0o644)
}

fn write(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), StateError> {
    let path = dir.join(name);
    let mut file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(dir)
        .map_err(io("write", &path))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io("write", &path))?;
    file.persist(&path).map_err(|e| io("write", &path)(e.error))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync", dir))
}

/// The file that the first token lies in until it is used.
const FIRST_TOKEN: &str = "first-admin-token";

/// Makes the first user when there is none and gives its token.
pub(super) async fn first_admin(dir: &Path, store: &Store, first: &FirstToken) -> Result<Option<String>, StateError> {
    let file = dir.join(FIRST_TOKEN);
    if !store.users().await?.is_empty() {
        // An earlier run has made it, and nobody has used it yet.
        if let Ok(token) = std::fs::read_to_string(&file) {
            first.lies_in(file, &token).await;
        }
        return Ok(None);
    }
    let token = secret::new_token()?;
    // The file first: a token that nobody can read would lock everybody out.
    write(dir, FIRST_TOKEN, token.as_bytes(), 0o600)?;
    http::bootstrap_admin(store, &token).await?;
    first.lies_in(file, &token).await;
    Ok(Some(token))
}

/// Shows the first token once: on a terminal, and otherwise in a private file, never in a log.
pub(super) fn show_first_token(dir: &Path, token: Option<&str>, ca: Fingerprint) {
    let Some(token) = token else { return };
    let file = dir.join(FIRST_TOKEN);
    if std::io::stdout().is_terminal() {
        println!(
            "The first user is admin. Its token, shown this once:\n\n    {token}\n\nKeep it: nkd login --server https://HOST:8443\nIt shows the CA of this service, which is\n\n    {ca}\n"
        );
        let _ = std::fs::remove_file(&file);
    } else {
        tracing::info!(file = %file.display(), %ca, "the first user is admin; its token is in this file until it is used: nkd login --token-file");
    }
}

/// Reads `<name>/template.bu` of a folder.
pub(super) fn read_templates(dir: &Path) -> Result<Vec<(String, String)>, StateError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io("read the templates of", dir))? {
        let path = entry.map_err(io("read the templates of", dir))?.path();
        let template = path.join("template.bu");
        if let (true, Some(name)) = (template.is_file(), path.file_name()) {
            let text = std::fs::read_to_string(&template).map_err(io("read", &template))?;
            found.push((name.to_string_lossy().into_owned(), text));
        }
    }
    Ok(found)
}

/// SHA-256 of a file, in hex.
pub(super) fn sha256_of(path: &Path) -> Result<String, StateError> {
    let mut file = File::open(path).map_err(io("open", path))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        let n = file.read(&mut buffer).map_err(io("read", path))?;
        if n == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}
