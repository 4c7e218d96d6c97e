//! Joins that are cut off, joins that go on, and everything in between.

use std::net::IpAddr;

use proptest::prelude::*;

use super::super::change;
use super::super::etcd::EtcdMember;
use super::super::plan::tests::cluster;
use super::super::plan::{self, Seen, Step};
use super::super::record::{Leaving, Then};
use super::*;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const JOIN: Uuid = Uuid::from_u128(7);

fn run(operation: Uuid, action: KubeadmAction, ended_at: Option<OffsetDateTime>) -> Run {
    Run { operation, action, ordered_at: NOW, ended_at }
}

/// cp1 is in, cp2 joins.
fn record(control_planes: u8) -> Record {
    let mut record = Record::new(Uuid::from_u128(1), cluster(control_planes, 1), NOW);
    for (number, member) in (0u128..).zip(&mut record.members) {
        member.machine = Some(Uuid::from_u128(100 + number));
    }
    let [first, second, ..] = &mut record.members[..] else { unreachable!() };
    (first.state, first.generation) = (MemberState::Ready, Some(1));
    first.run = Some(run(Uuid::from_u128(6), KubeadmAction::Init, Some(NOW)));
    second.state = MemberState::Joining;
    second.run = Some(run(JOIN, KubeadmAction::Join, None));
    record
}

fn member(id: u64, name: &str, address: &str) -> EtcdMember {
    EtcdMember {
        id,
        name: name.into(),
        peer_urls: vec![format!("https://{address}:2380")],
        client_urls: Vec::new(),
        learner: false,
    }
}

/// What etcd of cp1 says when cp2 was added and never started.
fn word() -> EtcdWord {
    let members = vec![member(12, "", "192.0.2.11"), member(11, "cp1", "192.0.2.10")];
    EtcdWord { has_leader: false, members }
}

fn asked(since: OffsetDateTime) -> [InVain; 1] {
    [InVain { operation: JOIN, since }]
}

const TURN: Turn = Turn { member: 0, other: 1, operation: Some(JOIN) };

#[test]
fn a_join_that_goes_on_is_left_alone_however_long_it_takes() {
    let (record, late) = (record(2), NOW + Duration::days(1));
    assert_eq!(next(&record, &word(), &[], late), None, "it was given its order, and did not ask again");
    assert_eq!(suspect(&record, &[], late), None, "etcd is not even asked");
    let other = [InVain { operation: Uuid::from_u128(8), since: NOW }];
    assert_eq!(next(&record, &word(), &other, late), None, "another run was asked for");
    assert_eq!(next(&record, &word(), &asked(late), late), None, "it has asked just now");
    assert_eq!(next(&record, &word(), &asked(NOW), NOW + PATIENCE), Some(TURN));
}

#[test]
fn only_the_word_of_an_etcd_that_waits_for_one_that_never_started_counts() {
    let late = NOW + Duration::days(1);
    let decide = |word: &EtcdWord| next(&record(2), word, &asked(NOW), late);
    assert_eq!(decide(&word()), Some(TURN));
    let differs = |change: fn(&mut EtcdWord)| {
        let mut word = word();
        change(&mut word);
        decide(&word)
    };
    assert_eq!(differs(|w| w.has_leader = true), None);
    assert_eq!(differs(|w| w.members[0].name = "cp2".into()), None, "it has started, and has data");
    assert_eq!(differs(|w| w.members[0].peer_urls.clear()), None, "nobody knows whose it is");
    assert_eq!(differs(|w| w.members[0] = member(12, "", "192.0.2.99")), None, "it is nobody of ours");
    assert_eq!(differs(|w| w.members[1].name = "cp9".into()), None);
    assert_eq!(differs(|w| drop(w.members.pop())), None);
    assert_eq!(differs(|w| w.members.push(member(13, "", "192.0.2.12"))), None);
}

#[test]
fn who_has_failed_or_is_lost_does_not_join() {
    let mut failed = record(2);
    failed.members[1].state = MemberState::Failed;
    failed.members[1].run = Some(run(JOIN, KubeadmAction::Join, Some(NOW)));
    assert_eq!(next(&failed, &word(), &[], NOW + PATIENCE - Duration::SECOND), None, "its etcd may start yet");
    let turn = Some(Turn { operation: None, ..TURN });
    assert_eq!(next(&failed, &word(), &[], NOW + PATIENCE), turn);
    for (lost, want) in [(true, turn), (false, None)] {
        let mut leaves = record(2);
        change::leave(&mut leaves.members[1], Leaving::new(NOW, lost, Then::Gone));
        assert_eq!(next(&leaves, &word(), &[], NOW), want);
        leaves.members[1].generation = Some(1);
        assert_eq!(next(&leaves, &word(), &[], NOW), None, "it was in, and has data");
    }
}

#[test]
fn nobody_else_carries_etcd_and_the_one_that_does_is_at_rest() {
    let late = NOW + Duration::days(1);
    let decide = |change: fn(&mut Record)| {
        let mut record = record(3);
        change(&mut record);
        next(&record, &word(), &asked(NOW), late)
    };
    assert_eq!(decide(|_| {}), Some(TURN));
    assert_eq!(decide(|r| r.members[2].state = MemberState::Joined), None);
    assert_eq!(decide(|r| r.members[0].run = Some(run(JOIN, KubeadmAction::Renew, None))), None);
    assert_eq!(decide(|r| change::leave(&mut r.members[0], Leaving::new(NOW, false, Then::Gone))), None);
    assert_eq!(decide(|r| r.members[1].generation = Some(1)), None);
    assert_eq!(decide(|r| r.members[0].address = None), None);
}

fn failed() -> KubeadmState {
    KubeadmState::Failed { step: "check".into(), reason: "y".into(), log_tail: String::new() }
}

#[test]
fn it_is_told_from_its_order_to_its_end_and_a_failure_waits_longer_each_time() {
    let mut record = record(2);
    let said = take(&mut record, &TURN, Uuid::from_u128(9), NOW);
    assert_eq!(said, ["cp1: etcd is brought back: cp2 was added to it, never started, and does not go on"]);
    assert_eq!(record.members[0].state, MemberState::Ready);
    assert_eq!(by(&record).map(|m| m.hostname.as_str()), Some("cp1"));
    let told = reason(&record).unwrap();
    assert!(told.contains("cp2 was added") && told.contains("etcd of cp1 is brought back"), "{told}");
    assert_eq!(next(&record, &word(), &asked(NOW), NOW + Duration::DAY), None, "it is on");
    let mut now = NOW + PATIENCE;
    for failures in 1..4 {
        assert!(heard(&mut record.members[0], &failed(), now)[0].contains("could not be brought back: check: y"));
        assert!(by(&record).is_none() && reason(&record).unwrap().contains("tried again"));
        let due = now + wait(failures);
        assert_eq!(next(&record, &word(), &asked(NOW), due - Duration::SECOND), None);
        assert_eq!(next(&record, &word(), &asked(NOW), due), Some(TURN));
        take(&mut record, &TURN, Uuid::from_u128(9), due);
        now = due;
    }
    assert_eq!((wait(1), wait(2), wait(99)), (FIRST_WAIT, FIRST_WAIT * 2, LAST_WAIT));
    let step = KubeadmState::Running { step: "alone".into() };
    assert!(heard(&mut record.members[0], &step, now).is_empty());
    assert_eq!(record.members[0].detail.as_deref(), Some("etcd is brought back: alone"));
    let said = heard(&mut record.members[0], &KubeadmState::Done, now);
    assert_eq!(said, ["cp1: etcd goes on with cp1 alone, and cp2 may join again"]);
    assert_eq!((by(&record), record.members[0].recovery.as_ref()), (None, None));
}

#[test]
fn a_recovery_that_failed_is_forgotten_once_the_api_answers() {
    let mut record = record(2);
    take(&mut record, &TURN, Uuid::from_u128(9), NOW);
    assert!(!forget(&mut record), "it is on");
    heard(&mut record.members[0], &failed(), NOW);
    assert!(forget(&mut record) && record.members[0].recovery.is_none() && !forget(&mut record));
}

#[test]
fn while_the_second_control_plane_joins_it_is_what_is_to_be_looked_at() {
    let mut joins = record(2);
    let told = reason(&joins).unwrap();
    assert!(told.contains("while cp2 joins") && told.contains("nkd cluster remove rack7 cp2 --lost"), "{told}");
    joins.members[1].state = MemberState::Ready;
    assert_eq!(reason(&joins), None);
    let mut third = record(3);
    third.members[1].state = MemberState::Ready;
    third.members[2].run = Some(run(JOIN, KubeadmAction::Join, None));
    assert_eq!(reason(&third), None, "two of three are a majority");
}

#[derive(Debug, Clone)]
enum Event {
    Asks,
    Given,
    /// kubeadm on cp2 is where it adds its member, or where its etcd starts.
    Adds,
    Starts,
    Cut,
    JoinFails,
    RecoveryEnds(bool),
    Lost,
    Seconds(i64),
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Asks),
        3 => Just(Event::Given),
        3 => Just(Event::Adds),
        1 => Just(Event::Starts),
        2 => Just(Event::Cut),
        1 => Just(Event::JoinFails),
        2 => any::<bool>().prop_map(Event::RecoveryEnds),
        1 => Just(Event::Lost),
        3 => (0i64..200).prop_map(Event::Seconds),
    ]
}

/// cp2 and the etcd of cp1 as they are.
#[derive(Default)]
struct World {
    runs: bool,
    added: bool,
    started: bool,
    in_vain: Vec<InVain>,
}

impl World {
    fn word(&self) -> EtcdWord {
        let mut word = word();
        word.has_leader = !self.added || self.started;
        if self.started {
            word.members[0].name = "cp2".into();
        }
        if !self.added {
            word.members.remove(0);
        }
        word
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// In every life: a recovery is never ordered while kubeadm runs on the other node or its etcd has data, and nobody is
    /// given an order to join while one is on. And whoever is cut off at last is helped.
    #[test]
    fn no_join_that_goes_on_is_hit_and_every_one_that_is_cut_off_ends(
        lives in proptest::collection::vec(events(), 0..80),
    ) {
        let (mut record, mut now, mut world) = (record(2), NOW, World::default());
        let turn = |record: &mut Record, world: &World, now: OffsetDateTime| {
            let etcd = world.word();
            let down = world.added && !world.started;
            let seen = Seen {
                machines: &[],
                nodes: if down { None } else { Some(&[]) },
                quorum: None,
                etcd: Some(&etcd),
                in_vain: &world.in_vain,
                upgrade: None,
                now,
            };
            let steps = plan::plan(record, seen);
            for step in steps {
                if let Step::Recover(turn) = step {
                    prop_assert!(down && !world.runs && by(record).is_none());
                    take(record, &turn, Uuid::from_u128(9), now);
                }
            }
            Ok(())
        };
        let happens = |record: &mut Record, world: &mut World, event: &Event, now: OffsetDateTime| {
            let open = record.members[1].run.is_some_and(|run| run.ended_at.is_none());
            let lost = record.members[1].leaving.is_some();
            let down = world.added && !world.started;
            match event {
                Event::Asks if open && !world.runs && world.in_vain.is_empty() => world.in_vain = asked(now).to_vec(),
                // The API has to answer for a token, and nobody may bring etcd back.
                Event::Given if open && !world.runs && !down && !lost && by(record).is_none() => {
                    world.in_vain.clear();
                    (world.runs, world.added, world.started) = (true, false, false);
                }
                Event::Adds if world.runs => world.added = true,
                Event::Starts if world.runs && world.added => world.started = true,
                Event::Cut => world.runs = false,
                Event::JoinFails if world.runs => {
                    world.runs = false;
                    record.members[1].state = MemberState::Failed;
                    record.members[1].run = Some(run(JOIN, KubeadmAction::Join, Some(now)));
                }
                Event::RecoveryEnds(well) if by(record).is_some() => {
                    heard(&mut record.members[0], &if *well { KubeadmState::Done } else { failed() }, now);
                    world.added &= !*well;
                }
                // An operator says so when it is so.
                Event::Lost if !world.runs && !lost => {
                    change::leave(&mut record.members[1], Leaving::new(now, true, Then::Gone));
                }
                _ => {}
            }
        };
        for event in &lives {
            if let Event::Seconds(seconds) = event {
                now += Duration::seconds(*seconds);
            }
            happens(&mut record, &mut world, event, now);
            turn(&mut record, &world, now)?;
        }
        happens(&mut record, &mut world, &Event::Cut, now);
        for _ in 0..20 {
            now += Duration::minutes(1);
            happens(&mut record, &mut world, &Event::Asks, now);
            turn(&mut record, &world, now)?;
            happens(&mut record, &mut world, &Event::RecoveryEnds(true), now);
        }
        prop_assert!(!world.added || world.started, "etcd has no majority, and nobody does anything: {record:#?}");
        prop_assert!(by(&record).is_none());
    }
}

#[test]
fn a_record_from_before_recoveries_reads() {
    let mut old = serde_json::to_value(record(2)).unwrap();
    for member in old["members"].as_array_mut().unwrap() {
        member.as_object_mut().unwrap().remove("recovery").unwrap();
    }
    let read: Record = serde_json::from_value(old).unwrap();
    assert_eq!(read, record(2));
}

#[test]
fn a_member_of_etcd_is_told_by_its_name_or_by_its_address_before_it_has_one() {
    let ip: IpAddr = "2001:db8::2".parse().unwrap();
    let new = member(1, "", "[2001:db8::2]");
    assert!(new.is_of("cp2", Some(ip)) && !new.is_of("cp2", None) && !new.is_of("cp3", "192.0.2.1".parse().ok()));
    let named = member(1, "cp2", "[2001:db8::2]");
    assert!(named.is_of("cp2", None) && !named.is_of("cp3", Some(ip)), "the address may be another's now");
}
