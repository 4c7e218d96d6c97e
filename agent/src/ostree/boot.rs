//! The boot loader's counter: GRUB's environment block, with the names that Fedora and its relatives use.
//!
//! `boot_counter` is counted down at every boot; at 0 the entry before is booted, and -1 is left for us. It is set when a
//! release is armed, and unset when the gate has let the node pass. A GRUB whose configuration does not speak of that name
//! boots as ever, and that of NestOS' assembler is one: then the gate alone brings a node back, and a release whose kernel does not start
//! stays down. That is said, and keeps nobody from an update.
#![expect(clippy::disallowed_methods, reason = "reads GRUB's configuration")]

use std::path::{Path, PathBuf};

use super::program::tell;

const NAME: &str = "boot_counter";
/// So many boots without an unset counter, then the entry before. What Fedora's GRUB counts is a boot after one that was no
/// success.
const BOOTS: [&str; 2] = ["boot_counter=3", "boot_success=0"];
/// For /boot is mounted for reading only.
const OWN_MOUNTS: &[&str] = &["unshare", "--mount", "--"];
/// The editor, the block, the file system that it is on, and the words.
const EDIT: &str = "editor=$1 block=$2; mount -o remount,rw \"$3\" 2>/dev/null; shift 3; \"$editor\" \"$block\" \"$@\" && sync -f \"$block\"";

/// Where the counter is.
#[derive(Debug, Clone)]
pub struct BootCounter {
    editor: PathBuf,
    block: PathBuf,
    boot: PathBuf,
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
        Some(Self { editor, block, boot, own_mounts: OWN_MOUNTS })
    }

    /// For a system that is a folder.
    #[cfg(test)]
    pub fn without_mounts(self) -> Self {
        Self { own_mounts: &["env"], ..self }
    }

    /// What does not come back by itself here.
    #[must_use]
    pub fn caution(&self) -> Option<&'static str> {
        let why =
            "a release that does not start would stay down, since GRUB's configuration does not read boot_counter";
        (!self.counts()).then_some(why)
    }

    /// Counts from now on, where anything counts: else a counter that stands would only have the node restarted by its deadline
    /// again and again.
    ///
    /// # Errors
    /// In one sentence.
    pub fn arm(&self) -> Result<(), String> {
        if self.counts() { self.edit("set", &BOOTS) } else { Ok(()) }
    }

    /// Counts no more; one that an agent of before has set is unset everywhere.
    ///
    /// # Errors
    /// In one sentence.
    pub fn disarm(&self) -> Result<(), String> {
        self.edit("unset", &[NAME])
    }

    /// GRUB's configuration speaks of it. That may be changed at any time.
    fn counts(&self) -> bool {
        counts(&self.boot, &self.block)
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

/// Whether GRUB's configuration speaks of the counter: what lies beside the block, and what a distribution has on its EFI
/// partition. None there, or one that does not read, counts for all that is known.
fn counts(boot: &Path, block: &Path) -> bool {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let beside = block.parent().map(Path::to_owned);
    let folders = beside.into_iter().chain(entries(&boot.join("efi/EFI")));
    let configs = folders.flat_map(|folder| entries(&folder));
    let mut configs = configs.filter(|path| path.extension().is_some_and(|end| end == "cfg")).peekable();
    configs.peek().is_none()
        || configs.any(|path| std::fs::read(path).map_or(true, |text| speaks_of_it(&String::from_utf8_lossy(&text))))
}

/// A comment says nothing.
fn speaks_of_it(config: &str) -> bool {
    config.lines().any(|line| !line.trim_start().starts_with('#') && line.contains(NAME))
}

#[cfg(test)]
mod tests {
    use super::super::ask;
    use super::*;

    /// The lab image's, which counts; and what stands in for a stock one, which only comments on it.
    const LAB: &str = include_str!("../../../images/lab/overlay/usr/lib/nestos/grub.cfg");
    const STOCK: &str =
        "set pager=1\n# no boot_counter here\nif [ -s $prefix/grubenv ]; then\n  load_env\nfi\nblscfg\n";

    /// A system with these files below /boot, and an editor that writes its words down.
    struct Node {
        root: tempfile::TempDir,
        counter: BootCounter,
    }

    impl Node {
        fn new(files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            for (name, text) in [("grub2/grubenv", "# GRUB Environment Block\n")].iter().chain(files) {
                let path = root.path().join("boot").join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            let [text, editor] = ["text", "grub2-editenv"].map(|name| root.path().join(name).display().to_string());
            std::fs::write(&text, "#!/bin/sh\necho \"$*\" >>\"${0%/*}/words\"\n").unwrap();
            // Written by another process, it is in nobody's way: no thread of ours has it open for writing.
            tell("install", &["-m", "755", &text, &editor]).unwrap();
            let path = format!("/nowhere:{}", root.path().display());
            let counter = BootCounter::find(root.path(), &path).unwrap().without_mounts();
            Self { root, counter }
        }

        fn words(&self) -> String {
            let block = format!("{} ", self.counter.block.display());
            std::fs::read_to_string(self.root.path().join("words")).unwrap_or_default().replace(&block, "")
        }
    }

    #[test]
    fn a_counter_is_one_that_the_configuration_of_grub_reads() {
        for files in [
            &[("grub2/grub.cfg", LAB)][..],
            &[("grub2/grub.cfg", STOCK), ("grub2/custom.cfg", "decrement boot_counter\n")],
            &[("grub2/grub.cfg", STOCK), ("efi/EFI/openEuler/grub.cfg", LAB)],
            // Nobody can tell.
            &[],
        ] {
            let node = Node::new(files);
            assert_eq!(node.counter.caution(), None, "{files:?}");
            node.counter.arm().unwrap();
            node.counter.disarm().unwrap();
            assert_eq!(node.words(), "set boot_counter=3 boot_success=0\nunset boot_counter\n");
        }
        let node =
            Node::new(&[("grub2/grub.cfg", STOCK), ("efi/EFI/openEuler/grub.cfg", "configfile $prefix/grub.cfg\n")]);
        assert!(node.counter.caution().is_some_and(|why| why.contains("would stay down")));
        node.counter.arm().unwrap();
        assert_eq!(node.words(), "", "nothing counts it down");
        node.counter.disarm().unwrap();
        assert_eq!(node.words(), "unset boot_counter\n");
    }

    #[test]
    fn a_block_that_cannot_be_edited_is_an_error() {
        let node = Node::new(&[("grub2/grub.cfg", LAB)]);
        ask("install", &["-m", "755", "/bin/false", &node.counter.editor.display().to_string()]).unwrap();
        node.counter.arm().unwrap_err();
        node.counter.disarm().unwrap_err();
    }
}
