//! Files that do not fit what the service has.

use nkd_api::cluster::Registry;
use nkd_api::machine::Identity;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::plan::tests::cluster;
use super::*;
use crate::machine::lifecycle::new_machine;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn image(name: &str, profile: &str, kubernetes: Option<&str>) -> Arc<Image> {
    Arc::new(Image {
        name: name.into(),
        profile: profile.into(),
        version: "1".into(),
        architecture: "x86_64".into(),
        artifacts: Vec::new(),
        imported_at: NOW,
        source: "test".into(),
        kubernetes: kubernetes.map(Into::into),
        signed_by: None,
    })
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|p| format!("{}: {}", p.path, p.message)).collect()
}

#[test]
fn a_version_needs_an_image_that_holds_it() {
    let mut file = cluster(1, 0);
    let problems = |file: &Cluster, images: &[Arc<Image>]| lines(&judge(file, images, &[], &[]).problems);
    let none = problems(&file, &[image("other", "lab", None), image("old", "nestos", Some("v1.19.0"))]);
    assert_eq!(none.len(), 1);
    assert!(none[0].starts_with("spec.kubernetes.version: no image of the profile nestos holds v1.20.2"), "{none:?}");
    assert_eq!(problems(&file, &[image("a", "nestos", Some("v1.20.2"))]), [""; 0]);
    let said = [image("a", "nestos", None), image("b", "nestos", Some("v1.20.2"))];
    assert_eq!(super::image(&file.spec, said.iter().map(AsRef::as_ref)).unwrap().name, "b");
    file.spec.os.image = Some("old".into());
    let images = [image("old", "lab", Some("v1.19.0"))];
    assert_eq!(
        problems(&file, &images),
        [
            "spec.os.image: old is of the profile lab, not nestos",
            "spec.kubernetes.version: the image old holds v1.19.0, not v1.20.2: `nkd image import SOURCE \
             --kubernetes v1.20.2`, and name that in spec.os.image"
        ]
    );
    assert!(problems(&file, &[])[0].starts_with("spec.os.image: there is no image old"));
}

#[test]
fn an_image_that_an_upgrade_has_left_behind_stands_in_the_way_of_nodes_that_join_alone() {
    let mut file = cluster(1, 1);
    file.spec.os.image = Some("old".into());
    file.spec.kubernetes.version = "v1.21.0".into();
    let images = [image("old", "nestos", Some("v1.20.2"))];
    let own = [Record::new(Uuid::from_u128(7), file.clone(), NOW)];
    let said = |file: &Cluster| {
        let found = judge(file, &images, &[], &own);
        (lines(&found.problems), lines(&found.warnings))
    };
    let text = "spec.kubernetes.version: the image old holds v1.20.2, not v1.21.0";
    let mut smaller = file.clone();
    smaller.spec.pools[1].machines.clear();
    for file in [&file, &smaller] {
        let (problems, warnings) = said(file);
        assert_eq!(problems, [""; 0]);
        assert!(warnings.iter().any(|line| line.starts_with(text)), "{warnings:?}");
    }
    let mut larger = file.clone();
    let more = PoolMachine { hostname: Some("w9".into()), ..PoolMachine::default() };
    larger.spec.pools[1].machines.push(more);
    // Another machine under the name of a node that is there joins as well.
    let mut other = file.clone();
    other.spec.pools[1].machines[0].mac = Some("52:54:00:00:00:aa".parse().unwrap());
    for file in [&larger, &other] {
        assert!(said(file).0[0].starts_with(text));
    }
}

#[test]
fn the_operators_image_is_asked_for_before_a_machine_is_powered_on() {
    let images = [image("a", "nestos", Some("v1.20.2"))];
    let mut file = cluster(1, 1);
    let warned = |file: &Cluster| {
        let found = judge(file, &images, &[], &[]);
        assert_eq!(lines(&found.problems), [""; 0]);
        lines(&found.warnings)
            .iter()
            .any(|line| line.starts_with("spec.housekeeper.enabled: nodes pull nkd.io/housekeeper:"))
    };
    assert!(!warned(&file));
    file.spec.housekeeper.enabled = true;
    assert!(warned(&file));
    file.spec.housekeeper.image = Some("registry.example/housekeeper:1".into());
    assert!(!warned(&file));
}

#[test]
fn names_addresses_and_machines_of_others_are_said() {
    let images = [image("a", "nestos", Some("v1.20.2"))];
    let file = cluster(1, 1);
    let mut other = cluster(1, 1);
    other.metadata.name = "rack8".into();
    let clusters = [Record::new(Uuid::from_u128(8), other, NOW)];
    let found = judge(&file, &images, &[], &clusters);
    let problems = lines(&found.problems);
    for wanted in [
        "spec.pools[0].machines[0]: this machine is w1 of the cluster rack8",
        "spec.pools[0].machines[0].hostname: w1 is the name of a node of the cluster rack8",
        "spec.pools[1].machines[0]: this machine is cp1 of the cluster rack8",
    ] {
        assert!(problems.iter().any(|p| p == wanted), "{wanted}: {problems:?}");
    }
    // The same file again is about the same cluster.
    let own = [Record::new(Uuid::from_u128(7), file.clone(), NOW)];
    assert_eq!(judge(&file, &images, &[], &own).problems, []);
    // A declared machine with the name of a node, and another MAC.
    let identity = Identity { macs: vec!["52:54:00:00:00:aa".parse().unwrap()], ..Identity::default() };
    let mut machine = new_machine(Uuid::from_u128(1), identity, NOW);
    machine.name = "w1".into();
    let problems = lines(&judge(&file, &images, &[machine.clone()], &[]).problems);
    assert!(problems[0].contains("w1 is the name of another machine (52:54:00:00:00:aa)"), "{problems:?}");
    // The machine itself may have the name.
    machine.identity.macs = file.spec.pools[0].machines[0].mac.into_iter().collect();
    assert_eq!(judge(&file, &images, &[machine], &[]).problems, []);
}

#[test]
fn a_counted_pool_says_how_many_machines_are_there_to_take() {
    let images = [image("a", "nestos", Some("v1.20.2"))];
    let mut file = cluster(1, 0);
    file.spec.pools[0].count = Some(2);
    let warnings = lines(&judge(&file, &images, &[], &[]).warnings);
    assert_eq!(
        warnings,
        [
            "spec.pools[0].count: 2 machines are to be taken, and 0 of those that are accepted fit now: it waits for more"
        ]
    );
}

#[test]
fn a_channel_of_another_profile_and_one_that_is_not_there_are_said() {
    let spec = cluster(1, 0).spec;
    let channel = |profile: &str| Channel {
        name: "stable".into(),
        profile: profile.into(),
        architecture: "x86_64".into(),
        releases: Vec::new(),
    };
    let judged = |channel: Option<&Channel>| {
        let mut found = Prechecked::default();
        judge_channel(&spec, "stable", channel, &mut found);
        assert_eq!(lines(&found.problems), [""; 0], "the cluster itself does without");
        lines(&found.warnings).concat()
    };
    assert_eq!(judged(Some(&channel(&spec.os.profile))), "");
    let other = judged(Some(&channel("fedora-coreos")));
    assert!(other.contains("the channel `stable` is of fedora-coreos, and the cluster of nestos"), "{other}");
    let none = judged(None);
    assert!(none.contains("`nkd channel publish stable` makes it"), "{none}");
}

#[test]
fn nodes_find_the_operators_image_in_our_registry_unless_their_runtime_or_file_says_otherwise() {
    let mut spec = cluster(1, 0).spec;
    for (runtime, anonymous, found) in [
        (Runtime::Containerd, false, true),
        (Runtime::Crio, true, true),
        (Runtime::Crio, false, false),
        (Runtime::Docker, true, false),
        (Runtime::Isulad, true, false),
    ] {
        spec.kubernetes.runtime = runtime;
        assert_eq!(finds_ours(&spec, anonymous), found, "{runtime:?}");
    }
    spec.kubernetes.runtime = Runtime::Containerd;
    let own = Registry { host: OWN_HOST.into(), mirrors: vec!["https://mirror.example".into()], ca: None };
    spec.kubernetes.registries.push(own);
    assert!(!finds_ours(&spec, true));
}
