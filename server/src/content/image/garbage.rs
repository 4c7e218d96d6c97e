//! Garbage: blobs that no image uses, parts of downloads that nobody came back for, files of imports that were killed.
//!
//! An import holds a shared lock on `<state>/blobs/.lock` until its image is published, collecting takes it alone: a
//! blob cannot vanish between being found by an import and being named by its image. Blobs of an import that failed
//! are left for a while, so that the next attempt needs not fetch them again.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nkd_api::Sha256Digest;
use serde::Serialize;
use time::OffsetDateTime;

use super::catalog::{Catalog, CatalogError};
use super::error::{ImportError, io_error};
use crate::content::blob::BlobStore;

/// How garbage is collected.
#[derive(Debug, Clone, Copy)]
pub struct GarbageRequest {
    /// Only tell what would be removed.
    pub dry_run: bool,
    /// Parts of downloads younger than this stay.
    pub partial_grace: Duration,
    /// The time.
    pub now: OffsetDateTime,
}

impl GarbageRequest {
    /// A week for parts of downloads, which the next try goes on with; or none.
    #[must_use]
    pub fn new(dry_run: bool, partial: bool, now: OffsetDateTime) -> Self {
        let partial_grace = if partial { Duration::ZERO } else { Duration::from_secs(7 * 24 * 3600) };
        Self { dry_run, partial_grace, now }
    }
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Garbage {
    /// Unused blobs.
    pub blobs: Vec<Sha256Digest>,
    /// Files of broken imports and downloads.
    pub files: Vec<PathBuf>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes in parts of downloads that stay.
    pub kept: u64,
}

/// Keeps garbage from being collected as long as the result lives. Waits while it is being collected.
pub(super) fn lock_import(state_dir: &Path) -> Result<File, ImportError> {
    let path = lock_path(state_dir);
    let file = open_lock(&path).map_err(io_error("open", &path))?;
    file.lock_shared().map_err(io_error("lock", &path))?;
    Ok(file)
}

/// Keeps imports from beginning as long as the result lives.
pub(super) fn lock_collecting(state_dir: &Path) -> Result<File, CatalogError> {
    let path = lock_path(state_dir);
    let lock = open_lock(&path).map_err(failed("open", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(CatalogError::ImportUnderWay),
        Err(TryLockError::Error(e)) => Err(failed("lock", &path)(e)),
    }
}

/// `held`: blobs that others use.
pub(super) fn collect(
    state_dir: &Path,
    blobs: &BlobStore,
    catalog: &Catalog,
    held: &BTreeSet<Sha256Digest>,
    request: GarbageRequest,
) -> Result<Garbage, CatalogError> {
    let _lock = lock_collecting(state_dir)?;
    let now = SystemTime::from(request.now);
    let old = |modified: SystemTime, grace| now.duration_since(modified).is_ok_and(|age| age >= grace);
    let used = catalog.referenced()?;
    let mut garbage = Garbage::default();
    for blob in blobs.entries()? {
        if used.contains(&blob.digest) || held.contains(&blob.digest) {
            continue;
        }
        if !request.dry_run {
            blobs.remove(&blob.digest)?;
        }
        garbage.blobs.push(blob.digest);
        garbage.bytes += blob.size;
    }
    // No import is under way, so whatever is incoming was left by one that was killed.
    for (dir, grace) in [(blobs.incoming(), Duration::ZERO), (&state_dir.join("partial"), request.partial_grace)] {
        for (file, size, modified) in files(dir).map_err(failed("list", dir))? {
            if !old(modified, grace) {
                garbage.kept += size;
                continue;
            }
            if !request.dry_run {
                fs::remove_file(&file).map_err(failed("remove", &file))?;
            }
            garbage.files.push(file);
            garbage.bytes += size;
        }
    }
    if !request.dry_run && garbage.bytes > 0 {
        tracing::info!(
            blobs = garbage.blobs.len(),
            files = garbage.files.len(),
            bytes = garbage.bytes,
            "garbage collected"
        );
    }
    Ok(garbage)
}

fn files(dir: &Path) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
    let listing = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut files = Vec::new();
    for entry in listing {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_file() {
            files.push((entry.path(), meta.len(), meta.modified()?));
        }
    }
    files.sort();
    Ok(files)
}

fn lock_path(state_dir: &Path) -> PathBuf {
    state_dir.join("blobs").join(".lock")
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CatalogError {
    let path = path.to_path_buf();
    move |source| CatalogError::Io { action, path, source }
}
