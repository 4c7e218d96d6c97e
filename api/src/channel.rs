//! Channels of releases, from which nodes are updated.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// A named sequence of releases of one profile and architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Channel {
    /// Its name, `stable`.
    pub name: String,
    /// Profile of its systems: `nestos`, `fedora-coreos`, `lab`. Its repository is at `/ostree/<profile>`.
    pub profile: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// Its releases, the oldest first.
    pub releases: Vec<Release>,
}

impl Channel {
    /// The release of this number.
    #[must_use]
    pub fn release(&self, number: u32) -> Option<&Release> {
        self.releases.iter().find(|release| release.number == number)
    }

    /// The newest release.
    #[must_use]
    pub fn newest(&self) -> Option<&Release> {
        self.releases.last()
    }
}

/// An operating system, and the version of Kubernetes that is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Counts from 1 within its channel.
    pub number: u32,
    /// Version as the build names it.
    pub version: String,
    /// ostree commit, 64 hex digits.
    pub commit: String,
    /// ostree ref that it was published from.
    pub reference: String,
    /// Version of Kubernetes whose kubeadm and kubelet it holds, as far as it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
    /// What people should know of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// When it was published.
    #[serde(with = "time::serde::rfc3339")]
    pub published_at: OffsetDateTime,
    /// Whose signature it bore, when a key was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// A system that is older comes here before it goes to any newer release.
    #[serde(default, skip_serializing_if = "is_false")]
    pub barrier: bool,
    /// Why nothing leads here, or away from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_end: Option<String>,
    /// So many minutes after its publication every node may have it, the first ones at once, the others in between.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rollout_minutes: u32,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// What is to be published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PublishOrder {
    /// Folder of an ostree repository, on the service's host.
    pub ostree: String,
    /// Ref or commit in it. Not given: the only ref that there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Version of Kubernetes that it holds, `v1.31.4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
    /// Version. Not given: the commit says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Profile, for a new channel. Not given: the first part of the ref.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Architecture, for a new channel. Not given: the second part of the ref.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// File of OpenPGP public keys, on the service's host; then the commit must be signed with one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// File of ed25519 public keys, base64, one a line, on the service's host; then the commit must be signed with one of
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ed25519_key: Option<String>,
    /// What people should know of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// A system that is older comes here before it goes to any newer release.
    #[serde(default)]
    pub barrier: bool,
    /// So many minutes until every node may have it.
    #[serde(default)]
    pub rollout_minutes: u32,
}

/// What is known of a release afterwards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MarkOrder {
    /// Older systems have to come here first, or not. Not given: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub barrier: Option<bool>,
    /// Why nothing is to lead here, or away from here; an empty text takes it back. Not given: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_end: Option<String>,
    /// So many minutes from its publication until every node may have it; 0: at once. Not given: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout_minutes: Option<u32>,
}

/// What an update of a machine from a channel would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// Name of the machine.
    pub machine: String,
    /// Name of the channel.
    pub channel: String,
    /// Commit that the machine says it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The release of that commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<u32>,
    /// In a sentence.
    pub summary: String,
    /// Every newer release.
    pub newer: Vec<ExplainedRelease>,
}

/// A release that a machine does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRelease {
    /// Number.
    pub release: u32,
    /// Version.
    pub version: String,
    /// Why the machine is not led there. None: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
}

/// A line of what publishing says while it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum PublishUpdate {
    /// What it does now.
    Step {
        /// In a few words.
        name: String,
    },
    /// Published, or it was already.
    Done {
        /// The release.
        release: Release,
    },
    /// Nothing was published.
    Failed {
        /// Why, and what to do.
        message: String,
    },
}
