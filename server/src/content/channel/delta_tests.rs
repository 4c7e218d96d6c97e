//! From where differences are made.

use nkd_api::channel::Release;
use nkd_api::facts::Facts;
use uuid::Uuid;

use super::*;
use crate::machine::lifecycle::new_machine;

fn channel(commits: &[&str]) -> Channel {
    let release = |(number, commit): (u32, &&str)| Release {
        number,
        version: number.to_string(),
        commit: (*commit).to_owned(),
        reference: String::new(),
        kubernetes: None,
        notes: String::new(),
        published_at: OffsetDateTime::UNIX_EPOCH,
        signed_by: None,
        promoted_from: None,
        barrier: false,
        dead_end: None,
        rollout_minutes: 0,
    };
    let releases = (1..).zip(commits).map(release).collect();
    Channel { name: "stable".into(), profile: "lab".into(), architecture: "x86_64".into(), releases }
}

fn machines(runs: &[(&str, usize)], architecture: &str) -> Vec<Machine> {
    let machine = |commit: &str| {
        let mut machine = new_machine(Uuid::nil(), nkd_api::machine::Identity::default(), OffsetDateTime::UNIX_EPOCH);
        let (architecture, booted_deployment) = (architecture.to_owned(), Some(commit.to_owned()));
        machine.facts = Some(Facts { architecture, booted_deployment, ..Facts::default() });
        machine
    };
    runs.iter().flat_map(|(commit, count)| (0..*count).map(move |_| machine(commit))).collect()
}

#[test]
fn the_commonest_come_first_and_the_release_before_last() {
    let channel = channel(&["a", "b", "c", "d", "e", "f", "new"]);
    let runs = machines(&[("a", 1), ("b", 5), ("c", 2), ("d", 3), ("other", 4), ("new", 9)], "x86_64");
    assert_eq!(origins(&channel, &runs, &[]), ["b", "other", "d", "c", "f"]);
    assert_eq!(origins(&channel, &machines(&[("f", 1)], "x86_64"), &[]), ["f"], "once");
    assert_eq!(origins(&channel, &machines(&[("b", 5)], "aarch64"), &[]), ["f"], "of another architecture");
}

#[test]
fn whoever_only_asks_for_the_graph_comes_after_every_machine() {
    let channel = channel(&["a", "b", "c", "d", "new"]);
    let polled = |commit: &str| Polled { commit: commit.into(), node: String::new(), at: OffsetDateTime::UNIX_EPOCH };
    let polled = ["a", "c", "new"].map(polled);
    assert_eq!(origins(&channel, &[], &polled), ["a", "c", "d"]);
    let runs = machines(&[("b", 2), ("c", 1)], "x86_64");
    assert_eq!(origins(&channel, &runs, &polled), ["b", "c", "a", "d"]);
    assert_eq!(origins(&channel, &machines(&[("d", 1)], "x86_64"), &polled), ["d", "a", "c"]);
}

#[test]
fn nobody_goes_to_a_dead_end() {
    let mut channel = channel(&["a", "b"]);
    channel.releases[1].dead_end = Some("it eats disks".into());
    assert_eq!(origins(&channel, &machines(&[("a", 5)], "x86_64"), &[]), [""; 0]);
}
