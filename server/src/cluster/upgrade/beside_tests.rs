//! When an upgrade counts as told, whom it has at work, and what it lets end before.

use nkd_api::agent::KubeadmAction;
use serde_json::json;
use time::macros::datetime;
use uuid::Uuid;

use super::*;
use crate::cluster::plan::tests::cluster;
use crate::cluster::record::{Leaving, Run, Then};
use crate::cluster::renewal::Turn;

const NOW: time::OffsetDateTime = datetime!(2026-11-28 12:00 UTC);

/// Upgrade 3, begun without a snapshot, with these nodes.
pub(in crate::cluster) fn upgrade(state: &str, nodes: &[(&str, NodeState)]) -> Upgrade {
    let node = |(name, state): &(&str, NodeState)| json!({"name": name, "state": state, "reason": "", "attempt": 1, "since": "2026-01-01T00:00:00Z"});
    let nodes: Vec<_> = nodes.iter().map(node).collect();
    let upgrade = json!({"cluster": "rack7", "number": 3, "order": {}, "version": "2", "fromKubernetes": "v1.20.2",
        "state": state, "paused": false, "aborted": false, "retry": 0, "by": "ada",
        "startedAt": "2026-01-01T00:00:00Z", "nodes": nodes});
    serde_json::from_value(upgrade).unwrap()
}

fn record() -> Record {
    let mut record = Record::new(Uuid::from_u128(1), cluster(3, 1), NOW);
    for (number, member) in (10..).zip(record.members.iter_mut()) {
        (member.state, member.machine) = (MemberState::Ready, Some(Uuid::from_u128(number)));
    }
    record
}

#[test]
fn an_upgrade_counts_from_its_snapshot_to_its_end() {
    for (state, told) in [("preparing", true), ("running", true), ("paused", true), ("halted", true)] {
        assert_eq!(is_told(&upgrade(state, &[])), told, "{state}");
    }
    assert!(is_told(&upgrade("aborting", &[])));
    assert!(!is_told(&upgrade("aborted", &[])) && !is_told(&upgrade("complete", &[])));
    let mut waits = upgrade("preparing", &[]);
    let mut row = json!({"id": Uuid::nil(), "cluster": "rack7", "node": "cp1", "by": "ada", "state": "taking",
        "orderedAt": "2026-01-01T00:00:00Z"});
    for (state, told) in [("taking", false), ("failed", false), ("verified", true)] {
        row["state"] = state.into();
        waits.snapshot = serde_json::from_value(json!({"since": "2026-01-01T00:00:00Z", "newest": row})).unwrap();
        assert_eq!(is_told(&waits), told, "{state}");
    }
}

#[test]
fn control_planes_between_cordon_and_health_are_at_work() {
    let record = record();
    for (state, works) in [
        (NodeState::Waiting, false),
        (NodeState::Staging, false),
        (NodeState::Staged, false),
        (NodeState::Blocked, false),
        (NodeState::Draining, true),
        (NodeState::Upgrading, true),
        (NodeState::Rebooting, true),
        (NodeState::Soaking, false),
        (NodeState::Done, false),
        (NodeState::Failed, false),
    ] {
        let goes_on = upgrade("running", &[("w1", state), ("cp2", state)]);
        let names: Vec<&str> = at_work(&record, Some(&goes_on)).collect();
        assert_eq!(names, if works { vec!["cp2"] } else { Vec::new() }, "{state:?}");
    }
    let over = upgrade("complete", &[("cp2", NodeState::Rebooting)]);
    assert_eq!(at_work(&record, Some(&over)).count() + at_work(&record, None).count(), 0);
}

#[test]
fn what_restarts_a_control_plane_ends_before_the_cluster_is_told() {
    let told = |change: fn(&mut Record)| {
        let mut record = record();
        change(&mut record);
        waits(&record).unwrap_or_default()
    };
    let run = |action| Some(Run { operation: Uuid::nil(), action, ordered_at: NOW, ended_at: None });
    assert_eq!(told(|_| {}), "");
    let renewed = |r: &mut Record| drop(renewal::take(r, &Turn::Order { member: 1 }, Uuid::nil(), NOW));
    assert_eq!(told(renewed), "the certificates of cp2 are renewed");
    assert_eq!(told(|r| r.members[1].state = MemberState::Joining), "cp2 joins");
    assert_eq!(told(|r| r.members[2].leaving = Some(Leaving::new(NOW, false, Then::Gone))), "cp3 leaves");
    // Workers and a snapshot restart nobody's etcd.
    assert_eq!(told(|r| r.members[3].state = MemberState::Joining), "");
    let mut saved = record();
    saved.members[0].run = run(KubeadmAction::Snapshot);
    assert_eq!(waits(&saved), None);
    saved.members[0].run = run(KubeadmAction::Recover);
    assert_eq!(waits(&saved).as_deref(), Some("etcd is brought back on cp1"));
}
