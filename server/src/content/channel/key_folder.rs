//! Where an unpacked OpenPGP key lies for the moments of a signature: in a folder for nobody else, in memory where the system
//! has such a folder.
//!
//! A service that is killed leaves it behind, and a gpg-agent that knows the key. So a folder is locked as long as somebody
//! works with it, and the next start removes those that nobody holds. Several services may run on a host.
#![expect(clippy::disallowed_methods, reason = "makes and removes folders, on threads for that")]

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;
use tempfile::TempDir;

use super::gpg_agent;

/// Folders in memory that are there on usual systems.
const IN_MEMORY: [&str; 2] = ["/dev/shm", "/run/shm"];
/// So that they are known again.
const PREFIX: &str = "nkd-key-";
/// A folder is taken away by somebody who tidies between two system calls: more than once in a row is no accident.
const ATTEMPTS: usize = 16;

/// The folder, which goes when this goes.
pub(super) struct KeyFolder {
    folder: TempDir,
    /// Where gpg's agent listens. It is known from the beginning: at the end no program may be started any more.
    agent: PathBuf,
    _lock: File,
}

impl KeyFolder {
    /// In memory, or else in the service's own folder.
    pub fn make(state_dir: &Path) -> io::Result<Self> {
        let in_memory = IN_MEMORY.iter().find_map(|parent| Self::make_in(Path::new(parent)).ok());
        in_memory.map_or_else(|| Self::make_in(state_dir), Ok)
    }

    fn make_in(parent: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let private = Permissions::from_mode(0o700);
            let folder = tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir_in(parent)?;
            if let Some(lock) = hold(folder.path())? {
                // No key of ours is on a card, and what looks for cards would be one more process.
                std::fs::write(folder.path().join("gpg-agent.conf"), "disable-scdaemon\n")?;
                let agent = gpg_agent::address(folder.path()).map_err(io::Error::other)?;
                return Ok(Self { folder, agent, _lock: lock });
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for KeyFolder {
    fn drop(&mut self) {
        end_agent(self.path(), &self.agent);
    }
}

/// Removes the folders of services that are gone, and ends their agents.
pub(super) fn tidy(state_dir: &Path) {
    let parents = IN_MEMORY.iter().map(Path::new).chain([state_dir]);
    for folder in parents.flat_map(folders) {
        let removed = match hold(&folder) {
            Ok(Some(_lock)) => {
                match gpg_agent::address(&folder) {
                    Ok(agent) => end_agent(&folder, &agent),
                    Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "gpg's agent is not found"),
                }
                std::fs::remove_dir_all(&folder)
            }
            // Somebody works with it, or just took it away.
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => tracing::info!(folder = %folder.display(), "removed the unpacked key of a service that is gone"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(folder = %folder.display(), %error, "cannot remove an unpacked key"),
        }
    }
}

/// Those of this user: others may write there too.
fn folders(parent: &Path) -> Vec<PathBuf> {
    let user = nix::unistd::geteuid().as_raw();
    let ours = |path: &PathBuf| {
        let named = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        named && path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == user)
    };
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(ours).collect()
}

/// The folder is this caller's alone as long as the result lives. None: it is somebody else's, or not there any more.
fn hold(folder: &Path) -> io::Result<Option<File>> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(folder);
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let lock = match opened {
        Err(error) if gone(&error) => return Ok(None),
        other => other?,
    };
    match lock.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
        other => other?,
    }
    // Who held the lock before may have removed the folder.
    let there =
        folder.symlink_metadata().is_ok_and(|found| lock.metadata().is_ok_and(|held| held.ino() == found.ino()));
    Ok(there.then_some(lock))
}

fn end_agent(folder: &Path, agent: &Path) {
    if let Err(error) = gpg_agent::end(agent) {
        tracing::warn!(folder = %folder.display(), %error, "the gpg-agent that knows an unpacked key does not end");
    }
}

#[cfg(test)]
mod tests {
    use super::super::gpg_agent::tests::{launch, lives, private};
    use super::*;

    #[test]
    fn it_is_for_nobody_else() {
        let state = tempfile::tempdir().unwrap();
        let folder = KeyFolder::make(state.path()).unwrap();
        assert_eq!(folder.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_a_killed_service_left_is_removed_and_what_a_living_one_works_with_is_not() {
        let state = tempfile::tempdir().unwrap();
        let (gone, held) = (state.path().join("nkd-key-gone"), KeyFolder::make_in(state.path()).unwrap());
        private(&gone);
        let agent = launch(&gone);
        assert!(lives(agent));
        let (other, link) = (state.path().join("other"), state.path().join("nkd-key-link"));
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        tidy(state.path());
        assert!(!gone.exists());
        assert!(!lives(agent), "it goes on");
        assert!(held.path().exists() && other.exists() && link.is_symlink());
        // Its lock is its own: nobody else gets it until it is gone.
        assert!(hold(held.path()).unwrap().is_none());
        let (path, agent) = (held.path().to_owned(), launch(held.path()));
        assert!(lives(agent));
        drop(held);
        assert!(!path.exists() && !lives(agent));
    }
}
