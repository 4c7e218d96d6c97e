//! One control plane at a time, whatever goes wrong, and done only when the node has shown it.

use nkd_api::update::NodeState;
use proptest::prelude::*;
use time::macros::datetime;

use super::super::plan::{self, Seen};
use super::super::upgrade::beside::tests::upgrade;
use super::*;

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);

fn certificate(name: &str, serial: u32, made: OffsetDateTime, life: Duration) -> NodeCertificate {
    let subject = format!("CN={name}");
    NodeCertificate { name: name.into(), subject, serial: serial.to_string(), since: made, not_after: made + life }
}

fn certificates(serial: u32, made: OffsetDateTime, life: Duration) -> Vec<NodeCertificate> {
    ["apiserver", "etcd/peer", KUBELET].map(|name| certificate(name, serial, made, life)).into()
}

/// Control planes cp1 to cp3 and w1, Ready, with certificates made a day ago.
fn record(control_planes: usize) -> Record {
    let machines = |names: Vec<String>| {
        serde_json::json!(
            names.iter().map(|n| serde_json::json!({"mac": "52:54:00:00:00:01", "hostname": n})).collect::<Vec<_>>()
        )
    };
    let names = (1..=control_planes).map(|n| format!("cp{n}")).collect();
    let cluster = serde_json::json!({
        "apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "rack7"},
        "spec": {"kubernetes": {"version": "v1.20.2"}, "pools": [
            {"name": "cp", "role": "control-plane", "machines": machines(names)},
            {"name": "w", "role": "worker", "machines": machines(vec!["w1".into()])},
        ]},
    });
    let mut record = Record::new(Uuid::from_u128(1), serde_json::from_value(cluster).unwrap(), NOW);
    for (n, member) in record.members.iter_mut().enumerate() {
        (member.state, member.machine) = (MemberState::Ready, Some(Uuid::from_u128(10 + n as u128)));
        let all = certificates(1, NOW - Duration::DAY, Duration::days(365));
        member.certificates = if member.role == Role::ControlPlane { all } else { all[2..].to_vec() };
    }
    record
}

/// Without an upgrade.
fn next(record: &Record, now: OffsetDateTime) -> Vec<Turn> {
    super::next(record, None, now)
}

fn order(record: &mut Record, now: OffsetDateTime) -> Vec<String> {
    let turns = next(record, now);
    turns.iter().flat_map(|turn| take(record, turn, Uuid::from_u128(7), now)).collect()
}

fn state(record: &Record, n: usize) -> Option<RenewalState> {
    record.members[n].renewal.as_ref().map(|renewal| renewal.state)
}

#[test]
fn nothing_is_renewed_while_a_snapshot_of_etcd_is_taken() {
    let mut record = record(3);
    let due = NOW + Duration::days(334);
    let run = Run { operation: Uuid::from_u128(9), action: KubeadmAction::Snapshot, ordered_at: due, ended_at: None };
    record.members[1].run = Some(run);
    assert_eq!(next(&record, due), []);
    record.members[1].run = Some(Run { ended_at: Some(due), ..run });
    assert_eq!(next(&record, due), [Turn::Order { member: 0 }]);
}

#[test]
fn nothing_is_renewed_before_its_time() {
    let record = record(3);
    assert_eq!(next(&record, NOW), []);
    assert_eq!(next(&record, NOW + Duration::days(333)), []);
    assert_eq!(next(&record, NOW + Duration::days(334)), [Turn::Order { member: 0 }]);
}

#[test]
fn an_operators_wish_goes_from_one_control_plane_to_the_next_and_ends_when_the_node_has_shown_it() {
    let mut record = record(2);
    assert_eq!(request(&mut record, None, NOW).unwrap().len(), 2);
    assert_eq!(order(&mut record, NOW).len(), 1);
    assert_eq!((state(&record, 0), state(&record, 1)), (Some(RenewalState::Running), Some(RenewalState::Wanted)));
    assert_eq!(record.members[0].state, MemberState::Ready, "it is in the cluster all the while");
    assert_eq!(next(&record, NOW + Duration::HOUR), [], "the other one waits");
    assert_eq!(request(&mut record, None, NOW).unwrap(), [""; 0], "asked twice, it is done once");

    let said = heard(&mut record.members[0], &KubeadmState::Running { step: "certs".into() }, NOW);
    assert_eq!(said, [""; 0]);
    heard(&mut record.members[0], &KubeadmState::Done, NOW);
    assert_eq!(next(&record, NOW), [], "done is what the node has shown");
    // Half of them are new.
    record.members[0].certificates[0] = certificate("apiserver", 2, NOW, Duration::days(365));
    assert_eq!(next(&record, NOW), []);
    record.members[0].certificates[1] = certificate("etcd/peer", 2, NOW, Duration::days(365));
    assert_eq!(next(&record, NOW), [Turn::Done { member: 0 }]);
    let said = order(&mut record, NOW);
    assert!(said[0].contains("cp1: its certificates are renewed, good until 2027-03-01"), "{said:?}");
    assert_eq!(next(&record, NOW), [Turn::Order { member: 1 }]);
}

#[test]
fn certificates_that_stay_old_are_a_failure_that_is_named_and_tried_again() {
    let mut record = record(1);
    request(&mut record, Some("cp1"), NOW).unwrap();
    order(&mut record, NOW);
    heard(&mut record.members[0], &KubeadmState::Done, NOW);
    record.members[0].certificates[1] = certificate("etcd/peer", 2, NOW, Duration::days(365));
    let said = order(&mut record, NOW + REPORT);
    assert!(said[0].contains("still shows the old apiserver"), "{said:?}");
    assert!(reasons(&record, NOW)[0].contains("`nkd cluster certs renew rack7 --node cp1`"));
    assert_eq!(next(&record, NOW + REPORT + Duration::seconds(59)), []);
    assert_eq!(next(&record, NOW + REPORT + Duration::MINUTE), [Turn::Order { member: 0 }]);
}

#[test]
fn an_end_that_is_earlier_is_no_renewal() {
    let mut record = record(1);
    request(&mut record, None, NOW).unwrap();
    order(&mut record, NOW);
    heard(&mut record.members[0], &KubeadmState::Done, NOW);
    record.members[0].certificates = certificates(2, NOW, Duration::days(100));
    assert!(matches!(next(&record, NOW + REPORT)[..], [Turn::Failed { member: 0, .. }]));
}

#[test]
fn it_waits_for_control_planes_that_are_away_until_days_are_left() {
    let mut record = record(2);
    request(&mut record, Some("cp1"), NOW).unwrap();
    record.members[1].state = MemberState::Joined;
    assert_eq!(next(&record, NOW), []);
    assert_eq!(view(&record, None, NOW)[0].detail.as_deref(), Some("waits: cp2 is not Ready"));
    let late = NOW + Duration::days(359);
    assert_eq!(next(&record, late), [Turn::Order { member: 0 }]);
    record.members[1].state = MemberState::Ready;
    record.health = Health::Unreachable { since: NOW, reason: "x".into() };
    assert_eq!(next(&record, NOW), []);
    assert_eq!(next(&record, late), [Turn::Order { member: 0 }], "an API whose certificate is over does not answer");
    record.members[1].state = MemberState::Joining;
    assert_eq!(next(&record, late), [], "never while another joins");
}

#[test]
fn it_waits_for_an_upgrade_that_goes_on_until_days_are_left() {
    let mut record = record(3);
    request(&mut record, Some("cp2"), NOW).unwrap();
    let order = [Turn::Order { member: 1 }];
    let week = NOW + Duration::days(359);
    for state in ["preparing", "running", "paused", "halted", "aborting"] {
        let goes_on = upgrade(state, &[("cp1", NodeState::Done), ("w1", NodeState::Rebooting)]);
        assert_eq!(super::next(&record, Some(&goes_on), NOW), [], "{state}");
        let said = view(&record, Some(&goes_on), NOW).remove(0).detail.unwrap();
        assert_eq!(said, format!("waits: upgrade 3 has to end first, it is {state}"));
    }
    for state in ["complete", "aborted"] {
        assert_eq!(super::next(&record, Some(&upgrade(state, &[])), NOW), order, "{state}");
    }
    // Days are left: not while it has a control plane away, and not while another one is.
    let works = upgrade("running", &[("cp1", NodeState::Rebooting)]);
    assert_eq!(super::next(&record, Some(&works), week), []);
    let said = view(&record, Some(&works), week).remove(0).detail.unwrap();
    assert_eq!(said, "waits: upgrade 3 is at work on cp1");
    let between = upgrade("running", &[("cp1", NodeState::Done), ("cp2", NodeState::Staged)]);
    record.members[2].renewal = record.members[1].renewal.clone();
    record.members[2].state = MemberState::Joined;
    assert_eq!(super::next(&record, Some(&between), week), [Turn::Order { member: 2 }], "the one that is away itself");
    record.members[2].renewal = None;
    record.members[2].certificates.clear();
    record.members[0].certificates.clear();
    assert_eq!(super::next(&record, Some(&between), week), []);
    assert_eq!(view(&record, Some(&between), week)[0].detail.as_deref(), Some("waits: cp3 is not Ready"));
    record.members[2].state = MemberState::Ready;
    assert_eq!(super::next(&record, Some(&between), week), order);
    // Hours are left.
    record.members[2].state = MemberState::Joined;
    assert_eq!(super::next(&record, Some(&works), NOW + Duration::days(363) + Duration::MINUTE), order);
}

#[test]
fn a_clock_that_is_set_back_ends_no_renewal_late() {
    let mut record = record(1);
    let year = Duration::days(365);
    request(&mut record, None, NOW).unwrap();
    order(&mut record, NOW + year);
    heard(&mut record.members[0], &KubeadmState::Done, NOW + year);
    assert!(matches!(next(&record, NOW)[..], [Turn::Failed { member: 0, .. }]));
    record.members[0].renewal.as_mut().unwrap().at = NOW + REPORT;
    assert_eq!(next(&record, NOW), [], "a little ahead is believed");
    order(&mut record, NOW + year);
    assert_eq!((state(&record, 0), next(&record, NOW)), (Some(RenewalState::Failed), vec![Turn::Order { member: 0 }]));
}

#[test]
fn a_node_without_such_certificates_is_refused() {
    let mut record = record(1);
    assert_eq!(request(&mut record, Some("x"), NOW), Err(Refused::Unknown("x".into())));
    assert_eq!(request(&mut record, Some("w1"), NOW), Err(Refused::Worker("w1".into())));
    record.members[0].state = MemberState::Joining;
    assert_eq!(request(&mut record, Some("cp1"), NOW), Err(Refused::NotIn("cp1".into())));
    assert_eq!(request(&mut record, None, NOW), Err(Refused::Nobody));
}

#[test]
fn a_record_from_before_renewals_reads() {
    let mut old = serde_json::to_value(record(1)).unwrap();
    for member in old["members"].as_array_mut().unwrap() {
        for field in ["certificates", "unreadable", "renewal"] {
            member.as_object_mut().unwrap().remove(field).unwrap();
        }
    }
    let read: Record = serde_json::from_value(old).unwrap();
    assert_eq!((read.members[0].certificates.len(), read.members[0].renewal.as_ref()), (0, None));
}

#[derive(Debug, Clone)]
enum Event {
    Asked(usize),
    Ends(usize, bool),
    Shows(usize),
    Moves(usize, MemberState),
    Days(i64),
}

fn events() -> impl Strategy<Value = Event> {
    let n = 0usize..3;
    let states = prop_oneof![Just(MemberState::Ready), Just(MemberState::Joined), Just(MemberState::Leaving)];
    prop_oneof![
        n.clone().prop_map(Event::Asked),
        (n.clone(), any::<bool>()).prop_map(|(n, well)| Event::Ends(n, well)),
        n.clone().prop_map(Event::Shows),
        (n, states).prop_map(|(n, state)| Event::Moves(n, state)),
        (0i64..200).prop_map(Event::Days),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// In every life: one at a time, no member loses its state, the plan orders no join, and when things go well at
    /// last, every certificate is far from its end.
    #[test]
    fn one_at_a_time_and_all_of_them_at_last(lives in proptest::collection::vec(events(), 0..60)) {
        let (mut record, mut now, mut serial) = (record(3), NOW, 1u32);
        let turn = |record: &mut Record, now: OffsetDateTime| {
            let states: Vec<_> = record.members.iter().map(|m| m.state).collect();
            let orders = next(record, now).iter().filter(|t| matches!(t, Turn::Order { .. })).count();
            order(record, now);
            prop_assert!(orders <= 1);
            prop_assert!(record.members.iter().filter(|m| under_way(m)).count() <= 1);
            let after: Vec<_> = record.members.iter().map(|m| m.state).collect();
            prop_assert_eq!(states, after);
            let steps = plan::plan(record, Seen { machines: &[], nodes: Some(&[]), quorum: None, etcd: None, in_vain: &[], upgrade: None, now });
            let runs = steps.iter().any(|step| matches!(step, plan::Step::Run { .. }));
            prop_assert!(!runs, "{:?}", steps);
            Ok(())
        };
        let mut happens = |record: &mut Record, event: &Event, now: OffsetDateTime| match *event {
            Event::Asked(n) => drop(request(record, Some(&format!("cp{}", n + 1)), now)),
            Event::Ends(n, well) => {
                let member = &mut record.members[n];
                if member.run.is_some_and(|run| run.ended_at.is_none()) {
                    let failed = KubeadmState::Failed { step: "x".into(), reason: "y".into(), log_tail: String::new() };
                    heard(member, if well { &KubeadmState::Done } else { &failed }, now);
                }
            }
            Event::Shows(n) => {
                serial += 1;
                record.members[n].certificates = certificates(serial, now, Duration::days(365));
            }
            Event::Moves(n, state) => {
                if !under_way(&record.members[n]) {
                    record.members[n].state = state;
                }
            }
            Event::Days(_) => {}
        };
        for event in &lives {
            if let Event::Days(days) = event {
                now += Duration::days(*days);
            }
            happens(&mut record, event, now);
            turn(&mut record, now)?;
        }
        for n in 0..3 {
            happens(&mut record, &Event::Ends(n, true), now);
            if record.members[n].state == MemberState::Leaving {
                record.members[n].state = MemberState::Ready;
            }
            record.members[n].state = MemberState::Ready;
        }
        for round in 0..20 {
            // Time stands still at last: what became due with its last step has its turn as well.
            now += if round < 12 { Duration::DAY / 4 } else { Duration::ZERO };
            turn(&mut record, now)?;
            for n in 0..3 {
                if under_way(&record.members[n]) {
                    happens(&mut record, &Event::Ends(n, true), now);
                    happens(&mut record, &Event::Shows(n), now);
                }
            }
        }
        for member in record.members.iter().filter(|m| m.role == Role::ControlPlane) {
            prop_assert!(made(&member.certificates).all(|c| now < due(c.since, c.not_after)), "{:#?}", member);
        }
    }
}
