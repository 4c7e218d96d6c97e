//! Where images come from: a folder, an ISO, a stream document. Each is resolved to a [`Plan`], which tells what is to
//! be stored and how it is checked; the import then carries the plan out.

pub mod download;
pub mod folder;
pub mod iso;
pub mod iso9660;
pub mod name;
pub mod signature;
pub mod stream;
mod transfer;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use nkd_api::Sha256Digest;
use nkd_api::image::ArtifactKind;
use url::Url;

pub use folder::{resolve_folder, resolve_stream_file};
use iso9660::Extent;
use name::{Build, Packing};
use stream::{Base, Location, StreamBuild};

use super::error::ImportError;

/// Where an image is imported from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder with `stream.json`, or with files named after the build.
    Folder(PathBuf),
    /// A live ISO.
    Iso(PathBuf),
    /// A stream document on this host.
    StreamFile(PathBuf),
    /// A stream document behind an http or https address.
    StreamUrl(Url),
}

impl Source {
    /// Takes what an operator writes: an address, or a path; `is_dir` tells whether the path is a folder.
    ///
    /// # Errors
    /// [`ImportError::Request`] for an address that is neither http nor https.
    pub fn parse(text: &str, is_dir: bool) -> Result<Self, ImportError> {
        let refused = |reason| ImportError::Request { what: "source", value: text.chars().take(200).collect(), reason };
        if text.contains("://") {
            let url = Url::parse(text).map_err(|_| refused("it is not an address"))?;
            return match url.scheme() {
                "http" | "https" => Ok(Self::StreamUrl(url)),
                _ => Err(refused("use http, https or a path")),
            };
        }
        let path = PathBuf::from(text);
        Ok(match path.extension().and_then(|e| e.to_str()) {
            _ if is_dir => Self::Folder(path),
            Some("iso") => Self::Iso(path),
            Some("json") => Self::StreamFile(path),
            _ => return Err(refused("give a folder, a file ending in .iso or .json, or an http(s) address")),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "folder {}", path.display()),
            Self::Iso(path) => write!(f, "ISO {}", path.display()),
            Self::StreamFile(path) => write!(f, "stream {}", path.display()),
            Self::StreamUrl(url) => write!(f, "stream {}", public_url(url)),
        }
    }
}

/// An address without user, password and query, which may be secrets.
#[must_use]
pub fn public_url(url: &Url) -> String {
    let mut url = url.clone();
    // Neither can fail for an http address.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// What the operator asked for, to choose among builds or to name what the source does not.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Profile; overrides that of the file names.
    pub profile: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Architecture.
    pub architecture: Option<String>,
}

/// What is to be imported.
#[derive(Debug)]
pub struct Plan {
    /// Which build.
    pub build: Build,
    /// Its files.
    pub items: Vec<Item>,
    /// The one file that all items are taken out of. Its digest and signature stand for theirs.
    pub container: Option<Payload>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// One artifact to import.
#[derive(Debug)]
pub struct Item {
    /// What it is.
    pub kind: ArtifactKind,
    /// Its bytes and what they are checked by.
    pub payload: Payload,
    /// Packing and digest of the unpacked disk image, when the source states one.
    pub unpacked: Option<(Packing, Sha256Digest)>,
}

/// Bytes and what they are checked by.
#[derive(Debug)]
pub struct Payload {
    /// File name in the source.
    pub file: String,
    /// Where the bytes are.
    pub bytes: Bytes,
    /// Their digest, when the source states one.
    pub sha256: Option<Sha256Digest>,
    /// Their detached signature.
    pub signature: Option<Signature>,
}

/// Where bytes come from.
#[derive(Debug)]
pub enum Bytes {
    /// An open file of this host; only some runs of it for a file inside an ISO.
    File {
        /// The file.
        file: File,
        /// Its path, for messages.
        path: PathBuf,
        /// Runs of bytes, in order.
        extents: Vec<Extent>,
    },
    /// An address. Its digest is known.
    Url {
        /// Where.
        url: Url,
        /// What it must be.
        sha256: Sha256Digest,
    },
}

impl Bytes {
    /// Length in bytes, when it is known before reading.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::File { extents, .. } => Some(extents.iter().fold(0, |sum: u64, e| sum.saturating_add(e.len))),
            Self::Url { .. } => None,
        }
    }
}

/// Where a detached signature is.
#[derive(Debug, Clone)]
pub enum Signature {
    /// Read already.
    Bytes(Vec<u8>),
    /// Behind an address.
    Url(Url),
}

/// Makes a plan of a stream document's build. `open` opens a file beside the document: its bytes, and the signature
/// found beside it.
///
/// # Errors
/// [`ImportError`] when the choice does not fit or a file cannot be opened.
pub fn plan_stream(
    build: StreamBuild,
    choice: &Choice,
    origin: &str,
    mut open: impl FnMut(&str) -> Result<(Bytes, Option<Vec<u8>>), ImportError>,
) -> Result<Plan, ImportError> {
    if let Some(wanted) = choice.version.as_ref().filter(|v| !name::same_version(v, &build.version)) {
        return Err(ImportError::Mismatch {
            what: "version",
            wanted: wanted.clone(),
            found: build.version,
            origin: origin.to_owned(),
        });
    }
    let profile = choice.profile.clone().or(build.profile);
    let profile = profile.ok_or_else(|| ImportError::Unknown { what: "profile", origin: origin.to_owned() })?;
    let mut items = Vec::new();
    for artifact in build.artifacts {
        let file = artifact.location.file_name().to_owned();
        let (bytes, beside) = match (artifact.location, artifact.sha256) {
            (Location::Relative(path), _) => open(&path)?,
            (Location::Url(url), Some(sha256)) => (Bytes::Url { url, sha256 }, None),
            (Location::Url(_), None) => return Err(ImportError::Unknown { what: "sha256", origin: file }),
        };
        let signature = match artifact.signature {
            Some(Location::Url(url)) => Some(Signature::Url(url)),
            Some(Location::Relative(path)) => Some(Signature::Bytes(folder::read_small(open(&path)?.0)?)),
            None => beside.map(Signature::Bytes),
        };
        items.push(Item {
            kind: artifact.kind,
            payload: Payload { file, bytes, sha256: artifact.sha256, signature },
            unpacked: artifact.packing.zip(artifact.uncompressed_sha256),
        });
    }
    let build = Build { profile, version: build.version, architecture: build.architecture };
    let warnings = no_disk(&items, origin);
    Ok(Plan { build, items, container: None, warnings })
}

fn no_disk(items: &[Item], origin: &str) -> Vec<String> {
    if items.iter().any(|i| i.kind == ArtifactKind::Disk) {
        return Vec::new();
    }
    vec![format!("{origin} has no disk image: machines can live-boot from this image, but not install it")]
}

/// Reads a stream document's text.
///
/// # Errors
/// [`ImportError::Document`] with every problem.
pub fn read_stream(text: &str, base: Base<'_>, choice: &Choice, origin: &str) -> Result<StreamBuild, ImportError> {
    stream::read(text, base, choice.architecture.as_deref())
        .map_err(|problems| ImportError::Document { origin: origin.to_owned(), problems })
}

/// The file name of a path, for messages and records.
fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
