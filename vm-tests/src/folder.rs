//! Where logs, screenshots and disks lie, and what the environment says about them.

#![expect(clippy::disallowed_methods, reason = "reads the environment and makes folders")]

use std::path::{Path, PathBuf};

use crate::Error;

/// The folder of all networks: `$NKD_VM_TEST_DIR`, or `vm-tests` in cargo's target folder.
pub(crate) fn base() -> PathBuf {
    if let Some(dir) = std::env::var_os("NKD_VM_TEST_DIR") {
        return dir.into();
    }
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR") {
        return Path::new(&dir).join("vm-tests");
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).join("target/vm-tests")
}

/// Empties and makes the folder of one network.
pub(crate) fn fresh(folder: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(format!("emptying {}", folder.display()))(e));
        }
        _ => {}
    }
    std::fs::create_dir_all(folder).map_err(Error::io(format!("making {}", folder.display())))
}

/// How much longer than written every limit is, from `NKD_VM_PATIENCE`; at least 0.1, at most 100.
pub(crate) fn patience() -> f64 {
    let factor = std::env::var("NKD_VM_PATIENCE").ok().and_then(|text| text.parse::<f64>().ok());
    factor.filter(|factor| factor.is_finite()).unwrap_or(1.0).clamp(0.1, 100.0)
}

/// Whether the disks of machines are kept beside their logs, from `NKD_VM_KEEP_DISKS`.
pub(crate) fn keeps_disks() -> bool {
    std::env::var_os("NKD_VM_KEEP_DISKS").is_some_and(|value| !value.is_empty())
}
