//! Random lives of an update: a world with a disk, a boot loader and a cluster, in which everything may break off anywhere.

use std::collections::VecDeque;
use std::time::Duration;

use nkd_api::update::{Desired, OsRelease, Reported, ReportedState};
use proptest::prelude::*;
use time::OffsetDateTime;

use super::*;

#[path = "state_stories.rs"]
mod stories;

const OLD: &str = "old";
const NEW: &str = "new";

/// How a release behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    Good,
    /// It never comes up.
    NoBoot,
    /// It comes up, and the gate does not let it pass.
    Ill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The agent is killed; whatever it does has been done, or not.
    Kill(bool),
    /// The power goes; whatever it does has been done, or not.
    Power(bool),
    /// The effect says no.
    Fails {
        retry: Retry,
    },
    /// The cluster does not answer.
    Away,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        12 => Just(Fault::None),
        2 => any::<bool>().prop_map(Fault::Kill),
        2 => any::<bool>().prop_map(Fault::Power),
        1 => prop_oneof![Just(Retry::Never), Just(Retry::Few), Just(Retry::Patiently), Just(Retry::ForAWhile)].prop_map(|retry| Fault::Fails { retry }),
        1 => Just(Fault::Away),
    ]
}

struct World {
    release: Release,
    /// On the disk, the one that boots next first.
    deployments: Vec<&'static str>,
    booted: &'static str,
    staged: bool,
    locked: bool,
    /// The boot loader counts.
    counter: Option<u8>,
    boot: u32,
    uptime: Duration,
    /// The journal as it is on the disk.
    disk: Journal,
    desired: Option<Desired>,
    /// The turn in which this is asked for instead.
    changes_mind: Option<(usize, Option<Desired>)>,
    reported: Option<Reported>,
    kubeadm: u32,
    /// It is a control plane.
    plane: Option<Plane>,
    /// kubeadm ended well, and that was written down.
    kubeadm_known: bool,
    /// The first update came to an end.
    ended: bool,
    passed: bool,
    tries_of_new: u32,
}

impl World {
    fn new(release: Release, desired: Desired) -> Self {
        Self {
            release,
            deployments: vec![OLD],
            booted: OLD,
            staged: false,
            locked: false,
            counter: None,
            boot: 1,
            uptime: Duration::from_secs(10),
            disk: Journal::default(),
            desired: Some(desired),
            changes_mind: None,
            reported: None,
            kubeadm: 0,
            plane: None,
            kubeadm_known: false,
            ended: false,
            passed: false,
            tries_of_new: 0,
        }
    }

    fn now(&self) -> Now {
        Now { uptime: self.uptime, date: OffsetDateTime::UNIX_EPOCH + self.uptime }
    }

    fn system(&self) -> System {
        let staged = self.staged.then_some(Deployment { id: NEW.into(), booted: false, staged: true });
        let real = self.deployments.iter().map(|id| Deployment {
            id: (*id).into(),
            booted: *id == self.booted,
            staged: false,
        });
        System {
            boot_id: self.boot.to_string(),
            deployments: staged.into_iter().chain(real).collect(),
            finalize_failure: None,
            kubernetes: Some(if self.booted == OLD { "v1" } else { "v2" }.into()),
            plane: self.plane.clone(),
            failed_units: Vec::new(),
            caution: None,
        }
    }

    /// In order, or by a power cut: then nothing staged is made.
    fn restart(&mut self, in_order: bool) {
        if in_order && self.staged && !self.locked {
            self.deployments.insert(0, NEW);
            self.deployments.dedup();
        }
        (self.staged, self.locked) = (false, false);
        self.boot += 1;
        self.uptime = Duration::from_secs(10);
        let mut default = self.deployments[0];
        if default == NEW {
            self.tries_of_new += 1;
            match (&mut self.counter, self.release) {
                (Some(0), _) => default = OLD,
                (Some(_), Release::NoBoot) => {
                    self.counter = Some(0);
                    default = OLD;
                }
                (Some(left), _) => *left -= 1,
                (None, Release::NoBoot) => panic!("the node never comes back: {:?}", self.disk),
                (None, _) => {}
            }
        }
        self.booted = default;
    }

    /// Does what is asked; none: the machine is another one now.
    fn perform(&mut self, action: &Action) -> Option<Event> {
        if let Some(stage) = self.disk.job.as_ref().map(|job| job.stage) {
            let fits = match action {
                Action::Stage(_) => matches!(stage, Stage::Stage | Stage::Staged),
                Action::Kubeadm(_) => stage == Stage::Kubeadm,
                Action::Arm(id) => stage == Stage::Arm && id == NEW,
                Action::Restart => matches!(stage, Stage::Restart | Stage::RevertRestart),
                Action::Check(_) => stage == Stage::Check,
                Action::Confirm => stage == Stage::Confirm,
                Action::Revert => stage == Stage::Revert,
                Action::Settle => matches!(stage, Stage::Settle | Stage::CalledOff),
                _ => true,
            };
            assert!(fits, "{action:?} begins while the journal says {stage:?}");
        }
        let ended = Event::Ended(Ok(None));
        Some(match action {
            Action::Look => Event::Seen(Ok(self.system())),
            Action::Remember(_) | Action::Say(_) => unreachable!(),
            Action::Tell(report) => {
                self.reported = Some(report.clone());
                Event::Told(Ok(()))
            }
            Action::Stage(desired) => {
                if self.booted != NEW {
                    // It was given up before: that goes first, while the boot loader still counts.
                    self.deployments.retain(|id| *id != NEW);
                }
                self.counter = self.counter.filter(|_| self.booted == NEW);
                let restart = desired.os.is_some() && self.booted != NEW;
                if restart {
                    (self.staged, self.locked) = (true, true);
                }
                Event::Ended(Ok(Some(Tree { restart })))
            }
            Action::Kubeadm(desired) => {
                assert!(desired.go, "kubeadm before its turn");
                assert!(!self.kubeadm_known, "kubeadm ran again after it was known to have ended well");
                self.kubeadm += 1;
                if let Some(plane) = &mut self.plane {
                    plane.server.clone_from(&desired.kubernetes);
                    plane.config = Ok(desired.kubernetes.clone());
                }
                ended
            }
            Action::Arm(_) => {
                assert!(self.disk.job.as_ref().unwrap().desired.go);
                (self.counter, self.locked) = (Some(3), false);
                ended
            }
            Action::Restart => {
                assert!(self.disk.job.as_ref().unwrap().desired.go, "a restart before its turn");
                self.restart(true);
                return None;
            }
            Action::Check(job) => {
                self.uptime += Duration::from_secs(1);
                let target = job.desired.os.as_ref().and_then(id_of);
                let right = target.is_none() || target == Some(self.booted);
                let healthy = right && (self.release != Release::Ill || self.booted == OLD);
                self.passed |= healthy;
                Event::Checked(if healthy { Ok(self.system()) } else { Err(Ill::Node("ill".into())) })
            }
            Action::Confirm => {
                self.counter = None;
                ended
            }
            Action::Revert => {
                self.counter = None;
                assert_eq!((self.booted, self.deployments.len()), (NEW, 2));
                self.deployments = vec![OLD, NEW];
                ended
            }
            Action::Settle => {
                (self.staged, self.locked, self.counter) = (false, false, None);
                assert_eq!(self.booted, OLD, "what runs is put away");
                self.deployments = vec![OLD];
                ended
            }
        })
    }
}

fn desired(attempt: u32) -> Desired {
    Desired {
        update: "u".into(),
        uid: "u1".into(),
        attempt,
        retry: None,
        os: Some(OsRelease { commit: Some(NEW.into()), ..OsRelease::default() }),
        kubernetes: Some("v2".into()),
        first: false,
        go: false,
        ignore_preflight_errors: Vec::new(),
    }
}

/// Runs the world; true when the attempt has come to its end and the cluster knows. From `go_at` on the operator says `go`, as soon
/// as it hears that this very attempt is laid out; what is asked for later instead never gets its turn.
fn run(world: &mut World, faults: &[Fault], go_at: usize, limit: usize) -> bool {
    let settings = Settings { gate: Duration::from_secs(60), steady: Duration::from_secs(10) };
    let mut state = State::new(settings, world.disk.clone());
    let mut queue: VecDeque<Action> = VecDeque::new();
    let mut faults = faults.iter().copied();
    let mut gets_its_turn = true;
    for turn in 0..limit {
        let staged = |desired: &Desired, said: &Reported| {
            (&desired.uid, desired.attempt) == (&said.uid, said.attempt) && said.state == ReportedState::Staged
        };
        if turn >= go_at
            && gets_its_turn
            && let (Some(desired), Some(said)) = (&mut world.desired, &world.reported)
            && staged(desired, said)
        {
            desired.go = true;
        }
        if let Some((_, instead)) = world.changes_mind.take_if(|(at, _)| *at == turn) {
            (world.desired, gets_its_turn) = (instead, false);
        }
        let event = match queue.pop_front() {
            Some(Action::Remember(journal)) => {
                world.disk = *journal;
                world.kubeadm_known = world.disk.job.as_ref().is_some_and(|job| job.kubeadm);
                world.ended |= world.disk.job.as_ref().is_some_and(|job| job.desired.uid == "u1" && job.stage.is_end());
                continue;
            }
            Some(Action::Say(_)) => continue,
            Some(action) => {
                if turn % 3 == 0 {
                    // The cluster is asked all the while, whatever is under way.
                    let asked = Event::Desired(world.desired.clone(), world.reported.clone());
                    let actions;
                    (state, actions) = state.step(asked, world.now());
                    queue.extend(actions);
                }
                let fault = faults.next().unwrap_or(Fault::None);
                let effect = !matches!(action, Action::Look | Action::Tell(_) | Action::Check(_) | Action::Restart);
                match fault {
                    Fault::Fails { retry } if effect => {
                        Some(Event::Ended(Err(Failure { retry, reason: "it says no".into() })))
                    }
                    Fault::Away if matches!(action, Action::Tell(_)) => Some(Event::Told(Err("away".into()))),
                    Fault::Away if matches!(action, Action::Kubeadm(_)) => {
                        let failure = Failure { retry: Retry::Patiently, reason: "away".into() };
                        Some(Event::Ended(Err(failure)))
                    }
                    Fault::Kill(done) | Fault::Power(done) => {
                        let in_order = done && action == Action::Restart;
                        if done {
                            world.perform(&action);
                        }
                        if matches!(fault, Fault::Power(_)) && !in_order {
                            world.restart(false);
                        }
                        None
                    }
                    _ => world.perform(&action),
                }
            }
            None => {
                let asked = world.desired.as_ref().map(|desired| (desired.uid.clone(), desired.attempt));
                let done = state
                    .report()
                    .filter(|report| report.state.is_end() && Some((report.uid.clone(), report.attempt)) == asked);
                if done.is_some() && done == world.reported {
                    return true;
                }
                world.uptime = state.deadline().unwrap_or_default().max(world.uptime + Duration::from_secs(1));
                match turn % 2 {
                    0 => Some(Event::Tick),
                    _ => Some(Event::Desired(world.desired.clone(), world.reported.clone())),
                }
            }
        };
        let Some(event) = event else {
            // It is started anew, with what is on the disk.
            queue.clear();
            state = State::new(settings, world.disk.clone());
            continue;
        };
        let actions;
        (state, actions) = state.step(event, world.now());
        queue.extend(actions);
    }
    false
}

fn what_holds_at_the_end(world: &World) {
    let said = world.reported.clone().unwrap();
    match said.state {
        ReportedState::Healthy => {
            assert_eq!((world.booted, world.release, world.passed), (NEW, Release::Good, true));
            assert!(world.kubeadm > 0 && world.counter.is_none());
            assert_eq!(said.os.as_deref(), Some(NEW));
        }
        ReportedState::RolledBack => {
            assert_eq!(world.booted, OLD);
            assert!(!said.detail.is_empty(), "nobody knows why");
            assert!(world.counter.is_none() && !world.staged, "{:?}", world.counter);
        }
        // Only what the effects themselves refused to do.
        ReportedState::Failed => assert!(said.detail.contains("it says no"), "{}", said.detail),
        other => panic!("{other:?} is no end"),
    }
}

fn release() -> impl Strategy<Value = Release> {
    prop_oneof![Just(Release::Good), Just(Release::NoBoot), Just(Release::Ill)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_breaks_the_node_ends_on_the_old_or_the_new_release(
        release in release(), faults in prop::collection::vec(fault(), 0..60), go_at in 0_usize..60,
    ) {
        let mut world = World::new(release, desired(1));
        prop_assert!(run(&mut world, &faults, go_at, 4000), "it does not end: {:?} {:?}", world.disk, world.reported);
        what_holds_at_the_end(&world);
        if release != Release::Good {
            prop_assert_eq!(world.booted == NEW && world.reported.as_ref().unwrap().state == ReportedState::Healthy, false);
        }
    }

    #[test]
    fn a_release_that_did_not_come_up_is_not_tried_again_until_somebody_asks(
        bad in prop_oneof![Just(Release::NoBoot), Just(Release::Ill)],
        faults in prop::collection::vec(prop_oneof![3 => Just(Fault::None), 1 => any::<bool>().prop_map(Fault::Kill)], 0..30),
        says_retry in any::<bool>(),
    ) {
        let mut world = World::new(bad, desired(1));
        prop_assert!(run(&mut world, &faults, 0, 4000));
        prop_assert_eq!(world.reported.as_ref().unwrap().state, ReportedState::RolledBack);
        let tries = world.tries_of_new;
        prop_assert!(tries > 0);
        // The same release by another update.
        world.desired = Some(Desired { uid: "u2".into(), ..desired(1) });
        prop_assert!(run(&mut world, &[], 0, 1000));
        prop_assert_eq!(world.tries_of_new, tries, "it was tried again");
        prop_assert!(world.reported.as_ref().unwrap().detail.contains("did not come up here"));
        // A person asks.
        world.release = Release::Good;
        (world.kubeadm_known, world.passed) = (false, false);
        let by_operator = |attempt, retry| Desired { uid: "u2".into(), retry, ..desired(attempt) };
        // Another attempt, as after it was called off, is nobody's wish to try it again.
        world.desired = Some(by_operator(2, Some(0)));
        prop_assert!(run(&mut world, &[], 0, 1000));
        prop_assert_eq!(world.tries_of_new, tries, "it was tried again");
        world.desired = Some(if says_retry { by_operator(3, Some(1)) } else { by_operator(3, None) });
        prop_assert!(run(&mut world, &[], 0, 1000));
        what_holds_at_the_end(&world);
        prop_assert_eq!(world.booted, NEW);
    }

    #[test]
    fn nothing_begins_before_its_turn(release in release(), faults in prop::collection::vec(fault(), 0..60)) {
        let mut world = World::new(release, desired(1));
        let faults: Vec<Fault> = faults.into_iter().filter(|fault| !matches!(fault, Fault::Fails { .. })).collect();
        prop_assert!(!run(&mut world, &faults, usize::MAX, 600));
        prop_assert_eq!((world.booted, world.kubeadm, world.deployments.as_slice()), (OLD, 0, &[OLD][..]));
        // Called off.
        world.desired = None;
        run(&mut world, &[], usize::MAX, 200);
        prop_assert!(world.disk.job.is_none() && !world.staged);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The cluster came back from a snapshot of its etcd, or the node from one of its disk: whatever went on here before, or goes on.
    #[test]
    fn a_turn_of_an_attempt_that_is_not_laid_out_here_touches_nothing(
        release in release(), faults in prop::collection::vec(fault(), 0..40), before in prop::option::of(0_usize..60), attempt in 1_u32..4,
    ) {
        let mut world = World::new(release, desired(1));
        if let Some(turns) = before {
            world.desired = Some(desired(1));
            run(&mut world, &[], usize::MAX, turns);
        }
        world.desired = Some(Desired { uid: "u2".into(), go: true, ..desired(attempt) });
        prop_assert!(run(&mut world, &faults, usize::MAX, 4000), "{:?} {:?}", world.disk, world.reported);
        let said = world.reported.clone().unwrap();
        prop_assert_eq!((said.state, world.kubeadm, world.booted, world.tries_of_new), (ReportedState::RolledBack, 0, OLD, 0));
        prop_assert!(said.detail.contains("never laid out here"), "{}", said.detail);
        prop_assert!(world.disk.denied.is_empty(), "the release is not to blame");
        // Another attempt is staged, and goes when it is told to.
        world.desired = Some(Desired { uid: "u2".into(), ..desired(attempt + 1) });
        prop_assert!(run(&mut world, &[], 0, 4000));
        what_holds_at_the_end(&world);
        prop_assert_eq!(world.reported.unwrap().state == ReportedState::Healthy, release == Release::Good);
    }
}

proptest! {
    // What was asked for first is not what is asked for last, so that lives run to their limit.
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_kubeadm_has_touched_comes_to_an_end_whatever_is_asked_for(
        release in release(), faults in prop::collection::vec(fault(), 0..60), turn in 0_usize..80, replaced in any::<bool>(),
    ) {
        let mut world = World::new(release, desired(1));
        let other = Desired { uid: "u2".into(), ..desired(1) };
        world.changes_mind = Some((turn, replaced.then_some(other)));
        run(&mut world, &faults, 0, 1500);
        if let Some(job) = world.disk.job.clone().filter(|job| job.desired.uid == "u1") {
            prop_assert!(job.stage.is_end(), "{:?}", job);
            prop_assert_eq!(world.reported.as_ref().map(|said| said.state.is_end()), Some(true));
            what_holds_at_the_end(&world);
        } else {
            prop_assert!(world.ended || world.kubeadm == 0, "kubeadm was cut off, and it was left so: {:?}", world.disk);
        }
    }
}

#[test]
fn a_cluster_that_does_not_answer_for_long_is_no_failure_of_kubeadm() {
    let mut world = World::new(Release::Good, desired(1));
    assert!(!run(&mut world, &[], usize::MAX, 100));
    assert_eq!(world.reported.as_ref().unwrap().state, ReportedState::Staged);
    assert!(run(&mut world, &[Fault::Away; 100], 0, 1000));
    what_holds_at_the_end(&world);
    assert_eq!((world.booted, world.kubeadm), (NEW, 1));
}

#[test]
fn a_release_of_kubernetes_alone_needs_no_restart() {
    let mut world = World::new(Release::Good, Desired { os: None, ..desired(1) });
    assert!(run(&mut world, &[], 0, 500));
    assert_eq!((world.boot, world.kubeadm, world.reported.unwrap().state), (1, 1, ReportedState::Healthy));
}

/// Whoever installs the programs before has not run kubeadm by that.
#[test]
fn programs_that_are_there_are_no_upgrade_of_kubernetes() {
    let world = World::new(Release::Good, desired(1));
    let system = System { kubernetes: Some("v2".into()), ..world.system() };
    let state = State::new(Settings::default(), Journal::default());
    let wanted = Desired { os: None, ..desired(1) };
    let (state, _) = state.step(Event::Desired(Some(wanted.clone()), None), world.now());
    let (state, actions) = state.step(Event::Seen(Ok(system.clone())), world.now());
    assert!(matches!(actions.last(), Some(Action::Stage(_))), "{actions:?}");
    // It was done here: by another update, there is nothing to do.
    let mut journal = state.journal().clone();
    journal.job.as_mut().unwrap().stage = Stage::Healthy;
    let state = State::new(Settings::default(), journal);
    let (state, _) = state.step(Event::Desired(Some(Desired { uid: "u2".into(), ..wanted }), None), world.now());
    let (_, actions) = state.step(Event::Seen(Ok(system)), world.now());
    assert!(matches!(actions.last(), Some(Action::Check(_))), "{actions:?}");
}

/// The gate holds against a release what failed since its turn came, and tells the versions that it has seen.
#[test]
fn what_had_failed_before_its_turn_is_not_held_against_a_release() {
    let world = World::new(Release::Good, desired(1));
    let failed = |units: &[&str]| System {
        failed_units: units.iter().map(|unit| (*unit).to_owned()).collect(),
        ..world.system()
    };
    let wanted = |go| Some(Desired { os: None, go, ..desired(1) });
    let before = |state: &State| state.journal().job.as_ref().unwrap().failed_before.clone();
    let state = State::new(Settings::default(), Journal::default());
    let (state, _) = state.step(Event::Seen(Ok(failed(&[]))), world.now());
    let (state, actions) = state.step(Event::Desired(wanted(false), None), world.now());
    assert_eq!(actions, [Action::Look]);
    let (state, _) = state.step(Event::Seen(Ok(failed(&["early.service"]))), world.now());
    assert_eq!(before(&state), ["early.service"]);
    let (state, _) = state.step(Event::Ended(Ok(Some(Tree { restart: false }))), world.now());
    let (state, actions) = state.step(Event::Desired(wanted(true), None), world.now());
    assert_eq!(actions.last(), Some(&Action::Look));
    let now = ["early.service", "late.service"];
    let (state, actions) = state.step(Event::Seen(Ok(failed(&now))), world.now());
    assert!(matches!(actions.last(), Some(Action::Kubeadm(_))), "{actions:?}");
    assert_eq!(before(&state), now);
    let (state, _) = state.step(Event::Ended(Ok(None)), world.now());
    let replaced = System { kubernetes: Some("v2".into()), ..failed(&now) };
    let (state, _) = state.step(Event::Checked(Ok(replaced)), world.now());
    assert_eq!(state.report().unwrap().kubernetes.as_deref(), Some("v2"));
}
