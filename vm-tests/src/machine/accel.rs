//! KVM where a guest really runs under it, TCG elsewhere.

#![expect(clippy::disallowed_methods, reason = "starts a guest to see, reads the environment")]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use super::boot_sector;
use crate::process::end_child;

/// How long the guest of the probe may take. Under a KVM that works it takes less than one second.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// How QEMU runs the processors of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The computer's own virtualization.
    Kvm,
    /// Translation: about ten times slower, but it works everywhere.
    Tcg,
}

impl Accelerator {
    /// The one for this computer. `NKD_VM_ACCEL=kvm` or `tcg` decides; otherwise a guest is tried, once in the life of
    /// this process, because `/dev/kvm` may be there and hang or crawl on every usual guest.
    pub fn of_this_computer() -> Self {
        static CHOICE: OnceLock<Accelerator> = OnceLock::new();
        *CHOICE.get_or_init(|| match std::env::var("NKD_VM_ACCEL").as_deref() {
            Ok("kvm") => Self::Kvm,
            Ok("tcg") => Self::Tcg,
            _ => Self::probed(),
        })
    }

    /// Tries a guest under KVM. Any difficulty means TCG.
    fn probed() -> Self {
        if !Path::new("/dev/kvm").exists() {
            return Self::Tcg;
        }
        let disk = std::env::temp_dir().join(format!("nkd-kvm-probe-{}", std::process::id()));
        let works = std::fs::write(&disk, boot_sector::probe()).is_ok() && runs_under("kvm", &disk, PROBE_LIMIT);
        let _ = std::fs::remove_file(&disk);
        if works { Self::Kvm } else { Self::Tcg }
    }
}

/// Whether the guest of the probe speaks within the limit.
fn runs_under(accelerator: &str, disk: &Path, limit: Duration) -> bool {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", accelerator, "-machine", "q35", "-m", "64", "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-serial", "stdio", "-drive"]);
    command.arg(format!("file={},format=raw,if=virtio,readonly=on", disk.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let (sender, receiver) = mpsc::channel();
    if let Some(mut output) = child.stdout.take() {
        thread::spawn(move || {
            let (mut said, mut bytes) = (Vec::new(), [0; 256]);
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                said.extend_from_slice(&bytes[..length]);
                if String::from_utf8_lossy(&said).contains(boot_sector::PROBE_TEXT) {
                    let _ = sender.send(());
                    return;
                }
            }
        });
    }
    let spoke = receiver.recv_timeout(limit).is_ok();
    end_child(&mut child);
    spoke
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The probe's guest is good: where translation runs it, a silence under KVM is KVM's fault.
    #[test]
    fn the_guest_of_the_probe_runs_under_tcg() {
        if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
            eprintln!("skipped: no qemu-system-x86_64 here");
            return;
        }
        let disk = std::env::temp_dir().join(format!("nkd-tcg-probe-{}", std::process::id()));
        std::fs::write(&disk, boot_sector::probe()).unwrap();
        let works = runs_under("tcg", &disk, Duration::from_secs(60));
        std::fs::remove_file(&disk).unwrap();
        assert!(works);
    }
}
