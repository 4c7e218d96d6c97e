//! Garbage of the registry: blobs that no manifest refers to, and, when asked for, manifests that nothing leads to.
//!
//! Files go first, then what the database says of them: a service that is killed in between finds the same garbage
//! again. What somebody has pushed, or asked for in order to push, within the grace stays: its manifest may be to come. A clock
//! that is set changes nothing of that ([`OciRegistry::look_at_clock`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use nkd_api::registry::RegistryGarbage;
use time::{Duration, OffsetDateTime};

use super::clock::{Look, Set};
use super::spec::digest_text;
use super::uploads::LIFETIME;
use super::{OciError, OciRegistry, blocking};
use crate::content::image::ImageStore;

/// How long a push may take from its first blob to its manifest.
pub const GRACE: Duration = Duration::hours(1);

/// How long an upload stays that nobody goes on with, as long as nobody says a shorter time.
pub const UPLOADS: Duration = Duration::seconds(LIFETIME.as_secs() as i64);

/// How garbage is collected.
#[derive(Debug, Clone, Copy)]
pub struct GarbageOrder {
    /// Only tell what would be removed.
    pub dry_run: bool,
    /// Manifests without a tag too, unless an index holds them or they say something of one that stays.
    pub untagged: bool,
    /// What is younger stays.
    pub grace: Duration,
    /// Uploads stay for so long after somebody has gone on with them.
    pub uploads: Duration,
    /// The time.
    pub now: OffsetDateTime,
    /// The same by the steady clock.
    pub at: Instant,
}

impl OciRegistry {
    /// Removes garbage. A blob that an image or another repository has stays on the disk. What was begun comes to its end if
    /// the caller leaves: pushes and imports wait until no file goes any more.
    ///
    /// # Errors
    /// [`OciError::Images`] while an image is being imported, or when it cannot be told what images use.
    pub async fn collect_garbage(
        self: &Arc<Self>,
        images: &Arc<ImageStore>,
        order: GarbageOrder,
    ) -> Result<RegistryGarbage, OciError> {
        let (registry, images) = (Arc::clone(self), Arc::clone(images));
        match tokio::spawn(async move { registry.collect(&images, order).await }).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(OciError::Stopped),
        }
    }

    async fn collect(&self, images: &ImageStore, order: GarbageOrder) -> Result<RegistryGarbage, OciError> {
        let (uploads, after) = (Arc::clone(&self.uploads), order.uploads.unsigned_abs());
        let ending = move || Ok(uploads.expire(order.now.into(), order.at, after, order.dry_run)?);
        let (uploads, upload_bytes) = blocking(ending).await?;
        let _quiet = self.quiet().await;
        // An import may be about to use a blob that it has found.
        let _no_import = images.hold_imports()?;
        let in_images = images.referenced()?;
        self.look_at_clock(order.now, order.at).await?;
        let before = order.now - order.grace;
        let unused = self.store().unused_in_registry(before, order.untagged, order.dry_run).await?;
        let loose: BTreeSet<_> = unused.blobs.iter().filter(|blob| !blob.shared).map(|b| (b.digest, b.size)).collect();
        let going: Vec<_> = loose.into_iter().filter(|(digest, _)| !in_images.contains(digest)).collect();
        let garbage = RegistryGarbage {
            dry_run: order.dry_run,
            manifests: unused.manifests,
            blobs: going.iter().map(|(digest, _)| digest_text(digest)).collect(),
            bytes: going.iter().map(|(_, size)| size).sum(),
            uploads,
            upload_bytes,
        };
        if order.dry_run || (unused.blobs.is_empty() && unused.manifests == 0) {
            return Ok(garbage);
        }
        let blobs = self.blobs.clone();
        blocking(move || Ok(going.iter().try_for_each(|(digest, _)| blobs.remove(digest))?)).await?;
        self.store().drop_registry_blobs(&unused.blobs).await?;
        let (blobs, manifests, bytes) = (garbage.blobs.len(), garbage.manifests, garbage.bytes);
        tracing::info!(blobs, manifests, bytes, "garbage of the registry collected");
        Ok(garbage)
    }

    /// Looks whether the clock was set since the last time, and puts the dates of what is in the registry right. To be called
    /// often: a clock that was set forth and back between two looks is not seen.
    ///
    /// # Errors
    /// [`OciError::Store`]; the next look finds the same.
    pub async fn look_at_clock(&self, now: OffsetDateTime, at: Instant) -> Result<(), OciError> {
        let mut last = self.clock.lock().await;
        let look = Look::new(now, at);
        let Some(set) = look.since(*last) else { return Ok(()) };
        let forward = if let Set::Forward(by) = set { by } else { Duration::ZERO };
        let changed = self.store().set_registry_dates(now, forward).await?;
        if last.is_some() || changed > 0 {
            tracing::warn!(changed, "the clock was set: ages of what is in the registry are put right");
        }
        *last = Some(look);
        Ok(())
    }

    /// Ends uploads that nobody went on with for a day; how many.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn expire_uploads(&self, now: OffsetDateTime, at: Instant) -> Result<u64, OciError> {
        let uploads = Arc::clone(&self.uploads);
        let (ended, _) = blocking(move || Ok(uploads.expire(now.into(), at, LIFETIME, false)?)).await?;
        Ok(ended)
    }
}

#[cfg(test)]
#[path = "garbage_tests.rs"]
mod tests;
