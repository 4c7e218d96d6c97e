//! Facts of fixture trees.
#![allow(clippy::disallowed_methods, reason = "builds fixture trees")]

use std::fs;
use std::os::unix::fs::symlink;

use nkd_api::facts::Firmware;

use super::*;

const DEPLOYMENT: &str = "0f3c8a5e7d9b1a2c4e6f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5";

struct Tree(tempfile::TempDir);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            tree.file(path, text.as_bytes());
        }
        tree
    }

    fn file(&self, path: &str, bytes: &[u8]) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn root(&self) -> Root {
        Root::new(self.0.path())
    }

    fn gather(&self) -> Facts {
        gather(&self.root(), &Addresses::new())
    }
}

#[test]
fn an_installed_machine_tells_everything() {
    let tree = Tree::new(&[
        ("proc/cpuinfo", "processor\t: 0\nmodel name\t: QEMU TCG CPU\n\nprocessor\t: 1\nmodel name\t: QEMU TCG CPU\n"),
        ("proc/meminfo", "MemTotal:        2014116 kB\nMemFree: 1 kB\n"),
        ("proc/cmdline", "root=LABEL=root ostree=/ostree/boot.1/nestos/aa/0 rw"),
        ("proc/sys/kernel/osrelease", "6.12.9-cloud\n"),
        ("proc/self/mountinfo", "29 1 253:4 / / rw - ext4 /dev/vda4 rw\n"),
        ("etc/os-release", "NAME=x\nPRETTY_NAME=\"NestOS for Container\"\nVERSION_ID='24.03'\n"),
        ("usr/lib/nestos/version", "NESTOS_VERSION=24.03-LTS.1\n"),
        ("sys/class/dmi/id/product_uuid", "4C4C4544-0042-4410-8051-B7C04F563233\n"),
        ("sys/class/dmi/id/product_serial", "7BDQV23\n"),
        ("sys/class/dmi/id/sys_vendor", "Dell Inc.\n"),
        ("sys/class/dmi/id/product_name", "PowerEdge R640\n"),
        ("sys/firmware/efi/runtime", "1"),
        ("sys/block/vda/size", "20971520"),
        ("sys/block/vda/serial", "disk-1"),
        ("sys/block/vda/removable", "0"),
        ("sys/block/vda/dev", "253:0"),
        ("sys/block/vda/vda4/dev", "253:4"),
        ("sys/block/vda/vda4/partition", "4"),
        ("sys/block/sr0/size", "100"),
        ("sys/block/loop0/size", "100"),
        ("sys/class/net/eth0/address", "52:54:00:aa:00:01\n"),
        ("sys/class/net/eth0/carrier", "1"),
        ("sys/class/net/eth0/device/vendor", "0x1af4"),
        ("sys/class/net/lo/address", "00:00:00:00:00:00"),
        ("sys/class/net/docker0/address", "02:42:ac:11:00:02"),
    ]);
    tree.link("sysroot/ostree/boot.1/nestos/aa/0", &format!("../../../deploy/nestos/deploy/{DEPLOYMENT}.0"));
    let addresses = Addresses::from([("eth0".to_owned(), vec!["192.0.2.10/24".to_owned()])]);
    let facts = gather(&tree.root(), &addresses);
    assert_eq!(facts.firmware, Firmware::Uefi);
    assert_eq!(facts.uuid.as_deref(), Some("4c4c4544-0042-4410-8051-b7c04f563233"));
    assert_eq!(facts.serial.as_deref(), Some("7BDQV23"));
    assert_eq!((facts.vendor.as_deref(), facts.product.as_deref()), (Some("Dell Inc."), Some("PowerEdge R640")));
    assert_eq!((facts.cpu_model.as_str(), facts.cpus, facts.memory_bytes), ("QEMU TCG CPU", 2, 2_014_116 * 1024));
    assert_eq!((facts.os.as_str(), facts.os_version.as_str()), ("NestOS for Container", "24.03-LTS.1"));
    assert_eq!(facts.kernel, "6.12.9-cloud");
    assert_eq!(facts.booted_deployment.as_deref(), Some(DEPLOYMENT));
    assert!(!facts.live);
    let [disk] = facts.disks.as_slice() else { panic!("{:?}", facts.disks) };
    assert_eq!((disk.device.as_str(), disk.size_bytes, disk.serial.as_deref()), ("/dev/vda", 10 << 30, Some("disk-1")));
    let [nic] = facts.nics.as_slice() else { panic!("{:?}", facts.nics) };
    assert_eq!(
        (nic.name.as_str(), nic.up, nic.addresses.as_slice()),
        ("eth0", true, &["192.0.2.10/24".to_owned()][..])
    );
    assert_eq!(block::list(&tree.root())[0].in_use.as_deref(), Some("/dev/vda4 is mounted on /"));
}

#[test]
fn the_deployment_is_told_after_ostree_has_renamed_its_links() {
    let tree = Tree::new(&[("proc/cmdline", "root=LABEL=root ostree=/ostree/boot.0/lab/aa/0 rw")]);
    let (other, deploy) = ("1".repeat(64), "sysroot/ostree/deploy/lab/deploy");
    fs::create_dir_all(tree.0.path().join(deploy).join(format!("{other}.0"))).unwrap();
    tree.link(&format!("{deploy}/{DEPLOYMENT}.0"), "../../../../..");
    tree.file(&format!("{deploy}/{DEPLOYMENT}.0.origin"), b"[origin]");
    // A deployment was taken away: `boot.0` is `boot.1` now.
    tree.link("sysroot/ostree/boot.1/lab/aa/0", &format!("../../../deploy/lab/deploy/{other}.0"));
    assert_eq!(tree.gather().booted_deployment.as_deref(), Some(DEPLOYMENT));
}

#[test]
fn a_live_system_says_so() {
    for (cmdline, mounts) in [
        ("nestos.live.rootfs_url=http://192.0.2.1/root", "1 0 0:2 / / rw - ext4 x rw"),
        ("coreos.liveiso=x", ""),
        ("quiet", "1 0 0:2 / / rw - rootfs x rw\n2 1 0:30 / / rw - overlay x rw"),
    ] {
        let facts = Tree::new(&[("proc/cmdline", cmdline), ("proc/self/mountinfo", mounts)]).gather();
        assert!(facts.live && facts.booted_deployment.is_none(), "{cmdline}");
    }
    let disk = [("proc/cmdline", "quiet"), ("proc/self/mountinfo", "2 1 8:1 / / rw - ext4 x rw")];
    assert!(!Tree::new(&disk).gather().live);
}

#[test]
fn fields_that_nobody_filled_in_are_not_facts() {
    for filler in
        ["To be filled by O.E.M.", "Not Specified", "Default string", "0", "0000000", "0x00000000", " ", "None"]
    {
        let tree = Tree::new(&[("sys/class/dmi/id/product_serial", filler), ("sys/class/dmi/id/sys_vendor", filler)]);
        let facts = tree.gather();
        assert_eq!((facts.serial, facts.vendor), (None, None), "{filler}");
    }
    for filler in [
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "Not Settable",
    ] {
        assert_eq!(Tree::new(&[("sys/class/dmi/id/product_uuid", filler)]).gather().uuid, None, "{filler}");
    }
}

#[test]
fn an_empty_tree_is_no_error() {
    let facts = Tree::new(&[]).gather();
    assert_eq!((facts.cpus, facts.memory_bytes, facts.disks.len(), facts.nics.len()), (0, 0, 0, 0));
}

#[test]
fn disks_in_use_sticks_and_links_are_known() {
    let tree = Tree::new(&[
        ("proc/swaps", "Filename Type\n/dev/sdb2 partition 1 0 -2\n"),
        ("sys/block/sdb/size", "8"),
        ("sys/block/sdb/sdb2/partition", "2"),
        ("sys/block/sdc/size", "8"),
        ("sys/block/sdc/holders/dm-0/x", ""),
        ("sys/block/sdd/size", "8"),
        ("sys/block/sdd/ro", "1"),
        ("sys/block/sde/size", "8"),
        ("sys/block/sde/dev", "8:64"),
        ("run/udev/data/b8:64", "S:disk/by-id/x\nE:ID_SERIAL_SHORT=WD-1\n"),
        ("sys/block/sdf/size", "0"),
        ("sys/devices/pci0/usb1/1-1/block/sda/size", "8"),
        ("dev/sde", ""),
    ]);
    tree.file("sys/block/sdd/device/vpd_pg80", b"\0\x80\0\x06  ABC1");
    tree.link("sys/block/sda", "../devices/pci0/usb1/1-1/block/sda");
    tree.link("dev/disk/by-id/x", "../../sde");
    let root = tree.root();
    let devices = block::list(&root);
    let names: Vec<&str> = devices.iter().map(|device| device.disk.device.as_str()).collect();
    assert_eq!(names, ["/dev/sda", "/dev/sdb", "/dev/sdc", "/dev/sdd", "/dev/sde"]);
    assert!(devices[0].removable);
    assert_eq!(devices[1].in_use.as_deref(), Some("/dev/sdb2 is swap"));
    assert_eq!(devices[2].in_use.as_deref(), Some("/dev/sdc is part of dm-0"));
    assert!(devices[3].read_only);
    assert_eq!(devices[3].disk.serial.as_deref(), Some("ABC1"));
    assert_eq!(devices[4].disk.serial.as_deref(), Some("WD-1"));
    assert_eq!(block::resolve(&root, "/dev/disk/by-id/x"), "/dev/sde");
    assert_eq!(block::resolve(&root, "/dev/vdz"), "/dev/vdz");
}
