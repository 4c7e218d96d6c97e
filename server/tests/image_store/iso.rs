//! Import from ISOs made by the programs that distributions use.

use std::fs;

use nkd_api::image::ArtifactKind;
use nkd_server::content::image::error::ImportError;
use nkd_server::content::image::source::Source;

use crate::support::*;

/// Makes `<name>` in the source folder; its tree stays in `tree`.
fn make_iso(place: &Place, name: &str, label: &str, args: &[&str]) {
    let boot = place.source.join("tree/images/pxeboot");
    fs::create_dir_all(&boot).unwrap();
    fs::write(boot.join("vmlinuz"), bytes(1, 3000)).unwrap();
    fs::write(boot.join("initrd.img"), bytes(2, 5000)).unwrap();
    fs::write(boot.join("rootfs.img"), bytes(3, 3_000_000)).unwrap();
    fs::write(place.source.join("tree/images/ignition.img"), bytes(4, 100)).unwrap();
    let mut all = vec!["-as", "mkisofs", "-quiet", "-V", label, "-o", name];
    all.extend(args);
    all.push("tree");
    run("xorriso", &all, &place.source);
}

#[tokio::test]
async fn live_artifacts_come_out_of_an_iso() {
    for args in [&["-r", "-J"][..], &["-U"][..], &[][..]] {
        let place = Place::new();
        let name = "fedora-coreos-40.20240808.3.0-live.x86_64.iso";
        make_iso(&place, name, "whatever", args);
        let image = place.import(request(Source::Iso(place.source.join(name)))).await.unwrap();
        assert_eq!(image.name, "fedora-coreos-40.20240808.3.0-x86_64");
        assert_eq!(place.read_blob(&image, ArtifactKind::Kernel), bytes(1, 3000));
        assert_eq!(place.read_blob(&image, ArtifactKind::Initramfs), bytes(2, 5000));
        assert_eq!(place.read_blob(&image, ArtifactKind::Rootfs), bytes(3, 3_000_000));
        assert_eq!(image.artifact(ArtifactKind::Disk), None);
    }
}

#[tokio::test]
async fn a_renamed_iso_is_told_by_its_label() {
    let place = Place::new();
    make_iso(&place, "x.iso", "nestos-24.03-LTS.20240903.0", &["-r"]);
    let mut request = request(Source::Iso(place.source.join("x.iso")));
    let error = place.import(request.clone()).await.unwrap_err();
    assert!(matches!(error, ImportError::Unknown { what: "architecture", .. }), "{error}");
    request.architecture = Some("aarch64".into());
    let image = place.import(request).await.unwrap();
    assert_eq!(image.name, "nestos-24.03-LTS.20240903.0-aarch64");
}

#[tokio::test]
async fn damaged_and_foreign_isos_are_refused() {
    let place = Place::new();
    let name = "nestos-1-live.x86_64.iso";
    let path = place.source.join(name);
    let import = || place.import(request(Source::Iso(path.clone())));
    make_iso(&place, name, "x", &["-r"]);
    // Cut short in the middle of the last file.
    let len = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
    let error = import().await.unwrap_err();
    assert!(chain(&error).contains("cut short"), "{}", chain(&error));
    fs::write(&path, bytes(9, 100_000)).unwrap();
    assert!(matches!(import().await.unwrap_err(), ImportError::IsoFormat { .. }));
    fs::write(&path, b"").unwrap();
    assert!(matches!(import().await.unwrap_err(), ImportError::IsoFormat { .. }));
    fs::remove_file(place.source.join("tree/images/pxeboot/rootfs.img")).unwrap();
    fs::remove_file(&path).unwrap();
    run("xorriso", &["-as", "mkisofs", "-quiet", "-r", "-o", name, "tree"], &place.source);
    let error = import().await.unwrap_err().to_string();
    assert!(error.contains("/images/pxeboot/rootfs.img"), "{error}");
    fs::rename(place.source.join("tree/images"), place.source.join("tree/other")).unwrap();
    fs::remove_file(&path).unwrap();
    run("xorriso", &["-as", "mkisofs", "-quiet", "-r", "-o", name, "tree"], &place.source);
    let error = import().await.unwrap_err().to_string();
    assert!(error.contains("no /images:"), "{error}");
    assert_eq!(place.files(), Vec::<String>::new());
}

#[tokio::test]
async fn a_digest_beside_the_iso_is_checked() {
    let place = Place::new();
    let name = "nestos-1-live.x86_64.iso";
    make_iso(&place, name, "x", &["-r"]);
    place.write(&format!("{name}.sha256"), format!("{}  {name}\n", sha(b"other")).as_bytes());
    let error = place.import(request(Source::Iso(place.source.join(name)))).await.unwrap_err();
    assert!(matches!(error, ImportError::Digest { .. }), "{error}");
    let iso = fs::read(place.source.join(name)).unwrap();
    place.write(&format!("{name}.sha256"), format!("{}  {name}\n", sha(&iso)).as_bytes());
    place.import(request(Source::Iso(place.source.join(name)))).await.unwrap();
}
