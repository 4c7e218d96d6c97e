//! What goes wrong while a real machine goes to another release: real ostree, boot loader and restarts on a BIOS and on a UEFI
//! machine. The updater is killed and the power cut at one step after the other; releases do not boot, lack an agent, or fail
//! the node's own check; the disk is full; the repository serves garbage, an old summary, or nothing.
//!
//! Machines are made once, since that takes longest. Releases differ by a file, and keep the version of Kubernetes: what
//! kubeadm does under faults is seen on nodes of namespaces (`update_faults.rs`).

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nkd_vm_tests::{
    Builds, DhcpMode, Error, FaultTable, Harm, Host, Images, LabCluster, LabPrograms, Machine, Network, Nkd, Node,
    Remote, Rollout, Saboteur, Service, SshKey, install_by_hand, other_dhcp, switch_on, within,
};
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Error>;

/// The file by which releases differ.
const MARK: &str = "usr/share/nkd-release";
/// The gate is narrow, so that an ill release is told soon. It has to hold a start under emulation.
const GATE: &str = "ExecStart=\nExecStart=/usr/bin/nkd-agent update --gate 300";
/// What the updater does on its way to another release, in this order.
const FORWARD: [&str; 9] = [
    "during pull",
    "during stage",
    "after stage",
    "after arm",
    "after unlock",
    "during restart",
    "before gate",
    "before confirm",
    "after confirm",
];
/// And on its way back.
const BACK: [&str; 5] = ["before revert", "after revert", "before restart-back", "before settle", "after settle"];

fn built(variable: &'static str) -> Result<PathBuf> {
    let remedy = "run this through `cargo xtask soak`, which builds it";
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.exists());
    path.ok_or(Error::NotBuilt { variable, remedy })
}

fn unexpected(what: &str, got: impl Into<String>) -> Error {
    Error::Unexpected { what: what.to_owned(), got: got.into() }
}

/// The worker waits for its turn with the release laid out.
const IN_LINE: &str = "waiting for its turn";
/// On the way back from a release whose init does not start: nothing is left but to put it away.
const SETTLE: [&str; 2] = ["before settle", "after settle"];

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
fn table() -> FaultTable {
    let back = BACK.iter().map(|step| format!("ill: {step}"));
    let settle = SETTLE.iter().map(|step| format!("no-init: {step}"));
    let forward = FORWARD.iter().map(|step| (*step).to_owned());
    let steps = forward.chain([IN_LINE.to_owned()]).chain(settle).chain(back);
    let harms = [Harm::Kill, Harm::Power];
    FaultTable::new(steps, [0, 1].iter().flat_map(|machine| harms.map(|harm| column(*machine, harm))))
}

struct Scene<'a> {
    rollout: Rollout<'a>,
    image: &'a Path,
    /// A node of namespaces, whose deployments are played.
    control_plane: Node,
    /// The workers.
    machines: Vec<Machine>,
    shells: [Remote; 2],
    table: FaultTable,
    started: Instant,
    /// What everybody runs at first.
    first: String,
}

impl Scene<'_> {
    fn parts(self) -> Parts {
        let Self { control_plane, machines, shells, table, started, first, .. } = self;
        Parts { control_plane, machines, shells, table, started, first }
    }

    fn write_table(&self) -> Result {
        println!("{}\nis {}", self.table, self.table.write(self.rollout.net.folder())?.display());
        Ok(())
    }

    fn say(&self, text: &str) {
        println!("[{:>5} s] {text}", self.started.elapsed().as_secs());
    }

    /// Publishes the lab image with these files over it; the commit.
    fn publish(&self, name: &str, files: &[(&str, &str)]) -> Result<String> {
        let overlay = self.rollout.net.folder().join(format!("overlay-{name}"));
        for (path, text) in files.iter().chain(&[(MARK, name)]) {
            let path = overlay.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let repository = self.rollout.spoil(self.image, name, &overlay)?;
        self.rollout.publish(&repository, LabCluster::KUBERNETES)?;
        let commit = self.newest()?;
        self.control_plane.lay_out_again(&commit, &self.first)?;
        Ok(commit)
    }

    /// The commit of the channel's newest release.
    fn newest(&self) -> Result<String> {
        let channel = self.rollout.nkd.json(self.rollout.net, &["channel", "show", "stable"])?;
        let commit = channel["releases"].as_array().and_then(|all| all.last()?["commit"].as_str().map(str::to_owned));
        commit.ok_or_else(|| unexpected("a release", channel.to_string()))
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.rollout.cluster.kubectl(self.rollout.net, words)
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
    fn ask(&self, name: &str, machine: usize, commit: &str, retry: u32) -> Result {
        let update = json!({
            "apiVersion": "nkd.io/v1alpha1", "kind": "Update", "metadata": {"name": name},
            "spec": {
                "release": {"name": name, "os": {"commit": commit}}, "retry": retry,
                "nodeSelector": {"kubernetes.io/hostname": LabCluster::MACHINES[machine]},
                "strategy": {"haltAfterFailures": 1},
            },
        });
        let path = self.rollout.net.folder().join(format!("update-{name}.json"));
        std::fs::write(&path, update.to_string()).unwrap();
        self.kubectl_at_last(&["apply", "-f", &path.display().to_string()]).map(drop)
    }

    /// Waits until an update that was asked for by hand is in this phase, or a node of it says this; its status.
    fn until(&mut self, name: &str, phase: &str, says: &str, limit: u64) -> Result<Value> {
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

    fn forget(&self, name: &str) -> Result {
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
    fn is_whole(&self, machine: usize, commit: &str, end: &str) -> Result {
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

    /// Writes down at which of these steps harm was done.
    fn tell(&mut self, machine: usize, way: &str, steps: &[&str], harm: Harm, end: &str) -> Result<usize> {
        let done = Saboteur::of(&self.shells[machine]).done()?;
        for step in steps.iter().filter(|step| done.iter().any(|done| done == *step)) {
            self.table.set(&format!("{way}{step}"), &column(machine, harm), end);
        }
        Ok(done.len())
    }

    /// The whole cluster to a release by the service, with harm on both workers on the way, which go at the same time.
    fn through(&mut self, number: u32, commit: &str, harms: [Harm; 2]) -> Result {
        for (shell, harm) in self.shells.iter().zip(harms) {
            Saboteur::of(shell).plan(&FORWARD, harm)?;
        }
        // Workers wait for the control plane.
        self.control_plane.hold("arm")?;
        let (cluster, release) = (LabCluster::NAME, number.to_string());
        let order = ["upgrade", "start", cluster, "--channel", "stable", "--release", &release, "--os-only"];
        self.rollout.nkd.nkd(self.rollout.net, &[&order[..], &["--max-unavailable", "2"]].concat())?;
        for (machine, harm) in harms.into_iter().enumerate() {
            self.stage(machine, "staged", 900)?;
            Saboteur::of(&self.shells[machine]).now(harm)?;
            self.table.set(IN_LINE, &column(machine, harm), "on the new release");
        }
        self.control_plane.release("arm")?;
        let started = self.started;
        let say = |line: &str| println!("[{:>5} s] {line}", started.elapsed().as_secs());
        let Self { rollout, control_plane, machines, .. } = self;
        let on = || keep_on(control_plane, machines);
        rollout.wait_for("complete", within(3000), on, say)?;
        for (machine, harm) in harms.into_iter().enumerate() {
            self.is_whole(machine, commit, "healthy")?;
            let hit = self.tell(machine, "", &FORWARD, harm, "on the new release")?;
            assert_eq!(hit, FORWARD.len(), "{}", self.table);
        }
        Ok(())
    }

    /// A release that does not stay, on one machine, with the power cut on the way back.
    fn back(
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
        assert!(status["conditions"].to_string().contains("rolled back"), "{status:#}");
        self.is_whole(machine, before, "rolled-back")?;
        let hit = self.tell(machine, &format!("{name}: "), steps, Harm::Power, "on the old release")?;
        assert_eq!(hit, steps.len(), "{}", self.table);
        self.forget(&update)
    }

    /// Staging that fails for this reason; nothing is touched, and the next attempt does it when it was put right.
    fn staging(
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

/// A cluster to be, of one BIOS and one UEFI machine.
struct Lab {
    net: Network,
    nkd: Nkd,
    cluster: LabCluster,
    programs: LabPrograms,
    image: PathBuf,
    key: SshKey,
    _dhcp: (Host, Service),
}

impl Lab {
    fn new(name: &str) -> Result<Self> {
        let image = built("NKD_CLUSTER_IMAGE")?;
        let net = Network::create(name)?;
        let builds = Builds { image: image.clone(), ..Builds::program_from_environment()? };
        // The control plane has no firmware that asks for an address: the service must not insist on its own.
        let dhcp = other_dhcp(&net)?;
        let nkd = Nkd::start(&net, &builds, DhcpMode::Proxy, &[])?;
        nkd.nkd(&net, &["image", "import", &image.display().to_string(), "--name", "lab"])?;
        let key = SshKey::create(net.folder())?;
        let more = format!("  housekeeper: {{enabled: true}}\n  ssh: {{authorizedKeys: [\"{}\"]}}\n", key.public());
        let programs = LabPrograms::from_environment()?;
        let cluster = LabCluster::of_workers(&net, &programs.kubernetes, &more)?;
        Ok(Self { net, nkd, cluster, programs, image, key, _dhcp: dhcp })
    }

    fn rollout(&self) -> Rollout<'_> {
        Rollout { cluster: &self.cluster, net: &self.net, nkd: &self.nkd }
    }

    /// The machines are installed and the cluster is Ready; what does harm is on the nodes, and the system that they run is the
    /// channel's first release.
    fn scene(&self) -> Result<Scene<'_>> {
        let started = Instant::now();
        let rollout = self.rollout();
        rollout.push_housekeeper(&built("NKD_HOUSEKEEPER")?)?;
        self.nkd.nkd(&self.net, &["cluster", "apply", "-f", &self.cluster.file().display().to_string()])?;
        let host = self.net.host("by-hand", Some("192.0.2.3/24"))?;
        let control_plane = self.programs.node(&self.net, &LabCluster::control_plane())?;
        let config = install_by_hand(&self.net, &host, control_plane.mac())?;
        control_plane.write_file("/etc/nkd/agent.json", 0o600, &config)?;
        control_plane.shell("systemctl start nkd-agent", within(20))?;
        let specs = LabCluster::machines().into_iter().map(|spec| spec.survives_trouble().start(&self.net));
        let machines: Vec<Machine> = specs.collect::<Result<_>>()?;
        LabCluster::wait_until(&self.net, &self.nkd, "the cluster is Ready", within(1500), LabCluster::is_ready)?;
        self.cluster.access(&self.net, &self.nkd)?;
        let shells = ["192.0.2.21", "192.0.2.22"].map(|address| Remote::new(&self.net, &self.key, address));
        for shell in &shells {
            Saboteur::install(shell, GATE)?;
            // The node's own check, for a release that boots and is ill.
            let check = "mkdir -p /etc/nkd/health.d\n\
                printf '#!/bin/sh\\n! grep -q ill /usr/share/nkd-release\\n' >/etc/nkd/health.d/10-not-ill\n\
                chmod 755 /etc/nkd/health.d/10-not-ill\n";
            shell.run(check, within(60))?;
            let arguments = shell.run("cat /proc/cmdline", within(60))?;
            assert!(arguments.contains("panic=30"), "{arguments}");
        }
        rollout.publish(&self.image.join("repo"), LabCluster::KUBERNETES)?;
        let table = table();
        let mut scene = Scene {
            rollout,
            image: &self.image,
            control_plane,
            machines,
            shells,
            table,
            started,
            first: String::new(),
        };
        scene.first = scene.newest()?;
        let kubernetes = &self.programs.kubernetes;
        scene.control_plane.lay_out(&scene.first, kubernetes, LabCluster::KUBERNETES, Images::ControlPlane)?;
        scene.control_plane.deploy(&scene.first)?;
        scene.say("the cluster is Ready");
        Ok(scene)
    }

    /// What is done to the service while nobody looks through it.
    fn meanwhile(&mut self, scene: Parts, what: impl FnOnce(&mut Nkd) -> Result) -> Result<Scene<'_>> {
        what(&mut self.nkd)?;
        let Parts { control_plane, machines, shells, table, started, first } = scene;
        let (rollout, image) = (self.rollout(), self.image.as_path());
        Ok(Scene { rollout, image, control_plane, machines, shells, table, started, first })
    }
}

/// A scene without the service.
struct Parts {
    control_plane: Node,
    machines: Vec<Machine>,
    shells: [Remote; 2],
    table: FaultTable,
    started: Instant,
    first: String,
}

#[test]
#[ignore = "takes an hour: cargo xtask soak"]
fn killed_and_cut_off_at_every_step_machines_come_to_the_new_release() -> Result {
    let lab = Lab::new("machine-forward")?;
    let mut scene = lab.scene()?;
    let second = scene.publish("second", &[])?;
    scene.through(2, &second, [Harm::Kill, Harm::Power])?;
    let third = scene.publish("third", &[])?;
    scene.through(3, &third, [Harm::Power, Harm::Kill])?;
    scene.write_table()
}

#[test]
#[ignore = "takes an hour: cargo xtask soak"]
fn releases_that_do_not_stay_leave_machines_on_the_old_one_though_the_power_is_cut() -> Result {
    let lab = Lab::new("machine-back")?;
    let mut scene = lab.scene()?;
    let first = scene.first.clone();
    let stopped = "#!/bin/sh\nexit 1\n";
    let no_init = scene.publish("no-init", &[("usr/lib/systemd/systemd", stopped)])?;
    let no_agent = scene.publish("no-agent", &[("usr/bin/nkd-agent", stopped)])?;
    let ill = scene.publish("ill", &[])?;
    for machine in [1, 0] {
        scene.back(machine, "no-init", &no_init, &first, "did not come up", &SETTLE)?;
        scene.back(machine, "ill", &ill, &first, "not healthy after", &BACK)?;
    }
    // Nobody confirms that one, and nobody gives it up but the deadline, which is soon: for the others it would be too soon.
    let soon = "mkdir -p /etc/systemd/system/nkd-boot-deadline.service.d\n\
        printf '[Service]\\nEnvironment=NKD_BOOT_DEADLINE=60\\n' >/etc/systemd/system/nkd-boot-deadline.service.d/10-soon.conf\n";
    scene.shells[1].run(soon, within(60))?;
    scene.back(1, "no-agent", &no_agent, &first, "did not come up", &[])?;
    scene.shells[1].run("rm -r /etc/systemd/system/nkd-boot-deadline.service.d", within(60))?;

    // The same release is refused until somebody asks for another attempt.
    scene.ask("no-init-again", 1, &no_init, 0)?;
    scene.until("no-init-again", "Halted", "did not come up here on", 600)?;
    scene.forget("no-init-again")?;
    scene.write_table()
}

#[test]
#[ignore = "takes an hour: cargo xtask soak"]
fn what_cannot_be_staged_touches_nothing_and_is_staged_when_it_was_put_right() -> Result {
    let mut lab = Lab::new("machine-staging")?;
    let mut scene = lab.scene()?;
    let first = scene.first.clone();
    let repository = lab.nkd.state().join("ostree/lab");
    // The disk is full.
    let fourth = scene.publish("fourth", &[])?;
    let fill = |scene: &Scene<'_>| {
        let fill = "fallocate -l $(($(df --output=avail -B1 /var | tail -n 1) - 41943040)) /var/filler; sync";
        scene.shells[1].run(fill, within(120)).map(drop)
    };
    let free = |scene: &mut Scene<'_>| {
        scene.shells[1].run("rm /var/filler; sync", within(120))?;
        // The kubelet has seen it too.
        let end = Instant::now() + within(600);
        while scene.kubectl(&["get", "node", "uefi-1", "-o", "jsonpath={.spec.taints}"])?.contains("disk-pressure") {
            assert!(Instant::now() < end, "the kubelet does not see that the disk has room again");
            std::thread::sleep(Duration::from_secs(5));
        }
        Ok(())
    };
    scene.staging("full-disk", &fourth, &first, "fetching the release", fill, free)?;

    // The repository serves garbage in the place of the commit.
    let fifth = scene.publish("fifth", &[])?;
    let object = |commit: &str| {
        let (first, rest) = commit.split_at(2);
        repository.join(format!("objects/{first}/{rest}.commit"))
    };
    let (commit, kept) = (object(&fifth), lab.net.folder().join("kept.commit"));
    let garbage = |_: &Scene<'_>| {
        std::fs::copy(&commit, &kept).unwrap();
        std::fs::write(&commit, vec![0x5a; 300]).unwrap();
        Ok(())
    };
    let mend = |_: &mut Scene<'_>| {
        std::fs::copy(&kept, &commit).unwrap();
        Ok(())
    };
    scene.staging("garbage", &fifth, &fourth, "fetching the release", garbage, mend)?;

    // A difference that is garbage, and a summary from before the release: the release comes by its objects.
    let summary = |name: &str| repository.join(name);
    let old = ["summary", "summary.sig"].map(|name| (summary(name), std::fs::read(summary(name)).unwrap()));
    let sixth = scene.publish("sixth", &[])?;
    for (path, bytes) in &old {
        std::fs::write(path, bytes).unwrap();
    }
    scene.ask("stale-summary", 1, &sixth, 0)?;
    scene.until("stale-summary", "Complete", "", 1500)?;
    scene.is_whole(1, &sixth, "healthy")?;
    scene.forget("stale-summary")?;

    // A summary that its signature does not fit.
    let seventh = scene.publish("seventh", &[])?;
    let path = summary("summary.sig");
    let right = std::fs::read(&path).unwrap();
    let wrong = |_: &Scene<'_>| {
        std::fs::write(&path, &old[1].1).unwrap();
        Ok(())
    };
    let mend = |_: &mut Scene<'_>| {
        std::fs::write(&path, &right).unwrap();
        Ok(())
    };
    scene.staging("forged-summary", &seventh, &sixth, "fetching the release", wrong, mend)?;

    // The repository is not there.
    let eighth = scene.publish("eighth", &[])?;
    let aside = lab.nkd.state().join("ostree/aside");
    let take = |_: &Scene<'_>| {
        std::fs::rename(&repository, &aside).unwrap();
        Ok(())
    };
    let mend = |_: &mut Scene<'_>| {
        std::fs::rename(&aside, &repository).unwrap();
        Ok(())
    };
    scene.staging("nothing", &eighth, &seventh, "fetching the release", take, mend)?;

    // The whole service is away, for longer than a failed download is tried: the node waits.
    let ninth = scene.publish("ninth", &[])?;
    let parts = scene.parts();
    let mut scene = lab.meanwhile(parts, |nkd| nkd.process().kill())?;
    scene.ask("away", 1, &ninth, 0)?;
    scene.until("away", "", "does not say where the release is", 300)?;
    std::thread::sleep(Duration::from_secs(240));
    let parts = scene.parts();
    let mut scene = lab.meanwhile(parts, |nkd| {
        nkd.process().start_again()?;
        nkd.process().expect_log("nkd serves", within(60)).map(drop)
    })?;
    scene.until("away", "Complete", "", 1500)?;
    scene.is_whole(1, &ninth, "healthy")?;
    scene.say("done");
    Ok(())
}
