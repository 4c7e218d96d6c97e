//! Updates in clusters where everything goes wrong in every order, and what holds all the same.

use std::collections::BTreeMap;

use nkd_api::update::{
    Drain, MaxUnavailable, NodeStatus, OsRelease, Phase, Release, Strategy as Care, UpdateSpec, UpdateStatus, Window,
};
use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::blocked::{Blocked, ROUNDS};
use crate::budget::PodSeen;
use crate::image::{LookState, Looked, Named};
use crate::seen::PodsSeen;
use crate::turn::{opened, orphans, turns};
use crate::wish::{Hours, Source, remember_roles};

mod images;
mod lives;
mod silence;
mod turns;

/// A Friday.
const START: OffsetDateTime = datetime!(2026-01-02 22:00 UTC);

fn release(number: u32) -> Release {
    let os = Some(OsRelease { commit: Some(format!("commit-{number}")), ..OsRelease::default() });
    Release { name: number.to_string(), os, kubernetes: Some(format!("v1.{}.0", 20 + number)) }
}

/// An image by its tag.
fn image(tag: &str) -> Release {
    let os = Some(OsRelease { image: Some(format!("registry.example/os:{tag}")), ..OsRelease::default() });
    Release { name: tag.into(), os, kubernetes: Some("v1.21.0".into()) }
}

fn digest(number: u32) -> String {
    format!("sha256:{number:064x}")
}

fn wish(uid: &str, spec: UpdateSpec) -> Wish {
    let hours = spec.window.as_ref().map(|window| Hours::read(window).unwrap());
    Wish {
        source: Source::Ours,
        namespace: None,
        name: format!("update-{uid}"),
        uid: uid.into(),
        generation: 1,
        version: String::new(),
        created: START,
        spec,
        tagged: None,
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

/// What it is, whatever its labels say.
fn is_plane(node: &NodeSeen) -> bool {
    node.name.starts_with("cp")
}

fn pod(name: &str) -> PodSeen {
    let name = name.to_owned();
    PodSeen { namespace: "default".into(), uid: name.clone(), name, ..PodSeen::default() }
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
    /// What its agent is at, though its node was deleted meanwhile, and the release that it goes to.
    at_work: Option<Reported>,
    goes_to: u32,
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
    /// What tags stand for in the registry; nothing: it is away.
    registry: Option<BTreeMap<String, u32>>,
    /// What the operator has asked it for, by uid, and when that failed.
    lookups: BTreeMap<String, (Looked, OffsetDateTime)>,
    /// How often it was asked.
    questions: u32,
    /// How often an update has named another release.
    systems: BTreeMap<String, u32>,
    /// Control planes whose nodes were deleted when they had been told to go: by which update, and its `retry` then.
    gone: BTreeMap<String, (String, u32)>,
    /// The image that nodes were told for each of them.
    images: BTreeMap<(String, u32), String>,
    blocked: Blocked,
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
            registry: Some(BTreeMap::new()),
            lookups: BTreeMap::new(),
            questions: 0,
            systems: BTreeMap::new(),
            gone: BTreeMap::new(),
            images: BTreeMap::new(),
            blocked: Blocked::default(),
        };
        names.iter().for_each(|name| world.join(name));
        world
    }

    fn join(&mut self, name: &str) {
        if self.nodes.iter().all(|node| node.name != name) {
            // Of its labels the kubelet gives back no role; the service does, when it sees the node.
            // Where nobody remembers it, that has to be before anything else.
            let is_there = |uid: &str| self.wishes.iter().any(|wish| wish.uid == uid);
            let unlabelled = self.gone.remove(name).is_some_and(|(uid, _)| is_there(&uid));
            let node = node(name);
            self.nodes.push(NodeSeen { control_plane: node.control_plane && !unlabelled, ..node });
            let Beneath { at_work, goes_to, runs, .. } = self.beneath.remove(name).unwrap_or_default();
            let beneath = Beneath { pods: vec![pod(name)], at_work, goes_to, runs, ..Beneath::default() };
            self.beneath.insert(name.into(), beneath);
        }
    }

    /// Its node is deleted: whatever its agent has begun goes on, and is heard of when it has registered again.
    fn vanish(&mut self, name: &str) {
        let Some(node) = self.nodes.iter().find(|node| node.name == name) else { return };
        let begun = node.reported.clone().filter(|said| said.state > ReportedState::Staged && !said.state.is_end());
        let goes_to = node.desired.as_ref().map(number_of).unwrap_or_default();
        if let Some(desired) =
            node.desired.as_ref().filter(|d| d.go && node.control_plane && node.busy_for() == Some(&d.uid))
        {
            // What was said before the operator had looked again may as well have been said after.
            let wish = self.wishes.iter().find(|wish| wish.uid == desired.uid);
            let retry = wish.and_then(|wish| wish.plane(name)).map_or(0, |plane| plane.retry);
            self.gone.insert(name.into(), (desired.uid.clone(), retry));
        }
        let beneath = self.beneath.get_mut(name).unwrap();
        if beneath.at_work.is_none() {
            (beneath.at_work, beneath.goes_to) = (begun, goes_to);
        }
        self.nodes.retain(|node| node.name != name);
    }

    /// Its agent is at work on what was told to the node before it was deleted, and has said so.
    fn is_said_at_work(&self, node: &NodeSeen) -> bool {
        let at_work = self.beneath.get(&node.name).and_then(|beneath| beneath.at_work.as_ref());
        let same = |said: &&Reported| node.desired.as_ref().is_some_and(|desired| desired.uid == said.uid);
        at_work.filter(same).is_some() && node.reported.as_ref() == at_work
    }

    fn ask(&mut self, spec: UpdateSpec) {
        self.made += 1;
        let mut wish = wish(&self.made.to_string(), spec);
        wish.created = START + Duration::seconds(self.made.into());
        wish.name_image();
        self.wishes.push(wish);
    }

    /// The service gives a node its role back.
    fn label(&mut self, name: &str) {
        if let Some(node) = self.get_mut(name) {
            node.control_plane = is_plane(node);
        }
    }

    fn edit(&mut self, index: usize, change: impl FnOnce(&mut UpdateSpec)) {
        if let Some(wish) = self.wishes.get_mut(index) {
            let before = wish.spec.release.clone();
            change(&mut wish.spec);
            if wish.spec.release != before {
                wish.name_image();
                *self.systems.entry(wish.uid.clone()).or_default() += 1;
            }
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

    /// One look of an operator, which is killed after so many steps, and with it what it knows of the registry.
    fn look(&mut self, patience: usize) {
        if self.look_until(patience).is_none() {
            self.lookups.clear();
            self.blocked = Blocked::default();
        }
    }

    fn look_until(&mut self, mut patience: usize) -> Option<()> {
        for step in opened(&Seen { nodes: self.nodes.clone(), ..Seen::default() }) {
            if patience == 0 {
                return None;
            }
            patience -= 1;
            self.apply("", step);
        }
        let mut seen = Seen { nodes: self.nodes.clone(), own_node: self.own_node.clone(), ..Seen::default() };
        for node in &mut seen.nodes {
            node.waited = node.note.as_ref().map(|note| self.now - note.since).unwrap_or_default();
        }
        let wishes = self.wishes.clone();
        for (wish, ahead) in turns(&wishes, &self.nodes) {
            seen.ahead = ahead;
            remember_roles(&self.wishes, &mut seen.nodes);
            seen.looked = self.looked(wish);
            self.blocked.recall(&wish.uid, &mut seen.nodes);
            let mut steps = Vec::new();
            for _ in 0..ROUNDS {
                steps = plan(wish, &seen, self.now);
                let wanted: Vec<&String> = steps
                    .iter()
                    .filter_map(|s| if let Step::Inspect { node } = s { Some(node) } else { None })
                    .collect();
                if wanted.is_empty() {
                    break;
                }
                for name in wanted {
                    let beneath = &self.beneath[name];
                    let pods = PodsSeen { leaving: beneath.pods.clone(), obstacles: beneath.obstacles.clone() };
                    seen.nodes.iter_mut().find(|node| node.name == *name).unwrap().pods = Some(pods);
                }
            }
            self.blocked.remember(&wish.uid, &seen.nodes);
            for step in steps {
                if patience == 0 {
                    return None;
                }
                patience -= 1;
                self.apply(&wish.uid, step);
            }
        }
        (seen.ahead, seen.looked) = (None, None);
        for step in orphans(&seen, &wishes, self.now) {
            self.apply("", step);
        }
        Some(())
    }

    /// How far the look-up of its image is. One that is known is not asked for any more.
    fn looked(&mut self, wish: &Wish) -> Option<Looked> {
        if wish.unknown().is_none() {
            self.lookups.remove(&wish.uid);
        }
        let (looked, at) = self.lookups.get(&wish.uid)?.clone();
        let state = match looked.state {
            LookState::Failed(_) => LookState::Failed(self.now - at),
            other => other,
        };
        Some(Looked { state, ..looked })
    }

    /// The registry answers everybody who has asked.
    fn answer(&mut self) {
        for (looked, at) in self.lookups.values_mut().filter(|(looked, _)| looked.state == LookState::UnderWay) {
            let found = match &self.registry {
                Some(tags) => tags.get(&looked.asked).ok_or("there is no such tag"),
                None => Err("it is away"),
            };
            match found {
                Ok(number) => looked.state = LookState::Found(digest(*number)),
                Err(said) => {
                    (looked.state, *at) = (LookState::Failed(Duration::ZERO), self.now);
                    (looked.failed, looked.said) = (looked.failed + 1, said.into());
                }
            }
        }
    }

    fn apply(&mut self, uid: &str, step: Step) {
        match step {
            Step::Inspect { .. } => {}
            Step::Tell(status) if status_text(&status).contains("\"\"") => panic!("an empty text: {status:#?}"),
            Step::Tell(status) => {
                let wish = self.wishes.iter_mut().find(|wish| wish.uid == uid).unwrap();
                let unknown = wish.unknown().is_some();
                wish.status = *status;
                if unknown {
                    wish.name_image();
                }
            }
            Step::LookUp { image } => {
                let before = self.lookups.remove(uid).filter(|(before, _)| before.asked == image);
                assert!(
                    before.as_ref().is_none_or(|(before, _)| matches!(before.state, LookState::Failed(_))),
                    "asked twice"
                );
                let (failed, said) = before.map_or((0, String::new()), |(before, _)| (before.failed, before.said));
                let looked = Looked { asked: image, state: LookState::UnderWay, failed, said };
                self.questions += 1;
                self.lookups.insert(uid.to_owned(), (looked, self.now));
            }
            Step::Evict { node, pods } => {
                let beneath = self.beneath.get_mut(&node).unwrap();
                assert!(pods.iter().all(|pod| pod.ends.is_none()), "asked once");
                if beneath.obstacles.is_empty() {
                    beneath.pods.iter_mut().for_each(|pod| pod.ends = Some(self.now));
                }
            }
            Step::Delete { node, pods, at_once } => {
                let overdue = |pod: &PodSeen| pod.ends.is_some_and(|ends| self.now >= ends + OVERDUE);
                let may = !self.get(&node).ready || pods.iter().all(overdue);
                assert!(!at_once || may, "{node}: no time to end, and its kubelet answers");
                let there = &mut self.beneath.get_mut(&node).unwrap().pods;
                if at_once {
                    there.retain(|pod| pods.iter().all(|gone| gone.uid != pod.uid));
                } else {
                    there.iter_mut().for_each(|pod| pod.ends = Some(self.now));
                }
            }
            Step::Write { node, change, reason, .. } => self.write(uid, &node, *change, reason),
        }
    }

    #[track_caller]
    fn write(&mut self, uid: &str, name: &str, change: Change, reason: &'static str) {
        let before = self.get(name).clone();
        let wish = self.wishes.iter().find(|wish| wish.uid == uid).cloned();
        let goes = matches!(&change.desired, Some(Some(desired)) if desired.go);
        if let Some(Some(desired)) = &change.desired
            && let Some(image) = desired.os.as_ref().and_then(|os| os.image.as_ref())
        {
            self.check_image(wish.as_ref().unwrap(), image);
        }
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

    /// All nodes are told the same image by its digest, and that stands in the status before.
    fn check_image(&mut self, wish: &Wish, image: &str) {
        assert!(matches!(crate::image::read(image), Ok(Named::Digest(same)) if same == image), "{image}: no digest");
        let told = wish.status.image.as_ref().expect("it is told before any node hears of it");
        assert!(image.ends_with(&told.digest) && wish.tagged.as_ref() == Some(&told.asked), "{image}: {told:?}");
        let key = (wish.uid.clone(), self.systems.get(&wish.uid).copied().unwrap_or_default());
        assert_eq!(self.images.entry(key).or_insert_with(|| image.to_owned()), image, "two images of one wish");
    }

    fn chosen<'a>(&'a self, wish: &'a Wish) -> impl Iterator<Item = &'a NodeSeen> {
        let fits = |node: &&NodeSeen| wish.spec.node_selector.iter().all(|(k, v)| node.labels.get(k) == Some(v));
        self.nodes.iter().filter(fits)
    }

    fn is_done(&self, wish: &Wish, node: &NodeSeen) -> bool {
        let told = node.desired.as_ref().is_some_and(|d| d.uid == wish.uid && d.os == wish.spec.release.os);
        told && node.note.as_ref().is_some_and(|note| note.uid == wish.uid && note.state == NoteState::Done)
    }

    /// A control plane that was told to go may be anywhere on its way, also when its node is not there.
    fn check_gone(&self, wish: &Wish, name: &str) {
        let holds = |gone: &&(String, u32)| gone.0 == wish.uid && gone.1 >= wish.spec.retry;
        assert!(!self.gone.values().any(|gone| holds(&gone)), "{name}: and {:?} are on their way", self.gone);
    }

    fn check_begin(&self, wish: &Wish, before: &NodeSeen) {
        self.check_gone(wish, &before.name);
        let spec = &wish.spec;
        assert!(!spec.paused && !spec.abort, "{}: began while it was told not to", before.name);
        assert!(wish.hours.as_ref().is_none_or(|hours| hours.is_open(self.now)), "{}: began outside", before.name);
        let limit = spec.max_unavailable.of(self.chosen(wish).count());
        let chosen: Vec<&String> = self.chosen(wish).map(|node| &node.name).collect();
        let is_away = |n: &&NodeSeen| n.held() || self.is_said_at_work(n) || (!n.ready && chosen.contains(&&n.name));
        let away = self.nodes.iter().filter(is_away).count();
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
        let failed: Vec<&NodeSeen> = failed.collect();
        assert!(failed.len() < spec.strategy.halt_after_failures.max(1) as usize, "began after too many failures");
        let is_back = |node: &NodeSeen| node.report().is_some_and(|said| said.state == ReportedState::RolledBack);
        let went_back = |node: &&&NodeSeen| is_back(node) && node.desired.as_ref().unwrap().go;
        let back = failed.iter().filter(went_back).count();
        assert!(back < spec.strategy.halt_after_rollbacks.max(1) as usize, "began after too many went back");
        let older = |other: &&Wish| other.order() < wish.order() && !other.is_finished(&self.wishes);
        assert!(self.wishes.iter().find(older).is_none(), "{}: an older update goes first", before.name);
        let mut planes = self.nodes.iter().filter(|node| is_plane(node) && node.name != before.name);
        if is_plane(before) {
            let holds = |n: &NodeSeen| n.ready && !n.may_move() && !self.is_said_at_work(n) && n.ill.is_none();
            assert!(planes.all(holds), "{}: etcd's majority", before.name);
        } else {
            let mut planes = self.chosen(wish).filter(|node| is_plane(node));
            assert!(planes.all(|node| self.is_done(wish, node)), "{}: before a control plane", before.name);
        }
    }

    fn check_go(&self, wish: &Wish, before: &NodeSeen) {
        let name = &before.name;
        if is_plane(before) {
            self.check_gone(wish, name);
        }
        assert!(self.beneath[name].pods.is_empty(), "{name}: upgrades with pods on it");
        let mut planes = self.nodes.iter().filter(|node| is_plane(node) && node.name != *name);
        let holds = |n: &NodeSeen| n.ready && !n.may_move() && !self.is_said_at_work(n) && n.ill.is_none();
        assert!(!is_plane(before) || planes.all(holds), "{name}: etcd's majority");
        let first = |node: &&NodeSeen| {
            node.desired.as_ref().is_some_and(|d| d.uid == wish.uid && d.os == wish.spec.release.os && d.first)
        };
        let firsts: Vec<&NodeSeen> = self.nodes.iter().filter(first).collect();
        assert!(firsts.len() <= 1 && firsts.iter().all(|node| is_plane(node)), "{firsts:#?}");
        let done = self.nodes.iter().any(|node| is_plane(node) && self.is_done(wish, node));
        assert!(!before.control_plane || done || firsts.len() == 1, "{name}: nobody runs kubeadm upgrade apply");
    }

    /// An agent's next move. `luck`: 0 fails, 1 rolls back, else all is well.
    fn agent(&mut self, name: &str, luck: u8) {
        let Some(node) = self.get(name).desired.clone().map(|desired| (self.get(name).report().cloned(), desired))
        else {
            return;
        };
        let (said, desired) = node;
        let wanted = number_of(&desired);
        let state = said.map(|said| said.state);
        let beneath = self.beneath.get_mut(name).unwrap();
        if beneath.silent {
            return;
        }
        if let Some(before) = beneath.at_work.clone() {
            return self.go_on(name, before, luck);
        }
        let next = match (state, desired.go, luck) {
            (Some(state), _, _) if state.is_end() => return,
            // It has lost its journal, or the cluster its memory: it was told to stage nothing.
            (None, true, _) => ReportedState::RolledBack,
            (None, false, _) => ReportedState::Staging,
            (Some(ReportedState::Staging), false, 0) => ReportedState::Failed,
            (Some(ReportedState::Staging), false, 1) => ReportedState::RolledBack,
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

    /// The next move of an agent whose node was deleted when it was on its way.
    fn go_on(&mut self, name: &str, before: Reported, luck: u8) {
        let said = self.get(name).reported.clone();
        let state = match before.state {
            // First of all it says where it is.
            state if said.as_ref() != Some(&before) => state,
            ReportedState::Rebooting if luck == 1 => ReportedState::RolledBack,
            ReportedState::Rebooting => ReportedState::Healthy,
            _ => ReportedState::Rebooting,
        };
        let beneath = self.beneath.get_mut(name).unwrap();
        if state == ReportedState::Healthy {
            beneath.runs = beneath.goes_to;
        }
        let next = Reported { state, os: Some(format!("commit-{}", beneath.runs)), ..before };
        beneath.at_work = Some(next.clone()).filter(|said| !said.state.is_end());
        let node = self.get_mut(name).unwrap();
        node.ready = state != ReportedState::Rebooting;
        node.reported = Some(next);
    }

    fn pods_end(&mut self) {
        self.beneath.values_mut().for_each(|beneath| beneath.pods.retain(|pod| pod.ends.is_none()));
    }

    /// Looks and moves until nothing changes any more.
    fn settle(&mut self) {
        for _ in 0..200 {
            let before = (self.nodes.clone(), self.wishes.clone(), self.lookups.clone());
            self.look(usize::MAX);
            self.pods_end();
            let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
            names.iter().for_each(|name| self.agent(name, 9));
            self.answer();
            self.now += Duration::seconds(5);
            if before == (self.nodes.clone(), self.wishes.clone(), self.lookups.clone()) {
                return;
            }
        }
        panic!("it never ends: {self:#?}");
    }

    fn began(&self) -> Vec<&str> {
        self.written.iter().filter(|(_, reason)| *reason == "Draining").map(|(name, _)| name.as_str()).collect()
    }
}

/// The release that is desired.
fn number_of(desired: &Desired) -> u32 {
    let number = desired.os.as_ref().and_then(|os| match (&os.commit, &os.image) {
        (Some(commit), _) => commit.strip_prefix("commit-")?.parse().ok(),
        (None, image) => u32::from_str_radix(image.as_deref()?.rsplit_once("sha256:")?.1, 16).ok(),
    });
    number.unwrap_or_default()
}

fn status_text(status: &UpdateStatus) -> String {
    serde_json::to_string(status).unwrap()
}

impl World {
    /// What a tag stands for in the registry from now on.
    fn push(&mut self, tag: &str, number: u32) {
        self.registry.get_or_insert_default().insert(format!("registry.example/os:{tag}"), number);
    }
}

fn spec(number: u32, max: u32) -> UpdateSpec {
    UpdateSpec { release: release(number), max_unavailable: MaxUnavailable::Count(max), ..UpdateSpec::default() }
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
            self.answer();
            self.now += Duration::seconds(5);
        }
        panic!("it never comes: {self:#?}");
    }
}

impl World {
    fn silence(&mut self, name: &str, silent: bool) {
        self.beneath.get_mut(name).unwrap().silent = silent;
    }
}
