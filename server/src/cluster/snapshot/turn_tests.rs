//! Who takes a snapshot, and what an upgrade does with those that failed.

use nkd_api::upgrade::UpgradeSnapshot;
use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::cluster::plan::tests::cluster;

const NOW: OffsetDateTime = datetime!(2026-11-28 12:00 UTC);
const SECOND: Duration = Duration::SECOND;

/// cp1 to cp3 and w1, Ready, with machines 10 to 13 and healthy members 1 to 3 of etcd.
struct Scene {
    record: Record,
    able: BTreeSet<Uuid>,
    members: Vec<(EtcdMember, Result<(), String>)>,
    leader: Option<u64>,
    failed: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        let mut record = Record::new(Uuid::from_u128(1), cluster(3, 1), NOW);
        for (number, member) in (10..).zip(record.members.iter_mut()) {
            (member.state, member.machine) = (MemberState::Ready, Some(Uuid::from_u128(number)));
        }
        let member = |id: u64| EtcdMember {
            id,
            name: format!("cp{id}"),
            peer_urls: Vec::new(),
            client_urls: Vec::new(),
            learner: false,
        };
        Self {
            able: record.members.iter().filter_map(|m| m.machine).collect(),
            record,
            members: (1..=3).map(|id| (member(id), Ok(()))).collect(),
            leader: Some(1),
            failed: Vec::new(),
        }
    }

    fn chosen(&self) -> Result<&str, Nobody> {
        let index = choose(&self.record, &self.able, &self.members, self.leader, &self.failed)?;
        Ok(&self.record.members[index].hostname)
    }
}

#[test]
fn a_healthy_control_plane_takes_it_and_not_the_leader_if_there_is_a_choice() {
    let mut scene = Scene::new();
    assert_eq!(scene.chosen(), Ok("cp2"));
    scene.members[1].1 = Err("it has no leader".into());
    assert_eq!(scene.chosen(), Ok("cp3"));
    scene.record.members[2].state = MemberState::Joined;
    assert_eq!(scene.chosen(), Ok("cp1"), "the leader is better than none");
    scene.able.remove(&Uuid::from_u128(10));
    let Err(Nobody::AtAll(why)) = scene.chosen() else { panic!() };
    for part in ["cp1: its agent is older", "cp2: of its etcd: it has no leader", "cp3: it is not Ready"] {
        assert!(why.contains(part), "{why}");
    }
    assert!(!why.contains("w1"), "{why}");
}

#[test]
fn one_that_has_failed_comes_after_those_that_have_not() {
    let mut scene = Scene::new();
    for (failed, next) in [("cp2", "cp3"), ("cp3", "cp1"), ("cp1", "cp2")] {
        scene.failed.push(failed.into());
        assert_eq!(scene.chosen(), Ok(next));
    }
}

#[test]
fn nobody_takes_one_while_a_control_plane_restarts_or_takes_one() {
    let mut scene = Scene::new();
    let run = |action| Some(Run { operation: Uuid::nil(), action, ordered_at: NOW, ended_at: None });
    scene.record.members[0].run = run(KubeadmAction::Renew);
    assert_eq!(scene.chosen(), Err(Nobody::Now("cp1 joins, leaves or restarts".into())));
    scene.record.members[0].run = run(KubeadmAction::Snapshot);
    assert_eq!(scene.chosen(), Err(Nobody::Now("cp1 takes a snapshot already".into())));
    assert!(under_way(&scene.record.members[0]));
    let progress = KubeadmState::Running { step: "prove".into() };
    assert_eq!(heard(&mut scene.record.members[0], &progress, NOW), Vec::<String>::new());
    assert!(scene.record.members[0].detail.as_deref().unwrap().contains("prove"));
    heard(&mut scene.record.members[0], &KubeadmState::Done, NOW);
    assert_eq!(scene.record.members[0].state, MemberState::Ready);
    assert_eq!((scene.record.members[0].detail.clone(), scene.chosen()), (None, Ok("cp2")));
}

fn row(number: u128, state: SnapshotState, ordered_at: OffsetDateTime) -> EtcdSnapshot {
    EtcdSnapshot {
        id: Uuid::from_u128(number),
        cluster: "rack7".into(),
        upgrade: Some(1),
        round: 0,
        node: "cp2".into(),
        by: "ada".into(),
        state,
        detail: "save: the disk is full".into(),
        ordered_at,
        heard_at: Some(ordered_at),
        proof: None,
    }
}

#[test]
fn an_upgrade_tries_five_times_waits_longer_each_time_and_begins_anew_when_asked() {
    let mut rows: Vec<EtcdSnapshot> = Vec::new();
    let (mut at, mut waits) = (NOW, Vec::new());
    loop {
        match gate(&rows, 0, at) {
            Gate::Order => rows.insert(0, row(rows.len() as u128, SnapshotState::Failed, at)),
            Gate::Wait(why) => {
                assert!(why.contains("save: the disk is full") && why.contains("on cp2"), "{why}");
                let begun = at;
                while matches!(gate(&rows, 0, at), Gate::Wait(_)) {
                    at += SECOND;
                }
                waits.push((at - begun).whole_seconds());
            }
            Gate::Halt(why) => {
                assert!(why.contains("tried 5 times") && why.contains("the disk is full"), "{why}");
                break;
            }
            Gate::Open => panic!("nothing was verified"),
        }
    }
    assert_eq!((rows.len(), waits.as_slice()), (5, &[30, 60, 120, 240][..]));
    assert_eq!(gate(&rows, 1, at), Gate::Order, "a retry");
    rows.insert(0, EtcdSnapshot { round: 1, ..row(9, SnapshotState::Taking, at) });
    assert!(matches!(gate(&rows, 1, at), Gate::Wait(why) if why.starts_with("cp2 takes a snapshot")));
    rows[0].state = SnapshotState::Verified;
    assert_eq!(gate(&rows, 1, at), Gate::Open);
}

#[test]
fn a_clock_that_is_set_back_neither_holds_an_upgrade_up_nor_lets_it_try_for_ever() {
    let year = Duration::days(365);
    // The failure was written down when the clock was a year ahead.
    let mut rows = vec![row(0, SnapshotState::Failed, NOW + year)];
    assert_eq!(gate(&rows, 0, NOW), Gate::Order);
    // What was ordered since is the newest, whatever the dates say, and its wait counts again.
    rows.insert(0, row(1, SnapshotState::Failed, NOW));
    assert!(matches!(gate(&rows, 0, NOW), Gate::Wait(why) if why.contains("try 2 of 5")));
    // It is a year ahead at every failure, and right again at every look.
    rows[0].heard_at = Some(NOW + year);
    for _ in 2..TRIES {
        assert_eq!(gate(&rows, 0, NOW), Gate::Order);
        rows.insert(0, row(rows.len() as u128, SnapshotState::Failed, NOW + year));
    }
    assert!(matches!(gate(&rows, 0, NOW), Gate::Halt(why) if why.contains("tried 5 times")));
}

#[test]
fn what_was_kept_before_rounds_were_counted_reads_and_counts() {
    let mut old = serde_json::to_value(row(0, SnapshotState::Failed, NOW)).unwrap();
    old.as_object_mut().unwrap().remove("round").unwrap();
    let old: EtcdSnapshot = serde_json::from_value(old).unwrap();
    let wanted: UpgradeSnapshot = serde_json::from_str(r#"{"since": "2026-01-01T00:00:00Z"}"#).unwrap();
    let (rows, again) = ([old], wanted.again(NOW));
    assert!(matches!(gate(&rows, wanted.round, NOW), Gate::Wait(why) if why.contains("try 1 of 5")));
    assert_eq!((again.since, gate(&rows, again.round, NOW)), (NOW, Gate::Order));
}

#[test]
fn a_run_whose_dates_lie_ahead_ends_all_the_same() {
    let mut scene = Scene::new();
    let year = Duration::days(365);
    let mut row = EtcdSnapshot { heard_at: None, ..row(7, SnapshotState::Taking, NOW + year) };
    let action = KubeadmAction::Snapshot;
    scene.record.members[1].run = Some(Run { operation: row.id, action, ordered_at: NOW + year, ended_at: None });
    let over = |row: &EtcdSnapshot, at| super::over(row, Some(&scene.record), Some(NOW + year), at);
    assert_eq!(over(&row, NOW + LONG), None, "by the dates alone nobody would know");
    row = set_back(&row, NOW).unwrap();
    assert_eq!((row.ordered_at, set_back(&row, NOW)), (NOW, None));
    assert_eq!(over(&row, NOW + SILENT - SECOND), None, "it has its time, counted from now");
    assert!(over(&row, NOW + SILENT).unwrap().contains("does not begin"));
    row = told(&row, &KubeadmState::Running { step: "restore".into() }, NOW + year);
    row = set_back(&row, NOW).unwrap();
    assert_eq!(over(&row, NOW + LONG - SECOND), None);
    assert!(over(&row, NOW + LONG).unwrap().contains("does not end"));
    let verified = EtcdSnapshot { state: SnapshotState::Verified, heard_at: Some(NOW + year), ..row };
    assert!(lingers(&verified, NOW) && set_back(&verified, NOW).is_none());
}

#[test]
fn a_row_is_taken_as_long_as_its_run_goes_on_and_is_heard_of() {
    let mut scene = Scene::new();
    let mut row = row(7, SnapshotState::Taking, NOW);
    row.heard_at = None;
    let over =
        |row: &EtcdSnapshot, record: Option<&Record>, at| super::over(row, record, Some(at), at).unwrap_or_default();
    assert!(over(&row, Some(&scene.record), NOW).contains("given up"));
    assert!(over(&row, None, NOW).contains("given up"), "its cluster is gone");
    let action = KubeadmAction::Snapshot;
    scene.record.members[1].run = Some(Run { operation: row.id, action, ordered_at: NOW, ended_at: None });
    assert_eq!(over(&row, Some(&scene.record), NOW + SILENT - SECOND), "");
    assert!(over(&row, Some(&scene.record), NOW + SILENT).contains("does not begin"));
    row = told(&row, &KubeadmState::Running { step: "restore".into() }, NOW + SECOND);
    assert_eq!((row.state, row.detail.as_str()), (SnapshotState::Taking, "restore"));
    assert_eq!(over(&row, Some(&scene.record), NOW + LONG), "");
    assert!(over(&row, Some(&scene.record), NOW + LONG + SECOND).contains("restore: it does not end"));
    // Its machine is heard of no more: somebody else may take it, at once.
    let silent = super::over(&row, Some(&scene.record), Some(NOW), NOW + SILENT);
    assert_eq!(silent.as_deref(), Some("cp2 is away"));
    assert_eq!(super::over(&row, Some(&scene.record), Some(NOW), NOW + SILENT - SECOND), None);
    assert!(!lingers(&row, NOW + LONG));
    let verified = EtcdSnapshot { state: SnapshotState::Verified, heard_at: Some(NOW), ..row.clone() };
    assert!(!lingers(&verified, NOW + SILENT - SECOND) && lingers(&verified, NOW + SILENT));
    // The word of the node alone makes none.
    assert_eq!(told(&row, &KubeadmState::Done, NOW).state, SnapshotState::Failed);
}

#[test]
fn the_newest_few_are_kept() {
    let state = |n: u128| if n.is_multiple_of(2) { SnapshotState::Verified } else { SnapshotState::Failed };
    let mut all: Vec<EtcdSnapshot> =
        (0..16).map(|n| row(n, state(n), NOW - SECOND * i32::try_from(n).unwrap())).collect();
    all.insert(0, row(99, SnapshotState::Taking, NOW));
    let gone = |came, goes_on| -> BTreeSet<u128> {
        surplus(&all, Uuid::from_u128(came), goes_on).iter().map(Uuid::as_u128).collect()
    };
    assert_eq!(gone(0, None), BTreeSet::from([10, 11, 12, 13, 14, 15]));
    assert_eq!(gone(14, None), BTreeSet::from([10, 11, 12, 13, 15]), "the one that just came stays");
    all[11].upgrade = None;
    all[13].upgrade = Some(2);
    let gone =
        |goes_on| -> BTreeSet<u128> { surplus(&all, Uuid::from_u128(0), goes_on).iter().map(Uuid::as_u128).collect() };
    // 10 was taken for no upgrade, 12 for upgrade 2, the others for upgrade 1.
    assert_eq!(gone(None), BTreeSet::from([10, 11, 12, 13, 14, 15]), "none goes on");
    assert_eq!(gone(Some(2)), BTreeSet::from([10, 11, 13, 14, 15]));
    assert_eq!(gone(Some(1)), BTreeSet::from([10, 12]));
}

proptest! {
    /// Whatever is healthy, able and busy: the one that takes it is healthy and able, and there is one if one could.
    #[test]
    fn only_who_can_takes_it_and_somebody_who_can_does(
        healthy in proptest::array::uniform3(any::<bool>()), able in proptest::array::uniform3(any::<bool>()),
        ready in proptest::array::uniform3(any::<bool>()), leader in 0u64..4,
        failed in proptest::collection::vec(1usize..4, 0..6),
    ) {
        let mut scene = Scene::new();
        scene.leader = Some(leader).filter(|leader| *leader > 0);
        scene.failed = failed.iter().map(|n| format!("cp{n}")).collect();
        for n in 0..3 {
            if !healthy[n] { scene.members[n].1 = Err("x".into()); }
            if !able[n] { scene.able.remove(&Uuid::from_u128(10 + n as u128)); }
            if !ready[n] { scene.record.members[n].state = MemberState::Joined; }
        }
        let can = |n: usize| healthy[n] && able[n] && ready[n];
        match scene.chosen() {
            Ok(name) => {
                let n: usize = name[2..].parse().unwrap();
                prop_assert!(can(n - 1));
                let others = (0..3).any(|other| other != n - 1 && can(other));
                if failed.is_empty() && others { prop_assert_ne!(n as u64, leader); }
            }
            Err(_) => prop_assert!(!(0..3).any(can)),
        }
    }
}
