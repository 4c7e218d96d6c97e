//! Makes sure that a disk does not boot.
#![expect(clippy::disallowed_methods, reason = "writes to the disk")]

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

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

#[cfg(test)]
mod tests {
    use super::*;

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
