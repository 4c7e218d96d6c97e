//! One fault at every step of a rollout. The worker's release is ill at first, so that it goes back by itself; it is put
//! right then, and tried again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use nkd_vm_tests::{FaultTable, Node, within};
use serde_json::{Value, json};

use super::scene::{AFTER, CLUSTER, NEW, Release, Scene, unexpected};
use crate::Result;

/// In the order in which a node goes through them; the last two on its way back.
pub const STEPS: &[&str] = &[
    "staging",
    "staged",
    "draining",
    "kubeadm",
    "arming",
    "restarting",
    "gate",
    "confirm",
    "soaking",
    "revert",
    "settle",
];
/// The updaters of control plane and worker give a release so many seconds. The first is the product's own: an API whose
/// power was cut comes back late on a busy computer.
const GATES: [u32; 2] = [900, 75];
const CP: usize = 0;
const W: usize = 1;
/// Steps that are held until the fault was done, and what the updater does there.
const HELD: [(&str, &str); 6] = [
    ("staging", "stage"),
    ("arming", "arm"),
    ("restarting", "restart"),
    ("confirm", "confirm"),
    ("revert", "revert"),
    ("settle", "discard"),
];
/// A pod whose end the test holds up, `slow-0`. It comes to its node though that is closed, and comes again when it has left: then
/// it holds up nobody.
const POD: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: slow, namespace: default}
spec:
  serviceName: slow
  selector: {matchLabels: {app: slow}}
  template:
    metadata: {labels: {app: slow}, finalizers: [nkd.test/hold]}
    spec:
      nodeSelector: {kubernetes.io/hostname: w1}
      tolerations: [{key: node.kubernetes.io/unschedulable, operator: Exists, effect: NoSchedule}]
      terminationGracePeriodSeconds: 1
      containers: [{name: slow, image: 'k8s.gcr.io/pause:3.2', imagePullPolicy: Never}]
";

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The updater and everything that it has started are killed.
    Unit,
    /// The updater alone is killed.
    Main,
    /// The operator that leads is killed.
    Operator,
    /// The service is killed.
    Service,
    /// The node loses its power.
    Power,
}

impl Fault {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unit => "updater and its children killed",
            Self::Main => "updater killed",
            Self::Operator => "operator killed",
            Self::Service => "service killed",
            Self::Power => "power cut",
        }
    }

    /// The node at which it is done. An operator runs on the control plane, and nowhere while that restarts.
    fn node(self, step: &str) -> usize {
        match step {
            "kubeadm" | "arming" | "confirm" | "soaking" => CP,
            "restarting" | "gate" if !matches!(self, Self::Operator | Self::Service) => CP,
            _ => W,
        }
    }
}

/// A fault that was done.
struct Hit {
    node: usize,
    stage: Value,
    at: Instant,
    /// How long until the node went on to another stage.
    on: Option<Duration>,
}

fn stage(node: &Node, release: &Release) -> Value {
    let journal = node.update_journal().unwrap_or_default();
    let job = &journal["job"];
    if job["desired"]["os"]["commit"] == release.commit { job["stage"].clone() } else { Value::Null }
}

/// What a node's console has said since it was so long.
pub fn said_since(node: &Node, length: u64) -> Result<String> {
    let mut file = File::open(node.folder().join("console.log")).unwrap();
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(length)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub fn length(node: &Node) -> u64 {
    std::fs::metadata(node.folder().join("console.log")).map_or(0, |data| data.len())
}

impl Scene {
    /// A rollout in which this fault is done once at every step.
    pub fn rollout_under(&mut self, fault: Fault, table: &mut FaultTable) -> Result {
        println!("== {}", fault.name());
        let began = Instant::now();
        let release = self.publish(AFTER)?;
        // An administrator's cordon is none of ours.
        let by_hand = fault == Fault::Service;
        if by_hand {
            self.kubectl(&["cordon", "w1"])?;
        }
        self.apply("slow.yaml", POD)?;
        let tree = format!("/var/lib/site-os/trees/{}/usr/bin", release.commit);
        let ill = format!("[ \"$1\" = --version ] && echo Kubernetes {AFTER} && exit\nexit 7\n");
        self.nodes[W].shell(&format!("rm {tree}/kubelet"), within(20))?;
        self.nodes[W].write_file(&format!("{tree}/kubelet"), 0o755, format!("#!/bin/sh\n{ill}").as_bytes())?;
        for (node, gate) in self.nodes.iter().zip(GATES) {
            node.configure_updater("", gate)?;
            node.shell("systemctl restart nkd-updater", within(30))?;
        }
        for (step, verb) in HELD {
            self.nodes[fault.node(step)].hold(verb)?;
        }
        let console = length(&self.nodes[CP]);
        self.begin(&release, &["--soak", "20s"])?;

        let mut hits = BTreeMap::new();
        let ended = self.go_through(fault, &release, console, &mut hits);
        for (step, hit) in &hits {
            let on = hit.on.map(|on| format!(", on after {} s", on.as_secs())).unwrap_or_default();
            let word = if ended.is_ok() { "ok" } else { "FAILED" };
            table.set(step, fault.name(), format!("{word}{on}"));
        }
        ended?;
        for node in &self.nodes {
            self.expect_whole(node, &release.commit, "healthy")?;
        }
        self.expect_open("cp1", true)?;
        self.expect_open("w1", !by_hand)?;
        if by_hand {
            self.kubectl(&["uncordon", "w1"])?;
        }
        let kubelets = self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}"])?;
        assert_eq!(kubelets, format!("{AFTER} {AFTER}"));
        let applied = said_since(&self.nodes[CP], console)?.matches("[upgrade/successful] SUCCESS!").count();
        assert_eq!(applied, 1, "kubeadm upgrade apply has to end well once");
        self.lab.wait_ready(CLUSTER, within(200))?;
        println!("== {}: {} of {} steps, {} s", fault.name(), hits.len(), STEPS.len(), began.elapsed().as_secs());
        Ok(())
    }

    /// From the beginning to `complete`: by way of a worker that goes back, is put right and tried again.
    fn go_through(
        &mut self,
        fault: Fault,
        release: &Release,
        console: u64,
        hits: &mut BTreeMap<&'static str, Hit>,
    ) -> Result {
        let (end, mut last) = (Instant::now() + within(600), String::new());
        let (mut looked, mut repaired) = (Instant::now(), false);
        loop {
            self.switch_on()?;
            for step in STEPS {
                if !hits.contains_key(step) && self.is_at(step, fault.node(step), release, console) {
                    let (node, stage) = (fault.node(step), stage(&self.nodes[fault.node(step)], release));
                    if self.strike(fault, node)? {
                        println!("   {} at {step} of {}", fault.name(), self.nodes[node].name());
                        hits.insert(step, Hit { node, stage, at: Instant::now(), on: None });
                        self.let_go(step, node)?;
                    }
                }
            }
            for hit in hits.values_mut().filter(|hit| hit.on.is_none()) {
                let now = stage(&self.nodes[hit.node], release);
                hit.on = (!now.is_null() && now != hit.stage).then(|| hit.at.elapsed());
            }
            if looked.elapsed() > Duration::from_secs(2) {
                looked = Instant::now();
                let status = self.status()?;
                let said = format!("{}: {}", status["state"], status["nodes"]);
                if said != last {
                    println!("{said}");
                    last = said;
                }
                match status["state"].as_str() {
                    Some("complete") => return Ok(()),
                    Some("halted") if !repaired => {
                        self.put_right(release, &status)?;
                        repaired = true;
                    }
                    Some("halted" | "aborted") => return Err(unexpected("the rollout goes on", self.explain())),
                    _ => {}
                }
            }
            if Instant::now() >= end {
                return Err(unexpected("the rollout ends", self.explain()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether a node is at a step now.
    fn is_at(&self, step: &str, node: usize, release: &Release, console: u64) -> bool {
        if let Some((_, verb)) = HELD.iter().find(|(held, _)| *held == step) {
            return self.nodes[node].is_held(verb);
        }
        let stage = stage(&self.nodes[node], release);
        match step {
            "staged" => stage == "staged",
            "kubeadm" => {
                // In the middle of it.
                let begun = "[upgrade/apply] Upgrading your Static Pod";
                stage == "kubeadm" && said_since(&self.nodes[node], console).is_ok_and(|said| said.contains(begun))
            }
            "gate" => stage == "check",
            "draining" => stage == "staged" && self.noted(node, release) == "begun",
            "soaking" => stage == "healthy" && self.noted(node, release) == "soaking",
            _ => false,
        }
    }

    /// What the operator has noted of a node in this update; nothing while the API is away.
    fn noted(&self, node: usize, release: &Release) -> Value {
        let Ok(seen) = self.json(&["get", "node", self.nodes[node].name(), "--request-timeout=5s"]) else {
            return Value::Null;
        };
        let read = |key: &str| -> Value {
            let text = seen["metadata"]["annotations"][key].as_str().unwrap_or("null");
            serde_json::from_str(text).unwrap_or_default()
        };
        let (note, desired) = (read("nkd.io/update-note"), read("nkd.io/desired"));
        let this = desired["os"]["commit"] == release.commit && note["uid"] == desired["uid"];
        let drains = note["state"] == "begun" && desired["go"] == false;
        if this && (drains || note["state"] == "soaking") { note["state"].clone() } else { Value::Null }
    }

    /// Does it. False: it could not be done now.
    fn strike(&mut self, fault: Fault, node: usize) -> Result<bool> {
        let kill = |node: &Node, who: &str| {
            node.shell(&format!("systemctl kill --kill-who={who} --signal=KILL nkd-updater"), within(20)).is_ok()
        };
        Ok(match fault {
            Fault::Unit => kill(&self.nodes[node], "all"),
            Fault::Main => kill(&self.nodes[node], "main"),
            Fault::Power => {
                if self.nodes[node].is_on() {
                    self.nodes[node].power_cut()?;
                    true
                } else {
                    false
                }
            }
            Fault::Service => {
                self.lab.nkd.process().kill()?;
                self.lab.nkd.process().start_again()?;
                self.lab.nkd.process().expect_log("nkd serves", within(60))?;
                true
            }
            Fault::Operator => self.kill_operator(),
        })
    }

    fn kill_operator(&self) -> bool {
        let lease = self.json(&["-n", "nkd-system", "get", "lease", "housekeeper", "--request-timeout=5s"]);
        let Some(leader) = lease.ok().and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned))
        else {
            return false;
        };
        let line = format!(
            "for pid in $(pidof housekeeper); do \
             if tr '\\0' '\\n' </proc/$pid/environ | grep -qx POD_NAME={leader}; then kill -9 $pid; exit 0; fi; done; exit 1"
        );
        self.nodes[CP].shell(&line, within(20)).is_ok()
    }

    /// What was held for a fault goes on. A node without power is switched on then.
    fn let_go(&mut self, step: &str, node: usize) -> Result {
        if let Some((_, verb)) = HELD.iter().find(|(held, _)| *held == step) {
            self.nodes[node].release(verb)?;
        }
        self.switch_on()?;
        if step == "draining" { self.let_pod_end() } else { Ok(()) }
    }

    /// Nothing holds up the end of the pod that is there now.
    fn let_pod_end(&self) -> Result {
        let end = Instant::now() + within(60);
        let patch = json!({"metadata": {"finalizers": null}}).to_string();
        while let Err(error) =
            self.kubectl(&["--request-timeout=10s", "patch", "pod", "slow-0", "--type=merge", "-p", &patch])
        {
            if Instant::now() >= end {
                return Err(error);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    /// The worker is back on what it ran before, and the owner is told so. Its release is put right and tried again.
    fn put_right(&mut self, release: &Release, status: &Value) -> Result {
        let nodes = status["nodes"].as_array().into_iter().flatten();
        let worker = nodes.into_iter().find(|node| node["name"] == "w1").cloned().unwrap_or_default();
        let said = worker["reason"].as_str().unwrap_or_default();
        if worker["state"] != "Failed" || !said.starts_with("rolled back: ") {
            return Err(unexpected("the worker has gone back by itself", self.explain()));
        }
        self.expect_whole(&self.nodes[W], &self.runs, "rolled-back")?;
        // The one that came back after the first drain is evicted in the second one.
        self.let_pod_end()?;
        self.nodes[W].lay_out_again(&release.commit, NEW)?;
        self.lab.nkd(&["upgrade", "retry", CLUSTER]).map(drop)
    }
}
