//! Upgrades of whole clusters, node by node, to a release of a channel.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::snapshot::{EtcdSnapshot, SnapshotState};
use crate::update::{MaxUnavailable, NodeStatus, Window};

/// What is to be upgraded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Operating system and Kubernetes.
    #[default]
    Both,
    /// The operating system; Kubernetes stays.
    Os,
    /// Kubernetes; the operating system stays, and holds its programs already.
    Kubernetes,
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UpgradeOrder {
    /// The channel; not given: the one that the cluster's file names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Number of the release; not given: the newest that is no dead end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<u32>,
    /// Which half of it.
    pub part: Part,
    /// Nodes that may be away at the same time, a number or a share such as `10%`; not given: what the cluster's file says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<MaxUnavailable>,
    /// How long the pods of a node may take to leave, in seconds; not given: 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    /// Pods that do not leave in time are deleted; else the node counts as failed, and goes on as it was.
    pub force_drain: bool,
    /// How long a node that is healthy again is watched before the next one begins, in seconds.
    pub soak_seconds: u32,
    /// After so many failed nodes no further one begins; not given: after two, and after one that went back from the release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halt_after: Option<u32>,
    /// When nodes may begin; not given: what the cluster's file says, else at any time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// What kubeadm's checks may find without ending the upgrade, `ImagePull`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignore_preflight_errors: Vec<String>,
    /// Go on though APIs are in use that the new version does not have.
    pub ignore_removed_apis: bool,
    /// Take no snapshot of etcd before: whoever asks for this has one of their own.
    pub skip_snapshot: bool,
    /// Only say what would be done, and what stands in the way.
    pub dry_run: bool,
}

/// An upgrade of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// The cluster.
    pub cluster: String,
    /// Counts from 1 within the cluster.
    pub number: u32,
    /// What was asked for, with everything that was not given filled in.
    pub order: UpgradeOrder,
    /// Version of the release.
    pub version: String,
    /// Its ostree commit; none: the operating system stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Its Kubernetes; none: that stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
    /// The cluster's Kubernetes before.
    pub from_kubernetes: String,
    /// How far it is, in one word.
    pub state: UpgradeState,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// No further node begins.
    pub paused: bool,
    /// It ends as soon as nodes that have begun are done.
    pub aborted: bool,
    /// How often nodes that had failed were tried again.
    pub retry: u32,
    /// It came out of a backup: what became of it since is not known here, and nothing is done for it before somebody resumes it or
    /// calls it off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restored: bool,
    /// The snapshot of etcd that comes before everything else; none: it was begun without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<UpgradeSnapshot>,
    /// Who began it.
    pub by: String,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Its nodes, as the operator in the cluster has told last.
    pub nodes: Vec<NodeStatus>,
}

/// The snapshot of etcd that an upgrade has to have before its cluster is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct UpgradeSnapshot {
    /// When the upgrade began, or was tried again.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// How often it was tried again: what failed in a round before counts no more.
    #[serde(default)]
    pub round: u32,
    /// The newest that was ordered for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<EtcdSnapshot>,
}

impl UpgradeSnapshot {
    /// The next round of tries.
    #[must_use]
    pub fn again(&self, now: OffsetDateTime) -> Self {
        Self { since: now, round: self.round.saturating_add(1), newest: None }
    }

    /// It is there, and was proven.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.newest.as_ref().is_some_and(|snapshot| snapshot.state == SnapshotState::Verified)
    }
}

/// How far an upgrade is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum UpgradeState {
    /// It is kept, and the cluster has not been told: a snapshot of etcd comes first.
    Preparing,
    /// Nodes are at work, or will be.
    Running,
    /// Told to begin no further node.
    Paused,
    /// Too many nodes have failed: it waits for a retry, or to be aborted.
    Halted,
    /// Told to stop; nodes that have begun come to their end.
    Aborting,
    /// Stopped.
    Aborted,
    /// Every node is healthy on the release.
    Complete,
}

impl UpgradeState {
    /// The word that it is written with.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Aborting => "aborting",
            Self::Aborted => "aborted",
            Self::Complete => "complete",
        }
    }

    /// True when nothing more happens.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Aborted | Self::Complete)
    }
}

/// What may be asked of an upgrade that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum UpgradeVerb {
    /// Begin no further node.
    Pause,
    /// Go on.
    Resume,
    /// Stop.
    Abort,
    /// Try again what has failed: nodes, or the snapshot of etcd.
    Retry,
}

/// The body of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpgradeChange {
    /// What to do.
    pub verb: UpgradeVerb,
}

/// An upgrade as it was begun, or as it would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// The upgrade.
    pub upgrade: Upgrade,
    /// Its nodes in their order: control planes one by one, then the others.
    pub order: Vec<String>,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Something that a person should know before an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// It stands in the way.
    pub refused: bool,
    /// What, in a sentence.
    pub message: String,
}

/// Why a node stands where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeExplained {
    /// The machine.
    pub machine: String,
    /// Its cluster, and its name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The ostree commit that it runs, as far as it has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What stands out, one sentence each.
    pub sentences: Vec<String>,
}
