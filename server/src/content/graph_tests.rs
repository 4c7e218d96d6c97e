//! What the graph promises, for any channel and anybody who asks.

use proptest::prelude::*;
use time::Duration;

use super::*;

fn at(minutes: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::minutes(minutes)
}

fn release(number: u32) -> Release {
    Release {
        number,
        version: number.to_string(),
        commit: format!("{number:064x}"),
        reference: "lab/x86_64/stable".into(),
        kubernetes: None,
        notes: String::new(),
        published_at: at(i64::from(number) * 1000),
        signed_by: None,
        promoted_from: None,
        barrier: false,
        dead_end: None,
        rollout_minutes: 0,
    }
}

fn channel(releases: Vec<Release>) -> Channel {
    Channel { name: "stable".into(), profile: "lab".into(), architecture: "x86_64".into(), releases }
}

prop_compose! {
    fn any_release()(commit in 1..9_u32, barrier: bool, dead in proptest::bool::weighted(0.2), minutes in 0..200_u32)
        -> Release {
        let dead_end = dead.then(|| "it eats disks".to_owned());
        Release { barrier, dead_end, rollout_minutes: minutes, ..release(commit) }
    }
}

prop_compose! {
    fn any_channel()(mut releases in prop::collection::vec(any_release(), 0..12)) -> Channel {
        for (number, release) in (1..).zip(&mut releases) {
            (release.number, release.published_at) = (number, at(i64::from(number) * 50));
        }
        channel(releases)
    }
}

/// Commits that are not here.
fn any_missing() -> impl Strategy<Value = BTreeSet<String>> {
    prop::collection::btree_set((1..9_u32).prop_map(|commit| format!("{commit:064x}")), 0..4)
}

fn any_asker() -> impl Strategy<Value = (Option<String>, Option<f64>)> {
    (prop::option::of("[a-f0-9]{8}"), prop::option::of(0.0..1.0))
}

proptest! {
    #[test]
    fn edges_are_as_promised(
        channel in any_channel(),
        missing in any_missing(),
        (node, wariness) in any_asker(),
        minutes in 0..1500_i64,
    ) {
        let asker = Asker { node: node.as_deref(), wariness };
        let Graph { nodes, edges } = graph(&channel, &missing, &asker, at(minutes));
        let releases = distinct(&channel);
        prop_assert_eq!(nodes.len(), releases.len());
        for (age, node) in nodes.iter().enumerate() {
            prop_assert_eq!(&node.metadata["org.fedoraproject.coreos.releases.age_index"], &age.to_string());
            let same = nodes.iter().filter(|other| other.payload == node.payload).count();
            prop_assert_eq!(same, 1, "a client that finds its payload twice stops");
        }
        for (from, to) in &edges {
            prop_assert!(from < to);
            prop_assert!(releases[*from].dead_end.is_none() && releases[*to].dead_end.is_none());
            prop_assert!(!missing.contains(&releases[*to].commit), "nobody could fetch it");
            let skipped = &releases[from + 1..*to];
            prop_assert!(skipped.iter().all(|release| !release.barrier || release.dead_end.is_some()));
            prop_assert_eq!(edges.iter().filter(|(other, _)| other == from).count(), 1);
        }
    }

    #[test]
    fn every_absent_edge_has_its_reason(
        channel in any_channel(),
        missing in any_missing(),
        (node, wariness) in any_asker(),
        minutes in 0..1500_i64,
    ) {
        let asker = Asker { node: node.as_deref(), wariness };
        let Graph { nodes, edges } = graph(&channel, &missing, &asker, at(minutes));
        for (from, node) in nodes.iter().enumerate() {
            let explained = explain(&channel, &missing, &node.payload, &asker, at(minutes)).unwrap();
            prop_assert_eq!(explained.len(), nodes.len() - from - 1);
            for (to, (release, absent)) in (from + 1..).zip(explained) {
                prop_assert_eq!(&release.commit, &nodes[to].payload);
                prop_assert_eq!(absent.is_none(), edges.contains(&(from, to)), "{:?}", absent);
            }
        }
        prop_assert_eq!(explain(&channel, &missing, "unknown", &asker, at(minutes)), None);
    }

    #[test]
    fn a_rollout_never_goes_back(minutes in 0..200_u32, node in "[a-f0-9]{8}", early in 0..300_i64, later in 0..300_i64) {
        let slow = Release { rollout_minutes: minutes, ..release(2) };
        let channel = channel(vec![release(1), slow]);
        let asker = Asker { node: Some(&node), wariness: None };
        let open = |after: i64| !graph(&channel, &BTreeSet::new(), &asker, at(2000 + after)).edges.is_empty();
        prop_assert!(!open(early) || open(early + later));
        prop_assert!(open(i64::from(minutes)), "in the end everybody may");
    }
}

#[test]
fn a_rollout_lets_nodes_in_evenly_and_not_always_the_same_first() {
    let slow = |number| Release { rollout_minutes: 100, ..release(number) };
    let first = |number: u32| -> Vec<bool> {
        let channel = channel(vec![release(1), slow(number)]);
        let open = |node: u32| {
            let name = format!("{node:032x}");
            let asker = Asker { node: Some(&name), wariness: None };
            !graph(&channel, &BTreeSet::new(), &asker, at(i64::from(number) * 1000 + 30)).edges.is_empty()
        };
        (0..1000).map(open).collect()
    };
    let (two, three) = (first(2), first(3));
    let count = |open: &[bool]| open.iter().filter(|open| **open).count();
    assert!((250..350).contains(&count(&two)), "{}", count(&two));
    let both = two.iter().zip(&three).filter(|(a, b)| **a && **b).count();
    assert!((50..140).contains(&both), "{both}: who is first once is no more often first again");
}

#[test]
fn reasons_are_sentences() {
    let barrier = Release { barrier: true, ..release(2) };
    let dead = Release { dead_end: Some("it eats disks".into()), ..release(3) };
    let slow = Release { rollout_minutes: 100, ..release(4) };
    let all = channel(vec![release(1), barrier, dead, slow]);
    let asker = Asker { node: None, wariness: Some(0.8) };
    let mut missing = BTreeSet::new();
    let said = |missing: &BTreeSet<String>, from: u32, after: i64| -> Vec<String> {
        let explained = explain(&all, missing, &format!("{from:064x}"), &asker, at(4000 + after)).unwrap();
        explained.into_iter().map(|(_, absent)| absent.map_or("open".into(), |a| a.to_string())).collect()
    };
    assert_eq!(
        said(&missing, 1, 50),
        ["open", "it is a dead end: it eats disks", "release 2 is a barrier and comes first"]
    );
    assert_eq!(said(&missing, 2, 50)[1], "its rollout has reached 50 % of the nodes, and this one comes at 80 %");
    assert_eq!(said(&missing, 2, 80)[1], "open");
    assert_eq!(said(&missing, 3, 80), ["release 3 is a dead end: it eats disks"]);
    missing.insert(format!("{:064x}", 4));
    assert_eq!(said(&missing, 2, 80)[1], "its commit is not here: publish it again");
}
