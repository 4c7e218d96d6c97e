//! What to do next for an update, from everything that is seen (pure).
//!
//! ```text
//! Waiting ─stage─▶ Staging ─staged─▶ Staged ─its turn─▶ Draining ─no pods left─▶ Upgrading ─healthy─▶ Soaking ─▶ Done
//!                     │                                     │ limit over              │ failed, rolled back
//!                     └────────────────▶ Failed ◀───────────┴─────────────────────────┘   ── retry ──▶ Waiting
//! ```
//! A node whose agent is not heard of for too long counts as failed, until it is.
//!
//! Nothing is remembered between two looks: how far a node is stands on the node ([`Desired`], [`Note`], what its agent
//! reported). So an operator that was killed, or that another one took over from, goes on where it was.

use std::collections::BTreeMap;

use nkd_api::update::{
    Desired, DrainPolicy, IS_CALLED_OFF, IS_PAUSED, NodeState, Note, NoteState, PlaneAtWork, Reported, ReportedState,
};
use time::{Duration, OffsetDateTime};

use crate::budget::PodSeen;
use crate::image;
use crate::seen::{NodeSeen, Seen};
use crate::step::{Change, REFUSED, Step, Why, write};
use crate::tell;
use crate::wish::{Wish, version_of};

/// A node that upgrades may be silent for so many times as long as one that was told to stage: its gate takes its time.
const GOING: i32 = 3;
/// A node that is healthy by its agent may be without Ready for so long where no agent is ever given up for its silence.
const NOT_READY: Duration = Duration::minutes(45);
/// A pod that should have ended for so long is held up by what a longer wait does not help against.
const OVERDUE: Duration = Duration::minutes(10);

/// What to do for an update.
#[must_use]
pub fn plan(wish: &Wish, seen: &Seen, now: OffsetDateTime) -> Vec<Step> {
    let planes = seen.nodes.iter().filter(|node| node.control_plane).collect();
    let missing = wish.missing(&seen.nodes);
    let mut planner = Planner { wish, seen, planes, missing, now, steps: Vec::new(), told: BTreeMap::new(), why: None };
    planner.go_on();
    planner.look_up();
    planner.begin();
    planner.say_refused();
    // What is yet to be written may fail: an end is told when it can be seen.
    let settled = planner.steps.is_empty();
    let at_work = planner.at_work();
    let told = tell::status(wish, seen, &planner.told, at_work, planner.why.as_ref(), settled, now);
    if told != wish.status {
        planner.steps.push(Step::Tell(Box::new(told)));
    }
    planner.steps
}

/// A control plane has its turn next, or waits for the others before it goes: what they run has to be looked at.
#[must_use]
pub fn asks_for_planes(wish: &Wish, seen: &Seen) -> bool {
    let before_going =
        |node: &NodeSeen| node.desired.as_ref().is_some_and(|desired| desired.uid == wish.uid && !desired.go);
    let mut planes = seen.nodes.iter().filter(|node| node.control_plane);
    planes.clone().count() > 1 && planes.any(before_going)
}

/// Where a node is on its way.
enum Place<'a> {
    /// Another update is at work on it.
    Elsewhere,
    Out,
    Staging(Option<&'a Note>),
    Staged,
    /// There was nothing to do.
    There(&'a Reported),
    StagingFailed(&'a Reported),
    Draining(&'a Note),
    Going(&'a Desired, Option<&'a Note>),
    Soaking(&'a Note),
    Done,
    Failed(&'a Note),
}

struct Planner<'a> {
    wish: &'a Wish,
    seen: &'a Seen,
    /// The control planes of it.
    planes: Vec<&'a NodeSeen>,
    /// Those that it has at work, and whose Nodes are not there.
    missing: Vec<&'a PlaneAtWork>,
    now: OffsetDateTime,
    steps: Vec<Step>,
    /// How far each chosen node is, and why it does not go on.
    told: BTreeMap<&'a str, (NodeState, String)>,
    why: Option<Why>,
}

impl<'a> Planner<'a> {
    fn chosen(&self, node: &NodeSeen) -> bool {
        self.wish.chooses(node)
    }

    fn is_mine(&self, uid: &str) -> bool {
        uid == self.wish.uid
    }

    /// What is desired of the node is this update's release as it is now.
    fn fits(&self, desired: &Desired) -> bool {
        let release = &self.wish.spec.release;
        self.is_mine(&desired.uid) && desired.os == release.os && desired.kubernetes == release.kubernetes
    }

    fn place(&self, node: &'a NodeSeen) -> Place<'a> {
        if node.busy_for().is_some_and(|uid| !self.is_mine(uid)) {
            return Place::Elsewhere;
        }
        let desired = node.desired.as_ref().filter(|desired| self.is_mine(&desired.uid));
        let note = node.note.as_ref().filter(|note| self.is_mine(&note.uid));
        let fits = desired.is_some_and(|desired| self.fits(desired));
        match (note, desired) {
            (Some(note), Some(desired)) if note.state == NoteState::Begun && desired.go => {
                Place::Going(desired, Some(note))
            }
            (Some(note), Some(desired)) if node.is_back() => Place::Going(desired, Some(note)),
            (Some(note), _) if note.state == NoteState::Begun => Place::Draining(note),
            (Some(note), _) if note.state == NoteState::Soaking => Place::Soaking(note),
            (Some(note), _) if note.state == NoteState::Done && fits => Place::Done,
            (Some(note), _) if note.state == NoteState::Failed && fits && note.retry >= self.wish.spec.retry => {
                Place::Failed(note)
            }
            (Some(note), _) if node.is_silent() && fits && note.retry >= self.wish.spec.retry => Place::Failed(note),
            (None, Some(desired)) if desired.go => Place::Going(desired, None),
            (note, Some(_)) if fits && note.is_none_or(|note| was_staging(node, note)) => match node.report() {
                Some(said) if said.state == ReportedState::Healthy => Place::There(said),
                Some(said) if said.state.is_end() => Place::StagingFailed(said),
                Some(said) if said.state == ReportedState::Staged => Place::Staged,
                _ => Place::Staging(note.filter(|note| note.state == NoteState::Staging)),
            },
            _ => Place::Out,
        }
    }

    fn say(&mut self, node: &'a NodeSeen, state: NodeState, reason: impl Into<String>) {
        if self.chosen(node) || node.busy_for() == Some(self.wish.uid.as_str()) {
            self.told.insert(&node.name, (state, reason.into()));
        }
    }

    fn note(&self, attempt: u32, state: NoteState, reason: &str) -> Option<Option<Note>> {
        let (uid, retry) = (self.wish.uid.clone(), self.wish.spec.retry);
        let since = self.now.replace_nanosecond(0).unwrap_or(self.now);
        Some(Some(Note { uid, attempt, state, since, retry, reason: reason.into(), heard: None }))
    }

    /// The same with what its agent says: how long it says that counts from now.
    fn heard(&self, node: &NodeSeen, attempt: u32, state: NoteState, reason: &str) -> Option<Option<Note>> {
        let heard = node.report().map(|said| said.state);
        self.note(attempt, state, reason).map(|note| note.map(|note| Note { heard, ..note }))
    }

    /// Brings what has begun to its end, and tells nodes that have not begun what comes.
    fn go_on(&mut self) {
        let may_stage = self.may_stage();
        for node in &self.seen.nodes {
            let (chosen, place) = (self.chosen(node), self.place(node));
            match place {
                Place::Elsewhere if chosen => self.say(node, NodeState::Waiting, "another update is at work on it"),
                Place::Elsewhere => {}
                Place::Draining(note) => self.drain(node, note),
                Place::Going(desired, note) => self.watch(node, desired, note),
                Place::Soaking(note) => self.soak(node, note),
                Place::Staging(_) | Place::Staged if self.wish.spec.abort || !chosen => {
                    let change = Change { desired: Some(None), note: Some(None), ..Change::default() };
                    self.steps.push(write(node, change, "Withdrawn", "the update is no longer for it".into()));
                    self.say(node, NodeState::Waiting, "");
                }
                _ if !chosen => {}
                Place::Out => {
                    self.say(node, NodeState::Waiting, "");
                    if may_stage {
                        self.stage(node);
                    }
                }
                Place::Staging(note) => self.await_staged(node, note),
                Place::Staged => self.say(node, NodeState::Staged, ""),
                Place::There(said) => match self.lie(said) {
                    Some(lie) => self.fail(node, said.attempt, &lie, false),
                    None if !node.ready => self.await_ready(node, said.attempt, NoteState::Staging, NodeState::Staged),
                    None => self.finish(node, said.attempt),
                },
                Place::StagingFailed(said) => self.fail(node, said.attempt, &failure(said), false),
                Place::Done => self.say(node, NodeState::Done, ""),
                Place::Failed(note) => self.say(node, NodeState::Failed, &note.reason),
            }
        }
    }

    fn may_stage(&self) -> bool {
        let spec = &self.wish.spec;
        let open = self.seen.ahead.is_none() && self.wish.problem.is_none() && !spec.paused && !spec.abort;
        let has_failed = |node: &NodeSeen| matches!(self.place(node), Place::Failed(_));
        open && self.wish.unknown().is_none() && self.too_many(has_failed).is_none()
    }

    /// So many have failed that no further one may begin.
    fn too_many(&self, has_failed: impl Fn(&'a NodeSeen) -> bool) -> Option<String> {
        let failed = || self.seen.nodes.iter().filter(|node| self.chosen(node) && has_failed(node));
        // One that could not fetch it, say, was never at work on it: that may be its own trouble.
        let has_begun = |node: &NodeSeen| node.desired.as_ref().is_some_and(|desired| desired.go);
        let is_back = |node: &NodeSeen| node.report().is_some_and(|said| said.state == ReportedState::RolledBack);
        let went_back = |node: &&NodeSeen| has_begun(node) && is_back(node);
        let (all, back) = (failed().count(), failed().filter(went_back).count());
        let (strategy, again) = (&self.wish.spec.strategy, self.wish.again());
        let nodes = |count: usize| if count == 1 { "1 node has".to_owned() } else { format!("{count} nodes have") };
        if all >= strategy.halt_after_failures.max(1) as usize {
            Some(format!("{} failed: put right what is wrong, then {again}", nodes(all)))
        } else if back >= strategy.halt_after_rollbacks.max(1) as usize {
            Some(format!("{} gone back from the release: put right what is wrong, then {again}", nodes(back)))
        } else {
            None
        }
    }

    fn stage(&mut self, node: &'a NodeSeen) {
        let release = &self.wish.spec.release;
        let before = node.desired.as_ref().filter(|desired| self.is_mine(&desired.uid));
        // What its agent has said of another attempt, which may have been called off since, is not said of this one.
        let said = node.reported.as_ref().filter(|said| self.is_mine(&said.uid)).map(|said| said.attempt);
        let last = before.map(|desired| desired.attempt).max(said).unwrap_or(0);
        let desired = Desired {
            update: self.wish.full_name(),
            uid: self.wish.uid.clone(),
            attempt: last.saturating_add(1),
            retry: Some(self.wish.spec.retry),
            os: release.os.clone(),
            kubernetes: release.kubernetes.clone(),
            // The one that began with `kubeadm upgrade apply` has to end it.
            first: before.is_some_and(|desired| desired.first && self.fits(desired))
                || (before.is_none() && self.was_first(&node.name)),
            go: false,
            ignore_preflight_errors: self.wish.spec.strategy.ignore_preflight_errors.clone(),
        };
        let message = format!("is to stage the release {}", release.name);
        let note = self.note(desired.attempt, NoteState::Staging, "");
        let change = Change { desired: Some(Some(desired)), note, ..Change::default() };
        self.steps.push(write(node, change, "Staging", message));
    }

    fn await_staged(&mut self, node: &'a NodeSeen, note: Option<&'a Note>) {
        let attempt = node.desired.as_ref().map_or(1, |desired| desired.attempt);
        let over = self.limit(1).is_some_and(|limit| node.waited >= limit);
        if note.is_none() {
            // What another version of the operator told it, or it is heard of again.
            let change = Change { note: self.heard(node, attempt, NoteState::Staging, ""), ..Change::default() };
            self.steps.push(write(node, change, "Staging", "is to stage the release, and its agent is awaited".into()));
        } else if over && node.report().is_none() {
            return self.give_up(node, attempt, 1);
        }
        // Why it cannot go on, in its own words: the service may be away for as long as it likes.
        let said = match node.report() {
            None => "its agent has not answered".to_owned(),
            Some(said) if over => {
                let colon = if said.detail.is_empty() { "" } else { ": " };
                format!("takes long: `journalctl -u nkd-updater` on it says what it does{colon}{}", said.detail)
            }
            Some(said) => said.detail.clone(),
        };
        self.say(node, NodeState::Staging, &said);
    }

    /// How long a node may be silent.
    fn limit(&self, times: i32) -> Option<Duration> {
        let seconds = self.wish.spec.strategy.silent_seconds;
        (seconds > 0).then(|| Duration::seconds(seconds.into()) * times)
    }

    /// It counts as failed, and stays as it is: what it says later is taken.
    fn give_up(&mut self, node: &'a NodeSeen, attempt: u32, times: i32) {
        let seconds = self.limit(times).unwrap_or_default().whole_seconds();
        let long = if seconds % 60 == 0 { format!("{} minutes", seconds / 60) } else { format!("{seconds} s") };
        let text = match node.report().map(|said| said.state).filter(|state| *state > ReportedState::Staged) {
            None => format!("its agent has not answered for {long}: `systemctl status nkd-updater` on it says why"),
            Some(state) => format!(
                "its agent said `{}`, and nothing for {long} since: nobody knows what it runs; see its console, and \
                 `systemctl status nkd-updater` on it",
                state.as_str()
            ),
        };
        let change = Change { note: self.heard(node, attempt, NoteState::Silent, &text), ..Change::default() };
        self.steps.push(write(node, change, "Failed", text.clone()));
        self.say(node, NodeState::Failed, text);
    }

    fn drain(&mut self, node: &'a NodeSeen, note: &'a Note) {
        let drain = &self.wish.spec.strategy.drain;
        let desired = node.desired.as_ref().filter(|desired| self.fits(desired) && desired.attempt == note.attempt);
        let Some(desired) = desired.filter(|_| !self.wish.spec.abort) else {
            let mut change = Change { note: Some(None), ..Change::default() };
            if node.cordoned_by.is_some() {
                change.uncordon();
            }
            if self.wish.spec.abort {
                change.desired = Some(None);
            }
            self.steps.push(write(node, change, "GivenBack", "the update was called off before it began".into()));
            return self.say(node, NodeState::Waiting, "");
        };
        self.say(node, NodeState::Draining, &node.said);
        if !node.unschedulable {
            // Somebody opened it: its pods would never end.
            let uid = Some(Some(self.wish.uid.clone()));
            let change = Change { cordon: Some(true), cordoned_by: uid, ..Change::default() };
            self.steps.push(write(node, change, "Cordoned", "takes no new pods".into()));
        }
        let Some(pods) = &node.pods else {
            return self.steps.push(Step::Inspect { node: node.name.clone() });
        };
        let since = node.waited;
        let limit = Duration::seconds(drain.timeout_seconds.into());
        // What has come since, though the node is closed, would come again: it goes with the node, like a daemon set's.
        let came_since = |pod: &&PodSeen| pod.comes_back && pod.made.is_some_and(|made| made > note.since);
        let leaving: Vec<&PodSeen> = pods.leaving.iter().filter(|pod| !came_since(pod)).collect();
        let those = |fits: &dyn Fn(&PodSeen) -> bool| -> Vec<PodSeen> {
            leaving.iter().filter(|pod| fits(pod)).map(|pod| PodSeen::clone(pod)).collect()
        };
        let staying = those(&|pod| pod.ends.is_none());
        if leaving.is_empty() {
            match self.others_hold(node) {
                Some(text) => self.say(node, NodeState::Draining, text),
                // Whoever deletes its Node meanwhile takes all that is written there with it.
                None if node.control_plane && self.wish.plane(&node.name).is_none() => {
                    let text = "it is written down first that it goes; if that takes long, the resource definition is older \
                                than this operator: apply its crds.yaml";
                    self.say(node, NodeState::Draining, text);
                }
                None => self.go(node, desired),
            }
        } else if since < limit {
            if !staying.is_empty() {
                self.steps.push(Step::Evict { node: node.name.clone(), pods: staying });
            }
        } else if drain.policy == DrainPolicy::Evict {
            let names: Vec<String> = leaving.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
            let [some, rest] = [&names[..names.len().min(3)], &names[names.len().min(3)..]];
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            let seconds = drain.timeout_seconds;
            let text = format!("{}{more} did not leave within {seconds} s; {}", some.join(", "), node.said);
            self.fail(node, note.attempt, text.trim_end_matches("; "), true);
        } else {
            // A kubelet that answers gives each pod its time to end; without one nobody would ever say that they have ended.
            let lost = !node.ready && since >= limit * 2;
            let overdue = |pod: &PodSeen| pod.ends.is_some_and(|ends| self.now >= ends + OVERDUE);
            let at_once = those(&|pod| lost || overdue(pod));
            let in_time = if lost { Vec::new() } else { staying };
            for (pods, at_once) in [(at_once, true), (in_time, false)] {
                if !pods.is_empty() {
                    self.steps.push(Step::Delete { node: node.name.clone(), pods, at_once });
                }
            }
        }
    }

    /// Why a control plane must not go away now.
    fn others_hold(&self, node: &NodeSeen) -> Option<String> {
        if let Some(missing) = self.missing.first().filter(|_| node.control_plane) {
            let text = "was on its way when its Node was deleted: etcd would be without its majority";
            let next = tell::comes_back(self.wish, &self.seen.nodes, &missing.name);
            return Some(format!("the control plane {} {text}; {next}", missing.name));
        }
        // One that has failed before may be tried again while it is closed; no other one may join it there.
        let at_work = |other: &NodeSeen| if node.held() { other.may_move() } else { other.held() };
        let mut others = self.planes.iter().filter(|other| other.name != node.name);
        let ill = |other: &NodeSeen| !other.ready || at_work(other) || other.ill.is_some();
        let other = others.find(|other| node.control_plane && ill(other))?;
        let what = match &other.ill {
            _ if !other.ready => "is not Ready".to_owned(),
            Some(ill) if !at_work(other) => format!("does not hold ({ill})"),
            _ => "is away for its upgrade".to_owned(),
        };
        Some(format!("the control plane {} {what}: etcd would be without its majority", other.name))
    }

    fn go(&mut self, node: &'a NodeSeen, desired: &Desired) {
        let first = desired.first || (node.control_plane && desired.kubernetes.is_some() && !self.has_first(node));
        let desired = Desired { first, go: true, retry: Some(self.wish.spec.retry), ..desired.clone() };
        let note = self.heard(node, desired.attempt, NoteState::Begun, "");
        let change = Change { desired: Some(Some(desired)), note, ..Change::default() };
        self.steps.push(write(node, change, "Upgrading", "its pods have left: upgrades now".into()));
        self.say(node, NodeState::Upgrading, "");
    }

    /// Some control plane has run `kubeadm upgrade apply` for this release, or is to.
    fn has_first(&self, besides: &NodeSeen) -> bool {
        let there = |name: &str| name != besides.name && self.was_first(name);
        let remembered = self.wish.status.planes_at_work.iter().any(|plane| there(&plane.name));
        remembered
            || self.planes.iter().filter(|other| other.name != besides.name).any(|other| {
                let first = other.desired.as_ref().is_some_and(|desired| self.fits(desired) && desired.first);
                let begun = other.desired.as_ref().is_some_and(|desired| self.fits(desired) && desired.go);
                first || (begun && matches!(self.place(other), Place::Done | Place::Soaking(_)))
            })
    }

    /// It was the one that runs `kubeadm upgrade apply` for this release when its Node was seen last.
    fn was_first(&self, name: &str) -> bool {
        let same = self.wish.status.release.as_ref() == Some(&self.wish.spec.release);
        let is_there =
            self.missing.iter().any(|plane| plane.name == name) || self.planes.iter().any(|n| n.name == name);
        same && is_there && self.wish.plane(name).is_some_and(|plane| plane.first)
    }

    /// The control planes at work, with those whose Nodes are not there.
    fn at_work(&self) -> Vec<PlaneAtWork> {
        let mut all: Vec<PlaneAtWork> = self.missing.iter().copied().cloned().collect();
        let is_missing = |node: &&&NodeSeen| self.missing.iter().any(|plane| plane.name == node.name);
        for node in self.planes.iter().filter(|node| !is_missing(node)) {
            let is_at_work = self.told.get(node.name.as_str()).is_some_and(|(state, _)| tell::at_work(*state));
            let mine = node.desired.as_ref().filter(|desired| self.is_mine(&desired.uid));
            // One that is back stays until its Node says what it is, and until its agent has answered what it was told since.
            let is_unheard = match mine {
                Some(_) => node.report().is_none() && matches!(self.place(node), Place::Out | Place::Staging(_)),
                None => !self.wish.spec.abort && self.chosen(node),
            };
            let is_ours = mine.is_some() || self.chosen(node);
            let stays = self.wish.plane(&node.name).is_some() && ((node.unlabelled && is_ours) || is_unheard);
            if !is_at_work && !node.held() && !stays {
                continue;
            }
            let is_next = |desired: &Desired| {
                let goes = is_at_work && !desired.go && desired.kubernetes.is_some();
                goes && !self.has_first(node) && !all.iter().any(|other| other.first)
            };
            let first = match mine {
                Some(desired) => self.fits(desired) && (desired.first || is_next(desired)),
                None => self.was_first(&node.name),
            };
            all.push(PlaneAtWork { name: node.name.clone(), retry: self.wish.spec.retry, first });
        }
        all
    }

    fn watch(&mut self, node: &'a NodeSeen, desired: &'a Desired, note: Option<&'a Note>) {
        let said = node.report();
        if said.is_none_or(|said| !said.state.is_end()) {
            let heard = said.map(|said| said.state);
            if note.is_none_or(|note| note.state != NoteState::Begun || note.heard != heard) {
                let note = self.heard(node, desired.attempt, NoteState::Begun, "");
                let word = heard.map_or("nothing yet", ReportedState::as_str);
                let change = Change { note, ..Change::default() };
                self.steps.push(write(node, change, "Heard", format!("its agent says: {word}")));
            } else if self.limit(GOING).is_some_and(|limit| node.waited >= limit) {
                return self.give_up(node, desired.attempt, GOING);
            }
        }
        let Some(said) = said else {
            return self.say(node, NodeState::Upgrading, "its agent has not answered");
        };
        match said.state {
            ReportedState::Failed => self.fail(node, desired.attempt, &failure(said), false),
            ReportedState::RolledBack => self.fail(node, desired.attempt, &failure(said), true),
            ReportedState::Healthy => match self.lie(said).filter(|_| self.fits(desired)) {
                Some(lie) => self.fail(node, desired.attempt, &lie, false),
                None if !node.ready => {
                    self.await_ready(node, desired.attempt, NoteState::Begun, NodeState::Upgrading);
                }
                None if self.wish.spec.strategy.soak_seconds == 0 => self.finish(node, desired.attempt),
                None => {
                    let change =
                        Change { note: self.note(desired.attempt, NoteState::Soaking, ""), ..Change::default() };
                    self.steps.push(write(node, change, "Soaking", "is healthy, and is watched".into()));
                    self.say(node, NodeState::Soaking, "");
                }
            },
            ReportedState::Rebooting => self.say(node, NodeState::Rebooting, &said.detail),
            _ => self.say(node, NodeState::Upgrading, &said.detail),
        }
    }

    /// Its agent has let it pass, and the cluster does not call it Ready: that may take a moment. When it takes long, its kubelet has
    /// lost the cluster since, and nobody would hear of it.
    fn await_ready(&mut self, node: &'a NodeSeen, attempt: u32, noted: NoteState, told: NodeState) {
        let limit = self.limit(GOING).unwrap_or(NOT_READY);
        let note = node.note.as_ref().filter(|note| self.is_mine(&note.uid));
        if note.is_none_or(|note| note.state != noted || note.heard != Some(ReportedState::Healthy)) {
            let change = Change { note: self.heard(node, attempt, noted, ""), ..Change::default() };
            self.steps.push(write(node, change, "Heard", "its agent says: healthy".to_owned()));
        } else if node.waited >= limit {
            return self.fail(node, attempt, &never_ready(limit), false);
        }
        self.say(node, told, "healthy by its agent, and not Ready");
    }

    fn soak(&mut self, node: &'a NodeSeen, note: &'a Note) {
        let soaks = Duration::seconds(self.wish.spec.strategy.soak_seconds.into());
        let over = node.waited >= soaks;
        let long = self.limit(GOING).unwrap_or(NOT_READY);
        match node.report().filter(|said| said.state.is_end()) {
            Some(said) if said.state == ReportedState::RolledBack => {
                self.fail(node, note.attempt, &failure(said), true)
            }
            Some(said) if said.state == ReportedState::Failed => self.fail(node, note.attempt, &failure(said), false),
            _ if !node.ready && node.waited >= soaks + long => self.fail(node, note.attempt, &never_ready(long), false),
            _ if !node.ready => self.say(node, NodeState::Soaking, "not Ready"),
            _ if over => self.finish(node, note.attempt),
            _ => self.say(node, NodeState::Soaking, ""),
        }
    }

    /// What an agent that calls itself healthy runs instead of what was desired.
    fn lie(&self, said: &Reported) -> Option<String> {
        let release = &self.wish.spec.release;
        let other = |is: &Option<String>, wanted: Option<&String>| match (is, wanted) {
            (Some(is), Some(wanted)) if is != wanted => {
                Some(format!("calls itself healthy and runs {is}, not {wanted}"))
            }
            _ => None,
        };
        let commit = release.os.as_ref().and_then(|os| os.commit.as_ref());
        other(&said.os, commit).or_else(|| other(&said.kubernetes, release.kubernetes.as_ref()))
    }

    fn finish(&mut self, node: &'a NodeSeen, attempt: u32) {
        let mut change = Change { note: self.note(attempt, NoteState::Done, ""), ..Change::default() };
        if node.cordoned_by.is_some() {
            change.uncordon();
        }
        let message = format!("is healthy on the release {}", self.wish.spec.release.name);
        self.steps.push(write(node, change, "Done", message));
        self.say(node, NodeState::Done, "");
    }

    /// `back`: it runs what it ran before, and takes pods again.
    fn fail(&mut self, node: &'a NodeSeen, attempt: u32, reason: &str, back: bool) {
        let mut change = Change { note: self.note(attempt, NoteState::Failed, reason), ..Change::default() };
        if back && node.cordoned_by.is_some() {
            change.uncordon();
        }
        self.steps.push(write(node, change, "Failed", reason.to_owned()));
        self.say(node, NodeState::Failed, reason);
    }

    fn has_failed(&self, node: &NodeSeen) -> bool {
        self.told.get(node.name.as_str()).is_some_and(|(state, _)| *state == NodeState::Failed)
    }

    /// What is to be written on a Node, and was refused when it was tried last.
    fn say_refused(&mut self) {
        let is_written = |name: &str| self.steps.iter().any(|s| matches!(s, Step::Write { node, .. } if node == name));
        let refused: Vec<&NodeSeen> =
            self.seen.nodes.iter().filter(|node| !node.refused.is_empty() && is_written(&node.name)).collect();
        for node in refused {
            let text = format!("its Node cannot be written: {}", node.refused);
            self.hold(REFUSED, format!("{}: {text}", node.name));
            if let Some((_, reason)) = self.told.get_mut(node.name.as_str()) {
                *reason = text;
            }
        }
    }

    fn hold(&mut self, code: &'static str, text: impl Into<String>) {
        if self.why.is_none() {
            self.why = Some(Why { code, text: text.into() });
        }
    }

    /// Asks what an image is that is named by its tag: at once, whoever goes first and whatever the hour, for that is the image
    /// that its owner means, and a mistake is said before the night.
    fn look_up(&mut self) {
        let wanted = self.wish.problem.is_none() && !self.wish.spec.abort;
        if let Some(asked) =
            self.wish.unknown().filter(|asked| wanted && image::is_due(asked, self.seen.looked.as_ref()))
        {
            self.steps.push(Step::LookUp { image: asked.to_owned() });
        }
    }

    /// Lets the next ones begin, if any may.
    fn begin(&mut self) {
        let spec = &self.wish.spec;
        let chosen: Vec<&'a NodeSeen> = self.seen.nodes.iter().filter(|node| self.chosen(node)).collect();
        // Those that fail in this very look count too.
        let too_many = self.too_many(|node| self.has_failed(node));
        if let Some(problem) = &self.wish.problem {
            return self.hold("Invalid", problem.clone());
        } else if spec.abort {
            return self.hold("Aborted", IS_CALLED_OFF);
        } else if let Some(asked) = self.wish.unknown() {
            let why = image::why(asked, self.seen.looked.as_ref());
            return self.hold(why.code, why.text);
        } else if let Some(ahead) = &self.seen.ahead {
            return self.hold("AnotherUpdate", format!("the update {ahead} is older and goes first"));
        } else if let Some(text) = too_many {
            return self.hold("NodesFailed", text);
        } else if spec.paused {
            return self.hold("Paused", IS_PAUSED);
        } else if chosen.is_empty() {
            return self.hold("NoNodes", "spec.nodeSelector chooses no node");
        } else if let Some(hours) = self.wish.hours.as_ref().filter(|hours| !hours.is_open(self.now)) {
            let next = hours.next(self.now).map(|next| {
                let (date, hour, minute) = (next.date(), next.hour(), next.minute());
                format!("; it opens at {date} {hour:02}:{minute:02} UTC")
            });
            let next = next.unwrap_or_default();
            return self.hold("WindowClosed", format!("the window is closed{next}"));
        }
        let mut waiting: Vec<&'a NodeSeen> =
            chosen.iter().copied().filter(|node| matches!(self.place(node), Place::Staged)).collect();
        let own = self.seen.own_node.as_deref();
        waiting.sort_by_key(|node| (!node.control_plane, own == Some(node.name.as_str()), &node.name));
        let limit = spec.max_unavailable.of(chosen.len());
        let counts = |node: &&NodeSeen| node.held() || (self.chosen(node) && !node.ready);
        let mut away = self.seen.nodes.iter().filter(counts).count() + self.missing.len();
        let mut busy = self.seen.nodes.iter().filter(|node| node.busy_for().is_some()).count();
        for node in waiting {
            if let Some(why) = self.not_yet(node).or_else(|| self.is_last(node)) {
                self.give_back(node);
                self.say(node, NodeState::Staged, why.text.clone());
                self.hold(why.code, why.text);
                continue;
            }
            let fits = if node.held() { busy < limit } else { away < limit };
            if !fits {
                self.say(node, NodeState::Staged, "waits for its turn");
                self.hold("MaxUnavailable", format!("{away} nodes are away, and {limit} may be"));
                continue;
            }
            let obstacles = match &node.pods {
                None => {
                    self.steps.push(Step::Inspect { node: node.name.clone() });
                    Vec::new()
                }
                Some(pods) => pods.obstacles.clone(),
            };
            if !obstacles.is_empty() && spec.strategy.drain.policy == DrainPolicy::Evict {
                let text = obstacles.join("; ");
                self.say(node, NodeState::Blocked, &text);
                self.hold("Blocked", format!("{}: {text}", node.name));
                continue;
            }
            busy += 1;
            away += usize::from(!node.held());
            if node.pods.is_some() {
                self.begin_node(node);
            }
            if node.control_plane {
                break;
            }
        }
    }

    fn not_yet(&self, node: &NodeSeen) -> Option<Why> {
        let why = |code, text| Some(Why { code, text });
        if !node.ready && !node.held() {
            return why("NotReady", format!("{} is not Ready", node.name));
        }
        if let Some(missing) = self.missing.first() {
            let (name, again) = (&missing.name, self.wish.again());
            let text = format!(
                "the control plane {name} was on its way when its Node was deleted: {}; to go on without it, {again}",
                tell::comes_back(self.wish, &self.seen.nodes, name)
            );
            return why("ControlPlaneFailed", text);
        }
        let planes = || self.planes.iter().filter(|other| self.chosen(other) && other.name != node.name);
        let failed = planes().find(|other| self.has_failed(other));
        if let Some(other) = failed {
            let again = self.wish.again();
            let text = format!("the control plane {} has failed: put it right, then {again}", other.name);
            return why("ControlPlaneFailed", text);
        }
        if node.control_plane {
            let began = |other: &&&NodeSeen| {
                let first = other.desired.as_ref().is_some_and(|desired| self.fits(desired) && desired.first);
                first && !matches!(self.place(other), Place::Done)
            };
            let began = planes().find(began).map(|other| format!("{} begins again before others", other.name));
            // One that was deleted on its way and has registered again may be at work on what it was told before.
            let is_new = |other: &&&NodeSeen| {
                other.report().is_none() && matches!(self.place(other), Place::Out | Place::Staging(_))
            };
            let unheard = || planes().find(is_new).map(|other| format!("the agent of {} has not answered", other.name));
            return self.others_hold(node).or(began).or_else(unheard).and_then(|text| why("ControlPlanes", text));
        }
        if let Some(other) = planes().find(|other| !matches!(self.place(other), Place::Done)) {
            return why("ControlPlanes", format!("the control plane {} comes before workers", other.name));
        }
        let wanted = self.wish.spec.release.kubernetes.as_deref().and_then(version_of)?;
        let behind =
            |other: &&&NodeSeen| !self.chosen(other) && version_of(&other.kubelet).is_some_and(|is| is < wanted);
        let other = self.planes.iter().find(behind)?;
        let text = format!("the control plane {} runs {}: a worker may not be newer", other.name, other.kubelet);
        why("ControlPlanes", text)
    }

    /// The node that this operator runs on begins after all others of its role, also those that are not staged yet.
    fn is_last(&self, node: &NodeSeen) -> Option<Why> {
        if self.seen.own_node.as_ref() != Some(&node.name) {
            return None;
        }
        let comes = |other: &&NodeSeen| {
            let same = other.control_plane == node.control_plane && other.name != node.name;
            same && self.chosen(other) && matches!(self.place(other), Place::Out | Place::Staging(_))
        };
        let other = self.seen.nodes.iter().find(comes)?;
        let text = format!("the operator runs on {}: {} comes first, and is not staged yet", node.name, other.name);
        Some(Why { code: "OwnNode", text })
    }

    /// A worker that had failed, in this update or in one that was called off, opens as long as control planes keep it
    /// waiting: they could not begin while the worker is the one that may be away. It is Ready, and its agent has staged.
    fn give_back(&mut self, node: &'a NodeSeen) {
        let closed = node.cordoned_by.is_some() && node.busy_for().is_none();
        if closed && node.ready && !node.control_plane {
            let mut change = Change::default();
            change.uncordon();
            let message = "takes pods until its next attempt: control planes come first".to_owned();
            self.steps.push(write(node, change, "GivenBack", message));
        }
    }

    fn begin_node(&mut self, node: &'a NodeSeen) {
        let attempt = node.desired.as_ref().map_or(1, |desired| desired.attempt);
        let mut change = Change { note: self.note(attempt, NoteState::Begun, ""), ..Change::default() };
        // An administrator's cordon is left as it is, now and at the end.
        if !node.unschedulable || node.cordoned_by.is_some() {
            change.cordon = Some(true);
            change.cordoned_by = Some(Some(self.wish.uid.clone()));
        }
        self.steps.push(write(node, change, "Draining", "takes no new pods, and its pods leave".into()));
        self.say(node, NodeState::Draining, "");
    }
}

/// It was told to stage, and has not begun.
fn was_staging(node: &NodeSeen, note: &Note) -> bool {
    note.state == NoteState::Staging || (note.state == NoteState::Silent && !node.is_silent())
}

fn never_ready(long: Duration) -> String {
    format!("healthy by its agent, and not Ready for {} minutes: see its kubelet and its network", long.whole_minutes())
}

fn failure(said: &Reported) -> String {
    let what = match said.state {
        ReportedState::RolledBack => "rolled back",
        _ => "failed",
    };
    if said.detail.is_empty() { what.into() } else { format!("{what}: {}", said.detail) }
}

#[cfg(test)]
#[path = "plan_tests/mod.rs"]
mod tests;
