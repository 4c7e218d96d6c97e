//! What pruning promises, for any channel and whoever uses it.

use std::collections::BTreeSet;

use nkd_api::channel::Promoted;
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

use super::*;
use crate::content::graph::{self, Asker};

fn at(minutes: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::minutes(minutes)
}

fn commit(number: u32) -> String {
    format!("{number:064x}")
}

prop_compose! {
    fn any_release()(commit_number in 1..12_u32, barrier: bool, dead in proptest::bool::weighted(0.2), rollout_minutes in 0..200_u32)
        -> Release {
        Release {
            number: 0,
            version: String::new(),
            commit: commit(commit_number),
            reference: "lab/x86_64/stable".into(),
            kubernetes: None,
            notes: String::new(),
            published_at: at(0),
            signed_by: None,
            promoted_from: None,
            barrier,
            dead_end: dead.then(|| "it eats disks".to_owned()),
            rollout_minutes,
        }
    }
}

prop_compose! {
    fn any_channel()(mut releases in prop::collection::vec(any_release(), 0..14)) -> Channel {
        for (number, release) in (1..).zip(&mut releases) {
            (release.number, release.published_at) = (number, at(i64::from(number) * 50));
        }
        Channel { name: "stable".into(), profile: "lab".into(), architecture: "x86_64".into(), releases }
    }
}

prop_compose! {
    fn any_users()(
        machines in prop::collection::vec((0..20_u32, 1..14_u32), 0..5),
        upgrades in prop::collection::vec((0..20_u32, 1..14_u32), 0..3),
        polled in prop::collection::vec(1..14_u32, 0..3),
    ) -> Users {
        let named = |kind: &'static str| move |(name, number)| (format!("{kind}{name}"), commit(number));
        Users {
            machines: machines.into_iter().map(named("n")).collect(),
            upgrades: upgrades.into_iter().map(named("rack")).collect(),
            polled: polled.into_iter().map(|number| Polled { commit: commit(number), node: "z".into(), at: at(0) }).collect(),
        }
    }
}

/// Another channel, which was given some of the releases.
fn given(channel: &Channel, which: &[bool]) -> Channel {
    let releases = channel.releases.iter().zip(which).filter(|(_, given)| **given).map(|(release, _)| Release {
        promoted_from: Some(Promoted { channel: channel.name.clone(), release: release.number }),
        ..release.clone()
    });
    Channel { name: "edge".into(), releases: releases.collect(), ..channel.clone() }
}

fn pruned(channel: &Channel, plan: &[(&Release, Option<Needed>)]) -> Channel {
    let goes = |number| plan.iter().any(|(release, needed)| release.number == number && needed.is_none());
    let releases = channel.releases.iter().filter(|release| !goes(release.number)).cloned().collect();
    Channel { releases, ..channel.clone() }
}

proptest! {
    #[test]
    fn nothing_goes_that_somebody_needs(
        channel in any_channel(), users in any_users(), keep in 0..5_u32, which in prop::collection::vec(any::<bool>(), 14),
        minutes in 0..1500_i64, wariness in 0.0..1.0,
    ) {
        let other = given(&channel, &which);
        let plan = plan(&channel, keep, &[channel.clone(), other.clone()], &users);
        let after = pruned(&channel, &plan);
        prop_assert_eq!(after.newest(), channel.newest());
        let open = |channel: &Channel| channel.releases.iter().filter(|r| r.dead_end.is_none()).count();
        prop_assert!(open(&after) >= open(&channel).min(keep.max(1) as usize), "what may be gone to");
        for release in &channel.releases {
            let stays = after.release(release.number).is_some();
            prop_assert!(stays || !users.has(&release.commit), "somebody runs it, or goes there");
            prop_assert!(stays || users.polled.iter().all(|p| p.commit != release.commit), "somebody else runs it");
            let was_given = other.releases.iter().any(|r| r.promoted_from.as_ref().is_some_and(|f| f.release == release.number));
            prop_assert!(stays || !was_given, "a channel that it was promoted to has it");
        }
        // Whoever runs a release is led nowhere that the way did not lead before.
        let asker = Asker { node: None, wariness: Some(wariness) };
        for commit in users.machines.iter().map(|(_, commit)| commit).chain(users.polled.iter().map(|p| &p.commit)) {
            let none = BTreeSet::new();
            let before = graph::explain(&channel, &none, commit, &asker, at(minutes)).unwrap_or_default();
            for (release, closed) in graph::explain(&after, &none, commit, &asker, at(minutes)).unwrap_or_default() {
                let was = before.iter().find(|(r, _)| r.number == release.number).map(|(_, closed)| closed);
                let was_open = matches!(was, Some(None | Some(graph::Absent::Newer(_))));
                prop_assert!(closed.is_some() || was_open, "{:?} was {:?}", release, was);
            }
        }
        // Once more finds nothing more.
        let again = super::plan(&after, keep, &[after.clone(), other], &users);
        prop_assert!(again.iter().all(|(_, needed)| needed.is_some()));
    }

    #[test]
    fn what_nobody_needs_goes(channel in any_channel(), keep in 1..5_u32) {
        let all = [channel.clone()];
        let after = pruned(&channel, &plan(&channel, keep, &all, &Users::default()));
        let open = after.releases.iter().filter(|release| release.dead_end.is_none()).count();
        prop_assert!(open <= keep as usize);
    }
}

#[test]
fn a_commit_that_is_a_dead_end_by_its_last_release_stays_one() {
    let release = |number: u32, commit_number: u32| Release {
        number,
        version: String::new(),
        commit: commit(commit_number),
        reference: String::new(),
        kubernetes: None,
        notes: String::new(),
        published_at: at(0),
        signed_by: None,
        promoted_from: None,
        barrier: false,
        dead_end: None,
        rollout_minutes: 0,
    };
    let dead = Release { dead_end: Some("it eats disks".into()), ..release(2, 1) };
    let releases = vec![release(1, 1), dead, release(3, 3)];
    let channel = Channel { name: "stable".into(), profile: "lab".into(), architecture: "x86_64".into(), releases };
    let other = given(&channel, &[true]);
    let plan = plan(&channel, 1, &[channel.clone(), other], &Users::default());
    let needed: Vec<_> = plan.into_iter().map(|(release, needed)| (release.number, needed)).collect();
    let promoted = Needed::Promoted("edge".into(), 1);
    assert_eq!(needed, [(1, Some(promoted)), (2, Some(Needed::Again(1)))]);
}

#[test]
fn reasons_are_sentences() {
    let said = |needed: Needed| needed.to_string();
    assert_eq!(said(Needed::Runs("n1".into())), "n1 runs it");
    assert_eq!(said(Needed::RunMany("n1".into(), 2)), "n1 and 2 more run it");
    let polled = Needed::Polled { node: "z".into(), at: at(61) };
    assert_eq!(
        said(polled),
        "a system that asks for the graph (z) ran it on 1970-01-01 01:01 UTC: it may go seven days later"
    );
    assert_eq!(said(Needed::Barrier("n1".into(), 3)), "it is a barrier, and n1 runs release 3, which is older");
}
