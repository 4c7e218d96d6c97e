//! What a word of a person makes of an upgrade (pure).

use nkd_api::snapshot::SnapshotState;
use nkd_api::update::NodeState;
use nkd_api::upgrade::{Upgrade, UpgradeState, UpgradeVerb};
use time::OffsetDateTime;

use super::verdict;
use crate::cluster::record::Record;

/// The upgrade after it; else why it means nothing now.
pub fn said(record: &Record, before: &Upgrade, verb: UpgradeVerb, now: OffsetDateTime) -> Result<Upgrade, String> {
    let (cluster, number, state) = (record.name(), before.number, before.state);
    let word = state.as_str();
    let next = format!("`nkd upgrade start {cluster}` begins another one");
    if state.is_end() {
        return Err(format!("upgrade {number} of {cluster} is over: {word}; {next}"));
    }
    if before.aborted && verb != UpgradeVerb::Abort {
        return Err(format!("upgrade {number} of {cluster} was called off, and goes on no more: at its end {next}"));
    }
    let mut upgrade = before.clone();
    if upgrade.restored {
        match verb {
            UpgradeVerb::Resume | UpgradeVerb::Abort => {}
            UpgradeVerb::Pause | UpgradeVerb::Retry => {
                let ways = format!("`nkd upgrade resume {cluster}` or `nkd upgrade abort {cluster}`");
                return Err(format!("upgrade {number} of {cluster} was restored from a backup: first {ways}"));
            }
        }
        // As far as the backup knows, its cluster was told when the operator has said something.
        upgrade.state = if upgrade.nodes.is_empty() { UpgradeState::Preparing } else { UpgradeState::Running };
        upgrade.restored = false;
        upgrade.detail.clear();
    }
    match verb {
        UpgradeVerb::Pause => upgrade.paused = true,
        // The operator may not have said yet that it goes on.
        UpgradeVerb::Resume if upgrade.paused || state == UpgradeState::Paused => upgrade.paused = false,
        UpgradeVerb::Resume => {
            let next = format!("`nkd upgrade status {cluster}` says what it waits for");
            return Err(format!("upgrade {number} of {cluster} is not paused, it is {word}: {next}"));
        }
        // What was said of it before is over: who watches must not take it for the end of this.
        UpgradeVerb::Abort => {
            upgrade.aborted = true;
            // Its cluster may know of it, whatever the backup says of a snapshot: it is asked.
            if before.restored && upgrade.snapshot.as_ref().is_some_and(|wanted| !wanted.is_taken()) {
                upgrade.snapshot = None;
            }
            // One that is prepared ends at once, if its cluster knows nothing of it.
            if upgrade.state != UpgradeState::Preparing {
                upgrade.state = UpgradeState::Aborting;
            }
            upgrade.detail.clear();
        }
        UpgradeVerb::Retry if snapshot_has_failed(&upgrade) => {
            upgrade.snapshot = upgrade.snapshot.map(|wanted| wanted.again(now));
            upgrade.state = UpgradeState::Preparing;
            upgrade.detail.clear();
        }
        UpgradeVerb::Retry if has_failed(&upgrade) || verdict::lacks_members(record, &upgrade) => {
            (upgrade.retry, upgrade.state) = (upgrade.retry + 1, UpgradeState::Running);
            upgrade.detail.clear();
        }
        UpgradeVerb::Retry => return Err(format!("no node of {cluster} has failed in its upgrade, which is {word}")),
    }
    Ok(upgrade)
}

/// The last one for it: before that there is nothing to be tried again.
fn snapshot_has_failed(upgrade: &Upgrade) -> bool {
    let waits = upgrade.snapshot.as_ref().filter(|wanted| !wanted.is_taken());
    let newest = waits.and_then(|wanted| wanted.newest.as_ref());
    newest.is_some_and(|snapshot| snapshot.state == SnapshotState::Failed)
        || (waits.is_some() && upgrade.state == UpgradeState::Halted)
}

fn has_failed(upgrade: &Upgrade) -> bool {
    upgrade.nodes.iter().any(|node| node.state == NodeState::Failed)
}

#[cfg(test)]
mod tests {
    use nkd_api::cluster::MemberState;
    use nkd_api::upgrade::UpgradeSnapshot;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::cluster::plan::tests::cluster;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
    const VERBS: [UpgradeVerb; 4] = [UpgradeVerb::Pause, UpgradeVerb::Resume, UpgradeVerb::Abort, UpgradeVerb::Retry];

    fn record() -> Record {
        let mut record = Record::new(Uuid::nil(), cluster(1, 1), NOW);
        record.members.iter_mut().for_each(|member| member.state = MemberState::Ready);
        record
    }

    /// An upgrade whose cp1 is like this.
    fn upgrade(state: &str, cp1: Option<&str>) -> Upgrade {
        let node = |state: &str| json!({"name": "cp1", "state": state, "since": "2026-01-01T00:00:00Z", "reason": "", "attempt": 1});
        let nodes: Vec<_> = cp1.into_iter().map(node).collect();
        let upgrade = json!({"cluster": "rack7", "number": 3, "order": {}, "version": "2", "fromKubernetes": "v1.20.2",
            "state": state, "detail": "as told", "paused": state == "paused", "aborted": false, "retry": 0, "by": "ada",
            "startedAt": "2026-01-01T00:00:00Z", "nodes": nodes});
        serde_json::from_value(upgrade).unwrap()
    }

    #[test]
    fn what_was_called_off_hears_nothing_but_that() {
        let called_off = Upgrade { aborted: true, ..upgrade("aborting", Some("Failed")) };
        for verb in VERBS {
            let said = said(&record(), &called_off, verb, NOW);
            match verb {
                UpgradeVerb::Abort => assert_eq!(said.unwrap().state, UpgradeState::Aborting),
                _ => assert!(said.unwrap_err().contains("was called off, and goes on no more"), "{verb:?}"),
            }
        }
    }

    #[test]
    fn what_is_only_prepared_is_called_off_without_a_word_to_its_cluster() {
        let told = said(&record(), &upgrade("preparing", None), UpgradeVerb::Abort, NOW).unwrap();
        assert!(told.aborted && told.state == UpgradeState::Preparing && told.detail.is_empty());
        let told = said(&record(), &upgrade("running", None), UpgradeVerb::Abort, NOW).unwrap();
        assert!(told.aborted && told.state == UpgradeState::Aborting);
    }

    #[test]
    fn a_retry_is_for_what_failed_and_for_members_that_were_not_there() {
        let retry = |upgrade: &Upgrade| said(&record(), upgrade, UpgradeVerb::Retry, NOW);
        for before in [upgrade("halted", Some("Failed")), upgrade("halted", Some("Done"))] {
            let told = retry(&before).unwrap();
            assert_eq!((told.retry, told.state, told.detail.as_str()), (1, UpgradeState::Running, ""));
        }
        let snapshot = |state: &str| {
            let one = json!({"id": Uuid::nil(), "cluster": "rack7", "node": "cp1", "by": "ada", "state": state,
                "orderedAt": "2026-01-01T00:00:00Z"});
            let wanted = json!({"since": "2026-01-01T00:00:00Z", "newest": one});
            Upgrade { snapshot: serde_json::from_value(wanted).unwrap(), ..upgrade("preparing", None) }
        };
        assert_eq!(retry(&snapshot("failed")).unwrap().snapshot.unwrap().round, 1);
        assert!(retry(&snapshot("taking")).is_err(), "it may go well yet");
        for before in [upgrade("halted", Some("Waiting")), upgrade("running", Some("Done"))] {
            assert!(retry(&before).unwrap_err().contains("no node of "), "{before:?}");
        }
    }

    #[test]
    fn what_came_out_of_a_backup_is_resumed_or_called_off_first() {
        for (node, state) in [(None, UpgradeState::Preparing), (Some("Staged"), UpgradeState::Running)] {
            let before = Upgrade { restored: true, ..upgrade("paused", node) };
            for verb in [UpgradeVerb::Pause, UpgradeVerb::Retry] {
                assert!(said(&record(), &before, verb, NOW).unwrap_err().contains("was restored from a backup"));
            }
            let told = said(&record(), &before, UpgradeVerb::Resume, NOW).unwrap();
            assert_eq!((told.state, told.restored, told.paused, told.detail.as_str()), (state, false, false, ""));
            let told = said(&record(), &before, UpgradeVerb::Abort, NOW).unwrap();
            assert!(told.aborted && !told.restored, "{told:?}");
        }
        // Without its snapshot it would end without a look at its cluster, which may have been told since.
        let snapshot = Some(UpgradeSnapshot { since: NOW, round: 0, newest: None });
        let before = Upgrade { restored: true, snapshot, ..upgrade("paused", None) };
        assert_eq!(said(&record(), &before, UpgradeVerb::Abort, NOW).unwrap().snapshot, None);
        assert!(said(&record(), &before, UpgradeVerb::Resume, NOW).unwrap().snapshot.is_some());
    }

    #[test]
    fn what_is_over_or_not_paused_says_so() {
        for verb in VERBS {
            assert!(said(&record(), &upgrade("complete", None), verb, NOW).unwrap_err().contains("is over: complete"));
        }
        let resume = |upgrade: &Upgrade| said(&record(), upgrade, UpgradeVerb::Resume, NOW);
        assert!(resume(&upgrade("running", None)).unwrap_err().contains("is not paused, it is running"));
        assert!(!resume(&upgrade("paused", None)).unwrap().paused);
        // Paused, and the operator has not looked yet.
        assert!(!resume(&Upgrade { paused: true, ..upgrade("running", None) }).unwrap().paused);
    }
}
