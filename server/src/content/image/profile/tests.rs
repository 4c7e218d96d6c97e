//! Golden kernel command lines and installer files.

use proptest::prelude::*;

use super::*;

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

fn live(profile: &str, console: &[&str], extra: &[&str]) -> String {
    let strings = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let rootfs_url = url("http://10.0.0.1:8080/images/x/rootfs");
    let boot = LiveBoot { rootfs_url: &rootfs_url, console: &strings(console), extra: &strings(extra) };
    live_args(&by_name(profile).unwrap(), &boot).unwrap().join(" ")
}

#[test]
fn live_command_lines() {
    assert_eq!(
        live("nestos", &[], &["ip=dhcp"]),
        "nestos.live.rootfs_url=http://10.0.0.1:8080/images/x/rootfs ignition.firstboot ignition.platform.id=metal \
         mitigations=auto,nosmt ip=dhcp"
    );
    assert_eq!(
        live("fedora-coreos", &["tty0", "ttyS1,9600"], &[]),
        "coreos.live.rootfs_url=http://10.0.0.1:8080/images/x/rootfs ignition.firstboot ignition.platform.id=metal \
         console=tty0 console=ttyS1,9600"
    );
    assert_eq!(
        live("lab", &[], &[]),
        "nestos.live.rootfs_url=http://10.0.0.1:8080/images/x/rootfs ignition.firstboot ignition.platform.id=metal \
         systemd.gpt_auto=0 console=tty0 console=ttyS0,115200"
    );
    // A machine's own console replaces those of the profile.
    assert_eq!(
        live("lab", &["ttyAMA0"], &[]),
        "nestos.live.rootfs_url=http://10.0.0.1:8080/images/x/rootfs ignition.firstboot ignition.platform.id=metal \
         systemd.gpt_auto=0 console=ttyAMA0"
    );
}

#[test]
fn the_installer_trap_is_avoided_by_a_file() {
    let ignition = url("https://10.0.0.1:8443/v1/ignition/52:54:00:00:00:01");
    let hash = Sha256Digest([0xab; 32]);
    let kargs = vec!["nkd.generation=1".to_owned()];
    let console = vec!["ttyS0,115200".to_owned()];
    let mut config = InstallerConfig {
        dest_device: "/dev/vda",
        image: InstallerImage::Offline,
        ignition_url: Some(&ignition),
        ignition_hash: Some(&hash),
        console: &console,
        append_kargs: &kargs,
    };
    let file = installer_config(&by_name("nestos").unwrap(), &config).unwrap();
    assert_eq!(file.path, "/etc/nestos/installer.d/10-nkd.yaml");
    assert_eq!(
        file.contents,
        "# Written by nkd.\n\
         offline: true\n\
         dest-device: \"/dev/vda\"\n\
         ignition-url: \"https://10.0.0.1:8443/v1/ignition/52:54:00:00:00:01\"\n\
         ignition-hash: \"sha256-abababababababababababababababababababababababababababababababab\"\n\
         console: [\"ttyS0,115200\"]\n\
         append-karg: [\"panic=30\", \"nkd.generation=1\"]\n"
    );
    let image = url("http://10.0.0.1:8080/images/x/disk");
    config.image = InstallerImage::Url { url: &image, insecure: true };
    config.console = &[];
    config.append_kargs = &[];
    let file = installer_config(&by_name("fedora-coreos").unwrap(), &config).unwrap();
    assert_eq!(file.path, "/etc/coreos/installer.d/10-nkd.yaml");
    assert_eq!(
        file.contents,
        "# Written by nkd.\n\
         image-url: \"http://10.0.0.1:8080/images/x/disk\"\n\
         insecure: true\n\
         dest-device: \"/dev/vda\"\n\
         ignition-url: \"https://10.0.0.1:8443/v1/ignition/52:54:00:00:00:01\"\n\
         ignition-hash: \"sha256-abababababababababababababababababababababababababababababababab\"\n\
         append-karg: [\"panic=30\"]\n"
    );
}

#[test]
fn the_fallback_is_kernel_arguments() {
    let (image, ignition) = (url("http://10.0.0.1:8080/images/x/disk"), url("https://10.0.0.1:8443/i"));
    let mut config = InstallerConfig {
        dest_device: "/dev/disk/by-id/virtio-1",
        image: InstallerImage::Url { url: &image, insecure: true },
        ignition_url: Some(&ignition),
        ignition_hash: None,
        console: &[],
        append_kargs: &[],
    };
    assert_eq!(
        installer_kargs(&by_name("nestos").unwrap(), &config).unwrap().join(" "),
        "nestos.inst.install_dev=/dev/disk/by-id/virtio-1 nestos.inst.image_url=http://10.0.0.1:8080/images/x/disk \
         nestos.inst.insecure nestos.inst.ignition_url=https://10.0.0.1:8443/i"
    );
    assert_eq!(
        installer_kargs(&by_name("fedora-coreos").unwrap(), &config).unwrap()[0],
        "coreos.inst.install_dev=/dev/disk/by-id/virtio-1"
    );
    config.image = InstallerImage::Offline;
    let error = installer_kargs(&by_name("nestos").unwrap(), &config).unwrap_err();
    assert_eq!(error, ProfileError::OfflineByArgument("nestos".into()));
}

#[test]
fn a_configuration_that_nobody_can_check_is_refused() {
    let (image, ignition) = (url("http://10.0.0.1:8080/d"), url("http://10.0.0.1:8080/i"));
    let hash = Sha256Digest([1; 32]);
    let mut config = InstallerConfig {
        dest_device: "/dev/vda",
        image: InstallerImage::Url { url: &image, insecure: true },
        ignition_url: Some(&ignition),
        ignition_hash: None,
        console: &[],
        append_kargs: &[],
    };
    let lab = by_name("lab").unwrap();
    assert_eq!(installer_config(&lab, &config), Err(ProfileError::Unverified(ignition.clone())));
    config.ignition_hash = Some(&hash);
    installer_config(&lab, &config).unwrap();
    // Kernel arguments carry no digest.
    assert_eq!(installer_kargs(&lab, &config), Err(ProfileError::Unverified(ignition.clone())));
    for device in ["vda", "/dev/", "/dev/../etc/passwd", "/dev//vda", "/dev/vda ro", "/dev/vda\"", "/etc/x"] {
        config.dest_device = device;
        assert_eq!(installer_config(&lab, &config), Err(ProfileError::Device(device.into())));
    }
}

#[test]
fn profiles_are_known_by_name() {
    let profiles: Vec<_> =
        builtin().into_iter().map(|p| (p.name, p.installer, p.default_user, p.ignition_spec)).collect();
    let row = |a: &str, b: &str, c: &str, d: &str| (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned());
    assert_eq!(
        profiles,
        [
            row("nestos", "nestos-installer", "nest", "3.3.0"),
            row("fedora-coreos", "coreos-installer", "core", "3.4.0"),
            row("lab", "coreos-installer", "nest", "3.3.0"),
        ]
    );
    assert_eq!(by_name("windows"), None);
}

proptest! {
    /// Each argument stays one argument, whatever is asked for.
    #[test]
    fn arguments_never_split(console in any::<String>(), extra in any::<String>()) {
        let rootfs_url = url("http://h/r");
        let boot = LiveBoot { rootfs_url: &rootfs_url, console: &[console], extra: &[extra] };
        if let Ok(args) = live_args(&by_name("nestos").unwrap(), &boot) {
            let line = args.join(" ");
            prop_assert_eq!(line.split_whitespace().collect::<Vec<_>>(), args);
        }
    }

    /// The installer file is YAML that says what was asked for.
    #[test]
    fn installer_files_are_yaml(kargs in proptest::collection::vec("\\PC{1,20}", 0..4)) {
        let image = url("http://h/d");
        let config = InstallerConfig {
            dest_device: "/dev/vda",
            image: InstallerImage::Url { url: &image, insecure: false },
            ignition_url: None,
            ignition_hash: None,
            console: &[],
            append_kargs: &kargs,
        };
        if let Ok(file) = installer_config(&by_name("lab").unwrap(), &config) {
            let read: serde_json::Value = serde_saphyr::from_str(&file.contents).unwrap();
            let said: Option<Vec<String>> = read.get("append-karg").map(|k| serde_json::from_value(k.clone()).unwrap());
            let wanted: Vec<String> = by_name("lab").unwrap().installed_args.into_iter().chain(kargs).collect();
            prop_assert_eq!(said.unwrap_or_default(), wanted);
        }
    }
}

#[test]
fn disks_are_named_as_udev_names_them() {
    for good in [
        "/dev/sda",
        "/dev/nvme0n1",
        "/dev/cciss/c0d0",
        "/dev/mapper/mpatha",
        "/dev/disk/by-id/nvme-eui.0025388b71b0c1d2",
        "/dev/disk/by-id/scsi-SATA_WDC_WD40EFRX-68N_WD-WCC7K0",
        "/dev/disk/by-id/usb-Generic_STORAGE_DEVICE_000000001206-0:0",
        "/dev/disk/by-id/dm-uuid-mpath-3600508b400105e210000900000490000",
        "/dev/disk/by-path/pci-0000:00:1f.2-ata-1.0",
    ] {
        assert!(names_a_disk(good), "{good}");
    }
    let bad = "|/|/dev|/dev/|dev/sda|//dev/sda|/dev//sda|/dev/sda/|/dev/../x|/dev/./sda|/dev/disk/..|/dev/s da| /dev/sda|\
        /dev/sda |/dev/sda\n|/dev/sd\u{202e}a|/dev/sda;reboot|/dev/$(x)|/dev/'a'|/etc/passwd|/device/sda";
    for bad in bad.split('|') {
        assert!(!names_a_disk(bad), "{bad:?}");
    }
    assert!(!names_a_disk(&format!("/dev/{}", "d".repeat(DISK_LIMIT))));
}

proptest! {
    /// Whatever is let through is below /dev as it is written.
    #[test]
    fn a_disk_is_below_dev(path in "/dev/[a-z./ \n-]{0,12}") {
        if names_a_disk(&path) {
            let parts: Vec<_> = std::path::Path::new(&path).components().collect();
            prop_assert_eq!(parts.len() - 1, path.matches('/').count());
            prop_assert!(parts[2..].iter().all(|part| matches!(part, std::path::Component::Normal(_))));
        }
    }
}
