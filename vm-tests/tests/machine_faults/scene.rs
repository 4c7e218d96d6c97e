//! A cluster of one played control plane and two real machines, and what is done to it.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nkd_vm_tests::{Error, FaultTable, Harm, LabCluster, Machine, Node, Remote, Rollout, Saboteur, switch_on, within};
use serde_json::{Value, json};

use super::Result;
use super::lab::Lab;

/// The file by which releases differ.
const MARK: &str = "usr/share/nkd-release";
/// What the updater does on its way to another release, in this order.
const FORWARD: [&str; 11] = [
    "during apply",
    "during pull",
    "during stage",
    "after stage",
    "after count",
    "after arm",
    "after unlock",
    "during restart",
    "before gate",
    "before confirm",
    "after confirm",
];
/// And on its way back.
const BACK: [&str; 5] = ["before revert", "after revert", "before restart-back", "before settle", "after settle"];
/// A machine whose power is cut after the revert starts the old release then, and needs no restart: what each machine meets.
pub const BACK_OF: [[&str; 4]; 2] = [
    ["before revert", "before restart-back", "before settle", "after settle"],
    ["before revert", "after revert", "before settle", "after settle"],
];

fn unexpected(what: &str, got: impl Into<String>) -> Error {
    Error::Unexpected { what: what.to_owned(), got: got.into() }
}

/// The worker waits for its turn with the release laid out.
const IN_LINE: &str = "waiting for its turn";
/// On the way back from a release whose init does not start: nothing is left but to put it away.
pub const SETTLE: [&str; 2] = ["before settle", "after settle"];

/// The steps on the way forward at which harm is done: all, or those that `NKD_FAULT_STEPS` names, like `after count,after arm`.
fn forward() -> Result<Vec<&'static str>> {
    let Ok(wanted) = std::env::var("NKD_FAULT_STEPS") else { return Ok(FORWARD.to_vec()) };
    let named = |name: &str| FORWARD.into_iter().find(|step| *step == name.trim());
    let none = |name: &str| unexpected(&format!("NKD_FAULT_STEPS of {}", FORWARD.join(", ")), name);
    wanted.split(',').map(|name| named(name).ok_or_else(|| none(name))).collect()
}

fn column(machine: usize, harm: Harm) -> String {
    format!("{}, {}", LabCluster::MACHINES[machine], harm.word())
}

/// Everything is on, as its owner would have it.
fn keep_on(control_plane: &mut Node, machines: &mut [Machine]) -> Result {
    if !control_plane.is_on() {
        control_plane.power_on()?;
    }
    switch_on(machines)
}

/// Every step on the way forward and back, for both machines and every harm; only the power is cut on the way back.
pub fn table() -> FaultTable {
    let back = BACK.iter().map(|step| format!("ill: {step}"));
    let settle = SETTLE.iter().map(|step| format!("no-init: {step}"));
    let forward = FORWARD.iter().map(|step| (*step).to_owned());
    let steps = forward.chain([IN_LINE.to_owned()]).chain(settle).chain(back);
    let harms = [Harm::Kill, Harm::Power];
    FaultTable::new(steps, [0, 1].iter().flat_map(|machine| harms.map(|harm| column(*machine, harm))))
}

/// The cluster is Ready.
pub struct Scene {
    /// A node of namespaces, whose deployments are played.
    pub control_plane: Node,
    /// The workers.
    pub machines: Vec<Machine>,
    pub shells: [Remote; 2],
    pub table: FaultTable,
    pub started: Instant,
    /// What everybody runs at first.
    pub first: String,
    /// Last: what lives in it ends before.
    pub lab: Lab,
}

impl Scene {
    /// Does this, and keeps what the machines say of themselves if it fails: their disks are not kept.
    pub fn run(&mut self, work: impl FnOnce(&mut Self) -> Result) -> Result {
        let end = work(self);
        if end.is_err() {
            let script =
                "journalctl --no-pager -o short-monotonic -u nkd-updater -u kubelet -u 'nkd-*'; ostree admin status";
            for (name, shell) in LabCluster::MACHINES.iter().zip(&self.shells) {
                let said = shell.run(script, within(120)).unwrap_or_else(|error| error.to_string());
                let path = self.lab.net.folder().join(format!("journal-{name}.log"));
                // The failure says more than that its journal could not be written.
                let _ = std::fs::write(path, said);
            }
        }
        end
    }

    /// The same, and writes the table whatever came of it.
    pub fn tabled(mut self, work: impl FnOnce(&mut Self) -> Result) -> Result {
        let end = self.run(work);
        println!("{}\nis {}", self.table, self.table.write(self.lab.net.folder())?.display());
        end
    }

    fn rollout(&self) -> Rollout<'_> {
        self.lab.rollout()
    }

    pub fn say(&self, text: &str) {
        println!("[{:>5} s] {text}", self.started.elapsed().as_secs());
    }

    /// Publishes the lab image with these files over it; the commit.
    pub fn publish(&self, name: &str, files: &[(&str, &str)]) -> Result<String> {
        let overlay = self.lab.net.folder().join(format!("overlay-{name}"));
        for (path, text) in files.iter().chain(&[(MARK, name)]) {
            let path = overlay.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let repository = self.rollout().spoil(&self.lab.image, name, &overlay)?;
        self.rollout().publish(&repository, LabCluster::KUBERNETES)?;
        let commit = self.newest()?;
        self.control_plane.lay_out_again(&commit, &self.first)?;
        Ok(commit)
    }

    /// The commit of the channel's newest release.
    pub fn newest(&self) -> Result<String> {
        let channel = self.lab.nkd.json(&self.lab.net, &["channel", "show", "stable"])?;
        let commit = channel["releases"].as_array().and_then(|all| all.last()?["commit"].as_str().map(str::to_owned));
        commit.ok_or_else(|| unexpected("a release", channel.to_string()))
    }

    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.lab.cluster.kubectl(&self.lab.net, words)
    }

    /// The same while an API server may be away.
    fn kubectl_at_last(&self, words: &[&str]) -> Result<String> {
        let end = Instant::now() + within(600);
        loop {
            match self.kubectl(words) {
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_secs(3)),
                said => return said,
            }
        }
    }

    /// Asks for a release on one machine alone, by hand.
    pub fn ask(&self, name: &str, machine: usize, commit: &str, retry: u32) -> Result {
        let update = json!({
            "apiVersion": "nkd.io/v1alpha1", "kind": "Update", "metadata": {"name": name},
            "spec": {
                "release": {"name": name, "os": {"commit": commit}}, "retry": retry,
                "nodeSelector": {"kubernetes.io/hostname": LabCluster::MACHINES[machine]},
                "strategy": {"haltAfterFailures": 1},
            },
        });
        let path = self.lab.net.folder().join(format!("update-{name}.json"));
        std::fs::write(&path, update.to_string()).unwrap();
        self.kubectl_at_last(&["apply", "-f", &path.display().to_string()]).map(drop)
    }

    /// Waits until an update that was asked for by hand is in this phase, or a node of it says this; its status.
    pub fn until(&mut self, name: &str, phase: &str, says: &str, limit: u64) -> Result<Value> {
        let end = Instant::now() + within(limit);
        let mut last = String::new();
        loop {
            let said = self.kubectl(&["get", "nkdupdate", name, "-o", "json"]);
            let status = said.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
            let status = status.map(|update| update["status"].clone()).unwrap_or_default();
            let nodes = status["nodes"].to_string();
            if nodes != last {
                self.say(&format!("{name}: {nodes}"));
                last = nodes;
            }
            if (phase.is_empty() || status["phase"] == phase) && status.to_string().contains(says) {
                return Ok(status);
            }
            let other_end = ["Complete", "Halted"].iter().any(|word| status["phase"] == *word && *word != phase);
            if (other_end && !phase.is_empty()) || Instant::now() >= end {
                let journal = "journalctl -u nkd-updater --no-pager | tail -60; ostree admin status; cat /var/lib/nkd-agent/update.json";
                let told: Vec<String> =
                    self.shells.iter().map(|s| s.run(journal, within(60)).unwrap_or_default()).collect();
                let got = format!("{status:#}\n{}", told.join("\n==\n"));
                return Err(unexpected(&format!("{name} is {phase}, saying {says}"), got));
            }
            keep_on(&mut self.control_plane, &mut self.machines)?;
            std::thread::sleep(Duration::from_secs(2));
        }
    }

    pub fn forget(&self, name: &str) -> Result {
        self.kubectl_at_last(&["delete", "nkdupdate", name]).map(drop)
    }

    /// Waits until the updater of a node writes this stage.
    fn stage(&self, machine: usize, stage: &str, limit: u64) -> Result {
        let end = Instant::now() + within(limit);
        let grep = format!("grep -q '\"stage\": \"{stage}\"' /var/lib/nkd-agent/update.json && echo yes || true");
        // It does not answer while it restarts.
        while !self.shells[machine].run(&grep, within(60)).is_ok_and(|said| said.trim() == "yes") {
            if Instant::now() >= end {
                return Err(unexpected(&format!("{} is at {stage}", LabCluster::MACHINES[machine]), "it is not"));
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    /// The node runs this release, whole: nothing staged, nothing that counts, its kubelet up, its journal at this end.
    pub fn is_whole(&self, machine: usize, commit: &str, end: &str) -> Result {
        let script = "ostree admin status | sed 's/^/status: /'\n\
            ls /run/ostree/staged-deployment 2>/dev/null | sed 's/^/staged: /'\n\
            grep -a -o 'boot_counter=.*' /boot/grub/grubenv | sed 's/^/counter: /'\n\
            echo kubelet: $(systemctl is-active kubelet)\n\
            grep '\"stage\"' /var/lib/nkd-agent/update.json";
        let name = LabCluster::MACHINES[machine];
        let limit = Instant::now() + within(240);
        loop {
            let said = self.shells[machine].run(script, within(120)).unwrap_or_else(|error| error.to_string());
            let booted = said.lines().any(|line| line.starts_with("status: *") && line.contains(commit));
            let whole = booted
                && !said.contains("staged: ")
                && !said.contains("counter: ")
                && said.contains("kubelet: active")
                && said.contains(&format!("\"stage\": \"{end}\""));
            let node = self.kubectl_at_last(&["get", "node", name, "-o", "json"])?;
            let node: Value = serde_json::from_str(&node).map_err(|_| unexpected("a node", node.clone()))?;
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            let open = node["spec"]["unschedulable"].is_null();
            if whole && ready && open {
                return Ok(());
            }
            if Instant::now() >= limit {
                let what = format!("{name} is whole on {commit}, and {end}");
                return Err(unexpected(&what, format!("{said}\nready {ready}, open {open}")));
            }
            std::thread::sleep(Duration::from_secs(3));
        }
    }

    /// Writes down at which of these steps harm was done, which has to be all of them.
    fn tell(&mut self, machine: usize, way: &str, steps: &[&str], harm: Harm, end: &str) -> Result {
        let done = Saboteur::of(&self.shells[machine]).done()?;
        for step in steps.iter().filter(|step| done.iter().any(|done| done == *step)) {
            self.table.set(&format!("{way}{step}"), &column(machine, harm), end);
        }
        match steps.iter().find(|step| !done.iter().any(|done| done == *step)) {
            Some(missed) => Err(unexpected(&format!("harm at {way}{missed}"), format!("only {done:?}"))),
            None => Ok(()),
        }
    }

    /// The whole cluster to a release by the service, with harm on both workers on the way, which go at the same time.
    pub fn through(&mut self, number: u32, commit: &str, harms: [Harm; 2]) -> Result {
        let steps = forward()?;
        for (shell, harm) in self.shells.iter().zip(harms) {
            // GRUB is taught to count once, and forgets it here.
            let forget = "mount -o remount,rw /boot && rm -f /boot/grub/nkd-boot-counter.cfg && sync -f /boot; mount -o remount,ro /boot";
            shell.run(forget, within(60))?;
            Saboteur::of(shell).plan(&steps, harm)?;
        }
        // Workers wait for the control plane.
        self.control_plane.hold("arm")?;
        let (cluster, release) = (LabCluster::NAME, number.to_string());
        let order = ["upgrade", "start", cluster, "--channel", "stable", "--release", &release, "--os-only"];
        self.lab.nkd.nkd(&self.lab.net, &[&order[..], &["--max-unavailable", "2"]].concat())?;
        for (machine, harm) in harms.into_iter().enumerate() {
            self.stage(machine, "staged", 900)?;
            Saboteur::of(&self.shells[machine]).now(harm)?;
            self.table.set(IN_LINE, &column(machine, harm), "on the new release");
        }
        self.control_plane.release("arm")?;
        let started = self.started;
        let say = |line: &str| println!("[{:>5} s] {line}", started.elapsed().as_secs());
        let Self { lab, control_plane, machines, .. } = self;
        let on = || keep_on(control_plane, machines);
        lab.rollout().wait_for("complete", within(3000), on, say)?;
        for (machine, harm) in harms.into_iter().enumerate() {
            self.is_whole(machine, commit, "healthy")?;
            // Only a power cut in the restart itself keeps what was armed from being made.
            let restaged = u64::from(matches!(harm, Harm::Power));
            let journal = self.shells[machine].run("cat /var/lib/nkd-agent/update.json", within(60))?;
            let times = serde_json::from_str::<Value>(&journal).ok().and_then(|j| j["job"]["restaged"].as_u64());
            if times.is_none_or(|times| times > restaged) {
                return Err(unexpected(
                    &format!("a release that was laid out again {restaged} times at most"),
                    journal,
                ));
            }
            self.tell(machine, "", &steps, harm, "on the new release")?;
        }
        Ok(())
    }

    /// A release that does not stay, on one machine, with the power cut on the way back.
    pub fn back(
        &mut self,
        machine: usize,
        name: &'static str,
        commit: &str,
        before: &str,
        why: &str,
        steps: &[&str],
    ) -> Result {
        self.say(&format!("{name} on {}", LabCluster::MACHINES[machine]));
        Saboteur::of(&self.shells[machine]).plan(steps, Harm::Power)?;
        let update = format!("{name}-{machine}");
        self.ask(&update, machine, commit, 0)?;
        let status = self.until(&update, "Halted", why, 2400)?;
        if !status["conditions"].to_string().contains("rolled back") {
            return Err(unexpected("an update that was rolled back", format!("{status:#}")));
        }
        self.is_whole(machine, before, "rolled-back")?;
        self.tell(machine, &format!("{name}: "), steps, Harm::Power, "on the old release")?;
        self.forget(&update)
    }

    /// Staging that fails for this reason; nothing is touched, and the next attempt does it when it was put right.
    pub fn staging(
        &mut self,
        name: &'static str,
        commit: &str,
        before: &str,
        why: &str,
        spoil: impl FnOnce(&Self) -> Result,
        mend: impl FnOnce(&mut Self) -> Result,
    ) -> Result {
        self.say(name);
        spoil(self)?;
        self.ask(name, 1, commit, 0)?;
        let status = self.until(name, "Halted", why, 900)?;
        self.say(&format!("{}", status["nodes"]));
        self.is_whole(1, before, "rolled-back")?;
        mend(self)?;
        self.ask(name, 1, commit, 1)?;
        self.until(name, "Complete", "", 1500)?;
        self.is_whole(1, commit, "healthy")?;
        self.forget(name)
    }
}
