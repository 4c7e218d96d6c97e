//! A disk that is full: a small tmpfs in a mount namespace of its own, in a process of its own.

use std::path::Path;
use std::process::Command;

use nkd_server::content::blob::{BlobError, BlobStore};
use nkd_server::content::image::ImageStore;
use nkd_server::content::image::error::ImportError;
use nkd_server::content::image::source::Source;

use crate::support::*;

const DIR: &str = "NKD_TEST_SMALL_DISK";

/// Runs this very test again where `DIR` is a disk of one megabyte; true in there.
fn on_a_small_disk(name: &str) -> bool {
    if std::env::var_os(DIR).is_some() {
        return true;
    }
    let dir = tempfile::TempDir::new().unwrap();
    let mut unshare = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let script = "mount -t tmpfs -o size=1m tmpfs \"$1\" && exec \"$2\" --exact \"$3\" --nocapture";
    let output = unshare
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([dir.path().as_os_str(), std::env::current_exe().unwrap().as_os_str()])
        .arg(name)
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn assert_no_space(error: &BlobError, wanted: u64) {
    let BlobError::NoSpace { needed, free, path } = error else { panic!("{error}") };
    assert_eq!(*needed, wanted);
    assert!(*free < wanted, "{free}");
    assert!(path.starts_with(std::env::var(DIR).unwrap()), "{}", path.display());
}

#[test]
fn a_full_disk_leaves_nothing_of_a_blob() {
    if !on_a_small_disk("space::a_full_disk_leaves_nothing_of_a_blob") {
        return;
    }
    let state = std::env::var(DIR).unwrap();
    let store = BlobStore::open(Path::new(&state)).unwrap();
    // The length is known: refused at once.
    let error = store.writer(Some(2 << 20)).err().unwrap();
    assert_no_space(&error, 2 << 20);
    // It is not: refused when the disk is full.
    let mut writer = store.writer(None).unwrap();
    let error = (0..64).find_map(|_| writer.write(&bytes(1, 32 << 10)).err()).unwrap();
    assert!(matches!(error, BlobError::NoSpace { .. }), "{error}");
    drop(writer);
    assert_eq!(std::fs::read_dir(store.incoming()).unwrap().count(), 0);
    let mut writer = store.writer(Some(100)).unwrap();
    writer.write(&bytes(1, 100)).unwrap();
    writer.finish().publish(&store).unwrap();
    assert_eq!(store.entries().unwrap().len(), 1);
}

#[tokio::test]
async fn a_full_disk_stops_an_import_before_it_begins() {
    if !on_a_small_disk("space::a_full_disk_stops_an_import_before_it_begins") {
        return;
    }
    let state = std::env::var(DIR).unwrap();
    let store = ImageStore::open(Path::new(&state)).unwrap();
    let place = Place::new();
    for (name, bytes) in parts("lab", "1", "x86_64", 1) {
        place.write(&name, &bytes);
    }
    place.write("lab-1-live-rootfs.x86_64.img", &bytes(3, 1_200_000));
    let progress = std::sync::Arc::new(Recorder::default());
    let error = store.import(place.folder(), progress.clone(), NOW).await.unwrap_err();
    let disk = parts("lab", "1", "x86_64", 1)[3].1.len() as u64;
    let ImportError::Blob(error) = &error else { panic!("{error}") };
    assert_no_space(error, 3000 + 5000 + 1_200_000 + disk);
    assert_eq!(progress.stages(), vec![]);
    assert_eq!(store.blobs().entries().unwrap(), vec![]);
}

#[tokio::test]
async fn a_full_disk_leaves_nothing_of_a_download() {
    if !on_a_small_disk("space::a_full_disk_leaves_nothing_of_a_download") {
        return;
    }
    let state = std::env::var(DIR).unwrap();
    let store = ImageStore::open(Path::new(&state)).unwrap();
    let server = Server::start().await;
    let mut parts = parts("lab", "1", "x86_64", 1);
    parts[2].1 = bytes(3, 1_200_000);
    for (name, bytes) in &parts {
        server.put(name, bytes.clone());
    }
    server.put("stream.json", stream(&parts, "1", "x86_64", str::to_owned).to_string());
    let request = request(Source::StreamUrl(server.join("stream.json")));
    let error = store.import(request, std::sync::Arc::new(Recorder::default()), NOW).await.unwrap_err().to_string();
    assert!(error.contains("no space left") && error.contains("1200000 bytes are needed"), "{error}");
    assert_eq!(store.list().unwrap(), vec![]);
    assert_eq!(std::fs::read_dir(Path::new(&state).join("partial")).unwrap().count(), 0);
}
