//! Snapshots of the etcd of clusters.
//!
//! ```text
//! take: a row, then the run of a control plane ── agent: saved, restored, proven ── PUT ──▶ vault: sealed, on the disk
//!                                                                                             └─▶ the row is `verified`
//! ```
//! A row is `taking` exactly as long as a member of its cluster has that run; whatever is killed in between, a look finds
//! rows whose run is over, and says so. Only what was restored on its node is ever `verified`.

pub mod take;
pub mod turn;
pub mod vault;
