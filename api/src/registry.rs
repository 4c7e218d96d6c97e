//! The registry of container images.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// A repository: versions of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Repository {
    /// Its name, `library/busybox`.
    pub name: String,
    /// How many tags it has.
    pub tags: u64,
    /// How many manifests.
    pub manifests: u64,
    /// Bytes of its blobs. What it shares with other repositories is on the disk once.
    pub size: u64,
    /// How many of its blobs the service has lost, as after a backup was restored. What is pushed again takes its place.
    #[serde(default)]
    pub lost: u64,
    /// When something was pushed to it last.
    #[serde(with = "time::serde::rfc3339")]
    pub pushed_at: OffsetDateTime,
}

/// A tag of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Tag {
    /// Its name, `v1.20.2`.
    pub name: String,
    /// Digest of the manifest that it stands for, `sha256:...`.
    pub digest: String,
    /// What the manifest is.
    pub media_type: String,
    /// Bytes of everything that the manifest is made of.
    pub size: u64,
    /// How many blobs of these the service has lost: it cannot be pulled until it was pushed again.
    #[serde(default)]
    pub lost: u64,
    /// When it came to stand for that.
    #[serde(with = "time::serde::rfc3339")]
    pub changed_at: OffsetDateTime,
}

/// What was deleted of a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deleted {
    /// Tags.
    pub tags: u64,
    /// Manifests.
    pub manifests: u64,
}

/// What collecting garbage removed from the registry, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RegistryGarbage {
    /// Nothing was removed; this is what would be.
    pub dry_run: bool,
    /// Manifests without a tag.
    pub manifests: u64,
    /// Digests of the blobs that are no longer on the disk, `sha256:...`.
    pub blobs: Vec<String>,
    /// Bytes of these.
    pub bytes: u64,
    /// Uploads that broke off, and that nobody has gone on with.
    #[serde(default)]
    pub uploads: u64,
    /// Bytes of these.
    #[serde(default)]
    pub upload_bytes: u64,
}
