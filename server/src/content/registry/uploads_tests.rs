//! Uploads on a real file system.

use super::*;

fn place() -> (tempfile::TempDir, Uploads, Repository) {
    let dir = tempfile::TempDir::new().unwrap();
    let uploads = Uploads::open(dir.path()).unwrap();
    (dir, uploads, "a/b".parse().unwrap())
}

#[test]
fn an_upload_goes_on_with_and_without_its_hash() {
    let (dir, uploads, repository) = place();
    let mut upload = uploads.begin(&repository).unwrap();
    let id = upload.id();
    upload.write(&[b"ab", b"cd"]).unwrap();
    assert!(matches!(uploads.resume(&repository, id), Err(OciError::Busy)));
    assert_eq!(uploads.pause(upload).unwrap(), 4);
    assert!(matches!(uploads.resume(&"a/c".parse().unwrap(), id), Err(OciError::UploadUnknown)), "it is another's");
    // Another process, which knows no hash.
    let uploads = Uploads::open(dir.path()).unwrap();
    assert_eq!(uploads.length(&repository, id).unwrap(), 4);
    let mut upload = uploads.resume(&repository, id).unwrap();
    upload.write(&[b"ef"]).unwrap();
    assert_eq!(upload.digest().unwrap(), Sha256Digest(Sha256::digest(b"abcdef").into()));
    upload.truncate(3).unwrap();
    upload.write(&[b"x"]).unwrap();
    assert_eq!(upload.digest().unwrap(), Sha256Digest(Sha256::digest(b"abcx").into()));
    upload.remove().unwrap();
    assert!(matches!(uploads.resume(&repository, id), Err(OciError::UploadUnknown)));
    assert!(uploads.list().unwrap().is_empty());
}

#[test]
fn what_nobody_goes_on_with_ends_and_so_does_patience() {
    let (_dir, uploads, repository) = place();
    for _ in 0..MOST {
        uploads.begin(&repository).unwrap();
    }
    assert!(matches!(uploads.begin(&repository), Err(OciError::TooMany(MOST))));
    let now = SystemTime::now();
    assert_eq!(uploads.expire(now, LIFETIME, false).unwrap(), (0, 0));
    assert_eq!(uploads.expire(now + LIFETIME + Duration::from_secs(60), LIFETIME, false).unwrap(), (MOST as u64, 0));
    uploads.begin(&repository).unwrap();
}
