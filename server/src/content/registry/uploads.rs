//! Blobs that are on their way: one file each, `<state>/blobs/uploads/<id>.<repository>`, as long as what came so far.
//!
//! The file is all that there is: a service that was killed finds its uploads again, and their length says where they go
//! on. Hashes are kept in memory while they fit the file; otherwise the file is read once more at its end.

#![expect(clippy::disallowed_methods, reason = "files of uploads, and their names")]

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use nkd_api::Sha256Digest;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::OciError;
use super::spec::Repository;
use crate::content::blob::{BlobError, finish_hash, hash_reader, room, sync_dir, write_error};

/// So many uploads at once.
const MOST: usize = 256;
/// An upload that nobody goes on with ends after this time.
pub(super) const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The folder of uploads.
#[derive(Debug)]
pub(super) struct Uploads {
    dir: PathBuf,
    /// Of uploads that no request writes to now: so many bytes have this hash.
    hashes: Mutex<HashMap<Uuid, (u64, Hash)>>,
    ages: Mutex<Ages>,
}

/// Nobody goes on with an upload between two of its requests, either: so long it stays in any case.
const AT_WORK: Duration = Duration::from_secs(60);

/// How long nobody went on with each upload. The dates of files count for those only that were there before this run of the
/// service has looked first: the clock may be set while it runs.
#[derive(Debug, Default)]
struct Ages {
    looked_at: Option<Instant>,
    /// Each with the date of its last byte, and how old it was when that date was seen first, and when that was.
    seen: HashMap<PathBuf, (SystemTime, Duration, Instant)>,
}

impl Ages {
    /// Those whose time is over, of all uploads with the dates of their last bytes (pure).
    fn over(&mut self, all: Vec<(PathBuf, SystemTime)>, now: SystemTime, at: Instant, after: Duration) -> Vec<PathBuf> {
        let mut before = std::mem::take(&mut self.seen);
        let unseen = self.looked_at.map(|looked_at| at.saturating_duration_since(looked_at)).unwrap_or(Duration::MAX);
        let mut over = Vec::new();
        for (path, changed) in all {
            let known = before.remove(&path).filter(|(date, ..)| *date == changed);
            // A date that lies ahead is one of now; nothing that is new is older than the last look.
            let age = || now.duration_since(changed).unwrap_or_default().min(unseen);
            let (_, age, since) = known.unwrap_or_else(|| (changed, age(), at));
            if age.saturating_add(at.saturating_duration_since(since)) >= after {
                over.push(path.clone());
            }
            self.seen.insert(path, (changed, age, since));
        }
        self.looked_at = Some(at);
        over
    }
}

/// A running hash.
#[derive(Clone)]
struct Hash(Context);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

/// An upload that one request writes to. Dropped, it stays where it is.
#[derive(Debug)]
pub struct Upload {
    id: Uuid,
    path: PathBuf,
    /// Locked, so that nobody else writes.
    file: File,
    length: u64,
    hash: Option<Hash>,
}

impl Uploads {
    /// Makes the folder.
    pub(super) fn open(state_dir: &Path) -> Result<Self, BlobError> {
        let blobs = state_dir.join("blobs");
        let dir = blobs.join("uploads");
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        sync_dir(&blobs)?;
        Ok(Self { dir, hashes: Mutex::default(), ages: Mutex::default() })
    }

    /// Begins an upload to a repository; it is there after a power cut too.
    pub(super) fn begin(&self, repository: &Repository) -> Result<Upload, OciError> {
        let under_way = self.list()?.len();
        if under_way >= MOST {
            return Err(OciError::TooMany(under_way));
        }
        let id = Uuid::new_v4();
        let path = self.path(repository, id);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|e| write_error(e, 0, &self.dir))?;
        file.try_lock().map_err(|_| OciError::Busy)?;
        sync_dir(&self.dir)?;
        Ok(Upload { id, path, file, length: 0, hash: Some(Hash(Context::new(&SHA256))) })
    }

    /// Goes on with an upload.
    pub(super) fn resume(&self, repository: &Repository, id: Uuid) -> Result<Upload, OciError> {
        let path = self.path(repository, id);
        let mut file = match File::options().read(true).write(true).open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(OciError::UploadUnknown),
            file => file.map_err(failed("open", &path))?,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(OciError::Busy),
            Err(TryLockError::Error(e)) => return Err(failed("lock", &path)(e).into()),
            Ok(()) => {}
        }
        // Another request may have ended it between the two.
        let inode = file.metadata().map_err(failed("examine", &path))?.ino();
        if !fs::metadata(&path).is_ok_and(|there| there.ino() == inode) {
            return Err(OciError::UploadUnknown);
        }
        let length = file.seek(SeekFrom::End(0)).map_err(failed("read", &path))?;
        let kept = self.hashes.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let hash = match kept {
            Some((hashed, hash)) if hashed == length => Some(hash),
            _ if length == 0 => Some(Hash(Context::new(&SHA256))),
            _ => None,
        };
        Ok(Upload { id, path, file, length, hash })
    }

    /// How many bytes of an upload are there.
    pub(super) fn length(&self, repository: &Repository, id: Uuid) -> Result<u64, OciError> {
        let path = self.path(repository, id);
        match fs::metadata(&path) {
            Ok(meta) => Ok(meta.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(OciError::UploadUnknown),
            Err(e) => Err(failed("examine", &path)(e).into()),
        }
    }

    /// What came is on the disk when this returns; another request may go on.
    pub(super) fn pause(&self, upload: Upload) -> Result<u64, BlobError> {
        upload.file.sync_all().map_err(|e| write_error(e, upload.length, &upload.path))?;
        if let Some(hash) = upload.hash {
            let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
            hashes.insert(upload.id, (upload.length, hash));
        }
        Ok(upload.length)
    }

    /// Ends uploads that nobody has gone on with for so long, or only looks for them; how many they are, and their bytes.
    pub(super) fn expire(
        &self,
        now: SystemTime,
        at: Instant,
        after: Duration,
        dry_run: bool,
    ) -> Result<(u64, u64), BlobError> {
        let changed = |entry: fs::DirEntry| Some((entry.path(), entry.metadata().ok()?.modified().ok()?));
        let all = self.list()?.into_iter().filter_map(changed).collect();
        let over = self.ages.lock().unwrap_or_else(PoisonError::into_inner).over(all, now, at, after.max(AT_WORK));
        let (mut ended, mut bytes) = (0, 0);
        for path in over.iter().filter(|path| !is_written(path)) {
            let length = fs::metadata(path).map_or(0, |meta| meta.len());
            if !dry_run {
                remove(path)?;
            }
            (ended, bytes) = (ended + 1, bytes + length);
        }
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        // What was begun anew has a new hash; one without its file costs little and goes with the next.
        if hashes.len() > MOST {
            hashes.clear();
        }
        Ok((ended, bytes))
    }

    fn list(&self) -> Result<Vec<fs::DirEntry>, BlobError> {
        fs::read_dir(&self.dir).and_then(Iterator::collect).map_err(failed("list", &self.dir))
    }

    /// An upload belongs to its repository: the name of the file says to which.
    fn path(&self, repository: &Repository, id: Uuid) -> PathBuf {
        let owner = hex::encode(&Sha256::digest(repository.as_str().as_bytes())[..8]);
        self.dir.join(format!("{}.{owner}", id.simple()))
    }
}

/// A request has it open.
fn is_written(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

impl Upload {
    /// Its name in its address.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Bytes that are there.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses what the disk has no room for.
    pub(super) fn check_room(&self, more: u64) -> Result<(), BlobError> {
        room(self.path.parent().unwrap_or(&self.path), more)
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, parts: &[impl AsRef<[u8]>]) -> Result<(), BlobError> {
        self.check_room(parts.iter().map(|part| part.as_ref().len() as u64).sum())?;
        for bytes in parts.iter().map(AsRef::as_ref) {
            self.file.write_all(bytes).map_err(|e| write_error(e, bytes.len() as u64, &self.path))?;
            if let Some(hash) = &mut self.hash {
                hash.0.update(bytes);
            }
            self.length += bytes.len() as u64;
        }
        Ok(())
    }

    /// Takes back what came after so many bytes.
    pub(super) fn truncate(&mut self, length: u64) -> Result<(), BlobError> {
        self.file.set_len(length).map_err(failed("shorten", &self.path))?;
        self.file.seek(SeekFrom::Start(length)).map_err(failed("shorten", &self.path))?;
        self.length = length;
        self.hash = None;
        Ok(())
    }

    /// Digest of everything that came.
    pub(super) fn digest(&mut self) -> Result<Sha256Digest, BlobError> {
        if let Some(hash) = self.hash.take() {
            return Ok(finish_hash(hash.0));
        }
        let mut read = || {
            self.file.seek(SeekFrom::Start(0))?;
            hash_reader(&mut self.file, |_| {})
        };
        Ok(read().map_err(failed("read", &self.path))?.0)
    }

    /// Nothing is left of it.
    pub(super) fn remove(self) -> Result<(), BlobError> {
        remove(&self.path)
    }
}

fn remove(path: &Path) -> Result<(), BlobError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_path_buf();
    move |source| BlobError::Io { action, path, source }
}

#[cfg(test)]
#[path = "uploads_tests.rs"]
mod tests;
