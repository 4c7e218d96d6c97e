//! Random lives of repositories beside a model of them: what a manifest is made of never goes, and what nothing refers
//! to does.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::store::Seal;

/// One thing that happens. Repositories, blobs and tags are few, so that they meet.
#[derive(Debug, Clone)]
enum Deed {
    Blob(u8, u8),
    Mount(u8, u8, u8),
    Image(u8, BTreeSet<u8>, Option<u8>),
    Index(u8, u8),
    Note(u8, u8),
    Untag(u8, u8),
    Delete(u8, u8),
    DeleteAll(u8),
    Collect { grace: i64, untagged: bool },
}

fn deed() -> impl Strategy<Value = Deed> {
    let (name, blob, tag, nth) = (0..2_u8, 0..5_u8, 0..3_u8, 0..8_u8);
    prop_oneof![
        4 => (name.clone(), blob.clone()).prop_map(|(r, b)| Deed::Blob(r, b)),
        1 => (name.clone(), name.clone(), blob.clone()).prop_map(|(r, from, b)| Deed::Mount(r, from, b)),
        4 => (name.clone(), prop::collection::btree_set(blob, 0..3), prop::option::of(tag.clone()))
            .prop_map(|(r, blobs, tag)| Deed::Image(r, blobs, tag)),
        2 => (name.clone(), nth.clone()).prop_map(|(r, n)| Deed::Index(r, n)),
        3 => (name.clone(), nth.clone()).prop_map(|(r, n)| Deed::Note(r, n)),
        1 => (name.clone(), tag).prop_map(|(r, t)| Deed::Untag(r, t)),
        1 => (name.clone(), nth).prop_map(|(r, n)| Deed::Delete(r, n)),
        1 => name.prop_map(Deed::DeleteAll),
        4 => (0..6_i64, any::<bool>()).prop_map(|(grace, untagged)| Deed::Collect { grace, untagged }),
    ]
}

/// A repository as it should be.
#[derive(Debug, Default)]
struct Model {
    /// With the minute of their last use.
    blobs: BTreeMap<Sha256Digest, i64>,
    manifests: BTreeMap<Sha256Digest, Modelled>,
    tags: BTreeMap<String, Sha256Digest>,
}

#[derive(Debug)]
struct Modelled {
    parts: BTreeSet<Sha256Digest>,
    subject: Option<Sha256Digest>,
    size: u64,
    pushed: i64,
}

impl Model {
    fn is_part(&self, digest: &Sha256Digest) -> bool {
        self.manifests.values().any(|manifest| manifest.parts.contains(digest))
    }

    fn nth(&self, n: u8) -> Option<Sha256Digest> {
        self.manifests.keys().nth(usize::from(n)).copied()
    }

    /// What a tag leaves is as if it was pushed now.
    fn leave(&mut self, tag: &str, minute: i64) -> bool {
        let left = self.tags.remove(tag);
        left.and_then(|digest| self.manifests.get_mut(&digest)).map(|left| left.pushed = minute).is_some()
    }

    fn drop_untagged(&mut self, before: i64) {
        loop {
            let loose: Vec<_> = self
                .manifests
                .iter()
                .filter(|(digest, manifest)| {
                    let led_to = self.tags.values().any(|tagged| tagged == *digest)
                        || self.is_part(digest)
                        || manifest.subject.is_some_and(|subject| self.manifests.contains_key(&subject));
                    manifest.pushed < before && !led_to
                })
                .map(|(digest, _)| *digest)
                .collect();
            if loose.is_empty() {
                return;
            }
            loose.iter().for_each(|digest| drop(self.manifests.remove(digest)));
        }
    }
}

fn sha(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}

fn blob(n: u8) -> (Sha256Digest, u64) {
    (sha(&[n]), 100 + u64::from(n))
}

fn at(minute: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::minutes(minute)
}

fn name(repository: u8) -> String {
    format!("r/{repository}")
}

async fn live(deeds: Vec<Deed>) -> Result<(), TestCaseError> {
    let dir = tempfile::TempDir::new().unwrap();
    let seal = Seal::from_key_file(&dir.path().join("key"), true).unwrap();
    let store = Store::open(dir.path(), seal).await.unwrap();
    let mut models = [Model::default(), Model::default()];
    for (minute, deed) in (0_i64..).zip(deeds) {
        happen(&store, &mut models, minute, deed).await?;
        for (repository, model) in (0_u8..).zip(&models) {
            let name = name(repository);
            for (digest, manifest) in &model.manifests {
                prop_assert!(store.registry_manifest(&name, digest).await.unwrap().is_some());
                for part in &manifest.parts {
                    let is_blob = store.registry_blob(&name, part).await.unwrap().is_some();
                    let is_manifest = store.registry_manifest(&name, part).await.unwrap().is_some();
                    prop_assert!(is_blob || is_manifest, "a part of a manifest is gone");
                }
            }
            let tags = store.registry_tags(&name).await.unwrap();
            let tags: BTreeMap<_, _> = tags.into_iter().map(|tag| (tag.name, tag.digest)).collect();
            let expected = model.tags.iter().map(|(tag, digest)| (tag.clone(), format!("sha256:{digest}")));
            prop_assert_eq!(tags, expected.collect::<BTreeMap<_, _>>());
        }
        let held: BTreeSet<_> = models.iter().flat_map(|model| model.blobs.keys().copied()).collect();
        prop_assert_eq!(store.registry_digests().await.unwrap(), held);
    }
    store.close().await;
    Ok(())
}

async fn happen(store: &Store, models: &mut [Model; 2], minute: i64, deed: Deed) -> Result<(), TestCaseError> {
    match deed {
        Deed::Blob(repository, n) => {
            let (digest, size) = blob(n);
            store.keep_registry_blob(&name(repository), &digest, size, at(minute)).await.unwrap();
            models[usize::from(repository)].blobs.insert(digest, minute);
        }
        Deed::Mount(repository, from, n) => {
            let digest = blob(n).0;
            let there = models[usize::from(from)].blobs.contains_key(&digest);
            let from = name(from);
            let done = store.mount_registry_blob(&name(repository), Some(&from), &digest, at(minute)).await.unwrap();
            prop_assert_eq!(done, there);
            if there {
                models[usize::from(repository)].blobs.insert(digest, minute);
            }
        }
        Deed::Image(repository, blobs, tag) => {
            let blobs: Vec<_> = blobs.into_iter().map(blob).collect();
            let tag = tag.map(|tag| tag.to_string());
            keep(store, &mut models[usize::from(repository)], repository, minute, (blobs, None, None, tag)).await?;
        }
        Deed::Index(repository, n) => {
            let model = &mut models[usize::from(repository)];
            let Some(child) = model.nth(n) else { return Ok(()) };
            keep(store, model, repository, minute, (Vec::new(), Some(child), None, None)).await?;
        }
        Deed::Note(repository, n) => {
            let model = &mut models[usize::from(repository)];
            let Some(subject) = model.nth(n) else { return Ok(()) };
            keep(store, model, repository, minute, (Vec::new(), None, Some(subject), None)).await?;
        }
        Deed::Untag(repository, tag) => {
            let there = models[usize::from(repository)].leave(&tag.to_string(), minute);
            let (name, tag) = (name(repository), tag.to_string());
            prop_assert_eq!(store.remove_registry_tag(&name, &tag, at(minute)).await.unwrap(), there);
        }
        Deed::Delete(repository, n) => {
            let model = &mut models[usize::from(repository)];
            let Some(digest) = model.nth(n) else { return Ok(()) };
            let gone = store.remove_registry_manifest(&name(repository), &digest).await.unwrap();
            prop_assert_eq!(matches!(gone, Gone::PartOf(_)), model.is_part(&digest));
            if let Gone::Yes(_) = gone {
                model.manifests.remove(&digest);
                model.tags.retain(|_, tagged| *tagged != digest);
            }
        }
        Deed::DeleteAll(repository) => {
            store.remove_registry_repository(&name(repository)).await.unwrap();
            let model = &mut models[usize::from(repository)];
            (model.manifests, model.tags) = Default::default();
        }
        Deed::Collect { grace, untagged } => {
            let before = minute - grace;
            let dry = store.unused_in_registry(at(before), untagged, true).await.unwrap();
            let unused = store.unused_in_registry(at(before), untagged, false).await.unwrap();
            prop_assert_eq!(&dry, &unused);
            store.drop_registry_blobs(&unused.blobs).await.unwrap();
            let count = |models: &[Model; 2]| models.iter().map(|model| model.manifests.len() as u64).sum::<u64>();
            let manifests = count(models);
            for model in models.iter_mut() {
                if untagged {
                    model.drop_untagged(before);
                }
                let Model { blobs, manifests, .. } = model;
                blobs.retain(|digest, used| *used >= before || manifests.values().any(|m| m.parts.contains(digest)));
            }
            prop_assert_eq!(unused.manifests, manifests - count(models));
            for blob in &unused.blobs {
                let elsewhere = models.iter().any(|model| model.blobs.contains_key(&blob.digest));
                prop_assert_eq!(blob.shared, elsewhere, "a file goes when nobody holds it, and only then");
            }
        }
    }
    Ok(())
}

type Parts = (Vec<(Sha256Digest, u64)>, Option<Sha256Digest>, Option<Sha256Digest>, Option<String>);

async fn keep(
    store: &Store,
    model: &mut Model,
    repository: u8,
    minute: i64,
    (blobs, child, subject, tag): Parts,
) -> Result<(), TestCaseError> {
    let parts: BTreeSet<_> = blobs.iter().map(|(digest, _)| *digest).chain(child).collect();
    let body = format!("{parts:?} {subject:?}").into_bytes();
    let (digest, size) = (sha(&body), body.len() as u64);
    let whole = blobs.iter().all(|(digest, _)| model.blobs.contains_key(digest));
    let new = NewManifest {
        repository: name(repository),
        digest,
        media_type: "a/b".into(),
        body,
        blobs,
        manifests: child.iter().map(|child| (*child, model.manifests[child].size)).collect(),
        subject,
        artifact_type: None,
        tag: tag.clone(),
        now: at(minute),
    };
    let kept = store.keep_registry_manifest(&new).await.unwrap();
    prop_assert_eq!(kept == Kept::Yes, whole, "{:?}", kept);
    if whole {
        model.manifests.insert(digest, Modelled { parts, subject, size, pushed: minute });
        if let Some(tag) = &tag {
            model.leave(tag, minute);
        }
        model.tags.extend(tag.map(|tag| (tag, digest)));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_is_needed_stays_and_what_is_not_goes(deeds in prop::collection::vec(deed(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(live(deeds))?;
    }
}
