//! Upgrades of clusters: what is asked for, what is found before, and how far it is.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::update::{MaxUnavailable, NodeState};

/// What is upgraded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Operating system and Kubernetes.
    #[default]
    All,
    /// The operating system alone.
    Os,
    /// Kubernetes alone: kubeadm and kubelet of that version are on the nodes already.
    Kubernetes,
}

/// An upgrade is to begin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UpgradeOrder {
    /// Channel. Not given: the one of the cluster's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Number of the release. Not given: the newest one that is not a dead end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<u32>,
    /// What is upgraded.
    pub part: Part,
    /// How many nodes may be away at once: `2` or `10%`. Not given: as the cluster's file has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub max_unavailable: Option<MaxUnavailable>,
    /// How long a node that is healthy again is watched before it takes pods and the next one begins.
    pub soak_seconds: u32,
    /// How long the pods of a node may take to leave it. Not given: ten minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    /// Pods that no eviction moves in that time are deleted.
    pub force_drain: bool,
    /// Only the checks and the plan: nothing begins.
    pub dry_run: bool,
}

/// What was found before an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Nothing begins because of this.
    pub refused: bool,
    /// What, and what to do.
    pub message: String,
}

/// The plan of an upgrade, and what it became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// What was found.
    pub findings: Vec<Finding>,
    /// The nodes in their order, as far as it is fixed before.
    pub order: Vec<String>,
    /// The upgrade; with `dryRun` as it would be.
    pub upgrade: Upgrade,
}

/// Where an upgrade stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UpgradeState {
    /// The operator in the cluster has not been told yet.
    Preparing,
    /// Nodes are at work, or wait for their turn.
    Running,
    /// Told to begin no further node.
    Paused,
    /// Nodes have failed, and no further one begins.
    Halted,
    /// Told to stop; nodes come to their end.
    Aborting,
    /// The end: stopped.
    Aborted,
    /// The end: every node is healthy on the release.
    Complete,
}

impl UpgradeState {
    /// It is over.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Aborted | Self::Complete)
    }

    /// The word for it.
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
}

/// A node of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct UpgradedNode {
    /// Its name.
    pub name: String,
    /// How far it is.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: NodeState,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Why it does not go on, or how it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Which try it is, from 1.
    pub attempt: u32,
}

/// An upgrade of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// The cluster.
    pub cluster: String,
    /// Counts from 1 within its cluster.
    pub number: u32,
    /// What was asked for, with every default in its place.
    pub order: UpgradeOrder,
    /// Version of the release.
    pub version: String,
    /// ostree commit; none: the operating system stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Version of Kubernetes; none: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
    /// Version of Kubernetes before.
    pub from_kubernetes: String,
    /// Where it stands.
    pub state: UpgradeState,
    /// Why it does not go on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// No further node is to begin.
    #[serde(default)]
    pub paused: bool,
    /// It is to stop.
    #[serde(default)]
    pub aborted: bool,
    /// How often the nodes that failed are to be tried again.
    #[serde(default)]
    pub retry: u32,
    /// Who asked for it.
    pub by: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When it was over.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<OffsetDateTime>,
    /// Its nodes, as the operator in the cluster said last.
    #[serde(default)]
    pub nodes: Vec<UpgradedNode>,
}

/// What is to become of an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UpgradeVerb {
    /// No further node begins.
    Pause,
    /// Nodes may begin again.
    Resume,
    /// No further node begins, what was only drained is given back, what upgrades comes to its end.
    Abort,
    /// Nodes that failed are tried again.
    Retry,
}

/// Why a node of an upgrade is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeExplained {
    /// The node.
    pub node: String,
    /// Its upgrade; none: there never was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<u32>,
    /// Where it stands in that, and why.
    pub standing: String,
    /// To which releases of the cluster's channel it could be led, and why not to the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<crate::channel::Explained>,
}
