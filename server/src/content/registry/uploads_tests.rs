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
    let (now, at) = (SystemTime::now(), Instant::now());
    assert_eq!(uploads.expire(now, at, LIFETIME, false).unwrap(), (0, 0));
    let later = LIFETIME + Duration::from_secs(60);
    assert_eq!(uploads.expire(now + later, at + later, LIFETIME, false).unwrap(), (MOST as u64, 0));
    uploads.begin(&repository).unwrap();
}

#[test]
fn what_broke_off_ends_when_it_is_asked_to_and_what_is_written_does_not() {
    let (_dir, uploads, repository) = place();
    let (now, at) = (SystemTime::now(), Instant::now());
    let end = |after: u64, dry_run| {
        let after = Duration::from_secs(after);
        uploads.expire(now + after, at + after, Duration::ZERO, dry_run).unwrap()
    };
    assert_eq!(end(0, false), (0, 0));
    let mut broken = uploads.begin(&repository).unwrap();
    broken.write(&[b"half"]).unwrap();
    uploads.pause(broken).unwrap();
    let written = uploads.begin(&repository).unwrap();
    assert_eq!(end(1, false), (0, 0), "between two requests");
    assert_eq!(end(120, true), (1, 4));
    assert_eq!(end(120, false), (1, 4));
    assert_eq!(end(240, false), (0, 0), "{written:?}");
}

#[test]
fn a_clock_that_is_set_neither_ends_an_upload_nor_keeps_one() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (at, date) = (Instant::now(), SystemTime::UNIX_EPOCH + 20_000 * LIFETIME);
    let upload = |name: &str, changed| (PathBuf::from(name), changed);
    let mut ages = Ages::default();
    let mut over = |all: &[(PathBuf, SystemTime)], now, hours: u32| {
        let over = ages.over(all.to_vec(), now, at + hours * HOUR, LIFETIME);
        over.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
    };
    // In an earlier run: two days ago, 20 hours ago, and while the clock was ahead.
    let all = [upload("old", date - 48 * HOUR), upload("young", date - 20 * HOUR), upload("ahead", date + 48 * HOUR)];
    assert_eq!(over(&all, date, 0), ["old"]);
    // Set forward: what is new, or was gone on with, has the date of before.
    let mut all = [all[1].clone(), all[2].clone(), upload("new", date + HOUR)];
    assert_eq!(over(&all, date + 72 * HOUR, 1), [""; 0]);
    all[0].1 = date + HOUR;
    assert_eq!(over(&all, date + 74 * HOUR, 3), [""; 0]);
    // Set back.
    all[2].1 = date + 75 * HOUR;
    assert_eq!(over(&all, date, 4), [""; 0]);
    assert_eq!(over(&all, date, 23), [""; 0]);
    assert_eq!(over(&all, date, 24), ["ahead"]);
    assert_eq!(over(&[all[0].clone(), all[2].clone()], date, 26), ["young"], "it was an hour old at most");
    assert_eq!(over(&[all[2].clone()], date, 27), [""; 0]);
    assert_eq!(over(&[all[2].clone()], date, 28), ["new"]);
}
