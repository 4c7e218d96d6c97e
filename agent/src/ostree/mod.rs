//! The operating system as deployments on the disk: what runs, what is laid out beside it, what boots next.
//!
//! | module | for |
//! |---|---|
//! | `plain` | ostree without rpm-ostree: `ostree admin` |
//! | `rpm` | rpm-ostree: NestOS, Fedora CoreOS; commits and images by their digests |
//! | `site` | anything else: a program of the site's own |
//! | `remote` | which signatures are asked for |
//! | `difference` | a release's static delta, fetched and applied first |
//! | `boot` | the boot loader's counter |
//!
//! Every operation may be begun again after it was broken off anywhere.

mod boot;
pub mod difference;
mod plain;
mod program;
pub mod remote;
mod rpm;
mod site;

use std::path::{Path, PathBuf};

use nkd_api::update::OsRelease;

use crate::update::state::{Deployment, Failure, Retry};
use crate::{client, files};

pub use boot::BootCounter;
pub use plain::Plain;
pub use program::{ProgramError, STATUS, ask, ask_within, tell};
pub use rpm::Rpm;
pub use site::Site;

/// Where a release comes from: the service's repository of the release's profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// `https://192.0.2.1:8443/ostree/nestos`.
    pub url: String,
    /// The authority of that address, PEM.
    pub ca: String,
    /// The OpenPGP key that its commits are signed with, armored.
    pub key: String,
    /// The ed25519 key that they are signed with too, in base64. None: they are not.
    pub ed25519_key: Option<String>,
    /// The folder that its delta was fetched to, from what runs.
    pub difference: Option<PathBuf>,
}

/// What a kind of system can do.
pub trait Backend: Send + Sync {
    /// Every deployment, the one that boots next first.
    ///
    /// # Errors
    /// In one sentence.
    fn deployments(&self) -> Result<Vec<Deployment>, String>;

    /// Why the last staged deployment was not made.
    fn finalize_failure(&self) -> Option<String>;

    /// Fetches a release and lays it out beside what runs, so that no restart makes it the next system: also when it was laid
    /// out, and armed, before. Its tree. `source`:
    /// where it is, or why that is not known; what runs or is staged already needs none.
    ///
    /// # Errors
    /// With a word on whether another try may fare better.
    fn stage(&self, os: &OsRelease, source: Result<&Source, &Failure>) -> Result<PathBuf, Failure>;

    /// Whether [`Self::stage`] has a use for a delta.
    fn takes_differences(&self) -> bool {
        false
    }

    /// What a person is to know before a node's turn: what would not come back here by itself.
    fn caution(&self) -> Option<&'static str> {
        None
    }

    /// From now on a restart makes the staged deployment, which is this one, the next system, and the boot loader counts.
    ///
    /// # Errors
    /// As [`Backend::stage`].
    fn arm(&self, id: &str) -> Result<(), Failure>;

    /// What runs stays.
    ///
    /// # Errors
    /// As [`Backend::stage`].
    fn confirm(&self) -> Result<(), Failure>;

    /// What ran before, `from`, boots next.
    ///
    /// # Errors
    /// As [`Backend::stage`].
    fn revert(&self, from: &str) -> Result<(), Failure>;

    /// Puts a release away that does not run, and lets the boot loader count no more.
    ///
    /// # Errors
    /// As [`Backend::stage`].
    fn discard(&self, id: &str) -> Result<(), Failure>;
}

/// The one that fits this system. `path`: where programs are looked for.
#[must_use]
pub fn detect(root: &Path, path: &str) -> Box<dyn Backend> {
    let has = |program: &str| path.split(':').any(|folder| Path::new(folder).join(program).exists());
    let counter = BootCounter::find(root, path);
    let is_image = root.join("run/ostree-booted").exists();
    if let Some(caution) = boot::caution(counter.as_ref()).filter(|_| is_image) {
        tracing::warn!("{caution}");
    }
    match is_image {
        true if has("rpm-ostree") => Box::new(Rpm::new(root, counter)),
        true => Box::new(Plain::new(root, counter)),
        false => Box::new(Fixed),
    }
}

/// A system that is not made of images: Kubernetes alone can be upgraded.
pub struct Fixed;

impl Backend for Fixed {
    fn deployments(&self) -> Result<Vec<Deployment>, String> {
        Ok(Vec::new())
    }

    fn finalize_failure(&self) -> Option<String> {
        None
    }

    fn stage(&self, _: &OsRelease, _: Result<&Source, &Failure>) -> Result<PathBuf, Failure> {
        let reason = "this system is not made of images (there is no /run/ostree-booted): ask for Kubernetes alone";
        Err(Failure { retry: Retry::Never, reason: reason.to_owned() })
    }

    fn arm(&self, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    fn confirm(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn revert(&self, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    fn discard(&self, _: &str) -> Result<(), Failure> {
        Ok(())
    }
}

/// The one deployment that is staged has to be this.
fn is_staged<'a>(mut deployments: impl Iterator<Item = &'a Deployment>, id: &str) -> Result<(), Failure> {
    match deployments.find(|deployment| deployment.staged) {
        Some(staged) if staged.id == id => Ok(()),
        Some(other) => Err(never(format!("{} is staged, and not {id}: somebody has staged another system", other.id))),
        None => Err(never("the staged deployment is gone: did somebody clean up?")),
    }
}

/// Counts from now on, anew: a counter that has run out says which entry boots, whatever is in it, and that must not be while
/// entries change places.
fn count(counter: Option<&BootCounter>) -> Result<(), Failure> {
    counter.map_or(Ok(()), BootCounter::arm).map_err(again)
}

/// Counts no more.
fn disarm(counter: Option<&BootCounter>) -> Result<(), Failure> {
    counter.map_or(Ok(()), BootCounter::disarm).map_err(again)
}

/// While this file is there, the staged deployment is not made one of the next when the system goes down.
const LOCKED: &str = "run/ostree/staged-deployment-locked";

/// Takes an unlocked deployment back.
fn lock(root: &Path) -> Result<(), Failure> {
    files::write_public(&root.join(LOCKED), b"").map_err(|error| again(client::chain(&error)))
}

/// The staged deployment is made the next when the system goes down. Since 2023.8 ostree keeps the lock in what it stages, honours
/// the file as well, and unlocks only the former; before, there is only the file, and no such command. `ostree`: the program.
fn unlock(root: &Path, ostree: &str) -> Result<(), Failure> {
    let is_locked = || match ask(ostree, &["admin", "status", "--skip-signatures"]) {
        Ok(status) => Ok(status.lines().any(|line| line.contains("(finalization locked)"))),
        // Too old for this option is too old for that lock.
        Err(error) if error.reason.contains("Unknown option") => Ok(false),
        Err(error) => Err(again(error)),
    };
    if is_locked()? {
        tell(ostree, &["admin", "lock-finalization", "--unlock"]).map_err(again)?;
    }
    files::remove(&root.join(LOCKED)).map_err(|error| again(client::chain(&error)))?;
    if is_locked()? { Err(again("the staged deployment stays locked")) } else { Ok(()) }
}

/// Another try may fare better.
fn again(reason: impl Into<String>) -> Failure {
    Failure { retry: Retry::Few, reason: reason.into() }
}

/// No further try will fare better.
fn never(reason: impl Into<String>) -> Failure {
    Failure { retry: Retry::Never, reason: reason.into() }
}
