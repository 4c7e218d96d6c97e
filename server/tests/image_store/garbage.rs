//! Garbage collection: what goes, what stays, and who waits for whom.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nkd_server::content::image::GarbageRequest;
use nkd_server::content::image::catalog::CatalogError;
use time::OffsetDateTime;

use crate::support::*;

fn all(dry_run: bool) -> GarbageRequest {
    let now = OffsetDateTime::from(std::time::SystemTime::now()) + Duration::from_secs(1);
    GarbageRequest::new(dry_run, true, now)
}

#[tokio::test]
async fn only_what_no_image_uses_goes() {
    let place = Place::new();
    for version in ["1", "2"] {
        // The kernel is the same in both.
        for (i, (name, bytes)) in parts("lab", version, "x86_64", 1).into_iter().enumerate() {
            place.write(&name, if i == 0 { b"kernel" } else { &bytes });
        }
        if version == "2" {
            place.write("lab-2-live-rootfs.x86_64.img", &bytes(70, 1000));
        }
        place
            .import(nkd_server::content::image::ImportRequest { version: Some(version.into()), ..place.folder() })
            .await
            .unwrap();
    }
    assert_eq!(place.store.collect_garbage(all(false), &BTreeSet::new()).unwrap(), Default::default());
    place.store.remove("lab-2-x86_64", &BTreeSet::new()).unwrap();
    // What a killed import leaves.
    fs::write(place.state.join("blobs/incoming/blob-x"), b"12345").unwrap();
    fs::create_dir_all(place.state.join("partial")).unwrap();
    fs::write(place.state.join("partial/y"), b"123").unwrap();
    let before = place.files();
    let dry = place.store.collect_garbage(all(true), &BTreeSet::new()).unwrap();
    assert_eq!(place.files(), before);
    assert_eq!(dry.blobs, [sha(&bytes(70, 1000))]);
    assert_eq!((dry.bytes, dry.files.len()), (1000 + 5 + 3, 2));
    // Young parts wait for the next attempt, unless they are named; what no image uses does not.
    let now = OffsetDateTime::from(std::time::SystemTime::now());
    let careful = place.store.collect_garbage(GarbageRequest::new(true, false, now), &BTreeSet::new()).unwrap();
    assert_eq!((careful.blobs, careful.bytes, careful.kept), (dry.blobs.clone(), 1000 + 5, 3));
    assert_eq!(place.store.collect_garbage(all(false), &BTreeSet::new()).unwrap(), dry);
    assert_eq!(place.files().len(), 4 + 1);
    place.store.verify("lab-1-x86_64", &Recorder::default()).unwrap();
}

#[tokio::test]
async fn an_import_under_way_keeps_everything() {
    let place = Place::new();
    let lock = fs::File::create(place.state.join("blobs/.lock")).unwrap();
    lock.lock_shared().unwrap();
    let error = place.store.collect_garbage(all(false), &BTreeSet::new()).unwrap_err();
    assert!(matches!(error, CatalogError::ImportUnderWay), "{error}");
    drop(lock);
    place.store.collect_garbage(all(false), &BTreeSet::new()).unwrap();
}

#[tokio::test]
async fn a_damaged_document_keeps_everything_and_is_no_missing_image() {
    let place = Place::new();
    for (name, bytes) in parts("lab", "1", "x86_64", 1) {
        place.write(&name, &bytes);
    }
    place.import_folder().await.unwrap();
    fs::write(place.state.join("images/lab-1-x86_64.json"), b"{").unwrap();
    for error in [
        place.store.image("lab-1-x86_64").unwrap_err(),
        place.store.collect_garbage(all(false), &BTreeSet::new()).unwrap_err(),
    ] {
        assert!(matches!(error, CatalogError::Damaged { .. }), "{error}");
    }
    assert_eq!(place.store.list().unwrap(), vec![]);
    assert_eq!(place.files().len(), 5);
}

#[tokio::test]
async fn a_damaged_blob_is_found_and_healed_by_the_next_import() {
    let place = Place::new();
    for (name, bytes) in parts("lab", "1", "x86_64", 1) {
        place.write(&name, &bytes);
    }
    let image = place.import_folder().await.unwrap();
    let path = place.store.blobs().path(&image.artifacts[2].sha256);
    fs::write(&path, b"rotten").unwrap();
    let error = place.store.verify(&image.name, &Recorder::default()).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    place.import_folder().await.unwrap();
    place.store.verify(&image.name, &Recorder::default()).unwrap();
}
