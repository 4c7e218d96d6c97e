//! The boot loader's counter: GRUB's environment block, with the names that Fedora and its relatives use.
//!
//! `boot_counter` is counted down at every boot; at 0 the entry before is booted, and -1 is left for us. It is set when a
//! release is armed, and unset when the gate has let the node pass. A GRUB whose configuration does not write that name, as
//! that of NestOS' assembler does not, boots as ever: there we add the counting ourselves, in a file of our own and a line that
//! reads it. Where GRUB cannot write to the file system, the gate alone brings a node back, and a release whose kernel does
//! not start stays down. That is said, and keeps nobody from an update.
#![expect(clippy::disallowed_methods, reason = "reads GRUB's configuration")]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use super::program::ask;

const NAME: &str = "boot_counter";
/// So many boots without an unset counter, then the entry before. What Fedora's GRUB counts is a boot after one that was no
/// success.
const BOOTS: [&str; 2] = ["boot_counter=3", "boot_success=0"];
/// What GRUB keeps over restarts.
const BLOCK: &str = "grubenv";
/// What counts, for a GRUB whose configuration does not.
const COUNTING: &str = include_str!("boot-counter.cfg");
const COUNTING_NAME: &str = "nkd-boot-counter.cfg";
/// What reads it.
const LINE: &str = "if [ -f $prefix/nkd-boot-counter.cfg ]; then source $prefix/nkd-boot-counter.cfg; fi";
/// For /boot is mounted for reading only.
const OWN_MOUNTS: &[&str] = &["unshare", "--mount", "--"];
/// The block, the editor and its words. The editor cuts the block off before it writes: a power cut then leaves an empty one,
/// which it would refuse from then on.
const EDIT: &str = "block=$1 editor=$2; shift 2; { [ -s \"$block\" ] || \"$editor\" \"$block\" create; } && \
    \"$editor\" \"$block\" \"$@\" && sync -f \"$block\"";
/// What counts, its file, the line, and the file that gets it. GRUB sees an appended line, or does not.
const ADD: &str = "text=$1 file=$2 line=$3 hook=$4; printf %s \"$text\" >\"$file.new\" && sync \"$file.new\" && \
    mv -T \"$file.new\" \"$file\" && sync -f \"$file\" && \
    { grep -qxF \"$line\" \"$hook\" 2>/dev/null || printf '\\n%s\\n' \"$line\" >>\"$hook\"; }";
/// What goes.
const REMOVE: &str = "rm -f \"$1\"";
/// Before and after such a script, with the file system as its first word. GRUB replays no journal: what is only there, it does not
/// see. To freeze a file system is what empties its journal; one of which /boot is a folder is left alone: that would be the root.
/// Nothing ends this half way but a kill that cannot be caught.
const BEFORE: &str = "trap '' TERM INT HUP; boot=$1; shift; mount -o remount,rw \"$boot\" 2>/dev/null; ";
const AFTER: &str = " && sync -f \"$boot\" && \
    { [ \"$(findmnt -nro FSROOT --mountpoint \"$boot\" | tail -n 1)\" != / ] || ! fsfreeze -f \"$boot\" || \
    fsfreeze -u \"$boot\" || fsfreeze -u \"$boot\"; }";

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
    /// None: this boot loader has none. One that has a configuration and no block yet, as those of CoreOS' assembler on
    /// aarch64, gets one when it is armed.
    #[must_use]
    pub fn find(root: &Path, path: &str) -> Option<Self> {
        let boot = root.join("boot");
        let folders = || ["grub2", "grub"].into_iter().map(|name| boot.join(name));
        let folder = folders().find(|folder| folder.join(BLOCK).exists());
        let folder = folder.or_else(|| folders().find(|folder| folder.join("grub.cfg").exists()))?;
        let at = |program: &str| path.split(':').map(|folder| Path::new(folder).join(program)).find(|at| at.exists());
        let editor = ["grub2-editenv", "grub-editenv"].into_iter().find_map(at)?;
        let devices = root.join("sys/dev/block");
        Some(Self { editor, block: folder.join(BLOCK), boot, devices, own_mounts: OWN_MOUNTS })
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
        match self.counting() {
            // Twice would be too much.
            Counting::Natively => self.remove()?,
            Counting::Unknown | Counting::ByUs => {}
            Counting::Lacks(hook) => {
                self.add(&hook)?;
                if self.counting() != Counting::ByUs {
                    let hook = hook.display();
                    return Err(format!("GRUB's configuration does not count boots, although {hook} was written"));
                }
            }
        }
        self.edit("set", &BOOTS)
    }

    /// Counts no more; one that an agent of before has set is unset everywhere.
    ///
    /// # Errors
    /// In one sentence.
    pub fn disarm(&self) -> Result<(), String> {
        // Without a block nothing has ever been set.
        if self.block.exists() { self.edit("unset", &[NAME]) } else { Ok(()) }
    }

    /// GRUB reads file systems that it cannot write to. Several paths to one disk are a disk for it.
    fn is_beyond_grub(&self) -> bool {
        let is_btrfs = statfs(&self.boot).is_ok_and(|seen| seen.filesystem_type() == BTRFS_SUPER_MAGIC);
        let folder = self.block.parent().unwrap_or(&self.boot);
        let seen = std::fs::metadata(&self.block).or_else(|_| std::fs::metadata(folder));
        let device = seen.map(|seen| format!("{}:{}", major(seen.dev()), minor(seen.dev())));
        let is_made = device.is_ok_and(|device| {
            let device = self.devices.join(device);
            let paths = std::fs::read_to_string(device.join("dm/uuid")).is_ok_and(|uuid| uuid.contains("mpath-"));
            device.join("md").exists() || (device.join("dm").exists() && !paths)
        });
        is_btrfs || is_made
    }

    /// What the configuration does about the counter. That may be changed at any time.
    fn counting(&self) -> Counting {
        counting(&self.boot, self.block.parent().unwrap_or(&self.boot))
    }

    fn add(&self, hook: &Path) -> Result<(), String> {
        let [file, hook] = [&self.counting_file(), hook].map(|path| path.display().to_string());
        tracing::info!("boots are counted from now on: {file}, read by {hook}");
        self.run(ADD, &[COUNTING, &file, LINE, &hook])
    }

    /// What reads it looks first whether it is there.
    fn remove(&self) -> Result<(), String> {
        let file = self.counting_file();
        if !file.exists() {
            return Ok(());
        }
        let file = file.display().to_string();
        tracing::info!("GRUB's own configuration counts boots now: {file} goes");
        self.run(REMOVE, &[&file])
    }

    fn counting_file(&self) -> PathBuf {
        self.block.with_file_name(COUNTING_NAME)
    }

    fn edit(&self, verb: &str, what: &[&str]) -> Result<(), String> {
        let [block, editor] = [&self.block, &self.editor].map(|path| path.display().to_string());
        tracing::info!("{editor} {block} {verb} {}", what.join(" "));
        self.run(EDIT, &[&[block.as_str(), &editor, verb], what].concat())
    }

    /// What a script has written is on the disk at the end, where GRUB finds it.
    fn run(&self, script: &str, words: &[&str]) -> Result<(), String> {
        let (script, boot) = (format!("{BEFORE}{script}{AFTER}"), self.boot.display().to_string());
        let words = [self.own_mounts, &["sh", "-c", &script, "sh", &boot], words].concat();
        let (program, words) = words.split_first().ok_or("no program")?;
        Ok(ask(program, words).map(drop)?)
    }
}

/// What GRUB's configuration does about the counter.
#[derive(Debug, PartialEq, Eq)]
enum Counting {
    /// It counts.
    Natively,
    /// It reads ours.
    ByUs,
    /// Not yet: this file is to get the line that reads ours.
    Lacks(PathBuf),
    /// No configuration is there, or it does not read.
    Unknown,
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
    let configs = configs.filter(|path| path.extension().is_some_and(|end| end == "cfg") && *path != ours);
    let text = |path: &Path| std::fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned());
    let texts: Result<Vec<String>, _> = configs.map(|path| text(&path)).collect();
    let main = beside.join("grub.cfg");
    let (Ok(texts), Ok(config)) = (texts, text(&main)) else { return Counting::Unknown };
    if texts.iter().any(|text| lines(text).any(counts_down)) {
        return Counting::Natively;
    }
    // Read after the entries, before them, or not at all.
    let hook = ["custom.cfg", "user.cfg"].into_iter().find(|name| lines(&config).any(|line| line.contains(name)));
    let hook = hook.map_or(main, |name| beside.join(name));
    let is_read = text(&hook).is_ok_and(|text| text.lines().any(|line| line == LINE));
    let is_there = text(&ours).is_ok_and(|text| text == COUNTING);
    if is_read && is_there { Counting::ByUs } else { Counting::Lacks(hook) }
}

/// A comment says nothing.
fn lines(config: &str) -> impl Iterator<Item = &str> {
    config.lines().filter(|line| !line.trim_start().starts_with('#'))
}

/// It writes the counter: who only shows it, does not count.
fn counts_down(line: &str) -> bool {
    line.contains(NAME) && ["decrement", "save_env"].iter().any(|verb| line.contains(verb))
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
