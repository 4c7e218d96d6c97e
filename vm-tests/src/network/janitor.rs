//! Removes namespaces and what runs in them: ours when they are dropped, and those of programs that were killed.
//!
//! A namespace is called `nkd-<pid>-<n>`, or `nkd-<pid>-<n>-<host or node>`: whose it is stands in its name, so only what this
//! framework has started is ever ended.

#![expect(clippy::disallowed_methods, reason = "ends processes, waits for them, reads folders")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ip;
use crate::Error;
use crate::node::cgroups;

pub(crate) const PREFIX: &str = "nkd-";
const RUNTIME: &str = "/run/nkd-vm";
const NAMESPACES: &str = "/run/netns";

/// The folder of a namespace's sockets. It is short, because the path of a socket may have 107 bytes only.
pub(crate) fn runtime_folder(space: &str) -> PathBuf {
    Path::new(RUNTIME).join(space)
}

/// Removes the namespaces of processes that are gone; once in the life of this process.
pub(crate) fn sweep_once() -> Result<(), Error> {
    static SWEPT: OnceLock<()> = OnceLock::new();
    if SWEPT.set(()).is_err() {
        return Ok(());
    }
    for folder in [NAMESPACES, RUNTIME] {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if owner(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                remove(&name);
            }
        }
    }
    Ok(())
}

/// Ends every process in a namespace, SIGTERM first, and removes it. It cannot fail in a way that anyone could mend; what
/// is left is said on standard error.
pub(crate) fn remove(space: &str) {
    // A node first: its systemd does not end by SIGTERM, and what it runs may be in namespaces of its own.
    cgroups::end(space);
    if Path::new(NAMESPACES).join(space).exists() {
        for (signal, limit) in [(Signal::SIGTERM, Duration::from_secs(3)), (Signal::SIGKILL, Duration::from_secs(5))] {
            if end_all(space, signal, limit) {
                break;
            }
        }
        if let Err(e) = ip(&format!("netns del {space}")) {
            eprintln!("the network namespace {space} is left behind: {e}");
        }
    }
    let _ = std::fs::remove_dir_all(runtime_folder(space));
}

/// Whether nothing runs in the namespace after the signal.
fn end_all(space: &str, signal: Signal, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    for pid in processes(space) {
        let _ = kill(pid, signal);
    }
    while !processes(space).is_empty() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// The processes in a namespace, this one never among them. Ended ones that nobody has reaped yet do not count.
fn processes(space: &str) -> Vec<Pid> {
    let text = ip(&format!("netns pids {space}")).unwrap_or_default();
    let pids = text.lines().filter_map(|line| line.trim().parse::<i32>().ok());
    pids.filter(|pid| pid.cast_unsigned() != std::process::id()).map(Pid::from_raw).collect()
}

fn owner(space: &str) -> Option<u32> {
    let mut parts = space.strip_prefix(PREFIX)?.split('-');
    let (pid, number) = (parts.next()?.parse().ok()?, parts.next()?);
    number.parse::<u32>().ok().map(|_| pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_names_have_an_owner() {
        assert_eq!(owner("nkd-123-1"), Some(123));
        assert_eq!(owner("nkd-123-1-client"), Some(123));
        for other in ["nkd", "nkd-", "nkd-lab", "nkd-123", "nkd-123-x", "cni-123-1", "nkd--1-2"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
