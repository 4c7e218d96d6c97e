//! What an upgrade and other work on control planes wait for of each other (pure).
//!
//! Both take a control plane's etcd away for a while, and a cluster of three bears one that is away. From the moment that its
//! cluster may be told, the operator there decides alone which node is next: so whatever has begun before ends first, and
//! whatever would begin later waits.

use nkd_api::cluster::{MemberState, Role};
use nkd_api::update::NodeState;
use nkd_api::upgrade::{Upgrade, UpgradeSnapshot};

use crate::cluster::record::Record;
use crate::cluster::{recovery, renewal};

/// True from when the cluster may be told of it until it has ended.
#[must_use]
pub fn is_told(upgrade: &Upgrade) -> bool {
    !upgrade.state.is_end() && upgrade.snapshot.as_ref().is_none_or(UpgradeSnapshot::is_taken)
}

/// The control planes that it has at work, as the operator has told last: their etcd is away, or soon will be.
pub fn at_work<'a>(record: &'a Record, upgrade: Option<&'a Upgrade>) -> impl Iterator<Item = &'a str> {
    let nodes = upgrade.filter(|upgrade| is_told(upgrade)).map(|upgrade| upgrade.nodes.as_slice()).unwrap_or_default();
    let moves = |state| matches!(state, NodeState::Draining | NodeState::Upgrading | NodeState::Rebooting);
    let is_plane = move |name: &str| record.members.iter().any(|m| m.role == Role::ControlPlane && m.hostname == name);
    nodes.iter().filter(move |node| moves(node.state) && is_plane(&node.name)).map(|node| node.name.as_str())
}

/// Why a cluster is not told of its upgrade yet.
#[must_use]
pub fn waits(record: &Record) -> Option<String> {
    record.members.iter().filter(|m| m.role == Role::ControlPlane).find_map(|member| {
        let host = &member.hostname;
        if member.leaving.is_some() || member.state == MemberState::Leaving {
            Some(format!("{host} leaves"))
        } else if member.state == MemberState::Joining {
            Some(format!("{host} joins"))
        } else if renewal::under_way(member) {
            Some(format!("the certificates of {host} are renewed"))
        } else if recovery::under_way(member) {
            Some(format!("etcd is brought back on {host}"))
        } else {
            None
        }
    })
}

#[cfg(test)]
#[path = "beside_tests.rs"]
pub(in crate::cluster) mod tests;
