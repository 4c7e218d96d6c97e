//! The life of an update on a node, as a pure function.
//!
//! ```text
//! Stage ─────▶ Staged ──go──▶ Kubeadm ─────▶ Arm ─────▶ Restart ──new system──▶ Check ─────▶ Confirm ─────▶ Healthy
//!   │            │               │             │            │                     │
//!   │ called off │ called off    │ fails       └────────────┴─ the old system     │ not healthy in time
//!   ▼            ▼               ▼                                ▼               ▼
//! (nothing)    (nothing)       Settle ◀───────────────────────────┴──────────── Revert ─▶ (restart, the old system)
//!                                └─────▶ RolledBack
//! ```
//! `step` takes an event and gives the next state and what to do. It knows no clock and no disk: [`Now`] is an argument,
//! and [`System`] is what was seen. Before an effect begins, the stage that it belongs to is in the journal, and its end
//! is there before the next one begins; so that an agent that was killed, or a node that lost its power, begins its
//! stage again, and every effect may be begun again.
//!
//! What always holds: nothing restarts before the operator has said `go` of the very attempt that is laid out here; a node whose kubeadm has begun, or that is about to
//! restart, comes to an end whatever the operator says then; `Healthy` comes after the gate has let the node pass on the very
//! system that was asked for; what did not come up here is not tried again until a person asks for another attempt.

use std::time::Duration;

use nkd_api::update::{Desired, Reported, ReportedState};

pub use super::event::{Action, Deployment, Event, Failure, Ill, Now, Plane, Retry, Settings, System, Tree, id_of};
pub use super::journal::{Denied, Job, Journal, Stage};

/// Downloads that fail are tried again so many times.
pub const STAGE_TRIES: u32 = 6;
/// kubeadm and the effects on the boot loader are tried so many times.
pub const EFFECT_TRIES: u32 = 3;
/// A release that was staged and did not become the next system, without having been tried, is staged again so often.
pub const RESTAGES: u32 = 3;
/// So often kubeadm, or what arms the boot loader, may be cut off: who goes with it each time would not get further the next time
/// either.
pub const CUTS: u32 = 10;
/// Wait after the first failure; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// After so many waits for somebody who is away, each further one is as long as the last.
const LONG_WAITS: u32 = 3;
/// Between two looks of the gate.
const LOOK: Duration = Duration::from_secs(5);
/// Wait before a report, or a restart, is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// What the operator hears when it has said `go` of an attempt that was never begun here.
const NOT_LAID_OUT: &str =
    "it was told to go on with what was never laid out here: nothing was touched, and it takes another attempt";
/// So long it is waited for a word on what kubeadm has made of a control plane. Without one kubeadm finds out by itself, in its turn.
const UNSAID: Duration = Duration::from_secs(600);
/// Static pods have at least so long to come up, however short the gate is: the kubelet waits up to five minutes before it starts
/// one again that ended.
const HALF: Duration = Duration::from_secs(420);
/// So many refused releases are remembered.
const DENIED: usize = 32;

/// What the agent knows.
#[derive(Debug, Clone)]
pub struct State {
    settings: Settings,
    journal: Journal,
    system: Option<System>,
    /// An effect is under way.
    busy: bool,
    /// A look at the node is under way.
    looking: bool,
    /// The node is to be looked at again before anything else.
    look_again: bool,
    /// What is known of the node was seen in this very step.
    fresh: bool,
    /// What the cluster asks for, until the node was looked at.
    pending: Option<Desired>,
    /// Failures one after the other, in this stage.
    failures: u32,
    /// Tries that could not begin, because somebody else is away, in this stage, one after the other.
    waits: u32,
    /// Since when this node's own API server, which was left half replaced, is waited for.
    half_since: Option<Duration>,
    /// Since when nobody says what kubeadm has made of this node.
    unsaid_since: Option<Duration>,
    /// Nothing is begun before this.
    not_before: Duration,
    /// Since when the gate looks, and since when it lets pass.
    gate: Option<(Duration, Option<Duration>)>,
    /// What the gate said last.
    why: String,
    tree: Option<Tree>,
    /// What the cluster says that the node has said; none: not known.
    told: Option<Option<Reported>>,
    telling: bool,
    tell_not_before: Duration,
}

impl State {
    /// With what was kept. The first thing that it asks for is a look at the node.
    #[must_use]
    pub fn new(settings: Settings, journal: Journal) -> Self {
        Self {
            settings,
            journal,
            system: None,
            busy: false,
            looking: false,
            look_again: false,
            fresh: false,
            pending: None,
            failures: 0,
            waits: 0,
            half_since: None,
            unsaid_since: None,
            not_before: Duration::ZERO,
            gate: None,
            why: String::new(),
            tree: None,
            told: None,
            telling: false,
            tell_not_before: Duration::ZERO,
        }
    }

    /// What is kept.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// When something is to be done that no event brings; none: nothing.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let effect = (!self.busy && !self.looking && self.wants_effect()).then_some(self.not_before);
        let tell = (!self.telling && self.wants_to_tell()).then_some(self.tell_not_before);
        effect.into_iter().chain(tell).min()
    }

    /// Takes an event.
    #[must_use]
    pub fn step(mut self, event: Event, now: Now) -> (Self, Vec<Action>) {
        let before = self.journal.clone();
        let mut said = Vec::new();
        match event {
            Event::Tick => {}
            Event::Seen(seen) => self.seen(seen, now, &mut said),
            Event::Desired(desired, told) => {
                self.told = Some(told);
                self.desired(desired, now, &mut said);
            }
            Event::Told(Ok(())) => {
                self.telling = false;
                self.told = Some(self.report());
            }
            Event::Told(Err(reason)) => {
                self.telling = false;
                self.tell_not_before = now.uptime + AGAIN;
                said.push(Action::Say(format!("the cluster was not told: {reason}")));
            }
            Event::Ended(ended) => self.ended(ended, now, &mut said),
            Event::Checked(checked) => self.checked(checked, now, &mut said),
        }
        let mut actions = Vec::new();
        if self.journal != before {
            actions.push(Action::Remember(Box::new(self.journal.clone())));
        }
        actions.extend(said);
        actions.extend(self.next(now));
        (self, actions)
    }

    fn stage(&self) -> Option<Stage> {
        self.journal.job.as_ref().map(|job| job.stage)
    }

    /// There is an effect for this stage.
    fn wants_effect(&self) -> bool {
        match self.stage() {
            _ if self.system.is_none() || self.look_again => true,
            None | Some(Stage::Healthy | Stage::RolledBack | Stage::Failed) => false,
            Some(Stage::Staged) => self.tree.is_none(),
            Some(_) => true,
        }
    }

    fn next(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.telling
            && self.wants_to_tell()
            && now.uptime >= self.tell_not_before
            && let Some(report) = self.report()
        {
            self.telling = true;
            actions.push(Action::Tell(report));
        }
        if self.busy || self.looking || now.uptime < self.not_before || !self.wants_effect() {
            return actions;
        }
        if self.system.is_none() || self.look_again {
            (self.looking, self.look_again) = (true, false);
            actions.push(Action::Look);
            return actions;
        }
        let Some(job) = &self.journal.job else { return actions };
        let desired = || Box::new(job.desired.clone());
        let id = || job.desired.os.as_ref().and_then(id_of).unwrap_or_default().to_owned();
        let action = match job.stage {
            // A tree that is not known any more is laid out again: nothing is fetched twice.
            Stage::Stage | Stage::Staged => Action::Stage(desired()),
            Stage::Kubeadm => Action::Kubeadm(desired()),
            Stage::Arm => Action::Arm(id()),
            Stage::Restart | Stage::RevertRestart => Action::Restart,
            Stage::Check => Action::Check(Box::new(job.clone())),
            Stage::Confirm => Action::Confirm,
            Stage::Revert => Action::Revert,
            Stage::Settle | Stage::CalledOff => Action::Settle,
            Stage::Healthy | Stage::RolledBack | Stage::Failed => return actions,
        };
        if job.stage == Stage::Check {
            // A first look may take long.
            self.gate.get_or_insert((now.uptime, None));
        }
        self.busy = true;
        actions.push(action);
        actions
    }

    /// The next stage. Its effect begins when it is in the journal.
    fn go(&mut self, stage: Stage, reason: Option<String>) {
        let boot_id = self.system.as_ref().map(|system| system.boot_id.clone());
        if let Some(job) = &mut self.journal.job {
            job.stage = stage;
            job.boot_id = boot_id.unwrap_or_default();
            if let Some(reason) = reason {
                job.reason = reason;
            }
        }
        (self.failures, self.waits, self.not_before, self.gate) = (0, 0, Duration::ZERO, None);
        self.half_since = None;
        self.why.clear();
    }

    fn seen(&mut self, seen: Result<System, String>, now: Now, said: &mut Vec<Action>) {
        self.looking = false;
        let system = match seen {
            Ok(system) => system,
            Err(reason) => {
                // Who has asked for a look has none yet.
                (self.look_again, self.not_before) = (true, now.uptime + AGAIN);
                said.push(Action::Say(format!("the node cannot be looked at: {reason}")));
                return;
            }
        };
        self.not_before = Duration::ZERO;
        self.system = Some(system);
        self.resume();
        self.fresh = true;
        if let Some(desired) = self.pending.take() {
            self.desired(Some(desired), now, said);
        }
        self.begin_upgrade();
        // Who has asked for a look while this one was under way has it, unless it did not show what is wanted.
        (self.fresh, self.look_again) = (false, self.pending.is_some());
    }

    /// What a start finds: an agent that was killed, or a machine that has restarted, by order or by a power cut.
    fn resume(&mut self) {
        let (Some(job), Some(system)) = (self.journal.job.clone(), self.system.clone()) else { return };
        let target = job.desired.os.as_ref().and_then(id_of);
        let there = target.is_none() || target == system.booted();
        let restarted = job.boot_id != system.boot_id;
        let fell_back = || target.is_some_and(|target| system.has(target));
        match job.stage {
            // It was given up, and runs after all: the boot loader has gone back to it, say.
            Stage::Settle if target.is_some() && there && target != job.from.as_deref() => self.go(Stage::Revert, None),
            Stage::Healthy | Stage::RolledBack | Stage::Failed | Stage::Settle | Stage::CalledOff => {}
            // It is laid out again, since what was only staged is gone after a power cut.
            Stage::Stage => {}
            Stage::Staged if restarted => self.go(Stage::Stage, None),
            Stage::Staged => {}
            Stage::Kubeadm => {
                if let Some(job) = &mut self.journal.job {
                    // A journal of an older agent does not say so.
                    job.kubeadm_began = true;
                }
                self.cut_off("kubeadm");
            }
            // Laid out again, it is locked again: it may be called off, or wait.
            Stage::Arm if !restarted || !(there || fell_back()) => self.cut_off("making the release the next system"),
            // The machine may be going down already: it is told so once more.
            Stage::Restart if !restarted && system.is_staged(target) => {}
            Stage::Restart if !restarted && !there => self.go(Stage::Stage, None),
            Stage::Arm | Stage::Restart | Stage::Check | Stage::Confirm if there => self.go(Stage::Check, None),
            Stage::Arm | Stage::Restart | Stage::Check | Stage::Confirm if fell_back() => {
                let why = "the release did not come up, and the boot loader went back to the system before".to_owned();
                self.condemn(Stage::Settle, why);
            }
            Stage::Arm | Stage::Restart | Stage::Check | Stage::Confirm => self.stage_again(&system),
            Stage::Revert | Stage::RevertRestart if !there => self.go(Stage::Settle, None),
            Stage::Revert | Stage::RevertRestart => self.go(Stage::Revert, None),
        }
    }

    /// An effect on the system that runs was cut off, with the agent or with the node's power: that says nothing of the release,
    /// until it happens again and again.
    fn cut_off(&mut self, what: &str) {
        let cuts = self.journal.job.as_mut().map_or(0, |job| {
            job.cuts += 1;
            job.cuts
        });
        if cuts < CUTS {
            return self.go(Stage::Stage, None);
        }
        let why = format!(
            "{what} was cut off; with others that makes {cuts} times, each time with this agent: its journal says why"
        );
        self.go(Stage::Settle, Some(why));
    }

    /// It was staged, and is not the next system: the power went before it was made.
    fn stage_again(&mut self, system: &System) {
        let Some(job) = &mut self.journal.job else { return };
        job.restaged += 1;
        let failure = system.finalize_failure.clone();
        if job.restaged <= RESTAGES {
            self.go(Stage::Stage, None);
        } else {
            let why = failure.unwrap_or_else(|| "its deployment was not there after a restart".to_owned());
            self.condemn(Stage::Settle, format!("the release was laid out {RESTAGES} times and did not boot: {why}"));
        }
    }

    /// The release did not come up here.
    fn condemn(&mut self, stage: Stage, reason: String) {
        self.go(stage, Some(reason));
        if let Some(job) = &mut self.journal.job {
            job.condemned = true;
        }
    }

    fn desired(&mut self, desired: Option<Desired>, now: Now, said: &mut Vec<Action>) {
        self.pending = None;
        let job = self.journal.job.as_mut();
        let Some(desired) = desired else {
            match job {
                Some(job) if !job.is_harmless() => self.give_up("it was called off"),
                Some(_) if !self.busy => {
                    said.push(Action::Say("the update was called off".to_owned()));
                    self.go(Stage::CalledOff, None);
                }
                _ => {}
            }
            return;
        };
        if self.system.is_none() {
            self.pending = Some(desired);
            return;
        }
        match job {
            Some(job) if job.desired.uid == desired.uid && job.desired.attempt == desired.attempt => {
                if job.stage.is_end() {
                    return;
                }
                let same = (&job.desired.os, &job.desired.kubernetes) == (&desired.os, &desired.kubernetes);
                match (job.is_harmless(), same) {
                    (true, true) => job.desired = desired,
                    (true, false) if self.busy => return,
                    (true, false) => return self.replace(desired, now, said),
                    (false, true) => {}
                    (false, false) => self.give_up("another release was asked for"),
                }
                self.begin_upgrade();
            }
            Some(job) if !job.stage.is_end() && !job.is_harmless() => self.give_up("another update was asked for"),
            Some(_) if self.busy => {}
            _ => self.replace(desired, now, said),
        }
    }

    /// Another attempt takes the place of this one. What was cut off while it was armed may still be made the next system: that is
    /// put away first, and the other begins when it is asked for again.
    fn replace(&mut self, desired: Desired, now: Now, said: &mut Vec<Action>) {
        match &self.journal.job {
            Some(job) if job.is_harmless() && job.cuts > 0 => self.go(Stage::CalledOff, None),
            _ => self.begin(desired, now, said),
        }
    }

    /// What has begun comes to its end whatever is asked for. But when its release has to be fetched once more, and who has it is
    /// away, that may be never: then its end is the way back.
    fn give_up(&mut self, why: &str) {
        if self.waits > 0 && !self.busy && self.stage().is_some_and(Stage::is_before_turn) {
            let reason = format!("{why} while a kubeadm that was cut off waited to go on: {}", self.why);
            self.go(Stage::Settle, Some(reason));
        }
    }

    /// A new attempt. It goes by the node as it is now: what was seen when the agent started is of no use.
    fn begin(&mut self, desired: Desired, now: Now, said: &mut Vec<Action>) {
        if !self.fresh {
            (self.pending, self.look_again) = (Some(desired), true);
            return;
        }
        let Some(system) = &self.system else { return };
        let id = desired.os.as_ref().and_then(id_of).map(str::to_owned);
        let from = system.booted().map(str::to_owned);
        let (boot_id, failed_before) = (system.boot_id.clone(), system.failed_units.clone());
        let there = match self.is_there(&desired, system) {
            Ok(there) => there,
            Err(_) if self.unsaid_since.is_some_and(|since| now.uptime.saturating_sub(since) >= UNSAID) => false,
            Err(why) => {
                self.unsaid_since.get_or_insert(now.uptime);
                let why = format!("the cluster's API does not say of which version it is: {why}");
                // Once, not at every look: it may be away for long.
                if self.why != why {
                    said.push(Action::Say(why.clone()));
                }
                (self.why, self.pending, self.not_before) = (why, Some(desired), now.uptime + AGAIN);
                return;
            }
        };
        self.unsaid_since = None;
        said.push(Action::Say(format!("update {}, attempt {}", desired.update, desired.attempt)));
        self.tree = None;
        let refused = self.journal.denied.iter().find(|denied| Some(&denied.id) == id.as_ref()).cloned();
        let again = refused.as_ref().is_some_and(|denied| match desired.retry {
            None => desired.attempt > 1,
            // An object that was made anew says what was asked of the one before.
            Some(retry) if denied.is_of(&desired) => retry > denied.retry,
            Some(retry) => retry > 0,
        });
        let job = Job {
            desired,
            stage: Stage::Stage,
            boot_id,
            from,
            failed_before,
            kubeadm_began: false,
            cuts: 0,
            kubeadm: false,
            restaged: 0,
            reason: String::new(),
            condemned: false,
            put_back: false,
        };
        let told_to_go = job.desired.go;
        self.journal.job = Some(job);
        self.go(if there { Stage::Check } else { Stage::Stage }, None);
        match refused {
            // Who says so speaks of an attempt that ended long ago, or of another disk: a cluster that came back from a snapshot of
            // its etcd, a machine that was put back. Nobody has drained the node for it, and others may be told the same now.
            _ if told_to_go && !there => self.go(Stage::RolledBack, Some(NOT_LAID_OUT.to_owned())),
            Some(denied) if !again => {
                let day = denied.at.date();
                let why = format!("this release did not come up here on {day}: {}; it takes a retry", denied.reason);
                self.go(Stage::RolledBack, Some(why));
            }
            // A person has asked for it.
            Some(denied) => self.journal.denied.retain(|other| other.id != denied.id),
            None => {}
        }
    }

    /// There is nothing to do but to look: what is asked for runs, and it is not that somebody changed half of it by hand. An error:
    /// nobody can tell now.
    fn is_there(&self, desired: &Desired, system: &System) -> Result<bool, String> {
        let id = desired.os.as_ref().and_then(id_of);
        let runs = id.is_none_or(|id| system.booted() == Some(id))
            && desired.kubernetes.as_ref().is_none_or(|version| system.kubernetes.as_ref() == Some(version));
        // Programs that somebody has installed say nothing of kubeadm: without an image, only what was done here is there.
        let done = self.journal.job.as_ref().map_or(id.is_some(), |job| {
            let same = (&job.desired.os, &job.desired.kubernetes) == (&desired.os, &desired.kubernetes);
            job.stage == Stage::Healthy && same
        });
        // The system brings the kubelet alone. Of a control plane kubeadm makes the rest, and etcd may have come back from a
        // snapshot of before.
        match (&system.plane, &desired.kubernetes) {
            (Some(plane), Some(version)) if runs && done => plane.is_of(version),
            _ => Ok(runs && done),
        }
    }

    /// The operator has said `go`, and everything is there.
    fn begin_upgrade(&mut self) {
        let (Some(job), Some(system)) = (&mut self.journal.job, &self.system) else { return };
        let Some(tree) = self.tree.as_ref().filter(|_| job.stage == Stage::Staged && job.desired.go) else { return };
        if !self.fresh {
            self.look_again = true;
            return;
        }
        let next = match (&job.desired.kubernetes, tree.restart) {
            (Some(_), _) if !job.kubeadm => Stage::Kubeadm,
            (_, true) => Stage::Arm,
            (_, false) => Stage::Check,
        };
        let target = job.desired.os.as_ref().and_then(id_of);
        let has_booted = target.is_some() && target == system.booted() && target != job.from.as_deref();
        if !job.has_touched() && !has_booted {
            // Nothing that has failed until now is its doing. When it was begun before and was cut off, this is the later list.
            job.failed_before.clone_from(&system.failed_units);
        }
        job.kubeadm_began |= next == Stage::Kubeadm;
        self.go(next, None);
    }

    fn ended(&mut self, ended: Result<Option<Tree>, Failure>, now: Now, said: &mut Vec<Action>) {
        self.busy = false;
        let Some(job) = &mut self.journal.job else { return };
        let stage = job.stage;
        let tree = match ended {
            Ok(tree) => tree,
            Err(failure) => return self.failed(stage, failure, now, said),
        };
        self.waits = 0;
        match stage {
            Stage::Stage | Stage::Staged => {
                self.tree = tree.or(self.tree.take());
                if stage == Stage::Stage {
                    self.go(Stage::Staged, None);
                }
                self.begin_upgrade();
            }
            Stage::Kubeadm => {
                job.kubeadm = true;
                let restart = self.tree.as_ref().is_some_and(|tree| tree.restart);
                self.go(if restart { Stage::Arm } else { Stage::Check }, None);
            }
            Stage::Arm => self.go(Stage::Restart, None),
            Stage::Restart | Stage::RevertRestart => self.not_before = now.uptime + AGAIN,
            Stage::Confirm => self.go(Stage::Healthy, Some(String::new())),
            Stage::Revert => self.go(Stage::RevertRestart, None),
            Stage::Settle => self.settled(now),
            Stage::CalledOff => {
                self.journal.job = None;
                self.tree = None;
            }
            Stage::Check | Stage::Healthy | Stage::RolledBack | Stage::Failed => {}
        }
    }

    /// Back on what it ran before.
    fn settled(&mut self, now: Now) {
        self.tree = None;
        let Some(job) = &self.journal.job else { return };
        let id = job.desired.os.as_ref().and_then(id_of).map(str::to_owned);
        if let Some(id) = id.filter(|_| job.condemned) {
            self.journal.denied.retain(|denied| denied.id != id);
            let (desired, reason) = (job.desired.clone(), job.reason.clone());
            let retry = desired.retry.unwrap_or_default();
            let denied = Denied { id, reason, update: desired.update, uid: desired.uid, retry, at: now.date };
            self.journal.denied.push(denied);
            let excess = self.journal.denied.len().saturating_sub(DENIED);
            self.journal.denied.drain(..excess);
        }
        self.go(Stage::RolledBack, None);
    }

    fn failed(&mut self, stage: Stage, failure: Failure, now: Now, said: &mut Vec<Action>) {
        let half = failure.retry == Retry::ForAWhile;
        self.half_since = half.then(|| self.half_since.unwrap_or(now.uptime));
        if let Some(since) = self.half_since
            && now.uptime.saturating_sub(since) >= self.settings.gate.max(HALF)
        {
            return self.put_back(stage, &failure.reason, said);
        }
        if matches!(failure.retry, Retry::Patiently | Retry::ForAWhile) {
            // What is wrong is said once. The tries that are counted are kept for what can be tried.
            if self.why != failure.reason {
                said.push(Action::Say(format!("{}: {}", word(stage), failure.reason)));
            }
            self.not_before = now.uptime + wait(self.waits.min(LONG_WAITS));
            self.waits = self.waits.saturating_add(1);
            self.why = failure.reason;
            return;
        }
        let tries = if stage.is_before_turn() { STAGE_TRIES } else { EFFECT_TRIES };
        said.push(Action::Say(format!("{}: {}", word(stage), failure.reason)));
        (self.failures, self.waits) = (self.failures + 1, 0);
        if failure.retry != Retry::Never && self.failures < tries {
            self.not_before = now.uptime + wait(self.failures - 1);
            self.why = failure.reason;
            return;
        }
        let reason = format!("{}: {}", word(stage), failure.reason);
        match stage {
            // An earlier try may have left something.
            Stage::Stage | Stage::Staged | Stage::Kubeadm | Stage::Arm => self.go(Stage::Settle, Some(reason)),
            // Nothing else is left to be done: it is asked for again.
            Stage::Restart | Stage::RevertRestart => {
                self.not_before = now.uptime + AGAIN;
                self.why = failure.reason;
            }
            // What may still be made the next system has to go.
            Stage::CalledOff if self.journal.job.as_ref().is_some_and(|job| job.cuts > 0) => {
                self.not_before = now.uptime + AGAIN;
                self.why = failure.reason;
            }
            Stage::CalledOff => self.journal.job = None,
            _ => self.go(Stage::Failed, Some(reason)),
        }
    }

    /// kubeadm was cut off, what it left does not come up, and nobody else is to blame. It would have put its manifests back.
    fn put_back(&mut self, stage: Stage, reason: &str, said: &mut Vec<Action>) {
        let limit = self.settings.gate.max(HALF).as_secs();
        let why = match &self.journal.job {
            Some(job) if stage == Stage::Settle => job.reason.clone(),
            _ => word(stage).to_owned(),
        };
        let reason = format!("{why}: for {limit} s {reason}; they were put back");
        said.push(Action::Say(reason.clone()));
        self.go(Stage::Settle, Some(reason));
        if let Some(job) = &mut self.journal.job {
            job.put_back = true;
        }
    }

    fn checked(&mut self, checked: Result<System, Ill>, now: Now, said: &mut Vec<Action>) {
        self.busy = false;
        if self.stage() != Some(Stage::Check) {
            return;
        }
        self.not_before = now.uptime + LOOK;
        let (since, passes) = self.gate.unwrap_or((now.uptime, None));
        match checked {
            Ok(system) => {
                // Programs may have been replaced: what is told is what was verified.
                self.system = Some(system);
                let passes = passes.unwrap_or(now.uptime);
                self.gate = Some((since, Some(passes)));
                self.why = "healthy, and watched for a moment".into();
                if now.uptime.saturating_sub(passes) >= self.settings.steady {
                    self.go(Stage::Confirm, None);
                }
            }
            Err(ill) => {
                self.gate = Some((since, None));
                let (reason, blame) = match ill {
                    Ill::Node(reason) => (reason, true),
                    Ill::Unknown(reason) => (reason, false),
                };
                if self.why != reason {
                    said.push(Action::Say(format!("not healthy yet: {reason}")));
                }
                if now.uptime.saturating_sub(since) < self.settings.gate {
                    self.why = reason;
                    return;
                }
                let reason = format!("not healthy after {} s: {reason}", self.settings.gate.as_secs());
                // Without another system there is nothing to go back to.
                let back = self.journal.job.as_ref().is_some_and(|job| {
                    let target = job.desired.os.as_ref().and_then(id_of);
                    target.is_some() && target != job.from.as_deref()
                });
                match (back, blame) {
                    (true, true) => self.condemn(Stage::Revert, reason),
                    (true, false) => self.go(Stage::Revert, Some(reason)),
                    (false, _) => self.go(Stage::Failed, Some(reason)),
                }
            }
        }
    }

    fn wants_to_tell(&self) -> bool {
        let report = self.report();
        self.told.as_ref().is_some_and(|told| report.is_some() && *told != report)
    }

    /// What the cluster is to know.
    #[must_use]
    pub fn report(&self) -> Option<Reported> {
        let job = self.journal.job.as_ref()?;
        let system = self.system.as_ref()?;
        let state = match job.stage {
            Stage::Stage | Stage::CalledOff => ReportedState::Staging,
            Stage::Staged => ReportedState::Staged,
            Stage::Kubeadm | Stage::Arm | Stage::Check | Stage::Confirm | Stage::Settle => ReportedState::Upgrading,
            Stage::Restart | Stage::Revert | Stage::RevertRestart => ReportedState::Rebooting,
            Stage::Healthy => ReportedState::Healthy,
            Stage::RolledBack => ReportedState::RolledBack,
            Stage::Failed => ReportedState::Failed,
        };
        let detail = match (job.stage.is_end(), job.reason.is_empty()) {
            (true, _) => job.reason.clone(),
            (false, true) if self.why.is_empty() => {
                let restarts = job.stage == Stage::Staged && self.tree.as_ref().is_some_and(|tree| tree.restart);
                let caution = system.caution.filter(|_| restarts).map(|caution| format!(": {caution}"));
                format!("{}{}", word(job.stage), caution.unwrap_or_default())
            }
            // The gate tells what it sees. What else has failed may be under way again.
            (false, true) if job.stage == Stage::Check => format!("{}: {}", word(job.stage), self.why),
            (false, true) => format!("{}; the last try: {}", word(job.stage), self.why),
            (false, false) if self.why.is_empty() => format!("goes back: {}", job.reason),
            (false, false) => format!("goes back: {}; it waits: {}", job.reason, self.why),
        };
        Some(Reported {
            uid: job.desired.uid.clone(),
            attempt: job.desired.attempt,
            state,
            detail,
            os: system.booted().map(str::to_owned),
            kubernetes: system.kubernetes.clone(),
        })
    }
}

/// The wait before another try, after so many others.
fn wait(others: u32) -> Duration {
    FIRST_WAIT * 2_u32.pow(others)
}

/// What a stage does, for people.
fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Stage => "fetching the release",
        Stage::Staged => "waiting for its turn",
        Stage::Kubeadm => "kubeadm upgrade",
        Stage::Arm => "making the release the next system",
        Stage::Restart => "restarting",
        Stage::Check => "checking the node",
        Stage::Confirm => "keeping the release",
        Stage::Revert => "making the system before the next one",
        Stage::RevertRestart => "restarting into the system before",
        Stage::Settle => "putting the release away",
        Stage::CalledOff => "called off",
        Stage::Healthy => "healthy",
        Stage::RolledBack => "rolled back",
        Stage::Failed => "failed",
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
