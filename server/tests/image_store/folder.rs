//! Import from folders: by name, by stream document, and what is refused.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use nkd_api::image::ArtifactKind;
use nkd_server::content::image::ImageStore;
use nkd_server::content::image::catalog::CatalogError;
use nkd_server::content::image::error::ImportError;
use nkd_server::content::image::source::Source;

use crate::support::*;

fn fill(place: &Place, prefix: &str, version: &str, arch: &str, seed: u8) {
    for (name, bytes) in parts(prefix, version, arch, seed) {
        place.write(&name, &bytes);
    }
}

#[tokio::test]
async fn a_folder_with_names_of_the_rule_becomes_an_image() {
    let place = Place::new();
    fill(&place, "nestos", "24.03-LTS-20240903.0", "x86_64", 1);
    place.write("README", b"not part of it");
    let progress = Arc::new(Recorder::default());
    let image = place.store.import(place.folder(), progress.clone(), NOW).await.unwrap();
    assert_eq!(image.name, "nestos-24.03-LTS-20240903.0-x86_64");
    assert_eq!((image.profile.as_str(), image.architecture.as_str()), ("nestos", "x86_64"));
    let all = parts("nestos", "24.03-LTS-20240903.0", "x86_64", 1);
    let kinds = [ArtifactKind::Kernel, ArtifactKind::Initramfs, ArtifactKind::Rootfs, ArtifactKind::Disk];
    for (kind, (name, bytes)) in kinds.into_iter().zip(&all) {
        assert_eq!(place.read_blob(&image, kind), *bytes);
        assert_eq!(image.artifact(kind).unwrap().file, *name);
    }
    let stages: Vec<_> = kinds
        .iter()
        .zip(&all)
        .map(|(k, (_, b))| (k.as_str().to_owned(), Some(b.len() as u64), b.len() as u64))
        .collect();
    assert_eq!(progress.stages(), stages);
    assert_eq!(progress.warnings(), Vec::<String>::new());
    assert_eq!(place.store.list().unwrap(), vec![image.clone()]);
    place.store.verify(&image.name, progress.as_ref()).unwrap();
    // Again, and by another process: nothing new.
    let files = place.files();
    place.import_folder().await.unwrap();
    assert_eq!(place.files(), files);
    assert_eq!(ImageStore::open(&place.state).unwrap().list().unwrap().len(), 1);
}

#[tokio::test]
async fn a_missing_disk_image_is_said_and_a_missing_rootfs_is_refused() {
    let place = Place::new();
    fill(&place, "lab", "1", "x86_64", 1);
    fs::remove_file(place.source.join("lab-1-metal.x86_64.raw.gz")).unwrap();
    let progress = Arc::new(Recorder::default());
    place.store.import(place.folder(), progress.clone(), NOW).await.unwrap();
    assert!(progress.warnings()[0].contains("no disk image"), "{:?}", progress.warnings());
    fs::remove_file(place.source.join("lab-1-live-rootfs.x86_64.img")).unwrap();
    let error = place.import_folder().await.unwrap_err();
    assert!(matches!(&error, ImportError::Incomplete { missing, .. } if *missing == [ArtifactKind::Rootfs]), "{error}");
}

#[tokio::test]
async fn several_builds_are_named_and_one_can_be_chosen() {
    let place = Place::new();
    fill(&place, "nestos", "24.03-LTS.20240903.0", "x86_64", 1);
    fill(&place, "nestos", "24.03-LTS.20240903.0", "aarch64", 20);
    fill(&place, "fedora-coreos", "40.20240808.3.0", "x86_64", 40);
    let error = place.import_folder().await.unwrap_err().to_string();
    for part in ["nestos-24.03-LTS.20240903.0-x86_64", "-aarch64", "fedora-coreos-40.20240808.3.0", "--version"] {
        assert!(error.contains(part), "{error}");
    }
    let mut request = place.folder();
    request.architecture = Some("aarch64".into());
    // The other spelling of the version is the same version.
    request.version = Some("24.03-LTS-20240903.0".into());
    let image = place.import(request).await.unwrap();
    assert_eq!(place.read_blob(&image, ArtifactKind::Kernel), bytes(20, 3000));
}

#[tokio::test]
async fn parts_of_two_builds_are_never_mixed() {
    let place = Place::new();
    fill(&place, "nestos", "1.0", "x86_64", 1);
    fill(&place, "nestos", "2.0", "x86_64", 10);
    fs::remove_file(place.source.join("nestos-1.0-live-rootfs.x86_64.img")).unwrap();
    fs::remove_file(place.source.join("nestos-2.0-live-kernel-x86_64")).unwrap();
    let error = place.import_folder().await.unwrap_err().to_string();
    assert!(error.contains("nestos-1.0-x86_64 (without rootfs)"), "{error}");
    assert!(error.contains("nestos-2.0-x86_64 (without kernel)"), "{error}");
    let mut request = place.folder();
    request.version = Some("1.0".into());
    let error = place.import(request).await.unwrap_err().to_string();
    assert!(error.contains("lacks its rootfs") && error.contains("nestos-2.0-x86_64"), "{error}");
    assert_eq!(place.files(), Vec::<String>::new());
}

#[tokio::test]
async fn digests_beside_the_files_are_checked() {
    let place = Place::new();
    fill(&place, "lab", "1", "x86_64", 1);
    let rootfs = "lab-1-live-rootfs.x86_64.img";
    place.write("SHA256SUMS", format!("{}  {rootfs}\n", sha(b"something else")).as_bytes());
    let error = place.import_folder().await.unwrap_err();
    assert!(matches!(&error, ImportError::Digest { file, .. } if file == rootfs), "{error}");
    assert_eq!(place.store.list().unwrap(), vec![]);
    place.write("SHA256SUMS", format!("{} *{rootfs}\n", sha(&bytes(3, 300_000))).as_bytes());
    place.import_folder().await.unwrap();
}

#[tokio::test]
async fn a_stream_document_in_the_folder_rules() {
    let place = Place::new();
    let parts = parts("lab", "2024.1", "x86_64", 1);
    fs::create_dir(place.source.join("x86_64")).unwrap();
    for (name, bytes) in &parts {
        place.write(&format!("x86_64/{name}"), bytes);
    }
    let mut doc = stream(&parts, "2024.1", "x86_64", |name| format!("x86_64/{name}"));
    let disk = "/architectures/x86_64/artifacts/metal/formats/raw.gz/disk";
    doc.pointer_mut(disk).unwrap()["uncompressed-sha256"] = sha(&bytes(4, 40_000)).to_string().into();
    place.write("stream.json", doc.to_string().as_bytes());
    let image = place.import_folder().await.unwrap();
    assert_eq!((image.name.as_str(), image.profile.as_str()), ("lab-2024.1-x86_64", "lab"));
    // The same document as a file.
    let mut request = request(Source::StreamFile(place.source.join("stream.json")));
    request.name = Some("second".into());
    request.profile = Some("nestos".into());
    let second = place.import(request).await.unwrap();
    assert_eq!((&second.artifacts, second.profile.as_str()), (&image.artifacts, "nestos"));
    // What it unpacks to is checked.
    doc.pointer_mut(disk).unwrap()["uncompressed-sha256"] = sha(b"other").to_string().into();
    place.write("stream.json", doc.to_string().as_bytes());
    let error = place.import_folder().await.unwrap_err();
    assert!(matches!(error, ImportError::Unpack { .. }), "{error}");
}

#[tokio::test]
async fn links_and_ways_out_of_the_folder_are_refused() {
    let place = Place::new();
    let secret = place.state.join("secret");
    fs::write(&secret, b"secret").unwrap();
    let parts = parts("lab", "1", "x86_64", 1);
    for (name, bytes) in &parts {
        place.write(name, bytes);
    }
    let kernel = place.source.join(&parts[0].0);
    for hard in [false, true] {
        fs::remove_file(&kernel).unwrap();
        if hard {
            fs::hard_link(&secret, &kernel).unwrap();
        } else {
            std::os::unix::fs::symlink(&secret, &kernel).unwrap();
        }
        let error = place.import_folder().await.unwrap_err();
        assert!(matches!(&error, ImportError::Refused { path, .. } if *path == kernel), "{error}");
    }
    fs::remove_file(&kernel).unwrap();
    nix::unistd::mkfifo(&kernel, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(place.import_folder().await.unwrap_err(), ImportError::Refused { .. }));
    // A folder on the way that is a link.
    fs::remove_file(&kernel).unwrap();
    std::os::unix::fs::symlink(&place.state, place.source.join("sub")).unwrap();
    for location in
        ["../state/secret", "/etc/passwd", "file:///etc/passwd", "sub/secret", "a//b", "a\\..\\b", "%2e%2e/x"]
    {
        let mut doc = stream(&parts, "1", "x86_64", str::to_owned);
        let kernel = doc.pointer_mut("/architectures/x86_64/artifacts/metal/formats/pxe/kernel").unwrap();
        *kernel = serde_json::json!({"location": location});
        place.write("stream.json", doc.to_string().as_bytes());
        let error = place.import_folder().await.unwrap_err();
        let refused = matches!(error, ImportError::Document { .. } | ImportError::Refused { .. });
        assert!(refused, "{location}: {error}");
    }
    assert_eq!(place.files(), ["secret"]);
}

#[tokio::test]
async fn sizes_are_bounded_before_anything_is_read() {
    let place = Place::new();
    fill(&place, "lab", "1", "x86_64", 1);
    let kernel = fs::File::options().write(true).open(place.source.join("lab-1-live-kernel-x86_64")).unwrap();
    kernel.set_len(1 << 40).unwrap();
    let error = place.import_folder().await.unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { kind: ArtifactKind::Kernel, .. }), "{error}");
    kernel.set_len(0).unwrap();
    let error = place.import_folder().await.unwrap_err();
    assert!(matches!(error, ImportError::Empty { .. }), "{error}");
}

#[tokio::test]
async fn a_taken_name_needs_another_or_replace() {
    let place = Place::new();
    fill(&place, "lab", "1", "x86_64", 1);
    place.import_folder().await.unwrap();
    fill(&place, "lab", "1", "x86_64", 30);
    let error = place.import_folder().await.unwrap_err();
    assert!(matches!(error, ImportError::Catalog(CatalogError::Taken(_))), "{error}");
    let mut request = place.folder();
    request.replace = true;
    let image = place.import(request).await.unwrap();
    assert_eq!(place.read_blob(&image, ArtifactKind::Kernel), bytes(30, 3000));
    let mut request = place.folder();
    request.name = Some("../escape".into());
    assert!(matches!(place.import(request).await.unwrap_err(), ImportError::Catalog(CatalogError::Name(_))));
}

#[tokio::test]
async fn removing_minds_who_uses_it() {
    let place = Place::new();
    fill(&place, "lab", "1", "x86_64", 1);
    let name = place.import_folder().await.unwrap().name.clone();
    let error = place.store.remove(&name, &BTreeSet::from([name.clone()])).unwrap_err();
    assert!(matches!(error, CatalogError::InUse(_)), "{error}");
    place.store.remove(&name, &BTreeSet::new()).unwrap();
    assert_eq!(place.store.image(&name).unwrap(), None);
    let error = place.store.remove(&name, &BTreeSet::new()).unwrap_err();
    assert!(matches!(error, CatalogError::NotFound(_)), "{error}");
}

#[tokio::test]
async fn images_of_another_process_are_seen() {
    let place = Place::new();
    fill(&place, "lab", "1", "x86_64", 1);
    let other = ImageStore::open(&place.state).unwrap();
    assert_eq!(other.list().unwrap(), vec![]);
    let image = place.import_folder().await.unwrap();
    assert_eq!(other.image(&image.name).unwrap(), Some(image.clone()));
    place.store.remove(&image.name, &BTreeSet::new()).unwrap();
    assert_eq!(other.list().unwrap(), vec![]);
}
