//! Three control planes and a worker: who goes when, what each of them is told to do, and what stays while one of them is away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nkd_vm_tests::{Node, within};
use serde_json::Value;

use super::scene::{AFTER, CLUSTER, Scene, unexpected};
use super::steps::{length, said_since};
use crate::Result;

const PLANES: usize = 3;
const KUBECONFIG: &str = "/root/kubeconfig";
/// States of a node whose turn it is.
const TURN: [&str; 4] = ["Draining", "Upgrading", "Rebooting", "Soaking"];
/// So long etcd may be without a leader: its members choose another one within some seconds.
const ELECTION: u64 = 60;

/// What was seen of a rollout, look by look.
struct Seen {
    /// Nodes in the order in which their turn came.
    went: Vec<String>,
    /// Looks at which the etcd of a control plane did not run.
    away: BTreeMap<String, u32>,
    /// Control planes that took no pods.
    closed: BTreeSet<String>,
    /// When etcd last answered out of its majority.
    answered: Instant,
}

/// What etcd says of itself, which it says out of its majority; nothing when it is slow, or when the node is. None: nothing
/// listens there.
fn etcd(node: &mut Node) -> Option<String> {
    const NOBODY_LISTENS: &str = "7";
    if !node.is_on() {
        return None;
    }
    let line = format!(
        "curl -sS --max-time 4 http://127.0.0.1:2381/health || {{ test $? != {NOBODY_LISTENS} || echo down; }}"
    );
    match node.shell(&line, within(15)) {
        Ok(said) if said.trim() == "down" => None,
        Ok(said) => Some(said),
        Err(_) => Some(String::new()),
    }
}

/// By way of a node's balancer, which knows an API server that answers. None: not now.
fn closed_planes(node: &mut Node) -> Option<BTreeSet<String>> {
    if !node.is_on() {
        return None;
    }
    let line = format!(
        "kubectl --kubeconfig {KUBECONFIG} --server https://127.0.0.1:7443 --request-timeout 8s get nodes -o json"
    );
    let nodes: Value = serde_json::from_str(&node.shell(&line, Duration::from_secs(20)).ok()?).ok()?;
    let closed = nodes["items"].as_array()?.iter().filter(|node| node["spec"]["unschedulable"] == true);
    let names = closed.filter_map(|node| node["metadata"]["name"].as_str());
    Some(names.filter(|name| name.starts_with("cp")).map(str::to_owned).collect())
}

impl Seen {
    fn look(&mut self, scene: &mut Scene, status: &Value) -> Result {
        if ["halted", "aborted"].iter().any(|state| status["state"] == *state) {
            return Err(unexpected("the rollout goes on", scene.explain()));
        }
        let nodes = status["nodes"].as_array().into_iter().flatten();
        let states: BTreeMap<&str, &str> =
            nodes.filter_map(|node| Some((node["name"].as_str()?, node["state"].as_str()?))).collect();
        let turn: Vec<&str> = states.iter().filter(|(_, state)| TURN.contains(state)).map(|(name, _)| *name).collect();
        assert!(turn.len() <= 1, "{turn:?} go at once: {states:?}");
        let began = turn.first().filter(|name| !self.went.iter().any(|before| before.as_str() == **name));
        if let Some(name) = began {
            for before in &self.went {
                assert_eq!(states[before.as_str()], "Done", "{name} goes before {before} is done: {states:?}");
            }
            println!("== {name} goes");
            self.went.push((*name).to_owned());
        }

        let mut away = Vec::new();
        for plane in &mut scene.nodes[..PLANES] {
            match etcd(plane) {
                None => away.push(plane.name().to_owned()),
                Some(said) if said.contains("true") => self.answered = Instant::now(),
                Some(_) => {}
            }
        }
        assert!(away.len() <= 1, "etcd does not run on {away:?}: {states:?}");
        for name in away {
            assert_eq!(self.went.last(), Some(&name), "{name} is away, and it is not its turn: {states:?}");
            *self.away.entry(name).or_default() += 1;
        }
        let silent = self.answered.elapsed();
        assert!(silent < within(ELECTION), "etcd has had no majority for {silent:?}: {states:?}");
        if let Some(closed) = closed_planes(&mut scene.nodes[PLANES]) {
            assert!(closed.len() <= 1, "{closed:?} take no pods: {states:?}");
            self.closed.extend(closed);
        }
        Ok(())
    }
}

impl Scene {
    /// The operator is in control, on the control planes that it upgrades.
    pub fn control_planes_one_after_the_other(&mut self) -> Result {
        let release = self.publish(AFTER)?;
        let config = self.lab.nkd(&["cluster", "kubeconfig", CLUSTER])?;
        self.nodes[PLANES].write_file(KUBECONFIG, 0o600, config.as_bytes())?;
        let consoles: Vec<u64> = self.nodes.iter().map(length).collect();
        self.begin(&release, &["--soak", "10s"])?;
        let mut seen =
            Seen { went: Vec::new(), away: BTreeMap::new(), closed: BTreeSet::new(), answered: Instant::now() };
        self.until("every node is done", 2400, |scene, status| {
            seen.look(scene, status)?;
            Ok(status["state"] == "complete")
        })?;

        let names: Vec<String> = self.nodes.iter().map(|node| node.name().to_owned()).collect();
        let (worker, planes) = names.split_last().unwrap();
        let (last, first) = seen.went.split_last().unwrap();
        let planes: BTreeSet<&String> = planes.iter().collect();
        assert_eq!((last, first.iter().collect::<BTreeSet<_>>(), first.len()), (worker, planes.clone(), PLANES));
        // It was looked at while they were away: none has slipped through between two looks.
        assert_eq!(seen.away.keys().collect::<BTreeSet<_>>(), planes, "{:?}", seen.away);
        assert_eq!(seen.closed.iter().collect::<BTreeSet<_>>(), planes);

        for (node, console) in self.nodes.iter().zip(consoles) {
            let said = said_since(node, console)?;
            let times = |words: &str| said.matches(words).count();
            let (applied, plane, any) = (
                times("[upgrade/successful] SUCCESS!"),
                times("The control plane instance for this node was successfully updated"),
                times("The configuration for this node was successfully updated"),
            );
            let expected = match node.name() {
                name if name == seen.went[0] => (1, 0, 0),
                name if name == worker => (0, 0, 1),
                _ => (0, 1, 1),
            };
            assert_eq!((applied, plane, any), expected, "upgrade apply, upgrade node of {}", node.name());
            self.expect_whole(node, &release.commit, "healthy")?;
            self.expect_open(node.name(), true)?;
        }
        let kubelets = self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}"])?;
        assert_eq!(kubelets, [AFTER; PLANES + 1].join(" "));
        let servers = "jsonpath={.items[*].spec.containers[0].image}";
        let servers =
            self.kubectl(&["-n", "kube-system", "get", "pods", "-l", "component=kube-apiserver", "-o", servers])?;
        let is_new = |image: &str| image.ends_with(&format!(":{AFTER}"));
        assert!(servers.split(' ').count() == PLANES && servers.split(' ').all(is_new), "{servers}");
        self.lab.wait_ready(CLUSTER, within(300))?;
        self.await_operators()
    }
}
