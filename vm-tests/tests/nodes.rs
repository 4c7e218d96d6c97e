//! Machines made of namespaces: that they are machines, and that this computer is as it was afterwards.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nkd_vm_tests::{Ending, Error, Images, Network, Node, bridge_pods, kubernetes_folder, within};

type Result<T = ()> = std::result::Result<T, Error>;

fn text(node: &Node, path: &str) -> Result<String> {
    Ok(String::from_utf8(node.read_file(path)?).unwrap().trim().to_owned())
}

#[test]
fn a_node_boots_as_a_machine_of_its_own() -> Result {
    let net = Network::create("nodes-boot")?;
    let node = Node::named("cp1").address("192.0.2.11/24").file("/etc/nkd/note", 0o640, "before\n").start(&net)?;
    node.expect_running(within(20))?;
    node.expect_unit_active("systemd-journald.service", within(10))?;
    assert_eq!(node.shell("cat /proc/1/comm; hostname", within(10))?, "systemd\ncp1\n");
    assert_eq!(node.shell("stat -c %a /etc/nkd/note; cat /etc/nkd/note", within(10))?, "640\nbefore\n");
    for id in ["/proc/sys/kernel/random/boot_id", "/etc/machine-id"] {
        assert_ne!(text(&node, id)?, fs::read_to_string(id).unwrap_or_default().trim(), "{id} is this computer's");
    }
    let routes = node.shell("ip -4 route; cat /proc/sys/net/ipv4/ip_forward", within(10))?;
    assert!(routes.contains("default via 192.0.2.1 dev eth0") && routes.ends_with("\n1\n"), "{routes}");
    assert!(node.shell("ip link show eth0", within(10))?.contains(node.mac()));
    // What is logged is seen from outside.
    node.shell("echo a word for the console | systemd-cat", within(10))?;
    node.shell("journalctl --sync", within(10))?;
    assert!(node.logs()?.contains("a word for the console"), "{}", node.logs()?);
    Ok(())
}

#[test]
fn a_failure_is_told_with_what_the_node_said() -> Result {
    let net = Network::create("nodes-failure")?;
    let node = Node::named("cp1").address("192.0.2.11/24").start(&net)?;
    let unit = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo no such luck; exit 3'\n";
    node.write_file("/etc/systemd/system/bad.service", 0o644, unit.as_bytes())?;
    assert!(node.shell("systemctl start bad", within(20)).is_err());
    let error = node.expect_unit_active("bad.service", within(20)).unwrap_err().to_string();
    assert!(error.contains("no such luck"), "{error}");
    let error = node.expect_running(within(20)).unwrap_err().to_string();
    assert!(error.contains("degraded") && error.contains("bad.service"), "{error}");
    let status = node.run(Command::new("false"), within(10))?.status;
    assert_eq!(status.code(), Some(1));
    let mut slow = Command::new("sleep");
    slow.arg("1000");
    assert!(matches!(node.run(slow, within(1)), Err(Error::TooLate { .. })));
    node.shell("while pgrep -f 'slee[p] 1000'; do sleep 0.1; done", within(10))?;
    let twice = Node::named("cp1").address("192.0.2.12/24").start(&net);
    assert!(matches!(twice, Err(Error::Argument(_))), "{twice:?}");
    node.expect_unit_active("dbus.socket", within(10))
}

#[test]
fn the_unit_of_the_agent_runs_as_it_is() -> Result {
    let net = Network::create("nodes-agent")?;
    let program = net.folder().join("agent");
    // All that the unit must let through: its state, its runtime folder, its configuration, the network, systemctl.
    let script = "#!/bin/sh -eu\ntouch /var/lib/nkd-agent/a /run/nkd-agent/a /etc/nkd/a\nif touch /usr/a; then exit 7; fi\n\
        cat < /etc/nkd/agent.json\nsystemctl is-active dbus.socket\nexec sleep infinity\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut node = Node::named("w1").address("192.0.2.21/24").agent(&program).start(&net)?;
    let state = node.run(command(&["systemctl", "is-active", "nkd-agent"]), within(10))?;
    assert_eq!(state.text(), "inactive\n", "without a configuration it does not run");
    node.write_file("/etc/nkd/agent.json", 0o600, b"as it was told\n")?;
    node.shell("systemctl start nkd-agent", within(20))?;
    node.expect_unit_active("nkd-agent", within(20))?;
    let said = || node.shell("journalctl --sync; journalctl --unit=nkd-agent --output=cat", within(10));
    let limit = Instant::now() + within(20);
    while !said()?.contains("as it was told\nactive\n") {
        assert!(Instant::now() < limit, "{}", said()?);
        std::thread::sleep(Duration::from_millis(100));
    }
    // It lives, and so it does after the next boot.
    assert_eq!(node.shell("systemctl show --property=NRestarts --value nkd-agent", within(10))?, "0\n");
    node.power_cut()?;
    node.power_on()?;
    node.expect_unit_active("nkd-agent", within(20))
}

#[test]
fn a_power_cut_keeps_the_disk_and_a_wipe_does_not() -> Result {
    let net = Network::create("nodes-power")?;
    let mut node = Node::named("cp1").address("192.0.2.11/24").start(&net)?;
    // One in each kind of place.
    let kept = ["/etc/kept", "/var/lib/kept", "/opt/kept", "/usr/kept", "/root/kept", "/var/lib/kubelet/kept"];
    for path in kept {
        node.write_file(path, 0o600, b"kept")?;
    }
    node.write_file("/run/lost", 0o600, b"lost")?;
    let ids = |node: &Node| Ok((text(node, "/etc/machine-id")?, text(node, "/proc/sys/kernel/random/boot_id")?));
    let first: Result<_> = ids(&node);
    let (machine, boot) = first?;
    node.shell("setsid sleep 1000 & setsid unshare --net --pid --fork sleep 1000 &", within(10))?;
    node.power_cut()?;
    assert!(!node.is_on() && node.uptime().is_none());
    let off = node.run(Command::new("true"), within(10));
    assert!(matches!(off, Err(Error::Power { is: "off", .. })), "{off:?}");

    node.power_on()?;
    node.expect_running(within(20))?;
    for path in kept {
        assert_eq!(node.read_file(path)?, b"kept", "{path}");
        assert_eq!(node.shell(&format!("stat -c %a {path}"), within(10))?, "600\n");
    }
    assert!(node.read_file("/run/lost").is_err());
    let second: Result<_> = ids(&node);
    let (machine_again, boot_again) = second?;
    assert_eq!(machine_again, machine);
    assert_ne!(boot_again, boot);
    // Only the file system of the node was written.
    assert!(kept.iter().all(|path| !Path::new(path).exists()));

    node.wipe()?;
    assert!(!node.is_on());
    node.power_on()?;
    assert_ne!(text(&node, "/etc/machine-id")?, machine);
    for path in kept {
        assert!(node.read_file(path).is_err(), "{path}");
    }
    Ok(())
}

#[test]
fn a_node_switches_itself_off_and_starts_again_as_it_likes() -> Result {
    let net = Network::create("nodes-reboot")?;
    let mut node = Node::named("cp1").address("192.0.2.11/24").start(&net)?;
    let late = node.wait_off(within(1));
    assert!(matches!(late, Err(Error::TooLate { .. })), "{late:?}");
    node.shell("systemctl --no-block reboot", within(10))?;
    assert_eq!(node.wait_off(within(60))?, Ending::Reboot);
    node.power_on()?;
    node.power_off(within(60))?;
    assert!(!node.is_on());
    node.power_on()?;
    // What needs no systemd: the last way out of the agent.
    node.run(command(&["reboot", "--force", "--force"]), within(20))?;
    assert_eq!(node.wait_off(within(60))?, Ending::Reboot);
    Ok(())
}

/// The unit of the agent's package that gives up a release whose agent does not run.
#[test]
fn a_node_restarts_when_its_release_is_not_confirmed_in_time() -> Result {
    const UNIT: &str = include_str!("../../agent/dist/nkd-boot-deadline.service");
    let net = Network::create("nodes-deadline")?;
    let mut node = Node::named("cp1").address("192.0.2.11/24").start(&net)?;
    let counter = |line: &str| format!("mkdir -p /boot/grub && echo '{line}' >/boot/grub/grubenv");
    let start = "touch /run/ostree-booted && systemctl daemon-reload && systemctl start nkd-boot-deadline";
    let unit = UNIT.replace("NKD_BOOT_DEADLINE=2700", "NKD_BOOT_DEADLINE=3");
    assert_ne!(unit, UNIT);
    let place = "/etc/systemd/system/nkd-boot-deadline.service";
    node.shell(&format!("cat >{place} <<'UNIT'\n{unit}\nUNIT"), within(20))?;

    // A boot loader that does not count, or that has given up already.
    for line in ["saved_entry=0", "boot_counter=-1"] {
        node.shell(&format!("{} && {start}", counter(line)), within(20))?;
        node.shell("while systemctl is-active --quiet nkd-boot-deadline; do sleep 0.1; done", within(20))?;
    }
    // Confirmed while it waits.
    node.shell(&format!("{} && {start}", counter("boot_counter=2")), within(20))?;
    node.shell("systemctl is-active nkd-boot-deadline", within(20))?;
    node.shell(&counter("saved_entry=0"), within(20))?;
    node.shell("while systemctl is-active --quiet nkd-boot-deadline; do sleep 0.1; done", within(20))?;
    assert!(node.is_on());
    // Never confirmed.
    node.shell(&format!("{} && {start}", counter("boot_counter=0")), within(20))?;
    assert_eq!(node.wait_off(within(60))?, Ending::Reboot);
    Ok(())
}

#[test]
fn three_nodes_reach_one_another_by_name() -> Result {
    let net = Network::create("nodes-three")?;
    let names = ["cp1", "w1", "w2"];
    let started: Vec<Result<Node>> = std::thread::scope(|scope| {
        let start = |n: usize, name: &str| Node::named(name).address(&format!("192.0.2.{}/24", 11 + n)).start(&net);
        let threads: Vec<_> =
            names.into_iter().enumerate().map(|(n, name)| scope.spawn(move || start(n, name))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut nodes = started.into_iter().collect::<Result<Vec<_>>>()?;
    // A service that systemd starts for whoever asks.
    for node in &nodes {
        let socket = "[Socket]\nListenStream=7000\nAccept=yes\n[Install]\nWantedBy=sockets.target\n";
        let service = "[Service]\nExecStart=/bin/hostname\nStandardOutput=socket\n";
        node.write_file("/etc/systemd/system/who.socket", 0o644, socket.as_bytes())?;
        node.write_file("/etc/systemd/system/who@.service", 0o644, service.as_bytes())?;
        node.shell("systemctl enable --now who.socket", within(20))?;
    }
    let asks = |node: &Node, name: &str| {
        let line = format!("timeout 5 cat < /dev/tcp/{name}/7000");
        Ok(node.run(command(&["bash", "-c", &line]), within(20))?.success()?.text())
    };
    let all_reach_all = |nodes: &[Node]| {
        for (node, name) in nodes.iter().flat_map(|node| names.map(|name| (node, name))) {
            let answer: Result<String> = asks(node, name);
            assert_eq!(answer?, format!("{name}\n"), "from {}", node.name());
        }
        Ok(())
    };
    let reached: Result = all_reach_all(&nodes);
    reached?;
    nodes[1].power_cut()?;
    let nobody: Result<String> = asks(&nodes[0], "w1");
    assert!(nobody.is_err());
    nodes[1].power_on()?;
    let again: Result = all_reach_all(&nodes);
    again
}

/// What a person who knows kubeadm would write, so that what fails here is the machine and not the service.
const INIT: &str = r#"
apiVersion: kubeadm.k8s.io/v1beta2
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 192.0.2.11, bindPort: 6443}
nodeRegistration: {criSocket: /run/containerd/containerd.sock, kubeletExtraArgs: {node-ip: 192.0.2.11}}
---
apiVersion: kubeadm.k8s.io/v1beta2
kind: ClusterConfiguration
kubernetesVersion: v1.20.2
controlPlaneEndpoint: 192.0.2.11:6443
networking: {podSubnet: 10.244.0.0/16, serviceSubnet: 10.96.0.0/12}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
syncFrequency: 3s
evictionHard: {memory.available: 50Mi, nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
conntrack: {maxPerCore: 0}
"#;

const JOIN: &str = r#"
apiVersion: kubeadm.k8s.io/v1beta2
kind: JoinConfiguration
discovery: {bootstrapToken: {apiServerEndpoint: "192.0.2.11:6443", token: TOKEN, caCertHashes: [HASH]}}
nodeRegistration: {criSocket: /run/containerd/containerd.sock, kubeletExtraArgs: {node-ip: 192.0.2.21}}
"#;

/// A pod on the worker, which answers at its address.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeName: w1
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: docker.io/library/busybox:1.35
    imagePullPolicy: Never
    command: [/bin/sh, -c, "echo from a pod > /index.html; exec httpd -f -p 8080 -h /"]
"#;

#[test]
fn a_hand_made_cluster_becomes_ready() -> Result {
    let folder = kubernetes_folder()?;
    let before = Host::now();
    let begin = Instant::now();
    let said = |what: &str| eprintln!("[{:5.1} s] {what}", begin.elapsed().as_secs_f64());
    let net = Network::create("nodes-cluster")?;
    let start = |name: &str, address: &str| {
        let node = Node::named(name).address(address).kubernetes(&folder, "v1.20.2").start(&net)?;
        node.expect_unit_active("containerd", within(30))?;
        Ok(node)
    };
    let (first, second): (Result<_>, Result<_>) = (start("cp1", "192.0.2.11/24"), start("w1", "192.0.2.21/24"));
    let (mut cp1, mut w1) = (first?, second?);
    bridge_pods(&mut [&mut cp1, &mut w1])?;
    said("two nodes are up");
    cp1.import_images(Images::ControlPlane, within(180))?;
    said("the images of the control plane are there");

    cp1.write_file("/etc/kubeadm.yaml", 0o600, INIT.as_bytes())?;
    // There is no image of CoreDNS.
    let init =
        "kubeadm init --config /etc/kubeadm.yaml --skip-phases=addon/coredns --ignore-preflight-errors=ImagePull";
    cp1.shell(init, within(240))?;
    said("kubeadm init has ended");
    let join = cp1.shell("kubeadm token create --print-join-command", within(60))?;
    let after = |key: &str| join.split_whitespace().skip_while(|word| *word != key).nth(1).unwrap().to_owned();
    let config = JOIN.replace("TOKEN", &after("--token"));
    let config = config.replace("HASH", &format!("{:?}", after("--discovery-token-ca-cert-hash")));
    w1.import_images(Images::Worker, within(180))?;
    said("the images of the worker are there");
    w1.write_file("/etc/kubeadm.yaml", 0o600, config.as_bytes())?;
    w1.shell("kubeadm join --config /etc/kubeadm.yaml", within(180))?;
    said("kubeadm join has ended");
    cp1.shell("kubectl wait --for=condition=Ready --timeout=110s nodes/cp1 nodes/w1", within(120))?;
    said("both nodes are Ready");

    // Containers run, and their network goes from node to node.
    cp1.write_file("/etc/pod.yaml", 0o600, POD.as_bytes())?;
    let limit = Instant::now() + within(60);
    // The account of pods is made a moment after the first node.
    while cp1.shell("kubectl get serviceaccount default", within(20)).is_err() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(500));
    }
    cp1.shell("kubectl apply -f /etc/pod.yaml", within(60))?;
    cp1.shell("kubectl wait --for=condition=Ready --timeout=110s pod/web", within(120))?;
    let pod = cp1.shell("kubectl get pod web -o 'jsonpath={.status.podIP}'", within(20))?;
    assert!(pod.starts_with("10.244.1."), "{pod}");
    let answer = cp1.shell(&format!("curl --silent --show-error --max-time 20 http://{pod}:8080/"), within(30))?;
    assert_eq!(answer, "from a pod\n");
    said("a pod on the worker answers the control plane");

    w1.power_cut()?;
    w1.power_on()?;
    w1.expect_unit_active("kubelet", within(60))?;
    // The kubelet tells of the boot that it lives in.
    let boot = text(&w1, "/proc/sys/kernel/random/boot_id")?;
    let told = "kubectl get node w1 -o 'jsonpath={.status.nodeInfo.bootID} {.status.conditions[-1].type}'";
    let limit = Instant::now() + within(120);
    while cp1.shell(told, within(20))? != format!("{boot} Ready") {
        assert!(Instant::now() < limit, "{}", w1.logs()?);
        std::thread::sleep(Duration::from_millis(500));
    }
    cp1.shell("kubectl wait --for=condition=Ready --timeout=110s nodes/w1", within(120))?;
    said("the worker is back from a power cut");

    let ours = net.name().to_owned();
    drop((cp1, w1, net));
    before.assert_unchanged(&ours);
    said("this computer is as it was");
    Ok(())
}

#[test]
fn this_computer_is_as_it_was() -> Result {
    let before = Host::now();
    // Another process, so that what it leaves can be told from what other tests have at the same time.
    let mut lives = helper("live", "nodes-host").spawn().unwrap();
    let ours = format!("nkd-{}", lives.id());
    let said = told(&mut lives);
    assert!(lives.wait().unwrap().success(), "{said}");
    assert!(said.contains("\nup\n"), "{said}");
    before.assert_unchanged(&ours);

    // What a killed program leaves is there until the next one starts.
    let mut dies = helper("die", "nodes-host-killed").spawn().unwrap();
    let ours = format!("nkd-{}", dies.id());
    let said = told(&mut dies);
    dies.wait().unwrap();
    assert!(processes_of(&ours).len() >= 3 && !before.changes(&ours).is_empty(), "it left nothing: {said}");
    assert!(helper("sweep", "nodes-host-sweep").status().unwrap().success());
    before.assert_unchanged(&ours);

    // Whenever it is killed.
    for moment in [20, 60, 120, 240, 360] {
        let mut dies = helper("die", "nodes-host-killed").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        dies.kill().unwrap();
        dies.wait().unwrap();
        assert!(helper("sweep", "nodes-host-sweep").status().unwrap().success());
        before.assert_unchanged(&format!("nkd-{}", dies.id()));
    }
    Ok(())
}

/// Runs as a process of its own for the test above; does nothing otherwise.
#[test]
fn helper_of_the_host() -> Result {
    let Ok(what) = std::env::var("NKD_VM_HELPER") else { return Ok(()) };
    let net = Network::create(&std::env::var("NKD_VM_NETWORK").unwrap())?;
    if what == "sweep" {
        return Ok(());
    }
    let mut node = Node::named("cp1").address("192.0.2.11/24").start(&net)?;
    // What Kubernetes does to a machine: settings, groups, mounts, namespaces, links, processes that stay.
    node.shell(
        "for setting in vm.overcommit_memory=1 kernel.panic=10 kernel.panic_on_oops=1 net.ipv4.conf.all.rp_filter=0; do
             sysctl -qw $setting
         done
         sysctl -qw vm.swappiness=7 && exit 1
         for tree in memory cpu pids systemd; do mkdir -p /sys/fs/cgroup/$tree/kubepods/pod1; done
         mkdir -p /run/pod /var/lib/kubelet/pod
         mount -t tmpfs pod /var/lib/kubelet/pod
         ip link add cni0 type bridge
         ip netns add pod
         setsid unshare --net --pid --mount --fork sleep 1000 > /dev/null 2>&1 &
         setsid sh -c 'echo $$ > /sys/fs/cgroup/memory/kubepods/pod1/cgroup.procs; exec sleep 1000' > /dev/null 2>&1 &
         echo b > /dev/kmsg",
        within(20),
    )?;
    println!("\nup");
    if what == "die" {
        // Without a drop, as a crash.
        std::process::exit(1);
    }
    node.power_cut()?;
    node.power_on()?;
    node.power_off(within(60))?;
    node.power_on()
}

fn helper(what: &str, network: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "helper_of_the_host", "--nocapture"]);
    command.env("NKD_VM_HELPER", what).env("NKD_VM_NETWORK", network).stdout(Stdio::piped());
    command
}

/// All that a process says. What it has started may live on, and holds nothing of its output.
fn told(process: &mut Child) -> String {
    let mut said = String::new();
    process.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    said
}

/// Whether a word is the name of a namespace, or of a control group, that begins with `ours`.
fn is_of(ours: &str, word: &str) -> bool {
    word.strip_prefix(ours).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The processes of nodes. They are in control groups of the node's name, which none of them can leave.
fn processes_of(ours: &str) -> Vec<String> {
    let inside = |process: &PathBuf| {
        let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        groups.split(['/', '\n']).any(|word| is_of(ours, word))
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(inside);
    processes.map(|path| path.display().to_string()).collect()
}

/// What of this computer a node could change.
struct Host {
    /// Lines of the mount table, devices, links, control groups, named namespaces.
    things: BTreeSet<String>,
    /// All settings of the kernel.
    settings: BTreeMap<PathBuf, Vec<u8>>,
}

/// Below /proc/sys: what the kernel counts or draws by itself.
const COUNTERS: &[&str] = &[
    "fs/aio-nr",
    "fs/dentry-state",
    "fs/file-nr",
    "fs/inode-nr",
    "fs/inode-state",
    "fs/quota",
    "kernel/ns_last_pid",
    "kernel/perf_event_max_sample_rate",
    "kernel/pty/nr",
    "kernel/random",
    "net/netfilter/nf_conntrack_count",
];

impl Host {
    fn now() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut things: BTreeSet<String> = mounts.lines().map(|line| format!("mount {line}")).collect();
        for folder in ["/dev", "/sys/class/net", "/run/netns", "/run/nkd-vm"] {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            things.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        walk(Path::new("/sys/fs/cgroup"), &mut |path| {
            // One with processes is in use by somebody: ours are looked for by those.
            if path.is_dir() && fs::read(path.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty()) {
                things.insert(path.display().to_string());
            }
        });
        let mut settings = BTreeMap::new();
        walk(Path::new("/proc/sys"), &mut |path| {
            let counter = COUNTERS.iter().any(|counter| path.starts_with(Path::new("/proc/sys").join(counter)));
            if let (false, true, Ok(value)) = (counter, path.is_file(), fs::read(path)) {
                settings.insert(path.to_owned(), value);
            }
        });
        Self { things, settings }
    }

    /// What is there now and was not, other than of namespaces of this kind that do not begin with `ours`; and what is set
    /// otherwise.
    fn changes(&self, ours: &str) -> Vec<String> {
        let now = Self::now();
        let another = |word: &str| word.starts_with("nkd-") && word != "nkd-vm" && !is_of(ours, word);
        let others = |thing: &&String| thing.split(['/', ' ']).any(another);
        let new = now.things.difference(&self.things).filter(|thing| !others(thing)).cloned();
        let set = now.settings.iter().filter(|(path, value)| self.settings.get(*path).is_some_and(|old| old != *value));
        new.chain(set.map(|(path, value)| format!("{} {}", path.display(), String::from_utf8_lossy(value)))).collect()
    }

    /// Other programs may come and go at the same time, so what is theirs has a while to be gone.
    fn assert_unchanged(&self, ours: &str) {
        let end = Instant::now() + within(20);
        loop {
            let mut changes = self.changes(ours);
            changes.extend(processes_of(ours));
            if changes.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "this computer is not as it was: {changes:#?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn walk(path: &Path, visit: &mut impl FnMut(&Path)) {
    visit(path);
    let folder = path.symlink_metadata().is_ok_and(|data| data.is_dir());
    for entry in fs::read_dir(path).into_iter().filter(|_| folder).flatten().flatten() {
        walk(&entry.path(), visit);
    }
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}
