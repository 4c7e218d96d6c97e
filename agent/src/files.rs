//! Files of the agent, nearly all of them private, written so that a power cut leaves the old one or the new one.
#![expect(clippy::disallowed_methods, reason = "reads and writes files")]

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system said no.
    #[error("cannot {action} {path}")]
    Io {
        /// `read`, `write`, `remove`, `make`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The content makes no sense.
    #[error("{path} is damaged")]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where it makes no sense.
        #[source]
        source: serde_json::Error,
    },
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

/// Makes a directory for root alone, with its parents.
///
/// # Errors
/// When the system says no.
pub fn make_private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))
}

/// Reads a file. None: it is not there.
///
/// # Errors
/// When it is there and cannot be read.
pub fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Reads a JSON file. None: it is not there.
///
/// # Errors
/// When it is there and cannot be read or makes no sense.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    read(path)?
        .map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|source| FileError::Content { path: path.to_owned(), source })
}

/// Writes a file of mode 0600 in one step: beside it, to the disk, then into its place.
///
/// # Errors
/// When the system says no; the old file is still there then.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    replace(path, content, 0o600)
}

/// Writes a JSON file that everybody may read, in one step.
///
/// # Errors
/// As [`write_private`].
pub fn write_public_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|source| FileError::Content { path: path.to_owned(), source })?;
    replace(path, &text, 0o644)
}

/// Writes a file that everybody may read, in one step.
///
/// # Errors
/// As [`write_private`].
pub fn write_public(path: &Path, content: &[u8]) -> Result<(), FileError> {
    replace(path, content, 0o644)
}

fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(failed("write", path))
}

/// Writes a JSON file of mode 0600 in one step.
///
/// # Errors
/// As [`write_private`].
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|source| FileError::Content { path: path.to_owned(), source })?;
    write_private(path, &text)
}

/// Removes a file, if it is there.
///
/// # Errors
/// When the system says no.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}
