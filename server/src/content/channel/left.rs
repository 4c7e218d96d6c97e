//! What a service that was killed left running: its `ostree pull` goes on for hours, and writes where the next service writes.
//!
//! Each program that a service runs, and whatever that starts, has the state folder in its environment. A state folder is one
//! service's at a time, so at its start, before it runs any, those that have it are of an earlier one.
#![expect(clippy::disallowed_methods, reason = "looks into /proc, on a thread for that")]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;
use std::{fs, io, thread};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

/// In the environment of programs.
const NAME: &str = "NKD_PROGRAM_OF";
/// Whoever was killed is gone at once, unless a disk or a network file system holds it.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(50);

/// The state folder of the service that runs in this process.
static OWNER: OnceLock<OsString> = OnceLock::new();

/// What the environment of a program has to say, once it is known whose programs run here.
pub(super) fn mark() -> Option<(&'static str, &'static OsStr)> {
    Some((NAME, OWNER.get()?))
}

/// Ends the programs of an earlier service with this state folder; those of this one are known by it from now on. True: all
/// have ended.
///
/// # Errors
/// There is no such folder, or no /proc.
pub(super) fn end(state_dir: &Path) -> io::Result<bool> {
    let owner = fs::canonicalize(state_dir)?.into_os_string();
    let mut word = OsString::from(format!("{NAME}="));
    word.push(&owner);
    let mut waited = Duration::ZERO;
    let ended = loop {
        if !end_those(word.as_bytes())? {
            break true;
        }
        if waited >= PATIENCE {
            break false;
        }
        thread::sleep(STEP);
        waited += STEP;
    };
    OWNER.get_or_init(|| owner);
    Ok(ended)
}

/// Whether there was one.
fn end_those(word: &[u8]) -> io::Result<bool> {
    let mut found = false;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)).filter(|number| *number != getpid());
        // From here on it is meant, and not whoever has its number next.
        let Some(process) = number.and_then(|number| pidfd_open(number, PidfdFlags::empty()).ok()) else { continue };
        // What has ended has no environment.
        let words = fs::read(entry.path().join("environ")).unwrap_or_default();
        if words.split(|byte| *byte == 0).any(|of| of == word) && pidfd_send_signal(&process, Signal::KILL).is_ok() {
            found = true;
            tracing::info!(process = ?name, "ended a program of the service that ran here before");
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn programs_of_this_state_folder_are_ended_with_what_they_started_and_nobody_else() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |folder: &Path, script: &str| {
            let folder = fs::canonicalize(folder).unwrap();
            Command::new("sh").args(["-c", script]).env(NAME, folder).spawn().unwrap()
        };
        let begun = ours.path().join("begun");
        let mut left =
            of(ours.path(), &format!("sleep 100 & echo $! >{}.new && mv {0}.new {0}; wait", begun.display()));
        let mut other = of(theirs.path(), "exec sleep 100");
        while !begun.exists() {
            thread::sleep(STEP);
        }
        // Whoever has ended and was not asked for it has no environment: here this is left's parent, and asks.
        let reaper = thread::spawn(move || left.wait().unwrap().signal());
        assert!(end(ours.path()).unwrap());
        assert_eq!(reaper.join().unwrap(), Some(9));
        let child = fs::read_to_string(&begun).unwrap();
        let state = fs::read_to_string(format!("/proc/{}/environ", child.trim())).unwrap_or_default();
        assert!(!state.contains(NAME), "{state}");
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(end(&ours.path().join("none")).is_err());
    }
}
