//! Pushes under way, and garbage, beside a clock that is set.
#![expect(clippy::disallowed_methods, reason = "there is no other way to get an instant")]

use std::path::Path;

use nkd_api::Sha256Digest;
use sha2::{Digest as _, Sha256};

use super::super::spec::{Reference, Repository};
use super::*;
use crate::store::{Seal, Store};

const MINUTE: Duration = Duration::MINUTE;
const HOUR: Duration = Duration::HOUR;

fn date() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

/// A run of the service.
struct Run {
    oci: Arc<OciRegistry>,
    images: Arc<ImageStore>,
    start: Instant,
}

impl Run {
    async fn begin(place: &Path) -> Self {
        let seal = Seal::from_key_file(&place.join("key"), !place.join("key").exists()).unwrap();
        let store = Store::open(place, seal).await.unwrap();
        let images = Arc::new(ImageStore::open(place).unwrap());
        let oci = Arc::new(OciRegistry::open(store, images.blobs().clone(), place).unwrap());
        Self { oci, images, start: Instant::now() }
    }

    /// A blob is pushed whose manifest is to come.
    async fn push(&self, bytes: &'static [u8], now: OffsetDateTime) -> Sha256Digest {
        let (repository, digest) = (repository(), Sha256Digest(Sha256::digest(bytes).into()));
        let upload = self.oci.begin(&repository).await.unwrap();
        let upload = self.oci.receive(upload, bytes.into(), None, None).await.unwrap();
        self.oci.finish(&repository, upload, digest, now).await.unwrap();
        digest
    }

    async fn look(&self, now: OffsetDateTime, after: Duration) {
        self.oci.look_at_clock(now, self.start + after).await.unwrap();
    }

    /// How much was garbage, by the default grace: manifests and blobs.
    async fn collect(&self, now: OffsetDateTime, after: Duration) -> (u64, usize) {
        let order = GarbageOrder {
            dry_run: false,
            untagged: true,
            grace: GRACE,
            uploads: UPLOADS,
            now,
            at: self.start + after,
        };
        let garbage = self.oci.collect_garbage(&self.images, order).await.unwrap();
        (garbage.manifests, garbage.blobs.len())
    }
}

fn repository() -> Repository {
    "a/b".parse().unwrap()
}

#[tokio::test]
async fn a_clock_that_is_set_forward_takes_nothing_from_a_push_and_garbage_still_goes() {
    let place = tempfile::tempdir().unwrap();
    let run = Run::begin(place.path()).await;
    run.look(date(), Duration::ZERO).await;
    let config = run.push(b"{}", date()).await;
    // Somebody pulls it by a tag that stood for it until now.
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let config = serde_json::json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_text(&config), "size": 2});
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []});
    let digest = Sha256Digest(Sha256::digest(manifest.to_string()).into());
    let reference = Reference::Digest(digest);
    run.oci.keep(&repository(), &reference, Some(kind), manifest.to_string().into(), date()).await.unwrap();
    run.push(b"pushed before", date() + 10 * MINUTE).await;
    let jump = 48 * HOUR;
    run.push(b"pushed after", date() + 20 * MINUTE + jump).await;
    assert_eq!(run.collect(date() + 21 * MINUTE + jump, 21 * MINUTE).await, (0, 0));
    assert_eq!(run.collect(date() + 60 * MINUTE + jump, 60 * MINUTE).await, (0, 0));
    assert_eq!(
        run.collect(date() + 61 * MINUTE + jump, 61 * MINUTE).await,
        (1, 1),
        "the manifest, and what it was made of"
    );
    assert_eq!(run.collect(date() + 71 * MINUTE + jump, 71 * MINUTE).await, (0, 1), "what was pushed before");
    assert_eq!(run.collect(date() + 82 * MINUTE + jump, 82 * MINUTE).await, (0, 1), "what was pushed after");
}

#[tokio::test]
async fn what_was_pushed_while_the_clock_was_ahead_goes_after_the_grace() {
    let place = tempfile::tempdir().unwrap();
    let before = Run::begin(place.path()).await;
    before.push(b"pushed by an earlier run", date() + 400 * 24 * HOUR).await;
    before.oci.store().close().await;
    let run = Run::begin(place.path()).await;
    assert_eq!(run.collect(date(), Duration::ZERO).await, (0, 0));
    // In this one, too.
    run.push(b"pushed by this one", date() + 10 * MINUTE + 400 * 24 * HOUR).await;
    run.look(date() + 10 * MINUTE + 400 * 24 * HOUR, 10 * MINUTE).await;
    run.look(date() + 11 * MINUTE, 11 * MINUTE).await;
    assert_eq!(run.collect(date() + 60 * MINUTE, 60 * MINUTE).await, (0, 0));
    assert_eq!(run.collect(date() + 72 * MINUTE, 72 * MINUTE).await, (0, 2));
}

#[tokio::test]
async fn a_clock_that_is_set_back_and_put_right_again_takes_nothing_from_a_push() {
    let place = tempfile::tempdir().unwrap();
    let run = Run::begin(place.path()).await;
    run.look(date(), Duration::ZERO).await;
    run.look(date() + MINUTE - 3 * HOUR, MINUTE).await;
    run.push(b"pushed meanwhile", date() + 2 * MINUTE - 3 * HOUR).await;
    assert_eq!(run.collect(date() + 3 * MINUTE, 3 * MINUTE).await, (0, 0));
    assert_eq!(run.collect(date() + 64 * MINUTE, 64 * MINUTE).await, (0, 1));
}
