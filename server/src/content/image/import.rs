//! Carries an import plan out: fetches every file, checks it, and publishes its blob.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use nkd_api::Sha256Digest;
use nkd_api::image::{Artifact, ArtifactKind};

use super::error::{ImportError, io_error};
use super::progress::Progress;
use super::source::download::Fetcher;
use super::source::iso9660::Extent;
use super::source::name::Packing;
use super::source::signature::{Keyring, MAX_SIGNATURE};
use super::source::{Bytes, Item, Payload, Plan, Signature};
use super::unpack::check_unpacked;
use crate::content::blob::{BlobError, BlobStore, CHUNK, free_bytes, hash_reader};

/// Whether files must be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SignaturePolicy {
    /// With a key, every file must have a good signature.
    #[default]
    Required,
    /// With a key, signatures that are there must be good.
    IfPresent,
}

/// The most bytes of each kind of artifact.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Kernel.
    pub kernel: u64,
    /// Initramfs.
    pub initramfs: u64,
    /// Root file system, and ISO.
    pub rootfs: u64,
    /// Disk image, as served and unpacked.
    pub disk: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { kernel: 512 << 20, initramfs: 4 << 30, rootfs: 16 << 30, disk: 64 << 30 }
    }
}

impl Limits {
    fn of(&self, kind: ArtifactKind) -> u64 {
        match kind {
            ArtifactKind::Kernel => self.kernel,
            ArtifactKind::Initramfs => self.initramfs,
            ArtifactKind::Rootfs => self.rootfs,
            ArtifactKind::Disk => self.disk,
        }
    }
}

/// Everything that carrying a plan out takes.
pub(super) struct Importer {
    pub blobs: BlobStore,
    pub keyring: Option<Arc<Keyring>>,
    pub policy: SignaturePolicy,
    pub limits: Limits,
    pub fetcher: Fetcher,
    pub progress: Arc<dyn Progress>,
}

/// What came of a plan: every blob is durable.
pub(super) struct Imported {
    pub artifacts: Vec<Artifact>,
    pub signed_by: Option<String>,
}

/// What one file is checked by, apart from its bytes.
struct Checks {
    file: String,
    keyring: Option<Arc<Keyring>>,
    signature: Option<Vec<u8>>,
    unpacked: Option<(Packing, Sha256Digest)>,
    unpacked_limit: u64,
}

impl Importer {
    pub async fn run(&self, plan: Plan) -> Result<Imported, ImportError> {
        for warning in &plan.warnings {
            self.progress.warn(warning);
        }
        self.check_sizes(&plan)?;
        let contained = plan.container.is_some();
        let mut signers = Vec::new();
        if let Some(container) = plan.container {
            signers.extend(self.check_container(container).await?);
        }
        let mut artifacts = Vec::new();
        for item in plan.items {
            let (artifact, signer) = self.store(item, contained).await?;
            tracing::info!(kind = artifact.kind.as_str(), file = artifact.file, sha256 = %artifact.sha256, "stored");
            artifacts.push(artifact);
            signers.extend(signer);
        }
        artifacts.sort_by_key(|a| a.kind);
        signers.dedup();
        let signed_by = (!signers.is_empty()).then(|| signers.join(", "));
        Ok(Imported { artifacts, signed_by })
    }

    /// Refuses what is empty, too large, or more than the disk holds, before anything is written.
    fn check_sizes(&self, plan: &Plan) -> Result<(), ImportError> {
        let mut needed = 0u64;
        for item in &plan.items {
            let Some(size) = item.payload.bytes.size() else { continue };
            let file = || item.payload.file.clone();
            let limit = self.limits.of(item.kind);
            if size == 0 {
                return Err(ImportError::Empty { file: file() });
            }
            if size > limit {
                return Err(ImportError::TooLarge { file: file(), kind: item.kind, size, limit });
            }
            let there = item.payload.sha256.is_some_and(|d| self.blobs.open_blob(&d).is_ok());
            needed = needed.saturating_add(if there { 0 } else { size });
        }
        let path = self.blobs.incoming();
        let free = free_bytes(path)?;
        if needed > free {
            return Err(BlobError::NoSpace { needed, free, path: path.to_path_buf() }.into());
        }
        Ok(())
    }

    async fn check_container(&self, container: Payload) -> Result<Option<String>, ImportError> {
        let Payload { file: name, bytes, sha256, signature } = container;
        let checks = self.checks(name, signature, None, false).await?;
        let Bytes::File { file, path, .. } = bytes else { return Ok(None) };
        let progress = Arc::clone(&self.progress);
        blocking(move || {
            if let Some(expected) = sha256 {
                progress.stage("check", Some(file.metadata().map_err(io_error("examine", &path))?.len()));
                let mut reader = &file;
                let read = hash_reader(&mut reader, |n| progress.advance(n)).map_err(io_error("read", &path));
                let (actual, _) = read?;
                checks.digest(Some(expected), actual)?;
            }
            // The open file, whatever its path means by now.
            checks.run(Path::new(&format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())))
        })
        .await
    }

    async fn store(&self, item: Item, contained: bool) -> Result<(Artifact, Option<String>), ImportError> {
        let Item { kind, payload, unpacked } = item;
        let Payload { file: name, bytes, sha256, signature } = payload;
        let checks = self.checks(name.clone(), signature, unpacked, contained).await?;
        let blobs = self.blobs.clone();
        let progress = Arc::clone(&self.progress);
        let (digest, size, signer) = match bytes {
            Bytes::File { file, path, extents } => {
                let job = move || store_file(&blobs, kind, &file, &path, &extents, sha256, &checks, progress.as_ref());
                blocking(job).await?
            }
            Bytes::Url { url, sha256 } => {
                if let Some(size) = self.have(kind, sha256).await? {
                    let path = self.blobs.path(&sha256);
                    (sha256, size, blocking(move || checks.run(&path)).await?)
                } else {
                    let limit = self.limits.of(kind);
                    let fetched = self.fetcher.fetch(&url, sha256, limit, kind.as_str(), progress.as_ref()).await?;
                    if fetched.size == 0 {
                        return Err(ImportError::Empty { file: name });
                    }
                    let job = move || {
                        let signer = checks.run(&fetched.path)?;
                        blobs.adopt(&fetched.path, &sha256)?;
                        Ok((sha256, fetched.size, signer))
                    };
                    blocking(job).await?
                }
            }
        };
        Ok((Artifact { kind, file: name, sha256: digest, size }, signer))
    }

    /// The length of a blob that is there already and undamaged.
    async fn have(&self, kind: ArtifactKind, digest: Sha256Digest) -> Result<Option<u64>, ImportError> {
        let blobs = self.blobs.clone();
        let progress = Arc::clone(&self.progress);
        blocking(move || {
            match blobs.open_blob(&digest) {
                Ok((_, size)) => progress.stage(kind.as_str(), Some(size)),
                Err(BlobError::NotFound { .. }) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
            match blobs.verify(&digest, |n| progress.advance(n)) {
                Ok(size) => Ok(Some(size)),
                Err(BlobError::NotFound { .. } | BlobError::Damaged { .. }) => Ok(None),
                Err(e) => Err(e.into()),
            }
        })
        .await
    }

    async fn checks(
        &self,
        file: String,
        signature: Option<Signature>,
        unpacked: Option<(Packing, Sha256Digest)>,
        contained: bool,
    ) -> Result<Checks, ImportError> {
        let signature = match (&self.keyring, signature) {
            (None, _) => None,
            (Some(_), Some(Signature::Bytes(bytes))) => Some(bytes),
            (Some(_), Some(Signature::Url(url))) => Some(self.fetcher.small(&url, MAX_SIGNATURE).await?.0),
            (Some(_), None) if contained || self.policy == SignaturePolicy::IfPresent => None,
            (Some(_), None) => return Err(ImportError::Unsigned { file }),
        };
        Ok(Checks {
            file,
            keyring: self.keyring.clone().filter(|_| signature.is_some()),
            signature,
            unpacked,
            unpacked_limit: self.limits.disk,
        })
    }
}

impl Checks {
    fn digest(&self, expected: Option<Sha256Digest>, actual: Sha256Digest) -> Result<(), ImportError> {
        match expected {
            Some(expected) if expected != actual => {
                Err(ImportError::Digest { file: self.file.clone(), expected, actual })
            }
            _ => Ok(()),
        }
    }

    /// Checks a whole file; who signed it.
    fn run(&self, path: &Path) -> Result<Option<String>, ImportError> {
        let signer = match (&self.keyring, &self.signature) {
            (Some(keyring), Some(signature)) => {
                let bad = |source| ImportError::Signature { file: self.file.clone(), source };
                Some(keyring.verify(path, signature).map_err(bad)?)
            }
            _ => None,
        };
        if let Some((packing, expected)) = self.unpacked {
            check_unpacked(path, packing, expected, self.unpacked_limit)
                .map_err(|reason| ImportError::Unpack { file: self.file.clone(), reason })?;
        }
        Ok(signer)
    }
}

#[expect(clippy::too_many_arguments, reason = "one call, on another thread")]
fn store_file(
    blobs: &BlobStore,
    kind: ArtifactKind,
    file: &File,
    path: &Path,
    extents: &[Extent],
    expected: Option<Sha256Digest>,
    checks: &Checks,
    progress: &dyn Progress,
) -> Result<(Sha256Digest, u64, Option<String>), ImportError> {
    let total = extents.iter().map(|e| e.len).sum();
    progress.stage(kind.as_str(), Some(total));
    let mut writer = blobs.writer(Some(total))?;
    let mut buffer = vec![0; CHUNK];
    for extent in extents {
        let end = extent.offset + extent.len;
        let mut at = extent.offset;
        while at < end {
            let want = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
            let read = match file.read_at(&mut buffer[..want], at) {
                Ok(0) => return Err(io_error("read all of", path)(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(io_error("read", path)(e)),
            };
            writer.write(&buffer[..read])?;
            progress.advance(read as u64);
            at += read as u64;
        }
    }
    let staged = writer.finish();
    checks.digest(expected, staged.digest())?;
    let signer = checks.run(staged.path())?;
    let done = (staged.digest(), staged.size(), signer);
    staged.publish(blobs)?;
    Ok(done)
}

/// Runs file work on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, ImportError> + Send + 'static,
) -> Result<T, ImportError> {
    match tokio::task::spawn_blocking(job).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(ImportError::Stopped),
    }
}
