//! What the service makes of an upgrade beyond the operator's word (pure).

use nkd_api::cluster::MemberState;
use nkd_api::update::{NodeState, NodeStatus};
use nkd_api::upgrade::{Upgrade, UpgradeState};
use time::OffsetDateTime;

use crate::cluster::health::{self, OperatorSeen};
use crate::cluster::record::{Record, is_in};

/// So many looks in a row may find that somebody else has written the Update.
const PATIENCE: u32 = 4;

/// Members of a cluster that are to stay, and that the operator does not call done.
#[must_use]
pub fn left_out<'a>(record: &'a Record, nodes: &[NodeStatus]) -> Vec<&'a str> {
    let stays = |state| is_in(state) && state != MemberState::Leaving;
    let members = record.members.iter().filter(|m| stays(m.state) && m.leaving.is_none());
    let done = |name: &str| nodes.iter().any(|node| node.name == name && node.state == NodeState::Done);
    members.map(|member| member.hostname.as_str()).filter(|name| !done(name)).collect()
}

/// The operator has called it complete without some of the cluster's members. A retry has it look at its nodes again.
#[must_use]
pub fn lacks_members(record: &Record, upgrade: &Upgrade) -> bool {
    let all_done = upgrade.nodes.iter().all(|node| node.state == NodeState::Done);
    upgrade.state == UpgradeState::Halted
        && !upgrade.nodes.is_empty()
        && all_done
        && !left_out(record, &upgrade.nodes).is_empty()
}

/// The operator speaks of the nodes that are there. It is complete when every member of the cluster is among them.
#[must_use]
pub fn of_all_members(record: &Record, followed: Upgrade) -> Upgrade {
    let missing = left_out(record, &followed.nodes);
    if followed.state != UpgradeState::Complete || missing.is_empty() {
        return followed;
    }
    let (cluster, names, first) = (record.name(), missing.join(", "), missing[0]);
    let detail = format!(
        "the other nodes are done, and {names} was not there for that: `systemctl restart kubelet` on it puts its Node back into \
         the cluster, then `nkd upgrade retry {cluster}`; or `nkd cluster remove {cluster} {first}` (with --lost, if its machine is gone)"
    );
    Upgrade { state: UpgradeState::Halted, detail, ..followed }
}

/// Without its operator nothing goes on, and nobody else would say so. As long as it is prepared, the checks do.
#[must_use]
pub fn of_the_operator(followed: Upgrade, seen: Option<OperatorSeen>, now: OffsetDateTime) -> Upgrade {
    let why = match seen {
        Some(seen) => health::operator(seen, now),
        None => Some(
            "the housekeeper is not in the cluster any more, and nothing is upgraded: apply the cluster's file with \
             `housekeeper: {enabled: false}` and then as it was"
                .to_owned(),
        ),
    };
    let asks = followed.state != UpgradeState::Preparing && !followed.state.is_end();
    // It may have been said already, of what has not changed since.
    let Some(why) = why.filter(|why| asks && !followed.detail.starts_with(why)) else { return followed };
    let detail = if followed.detail.is_empty() { why } else { format!("{why}; {}", followed.detail) };
    Upgrade { detail, ..followed }
}

/// It was called off while it was prepared.
#[must_use]
pub fn never_told(upgrade: &Upgrade) -> Upgrade {
    let detail = "it was called off before its cluster was told: nothing has changed".to_owned();
    Upgrade { state: UpgradeState::Aborted, detail, ..upgrade.clone() }
}

/// What is said while its cluster cannot be asked: one that was called off may be known there already, and ends with an answer.
#[must_use]
pub fn of_one_called_off(upgrade: &Upgrade, unseen: String) -> String {
    match upgrade.aborted && upgrade.state == UpgradeState::Preparing {
        true => {
            format!("it is called off, and ends as soon as {} says whether it knows of it; {unseen}", upgrade.cluster)
        }
        false => unseen,
    }
}

/// It is prepared, and something has come in its way since it was asked for.
#[must_use]
pub fn not_yet(upgrade: &Upgrade, reasons: &[String]) -> Upgrade {
    let (cluster, reasons) = (&upgrade.cluster, reasons.join("; "));
    let detail = format!(
        "its cluster is not told yet: {reasons}; this is looked at every minute, and `nkd upgrade abort {cluster}` leaves it at that"
    );
    Upgrade { state: UpgradeState::Preparing, detail, ..upgrade.clone() }
}

/// What is said when the Update was written, and not for the first time in a row.
#[must_use]
pub fn of_another_writer(name: &str, unlike: &str, times: u32) -> String {
    if times <= PATIENCE {
        return String::new();
    }
    format!(
        "somebody else changes the update {name} as often as it is put right ({unlike}): what was asked for does not come to the nodes; \
         `kubectl get nkdupdate {name} -o yaml --show-managed-fields` says who it is"
    )
}

#[cfg(test)]
mod tests {
    use nkd_api::upgrade::UpgradeOrder;
    use uuid::Uuid;

    use super::*;
    use crate::cluster::plan::tests::cluster;
    use crate::cluster::record::{Leaving, Then};

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn record() -> Record {
        let mut record = Record::new(Uuid::nil(), cluster(1, 2), NOW);
        record.members.iter_mut().for_each(|member| member.state = MemberState::Ready);
        record
    }

    fn node(name: &str, state: NodeState) -> NodeStatus {
        NodeStatus { name: name.into(), state, since: NOW, reason: String::new(), attempt: 1 }
    }

    fn upgrade(state: UpgradeState, nodes: &[(&str, NodeState)]) -> Upgrade {
        Upgrade {
            cluster: "rack7".into(),
            number: 3,
            order: UpgradeOrder::default(),
            version: "2.0".into(),
            commit: None,
            kubernetes: Some("v1.21.0".into()),
            from_kubernetes: "v1.20.2".into(),
            state,
            detail: "as told".into(),
            paused: false,
            aborted: false,
            retry: 0,
            restored: false,
            snapshot: None,
            by: "ada".into(),
            started_at: NOW,
            ended_at: None,
            nodes: nodes.iter().map(|(name, state)| node(name, *state)).collect(),
        }
    }

    #[test]
    fn one_that_was_called_off_before_its_cluster_was_told_waits_for_an_answer_and_says_so() {
        let said = |state, aborted| {
            let upgrade = Upgrade { aborted, ..upgrade(state, &[]) };
            of_one_called_off(&upgrade, "no answer".into())
        };
        assert!(said(UpgradeState::Preparing, true).starts_with("it is called off, and ends as soon as"));
        assert!(said(UpgradeState::Preparing, true).ends_with("; no answer"));
        for (state, aborted) in [(UpgradeState::Preparing, false), (UpgradeState::Aborting, true)] {
            assert_eq!(said(state, aborted), "no answer");
        }
    }

    #[test]
    fn it_is_complete_when_every_member_that_stays_is_done() {
        use NodeState::{Done, Failed};
        let mut record = record();
        let complete = |nodes: &[(&str, NodeState)]| upgrade(UpgradeState::Complete, nodes);
        let all = complete(&[("cp1", Done), ("w1", Done), ("w2", Done)]);
        assert_eq!(of_all_members(&record, all.clone()), all);
        // Of a node that is no member of the cluster nothing is asked.
        let without = complete(&[("cp1", Done), ("w1", Done), ("guest", Done)]);
        let told = of_all_members(&record, without.clone());
        assert_eq!(told.state, UpgradeState::Halted);
        let name = record.name();
        for words in ["w2 was not there", "`systemctl restart kubelet`", &format!("`nkd upgrade retry {name}`")] {
            assert!(told.detail.contains(words), "{words}: {}", told.detail);
        }
        assert!(told.detail.contains(&format!("`nkd cluster remove {name} w2`")), "{}", told.detail);
        assert!(lacks_members(&record, &told) && !lacks_members(&record, &without));
        // What has failed is tried again for itself, and what the operator does not understand is no lack of members.
        for nodes in [&[("cp1", Done), ("w1", Failed)][..], &[]] {
            assert!(!lacks_members(&record, &upgrade(UpgradeState::Halted, nodes)), "{nodes:?}");
        }
        // It leaves, or is not in yet: nothing is asked of it.
        for leave in [true, false] {
            let mut record = record.clone();
            let member = record.members.iter_mut().find(|member| member.hostname == "w2").unwrap();
            match leave {
                true => member.leaving = Some(Leaving::new(NOW, true, Then::Gone)),
                false => member.state = MemberState::Joining,
            }
            assert_eq!(of_all_members(&record, without.clone()), without);
        }
        record.members.retain(|member| member.hostname != "w2");
        assert_eq!(of_all_members(&record, without.clone()), without);
    }

    #[test]
    fn an_operator_that_is_away_is_told_until_the_end() {
        let gone = OperatorSeen { available: false, since: Some(NOW) };
        let later = NOW + time::Duration::hours(1);
        let told = |state, seen| of_the_operator(upgrade(state, &[]), seen, later).detail;
        for state in [UpgradeState::Running, UpgradeState::Aborting, UpgradeState::Halted] {
            let said = told(state, Some(gone));
            assert!(said.contains("housekeeper does not run") && said.ends_with("; as told"), "{said}");
        }
        let once = of_the_operator(upgrade(UpgradeState::Running, &[]), Some(gone), later);
        assert_eq!(of_the_operator(once.clone(), Some(gone), later), once, "it is said once");
        assert_eq!(told(UpgradeState::Preparing, Some(gone)), "as told");
        assert!(told(UpgradeState::Running, None).contains("is not in the cluster any more"));
        assert_eq!(told(UpgradeState::Running, Some(OperatorSeen { available: true, since: None })), "as told");
        assert_eq!(told(UpgradeState::Aborted, Some(gone)), "as told");
        // Its node restarts.
        assert_eq!(of_the_operator(upgrade(UpgradeState::Running, &[]), Some(gone), NOW).detail, "as told");
    }

    #[test]
    fn one_edit_is_put_right_without_a_word_and_a_quarrel_is_told() {
        assert_eq!(of_another_writer("nkd-3", "it is gone", 1), "");
        assert_eq!(of_another_writer("nkd-3", "it is gone", PATIENCE), "");
        let told = of_another_writer("nkd-3", "it is gone", PATIENCE + 1);
        assert!(told.contains("the update nkd-3") && told.contains("(it is gone)"), "{told}");
    }
}
