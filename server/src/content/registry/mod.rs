//! The OCI registry: container images that nodes pull and users push, by the distribution specification 1.1.
//!
//! Bytes are blobs of the blob store, once on the disk, whoever uses them; what repositories hold of them, manifests and
//! tags stand in the database. A blob is pushed in three steps: its bytes are a file of `uploads`, then, with the right
//! digest, a row says that the repository has it, then the flushed file becomes a blob. A repository has what has both.
//!
//! ```text
//! begin -> uploads/<id> --chunks--> uploads/<id> --digest fits--> row of the repository, sha256/.. -> manifest, tag
//!             ends after a day                   --it does not--> nothing       collected without a manifest
//! ```

mod clock;
mod error;
mod garbage;
pub mod spec;
mod uploads;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use nkd_api::Sha256Digest;
use nkd_api::registry::{Deleted, Repository as Listed, Tag};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::{Mutex, OwnedRwLockWriteGuard, RwLock};
use uuid::Uuid;

pub use self::error::OciError;
pub use self::garbage::{GRACE, GarbageOrder, UPLOADS};
use self::spec::{Manifest, Part, Reference, Repository};
pub use self::uploads::Upload;
use self::uploads::Uploads;
use super::blob::{BlobError, BlobStore, CHUNK};
use crate::store::{Gone, Kept, NewManifest, Store, StoredManifest};

/// A sender that sends nothing for so long is gone.
const STALL: Duration = Duration::from_secs(60);

/// The registry.
#[derive(Debug)]
pub struct OciRegistry {
    store: Store,
    blobs: BlobStore,
    uploads: Arc<Uploads>,
    /// Held by what makes or uses blobs; taken alone by what removes them.
    blobs_stay: Arc<RwLock<()>>,
    /// The clock when it was looked at last; none: not in this run.
    clock: Mutex<Option<clock::Look>>,
}

/// A blob of a repository.
#[derive(Debug)]
pub struct FoundBlob {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

impl OciRegistry {
    /// The registry of a state folder. `blobs` are those of the same folder.
    ///
    /// # Errors
    /// [`OciError::Blob`] when its folder cannot be made.
    pub fn open(store: Store, blobs: BlobStore, state_dir: &Path) -> Result<Self, OciError> {
        let uploads = Arc::new(Uploads::open(state_dir)?);
        Ok(Self { store, blobs, uploads, blobs_stay: Arc::default(), clock: Mutex::default() })
    }

    /// The state of what is there.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// All repositories, by name.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn repositories(&self) -> Result<Vec<Listed>, OciError> {
        let mut repositories = self.store.registry_repositories().await?;
        let lost = self.lost(self.store.registry_used_blobs().await?).await?;
        for repository in &mut repositories {
            repository.lost = lost.get(&repository.name).copied().unwrap_or(0);
        }
        Ok(repositories)
    }

    /// All tags of a repository, by name.
    ///
    /// # Errors
    /// [`OciError::RepositoryUnknown`], and those of the stores.
    pub async fn tags(&self, repository: &str) -> Result<Vec<Tag>, OciError> {
        if !self.store.is_registry_repository(repository).await? {
            return Err(OciError::RepositoryUnknown(repository.to_owned()));
        }
        let mut tags = self.store.registry_tags(repository).await?;
        let lost = self.lost(self.store.registry_tagged_blobs(repository).await?).await?;
        for tag in &mut tags {
            tag.lost = lost.get(&tag.name).copied().unwrap_or(0);
        }
        Ok(tags)
    }

    /// How many blobs of each name are not on the disk, although the database has them.
    async fn lost(&self, used: Vec<(String, Sha256Digest)>) -> Result<BTreeMap<String, u64>, OciError> {
        let blobs = self.blobs.clone();
        blocking(move || {
            let mut lost = BTreeMap::new();
            for (name, _) in used.into_iter().filter(|(_, digest)| !blobs.path(digest).is_file()) {
                *lost.entry(name).or_insert(0) += 1;
            }
            Ok(lost)
        })
        .await
    }

    /// No blob comes or is put to use as long as the result lives.
    pub async fn quiet(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.blobs_stay).write_owned().await
    }

    /// A blob of a repository.
    ///
    /// # Errors
    /// [`OciError::BlobUnknown`], and those of the stores.
    pub async fn blob(&self, repository: &Repository, digest: &Sha256Digest) -> Result<FoundBlob, OciError> {
        let (size, _) = self.held(repository, digest).await?;
        Ok(FoundBlob { path: self.blobs.path(digest), size })
    }

    /// The same for somebody who may be about to push a manifest that is made of it: it will not be taken for garbage.
    ///
    /// # Errors
    /// As [`Self::blob`].
    pub async fn blob_in_use(
        &self,
        repository: &Repository,
        digest: &Sha256Digest,
        now: OffsetDateTime,
    ) -> Result<FoundBlob, OciError> {
        let _stay = self.blobs_stay.read().await;
        let (size, used) = self.held(repository, digest).await?;
        if now - used > GRACE / 2 {
            self.store.keep_registry_blob(repository.as_str(), digest, size, now).await?;
        }
        Ok(FoundBlob { path: self.blobs.path(digest), size })
    }

    async fn held(&self, repository: &Repository, digest: &Sha256Digest) -> Result<(u64, OffsetDateTime), OciError> {
        let row = self.store.registry_blob(repository.as_str(), digest).await?;
        let row = row.ok_or(OciError::BlobUnknown(*digest))?;
        // After a backup was restored, rows name blobs that are not here: they are pushed again.
        if self.is_file(digest).await? { Ok(row) } else { Err(OciError::BlobUnknown(*digest)) }
    }

    async fn is_file(&self, digest: &Sha256Digest) -> Result<bool, OciError> {
        let (blobs, digest) = (self.blobs.clone(), *digest);
        blocking(move || match blobs.open_blob(&digest) {
            Ok(_) => Ok(true),
            Err(BlobError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// Gives a repository a blob of another one, or of any. False: nobody has it.
    ///
    /// # Errors
    /// Those of the stores.
    pub async fn mount(
        &self,
        repository: &Repository,
        from: Option<&Repository>,
        digest: &Sha256Digest,
        now: OffsetDateTime,
    ) -> Result<bool, OciError> {
        let _stay = self.blobs_stay.read().await;
        let from = from.map(Repository::as_str);
        Ok(self.is_file(digest).await?
            && self.store.mount_registry_blob(repository.as_str(), from, digest, now).await?)
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// [`OciError::TooMany`], and those of the disk.
    pub async fn begin(&self, repository: &Repository) -> Result<Upload, OciError> {
        let (uploads, repository) = (Arc::clone(&self.uploads), repository.clone());
        blocking(move || uploads.begin(&repository)).await
    }

    /// Goes on with an upload.
    ///
    /// # Errors
    /// [`OciError::UploadUnknown`], [`OciError::Busy`], and those of the disk.
    pub async fn resume(&self, repository: &Repository, id: Uuid) -> Result<Upload, OciError> {
        let (uploads, repository) = (Arc::clone(&self.uploads), repository.clone());
        blocking(move || uploads.resume(&repository, id)).await
    }

    /// How many bytes of an upload are there.
    ///
    /// # Errors
    /// [`OciError::UploadUnknown`], and those of the disk.
    pub async fn length(&self, repository: &Repository, id: Uuid) -> Result<u64, OciError> {
        let (uploads, repository) = (Arc::clone(&self.uploads), repository.clone());
        blocking(move || uploads.length(&repository, id)).await
    }

    /// Appends a body to an upload as it comes: a piece is in memory, never all of it. `range` is what its sender says
    /// that it is; `length` what the body's head says.
    ///
    /// # Errors
    /// [`OciError`]. What came before a body broke off stays, to go on from; nothing stays when the disk is full.
    pub async fn receive(
        &self,
        mut upload: Upload,
        mut body: Body,
        range: Option<(u64, u64)>,
        length: Option<u64>,
    ) -> Result<Upload, OciError> {
        let before = upload.length();
        if let Some((first, _)) = range.filter(|(first, _)| *first != before) {
            tracing::debug!(first, before, "a chunk out of order");
            return Err(OciError::OutOfOrder { length: before });
        }
        if let Err(error) = upload.check_room(length.unwrap_or(0)) {
            return Err(self.no_room(upload, error).await);
        }
        let (mut pieces, mut waiting, mut came) = (Vec::<Bytes>::new(), 0, 0_u64);
        let ended = loop {
            match tokio::time::timeout(STALL, body.frame()).await {
                Ok(None) => break true,
                Err(_) | Ok(Some(Err(_))) => break false,
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    (waiting, came) = (waiting + data.len(), came + data.len() as u64);
                    pieces.push(data);
                }
            }
            if waiting >= CHUNK {
                upload = self.write(upload, std::mem::take(&mut pieces)).await?;
                waiting = 0;
            }
        };
        upload = self.write(upload, pieces).await?;
        if !ended {
            self.pause(upload).await?;
            return Err(OciError::BrokeOff);
        }
        let said = range.map_or(came, |(first, last)| last - first + 1);
        if came != said {
            blocking(move || Ok(upload.truncate(before)?)).await?;
            return Err(OciError::Length { came, said });
        }
        Ok(upload)
    }

    async fn write(&self, mut upload: Upload, pieces: Vec<Bytes>) -> Result<Upload, OciError> {
        let (upload, result) = blocking(move || {
            let result = upload.write(&pieces);
            Ok((upload, result))
        })
        .await?;
        match result {
            Ok(()) => Ok(upload),
            Err(error) => Err(self.no_room(upload, error).await),
        }
    }

    /// A full disk has no room for half a blob.
    async fn no_room(&self, upload: Upload, error: BlobError) -> OciError {
        if matches!(error, BlobError::NoSpace { .. })
            && let Err(error) = blocking(move || Ok(upload.remove()?)).await
        {
            tracing::error!(error = &error as &dyn std::error::Error, "an upload stays on a full disk");
        }
        error.into()
    }

    /// Ends a request to an upload that goes on; its bytes so far, which are on the disk.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn pause(&self, upload: Upload) -> Result<u64, OciError> {
        let uploads = Arc::clone(&self.uploads);
        blocking(move || Ok(uploads.pause(upload)?)).await
    }

    /// Nothing is left of an upload.
    ///
    /// # Errors
    /// [`OciError::UploadUnknown`], [`OciError::Busy`], and those of the disk.
    pub async fn cancel(&self, repository: &Repository, id: Uuid) -> Result<(), OciError> {
        let upload = self.resume(repository, id).await?;
        blocking(move || Ok(upload.remove()?)).await
    }

    /// Makes a blob of an upload whose bytes have this digest. Durable when this returns.
    ///
    /// # Errors
    /// [`OciError::DigestDiffers`], and nothing is left of it; those of the stores.
    pub async fn finish(
        &self,
        repository: &Repository,
        mut upload: Upload,
        said: Sha256Digest,
        now: OffsetDateTime,
    ) -> Result<(), OciError> {
        let upload = blocking(move || {
            let is = upload.digest()?;
            if is == said {
                return Ok(upload);
            }
            upload.remove()?;
            Err(OciError::DigestDiffers { said, is })
        })
        .await?;
        let _stay = self.blobs_stay.read().await;
        // The row first: one without a file is as none, and is collected; a file that no row knows would stay.
        self.store.keep_registry_blob(repository.as_str(), &said, upload.length(), now).await?;
        let blobs = self.blobs.clone();
        blocking(move || Ok(blobs.adopt(upload.path(), &said)?)).await
    }

    /// A manifest.
    ///
    /// # Errors
    /// [`OciError::ManifestUnknown`], and those of the store.
    pub async fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<StoredManifest, OciError> {
        let found = match reference {
            Reference::Tag(tag) => self.store.registry_tagged(repository.as_str(), tag).await?,
            Reference::Digest(digest) => self.store.registry_manifest(repository.as_str(), digest).await?,
        };
        found.ok_or_else(|| OciError::ManifestUnknown(reference.to_string()))
    }

    /// Keeps a manifest, if all that it is made of is there, and lets its tag stand for it. Its digest, and its subject.
    ///
    /// # Errors
    /// [`OciError`]; nothing was changed then.
    pub async fn keep(
        &self,
        repository: &Repository,
        reference: &Reference,
        content_type: Option<&str>,
        body: Vec<u8>,
        now: OffsetDateTime,
    ) -> Result<(Sha256Digest, Option<Sha256Digest>), OciError> {
        let digest = Sha256Digest(Sha256::digest(&body).into());
        let tag = match reference {
            Reference::Digest(said) if *said != digest => {
                return Err(OciError::DigestDiffers { said: *said, is: digest });
            }
            Reference::Digest(_) => None,
            Reference::Tag(tag) => Some(tag.clone()),
        };
        let manifest = Manifest::read(content_type, &body)?;
        let parts = |parts: &[Part]| parts.iter().map(|part| (part.digest, part.size)).collect::<Vec<_>>();
        let _stay = self.blobs_stay.read().await;
        let (blobs, wanted) = (self.blobs.clone(), manifest.blobs.clone());
        blocking(move || match wanted.iter().find(|part| !blobs.path(&part.digest).is_file()) {
            Some(part) => Err(OciError::Lacks(part.digest)),
            None => Ok(()),
        })
        .await?;
        let new = NewManifest {
            repository: repository.to_string(),
            digest,
            blobs: parts(&manifest.blobs),
            manifests: parts(&manifest.manifests),
            media_type: manifest.media_type,
            body,
            subject: manifest.subject,
            artifact_type: manifest.artifact_type,
            tag,
            now,
        };
        match self.store.keep_registry_manifest(&new).await? {
            Kept::Yes => Ok((digest, new.subject)),
            Kept::Lacks(digest) => Err(OciError::Lacks(digest)),
            Kept::Differs(digest, is) => Err(OciError::Differs { digest, is }),
        }
    }

    /// Takes away a tag, a manifest with its tags, or a repository.
    ///
    /// # Errors
    /// [`OciError`] when it is not there, or a part of something else.
    pub async fn delete(
        &self,
        repository: &Repository,
        what: Option<&Reference>,
        now: OffsetDateTime,
    ) -> Result<Deleted, OciError> {
        let name = repository.as_str();
        let unknown = |reference: &Reference| OciError::ManifestUnknown(reference.to_string());
        match what {
            None => match self.store.remove_registry_repository(name).await? {
                Deleted { manifests: 0, .. } => Err(OciError::RepositoryUnknown(name.to_owned())),
                deleted => Ok(deleted),
            },
            Some(reference @ Reference::Tag(tag)) => match self.store.remove_registry_tag(name, tag, now).await? {
                true => Ok(Deleted { tags: 1, manifests: 0 }),
                false => Err(unknown(reference)),
            },
            Some(reference @ Reference::Digest(digest)) => {
                match self.store.remove_registry_manifest(name, digest).await? {
                    Gone::Yes(deleted) => Ok(deleted),
                    Gone::Missing => Err(unknown(reference)),
                    Gone::PartOf(whole) => Err(OciError::PartOf(whole)),
                }
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, OciError> + Send + 'static,
) -> Result<T, OciError> {
    match tokio::task::spawn_blocking(job).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(OciError::Stopped),
    }
}
