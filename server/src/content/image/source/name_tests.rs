//! File names of builds.

use proptest::prelude::*;

use super::*;

fn parse(name: &str) -> Option<(String, Role)> {
    FileName::parse(name).map(|n| (n.build.to_string(), n.role))
}

#[test]
fn published_names_are_understood() {
    let nestos = "nestos-24.03-LTS-20240903.0-x86_64".to_owned();
    let dotted = "nestos-24.03-LTS.20240903.0-aarch64".to_owned();
    let coreos = "fedora-coreos-42.20250705.3.0-x86_64".to_owned();
    let lab = "lab-1-x86_64".to_owned();
    for (name, build, role) in [
        ("nestos-24.03-LTS-20240903.0-live-kernel-x86_64", &nestos, Role::Kernel),
        ("nestos-24.03-LTS-20240903.0-live-initramfs.x86_64.img", &nestos, Role::Initramfs),
        ("nestos-24.03-LTS.20240903.0-live-rootfs.aarch64.img", &dotted, Role::Rootfs),
        ("nestos-24.03-LTS.20240903.0-live.aarch64.iso", &dotted, Role::Iso),
        ("nestos-24.03-LTS.20240903.0-metal.aarch64.raw.xz", &dotted, Role::Disk(Packing::Xz)),
        ("fedora-coreos-42.20250705.3.0-live-kernel.x86_64", &coreos, Role::Kernel),
        ("fedora-coreos-42.20250705.3.0-live-kernel-x86_64", &coreos, Role::Kernel),
        ("fedora-coreos-42.20250705.3.0-live-iso.x86_64.iso", &coreos, Role::Iso),
        ("fedora-coreos-42.20250705.3.0-metal4k.x86_64.raw.xz", &coreos, Role::Disk4k(Packing::Xz)),
        ("lab-1-metal.x86_64.raw", &lab, Role::Disk(Packing::Raw)),
        ("lab-1-metal.x86_64.raw.zst", &lab, Role::Disk(Packing::Zstd)),
    ] {
        assert_eq!(parse(name), Some((build.clone(), role)), "{name}");
    }
    for name in [
        "",
        "nestos",
        "nestos--live-kernel-x86_64",
        "nestos-1-live-kernel-riscv64",
        "debian-1-live-kernel-x86_64",
        "nestos-1-live-rootfs.x86_64.img.sig",
        "nestos-a/b-live-kernel-x86_64",
        "nestos-..-live-kernel-x86_64",
    ] {
        assert_eq!(parse(name), None, "{name}");
    }
}

#[test]
fn both_spellings_are_one_version() {
    assert!(same_version("24.03-LTS-20240903.0", "24.03-LTS.20240903.0"));
    assert!(!same_version("24.03-LTS-20240903.0", "24.03-LTS-20240903.1"));
    assert_eq!(parse_label("fedora-coreos-40.20240808.3.0"), Some(("fedora-coreos".into(), "40.20240808.3.0".into())));
    assert_eq!(parse_label("CDROM"), None);
}

proptest! {
    #[test]
    fn no_name_panics(name in "\\PC*", tail in "(nestos|lab)-\\PC{0,9}-live(-kernel-|\\.)(x86_64|aarch64)(\\.iso)?") {
        let _ = FileName::parse(&name);
        let _ = FileName::parse(&tail);
    }

    #[test]
    fn names_survive_the_round_trip(
        profile in prop::sample::select(&PROFILES[..]),
        version in "[A-Za-z0-9][A-Za-z0-9._+~-]{0,30}",
        architecture in prop::sample::select(&ARCHITECTURES[..]),
        role in 0..12usize,
    ) {
        let role = endings(architecture)[role].0;
        let build = Build { profile: profile.into(), version, architecture: architecture.into() };
        let name = FileName { build, role };
        prop_assert_eq!(FileName::parse(&name.to_string()), Some(name));
    }
}
