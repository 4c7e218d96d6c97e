//! What else may happen in the middle, and what the owner of the system is told of it.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nkd_vm_tests::{Clock, Service, budgeted_pods, built, within};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::scene::{BEFORE, CLUSTER, Release, Scene, unexpected};
use crate::Result;

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(300);

fn node(status: &Value, name: &str) -> (String, String) {
    let nodes = status["nodes"].as_array().into_iter().flatten();
    let node = nodes.into_iter().find(|node| node["name"] == name).cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&node["state"]), text(&node["reason"]))
}

impl Scene {
    fn expect_all_whole(&mut self, release: &Release) -> Result {
        for node in &self.nodes {
            self.expect_whole(node, &release.commit, "healthy")?;
            self.expect_open(node.name(), true)?;
        }
        self.runs.clone_from(&release.commit);
        self.lab.wait_ready(CLUSTER, within(200))?;
        self.await_operators()
    }

    /// Of two that begin an upgrade in the same moment one is told no. A budget that can never be met holds its node open; a
    /// node whose disk is full stays as it was; both go on when that is put right.
    pub fn two_starts_a_budget_and_a_full_disk(&mut self) -> Result {
        let release = self.publish(BEFORE)?;
        // A pod on w1 that may never leave, because somebody said so.
        let stuck = budgeted_pods("stuck", 1, Some("w1"));
        self.apply("stuck.yaml", &stuck)?;
        self.kubectl(&["rollout", "status", "deployment/stuck", "--timeout=55s"])?;
        let told = self.begin(&release, &["--os-only"]).unwrap_or_else(|error| error.to_string());
        assert!(told.contains("w1: the disruption budget stuck never lets default/stuck-"), "{told}");
        self.kubectl(&["delete", "poddisruptionbudget", "stuck"])?;
        let room = "mkdir -p /var/lib/site-os/room && mount -t tmpfs -o size=64k room /var/lib/site-os/room";
        self.nodes[2].shell(room, within(20))?;
        let boots = self.nodes[2].shell("cat /proc/sys/kernel/random/boot_id", within(20))?;

        self.nodes[0].hold("arm")?;
        let scene = &*self;
        let told: Vec<_> = thread::scope(|scope| {
            let starts = [(); 2].map(|()| scope.spawn(|| scene.begin(&release, &["--os-only"])));
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let refused: Vec<String> =
            told.iter().filter_map(|told| told.as_ref().err().map(ToString::to_string)).collect();
        let why = ["wait for its end", "another upgrade has begun in this moment"];
        assert!(refused.len() == 1 && why.iter().any(|why| refused[0].contains(why)), "{told:?}");
        // The budget comes back when the upgrade has begun.
        self.until("cp1 upgrades", 600, |scene, _| Ok(scene.nodes[0].is_held("arm")))?;
        self.apply("stuck.yaml", &stuck)?;
        self.nodes[0].release("arm")?;

        self.until("w1 is blocked, w2 has no room, cp1 is done", 600, |_, status| {
            let done = node(status, "cp1").0 == "Done";
            Ok(done && node(status, "w1").0 == "Blocked" && node(status, "w2").0 == "Failed")
        })?;
        let status = self.status()?;
        let (why, full) = (node(&status, "w1").1, node(&status, "w2").1);
        assert!(why.contains("the disruption budget stuck never lets default/stuck-"), "{why}");
        assert!(full.contains("fetching the release") && full.contains("No space left on device"), "{full}");
        self.expect_open("w1", true)?;
        self.expect_open("w2", true)?;
        self.expect_whole(&self.nodes[2], &self.runs, "rolled-back")?;
        assert_eq!(self.nodes[2].shell("cat /proc/sys/kernel/random/boot_id", within(20))?, boots);
        let shown = self.lab.nkd(&["upgrade", "status", CLUSTER])?;
        assert!(shown.contains("No space left on device") && shown.contains("the disruption budget stuck"), "{shown}");

        self.nodes[2].shell("umount /var/lib/site-os/room && rmdir /var/lib/site-os/room", within(20))?;
        self.kubectl(&["delete", "poddisruptionbudget", "stuck"])?;
        self.lab.nkd(&["upgrade", "retry", CLUSTER])?;
        self.until_state("complete", 600)?;
        self.kubectl(&["delete", "deployment", "stuck"])?;
        self.expect_all_whole(&release)
    }

    fn ask(&self, name: &str, release: &Release, strategy: &Value) -> Result {
        let os = json!({"commit": release.commit});
        let spec = json!({"release": {"name": name, "os": os}, "strategy": strategy});
        let kind = json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Update", "metadata": {"name": name}, "spec": spec});
        self.apply(&format!("update-{name}.json"), &kind.to_string())
    }

    /// As [`Scene::until`], for an update that no service knows of.
    fn until_update(
        &mut self,
        name: &str,
        what: &str,
        limit: u64,
        mut fits: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let (end, mut last) = (Instant::now() + within(limit), String::new());
        loop {
            self.switch_on()?;
            if let Ok(update) = self.json(&["--request-timeout=10s", "get", "nkdupdate", name]) {
                let status = &update["status"];
                let said = format!("{name} {}: {}", status["phase"], status["nodes"]);
                if said != last {
                    println!("{said}");
                    last = said;
                }
                if fits(status) {
                    println!("== {what}");
                    return Ok(status.clone());
                }
            }
            if Instant::now() >= end {
                return Err(unexpected(what, format!("{last}\n{}", self.explain())));
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// Two updates go one after the other. A node whose agent never answers is given up, and so is one whose agent falls
    /// silent in its turn; both are taken at their word when they are heard of.
    pub fn two_updates_and_silent_agents(&mut self) -> Result {
        let (one, two) = (self.publish(BEFORE)?, self.publish(BEFORE)?);
        let strategy = json!({"silentSeconds": 40});
        let mask = "systemctl mask --now --runtime nkd-updater";
        let unmask = "systemctl unmask --runtime nkd-updater && systemctl start nkd-updater";
        self.nodes[1].shell(mask, within(60))?;
        self.ask("one", &one, &strategy)?;
        self.ask("two", &two, &strategy)?;
        // Both may be of the same second.
        let mut order = Vec::new();
        for (name, release) in [("one", &one), ("two", &two)] {
            let metadata = self.json(&["get", "nkdupdate", name])?["metadata"].clone();
            order.push((metadata["creationTimestamp"].to_string(), metadata["uid"].to_string(), name, release));
        }
        order.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        let [(.., one, _), (.., two, last)] = order[..] else { unreachable!() };
        let status = self.until_update(one, "w1 never answers, the others are done", 600, |status| {
            ["cp1", "w2"].iter().all(|name| node(status, name).0 == "Done") && node(status, "w1").0 == "Failed"
        })?;
        let why = node(&status, "w1").1;
        assert!(why.contains("has not answered for 40 s") && why.contains("systemctl status nkd-updater"), "{why}");
        self.expect_open("w1", true)?;
        let waiting = self.json(&["get", "nkdupdate", two])?["status"].clone();
        let said = waiting["conditions"][0]["message"].to_string();
        assert!(waiting["phase"] == "Pending" && said.contains(&format!("the update {one} is older")), "{waiting:#}");

        self.nodes[1].shell(unmask, within(60))?;
        self.until_update(one, "w1 is taken at its word", 600, |status| status["phase"] == "Complete")?;
        // The second one's turn. An agent falls silent when it is told to go.
        self.nodes[2].hold("arm")?;
        self.until_update(two, "w2 is told to go", 900, |status| node(status, "w2").0 == "Upgrading")?;
        self.nodes[2].shell(mask, within(60))?;
        self.nodes[2].release("arm")?;
        let status = self.until_update(two, "w2 is given up", 600, |status| status["phase"] == "Halted")?;
        let why = node(&status, "w2").1;
        assert!(why.contains("for 2 minutes") && why.contains("systemctl status nkd-updater"), "{why}");
        assert_eq!(self.json(&["get", "node", "w2"])?["spec"]["unschedulable"], true, "nobody knows what it runs");
        self.nodes[2].shell(unmask, within(60))?;
        self.until_update(two, "w2 is taken at its word", 600, |status| status["phase"] == "Complete")?;
        for name in [one, two] {
            self.kubectl(&["delete", "nkdupdate", name])?;
        }
        self.expect_all_whole(last)
    }

    /// The API server is away for five minutes while a worker upgrades. The agents' clocks jump an hour, and back.
    pub fn no_api_server_and_other_clocks(&mut self) -> Result {
        let release = self.publish(BEFORE)?;
        let offset = |scene: &Self, text: &str| {
            scene.nodes[1].write_file("/etc/site-clock", 0o644, text.as_bytes())?;
            Result::Ok(())
        };
        offset(self, "+0")?;
        let preload = "LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 FAKETIME_NO_CACHE=1 \
                       FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_TIMESTAMP_FILE=/etc/site-clock";
        // Of those who fail the gate, an API server that is away for long is not to be one: the updater's own limit.
        self.nodes[1].configure_updater(&format!("Environment={preload}\n"), 900)?;
        self.nodes[1].shell("systemctl restart nkd-updater", within(30))?;
        self.nodes[1].hold("stage")?;
        self.begin(&release, &["--os-only", "--soak", "20s"])?;
        self.until("w1 stages", 300, |scene, _| Ok(scene.nodes[1].is_held("stage")))?;
        offset(self, "+1h")?;
        self.nodes[1].release("stage")?;
        self.nodes[1].hold("arm")?;
        self.until("w1 upgrades", 600, |scene, _| Ok(scene.nodes[1].is_held("arm")))?;
        offset(self, "-1h")?;

        let manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml";
        self.nodes[0].shell(&format!("mv {manifest} /etc/kubernetes/away.yaml"), within(20))?;
        let gone = Instant::now();
        self.nodes[1].release("arm")?;
        self.until("the API is away, which the owner is told", 200, |_, status| {
            Ok(status["detail"].as_str().is_some_and(|said| said.contains("does not answer now")))
        })?;
        self.until("five minutes have passed", 400, |_, _| Ok(gone.elapsed() >= AWAY))?;
        self.nodes[0].shell(&format!("mv /etc/kubernetes/away.yaml {manifest}"), within(20))?;
        self.until_state("complete", 900)?;
        self.nodes[1].configure_updater("", 150)?;
        self.nodes[1].shell("systemctl restart nkd-updater", within(30))?;
        self.expect_all_whole(&release)
    }

    fn scale_operators(&self, replicas: u32) -> Result {
        let words = ["-n", "nkd-system", "scale", "deployment/housekeeper", &format!("--replicas={replicas}")];
        self.kubectl(&words).map(drop)
    }

    /// An operator that runs beside the cluster, where it can have a clock of its own, instead of those in it. It leads.
    fn operator_outside(&self, clock: &Clock) -> Result<Service> {
        let program = built("NKD_HOUSEKEEPER_PROGRAM")?;
        self.scale_operators(0)?;
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(self.lab.net.folder().join(format!("kubeconfig-{CLUSTER}")));
        command.args(["--identity", "outside", "--text"]);
        clock.govern(&mut command);
        let mut operator = self.lab.host.spawn("operator", command)?;
        operator.expect_log("leads", within(120))?;
        Ok(operator)
    }

    /// The clock of the operator that leads is an hour ahead, is set right while one node is watched, and wrong again while the
    /// next one is: neither ends a wait, and none is made longer by it.
    pub fn an_operator_with_another_clock(&mut self) -> Result {
        let release = self.publish(BEFORE)?;
        self.nodes[0].hold("stage")?;
        self.begin(&release, &["--os-only", "--soak", "60s"])?;
        let clock = Clock::new(&self.lab.net)?;
        clock.jump("+1h")?;
        let mut operator = self.operator_outside(&clock)?;
        self.nodes[0].release("stage")?;
        for (name, jump) in [("cp1", "+0"), ("w1", "+1h")] {
            let soaks = |status: &Value| node(status, name).0 == "Soaking";
            self.until(&format!("{name} is watched"), 600, |_, status| Ok(soaks(status)))?;
            let since = Instant::now();
            clock.jump(jump)?;
            self.until(&format!("{name} is done"), 120, |_, status| Ok(node(status, name).0 == "Done"))?;
            // The service may have heard of the beginning and the end some seconds late.
            assert!(since.elapsed() >= Duration::from_secs(40), "{name} was watched for {:?}", since.elapsed());
        }
        self.until_state("complete", 600)?;
        operator.stop(within(40))?;
        self.scale_operators(2)?;
        self.expect_all_whole(&release)
    }

    /// An operator's clock that is wrong opens a window too soon, and closes it when it is set right: what has begun comes to its
    /// end, what has not waits for the window, and is told when that opens.
    pub fn a_clock_in_front_of_a_window(&mut self) -> Result {
        let release = self.publish(BEFORE)?;
        let clock = Clock::new(&self.lab.net)?;
        let mut operator = self.operator_outside(&clock)?;
        let opens = (OffsetDateTime::now_utc() + Duration::from_secs(6 * 3600)).time();
        let opens = format!("{:02}:{:02}", opens.hour(), opens.minute());
        self.nodes[0].hold("arm")?;
        self.begin(&release, &["--os-only", "--window", &format!("{opens}+4h")])?;
        let closed = |status: &Value| {
            let said = status["detail"].as_str().unwrap_or_default();
            said.contains("the window is closed") && said.contains(&opens)
        };
        self.until("all wait for the window", 300, |scene, status| {
            let staged = ["cp1", "w1", "w2"].iter().all(|name| node(status, name).0 == "Staged");
            Ok(staged && closed(status) && !scene.nodes[0].is_held("arm"))
        })?;
        clock.jump("+7h")?;
        self.until("cp1 upgrades", 300, |scene, _| Ok(scene.nodes[0].is_held("arm")))?;
        clock.jump("+0")?;
        self.nodes[0].release("arm")?;
        self.until("cp1 is done, and the window closed", 600, |_, status| {
            Ok(node(status, "cp1").0 == "Done" && closed(status))
        })?;
        self.expect_whole(&self.nodes[0], &release.commit, "healthy")?;
        // Looked at for a while: nothing else begins.
        let since = Instant::now();
        self.until("workers go on waiting", 60, |scene, status| {
            for name in ["w1", "w2"] {
                assert_eq!(node(status, name).0, "Staged", "{name} has begun outside of the window");
                scene.expect_open(name, true)?;
            }
            Ok(since.elapsed() >= Duration::from_secs(30))
        })?;
        clock.jump("+7h")?;
        self.until_state("complete", 600)?;
        operator.stop(within(40))?;
        self.scale_operators(2)?;
        self.expect_all_whole(&release)
    }

    /// The Node of a control plane that upgrades is deleted: everybody else waits until it has registered again.
    fn a_control_plane_that_goes_away(&mut self) -> Result {
        let release = self.publish(BEFORE)?;
        self.nodes[0].hold("arm")?;
        self.begin(&release, &["--os-only"])?;
        self.until("cp1 is drained and upgrades", 600, |scene, _| Ok(scene.nodes[0].is_held("arm")))?;
        self.kubectl(&["delete", "node", "cp1", "--wait=false"])?;
        self.until_state("halted", 120)?;
        let status = self.status()?;
        let (state, reason) = node(&status, "cp1");
        assert!(state == "Failed" && reason.contains("its Node was deleted when it was on its way"), "{status:#}");
        for name in ["w1", "w2"] {
            let (state, reason) = node(&status, name);
            assert!(state == "Staged" && reason.contains("systemctl restart kubelet"), "{status:#}");
        }
        self.nodes[0].release("arm")?;
        // It restarts, and its kubelet makes its Node anew, which has nothing of what kubeadm gave it.
        self.until_state("complete", 900)?;
        self.expect_all_whole(&release)?;
        self.until("cp1 is a control plane again", 120, |scene, _| {
            let cp1 = scene.json(&["get", "node", "cp1"])?;
            let taints = cp1["spec"]["taints"].to_string();
            Ok(cp1["metadata"]["labels"].get("node-role.kubernetes.io/master").is_some() && taints.contains("/master"))
        })
    }

    /// Nodes are deleted while they wait, when they are drained, and after their restart; a machine is lost for good.
    pub fn nodes_that_go_away(&mut self) -> Result {
        self.a_control_plane_that_goes_away()?;
        let release = self.publish(BEFORE)?;
        self.nodes[1].hold("arm")?;
        self.nodes[2].hold("stage")?;
        self.begin(&release, &["--os-only"])?;
        self.until("w1 is drained and upgrades", 600, |scene, _| Ok(scene.nodes[1].is_held("arm")))?;
        // This one waits for its turn, and is not drained yet. It is there again when its kubelet starts.
        self.kubectl(&["delete", "node", "w2"])?;
        self.until("w2 is not part of it any more", 60, |_, status| {
            let nodes = status["nodes"].as_array().into_iter().flatten();
            Ok(!nodes.into_iter().any(|node| node["name"] == "w2"))
        })?;
        self.nodes[2].shell("systemctl restart kubelet", within(30))?;
        self.until("w2 is part of it again", 60, |_, status| Ok(!node(status, "w2").0.is_empty()))?;
        self.kubectl(&["delete", "node", "w1", "--wait=false"])?;
        self.nodes[1].release("arm")?;
        // It restarts, and its kubelet makes its node anew.
        self.until("w1 is there again, and done", 600, |_, status| Ok(node(status, "w1").0 == "Done"))?;
        self.nodes[2].release("stage")?;
        self.nodes[2].hold("confirm")?;
        self.until("w2 has restarted", 600, |scene, _| Ok(scene.nodes[2].is_held("confirm")))?;
        self.kubectl(&["delete", "node", "w2", "--wait=false"])?;
        self.nodes[2].release("confirm")?;
        // The operator has all that are there. The service knows who is missing, and says what to do.
        self.until_state("halted", 300)?;
        let status = self.status()?;
        let said = status["detail"].as_str().unwrap_or_default();
        for words in ["w2 was not there", "systemctl restart kubelet", "nkd upgrade retry", "nkd cluster remove"] {
            assert!(said.contains(words), "{words}: {status:#}");
        }
        for node in &self.nodes[..2] {
            self.expect_whole(node, &release.commit, "healthy")?;
            self.expect_open(node.name(), true)?;
        }
        self.expect_whole(&self.nodes[2], &release.commit, "healthy")?;
        // A kubelet makes its node when it starts.
        self.nodes[2].shell("systemctl restart kubelet", within(30))?;
        self.runs.clone_from(&release.commit);
        // What the service says of the cluster may be of a moment before.
        self.until("w2 has a Node that is Ready", 200, |scene, _| {
            Ok(scene.kubectl(&["get", "node", "w2", "--no-headers"]).is_ok_and(|text| text.contains(" Ready ")))
        })?;
        self.lab.nkd(&["upgrade", "retry", CLUSTER])?;
        self.until_state("complete", 300)?;
        self.expect_all_whole(&release)?;

        let release = self.publish(BEFORE)?;
        self.nodes[2].hold("arm")?;
        self.begin(&release, &["--os-only"])?;
        self.until("w2 upgrades", 900, |scene, _| Ok(scene.nodes[2].is_held("arm")))?;
        let mut lost = self.nodes.pop().unwrap();
        lost.power_cut()?;
        self.lab.nkd(&["cluster", "remove", CLUSTER, "w2", "--lost"])?;
        self.until_state("complete", 600)?;
        self.expect_all_whole(&release)
    }
}
