//! Node images as the service keeps them.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Sha256Digest;

/// One build of a node image: kernel, initramfs and root file system of the live system, and the disk image
/// that the installer writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Name of the image: `<profile>-<version>-<architecture>`, unless it was given at import.
    pub name: String,
    /// Profile whose boot arguments fit it: `nestos`, `fedora-coreos`, `lab`.
    pub profile: String,
    /// Version as the build names it.
    pub version: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// Its files.
    pub artifacts: Vec<Artifact>,
    /// When it was published here.
    #[serde(with = "time::serde::rfc3339")]
    pub imported_at: OffsetDateTime,
    /// Where it came from: a folder, an ISO, a stream document.
    pub source: String,
    /// Version of Kubernetes whose kubeadm and kubelet it holds, `v1.31.4`, as far as it was said at import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
    /// Who signed it, when a key was given at import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
}

impl Image {
    /// The artifact of one kind.
    #[must_use]
    pub fn artifact(&self, kind: ArtifactKind) -> Option<&Artifact> {
        self.artifacts.iter().find(|a| a.kind == kind)
    }
}

/// One file of an image. Stored by digest; the digest is of the bytes as served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// What it is.
    pub kind: ArtifactKind,
    /// File name in the source.
    pub file: String,
    /// Digest of its bytes.
    pub sha256: Sha256Digest,
    /// Bytes.
    pub size: u64,
}

/// Kinds of files in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactKind {
    /// Live kernel.
    Kernel,
    /// Live initramfs.
    Initramfs,
    /// Live root file system (squashfs or erofs).
    Rootfs,
    /// Disk image, raw or compressed with gzip, xz or zstd.
    Disk,
}

impl ArtifactKind {
    /// The word used in addresses and file names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Rootfs => "rootfs",
            Self::Disk => "disk",
        }
    }
}

/// Order to import an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ImportOrder {
    /// A folder, an ISO or a stream document on the service's host, or the address of a stream document.
    pub source: String,
    /// Name of the image.
    pub name: Option<String>,
    /// Profile, when the source does not tell it.
    pub profile: Option<String>,
    /// Version, when the source has several.
    pub version: Option<String>,
    /// Architecture, when the source has several.
    pub architecture: Option<String>,
    /// Version of Kubernetes that it holds.
    pub kubernetes: Option<String>,
    /// File of OpenPGP public keys on the service's host; then every file must be signed.
    pub key: Option<String>,
    /// PEM file of certificates on the service's host that the source's server is trusted by, beside those of the host.
    pub source_ca: Option<String>,
    /// Take the place of an image of this name.
    pub replace: bool,
}

/// One line of the answer to an import: progress, then `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ImportUpdate {
    /// A new stage.
    Stage {
        /// `kernel`, `disk`, ...
        name: String,
        /// Its bytes, when known.
        total: Option<u64>,
    },
    /// Bytes done in this stage so far.
    Progress {
        /// Bytes.
        bytes: u64,
    },
    /// Something worth knowing.
    Warning {
        /// What.
        message: String,
    },
    /// The image is published.
    Done {
        /// It.
        image: Image,
    },
    /// Nothing was published.
    Failed {
        /// Why.
        message: String,
    },
}

/// What collecting garbage removed, or would remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CollectedGarbage {
    /// Bytes in parts of downloads that stay, for the next try to go on with.
    #[serde(default)]
    pub kept: u64,
    /// Nothing was removed; this is what would be.
    pub dry_run: bool,
    /// Digests of blobs.
    pub blobs: Vec<Sha256Digest>,
    /// Left-over files.
    pub files: Vec<String>,
    /// Bytes.
    pub bytes: u64,
}
