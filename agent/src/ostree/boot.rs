//! The boot loader's counter: GRUB's environment block, with the names that Fedora and its relatives use.
//!
//! `boot_counter` is counted down at every boot; at 0 the entry before is booted, and -1 is left for us. It is set when a
//! release is armed, and unset when the gate has let the node pass. A boot loader whose configuration does not read the
//! name boots as ever: then the gate alone brings a node back, and a release whose kernel does not start stays down.

use std::path::{Path, PathBuf};

use super::program::tell;

/// So many boots without an unset counter, then the entry before.
const BOOTS: &str = "boot_counter=3";

/// Where the counter is.
#[derive(Debug, Clone)]
pub struct BootCounter {
    editor: &'static str,
    block: PathBuf,
}

impl BootCounter {
    /// None: this boot loader has none.
    #[must_use]
    pub fn find(root: &Path, path: &str) -> Option<Self> {
        let block = ["boot/grub2/grubenv", "boot/grub/grubenv"].map(|name| root.join(name));
        let block = block.into_iter().find(|block| block.exists())?;
        let has = |program: &&str| path.split(':').any(|folder| Path::new(folder).join(program).exists());
        let editor = ["grub2-editenv", "grub-editenv"].into_iter().find(has)?;
        Some(Self { editor, block })
    }

    /// Counts from now on.
    ///
    /// # Errors
    /// In one sentence.
    pub fn arm(&self) -> Result<(), String> {
        self.edit("set", BOOTS)
    }

    /// Counts no more.
    ///
    /// # Errors
    /// In one sentence.
    pub fn disarm(&self) -> Result<(), String> {
        self.edit("unset", "boot_counter")
    }

    /// /boot is mounted for reading only: it is writable in a mount namespace of its own, and on the disk at the end.
    fn edit(&self, verb: &str, what: &str) -> Result<(), String> {
        let block = self.block.display().to_string();
        let script = "mount -o remount,rw /boot 2>/dev/null || true; \"$1\" \"$2\" \"$3\" \"$4\" && sync -f \"$2\"";
        Ok(tell("unshare", &["--mount", "--", "sh", "-c", script, "sh", self.editor, &block, verb, what])?)
    }
}
