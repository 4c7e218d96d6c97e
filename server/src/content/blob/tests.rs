//! Blobs on a real file system; a full one is in the integration tests.

use std::time::UNIX_EPOCH;

use super::*;

fn put(store: &BlobStore, bytes: &[u8]) -> Sha256Digest {
    let mut writer = store.writer(Some(bytes.len() as u64)).unwrap();
    bytes.chunks(3).for_each(|c| writer.write(c).unwrap());
    let staged = writer.finish();
    let digest = staged.digest();
    staged.publish(store).unwrap();
    digest
}

#[test]
fn bytes_come_back_by_their_digest() {
    let dir = tempfile::TempDir::new().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let digest = put(&store, b"abc");
    let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(digest.to_string(), hex);
    assert_eq!(store.path(&digest), dir.path().join("blobs/sha256/ba").join(&hex[2..]));
    let (mut file, len) = store.open_blob(&digest).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), len), ("abc", 3));
    assert_eq!(put(&store, b"abc"), digest);
    assert_eq!(put(&store, b"").to_string()[..8], *"e3b0c442");
    let entries = store.entries().unwrap();
    assert_eq!(entries.iter().map(|e| e.size).collect::<Vec<_>>(), [3, 0]);
    assert!(entries[0].modified > UNIX_EPOCH);
    store.remove(&digest).unwrap();
    store.remove(&digest).unwrap();
    assert!(matches!(store.open_blob(&digest), Err(BlobError::NotFound { .. })));
}

#[test]
fn what_is_not_published_leaves_nothing() {
    let dir = tempfile::TempDir::new().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let mut writer = store.writer(Some(10)).unwrap();
    writer.write(b"abc").unwrap();
    drop(writer);
    drop(store.writer(None).unwrap().finish());
    assert_eq!(fs::read_dir(store.incoming()).unwrap().count(), 0);
    assert_eq!(store.entries().unwrap(), []);
}

#[test]
fn a_shorter_blob_gives_back_what_was_reserved() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::TempDir::new().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let mut writer = store.writer(Some(1 << 20)).unwrap();
    writer.write(b"abc").unwrap();
    let staged = writer.finish();
    let digest = staged.digest();
    staged.publish(&store).unwrap();
    let meta = fs::metadata(store.path(&digest)).unwrap();
    assert_eq!(meta.len(), 3);
    assert!(meta.blocks() * 512 < 1 << 20, "{}", meta.blocks());
}

#[test]
fn damage_is_found() {
    let dir = tempfile::TempDir::new().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let digest = put(&store, b"abc");
    assert_eq!(store.verify(&digest, |_| {}).unwrap(), 3);
    fs::write(store.path(&digest), b"abd").unwrap();
    assert!(matches!(store.verify(&digest, |_| {}), Err(BlobError::Damaged { .. })));
}

#[test]
fn a_finished_file_is_taken_over() {
    let dir = tempfile::TempDir::new().unwrap();
    let store = BlobStore::open(dir.path()).unwrap();
    let path = dir.path().join("partial");
    fs::write(&path, b"abc").unwrap();
    let (digest, _) = hash_reader(&mut &b"abc"[..], |_| {}).unwrap();
    store.adopt(&path, &digest).unwrap();
    assert!(!path.exists());
    store.verify(&digest, |_| {}).unwrap();
}
