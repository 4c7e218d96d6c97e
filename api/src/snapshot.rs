//! Snapshots of the etcd of clusters: taken on a control plane, proven there by a restore, and kept by the service.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::Sha256Digest;

/// What the node found when it had restored the snapshot and asked an etcd that ran on it. Also the query of
/// `PUT /agent/v1/etcd-snapshot/OPERATION`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct SnapshotProof {
    /// Bytes of the file, as `etcdctl snapshot save` wrote it.
    pub size: u64,
    /// Their digest.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub sha256: Sha256Digest,
    /// Revision of etcd's key-value store that it holds.
    pub revision: u64,
    /// Keys below `/registry/` in what was restored.
    pub keys: u64,
    /// Version of the etcd that took it and that it was restored with.
    pub etcd_version: String,
    /// When it was taken, by the node's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub taken_at: OffsetDateTime,
    /// What was not held against the running etcd, and why; none: its keys and its digest were, or its agent does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_compared: Option<String>,
}

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// It is ordered, or under way.
    Taking,
    /// It was restored on its node, what came back was right, and the service keeps it.
    Verified,
    /// There is none.
    Failed,
}

impl SnapshotState {
    /// The word that it is written with.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Taking => "taking",
            Self::Verified => "verified",
            Self::Failed => "failed",
        }
    }
}

/// A snapshot of the etcd of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EtcdSnapshot {
    /// Its identity, which is that of the run on the node.
    pub id: Uuid,
    /// The cluster.
    pub cluster: String,
    /// The upgrade that it was taken for; none: somebody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<u32>,
    /// The round of that upgrade's tries which it belongs to; each retry of the upgrade begins another one.
    #[serde(default)]
    pub round: u32,
    /// The control plane that takes it; empty: none could be chosen.
    pub node: String,
    /// Who asked for it.
    pub by: String,
    /// How far it is, in one word.
    pub state: SnapshotState,
    /// The same in a sentence: the step, or why there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// When it was ordered.
    #[serde(with = "time::serde::rfc3339")]
    pub ordered_at: OffsetDateTime,
    /// When its node was heard last about it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub heard_at: Option<OffsetDateTime>,
    /// What was found when it was restored; only of one that is verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<SnapshotProof>,
}
