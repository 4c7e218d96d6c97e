//! Updates in clusters where everything goes wrong in every order, and what holds all the same.

use std::collections::BTreeMap;

use nkd_api::update::{
    Drain, MaxUnavailable, NodeStatus, OsRelease, Phase, Release, Strategy as Care, UpdateSpec, UpdateStatus, Window,
};
use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::budget::PodSeen;
use crate::seen::PodsSeen;
use crate::turn::{orphans, turns};
use crate::wish::{Hours, Source};

/// A Friday.
const START: OffsetDateTime = datetime!(2026-01-02 22:00 UTC);

fn release(number: u32) -> Release {
    let os = Some(OsRelease { commit: Some(format!("commit-{number}")), ..OsRelease::default() });
    Release { name: number.to_string(), os, kubernetes: Some(format!("v1.{}.0", 20 + number)) }
}

fn wish(uid: &str, spec: UpdateSpec) -> Wish {
    let hours = spec.window.as_ref().map(|window| Hours::read(window).unwrap());
    Wish {
        source: Source::Ours,
        namespace: None,
        name: format!("update-{uid}"),
        uid: uid.into(),
        generation: 1,
        created: START,
        spec,
        hours,
        problem: None,
        status: UpdateStatus::default(),
    }
}

fn node(name: &str) -> NodeSeen {
    let control_plane = name.starts_with("cp");
    let labels = BTreeMap::from([("pool".to_owned(), name[..1].to_owned())]);
    NodeSeen { name: name.into(), control_plane, labels, ready: true, kubelet: "v1.20.0".into(), ..NodeSeen::default() }
}

fn pod(name: &str) -> PodSeen {
    let name = name.to_owned();
    PodSeen { namespace: "default".into(), uid: name.clone(), name, labels: BTreeMap::new(), ending: false }
}

/// What an administrator has done, and what only the machine knows.
#[derive(Debug, Clone, Default)]
struct Beneath {
    cordoned_by_hand: bool,
    pods: Vec<PodSeen>,
    obstacles: Vec<String>,
    runs: u32,
    /// Its agent does nothing and says nothing.
    silent: bool,
}

/// A cluster with agents that do what they are told, or do not.
#[derive(Debug)]
struct World {
    nodes: Vec<NodeSeen>,
    beneath: BTreeMap<String, Beneath>,
    wishes: Vec<Wish>,
    now: OffsetDateTime,
    own_node: Option<String>,
    made: u32,
    /// What was written, in order: node and reason.
    written: Vec<(String, &'static str)>,
}

impl World {
    fn of(names: &[&str]) -> Self {
        let mut world = Self {
            nodes: Vec::new(),
            beneath: BTreeMap::new(),
            wishes: Vec::new(),
            now: START,
            own_node: None,
            made: 0,
            written: Vec::new(),
        };
        names.iter().for_each(|name| world.join(name));
        world
    }

    fn join(&mut self, name: &str) {
        if self.nodes.iter().all(|node| node.name != name) {
            self.nodes.push(node(name));
            self.beneath.insert(name.into(), Beneath { pods: vec![pod(name)], ..Beneath::default() });
        }
    }

    fn ask(&mut self, spec: UpdateSpec) {
        self.made += 1;
        let mut wish = wish(&self.made.to_string(), spec);
        wish.created = START + Duration::seconds(self.made.into());
        self.wishes.push(wish);
    }

    fn edit(&mut self, index: usize, change: impl FnOnce(&mut UpdateSpec)) {
        if let Some(wish) = self.wishes.get_mut(index) {
            change(&mut wish.spec);
            wish.hours = wish.spec.window.as_ref().map(|window| Hours::read(window).unwrap());
            wish.generation += 1;
        }
    }

    fn get(&self, name: &str) -> &NodeSeen {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut NodeSeen> {
        self.nodes.iter_mut().find(|node| node.name == name)
    }

    fn told(&self, index: usize, name: &str) -> &NodeStatus {
        self.wishes[index].status.nodes.iter().find(|node| node.name == name).unwrap()
    }

    fn phase(&self, index: usize) -> Phase {
        self.wishes[index].status.phase
    }

    /// One look of an operator, which is killed after so many steps.
    fn look(&mut self, mut patience: usize) {
        let mut seen = Seen { nodes: self.nodes.clone(), own_node: self.own_node.clone(), ahead: None };
        for node in &mut seen.nodes {
            node.waited = node.note.as_ref().map(|note| self.now - note.since).unwrap_or_default();
        }
        let wishes = self.wishes.clone();
        for (wish, ahead) in turns(&wishes, &self.nodes) {
            seen.ahead = ahead;
            let steps = loop {
                let steps = plan(wish, &seen, self.now);
                let wanted: Vec<&String> = steps
                    .iter()
                    .filter_map(|s| if let Step::Inspect { node } = s { Some(node) } else { None })
                    .collect();
                if wanted.is_empty() {
                    break steps;
                }
                for name in wanted {
                    let beneath = &self.beneath[name];
                    let pods = PodsSeen { leaving: beneath.pods.clone(), obstacles: beneath.obstacles.clone() };
                    seen.nodes.iter_mut().find(|node| node.name == *name).unwrap().pods = Some(pods);
                }
            };
            for step in steps {
                if patience == 0 {
                    return;
                }
                patience -= 1;
                self.apply(&wish.uid, step);
            }
        }
        seen.ahead = None;
        for step in orphans(&seen, &wishes) {
            self.apply("", step);
        }
    }

    fn apply(&mut self, uid: &str, step: Step) {
        match step {
            Step::Inspect { .. } => unreachable!("answered before"),
            Step::Tell(status) if status_text(&status).contains("\"\"") => panic!("an empty text: {status:#?}"),
            Step::Tell(status) => self.wishes.iter_mut().find(|wish| wish.uid == uid).unwrap().status = *status,
            Step::Evict { node, pods } => {
                let beneath = self.beneath.get_mut(&node).unwrap();
                assert!(pods.iter().all(|pod| !pod.ending), "asked once");
                if beneath.obstacles.is_empty() {
                    beneath.pods.iter_mut().for_each(|pod| pod.ending = true);
                }
            }
            Step::Delete { node, at_once, .. } => {
                let pods = &mut self.beneath.get_mut(&node).unwrap().pods;
                if at_once { pods.clear() } else { pods.iter_mut().for_each(|pod| pod.ending = true) }
            }
            Step::Write { node, change, reason, .. } => self.write(uid, &node, *change, reason),
        }
    }

    #[track_caller]
    fn write(&mut self, uid: &str, name: &str, change: Change, reason: &'static str) {
        let before = self.get(name).clone();
        let wish = self.wishes.iter().find(|wish| wish.uid == uid).cloned();
        let goes = matches!(&change.desired, Some(Some(desired)) if desired.go);
        let (begins, opens) = (reason == "Draining", change.cordon == Some(false));
        self.written.push((name.to_owned(), reason));
        let node = self.get_mut(name).unwrap();
        node.unschedulable = change.cordon.unwrap_or(node.unschedulable);
        if let Some(by) = change.cordoned_by {
            node.cordoned_by = by;
        }
        if let Some(desired) = change.desired {
            node.desired = desired;
        }
        if let Some(note) = change.note {
            node.note = note;
        }
        let hand = self.beneath[name].cordoned_by_hand;
        assert!(!hand || self.get(name).unschedulable, "{name}: an administrator's cordon was undone");
        assert!(!opens || before.cordoned_by.is_some(), "{name}: opened, and closed by somebody else");
        assert!(!opens || !before.is_lost(), "{name}: opened, and nobody knows what it runs");
        if begins {
            self.check_begin(&wish.clone().unwrap(), &before);
        }
        if goes {
            self.check_go(&wish.unwrap(), &before);
        }
    }

    fn chosen<'a>(&'a self, wish: &'a Wish) -> impl Iterator<Item = &'a NodeSeen> {
        let fits = |node: &&NodeSeen| wish.spec.node_selector.iter().all(|(k, v)| node.labels.get(k) == Some(v));
        self.nodes.iter().filter(fits)
    }

    fn is_done(&self, wish: &Wish, node: &NodeSeen) -> bool {
        let told = node.desired.as_ref().is_some_and(|d| d.uid == wish.uid && d.os == wish.spec.release.os);
        told && node.note.as_ref().is_some_and(|note| note.uid == wish.uid && note.state == NoteState::Done)
    }

    fn check_begin(&self, wish: &Wish, before: &NodeSeen) {
        let spec = &wish.spec;
        assert!(!spec.paused && !spec.abort, "{}: began while it was told not to", before.name);
        assert!(wish.hours.as_ref().is_none_or(|hours| hours.is_open(self.now)), "{}: began outside", before.name);
        let limit = spec.max_unavailable.of(self.chosen(wish).count());
        let chosen: Vec<&String> = self.chosen(wish).map(|node| &node.name).collect();
        let away = self.nodes.iter().filter(|n| n.held() || (!n.ready && chosen.contains(&&n.name))).count();
        assert!(away <= limit || before.held(), "{away} nodes are away, and {limit} may be: {self:#?}");
        assert!(self.nodes.iter().filter(|node| node.busy_for().is_some()).count() <= limit.max(1));
        let gave_up = |node: &NodeSeen| {
            node.is_silent() && node.note.as_ref().is_some_and(|n| n.uid == wish.uid && n.retry >= spec.retry)
        };
        let failed = self.chosen(wish).filter(|node| {
            let note = node.note.as_ref().filter(|note| note.uid == wish.uid && note.state == NoteState::Failed);
            let fits = node.desired.as_ref().is_some_and(|d| d.uid == wish.uid && d.os == spec.release.os);
            fits && (note.is_some_and(|note| note.retry >= spec.retry) || gave_up(node))
        });
        assert!(failed.count() < spec.strategy.halt_after_failures.max(1) as usize, "began after too many failures");
        let older = |other: &&Wish| other.order() < wish.order() && !other.is_finished(&self.wishes);
        assert!(self.wishes.iter().find(older).is_none(), "{}: an older update goes first", before.name);
        let mut planes = self.nodes.iter().filter(|node| node.control_plane && node.name != before.name);
        if before.control_plane {
            assert!(planes.all(|n| n.ready && !n.may_move()), "{}: etcd's majority", before.name);
        } else {
            let mut planes = self.chosen(wish).filter(|node| node.control_plane);
            assert!(planes.all(|node| self.is_done(wish, node)), "{}: before a control plane", before.name);
        }
    }

    fn check_go(&self, wish: &Wish, before: &NodeSeen) {
        let name = &before.name;
        assert!(self.beneath[name].pods.is_empty(), "{name}: upgrades with pods on it");
        let mut planes = self.nodes.iter().filter(|node| node.control_plane && node.name != *name);
        assert!(!before.control_plane || planes.all(|n| n.ready && !n.may_move()), "{name}: etcd's majority");
        let first = |node: &&NodeSeen| {
            node.desired.as_ref().is_some_and(|d| d.uid == wish.uid && d.os == wish.spec.release.os && d.first)
        };
        let firsts: Vec<&NodeSeen> = self.nodes.iter().filter(first).collect();
        assert!(firsts.len() <= 1 && firsts.iter().all(|node| node.control_plane), "{firsts:#?}");
        let done = self.nodes.iter().any(|node| node.control_plane && self.is_done(wish, node));
        assert!(!before.control_plane || done || firsts.len() == 1, "{name}: nobody runs kubeadm upgrade apply");
    }

    /// An agent's next move. `luck`: 0 fails, 1 rolls back, else all is well.
    fn agent(&mut self, name: &str, luck: u8) {
        let Some(node) = self.get(name).desired.clone().map(|desired| (self.get(name).report().cloned(), desired))
        else {
            return;
        };
        let (said, desired) = node;
        let number = desired.os.as_ref().and_then(|os| os.commit.as_deref()?.strip_prefix("commit-")?.parse().ok());
        let wanted = number.unwrap_or_default();
        let state = said.map(|said| said.state);
        let beneath = self.beneath.get_mut(name).unwrap();
        if beneath.silent {
            return;
        }
        let next = match (state, desired.go, luck) {
            (Some(state), _, _) if state.is_end() => return,
            (None, _, _) => ReportedState::Staging,
            (Some(ReportedState::Staging), false, 0) => ReportedState::Failed,
            (Some(_), false, _) if beneath.runs == wanted => ReportedState::Healthy,
            (Some(_), false, _) => ReportedState::Staged,
            (Some(ReportedState::Staged | ReportedState::Staging), true, _) => ReportedState::Upgrading,
            (Some(ReportedState::Upgrading), true, 0) => ReportedState::Failed,
            (Some(ReportedState::Upgrading), true, _) => ReportedState::Rebooting,
            (Some(_), true, 1) => ReportedState::RolledBack,
            (Some(_), true, _) => ReportedState::Healthy,
        };
        if next == ReportedState::Healthy {
            beneath.runs = wanted;
        }
        let os = Some(format!("commit-{}", beneath.runs));
        let node = self.get_mut(name).unwrap();
        node.ready = next != ReportedState::Rebooting;
        let kubernetes = None;
        node.reported = Some(Reported {
            uid: desired.uid,
            attempt: desired.attempt,
            state: next,
            detail: String::new(),
            os,
            kubernetes,
        });
    }

    fn pods_end(&mut self) {
        self.beneath.values_mut().for_each(|beneath| beneath.pods.retain(|pod| !pod.ending));
    }

    /// Looks and moves until nothing changes any more.
    fn settle(&mut self) {
        for _ in 0..200 {
            let before = (self.nodes.clone(), self.wishes.clone());
            self.look(usize::MAX);
            self.pods_end();
            let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
            names.iter().for_each(|name| self.agent(name, 9));
            self.now += Duration::seconds(5);
            if before == (self.nodes.clone(), self.wishes.clone()) {
                return;
            }
        }
        panic!("it never ends: {self:#?}");
    }

    fn began(&self) -> Vec<&str> {
        self.written.iter().filter(|(_, reason)| *reason == "Draining").map(|(name, _)| name.as_str()).collect()
    }
}

fn status_text(status: &UpdateStatus) -> String {
    serde_json::to_string(status).unwrap()
}

fn spec(number: u32, max: u32) -> UpdateSpec {
    UpdateSpec { release: release(number), max_unavailable: MaxUnavailable::Count(max), ..UpdateSpec::default() }
}

#[test]
fn control_planes_go_first_one_by_one_and_the_own_node_last_of_its_role() {
    let mut world = World::of(&["w2", "w1", "cp1", "cp2", "cp3"]);
    world.own_node = Some("cp1".into());
    world.ask(spec(1, 3));
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert_eq!(world.began(), ["cp2", "cp3", "cp1", "w1", "w2"]);
    let first = |node: &NodeSeen| node.desired.as_ref().unwrap().first;
    let firsts: Vec<&str> = world.nodes.iter().filter(|n| first(n)).map(|n| n.name.as_str()).collect();
    assert_eq!(firsts, ["cp2"]);
    assert!(world.nodes.iter().all(|node| !node.unschedulable && node.cordoned_by.is_none()));
    let done = world.wishes[0].status.counts;
    assert_eq!((done.total, done.done, done.in_progress, done.unavailable), (5, 5, 0, 0));
    // It is finished: a node that joins later is not its business.
    world.join("w3");
    world.settle();
    assert!(world.get("w3").desired.is_none());
}

#[test]
fn a_budget_that_can_never_be_met_is_said_before_anything_is_cordoned() {
    let mut world = World::of(&["cp1", "w1", "w2"]);
    world.beneath.get_mut("w1").unwrap().obstacles.push("the disruption budget web never lets go".into());
    world.ask(spec(1, 1));
    world.settle();
    assert_eq!(world.began(), ["cp1", "w2"]);
    assert_eq!(world.told(0, "w1").state, NodeState::Blocked);
    assert!(world.told(0, "w1").reason.contains("budget web"));
    assert!(!world.get("w1").unschedulable);
    let degraded = &world.wishes[0].status.conditions[1];
    assert_eq!(
        (degraded.kind.as_str(), degraded.status.as_str(), degraded.reason.as_str()),
        ("Degraded", "True", "Blocked")
    );
    world.beneath.get_mut("w1").unwrap().obstacles.clear();
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

#[test]
fn a_drain_ends_within_its_limit_by_its_policy() {
    for policy in [DrainPolicy::Evict, DrainPolicy::Force] {
        let mut world = World::of(&["w1"]);
        let drain = Drain { timeout_seconds: 60, policy };
        world.ask(UpdateSpec { strategy: Care { drain, ..Care::default() }, ..spec(1, 1) });
        world.settle_until(|world| world.began() == ["w1"]);
        world.beneath.get_mut("w1").unwrap().obstacles.push("a budget that came later".into());
        world.settle_until(|world| world.now > START + Duration::seconds(300));
        world.settle();
        match policy {
            DrainPolicy::Evict => {
                assert_eq!(world.told(0, "w1").state, NodeState::Failed);
                assert!(world.told(0, "w1").reason.contains("default/w1 did not leave within 60 s"));
                assert!(!world.get("w1").unschedulable, "given back");
                assert_eq!(world.phase(0), Phase::Halted);
            }
            DrainPolicy::Force => assert_eq!(world.phase(0), Phase::Complete),
        }
    }
}

impl World {
    fn settle_until(&mut self, fits: impl Fn(&Self) -> bool) {
        for _ in 0..500 {
            if fits(self) {
                return;
            }
            self.look(usize::MAX);
            self.pods_end();
            let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
            names.iter().for_each(|name| self.agent(name, 9));
            self.now += Duration::seconds(5);
        }
        panic!("it never comes: {self:#?}");
    }
}

#[test]
fn after_too_many_failures_nothing_begins_until_somebody_says_so() {
    let mut world = World::of(&["w1", "w2", "w3", "w4"]);
    world.ask(spec(1, 1));
    for name in ["w1", "w2"] {
        world.settle_until(|world| world.get(name).report().is_some_and(|s| s.state == ReportedState::Rebooting));
        world.agent(name, 1);
    }
    world.settle();
    assert_eq!(world.began(), ["w1", "w2"]);
    assert_eq!(world.phase(0), Phase::Halted);
    assert!(world.wishes[0].status.conditions[0].message.contains("2 nodes have failed"));
    assert!(world.told(0, "w1").reason.contains("rolled back"));
    assert!(!world.get("w1").unschedulable, "it runs what it ran before");
    world.edit(0, |spec| spec.retry = 1);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert_eq!((world.told(0, "w1").attempt, world.told(0, "w3").attempt), (2, 1));
}

#[test]
fn a_node_that_broke_stays_closed_and_is_tried_again_in_its_place() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Upgrading));
    world.agent("w1", 0);
    world.settle();
    assert!(world.get("w1").unschedulable);
    assert_eq!((world.began(), world.phase(0)), (vec!["w1"], Phase::Halted), "the one that may be away is away");
    world.edit(0, |spec| spec.retry = 1);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert!(!world.get("w1").unschedulable);
}

#[test]
fn a_worker_that_broke_does_not_hold_up_a_control_plane_that_has_come_since() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Upgrading));
    world.agent("w1", 0);
    world.settle();
    world.join("cp1");
    world.settle();
    assert!(world.get("w1").unschedulable, "closed until somebody says that it is well again");
    world.edit(0, |spec| spec.retry = 1);
    world.settle();
    assert_eq!((world.began(), world.phase(0)), (vec!["w1", "cp1", "w1", "w2"], Phase::Complete));
    assert!(!world.get("w1").unschedulable);
}

#[test]
fn what_an_update_that_was_called_off_left_closed_does_not_hold_up_the_next_one() {
    let mut world = World::of(&["cp1", "w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Upgrading));
    world.agent("w1", 0);
    world.edit(0, |spec| spec.abort = true);
    world.settle();
    assert!(world.phase(0) == Phase::Aborted && world.get("w1").unschedulable);
    world.ask(spec(2, 1));
    world.settle();
    assert_eq!((world.began(), world.phase(1)), (vec!["cp1", "w1", "cp1", "w1", "w2"], Phase::Complete));
    assert!(world.nodes.iter().all(|node| !node.unschedulable));
}

#[test]
fn the_first_control_plane_has_to_end_what_it_began() {
    let mut world = World::of(&["cp1", "cp2", "cp3", "w1"]);
    world.ask(spec(1, 2));
    world.settle_until(|world| world.get("cp1").report().is_some_and(|s| s.state == ReportedState::Rebooting));
    world.agent("cp1", 1);
    world.settle();
    assert_eq!((world.began(), world.phase(0)), (vec!["cp1"], Phase::Halted));
    // Its machine is gone: another one is the first.
    world.nodes.retain(|node| node.name != "cp1");
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert!(world.get("cp2").desired.as_ref().unwrap().first);
    assert!(!world.get("cp3").desired.as_ref().unwrap().first);
}

#[test]
fn abort_gives_back_what_was_only_drained_and_lets_the_rest_end() {
    let mut world = World::of(&["w1", "w2", "w3"]);
    world.ask(spec(1, 2));
    world.settle_until(|world| world.get("w1").desired.as_ref().is_some_and(|desired| desired.go));
    let node = world.get_mut("w2").unwrap();
    node.desired.as_mut().unwrap().go = false;
    assert!(node.unschedulable);
    world.edit(0, |spec| spec.abort = true);
    world.look(usize::MAX);
    assert_eq!(world.phase(0), Phase::Aborting);
    assert!(!world.get("w2").unschedulable && world.get("w2").desired.is_none());
    assert!(world.get("w1").unschedulable);
    world.settle();
    assert_eq!(world.phase(0), Phase::Aborted);
    assert_eq!(world.beneath["w1"].runs, 1);
    assert!(world.nodes.iter().all(|node| !node.unschedulable) && world.get("w3").desired.is_none());
    // It may be taken up again.
    world.edit(0, |spec| spec.abort = false);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

impl World {
    fn silence(&mut self, name: &str, silent: bool) {
        self.beneath.get_mut(name).unwrap().silent = silent;
    }
}

#[test]
fn a_node_that_never_answers_is_given_up_and_others_go_on() {
    let mut world = World::of(&["cp1", "w1", "w2"]);
    world.silence("w1", true);
    world.ask(spec(1, 1));
    world.settle();
    assert_eq!((world.began(), world.told(0, "w1").state), (vec!["cp1", "w2"], NodeState::Staging));
    assert_eq!(world.told(0, "w1").reason, "its agent has not answered");
    world.now += Duration::minutes(15);
    world.settle();
    assert_eq!((world.told(0, "w1").state, world.phase(0)), (NodeState::Failed, Phase::Halted));
    let said = &world.wishes[0].status.conditions[1].message;
    assert!(said.contains("w1: its agent has not answered for 15 minutes"), "{said}");
    assert!(said.contains("`systemctl status nkd-updater` on it"), "{said}");
    assert!(!world.get("w1").unschedulable);
    // It is heard of: nobody has to ask for a retry.
    world.silence("w1", false);
    world.settle();
    assert_eq!((world.phase(0), world.told(0, "w1").attempt), (Phase::Complete, 1));
}

#[test]
fn nobody_is_given_up_where_that_is_not_wanted() {
    let mut world = World::of(&["w1"]);
    world.silence("w1", true);
    world.ask(UpdateSpec { strategy: Care { silent_seconds: 0, ..Care::default() }, ..spec(1, 1) });
    world.settle_for_good();
    assert_eq!(world.told(0, "w1").state, NodeState::Staging);
}

#[test]
fn one_that_takes_long_to_stage_is_told_and_waited_for() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.look(usize::MAX);
    world.agent("w1", 9);
    world.silence("w1", true);
    world.settle_for_good();
    assert_eq!((world.told(0, "w1").state, world.told(0, "w2").state), (NodeState::Staging, NodeState::Done));
    assert!(world.told(0, "w1").reason.contains("journalctl -u nkd-updater"), "{:?}", world.told(0, "w1"));
}

#[test]
fn a_node_that_falls_silent_on_its_way_stays_closed_and_is_taken_at_its_word_later() {
    for (state, word) in
        [(ReportedState::Staged, "has not answered for 45 minutes"), (ReportedState::Rebooting, "said `rebooting`")]
    {
        let mut world = World::of(&["cp1", "cp2", "w1"]);
        world.ask(spec(1, 2));
        world.settle_until(|world| world.get("cp1").report().is_some_and(|said| said.state == state));
        world.silence("cp1", true);
        world.settle();
        world.now += Duration::minutes(44);
        world.look(usize::MAX);
        assert_ne!(world.told(0, "cp1").state, NodeState::Failed, "its gate may take so long");
        world.now += Duration::minutes(5);
        world.settle();
        assert_eq!((world.told(0, "cp1").state, world.phase(0)), (NodeState::Failed, Phase::Halted));
        assert!(world.told(0, "cp1").reason.contains(word), "{:?}", world.told(0, "cp1"));
        assert!(world.get("cp1").unschedulable && world.began() == ["cp1"]);
        world.silence("cp1", false);
        world.settle();
        assert_eq!((world.phase(0), world.told(0, "cp1").attempt), (Phase::Complete, 1));
        assert!(!world.get("cp1").unschedulable);
    }
}

#[test]
fn what_was_given_up_holds_up_no_later_update_and_its_end_is_cleared_away() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Rebooting));
    world.silence("w1", true);
    world.settle_for_good();
    world.edit(0, |spec| spec.abort = true);
    world.settle();
    assert_eq!(world.phase(0), Phase::Aborted);
    let mut alone = World { wishes: world.wishes.clone(), nodes: world.nodes.clone(), ..World::of(&["w1", "w2"]) };
    alone.now = world.now;
    alone.settle();
    assert!(!alone.get("w1").unschedulable && alone.get("w1").note.is_none(), "{alone:#?}");
    world.ask(spec(2, 2));
    world.settle_for_good();
    assert_eq!((world.told(1, "w2").state, world.told(1, "w1").state), (NodeState::Done, NodeState::Failed));
    world.silence("w1", false);
    world.settle_for_good();
    assert_eq!(world.phase(1), Phase::Complete);
}

#[test]
fn a_silent_node_of_a_deleted_update_stays_closed_and_is_the_next_ones() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Rebooting));
    world.silence("w1", true);
    world.look(usize::MAX);
    world.wishes.clear();
    world.ask(spec(2, 2));
    world.settle();
    assert!(world.get("w1").unschedulable && world.told(0, "w1").reason.contains("another update is at work"));
    world.now += Duration::minutes(45);
    world.settle();
    assert!(world.get("w1").unschedulable && world.told(0, "w1").state == NodeState::Staging);
    world.silence("w1", false);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
    assert!(!world.get("w1").unschedulable);
}

#[test]
fn the_younger_update_waits_and_says_so() {
    let mut world = World::of(&["cp1", "w1"]);
    world.ask(UpdateSpec { paused: true, ..spec(1, 1) });
    world.ask(spec(2, 1));
    world.settle();
    assert_eq!((world.phase(0), world.phase(1)), (Phase::Paused, Phase::Pending));
    assert!(world.wishes[1].status.conditions[0].message.contains("update-1 is older"));
    world.edit(0, |spec| spec.paused = false);
    world.settle();
    assert_eq!((world.phase(0), world.phase(1)), (Phase::Complete, Phase::Complete));
    assert_eq!(world.beneath["w1"].runs, 2);
}

#[test]
fn a_deleted_update_leaves_no_node_closed() {
    let mut world = World::of(&["w1", "w2"]);
    world.ask(spec(1, 2));
    world.settle_until(|world| world.get("w1").desired.as_ref().is_some_and(|desired| desired.go));
    world.wishes.clear();
    world.settle();
    assert!(world.nodes.iter().all(|node| !node.unschedulable && node.desired.is_none() && node.note.is_none()));
    assert_eq!(world.beneath["w1"].runs, 1, "what was upgrading came to its end");
}

#[test]
fn nothing_begins_while_the_window_is_closed_and_everything_is_staged_by_then() {
    let mut world = World::of(&["w1"]);
    let window = Window { days: vec![], start: "22:00".into(), length: "1h".into(), time_zone: "UTC".into() };
    world.now += Duration::hours(2);
    world.ask(UpdateSpec { window: Some(window), ..spec(1, 1) });
    world.settle();
    assert_eq!((world.told(0, "w1").state, world.phase(0)), (NodeState::Staged, Phase::Pending));
    assert!(world.wishes[0].status.conditions[0].message.contains("opens at 2026-01-03 22:00"));
    world.now = START + Duration::days(1);
    world.settle();
    assert_eq!(world.phase(0), Phase::Complete);
}

#[test]
fn a_worker_is_never_newer_than_a_control_plane_that_stays() {
    let mut world = World::of(&["cp1", "w1"]);
    let node_selector = BTreeMap::from([("pool".to_owned(), "w".to_owned())]);
    world.ask(UpdateSpec { node_selector, ..spec(1, 1) });
    world.settle();
    assert!(world.began().is_empty());
    assert!(world.wishes[0].status.conditions[0].message.contains("cp1 runs v1.20.0"));
    world.get_mut("cp1").unwrap().kubelet = "v1.21.0".into();
    world.settle();
    assert_eq!((world.phase(0), world.began()), (Phase::Complete, vec!["w1"]));
}

#[test]
fn an_agent_that_runs_something_else_is_not_healthy() {
    let mut world = World::of(&["w1"]);
    world.ask(spec(1, 1));
    world.settle_until(|world| world.get("w1").report().is_some_and(|s| s.state == ReportedState::Rebooting));
    world.agent("w1", 9);
    world.get_mut("w1").unwrap().reported.as_mut().unwrap().os = Some("commit-7".into());
    world.settle();
    assert_eq!(world.phase(0), Phase::Halted);
    assert!(world.told(0, "w1").reason.contains("runs commit-7, not commit-1"));
}

#[test]
fn five_thousand_nodes_are_one_plan() {
    let mut world = World::of(&["cp1", "cp2", "cp3"]);
    for number in 0..5000 {
        world.nodes.push(node(&format!("w{number}")));
    }
    world.ask(spec(1, 50));
    let seen = Seen { nodes: world.nodes.clone(), ..Seen::default() };
    let steps = plan(&world.wishes[0], &seen, START);
    assert_eq!(steps.len(), 5003 + 1);
}

#[derive(Debug, Clone)]
enum Happens {
    Look(usize),
    Agent(usize, u8),
    PodsEnd,
    Later(u16),
    Cordon(usize, bool),
    Ready(usize, bool),
    Vanish(usize),
    Join(usize),
    Obstacle(usize, bool),
    Silence(usize, bool),
    Pause(usize, bool),
    Abort(usize, bool),
    Retry(usize),
    Ask(u32),
    Delete(usize),
    Release(usize, u32),
    OwnNode(usize),
    MaxUnavailable(usize, u32),
}

const NAMES: [&str; 7] = ["cp1", "cp2", "cp3", "w1", "w2", "w3", "w4"];

fn happens() -> impl Strategy<Value = Happens> {
    let node = 0..NAMES.len();
    prop_oneof![
        12 => (0usize..6).prop_map(Happens::Look),
        8 => Just(Happens::Look(usize::MAX)),
        24 => (node.clone(), 0u8..8).prop_map(|(node, luck)| Happens::Agent(node, luck)),
        4 => Just(Happens::PodsEnd),
        3 => (1u16..900).prop_map(Happens::Later),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Happens::Cordon(node, on)),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Happens::Ready(node, on)),
        1 => node.clone().prop_map(Happens::Vanish),
        1 => node.clone().prop_map(Happens::Join),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Happens::Obstacle(node, on)),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, on)| Happens::Silence(node, on)),
        1 => (0usize..3, any::<bool>()).prop_map(|(wish, on)| Happens::Pause(wish, on)),
        1 => (0usize..3, any::<bool>()).prop_map(|(wish, on)| Happens::Abort(wish, on)),
        1 => (0usize..3).prop_map(Happens::Retry),
        1 => (1u32..4).prop_map(Happens::Ask),
        1 => (0usize..3).prop_map(Happens::Delete),
        1 => (0usize..3, 1u32..4).prop_map(|(wish, number)| Happens::Release(wish, number)),
        1 => node.prop_map(Happens::OwnNode),
        1 => (0usize..3, 1u32..4).prop_map(|(wish, max)| Happens::MaxUnavailable(wish, max)),
    ]
}

impl World {
    /// Until time changes nothing any more either.
    fn settle_for_good(&mut self) {
        for _ in 0..100 {
            let before = (self.nodes.clone(), self.wishes.clone());
            self.settle();
            self.now += Duration::hours(1);
            if before == (self.nodes.clone(), self.wishes.clone()) {
                return;
            }
        }
        panic!("it never ends: {self:#?}");
    }

    fn happen(&mut self, what: Happens) {
        let there = |world: &Self, node: usize| world.nodes.iter().any(|seen| seen.name == NAMES[node]);
        match what {
            Happens::Look(steps) => self.look(steps),
            Happens::Agent(node, luck) if there(self, node) => self.agent(NAMES[node], luck),
            Happens::PodsEnd => self.pods_end(),
            Happens::Later(seconds) => self.now += Duration::seconds(seconds.into()),
            Happens::Cordon(node, on) if there(self, node) => {
                let seen = self.get_mut(NAMES[node]).unwrap();
                // Closing what is closed changes nothing, and nobody could tell.
                let by_hand = on && (!seen.unschedulable || seen.cordoned_by.is_none());
                seen.unschedulable = on;
                if by_hand && seen.cordoned_by.is_none() {
                    self.beneath.get_mut(NAMES[node]).unwrap().cordoned_by_hand = true;
                } else if !on {
                    self.beneath.get_mut(NAMES[node]).unwrap().cordoned_by_hand = false;
                }
            }
            Happens::Ready(node, on) if there(self, node) => self.get_mut(NAMES[node]).unwrap().ready = on,
            Happens::Vanish(node) => self.nodes.retain(|seen| seen.name != NAMES[node]),
            Happens::Join(node) => self.join(NAMES[node]),
            Happens::Obstacle(node, on) if there(self, node) => {
                let obstacles = if on { vec!["a budget".to_owned()] } else { Vec::new() };
                self.beneath.get_mut(NAMES[node]).unwrap().obstacles = obstacles;
            }
            Happens::Silence(node, on) if there(self, node) => self.silence(NAMES[node], on),
            Happens::Pause(wish, on) => self.edit(wish, |spec| spec.paused = on),
            Happens::Abort(wish, on) => self.edit(wish, |spec| spec.abort = on),
            Happens::Retry(wish) => self.edit(wish, |spec| spec.retry += 1),
            Happens::Ask(number) if self.wishes.len() < 3 => self.ask(spec(number, 1 + number % 2)),
            Happens::Delete(wish) if wish < self.wishes.len() => drop(self.wishes.remove(wish)),
            Happens::Release(wish, number) => self.edit(wish, |spec| spec.release = release(number)),
            Happens::OwnNode(node) => self.own_node = Some(NAMES[node].into()),
            Happens::MaxUnavailable(wish, max) => {
                self.edit(wish, |spec| spec.max_unavailable = MaxUnavailable::Count(max));
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_life_breaks_a_promise_and_every_life_ends_well(
        window in any::<bool>(),
        soak in 0u32..2,
        force in any::<bool>(),
        life in proptest::collection::vec(happens(), 0..250),
    ) {
        let mut world = World::of(&NAMES);
        let mut first = spec(1, 2);
        first.strategy.soak_seconds = soak * 60;
        first.strategy.drain.policy = if force { DrainPolicy::Force } else { DrainPolicy::Evict };
        if window {
            let (start, length) = ("22:00".into(), "30m".into());
            first.window = Some(Window { days: vec![], start, length, time_zone: "UTC".into() });
        }
        world.ask(first);
        for what in life {
            world.happen(what);
        }
        // In the end everything is put right.
        for node in &mut world.nodes {
            node.ready = true;
        }
        world.beneath.values_mut().for_each(|beneath| beneath.obstacles.clear());
        for index in 0..world.wishes.len() {
            world.edit(index, |spec| { spec.paused = false; spec.retry += 1; spec.window = None; });
        }
        world.settle_for_good();
        // Whoever is silent, what goes first has come to an end, or says which node is.
        if let Some(wish) = world.wishes.iter().find(|wish| !wish.is_finished(&world.wishes)) {
            let late = |node: &NodeStatus| node.state == NodeState::Staging && node.reason.contains("journalctl");
            let said = wish.status.nodes.iter().any(|node| late(node) || node.state == NodeState::Failed);
            let none = wish.status.nodes.is_empty() && world.nodes.is_empty();
            prop_assert!(said || none, "{:#?}", world);
        }
        world.beneath.values_mut().for_each(|beneath| beneath.silent = false);
        world.settle_for_good();
        for index in 0..world.wishes.len() {
            world.edit(index, |spec| spec.retry += 1);
        }
        world.settle_for_good();
        for wish in &world.wishes {
            let end = if wish.spec.abort { Phase::Aborted } else { Phase::Complete };
            let none = wish.status.nodes.is_empty() && world.nodes.is_empty();
            prop_assert!(wish.status.phase == end || none, "{:#?}", world);
        }
        for node in &world.nodes {
            let by_hand = world.beneath[&node.name].cordoned_by_hand;
            // One that has failed stays closed when its update is called off.
            let called_off = world.wishes.iter().all(|wish| wish.spec.abort);
            prop_assert!(called_off || node.unschedulable == by_hand, "{:#?}", world);
        }
    }
}
