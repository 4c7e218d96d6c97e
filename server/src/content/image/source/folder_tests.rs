//! Lists of digests and choices.

use super::*;

#[test]
fn lists_of_digests_are_read() {
    let sha = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let sums = parse_sums(&format!("{sha}  a\n{sha} *b\n{sha}  ./c d\n# comment\nxyz  e\n\n{sha}"));
    let mut names: Vec<_> = sums.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "c d"]);
}

#[test]
fn the_disk_image_that_every_installer_reads_is_preferred() {
    let names: Vec<FileName> = [
        "lab-1-live-kernel-x86_64",
        "lab-1-live-initramfs.x86_64.img",
        "lab-1-live-rootfs.x86_64.img",
        "lab-1-metal.x86_64.raw.zst",
        "lab-1-metal.x86_64.raw.xz",
        "lab-1-metal4k.x86_64.raw.gz",
    ]
    .iter()
    .map(|n| FileName::parse(n).unwrap())
    .collect();
    let (_, parts) = choose_build(Path::new("/x"), &names, &Choice::default()).unwrap();
    assert_eq!(
        parts.last().map(|(kind, name)| (*kind, name.role)),
        Some((ArtifactKind::Disk, Role::Disk(Packing::Xz)))
    );
}

#[test]
fn a_choice_that_cannot_be_is_refused() {
    let version = Choice { version: Some("../1".into()), ..Choice::default() };
    let arch = Choice { architecture: Some("riscv64".into()), ..Choice::default() };
    for choice in [version, arch] {
        assert!(matches!(check_choice(&choice), Err(ImportError::Request { .. })));
    }
}
