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

/// A channel, and which of its releases nobody can fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ShownChannel {
    /// The channel.
    #[serde(flatten)]
    pub channel: Channel,
    /// Numbers of releases whose commit is not in the repository, as after a backup was restored, which holds none. Nothing
    /// leads to them until they are published again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<u32>,
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
    /// The release of another channel that it was promoted from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_from: Option<Promoted>,
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

/// Where a release comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Promoted {
    /// Name of the channel.
    pub channel: String,
    /// Number of the release there.
    pub release: u32,
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
    /// On the service's host: folder of an ostree repository, a tar of one, or an OCI archive or layout that holds a commit.
    pub ostree: String,
    /// Ref or commit in it; the name of an image, where there are several. Not given: the only one that there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Version of Kubernetes that it holds, `v1.31.4`. Not given: the commit says it (`nkd.kubernetes`), or it is not known.
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
    /// It is meant that it is older than the newest release, or holds an older Kubernetes.
    #[serde(default)]
    pub allow_downgrade: bool,
}

/// What is to become a release of another channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PromoteOrder {
    /// Number of the release. Not given: the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<u32>,
    /// The other channel; it is made when it is not there.
    pub to: String,
    /// A system that is older comes here before it goes to any newer release of that channel.
    #[serde(default)]
    pub barrier: bool,
    /// So many minutes until every node may have it.
    #[serde(default)]
    pub rollout_minutes: u32,
    /// It is meant that it is older than the newest release there, or holds an older Kubernetes.
    #[serde(default)]
    pub allow_downgrade: bool,
}

/// How many releases a channel is to keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PruneOrder {
    /// So many of the newest releases that are no dead end stay, and what is newer than the oldest of them.
    pub keep: u32,
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// What has left a channel, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// Nothing was changed.
    pub dry_run: bool,
    /// The releases, as they were.
    pub retired: Vec<Release>,
    /// Old releases that stay all the same.
    pub kept: Vec<KeptRelease>,
}

/// An old release that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct KeptRelease {
    /// Number.
    pub release: u32,
    /// Version.
    pub version: String,
    /// Who needs it.
    pub reason: String,
}

/// A channel that is no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct DeletedChannel {
    /// The channel, as it was.
    pub channel: Channel,
    /// When a system asked last for its graph from one of its releases, to the hour, if one did within seven days: such
    /// systems find none any more.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub last_asked_at: Option<OffsetDateTime>,
}

/// What a channel is to follow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MirrorOrder {
    /// Address of the upstream's ostree repository: https, http or file.
    pub from: String,
    /// Ref of the upstream.
    pub reference: String,
    /// File of armored OpenPGP public keys, on the service's host; every commit must be signed with one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// File of ed25519 public keys, base64, one a line, on the service's host; every commit must be signed with one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ed25519_key: Option<String>,
    /// Commits are taken whoever made them. Either this or a key is to be given.
    #[serde(default)]
    pub unsigned: bool,
    /// File of certificates in PEM form, on the service's host, from which the upstream's has to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Profile, for a new channel. Not given: the first part of the ref.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Architecture, for a new channel. Not given: the second part of the ref.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Version of Kubernetes of the releases that come. Not given: each commit says it (`nkd.kubernetes`), or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
    /// Minutes from one look to the next. Not given: six hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_minutes: Option<u32>,
}

/// What a channel follows, and how that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Name of the channel.
    pub channel: String,
    /// Its profile.
    pub profile: String,
    /// Its architecture.
    pub architecture: String,
    /// Address of the upstream's repository.
    pub from: String,
    /// Ref of the upstream.
    pub reference: String,
    /// File that the OpenPGP keys were read from when it was ordered. No file of keys at all: commits are taken whoever made them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// File that the ed25519 keys were read from then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ed25519_key: Option<String>,
    /// File that the certificates were read from then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Version of Kubernetes of the releases that come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
    /// Minutes from one look to the next.
    pub every_minutes: u32,
    /// When the next look is due.
    #[serde(with = "time::serde::rfc3339")]
    pub next_look_at: OffsetDateTime,
    /// When the last look ended.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub looked_at: Option<OffsetDateTime>,
    /// When the last one ended well.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub succeeded_at: Option<OffsetDateTime>,
    /// Looks without success since then.
    #[serde(default)]
    pub failures: u32,
    /// Why the last one had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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

/// What a system says that it runs, and its channel does not have: it is led nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct UnknownRelease {
    /// The commit or image, as the system has it.
    pub payload: String,
    /// How often it was asked from since the service started.
    pub times: u64,
    /// When that was for the first time.
    #[serde(with = "time::serde::rfc3339")]
    pub first_at: OffsetDateTime,
    /// When that was last.
    #[serde(with = "time::serde::rfc3339")]
    pub last_at: OffsetDateTime,
    /// How the system called itself last (`node_uuid` of the update graph).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
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
        release: Box<Release>,
    },
    /// Nothing was published.
    Failed {
        /// Why, and what to do.
        message: String,
    },
}
