//! Why the registry did not do it.

use nkd_api::Sha256Digest;

use super::spec::{ManifestError, digest_text};
use crate::content::blob::BlobError;
use crate::content::image::catalog::CatalogError;
use crate::store::StoreError;

/// Why the registry did not do it.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// No such blob in the repository.
    #[error("the repository has no blob {}", digest_text(.0))]
    BlobUnknown(Sha256Digest),
    /// No such manifest in the repository.
    #[error("the repository has no manifest `{0}`: `nkd registry tags` lists its tags")]
    ManifestUnknown(String),
    /// No such repository.
    #[error("there is no repository `{0}`: `nkd registry list` shows those there are")]
    RepositoryUnknown(String),
    /// No such upload.
    #[error("there is no such upload: begin again")]
    UploadUnknown,
    /// A document that is no manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A part of a manifest is not there.
    #[error("the repository does not have {}, which the manifest is made of: push it first", digest_text(.0))]
    Lacks(Sha256Digest),
    /// A part of a manifest has another size.
    #[error("{} has {is} bytes, and not as many as the manifest says", digest_text(digest))]
    Differs {
        /// Which.
        digest: Sha256Digest,
        /// Its bytes.
        is: u64,
    },
    /// Bytes do not have the digest that they were sent with.
    #[error(
        "the bytes that came have the digest {}, and not {}: send them again, as a new upload",
        digest_text(is),
        digest_text(said)
    )]
    DigestDiffers {
        /// What was said.
        said: Sha256Digest,
        /// What they have.
        is: Sha256Digest,
    },
    /// A manifest cannot go while another is made of it.
    #[error("it is a part of {}: delete that first", digest_text(.0))]
    PartOf(Sha256Digest),
    /// A chunk does not follow what is there.
    #[error("this chunk does not follow what is there, {length} bytes: go on from there")]
    OutOfOrder {
        /// Bytes that are there.
        length: u64,
    },
    /// The range of a chunk is none.
    #[error("Content-Range must be FIRST-LAST, as 0-1023")]
    Range,
    /// More or fewer bytes than the range said.
    #[error("{came} bytes came, and {said} were said: send the chunk again")]
    Length {
        /// What came.
        came: u64,
        /// What was said.
        said: u64,
    },
    /// Another request writes.
    #[error("another request is writing to this upload: wait for its end")]
    Busy,
    /// Too many uploads.
    #[error("{0} uploads are under way: try again when one has ended; those that nobody goes on with end after a day")]
    TooMany(usize),
    /// The sender went away.
    #[error("the bytes broke off: ask where the upload stands, and go on from there")]
    BrokeOff,
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image store failed.
    #[error(transparent)]
    Images(#[from] CatalogError),
    /// The service stops.
    #[error("the service is stopping: try again")]
    Stopped,
}
