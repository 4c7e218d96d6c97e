//! Makes sure that a disk does not boot.
#![expect(clippy::disallowed_methods, reason = "writes to the disk")]

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use crate::facts::{Root, block};

/// Boot sector, partition table and its copy lie in here.
const EDGE: u64 = 1 << 20;

/// Fills the first and the last MiB of a disk with zeros, and waits until the disk has them.
///
/// # Errors
/// When the disk cannot be written.
pub fn wipe(device: &Path) -> io::Result<()> {
    let mut disk = OpenOptions::new().write(true).open(device)?;
    let size = disk.seek(SeekFrom::End(0))?;
    for start in [0, size.saturating_sub(EDGE)] {
        disk.seek(SeekFrom::Start(start))?;
        let length = usize::try_from(EDGE.min(size - start)).map_err(io::Error::other)?;
        disk.write_all(&vec![0; length])?;
    }
    disk.sync_all()
}

/// Wipes the disk that this system was installed to.
///
/// # Errors
/// In one sentence: this is no installed system on a disk of its own, or the disk cannot be written.
pub fn wipe_system(root: &Root) -> Result<(), String> {
    // A container sees the disks of its host.
    if root.exists("/run/systemd/container") {
        return Err("this system runs in a container: it has no disk of its own".into());
    }
    let disk = block::system_disk(root).ok_or("no disk holds /boot or /sysroot of this system")?;
    wipe(&root.path(&disk)).map_err(|error| format!("{disk} cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(mountinfo: &str) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (disk, part, number) in [("vda", "vda4", "252:4"), ("vdb", "vdb1", "252:17")] {
            let part = dir.path().join(format!("sys/block/{disk}/{part}"));
            std::fs::create_dir_all(&part).unwrap();
            std::fs::write(part.join("dev"), number).unwrap();
            std::fs::write(part.join("partition"), "1").unwrap();
            std::fs::write(part.join("../size"), "4096").unwrap();
        }
        for name in ["proc/self", "dev", "run/systemd"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("proc/self/mountinfo"), mountinfo).unwrap();
        for name in ["vda", "vdb"] {
            std::fs::write(dir.path().join("dev").join(name), vec![7; 2 << 20]).unwrap();
        }
        let root = Root::new(dir.path());
        (dir, root)
    }

    #[test]
    fn only_the_disk_of_the_installed_system_is_wiped() {
        let mounts = "30 1 252:17 / /var/data rw - ext4 /dev/vdb1 rw\n31 1 252:4 / /sysroot rw - ext4 /dev/vda4 rw\n";
        let (dir, root) = machine(mounts);
        let zero = |name: &str| std::fs::read(dir.path().join("dev").join(name)).unwrap().iter().all(|b| *b == 0);
        std::fs::write(dir.path().join("run/systemd/container"), "lxc").unwrap();
        assert!(wipe_system(&root).unwrap_err().contains("container"));
        std::fs::remove_file(dir.path().join("run/systemd/container")).unwrap();
        assert!(!zero("vda"));
        wipe_system(&root).unwrap();
        assert!(zero("vda") && !zero("vdb"));
    }

    #[test]
    fn a_system_on_something_else_is_left_alone() {
        // A folder of a disk that is mounted there is not that disk's system.
        for mounts in
            ["31 1 252:4 /srv/root /sysroot rw - ext4 /dev/vda4 rw\n", "31 1 252:4 / /mnt rw - ext4 x rw\n", ""]
        {
            let (_dir, root) = machine(mounts);
            assert!(wipe_system(&root).unwrap_err().contains("no disk holds"), "{mounts}");
        }
    }

    #[test]
    fn both_ends_are_zero_and_the_middle_is_left() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7u8; 3 << 20]).unwrap();
        wipe(file.path()).unwrap();
        let disk = std::fs::read(file.path()).unwrap();
        assert_eq!(disk.len(), 3 << 20);
        assert!(disk[..1 << 20].iter().chain(&disk[2 << 20..]).all(|b| *b == 0));
        assert!(disk[1 << 20..2 << 20].iter().all(|b| *b == 7));
        std::fs::write(file.path(), [7; 100]).unwrap();
        wipe(file.path()).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), [0; 100]);
    }
}
