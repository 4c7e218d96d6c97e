//! A cluster whose nodes, machines and runs go wrong in every order.

use nkd_api::cluster::{API_VERSION, Cluster, ClusterSpec, Kubernetes, Metadata, Pool, PoolMachine};
use nkd_api::machine::Identity;
use nkd_api::update::NodeState;
use proptest::prelude::*;

use super::super::change;
use super::super::record::{Leaving, Run, Then};
use super::super::upgrade::beside::tests::upgrade;
use super::*;
use crate::machine::lifecycle::new_machine;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

pub fn pool(name: &str, role: Role, first: u8, count: u8) -> Pool {
    let machine = |n: u8| PoolMachine {
        mac: Some(nkd_api::MacAddr([2, 0, 0, 0, 0, first + n])),
        hostname: Some(format!("{name}{}", n + 1)),
        ip: Some(format!("192.0.2.{}/24", first + n)),
        ..PoolMachine::default()
    };
    Pool {
        name: name.into(),
        role,
        count: None,
        matches: None,
        machines: (0..count).map(machine).collect(),
        labels: Default::default(),
        taints: None,
        install_disk: None,
        kernel_args: Vec::new(),
    }
}

pub fn cluster(control_planes: u8, workers: u8) -> Cluster {
    let kubernetes = serde_json::json!({"version": "v1.20.2", "cni": {"manifest": {"inline": "kind: List"}}});
    let kubernetes: Kubernetes = serde_json::from_value(kubernetes).unwrap();
    let spec =
        serde_json::json!({"kubernetes": kubernetes, "pools": [], "hooks": {"after": [{"inline": "kind: List"}]}});
    let mut spec: ClusterSpec = serde_json::from_value(spec).unwrap();
    spec.pools = vec![pool("w", Role::Worker, 100, workers), pool("cp", Role::ControlPlane, 10, control_planes)];
    let metadata = Metadata { name: "rack7".into(), labels: Default::default() };
    Cluster { api_version: API_VERSION.into(), kind: "Cluster".into(), metadata, spec }
}

/// The world around the plan: it does what it is told, more or less.
struct World {
    record: Record,
    machines: Vec<Machine>,
    nodes: Vec<NodeView>,
    answers: bool,
    /// etcd lets a member go.
    quorum: bool,
    now: OffsetDateTime,
    inits: u32,
    gone: bool,
    operations: u128,
}

impl World {
    fn new(control_planes: u8, workers: u8) -> Self {
        let record = Record::new(Uuid::from_u128(1), cluster(control_planes, workers), NOW);
        Self {
            record,
            machines: Vec::new(),
            nodes: Vec::new(),
            answers: true,
            quorum: true,
            now: NOW,
            inits: 0,
            gone: false,
            operations: 0,
        }
    }

    fn seen(&self) -> Seen<'_> {
        let up = self.answers && self.record.is_initialised();
        let quorum = (!self.quorum).then_some("two of three are away");
        Seen {
            machines: &self.machines,
            nodes: up.then_some(&self.nodes),
            quorum,
            etcd: None,
            in_vain: &[],
            upgrade: None,
            now: self.now,
        }
    }

    /// Plans, checks, carries out.
    fn turn(&mut self) -> usize {
        self.now += Duration::from_secs(1);
        let mut steps = plan(&self.record, self.seen());
        steps.sort_by_key(|step| if let Step::Part { member } = step { usize::MAX - member } else { 0 });
        let before = self.record.clone();
        for step in &steps {
            self.take(step, &before);
        }
        let runs = |m: &&MemberRecord| {
            m.role == Role::ControlPlane && m.run.is_some_and(|run| run.ended_at.is_none()) && !self.is_lost(m)
        };
        let moving = self.record.members.iter().filter(runs).count();
        assert!(moving <= 1 || self.record.destroying, "two control planes join or leave at the same time");
        steps.len()
    }

    fn take(&mut self, step: &Step, before: &Record) {
        match step {
            Step::Claim { member } => {
                self.operations += 1;
                let id = Uuid::from_u128(1000 + self.operations);
                let member = &mut self.record.members[*member];
                assert!(member.machine.is_none() || !self.machines.iter().any(|m| Some(m.id) == member.machine));
                member.machine = Some(id);
                let identity = Identity { macs: member.wanted.mac.into_iter().collect(), ..Identity::default() };
                let mut machine = new_machine(id, identity, self.now);
                (machine.generation, machine.accepted) = (1, true);
                self.machines.push(machine);
            }
            Step::Note { member, state, detail, address } => {
                let member = &mut self.record.members[*member];
                (member.state, member.detail, member.address) = (*state, detail.clone(), *address);
            }
            Step::Run { member, action } => {
                match action {
                    KubeadmAction::Init => {
                        assert!(!before.is_initialised(), "a second init");
                        assert_eq!(before.first().unwrap().hostname, before.members[*member].hostname);
                    }
                    KubeadmAction::Join => assert!(before.is_initialised(), "a join before there is a cluster"),
                    KubeadmAction::Reset => self.may_leave(*member, before),
                    KubeadmAction::Renew | KubeadmAction::Recover | KubeadmAction::Snapshot => unreachable!(),
                }
                self.operations += 1;
                let member = &mut self.record.members[*member];
                let reset = *action == KubeadmAction::Reset;
                assert!(reset || matches!(member.state, MemberState::Enrolled | MemberState::Failed));
                let operation = Uuid::from_u128(self.operations);
                member.run = Some(Run { operation, action: *action, ordered_at: self.now, ended_at: None });
                member.token = (*action == KubeadmAction::Join).then(|| format!("t{}", self.operations));
                if !reset {
                    member.state = MemberState::Joining;
                }
            }
            Step::Label { member, set, lost, remove } => {
                let name = &before.members[*member].hostname;
                for node in self.nodes.iter_mut().filter(|node| node.name == *name) {
                    node.managed = set.keys().cloned().collect();
                    node.labels.retain(|key, _| !remove.contains(key));
                    node.labels.extend(set.clone());
                    node.labels.extend(lost.iter().map(|key| ((*key).to_owned(), String::new())));
                }
            }
            Step::Taint { member, change, is_ours } => {
                let name = &before.members[*member].hostname;
                for node in self.nodes.iter_mut().filter(|node| node.name == *name) {
                    node.taints = &(&node.taints - &change.remove) | &change.set;
                    if *is_ours {
                        node.own_taints = Some(change.set.clone());
                    }
                }
            }
            Step::Lose { member } => {
                let member = &mut self.record.members[*member];
                assert!(is_in(member.state) && member.leaving.is_none());
                change::leave(member, Leaving::new(self.now, true, Then::SameMachine));
            }
            Step::Drain { member } => {
                let leaving = self.record.members[*member].leaving.as_mut().unwrap();
                assert!(!leaving.drained && !leaving.lost && !before.destroying);
                leaving.drained = true;
            }
            Step::Part { member } => self.part(*member, before),
            Step::Complete => self.record.completed_at = Some(self.now),
            Step::Gone => {
                assert!(before.destroying && before.members.is_empty());
                self.gone = true;
            }
            Step::Renew(turn) => unreachable!("no certificate is due: {turn:?}"),
            Step::Recover(turn) => unreachable!("nobody asked etcd: {turn:?}"),
            Step::Revoke { member } => {
                assert!(is_in(before.members[*member].state));
                self.record.members[*member].token = None;
            }
            Step::Apply { addon } => {
                assert!(!before.applied.contains(addon));
                self.record.applied.push(addon.clone());
            }
        }
    }

    fn is_lost(&self, member: &MemberRecord) -> bool {
        member.leaving.is_some_and(|leaving| leaving.lost)
    }

    /// A control plane goes: there is another one, nobody else moves, and etcd can spare it.
    fn may_leave(&self, index: usize, before: &Record) {
        let member = &before.members[index];
        if before.destroying || member.role == Role::Worker || !before.is_initialised() {
            return;
        }
        assert!(self.quorum, "etcd loses its majority");
        let stays = |m: &MemberRecord| m.role == Role::ControlPlane && is_in(m.state) && m.leaving.is_none();
        assert!(before.members.iter().any(stays), "the last control plane goes");
    }

    fn part(&mut self, index: usize, before: &Record) {
        let member = before.members[index].clone();
        let leaving = member.leaving.unwrap();
        if member.generation.is_some() && !leaving.reset {
            self.may_leave(index, before);
        }
        if !leaving.lost && !leaving.reset {
            let gone = !self.machines.iter().any(|m| Some(m.id) == member.machine);
            assert!(member.run.is_none() || gone, "kubeadm was at work on it and nobody cleaned up");
        }
        self.nodes.retain(|node| node.name != member.hostname);
        if leaving.then == Then::Gone {
            self.record.members.remove(index);
            return;
        }
        let fresh = &mut self.record.members[index];
        (fresh.state, fresh.run, fresh.token, fresh.generation) = (MemberState::Waiting, None, None, None);
        (fresh.leaving, fresh.failures, fresh.detail) = (None, 0, None);
        if leaving.then == Then::OtherMachine {
            fresh.machine = None;
        }
    }

    fn machine(&mut self, n: usize) -> Option<&mut Machine> {
        let id = self.record.members.get(n)?.machine?;
        self.machines.iter_mut().find(|m| m.id == id)
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Enrolls(n) => {
                let now = self.now;
                if let Some(machine) = self.machine(n) {
                    machine.installed_generation = Some(machine.generation);
                    machine.last_seen = now;
                    machine.phase = Phase::Enrolled;
                }
            }
            Event::Ends(n, well) => {
                let now = self.now;
                let Some(member) = self.record.members.get_mut(n) else { return };
                let generation =
                    member.machine.and_then(|id| self.machines.iter().find(|m| m.id == id)).map(|m| m.generation);
                let Some(run) = member.run.as_mut().filter(|run| run.ended_at.is_none()) else { return };
                run.ended_at = Some(now);
                if well && run.action == KubeadmAction::Reset {
                    member.leaving.as_mut().unwrap().reset = true;
                } else if well {
                    if member.leaving.is_none() {
                        member.state = MemberState::Joined;
                    }
                    member.generation = generation;
                    self.inits += u32::from(run.action == KubeadmAction::Init);
                    let name = member.hostname.clone();
                    self.nodes.retain(|node| node.name != name);
                    self.nodes.push(NodeView {
                        name,
                        ready: false,
                        labels: Default::default(),
                        managed: Default::default(),
                        taints: Default::default(),
                        own_taints: None,
                    });
                } else {
                    if member.leaving.is_none() {
                        member.state = MemberState::Failed;
                    }
                    member.failures += 1;
                }
            }
            Event::Ready(n, ready) => {
                if let Some(node) = self.nodes.get_mut(n) {
                    node.ready = ready;
                }
            }
            Event::Answers(answers) => self.answers = answers,
            Event::Waits(seconds) => self.now += Duration::from_secs(seconds),
            Event::Quorum(quorum) => self.quorum = quorum,
            Event::Leaves(n, lost, then) => {
                let control_planes =
                    self.record.members.iter().filter(|m| m.role == Role::ControlPlane && m.leaving.is_none());
                let last = control_planes.count() < 2;
                let Some(member) = self.record.members.get_mut(n).filter(|m| m.leaving.is_none()) else { return };
                // A file without a control plane is refused.
                let file_is_good = !last || member.role == Role::Worker;
                if file_is_good && !self.record.destroying {
                    change::leave(member, Leaving::new(self.now, lost, then));
                }
            }
            Event::Destroyed(force) => change::destroy(&mut self.record, force, self.now),
            Event::Reinstalled(n) => {
                let carriers = self
                    .record
                    .members
                    .iter()
                    .filter(|m| m.role == Role::ControlPlane && m.state == MemberState::Ready);
                let last = carriers.count() < 2;
                let role = self.record.members.get(n).map(|m| m.role);
                if let Some(machine) = self.machine(n).filter(|_| role == Some(Role::Worker) || !last) {
                    machine.generation += 1;
                    machine.phase = Phase::Assigned;
                }
            }
            Event::Forgotten(n) => {
                if self.record.members.get(n).is_some_and(|m| m.state == MemberState::Waiting) {
                    let id = self.record.members[n].machine;
                    self.machines.retain(|m| Some(m.id) != id);
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Enrolls(usize),
    Ends(usize, bool),
    Ready(usize, bool),
    Answers(bool),
    Waits(u64),
    Forgotten(usize),
    Quorum(bool),
    Leaves(usize, bool, Then),
    Reinstalled(usize),
    Destroyed(bool),
}

fn events() -> impl Strategy<Value = Event> {
    let n = 0usize..6;
    let then = prop_oneof![Just(Then::Gone), Just(Then::OtherMachine), Just(Then::SameMachine)];
    prop_oneof![
        3 => n.clone().prop_map(Event::Enrolls),
        3 => (n.clone(), any::<bool>()).prop_map(|(n, well)| Event::Ends(n, well)),
        2 => (n.clone(), any::<bool>()).prop_map(|(n, ready)| Event::Ready(n, ready)),
        1 => any::<bool>().prop_map(Event::Answers),
        1 => (0u64..400).prop_map(Event::Waits),
        1 => n.clone().prop_map(Event::Forgotten),
        1 => any::<bool>().prop_map(Event::Quorum),
        1 => (n.clone(), any::<bool>(), then).prop_map(|(n, lost, then)| Event::Leaves(n, lost, then)),
        1 => n.prop_map(Event::Reinstalled),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever happens in whatever order: one init, one control plane joining at a time, no join before there is a
    /// cluster (checked in every turn); and when things go well at last, the cluster becomes complete.
    #[test]
    fn every_cluster_comes_up_once_things_go_well(
        control_planes in 1u8..4,
        workers in 0u8..3,
        events in proptest::collection::vec(events(), 0..80),
        destroyed in proptest::option::weighted(0.2, any::<bool>()),
    ) {
        let mut world = World::new(control_planes, workers);
        for event in &events {
            world.happens(event);
            world.turn();
        }
        for member in &mut world.record.members {
            // An operator who looks into it, after too many failures.
            member.failures = 0;
        }
        world.happens(&Event::Answers(true));
        world.happens(&Event::Quorum(true));
        if destroyed.is_some() {
            let before = world.record.members.iter().filter_map(|m| m.machine).count();
            prop_assert!(before <= world.machines.len());
            world.happens(&Event::Destroyed(destroyed == Some(true)));
        }
        for _ in 0..80 {
            for n in 0..world.record.members.len() {
                world.happens(&Event::Enrolls(n));
                world.happens(&Event::Ends(n, true));
                world.happens(&Event::Ready(n, true));
            }
            world.now += Duration::from_secs(30);
            world.turn();
        }
        if destroyed.is_some() {
            prop_assert!(world.gone, "{:#?}", world.record.members);
            return Ok(());
        }
        prop_assert!(is_complete(&world.record), "{:#?}", world.record.members);
        prop_assert!(world.record.members.iter().all(|m| m.token.is_none()), "a token was not revoked");
        prop_assert!(world.record.members.iter().all(|m| m.leaving.is_none()));
        prop_assert!(world.inits >= 1);
        prop_assert_eq!(world.turn(), 0, "a complete cluster is left alone");
    }
}

#[test]
fn a_run_that_fails_is_tried_again_later_each_time_and_not_for_ever() {
    let mut world = World::new(1, 0);
    world.turn();
    world.happens(&Event::Enrolls(0));
    world.turn();
    let mut waits = Vec::new();
    let mut begun = 0;
    for _ in 0..1000 {
        let joining = world.record.members[0].state == MemberState::Joining;
        if joining {
            begun += 1;
            waits.push(world.now);
            world.happens(&Event::Ends(0, false));
        }
        world.turn();
    }
    assert_eq!(begun, TRIES);
    let gaps: Vec<i64> = waits.windows(2).map(|pair| (pair[1] - pair[0]).whole_seconds()).collect();
    assert!(gaps.windows(2).all(|pair| pair[1] > pair[0]), "{gaps:?}");
}

#[test]
fn control_planes_come_first_whatever_the_order_of_the_file() {
    let record = Record::new(Uuid::from_u128(1), cluster(3, 2), NOW);
    let names: Vec<&str> = record.members.iter().map(|m| m.hostname.as_str()).collect();
    assert_eq!(names, ["cp1", "cp2", "cp3", "w1", "w2"]);
    assert_eq!(record.node_endpoint().unwrap().to_string(), "127.0.0.1:7443");
    for (endpoint, full) in
        [("api.x", "api.x:6443"), ("10.0.0.1:7443", "10.0.0.1:7443"), ("[2001:db8::1]", "[2001:db8::1]:6443")]
    {
        let mut record = record.clone();
        record.cluster.spec.endpoint = Some(endpoint.into());
        assert_eq!(record.node_endpoint().unwrap().to_string(), full);
        assert_eq!(addresses(&record), [full]);
        record.members[0].state = MemberState::Ready;
        assert_eq!((addresses(&record), record.api_servers()), (vec![full.to_owned()], vec![]));
    }
}

fn addresses(record: &Record) -> Vec<String> {
    record.endpoints().into_iter().map(|endpoint| endpoint.address).collect()
}

#[test]
fn the_cluster_is_reached_at_every_control_plane_that_is_in() {
    let mut record = Record::new(Uuid::from_u128(1), cluster(3, 1), NOW);
    assert_eq!(addresses(&record), ["192.0.2.10:6443"], "the first one, before there is any");
    assert!(record.api_servers().is_empty());
    let all = ["192.0.2.10:6443", "192.0.2.11:6443", "192.0.2.12:6443"];
    for (n, state) in [(0, MemberState::Ready), (1, MemberState::Joined), (2, MemberState::Joining)] {
        record.members[n].address = Some(std::net::IpAddr::from([192, 0, 2, 10 + u8::try_from(n).unwrap()]));
        record.members[n].state = state;
    }
    assert_eq!(
        addresses(&record),
        all[..2],
        "a node that is not Ready now comes back; one that joins is not there yet"
    );
    assert_eq!(record.api_servers().iter().map(ToString::to_string).collect::<Vec<_>>(), all[..2]);
    let names: Vec<String> = record.endpoints().into_iter().map(|endpoint| endpoint.name).collect();
    assert_eq!(names, ["rack7-cp1", "rack7-cp2"]);
    record.members[0].state = MemberState::Leaving;
    assert_eq!(record.endpoints().len(), 1);
    assert_eq!(record.endpoints()[0].name, "rack7", "one way needs no name of its own");
    assert_eq!(record.api_servers()[0].to_string(), all[1]);
}

#[test]
fn an_operator_or_a_clock_that_is_put_back_ends_the_wait() {
    let mut world = World::new(1, 0);
    world.turn();
    world.happens(&Event::Enrolls(0));
    world.turn();
    world.turn();
    assert_eq!(world.record.members[0].state, MemberState::Joining);
    for _ in 0..TRIES {
        world.happens(&Event::Ends(0, false));
        world.now += Duration::from_secs(3600);
        world.turn();
    }
    assert_eq!(world.record.members[0].state, MemberState::Failed, "it has given up");
    world.record.members[0].failures = 0;
    world.turn();
    assert_eq!(world.record.members[0].state, MemberState::Joining, "an operator asked");
    world.happens(&Event::Ends(0, false));
    let later = world.now;
    world.now -= Duration::from_secs(3600 * 24 * 365);
    world.turn();
    assert!(world.now < later && world.record.members[0].state == MemberState::Joining, "the clock was wrong");
}

#[test]
fn no_control_plane_begins_to_join_or_leave_while_an_upgrade_has_another_one_at_work() {
    fn planned(world: &World, upgrade: Option<&Upgrade>) -> Vec<Step> {
        plan(&world.record, Seen { upgrade, ..world.seen() })
    }
    let mut world = World::new(3, 0);
    for _ in 0..40 {
        for n in 0..3 {
            world.happens(&Event::Enrolls(n));
            world.happens(&Event::Ends(n, true));
            world.happens(&Event::Ready(n, true));
        }
        world.turn();
    }
    assert!(world.record.members.iter().all(|m| m.state == MemberState::Ready));
    let of = |name| upgrade("running", &[(name, NodeState::Rebooting)]);
    change::leave(&mut world.record.members[1], Leaving::new(NOW, false, Then::Gone));
    let held = planned(&world, Some(&of("cp1")));
    assert!(
        matches!(&held[..], [Step::Note { member: 1, detail: Some(why), .. }] if why == "cp1 is being upgraded"),
        "{held:?}"
    );
    for free in [None, Some(of("cp2"))] {
        assert_eq!(planned(&world, free.as_ref()), [Step::Drain { member: 1 }], "nobody else is at work");
    }
    world.record.members[1].leaving = Some(Leaving::new(NOW, true, Then::Gone));
    assert_eq!(planned(&world, Some(&of("cp1"))), [Step::Part { member: 1 }], "its machine is gone");

    let again = &mut world.record.members[1];
    (again.state, again.run, again.generation, again.leaving) = (MemberState::Enrolled, None, None, None);
    let joins = Step::Run { member: 1, action: KubeadmAction::Join };
    assert!(!planned(&world, Some(&of("cp1"))).contains(&joins));
    for free in [None, Some(of("cp2"))] {
        assert!(planned(&world, free.as_ref()).contains(&joins));
    }
}

#[test]
fn a_node_that_was_deleted_and_registers_again_gets_back_what_kubeadm_gave_it() {
    let mut record = Record::new(Uuid::from_u128(1), cluster(1, 1), NOW);
    record.members.iter_mut().for_each(|member| member.state = MemberState::Ready);
    let node = |name: &str| NodeView {
        name: name.into(),
        ready: true,
        labels: Default::default(),
        managed: Default::default(),
        taints: Default::default(),
        own_taints: None,
    };
    let mut world = World { record, nodes: vec![node("cp1"), node("w1")], ..World::new(0, 0) };
    let steps = |world: &World| mark(&world.record, world.seen());
    let all = steps(&world);
    // The labels come last: they tell that the rest was done.
    assert!(matches!(all[..], [Step::Taint { member: 0, .. }, Step::Label { member: 0, .. }]), "{all:?}");
    let before = world.record.clone();
    all.iter().for_each(|step| world.take(step, &before));
    let labels: Vec<&String> = world.nodes[0].labels.keys().collect();
    assert_eq!(labels, ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"]);
    assert!(world.nodes[0].taints.contains("node-role.kubernetes.io/master:NoSchedule"));
    assert!(world.nodes[0].managed.is_empty(), "they are kubeadm's");
    assert_eq!(steps(&world), []);
    // What an administrator does to a node that is there is his, and so is a phase of kubeadm that is left out.
    world.nodes[0].taints.clear();
    assert_eq!(steps(&world), []);
    world.nodes[0] = node("cp1");
    world.record.cluster.spec.kubernetes.skip_phases = vec!["mark-control-plane".into()];
    assert_eq!(steps(&world), []);
}
