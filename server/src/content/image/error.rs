//! Why an import failed.

use std::io;
use std::path::PathBuf;

use nkd_api::image::ArtifactKind;
use nkd_api::{Problem, Sha256Digest};

use super::catalog::CatalogError;
use super::source::download::DownloadError;
use super::source::iso9660::IsoFormatError;
use super::source::signature::SignatureError;
use crate::content::blob::BlobError;

/// Why an image was not imported. Nothing of it is in the list of images then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The blobs could not be stored.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The image could not be published.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A file could not be fetched.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// A signature does not hold.
    #[error("the signature of {file} was not accepted")]
    Signature {
        /// Whose signature.
        file: String,
        /// Why.
        #[source]
        source: SignatureError,
    },
    /// The key cannot be used.
    #[error("the key file cannot be used")]
    Key(#[source] SignatureError),
    /// A key was given, and a file has no signature.
    #[error("{file} has no signature; put {file}.sig beside it, or import without requiring signatures")]
    Unsigned {
        /// The file.
        file: String,
    },
    /// The source cannot be read.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A file of the source is something that nkd does not follow or read.
    #[error("{} is refused: {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// A file is larger than any of its kind.
    #[error("{file} has {size} bytes; a {} of more than {limit} bytes is refused", kind.as_str())]
    TooLarge {
        /// The file.
        file: String,
        /// What it was to be.
        kind: ArtifactKind,
        /// Its bytes, as far as known.
        size: u64,
        /// The most that is taken.
        limit: u64,
    },
    /// An artifact of no bytes.
    #[error("{file} is empty")]
    Empty {
        /// The file.
        file: String,
    },
    /// Nothing to import.
    #[error(
        "{} has no {wanted}; a folder needs stream.json or the files <system>-<version>-live-kernel-<arch>, \
         -live-initramfs.<arch>.img, -live-rootfs.<arch>.img and -metal.<arch>.raw[.gz|.xz|.zst]", path.display()
    )]
    NoBuild {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        wanted: String,
    },
    /// More than one build to choose from.
    #[error("{} holds several builds: {}; choose one with --version and --architecture", path.display(), builds.join(", "))]
    SeveralBuilds {
        /// The folder.
        path: PathBuf,
        /// Their names.
        builds: Vec<String>,
    },
    /// Parts of the build are not there. Parts of other builds do not replace them.
    #[error("build {build} lacks its {}{}", kinds(missing), others(elsewhere))]
    Incomplete {
        /// The build.
        build: String,
        /// What it lacks.
        missing: Vec<ArtifactKind>,
        /// Other builds in the same place.
        elsewhere: Vec<String>,
    },
    /// The stream document cannot be used.
    #[error("{origin} cannot be used: {}", problems.iter().map(|p| format!("{}: {}", p.path, p.message)).collect::<Vec<_>>().join("; "))]
    Document {
        /// The document.
        origin: String,
        /// Every problem.
        problems: Vec<Problem>,
    },
    /// The ISO cannot be used.
    #[error("{} cannot be read as an ISO image", path.display())]
    IsoFormat {
        /// The ISO.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: IsoFormatError,
    },
    /// A file is not in the ISO.
    #[error("{} has no {wanted}: it is not a live ISO of NestOS or Fedora CoreOS", path.display())]
    IsoLacks {
        /// The ISO.
        path: PathBuf,
        /// Path in the ISO.
        wanted: String,
    },
    /// The source does not tell what it is.
    #[error("the {what} of the build cannot be told from {origin}: give it with --{what}")]
    Unknown {
        /// `profile`, `version` or `architecture`.
        what: &'static str,
        /// The source.
        origin: String,
    },
    /// What was asked for is not what the source holds.
    #[error("{origin} holds {found}, not the {what} `{wanted}` that was asked for")]
    Mismatch {
        /// `version` or `architecture`.
        what: &'static str,
        /// What was asked for.
        wanted: String,
        /// What is there.
        found: String,
        /// The source.
        origin: String,
    },
    /// A value of the request cannot be used.
    #[error("{what} `{value}` cannot be used: {reason}")]
    Request {
        /// Which.
        what: &'static str,
        /// Its value.
        value: String,
        /// Why.
        reason: &'static str,
    },
    /// The bytes are not those that the source states.
    #[error("{file} has the SHA-256 digest {actual}, and its source states {expected}; fetch it again")]
    Digest {
        /// The file.
        file: String,
        /// As stated.
        expected: Sha256Digest,
        /// As it is.
        actual: Sha256Digest,
    },
    /// The disk image does not unpack to what the source states.
    #[error("{file} cannot be unpacked to what its source states: {reason}")]
    Unpack {
        /// The file.
        file: String,
        /// What went wrong.
        reason: String,
    },
    /// A worker thread was stopped.
    #[error("the import was stopped while the service shuts down")]
    Stopped,
}

fn kinds(kinds: &[ArtifactKind]) -> String {
    kinds.iter().map(|k| k.as_str()).collect::<Vec<_>>().join(", ")
}

fn others(builds: &[String]) -> String {
    if builds.is_empty() {
        return String::new();
    }
    format!("; parts of {} cannot stand in for it", builds.join(", "))
}

/// Makes an error of a failed call on a file of the source.
pub(super) fn io_error(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> ImportError {
    let path = path.to_path_buf();
    move |source| ImportError::Io { action, path, source }
}
