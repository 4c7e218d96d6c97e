//! A rollout over many nodes under a clock that nobody waits for: the very plan of the operator, the very life of each
//! node's updater; only what they act on is played. What has to hold is checked at every step, and the plan is timed.
//!
//! usage: `simulated_rollout ROLLOUT_NODES PLANNER_NODES`; its last line is one JSON object.

#![allow(clippy::disallowed_methods, reason = "measures, and prints what it found")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nkd_agent::update::state::{
    Action, Deployment, Event, Failure, Ill, Journal, Now, Retry, Settings, State, System, Tree,
};
use nkd_api::update::{
    Drain, MaxUnavailable, NodeState, OsRelease, Phase, Release, Strategy, UpdateSpec, UpdateStatus,
};
use nkd_operator::budget::PodSeen;
use nkd_operator::plan::plan;
use nkd_operator::seen::{NodeSeen, PodsSeen, Seen};
use nkd_operator::step::{Change, Step};
use nkd_operator::wish::{Source, Wish};
use time::OffsetDateTime;

const OLD: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const NEW: &str = "2222222222222222222222222222222222222222222222222222222222222222";
const CONTROL_PLANES: usize = 3;
/// Nodes that may be away, in percent.
const SHARE: u32 = 5;
/// One node of so many has a release that does not come up.
const ILL: usize = 200;
/// Between two looks of the operator, and of an updater, in seconds.
const OPERATOR: u64 = 2;
const UPDATER: u64 = 10;
/// What things take on a node, in seconds.
const STAGE: u64 = 90;
const KUBEADM: u64 = 60;
const EFFECT: u64 = 2;
const REBOOT: u64 = 120;
const LEAVE: u64 = 20;
/// Then it has to be over.
const LIMIT: u64 = 7 * 86_400;

/// A machine with its updater.
struct Machine {
    state: State,
    journal: Journal,
    booted: &'static str,
    staged: bool,
    armed: bool,
    boots: u32,
    ill: bool,
    /// What comes, and when.
    due: Vec<(u64, Due)>,
    /// Restarts until then.
    away_until: Option<u64>,
    pods: Vec<PodSeen>,
}

enum Due {
    Event(Box<Event>),
    Staged,
    Armed,
    Reverted,
    Gone,
}

struct World {
    seen: Seen,
    wish: Wish,
    machines: Vec<Machine>,
    index: BTreeMap<String, usize>,
    second: u64,
    start: OffsetDateTime,
}

fn main() -> ExitCode {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [nodes, large] = numbers[..] else {
        eprintln!("usage: simulated_rollout ROLLOUT_NODES PLANNER_NODES");
        return ExitCode::from(2);
    };
    match simulate(nodes) {
        Ok(told) => {
            let (planner, planner_worst) = planner(large);
            let (plans, worst) = (told.plans, told.worst);
            println!(
                "{nodes} nodes: {} s of cluster time, {plans} looks of the operator, {} done, {} rolled back, at most {} away",
                told.seconds, told.done, told.failed, told.most_away
            );
            let json = serde_json::json!({
                "cluster_seconds": told.seconds, "wall_seconds": told.wall, "plan_worst_ms": worst,
                "done": told.done, "rolled_back": told.failed, "most_away": told.most_away, "planner_ms": planner,
                "planner_worst_ms": planner_worst,
            });
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(broken) => {
            eprintln!("{broken}");
            ExitCode::FAILURE
        }
    }
}

struct Told {
    seconds: u64,
    wall: f64,
    plans: usize,
    worst: f64,
    done: usize,
    failed: usize,
    most_away: usize,
}

fn simulate(nodes: usize) -> Result<Told, String> {
    let begun = Instant::now();
    let mut world = World::new(nodes);
    let limit = world.wish.spec.max_unavailable.of(nodes);
    let (mut plans, mut worst, mut most_away) = (0, 0.0, 0);
    loop {
        world.machines_go_on();
        if world.second.is_multiple_of(OPERATOR) {
            let took = world.look();
            plans += 1;
            worst = f64::max(worst, took);
            let away = world.check(limit)?;
            most_away = most_away.max(away);
        }
        let ended = |state| world.wish.status.nodes.iter().filter(|node| node.state == state).count();
        let (done, failed) = (ended(NodeState::Done), ended(NodeState::Failed));
        if matches!(world.wish.status.phase, Phase::Complete | Phase::Halted) {
            let ill = world.machines.iter().filter(|machine| machine.ill).count();
            if done != nodes - ill || failed != ill {
                return Err(format!("{done} nodes are done and {failed} failed, of {nodes} with {ill} ill ones"));
            }
            let wall = begun.elapsed().as_secs_f64();
            return Ok(Told { seconds: world.second, wall, plans, worst, done, failed, most_away });
        }
        world.second += 1;
        if world.second > LIMIT {
            return Err(format!("not over after {LIMIT} s: {:?}", world.wish.status.counts));
        }
    }
}

/// Milliseconds of one plan: the median of eleven in the middle of a rollout, and the worst until then, where everybody is
/// told to stage at once.
fn planner(nodes: usize) -> (f64, f64) {
    let mut worst = 0.0;
    let mut world = World::new(nodes);
    // Everybody has staged, the control planes are done, and as many workers as may be are away.
    let limit = 600;
    while world.second < limit {
        world.machines_go_on();
        if world.second.is_multiple_of(OPERATOR * 15) {
            worst = f64::max(worst, world.look());
        }
        world.second += 1;
    }
    let mut took: Vec<f64> = (0..11)
        .map(|_| {
            let begun = Instant::now();
            let steps = plan(&world.wish, &world.seen, world.now().date);
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            assert!(!steps.is_empty() || world.wish.status.counts.total as usize == nodes, "it has planned nothing");
            took
        })
        .collect();
    took.sort_by(f64::total_cmp);
    (took[took.len() / 2], worst)
}

impl World {
    fn new(nodes: usize) -> Self {
        let start = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
        let name = |number: usize| match number {
            number if number < CONTROL_PLANES => format!("cp{}", number + 1),
            number => format!("w{number:05}"),
        };
        let node = |number: usize| NodeSeen {
            name: name(number),
            control_plane: number < CONTROL_PLANES,
            ready: true,
            kubelet: "v1.20.2".into(),
            pods: Some(PodsSeen::default()),
            ..NodeSeen::default()
        };
        let os = Some(OsRelease { commit: Some(NEW.into()), ..OsRelease::default() });
        let spec = UpdateSpec {
            release: Release { name: "2".into(), os, kubernetes: Some("v1.21.0".into()) },
            max_unavailable: MaxUnavailable::Percent(SHARE),
            strategy: Strategy {
                drain: Drain::default(),
                halt_after_failures: u32::MAX,
                halt_after_rollbacks: u32::MAX,
                ..Strategy::default()
            },
            ..UpdateSpec::default()
        };
        let wish = Wish {
            source: Source::Ours,
            namespace: None,
            name: "to-2".into(),
            uid: "uid".into(),
            generation: 1,
            version: "1".into(),
            created: start,
            spec,
            tagged: None,
            hours: None,
            problem: None,
            status: UpdateStatus::default(),
        };
        Self {
            seen: Seen { nodes: (0..nodes).map(node).collect(), ..Seen::default() },
            wish,
            machines: (0..nodes).map(|number| Machine::new(number, &name(number))).collect(),
            index: (0..nodes).map(|number| (name(number), number)).collect(),
            second: 0,
            start,
        }
    }

    fn now(&self) -> Now {
        let passed = Duration::from_secs(self.second);
        Now { uptime: passed, date: self.start + passed }
    }

    /// A second on every machine.
    fn machines_go_on(&mut self) {
        let (now, second) = (self.now(), self.second);
        for (number, (machine, node)) in self.machines.iter_mut().zip(&mut self.seen.nodes).enumerate() {
            if let Some(until) = machine.away_until {
                if second < until {
                    continue;
                }
                machine.boot();
                node.ready = true;
                machine.step(Event::Tick, now, node);
            }
            let (due, later): (Vec<_>, Vec<_>) = machine.due.drain(..).partition(|(at, _)| *at <= second);
            machine.due = later;
            for (_, due) in due {
                machine.happens(due, now, node);
            }
            // They do not all look in the same second.
            if (second + number as u64).is_multiple_of(UPDATER) && machine.away_until.is_none() {
                let event = Event::Desired(node.desired.clone(), node.reported.clone());
                machine.step(event, now, node);
            } else if machine.state.deadline().is_some_and(|at| at <= now.uptime) && machine.away_until.is_none() {
                machine.step(Event::Tick, now, node);
            }
            if let Some(pods) = &mut node.pods {
                pods.leaving.clone_from(&machine.pods);
            }
        }
    }

    /// A look of the operator: how long the plan took, in milliseconds.
    fn look(&mut self) -> f64 {
        let date = self.now().date;
        for node in &mut self.seen.nodes {
            node.waited = node.note.as_ref().map(|note| date - note.since).unwrap_or_default();
        }
        let begun = Instant::now();
        let steps = plan(&self.wish, &self.seen, date);
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        for step in steps {
            match step {
                Step::Inspect { .. } | Step::Delete { .. } | Step::LookUp { .. } => {}
                Step::Write { node, change, .. } => {
                    let number = self.index[&node];
                    write(&mut self.seen.nodes[number], *change);
                }
                Step::Evict { node, .. } => {
                    let machine = &mut self.machines[self.index[&node]];
                    machine.pods.iter_mut().for_each(|pod| pod.ends = Some(date));
                    machine.due.push((self.second + LEAVE, Due::Gone));
                }
                Step::Tell(status) => self.wish.status = *status,
            }
        }
        took
    }

    /// What holds whatever happens; how many nodes are away.
    fn check(&self, limit: usize) -> Result<usize, String> {
        let away = self.seen.nodes.iter().filter(|node| !node.ready || node.held());
        let away: BTreeSet<&str> = away.map(|node| node.name.as_str()).collect();
        let at = self.second;
        if away.len() > limit {
            return Err(format!("{at} s: {} nodes are away, and {limit} may be", away.len()));
        }
        let planes = away.iter().filter(|name| name.starts_with("cp")).count();
        if planes > 1 {
            return Err(format!("{at} s: {planes} control planes are away"));
        }
        let upgraded = |number: usize| self.machines[number].booted == NEW;
        if let Some(worker) = away.iter().find(|name| name.starts_with('w'))
            && !(0..CONTROL_PLANES).all(upgraded)
        {
            return Err(format!("{at} s: {worker} is away before the control planes are done"));
        }
        Ok(away.len())
    }
}

fn write(node: &mut NodeSeen, change: Change) {
    if let Some(closed) = change.cordon {
        node.unschedulable = closed;
    }
    if let Some(by) = change.cordoned_by {
        node.cordoned_by = by;
    }
    if let Some(desired) = change.desired {
        node.desired = desired;
    }
    if let Some(note) = change.note {
        node.note = note;
    }
}

fn ends(event: Event) -> Due {
    Due::Event(Box::new(event))
}

impl Machine {
    fn new(number: usize, name: &str) -> Self {
        let pod = PodSeen {
            namespace: "default".into(),
            name: format!("pod-of-{name}"),
            uid: name.to_owned(),
            ..PodSeen::default()
        };
        Self {
            state: State::new(Settings::default(), Journal::default()),
            journal: Journal::default(),
            booted: OLD,
            staged: false,
            armed: false,
            boots: 1,
            ill: number >= CONTROL_PLANES && number % ILL == ILL - 1,
            due: Vec::new(),
            away_until: None,
            pods: vec![pod],
        }
    }

    fn system(&self) -> System {
        let deployment = |id: &str, booted, staged| Deployment { id: id.to_owned(), booted, staged };
        let mut deployments = vec![deployment(self.booted, true, false)];
        if self.staged {
            deployments.insert(0, deployment(NEW, false, true));
        }
        System {
            boot_id: self.boots.to_string(),
            deployments,
            finalize_failure: None,
            kubernetes: Some(if self.booted == NEW { "v1.21.0" } else { "v1.20.2" }.into()),
            plane: None,
            failed_units: Vec::new(),
            caution: None,
        }
    }

    fn boot(&mut self) {
        if self.staged && self.armed {
            self.booted = NEW;
        }
        (self.staged, self.armed, self.away_until) = (false, false, None);
        self.boots += 1;
        self.due.clear();
        self.state = State::new(Settings::default(), self.journal.clone());
    }

    fn happens(&mut self, due: Due, now: Now, node: &mut NodeSeen) {
        let event = match due {
            Due::Event(event) => *event,
            Due::Staged => {
                self.staged = true;
                Event::Ended(Ok(Some(Tree { restart: true })))
            }
            Due::Armed => {
                self.armed = true;
                Event::Ended(Ok(None))
            }
            Due::Reverted => {
                self.booted = OLD;
                Event::Ended(Ok(None))
            }
            Due::Gone => {
                self.pods.clear();
                return;
            }
        };
        self.step(event, now, node);
    }

    fn step(&mut self, event: Event, now: Now, node: &mut NodeSeen) {
        let (state, actions) = self.state.clone().step(event, now);
        self.state = state;
        let second = now.uptime.as_secs();
        for action in actions {
            let (wait, due) = match action {
                Action::Remember(journal) => {
                    self.journal = *journal;
                    continue;
                }
                Action::Say(_) => continue,
                Action::Look => (0, ends(Event::Seen(Ok(self.system())))),
                Action::Tell(report) => {
                    node.reported = Some(report);
                    (0, ends(Event::Told(Ok(()))))
                }
                Action::Stage(_) => (STAGE, Due::Staged),
                Action::Kubeadm(_) => (KUBEADM, ends(Event::Ended(Ok(None)))),
                Action::Arm(_) => (EFFECT, Due::Armed),
                Action::Check(_) if self.ill && self.booted == NEW => {
                    (EFFECT, ends(Event::Checked(Err(Ill::Node("its kubelet does not run".into())))))
                }
                Action::Check(_) => (EFFECT, ends(Event::Checked(Ok(self.system())))),
                Action::Confirm | Action::Settle => (EFFECT, ends(Event::Ended(Ok(None)))),
                Action::Revert if self.booted == OLD => {
                    let reason = "nothing else is there".to_owned();
                    (EFFECT, ends(Event::Ended(Err(Failure { retry: Retry::Never, reason }))))
                }
                Action::Revert => (EFFECT, Due::Reverted),
                Action::Restart => {
                    self.away_until = Some(second + REBOOT);
                    node.ready = false;
                    self.due.clear();
                    return;
                }
            };
            self.due.push((second + wait, due));
        }
    }
}
