//! The boot loader's counter: GRUB's environment block, with the names that Fedora and its relatives use.
//!
//! `boot_counter` is counted down at every boot; at 0 the entry before is booted, and -1 is left for us. It is set when a
//! release is armed, and unset when the gate has let the node pass. A GRUB whose configuration does not speak of that name, as
//! that of NestOS' assembler does not, boots as ever: there we add the counting ourselves, in a file of our own and a line that
//! reads it. Where GRUB cannot write to the file system, the gate alone brings a node back, and a release whose kernel does
//! not start stays down. That is said, and keeps nobody from an update.
#![expect(clippy::disallowed_methods, reason = "reads GRUB's configuration")]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use super::program::{ask, tell};

const NAME: &str = "boot_counter";
/// So many boots without an unset counter, then the entry before. What Fedora's GRUB counts is a boot after one that was no
/// success.
const BOOTS: [&str; 2] = ["boot_counter=3", "boot_success=0"];
/// What counts, for a GRUB whose configuration does not.
const COUNTING: &str = include_str!("boot-counter.cfg");
const COUNTING_NAME: &str = "nkd-boot-counter.cfg";
/// What reads it.
const LINE: &str = "if [ -f $prefix/nkd-boot-counter.cfg ]; then source $prefix/nkd-boot-counter.cfg; fi";
/// For /boot is mounted for reading only.
const OWN_MOUNTS: &[&str] = &["unshare", "--mount", "--"];
/// The editor, the block, the file system that it is on, and the words.
const EDIT: &str = "editor=$1 block=$2; mount -o remount,rw \"$3\" 2>/dev/null; shift 3; \"$editor\" \"$block\" \"$@\" && sync -f \"$block\"";
/// What counts, its file, the line, the file that gets it, and the file system. GRUB replays no journal: it sees an appended
/// line, or does not, and a file that was renamed away is what it may still read.
const ADD: &str = "text=$1 file=$2 line=$3 hook=$4; mount -o remount,rw \"$5\" 2>/dev/null; \
    printf %s \"$text\" >\"$file.new\" && sync \"$file.new\" && mv -T \"$file.new\" \"$file\" && sync -f \"$file\" && \
    { grep -qxF \"$line\" \"$hook\" 2>/dev/null || printf '\\n%s\\n' \"$line\" >>\"$hook\"; } && sync -f \"$hook\"";

/// Where the counter is.
#[derive(Debug, Clone)]
pub struct BootCounter {
    editor: PathBuf,
    block: PathBuf,
    boot: PathBuf,
    /// What the kernel says of each block device.
    devices: PathBuf,
    /// What gives the edit mounts of its own; tests have nothing to mount.
    own_mounts: &'static [&'static str],
}

/// What does not come back by itself with this counter, or without one.
pub fn caution(counter: Option<&BootCounter>) -> Option<&'static str> {
    let none = "a release that does not start would stay down, since nothing here counts boots (no grubenv, or no grub-editenv)";
    counter.map_or(Some(none), BootCounter::caution)
}

impl BootCounter {
    /// None: this boot loader has none.
    #[must_use]
    pub fn find(root: &Path, path: &str) -> Option<Self> {
        let boot = root.join("boot");
        let block = ["grub2/grubenv", "grub/grubenv"].map(|name| boot.join(name));
        let block = block.into_iter().find(|block| block.exists())?;
        let at = |program: &str| path.split(':').map(|folder| Path::new(folder).join(program)).find(|at| at.exists());
        let editor = ["grub2-editenv", "grub-editenv"].into_iter().find_map(at)?;
        let devices = root.join("sys/dev/block");
        Some(Self { editor, block, boot, devices, own_mounts: OWN_MOUNTS })
    }

    /// For a system that is a folder.
    #[cfg(test)]
    pub fn without_mounts(self) -> Self {
        Self { own_mounts: &["env"], ..self }
    }

    /// What does not come back by itself here.
    #[must_use]
    pub fn caution(&self) -> Option<&'static str> {
        self.is_beyond_grub().then_some(
            "a release that does not start would stay down, since GRUB cannot count boots on a /boot on RAID, LVM or btrfs",
        )
    }

    /// Counts from now on, where anything can: else a counter that stands would only have the node restarted by its deadline
    /// again and again.
    ///
    /// # Errors
    /// In one sentence.
    pub fn arm(&self) -> Result<(), String> {
        if self.is_beyond_grub() {
            return Ok(());
        }
        if let Counting::Lacks(hook) = self.counting() {
            self.add(&hook)?;
            if let Counting::Lacks(hook) = self.counting() {
                return Err(format!(
                    "GRUB's configuration does not count boots, although {} was written",
                    hook.display()
                ));
            }
        }
        self.edit("set", &BOOTS)
    }

    /// Counts no more; one that an agent of before has set is unset everywhere.
    ///
    /// # Errors
    /// In one sentence.
    pub fn disarm(&self) -> Result<(), String> {
        self.edit("unset", &[NAME])
    }

    /// GRUB reads file systems that it cannot write to.
    fn is_beyond_grub(&self) -> bool {
        let is_btrfs = statfs(&self.boot).is_ok_and(|seen| seen.filesystem_type() == BTRFS_SUPER_MAGIC);
        let device = std::fs::metadata(&self.block).map(|seen| format!("{}:{}", major(seen.dev()), minor(seen.dev())));
        is_btrfs
            || device.is_ok_and(|device| ["md", "dm"].iter().any(|kind| self.devices.join(&device).join(kind).exists()))
    }

    /// What the configuration does about the counter. That may be changed at any time.
    fn counting(&self) -> Counting {
        counting(&self.boot, self.block.parent().unwrap_or(&self.boot))
    }

    fn add(&self, hook: &Path) -> Result<(), String> {
        let file = self.block.with_file_name(COUNTING_NAME).display().to_string();
        let [hook, boot] = [hook, &self.boot].map(|path| path.display().to_string());
        let words = ["sh", "-c", ADD, "sh", COUNTING, &file, LINE, &hook, &boot];
        let words = [self.own_mounts, &words].concat();
        let (program, words) = words.split_first().ok_or("no program")?;
        tracing::info!("boots are counted from now on: {file}, read by {hook}");
        Ok(ask(program, words).map(drop)?)
    }

    /// What is written is on the disk at the end.
    fn edit(&self, verb: &str, what: &[&str]) -> Result<(), String> {
        let [editor, block, boot] = [&self.editor, &self.block, &self.boot].map(|path| path.display().to_string());
        let words = [&["sh", "-c", EDIT, "sh", &editor, &block, &boot, verb][..], what].concat();
        let words = [self.own_mounts, &words].concat();
        let (program, words) = words.split_first().ok_or("no program")?;
        Ok(tell(program, words)?)
    }
}

/// What GRUB's configuration does about the counter.
#[derive(Debug, PartialEq, Eq)]
enum Counting {
    /// It counts, or nobody can tell: no configuration is there, or it does not read.
    Does,
    /// Not yet: this file is to get the line that reads ours.
    Lacks(PathBuf),
}

/// What lies beside the block, and what a distribution has on its EFI partition.
fn counting(boot: &Path, beside: &Path) -> Counting {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let ours = beside.join(COUNTING_NAME);
    let folders = std::iter::once(beside.to_owned()).chain(entries(&boot.join("efi/EFI")));
    let configs = folders.flat_map(|folder| entries(&folder));
    let mut configs = configs.filter(|path| path.extension().is_some_and(|end| end == "cfg") && *path != ours);
    if configs.any(|path| std::fs::read(path).map_or(true, |text| says(&String::from_utf8_lossy(&text), NAME))) {
        return Counting::Does;
    }
    let text = |path: &Path| std::fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned());
    let main = beside.join("grub.cfg");
    let Ok(config) = text(&main) else { return Counting::Does };
    // Read after the entries, before them, or not at all.
    let hook = ["custom.cfg", "user.cfg"].into_iter().find(|name| says(&config, name));
    let hook = hook.map_or(main, |name| beside.join(name));
    let is_read = text(&hook).is_ok_and(|text| text.lines().any(|line| line == LINE));
    let is_there = text(&ours).is_ok_and(|text| text == COUNTING);
    if is_read && is_there { Counting::Does } else { Counting::Lacks(hook) }
}

/// A comment says nothing.
fn says(config: &str, what: &str) -> bool {
    config.lines().any(|line| !line.trim_start().starts_with('#') && line.contains(what))
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
