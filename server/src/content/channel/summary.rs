//! The signed list of refs and differences of a repository: two files, which clients fetch one after the other.
//!
//! ostree writes a new list in place, takes the signature of the old one away, and makes the new one then. Meanwhile clients
//! would find no signature. So it works in a folder beside, which has all but the two files in common with the repository, and
//! both come over when they are whole. A file system replaces one file at a time, and may take its time for it: who asks for
//! one of them meanwhile waits. What is left is a client that has the old signature and asks for the list then, which has to ask
//! again. A service that was killed between the two writes both anew at its next start.
#![expect(clippy::disallowed_methods, reason = "keeps files for ostree")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use tokio::sync::{RwLock, RwLockReadGuard};

use super::ChannelError;
use super::repository::{Repository, io as failed};
use super::signer::Signer;

/// The two files.
pub(super) const SUMMARY: &str = "summary";
pub(super) const SIGNATURE: &str = "summary.sig";
/// Both are of one time.
static PAIR: RwLock<()> = RwLock::const_new(());

/// To be held while a file of a repository is opened, which may be one of the two.
pub async fn opening(path: &str) -> Option<RwLockReadGuard<'static, ()>> {
    match path {
        SUMMARY | SIGNATURE => Some(PAIR.read().await),
        _ => None,
    }
}

/// What a summary is made from, and what is kept up to date with it.
const SHARED: [&str; 5] = ["config", "objects", "refs", "deltas", "delta-indexes"];
/// What ostree wants to have in a repository.
const OWN: [&str; 3] = ["tmp", "state", "extensions"];

impl Repository {
    /// Writes the signed list of refs and deltas. Until it is whole, the one before stays.
    pub(super) fn summarize(&self, signer: &Signer) -> Result<(), ChannelError> {
        let place = self.beside().map_err(failed("make a folder in", &self.path().join("tmp")))?;
        let beside = Self::at(place.path())?;
        let mut key = OsString::from("--gpg-sign=");
        key.push(signer.fingerprint());
        beside.ostree::<OsString>("summary", &["--update".into(), super::repository::homedir(signer), key])?;
        beside.sign_summary(signer.ed25519())?;
        // Who asks without us asks for the signature first.
        let switching = PAIR.blocking_write();
        for name in [SIGNATURE, SUMMARY] {
            let path = self.path().join(name);
            fs::rename(place.path().join(name), &path).map_err(failed("write", &path))?;
        }
        drop(switching);
        let synced = File::open(self.path()).and_then(|folder| folder.sync_all());
        synced.map_err(failed("write", self.path()))
    }

    /// A folder that is the same repository, without a summary. ostree owns `tmp`, and removes what a kill leaves there after
    /// a day.
    fn beside(&self) -> io::Result<TempDir> {
        let ours = std::path::absolute(self.path())?;
        let place = tempfile::Builder::new().prefix("nkd-summary-").tempdir_in(ours.join("tmp"))?;
        for name in OWN {
            fs::create_dir(place.path().join(name))?;
        }
        for name in SHARED {
            let there = ours.join(name);
            if !there.exists() {
                // A folder of differences: there is none yet.
                fs::create_dir_all(&there)?;
            }
            symlink(&there, place.path().join(name))?;
        }
        // Whoever else works in the repository waits for it, as for ostree there.
        lock(&ours, place.path()).map(|()| place)
    }
}

/// The same lock in both folders. Of a repository that nobody has locked yet, there is none.
fn lock(ours: &Path, beside: &Path) -> io::Result<()> {
    match fs::hard_link(ours.join(".lock"), beside.join(".lock")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
