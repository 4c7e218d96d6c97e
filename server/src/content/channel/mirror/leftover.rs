//! What a service that was killed left running: its `ostree pull` goes on for hours, and is in the way of the next one.
//!
//! Whoever works with the folder of an upstream holds the lock of a file there, and its programs have that file as their
//! standard input. So the lock is free when all of them have ended; those that have not are known by that file.
#![expect(clippy::disallowed_methods, reason = "looks into /proc, on a thread for that")]

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::super::ChannelError;
use super::super::repository::io;

const LOCK: &str = "lock";
/// Whoever was killed is gone at once, unless a disk or a network file system holds it.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(50);

/// The right to work with the folder, for as long as the result or a program that it was handed to lives. Who has it, ends.
///
/// # Errors
/// [`ChannelError::LeftRunning`], or the folder cannot be written.
pub(super) fn take(folder: &Path) -> Result<File, ChannelError> {
    let path = folder.join(LOCK);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let lock = opened.map_err(io("make", &path))?;
    let mut waited = Duration::ZERO;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(io("lock", &path)(error)),
            Err(TryLockError::WouldBlock) if waited >= PATIENCE => {
                return Err(ChannelError::LeftRunning(folder.into()));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        end_holders(&lock).map_err(io("read", Path::new("/proc")))?;
        thread::sleep(STEP);
        waited += STEP;
    }
}

fn end_holders(lock: &File) -> std::io::Result<()> {
    let lock = lock.metadata()?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
        // From here on it is meant, and not whoever has its number next.
        let Some(process) = number.and_then(|number| pidfd_open(number, PidfdFlags::empty()).ok()) else { continue };
        let input = fs::metadata(entry.path().join("fd/0"));
        if input.is_ok_and(|input| (input.dev(), input.ino()) == (lock.dev(), lock.ino()))
            && pidfd_send_signal(&process, Signal::KILL).is_ok()
        {
            tracing::info!(process = ?name, "ended what worked with an upstream before");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn who_has_the_folder_is_ended_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let lock = take(folder.path()).unwrap();
        let sleep = |input: Stdio| Command::new("sleep").arg("100").stdin(input).spawn().unwrap();
        let mut left = sleep(lock.try_clone().unwrap().into());
        let mut other = sleep(File::create(folder.path().join("other")).unwrap().into());
        // The service is killed.
        drop(lock);
        let again = take(folder.path()).unwrap();
        assert_eq!(left.wait().unwrap().signal(), Some(9));
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(matches!(File::open(folder.path().join(LOCK)).unwrap().try_lock(), Err(TryLockError::WouldBlock)));
        drop(again);
    }
}
