//! Blobs: files kept by the SHA-256 of their bytes, under `<state>/blobs/sha256/<2 hex>/<62 hex>`.
//!
//! A blob is written to a temporary file of the same file system while it is hashed, flushed to the disk, renamed to
//! its name, and the folders are flushed too. What has its name is therefore whole and durable; what broke off has
//! none and goes away with its writer. Several processes may write at once: the same bytes meet at the same name.

#![expect(clippy::disallowed_methods, reason = "the blob store is the I/O of stored content")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nkd_api::Sha256Digest;
use tempfile::NamedTempFile;

/// Bytes read or written at once.
pub const CHUNK: usize = 1 << 20;

/// Why the blob store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// No blob has this digest.
    #[error("there is no blob {digest} under {}; import its image again", dir.display())]
    NotFound {
        /// The digest that was asked for.
        digest: Sha256Digest,
        /// The folder of blobs.
        dir: PathBuf,
    },
    /// The file system is full.
    #[error(
        "no space left for {}: {needed} bytes are needed and {free} are free; \
         free some space (`nkd image gc` and `nkd registry gc` drop what nobody uses) and try again", path.display()
    )]
    NoSpace {
        /// Bytes that were to be written.
        needed: u64,
        /// Bytes free for this user when it failed.
        free: u64,
        /// The folder that was written to.
        path: PathBuf,
    },
    /// The bytes on the disk are not those of the name.
    #[error("blob {digest} in {} is damaged: its bytes have the digest {actual}; import its image again", path.display())]
    Damaged {
        /// The name.
        digest: Sha256Digest,
        /// What the bytes have.
        actual: Sha256Digest,
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// A blob as the folder lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobEntry {
    /// Its name.
    pub digest: Sha256Digest,
    /// Bytes.
    pub size: u64,
    /// When it was published last.
    pub modified: SystemTime,
}

/// The folder of blobs.
#[derive(Debug, Clone)]
pub struct BlobStore {
    root: PathBuf,
    incoming: PathBuf,
}

impl BlobStore {
    /// Opens the store under a state folder and makes its folders.
    ///
    /// # Errors
    /// [`BlobError::Io`] when a folder cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, BlobError> {
        let blobs = state_dir.join("blobs");
        let store = Self { root: blobs.join("sha256"), incoming: blobs.join("incoming") };
        for dir in [&store.root, &store.incoming] {
            fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        }
        sync_dir(&blobs)?;
        sync_dir(state_dir)?;
        Ok(store)
    }

    /// Where a blob is, or would be.
    #[must_use]
    pub fn path(&self, digest: &Sha256Digest) -> PathBuf {
        let hex = digest.to_string();
        self.root.join(&hex[..2]).join(&hex[2..])
    }

    /// Folder of files that are being written; the same file system as the blobs.
    #[must_use]
    pub fn incoming(&self) -> &Path {
        &self.incoming
    }

    /// Opens a blob for reading; the file and its length in bytes.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], or [`BlobError::Io`] when the store itself is in trouble.
    pub fn open_blob(&self, digest: &Sha256Digest) -> Result<(File, u64), BlobError> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(BlobError::NotFound { digest: *digest, dir: self.root.clone() });
            }
            Err(e) => return Err(io_error("open", &path)(e)),
        };
        let len = file.metadata().map_err(io_error("examine", &path))?.len();
        Ok((file, len))
    }

    /// Reads a blob again and compares it with its name; its length in bytes.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] when they differ, and those of [`Self::open_blob`].
    pub fn verify(&self, digest: &Sha256Digest, mut advance: impl FnMut(u64)) -> Result<u64, BlobError> {
        let (mut file, _) = self.open_blob(digest)?;
        let path = self.path(digest);
        let (actual, len) = hash_reader(&mut file, &mut advance).map_err(io_error("read", &path))?;
        if actual == *digest { Ok(len) } else { Err(BlobError::Damaged { digest: *digest, actual, path }) }
    }

    /// Starts a blob. With an expected length the space is reserved first, so that a full disk says so at once.
    ///
    /// # Errors
    /// [`BlobError::NoSpace`] or [`BlobError::Io`].
    pub fn writer(&self, expected: Option<u64>) -> Result<BlobWriter, BlobError> {
        let temp = NamedTempFile::with_prefix_in("blob-", &self.incoming)
            .map_err(|e| write_error(e, expected.unwrap_or(0), &self.incoming))?;
        if let Some(len) = expected {
            reserve(temp.as_file(), len, &self.incoming)?;
        }
        Ok(BlobWriter { temp, hash: Context::new(&SHA256), len: 0, expected, dir: self.incoming.clone() })
    }

    /// Takes over a finished file of the same file system, whose digest the caller has just taken.
    ///
    /// # Errors
    /// [`BlobError::Io`] or [`BlobError::NoSpace`].
    pub fn adopt(&self, path: &Path, digest: &Sha256Digest) -> Result<(), BlobError> {
        let file = File::options().read(true).write(true).open(path).map_err(io_error("open", path))?;
        self.publish(&file, path, digest, |target| fs::rename(path, target))
    }

    /// Every blob in the store.
    ///
    /// # Errors
    /// [`BlobError::Io`] when a folder cannot be read.
    pub fn entries(&self) -> Result<Vec<BlobEntry>, BlobError> {
        let mut entries = Vec::new();
        for shard in read_dir(&self.root)? {
            let Some(prefix) = shard.file_name().to_str().map(str::to_owned) else { continue };
            if prefix.len() != 2 {
                continue;
            }
            for blob in read_dir(&shard.path())? {
                let name = blob.file_name();
                let Some(Ok(digest)) = name.to_str().map(|rest| format!("{prefix}{rest}").parse::<Sha256Digest>())
                else {
                    continue;
                };
                let meta = blob.metadata().map_err(io_error("examine", &blob.path()))?;
                let modified = meta.modified().map_err(io_error("examine", &blob.path()))?;
                entries.push(BlobEntry { digest, size: meta.len(), modified });
            }
        }
        entries.sort_by_key(|e| e.digest);
        Ok(entries)
    }

    /// Removes a blob. One that is being read stays readable until its readers close it.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn remove(&self, digest: &Sha256Digest) -> Result<(), BlobError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Makes finished bytes durable and gives them their name.
    fn publish(
        &self,
        file: &File,
        from: &Path,
        digest: &Sha256Digest,
        rename: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), BlobError> {
        let target = self.path(digest);
        let len = file.metadata().map_err(io_error("examine", from))?.len();
        // Gives back what was reserved beyond the end.
        file.set_len(len).map_err(io_error("settle the length of", from))?;
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(io_error("set the mode of", from))?;
        file.sync_all().map_err(|e| write_error(e, len, from))?;
        let shard = target.parent().unwrap_or(&self.root);
        fs::create_dir_all(shard).map_err(|e| write_error(e, len, shard))?;
        rename(&target).map_err(|e| write_error(e, len, &target))?;
        sync_dir(shard)?;
        sync_dir(&self.root)
    }
}

/// A blob that is being written. Dropped before [`BlobWriter::finish`], it leaves nothing.
pub struct BlobWriter {
    temp: NamedTempFile,
    hash: Context,
    len: u64,
    expected: Option<u64>,
    dir: PathBuf,
}

impl BlobWriter {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`BlobError::NoSpace`] or [`BlobError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let written = self.len + bytes.len() as u64;
        self.temp
            .as_file_mut()
            .write_all(bytes)
            .map_err(|e| write_error(e, self.expected.unwrap_or(0).max(written), &self.dir))?;
        self.hash.update(bytes);
        self.len = written;
        Ok(())
    }

    /// Ends the bytes; the result has a digest, but no name yet.
    #[must_use]
    pub fn finish(self) -> StagedBlob {
        StagedBlob { digest: finish_hash(self.hash), temp: self.temp, len: self.len }
    }
}

/// A whole blob that waits for its checks. Dropped unpublished, it leaves nothing.
pub struct StagedBlob {
    temp: NamedTempFile,
    digest: Sha256Digest,
    len: u64,
}

impl StagedBlob {
    /// Digest of its bytes.
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        self.digest
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.len
    }

    /// The file, to be checked by other programs.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Gives it its name. When this returns, the blob survives a power cut.
    ///
    /// # Errors
    /// [`BlobError::NoSpace`] or [`BlobError::Io`].
    pub fn publish(self, store: &BlobStore) -> Result<(), BlobError> {
        let (file, path) = self.temp.into_parts();
        let from = path.to_path_buf();
        store.publish(&file, &from, &self.digest, |target| path.persist(target).map_err(|e| e.error))
    }
}

/// Reserves disk space for a file without changing its length. File systems that cannot are left alone.
///
/// # Errors
/// [`BlobError::NoSpace`] or [`BlobError::Io`].
pub fn reserve(file: &File, len: u64, dir: &Path) -> Result<(), BlobError> {
    let Ok(wanted) = i64::try_from(len) else {
        return Err(write_error(io::Error::from_raw_os_error(Errno::ENOSPC as i32), len, dir));
    };
    if wanted == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, wanted) {
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        Err(e) => Err(write_error(io::Error::from(e), len, dir)),
    }
}

/// Bytes free for this user in the file system of a folder.
///
/// # Errors
/// [`BlobError::Io`].
pub fn free_bytes(dir: &Path) -> Result<u64, BlobError> {
    let stat = nix::sys::statvfs::statvfs(dir).map_err(|e| io_error("examine the file system of", dir)(e.into()))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Refuses bytes that would leave less than a margin free: the state database lives on the same disk. The margin is a
/// twentieth of the file system, 256 MiB at most.
///
/// # Errors
/// [`BlobError::NoSpace`] or [`BlobError::Io`].
pub fn room(dir: &Path, needed: u64) -> Result<(), BlobError> {
    let stat = nix::sys::statvfs::statvfs(dir).map_err(|e| io_error("examine the file system of", dir)(e.into()))?;
    let margin = (stat.blocks() * stat.fragment_size() / 20).min(256 << 20);
    let free = stat.blocks_available() * stat.fragment_size();
    if needed.saturating_add(margin) <= free {
        return Ok(());
    }
    Err(BlobError::NoSpace { needed: needed.saturating_add(margin), free, path: dir.to_path_buf() })
}

/// The error of a failed write: a full disk is told apart, with what was needed and what is free.
pub fn write_error(error: io::Error, needed: u64, path: &Path) -> BlobError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        return BlobError::NoSpace { needed, free: free_bytes(dir).unwrap_or(0), path: dir.to_path_buf() };
    }
    io_error("write", path)(error)
}

/// Flushes the entries of a folder to the disk.
///
/// # Errors
/// [`BlobError::Io`].
pub fn sync_dir(dir: &Path) -> Result<(), BlobError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("flush the folder", dir))
}

/// Digest and length of everything a reader gives.
///
/// # Errors
/// What the reader says.
pub fn hash_reader(reader: &mut impl Read, mut advance: impl FnMut(u64)) -> io::Result<(Sha256Digest, u64)> {
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; CHUNK];
    let mut len = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((finish_hash(hash), len)),
            Ok(n) => {
                hash.update(&buffer[..n]);
                len += n as u64;
                advance(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The digest that a finished hash holds.
#[must_use]
pub fn finish_hash(hash: Context) -> Sha256Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.finish().as_ref());
    Sha256Digest(bytes)
}

fn read_dir(dir: &Path) -> Result<Vec<fs::DirEntry>, BlobError> {
    fs::read_dir(dir).and_then(Iterator::collect).map_err(io_error("list", dir))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_path_buf();
    move |source| BlobError::Io { action, path, source }
}

#[cfg(test)]
mod tests;
