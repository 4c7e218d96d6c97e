//! A cluster whose nodes, machines and runs go wrong in every order.

use nkd_api::cluster::{API_VERSION, Cluster, ClusterSpec, Kubernetes, Metadata, Pool, PoolMachine};
use nkd_api::machine::Identity;
use proptest::prelude::*;

use super::super::record::Run;
use super::*;
use crate::machine::lifecycle::new_machine;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn pool(name: &str, role: Role, first: u8, count: u8) -> Pool {
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

fn cluster(control_planes: u8, workers: u8) -> Cluster {
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
    now: OffsetDateTime,
    inits: u32,
    operations: u128,
}

impl World {
    fn new(control_planes: u8, workers: u8) -> Self {
        let record = Record::new(Uuid::from_u128(1), cluster(control_planes, workers), NOW);
        Self { record, machines: Vec::new(), nodes: Vec::new(), answers: true, now: NOW, inits: 0, operations: 0 }
    }

    fn seen(&self) -> Seen<'_> {
        let up = self.answers && self.record.is_initialised();
        Seen { machines: &self.machines, nodes: up.then_some(&self.nodes), now: self.now }
    }

    /// Plans, checks, carries out.
    fn turn(&mut self) -> usize {
        self.now += Duration::from_secs(1);
        let steps = plan(&self.record, self.seen());
        let before = self.record.clone();
        for step in &steps {
            self.take(step, &before);
        }
        let joining =
            self.record.members.iter().filter(|m| m.role == Role::ControlPlane && m.state == MemberState::Joining);
        assert!(joining.count() <= 1, "two control planes join at the same time");
        steps.len()
    }

    fn take(&mut self, step: &Step, before: &Record) {
        match step {
            Step::Claim { member } => {
                let id = Uuid::from_u128(100 + *member as u128);
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
                    KubeadmAction::Reset => unreachable!(),
                }
                self.operations += 1;
                let member = &mut self.record.members[*member];
                assert!(matches!(member.state, MemberState::Enrolled | MemberState::Failed));
                let operation = Uuid::from_u128(self.operations);
                member.run = Some(Run { operation, action: *action, ordered_at: self.now, ended_at: None });
                member.token = (*action == KubeadmAction::Join).then(|| format!("t{}", self.operations));
                member.state = MemberState::Joining;
            }
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

    fn machine(&mut self, n: usize) -> Option<&mut Machine> {
        let id = self.record.members.get(n)?.machine?;
        self.machines.iter_mut().find(|m| m.id == id)
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Enrolls(n) => {
                if let Some(machine) = self.machine(n) {
                    machine.installed_generation = Some(machine.generation);
                    machine.phase = Phase::Enrolled;
                }
            }
            Event::Ends(n, well) => {
                let now = self.now;
                let Some(member) = self.record.members.get_mut(n) else { return };
                let Some(run) = member.run.as_mut().filter(|_| member.state == MemberState::Joining) else { return };
                run.ended_at = Some(now);
                if well {
                    member.state = MemberState::Joined;
                    self.inits += u32::from(run.action == KubeadmAction::Init);
                    let name = member.hostname.clone();
                    self.nodes.retain(|node| node.name != name);
                    self.nodes.push(NodeView { name, ready: false });
                } else {
                    member.state = MemberState::Failed;
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
}

fn events() -> impl Strategy<Value = Event> {
    let n = 0usize..6;
    prop_oneof![
        3 => n.clone().prop_map(Event::Enrolls),
        3 => (n.clone(), any::<bool>()).prop_map(|(n, well)| Event::Ends(n, well)),
        2 => (n.clone(), any::<bool>()).prop_map(|(n, ready)| Event::Ready(n, ready)),
        1 => any::<bool>().prop_map(Event::Answers),
        1 => (0u64..400).prop_map(Event::Waits),
        1 => n.prop_map(Event::Forgotten),
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
        for _ in 0..60 {
            for n in 0..world.record.members.len() {
                if world.record.members[n].state == MemberState::Waiting {
                    world.happens(&Event::Enrolls(n));
                }
                world.happens(&Event::Ends(n, true));
                world.happens(&Event::Ready(n, true));
            }
            world.turn();
        }
        prop_assert!(is_complete(&world.record), "{:#?}", world.record.members);
        prop_assert!(world.record.members.iter().all(|m| m.token.is_none()), "a token was not revoked");
        prop_assert_eq!(world.inits, 1);
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
    assert_eq!(record.endpoint().as_deref(), Some("192.0.2.10:6443"));
    for (endpoint, full) in
        [("api.x", "api.x:6443"), ("10.0.0.1:7443", "10.0.0.1:7443"), ("[2001:db8::1]", "[2001:db8::1]:6443")]
    {
        let mut record = record.clone();
        record.cluster.spec.endpoint = Some(endpoint.into());
        assert_eq!(record.endpoint().as_deref(), Some(full));
    }
}

#[test]
fn an_operator_or_a_clock_that_is_put_back_ends_the_wait() {
    let mut world = World::new(1, 0);
    world.turn();
    world.happens(&Event::Enrolls(0));
    world.turn();
    world.turn();
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
