//! Disks of machines: empty ones, overlays over a base, and golden ones that are made once and kept.

#![expect(clippy::disallowed_methods, reason = "runs qemu-img, makes and renames files")]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::run;
use crate::{Error, folder, within};

/// What the disk does with a write that is not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskCache {
    /// Flushes are ignored: fast. A power cut of the machine loses nothing the guest has handed over, and nothing is
    /// safe from a crash of this computer.
    Unsafe,
    /// Every write is on this computer's disk before the guest hears of it.
    Writethrough,
}

#[derive(Debug, Clone)]
pub(crate) enum DiskSource {
    None,
    Blank { gib: u32 },
    Overlay { base: PathBuf },
}

impl DiskSource {
    /// Makes the disk at `file`; the answer is its format, or nothing for a machine without a disk.
    pub(super) fn make(&self, file: &Path) -> Result<Option<&'static str>, Error> {
        match self {
            Self::None => return Ok(None),
            Self::Blank { gib } => qemu_img(&["create", "-q", "-f", "qcow2"], &[file], Some(&format!("{gib}G")))?,
            Self::Overlay { base } => {
                let base = base.canonicalize().map_err(Error::io(format!("finding the disk {}", base.display())))?;
                let format = format_of(&base)?;
                let mut command = Command::new("qemu-img");
                command.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(base).arg(file);
                run(command, within(60))?.success()?;
            }
        }
        Ok(Some("qcow2"))
    }
}

/// A disk image that is made once and used as a base many times: the file of `key`, after `make` has written it if it
/// was not there. Other processes that want the same wait for it. `key` must change when the content should.
pub fn golden_disk<E: From<Error>>(key: &str, make: impl FnOnce(&Path) -> Result<(), E>) -> Result<PathBuf, E> {
    let place = folder::base().join("golden");
    std::fs::create_dir_all(&place).map_err(Error::io(format!("making {}", place.display())))?;
    let file = place.join(format!("{key}.qcow2"));
    let lock = place.join(format!("{key}.lock"));
    let locking = || Error::io(format!("locking {}", lock.display()));
    let guard = File::create(&lock).map_err(locking())?;
    guard.lock().map_err(locking())?;
    if !file.exists() {
        let part = place.join(format!("{key}.part"));
        make(&part)?;
        std::fs::rename(&part, &file).map_err(Error::io(format!("keeping {}", file.display())))?;
    }
    Ok(file)
}

/// Copies a disk with all that lies below it into one file without a base.
pub(super) fn flatten(from: &Path, to: &Path) -> Result<(), Error> {
    qemu_img(&["convert", "-q", "-f", "qcow2", "-O", "qcow2"], &[from, to], None)
}

/// The first MiB of a disk: boot sector and partition table.
pub(super) fn head(from: &Path) -> Result<Vec<u8>, Error> {
    let to = from.with_extension("head");
    let operands = [format!("if={}", from.display()), format!("of={}", to.display())];
    let mut command = Command::new("qemu-img");
    command.args(["dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=1"]).args(operands);
    run(command, within(60))?.success()?;
    let head = std::fs::read(&to).map_err(Error::io(format!("reading {}", to.display())))?;
    let _ = std::fs::remove_file(&to);
    Ok(head)
}

fn qemu_img(options: &[&str], files: &[&Path], last: Option<&str>) -> Result<(), Error> {
    let mut command = Command::new("qemu-img");
    command.args(options).args(files).args(last);
    run(command, within(300))?.success().map(|_| ())
}

fn format_of(image: &Path) -> Result<&'static str, Error> {
    let reading = || Error::io(format!("reading {}", image.display()));
    let mut magic = [0; 4];
    let mut file = File::open(image).map_err(reading())?;
    file.read_exact(&mut magic).map_err(reading())?;
    Ok(if magic == *b"QFI\xfb" { "qcow2" } else { "raw" })
}
