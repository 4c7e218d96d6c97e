//! Files that are applied to a cluster that is there.

use nkd_api::cluster::{Pool, Role, Runtime};
use nkd_api::update::MaxUnavailable;
use proptest::prelude::*;
use uuid::Uuid;

use super::super::plan::tests::{cluster, pool};
use super::*;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn record(cluster: Cluster) -> Record {
    let mut record = Record::new(Uuid::from_u128(1), cluster, NOW);
    for (n, member) in record.members.iter_mut().enumerate() {
        member.machine = Some(Uuid::from_u128(100 + n as u128));
        (member.state, member.generation) = (MemberState::Ready, Some(1));
    }
    record.applied = plan::addons(&record);
    record
}

fn names(record: &Record, wanted: impl Fn(&MemberRecord) -> bool) -> Vec<&str> {
    record.members.iter().filter(|m| wanted(m)).map(|m| m.hostname.as_str()).collect()
}

#[test]
fn the_same_file_changes_nothing() {
    let record = record(cluster(3, 2));
    let changed = change(&record, record.cluster.clone(), NOW).unwrap();
    assert_eq!(changed.record, record);
    assert!(changed.changes.is_empty() && changed.joining.is_empty() && changed.leaving.is_empty());
}

#[test]
fn a_machine_is_put_in_another_one_taken_out_and_the_rest_stays_as_it_is() {
    let record = record(cluster(1, 3));
    let mut new = record.cluster.clone();
    let workers = new.spec.pools.iter_mut().find(|pool| pool.name == "w").unwrap();
    workers.machines.remove(0);
    workers.machines.extend(pool("x", Role::Worker, 200, 1).machines);
    let changed = change(&record, new, NOW).unwrap();
    assert_eq!((changed.joining, changed.leaving), (vec!["x1".to_owned()], vec!["w1".to_owned()]));
    assert_eq!(names(&changed.record, |m| m.state == MemberState::Ready), ["cp1", "w2", "w3"]);
    assert_eq!(names(&changed.record, |m| m.leaving.is_some_and(|l| l.then == Then::Gone)), ["w1"]);
    // Before it has left, its machine may not come back under the same name; afterwards it is a new one.
    let again = change(&changed.record, record.cluster.clone(), NOW).unwrap();
    assert_eq!(again.joining, ["w1"]);
    assert_eq!(names(&again.record, |m| m.hostname == "w1").len(), 2);
}

#[test]
fn a_counted_pool_shrinks_from_its_end() {
    let mut file = cluster(1, 0);
    let counted = Pool { count: Some(3), ..pool("w", Role::Worker, 0, 0) };
    file.spec.pools = vec![file.spec.pools[1].clone(), counted];
    let record = record(file);
    let mut new = record.cluster.clone();
    new.spec.pools[1].count = Some(1);
    let changed = change(&record, new.clone(), NOW).unwrap();
    assert_eq!(changed.leaving, ["rack7-w-2", "rack7-w-3"]);
    new.spec.pools[1].count = Some(4);
    assert_eq!(change(&record, new, NOW).unwrap().joining, ["rack7-w-4"]);
}

#[test]
fn what_a_cluster_is_made_with_once_is_refused_at_once_and_together() {
    let record = record(cluster(1, 1));
    let mut new = record.cluster.clone();
    new.spec.kubernetes.version = "v1.21.0".into();
    new.spec.kubernetes.pod_subnet = "10.9.0.0/16".into();
    new.spec.kubernetes.runtime = Runtime::Crio;
    new.spec.endpoint = Some("api.example:6443".into());
    new.spec.pools[0].machines[0].hostname = Some("other".into());
    let problems = change(&record, new, NOW).unwrap_err();
    let paths: Vec<&str> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "spec.kubernetes.version",
            "spec.kubernetes.podSubnet",
            "spec.kubernetes.runtime",
            "spec.endpoint",
            "spec.pools[name=w]"
        ]
    );
    let mut going = record;
    destroy(&mut going, false, NOW);
    let file = going.cluster.clone();
    assert!(change(&going, file, NOW).unwrap_err()[0].message.contains("destroyed"));
}

#[test]
fn an_add_on_that_changed_is_applied_again_and_no_other() {
    let record = record(cluster(1, 1));
    let mut new = record.cluster.clone();
    new.spec.hooks.after[0] = Source::Inline { inline: "kind: Other".into() };
    new.spec.kubernetes.kubelet.extra_args.insert("v".into(), "4".into());
    let changed = change(&record, new, NOW).unwrap();
    assert_eq!(changed.record.applied, [CNI]);
    assert_eq!(changed.warnings.len(), 1);
    assert_eq!(changed.warnings[0].path, "spec.kubernetes.kubelet");
}

proptest! {
    /// Whatever file follows whatever file: every machine of the new file is a member that stays, nobody else is, nobody is
    /// a member twice, and members that stay keep their machines.
    #[test]
    fn members_are_those_of_the_file(sizes in proptest::collection::vec((1u8..4, 0u8..5), 1..6)) {
        let mut now = record(cluster(1, 1));
        for (control_planes, workers) in sizes {
            let before = now.clone();
            let changed = change(&now, cluster(control_planes, workers), NOW).unwrap();
            now = changed.record;
            let mut stay = names(&now, |m| m.leaving.is_none());
            let wanted = members(&now.cluster);
            let mut expected: Vec<&str> = wanted.iter().map(|m| m.hostname.as_str()).collect();
            stay.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(stay, expected);
            for member in before.members.iter().filter(|m| m.machine.is_some()) {
                let same = now.members.iter().filter(|m| m.machine == member.machine).count();
                prop_assert_eq!(same, 1, "{} is lost or doubled", member.hostname);
            }
            let (joined, left) = (changed.joining.len(), changed.leaving.len());
            prop_assert_eq!(now.members.len(), before.members.len() + joined);
            prop_assert!(left <= before.members.len());
        }
    }
}

#[test]
fn the_operator_is_deployed_when_it_is_asked_for_and_again_with_another_image() {
    let without = record(cluster(1, 1));
    let mut new = without.cluster.clone();
    new.spec.housekeeper.enabled = true;
    let with = change(&without, new.clone(), NOW).unwrap().record;
    assert_eq!(plan::addons(&with).last().map(String::as_str), Some(housekeeper::ADDON.as_str()));
    assert!(!plan::is_complete(&with), "it is to be applied");
    let with = record(new.clone());
    let mut of_before = with.clone();
    for addon in of_before.applied.iter_mut().filter(|addon| housekeeper::is_addon(addon)) {
        *addon = "housekeeper-0.1.0".into();
    }
    assert!(plan::is_complete(&with) && !plan::is_complete(&of_before), "a newer service applies its own");
    let missing = |new: Cluster| {
        let changed = change(&with, new, NOW).unwrap();
        let warned: Vec<String> = changed.warnings.into_iter().map(|w| w.path).collect();
        (!changed.record.applied.iter().any(|addon| housekeeper::is_addon(addon)), warned)
    };
    new.spec.housekeeper.max_unavailable = MaxUnavailable::Count(2);
    assert_eq!(missing(new.clone()), (false, Vec::new()), "that is for upgrades");
    new.spec.housekeeper.image = Some("registry.example/housekeeper:1".into());
    assert_eq!(missing(new.clone()), (true, Vec::new()));
    new.spec.housekeeper.enabled = false;
    assert_eq!(missing(new).1, ["spec.housekeeper.enabled"]);
}
