//! Where commits are published from: a repository in a folder, in a tar, or inside an OCI image.
//!
//! What is packed is unpacked into a folder of its own beside our repositories, as a repository of the mode `archive`,
//! whose files need neither owners nor attributes on the disk. Names come from a short list, links are never made, and
//! the real ostree then takes the commit with every checksum computed anew. The folder goes when the order is done; what
//! a service that was killed left goes at its next start.

mod filez;
mod folder;
mod image;
mod layer;
mod member;
mod objects;
mod packing;
mod tarball;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{ChannelError, Repository};

/// Before the names of folders that are for one order.
pub(super) const PREFIX: &str = ".source-";

/// Why there is nothing to publish from.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// What is in it is not taken.
    #[error("{} is not taken: {reason}", path.display())]
    NotTaken {
        /// The file or folder.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// Why a part of it is not taken, or what could not be written.
#[derive(Debug)]
enum Failed {
    Refused(String),
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl Failed {
    fn refused<T>(reason: impl Into<String>) -> Result<T, Self> {
        Err(Self::Refused(reason.into()))
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    fn of(self, path: &Path) -> SourceError {
        match self {
            Self::Refused(reason) => SourceError::NotTaken { path: path.into(), reason },
            Self::Io { action, path, source } => SourceError::Io { action, path, source },
        }
    }
}

/// How much is unpacked at most.
#[derive(Debug, Clone, Copy)]
struct Limits {
    bytes: u64,
    members: u64,
}

/// What of it is held in memory at most: names, refs, configurations, attributes. Half a KiB for each file of an image; large
/// systems have some hundred thousand.
const HELD: u64 = 512 << 20;

/// Counts what is held.
#[derive(Debug, Default)]
struct Held(u64);

impl Held {
    /// These parts of names, and so many bytes beside them, are held from now on.
    fn add(&mut self, names: &[String], bytes: usize) -> Result<(), Failed> {
        // What a map or a list takes for each, in the order of magnitude.
        let names: usize = names.iter().map(|name| name.len() + 48).sum();
        self.0 += (names + bytes + 96) as u64;
        match self.0 > HELD {
            true => Failed::refused("names, refs and attributes in it take more than 512 MiB of memory"),
            false => Ok(()),
        }
    }
}

/// Refuses to go on when the disk, which is the one of the service's state, is about to be full.
fn room(folder: &Path) -> Result<(), Failed> {
    crate::content::blob::room(folder, 0).map_err(|error| Failed::Refused(error.to_string()))
}

/// Several times what the largest systems have.
const LIMITS: Limits = Limits { bytes: 64 << 30, members: 4_000_000 };

/// A repository to publish from.
pub(super) struct Source {
    /// The repository.
    pub repository: Repository,
    /// The ref or commit in it that is meant; none: the only ref that there is.
    pub wanted: Option<String>,
    /// It was unpacked, and goes with this.
    _place: Option<TempDir>,
}

impl Source {
    /// Opens what an order names. `folder` is where our repositories are; `wanted` chooses among several images.
    pub fn open(path: &Path, wanted: Option<&str>, folder: &Path) -> Result<Self, ChannelError> {
        if path.is_dir() && !path.join("oci-layout").is_file() {
            let (repository, wanted) = (Repository::at(path)?, wanted.map(str::to_owned));
            folder::look(path)?;
            return Ok(Self { repository, wanted, _place: None });
        }
        if !path.exists() {
            return Err(ChannelError::NoRepository(path.into()));
        }
        let failed = |failed: Failed| ChannelError::from(failed.of(path));
        fs::create_dir_all(folder).map_err(Failed::io("make", folder)).map_err(failed)?;
        let place = tempfile::Builder::new().prefix(PREFIX).tempdir_in(folder);
        let place = place.map_err(Failed::io("make a folder in", folder)).map_err(failed)?;
        let repository = Repository::open(&place.path().join("repo"))?;
        let layout = if path.is_dir() { path.to_path_buf() } else { place.path().join("layout") };
        let is_image = path.is_dir()
            || tarball::unpack(path, repository.path(), &layout, LIMITS).map_err(failed)? == tarball::Holds::Image;
        let mut wanted = wanted.map(str::to_owned);
        if is_image {
            let unpacked = image::unpack(&layout, wanted.as_deref(), repository.path(), LIMITS).map_err(failed)?;
            let commit = unpacked.commit;
            // A commit says the ref that it was made for.
            if let Some(reference) = repository.bound_to(&commit)? {
                repository.point(&reference, &commit)?;
            }
            wanted = wanted.filter(|_| !unpacked.was_named).or(Some(commit));
        }
        Ok(Self { repository, wanted, _place: Some(place) })
    }
}

/// Removes what orders of a service that was killed left.
pub(super) fn tidy(folder: &Path) {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in names {
        let name = entry.file_name();
        let is_ours = [PREFIX, super::repository::VERIFY].iter().any(|p| name.to_string_lossy().starts_with(p));
        if is_ours && let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "what a broken import left is not removed");
        }
    }
}

/// Opens a file that is one.
#[expect(clippy::disallowed_methods, reason = "opens it")]
fn open_file(path: &Path) -> Result<(File, u64), Failed> {
    let meta = fs::metadata(path).map_err(Failed::io("read", path))?;
    if !meta.is_file() {
        return Failed::refused(format!("{} is no file", path.display()));
    }
    Ok((File::open(path).map_err(Failed::io("read", path))?, meta.len()))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write files")]
mod tests;
