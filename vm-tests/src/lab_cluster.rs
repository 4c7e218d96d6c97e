//! A service, a cluster file and the nodes that it speaks of: what a test of clusters begins with.
//!
//! ```no_run
//! use nkd_vm_tests::{ClusterFile, ClusterLab, Error, bridge_pods, within};
//!
//! # fn main() -> Result<(), Error> {
//! let lab = ClusterLab::start("my-test")?;
//! let file = ClusterFile::named("rack7").control_planes(1).workers(1);
//! lab.apply(&file)?;
//! let [cp, worker] = &file.members()[..] else { unreachable!() };
//! let mut cp = lab.node(cp)?;
//! let mut worker = lab.node(worker)?;
//! bridge_pods(&mut [&mut cp, &mut worker])?;
//! lab.wait_ready("rack7", within(400))?;
//! lab.kubectl("rack7", &["get", "nodes"])?;
//! # Ok(())
//! # }
//! ```
#![allow(clippy::disallowed_methods, reason = "writes files of the test, waits")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::containerd::{KEPT_NETWORK, NETWORK};
use crate::{
    Builds, Clock, DhcpMode, Error, Host, Images, Network, Nkd, Node, bridge_pods, built, install_by_hand,
    kubernetes_folder, within,
};

/// The version that the nodes run, unless the file says another.
pub const KUBERNETES: &str = "v1.20.2";

/// Nodes of namespaces share the disk of this computer: how full that is says nothing of the node, and must not cost it its
/// images.
const KUBELET: &str = "{imageGCHighThresholdPercent: 100, evictionHard: {nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%}}";
/// The disk and the processors are shared too: nobody is voted out for being slow.
const ETCD: &str = "{extraArgs: {heartbeat-interval: '500', election-timeout: '5000'}}";
/// The same for the leaders among controller managers and schedulers.
const LEADERS: &str =
    "{extraArgs: {leader-elect-lease-duration: 60s, leader-elect-renew-deadline: 45s, leader-elect-retry-period: 5s}}";
/// Where the programs are that the service and its nodes are made of.
#[derive(Debug, Clone)]
pub struct LabPrograms {
    /// `nkd`.
    pub nkd: PathBuf,
    /// `nkd-agent`.
    pub agent: PathBuf,
    /// What `cargo xtask image kubernetes` makes.
    pub kubernetes: PathBuf,
}

/// A running service with an image that nobody boots, and what nodes are made of.
pub struct ClusterLab {
    /// The service.
    pub nkd: Nkd,
    /// Speaks for machines that have no firmware, and runs kubectl.
    pub host: Host,
    /// The network of all of them.
    pub net: Network,
    programs: LabPrograms,
}

/// The registry's CA, beside a cluster file.
const REGISTRY_CA: &str = "nkd-ca.pem";

/// A cluster file: one pool of control planes, `cp`, and one of workers, `w`.
#[derive(Debug, Clone)]
pub struct ClusterFile {
    name: String,
    /// Which cluster of the network it is, from 0: its machines, names and subnets are none of another's.
    number: u8,
    control_planes: u8,
    workers: u8,
    version: String,
    /// Further lines of `spec`.
    more: String,
    /// The CA of the service's registry, when all images come from there.
    registry_ca: Option<PathBuf>,
}

/// A machine of a cluster file.
#[derive(Debug, Clone)]
pub struct LabMember {
    /// Host name.
    pub hostname: String,
    /// MAC address.
    pub mac: String,
    /// Address with the length of the prefix.
    pub address: String,
    /// What its containerd is given, or pulls.
    pub images: Images,
    /// True when it is given none.
    pub pulls: bool,
    /// Its version of Kubernetes.
    pub version: String,
}

impl ClusterFile {
    /// A cluster of one control plane and no worker.
    pub fn named(name: &str) -> Self {
        let (name, version, more) = (name.to_owned(), KUBERNETES.to_owned(), String::new());
        Self { name, number: 0, control_planes: 1, workers: 0, version, more, registry_ca: None }
    }

    /// How many control planes, at most 9.
    pub fn control_planes(mut self, number: u8) -> Self {
        self.control_planes = number;
        self
    }

    /// How many workers, at most 9.
    pub fn workers(mut self, number: u8) -> Self {
        self.workers = number;
        self
    }

    /// Which cluster of the network it is, 0 to 4, if there are several. The first is 0.
    pub fn number(mut self, number: u8) -> Self {
        self.number = number;
        self
    }

    /// Another version than [`KUBERNETES`].
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// Its nodes are given no image: they pull each one from the service's registry, which has this CA (a file).
    pub fn pulls_all(mut self, registry_ca: &Path) -> Self {
        self.registry_ca = Some(registry_ca.to_owned());
        self
    }

    /// A further line of `spec`, like `endpoint: 192.0.2.9:6443`.
    pub fn with(mut self, line: &str) -> Self {
        self.more.push_str(&format!("  {line}\n"));
        self
    }

    /// Its machines, control planes first.
    pub fn members(&self) -> Vec<LabMember> {
        let prefix = if self.number == 0 { String::new() } else { format!("c{}-", self.number) };
        let member = |role: u8, word: &str, n: u8, images| LabMember {
            hostname: format!("{prefix}{word}{n}"),
            mac: format!("52:54:00:{:02x}:{role:02x}:{n:02x}", self.number),
            address: format!("192.0.2.{}/24", 10 + 40 * u32::from(self.number) + 10 * u32::from(role) + u32::from(n)),
            images,
            pulls: self.registry_ca.is_some(),
            version: self.version.clone(),
        };
        let control_planes = (1..=self.control_planes).map(|n| member(0, "cp", n, Images::ControlPlane));
        control_planes.chain((1..=self.workers).map(|n| member(1, "w", n, Images::Worker))).collect()
    }

    /// Its text. The add-ons are two maps in the namespace `kube-system`: `made-by-cni` and `made-after`.
    pub fn text(&self) -> String {
        let machines = |images: Images| -> String {
            let of = self.members().into_iter().filter(|m| m.images == images);
            of.map(|m| format!("    - {{mac: '{}', hostname: {}, ip: {}}}\n", m.mac, m.hostname, m.address)).collect()
        };
        let registry = |host: &str| {
            format!("    - {{host: {host}, mirrors: ['https://192.0.2.1:8443/{host}'], ca: ./{REGISTRY_CA}}}\n")
        };
        let registries = match &self.registry_ca {
            Some(_) => format!("    registries:\n{}{}", registry("k8s.gcr.io"), registry("docker.io")),
            None => String::new(),
        };
        let Self { name, number, version, more, .. } = self;
        let workers = match self.workers {
            0 => String::new(),
            _ => format!(
                "  - name: w\n    role: worker\n    labels: {{node-role.kubernetes.io/worker: ''}}\n    machines:\n{}",
                machines(Images::Worker)
            ),
        };
        format!(
            "apiVersion: nkd.io/v1alpha1\nkind: Cluster\nmetadata: {{name: {name}}}\nspec:\n\
            \x20 os: {{profile: lab, image: lab}}\n  kubernetes:\n    version: {version}\n    podSubnet: 10.{pods}.0.0/16\n\
            \x20   serviceSubnet: 10.{services}.0.0/16\n    skipPhases: [addon/coredns]\n    cni: {{manifest: ./cni.yaml}}\n\
            \x20   kubeProxyConfiguration: {{conntrack: {{maxPerCore: 0}}}}\n    kubeletConfiguration: {KUBELET}\n    etcd: {ETCD}\n    controllerManager: {LEADERS}\n    scheduler: {LEADERS}\n{registries}  hooks: {{before: [./pods.sh], after: [./after.yaml]}}\n{more}\
            \x20 pools:\n  - name: cp\n    role: control-plane\n    machines:\n{control_planes}{workers}",
            pods = 244 + u32::from(*number),
            services = 96 + u32::from(*number),
            control_planes = machines(Images::ControlPlane),
        )
    }

    /// Writes it with the files that it names into a folder of its own.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, Error> {
        let folder = folder.join(&self.name);
        let map = |name: &str| {
            let metadata = format!("metadata: {{name: {name}, namespace: kube-system}}");
            format!("apiVersion: v1\nkind: ConfigMap\n{metadata}\ndata: {{a: b}}\n")
        };
        let writing = || Error::io(format!("writing into {}", folder.display()));
        std::fs::create_dir_all(&folder).map_err(writing())?;
        std::fs::write(folder.join("cni.yaml"), map("made-by-cni")).map_err(writing())?;
        std::fs::write(folder.join("after.yaml"), map("made-after")).map_err(writing())?;
        let pods =
            format!("#!/bin/sh\nmkdir -p {NETWORK}\n[ ! -d {KEPT_NETWORK} ] || cp -a {KEPT_NETWORK}/. {NETWORK}/\n");
        std::fs::write(folder.join("pods.sh"), pods).map_err(writing())?;
        if let Some(ca) = &self.registry_ca {
            std::fs::copy(ca, folder.join(REGISTRY_CA)).map_err(writing())?;
        }
        let path = folder.join("cluster.yaml");
        std::fs::write(&path, self.text()).map_err(writing())?;
        Ok(path)
    }
}

impl ClusterLab {
    /// A service on a new network; the name of the network must be its test's own.
    pub fn start(network: &str) -> Result<Self, Error> {
        Self::start_on(Network::create(network)?, LabPrograms::from_environment()?, None)
    }

    /// The same on a network that is there, perhaps under a clock that the test sets.
    pub fn start_on(net: Network, programs: LabPrograms, clock: Option<&Clock>) -> Result<Self, Error> {
        Self::start_set(net, programs, &[], clock)
    }

    fn start_set(net: Network, programs: LabPrograms, settings: &[&str], clock: Option<&Clock>) -> Result<Self, Error> {
        let builds = Builds { program: programs.nkd.clone(), image: PathBuf::new() };
        let nkd = Nkd::start_under(&net, &builds, DhcpMode::Off, settings, clock)?;
        let image = net.folder().join("image");
        let writing = || Error::io(format!("writing into {}", image.display()));
        std::fs::create_dir_all(&image).map_err(writing())?;
        for name in [
            "lab-1-live-kernel-x86_64",
            "lab-1-live-initramfs.x86_64.img",
            "lab-1-live-rootfs.x86_64.img",
            "lab-1-metal.x86_64.raw",
        ] {
            std::fs::write(image.join(name), vec![7; 10_000]).map_err(writing())?;
        }
        nkd.nkd(&net, &["image", "import", &image.display().to_string(), "--name", "lab"])?;
        let host = net.host("by-hand", Some("192.0.2.3/24"))?;
        Ok(Self { nkd, host, net, programs })
    }

    /// A Ready cluster with the operator in it, on nodes whose pods reach each other. The operator's image is at
    /// `NKD_HOUSEKEEPER`.
    pub fn with_housekeeper(network: &str, cluster: &str, workers: u8) -> Result<(Self, Vec<Node>), Error> {
        Self::with_housekeeper_in(network, ClusterFile::named(cluster).workers(workers))
    }

    /// The same for another file, which says nothing of the operator.
    pub fn with_housekeeper_in(network: &str, file: ClusterFile) -> Result<(Self, Vec<Node>), Error> {
        let image = built("NKD_HOUSEKEEPER")?;
        Self::start(network)?.with_operator(file, |node| node.import_image(&image, within(120)))
    }

    /// The same, but its containerd pulls the operator's image from the service, whose registry serves nobody without a
    /// certificate or a token.
    pub fn with_pulled_housekeeper(network: &str, cluster: &str, workers: u8) -> Result<(Self, Vec<Node>), Error> {
        let image = built("NKD_HOUSEKEEPER")?;
        let closed = ["registry.anonymous_pull=false"];
        let lab = Self::start_set(Network::create(network)?, LabPrograms::from_environment()?, &closed, None)?;
        lab.nkd.push_housekeeper(&lab.net, &image)?;
        lab.with_operator(ClusterFile::named(cluster).workers(workers), |_| Ok(()))
    }

    /// The same for a site without any other registry: nodes have no image, and pull those of Kubernetes from the service, too.
    /// Those of `later`, a version to upgrade to, are there as well.
    pub fn with_all_pulled(network: &str, cluster: &str, workers: u8, later: &str) -> Result<(Self, Vec<Node>), Error> {
        let image = built("NKD_HOUSEKEEPER")?;
        let closed = ["registry.anonymous_pull=false"];
        let lab = Self::start_set(Network::create(network)?, LabPrograms::from_environment()?, &closed, None)?;
        lab.nkd.push_housekeeper(&lab.net, &image)?;
        lab.push_kubernetes(&[KUBERNETES, later])?;
        let file = ClusterFile::named(cluster).workers(workers).pulls_all(&lab.nkd.ca());
        lab.with_operator(file, |_| Ok(()))
    }

    fn push_kubernetes(&self, versions: &[&str]) -> Result<(), Error> {
        let images = self.programs.kubernetes.join("images");
        let push = |archive: PathBuf, name: &str| self.nkd.push_image(&self.net, &archive, name);
        for name in ["k8s.gcr.io/pause:3.2", "k8s.gcr.io/pause:3.4.1"] {
            push(images.join("pause.tar"), name)?;
        }
        // CoreDNS is not in Debian and its add-on is left out, but kubeadm wants its image all the same.
        for name in ["k8s.gcr.io/coredns:1.7.0", "k8s.gcr.io/coredns/coredns:v1.8.0"] {
            push(images.join("pause.tar"), name)?;
        }
        push(images.join("etcd.tar"), "k8s.gcr.io/etcd:3.4.13-0")?;
        push(images.join("busybox.tar"), "docker.io/library/busybox:1.35")?;
        for version in versions {
            for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"] {
                let archive = self.programs.kubernetes.join(format!("versions/{version}/images/{name}.tar"));
                push(archive, &format!("k8s.gcr.io/{name}:{version}"))?;
            }
        }
        Ok(())
    }

    fn with_operator(
        self,
        file: ClusterFile,
        prepare: impl Fn(&Node) -> Result<(), Error>,
    ) -> Result<(Self, Vec<Node>), Error> {
        let file = file.with("housekeeper: {enabled: true}");
        self.apply(&file)?;
        let mut nodes = file.members().iter().map(|member| self.node(member)).collect::<Result<Vec<Node>, Error>>()?;
        bridge_pods(&mut nodes.iter_mut().collect::<Vec<_>>())?;
        nodes.iter().try_for_each(prepare)?;
        // Control planes join one after the other.
        self.wait_ready(&file.name, within(150 + 350 * u64::from(file.control_planes)))?;
        Ok((self, nodes))
    }

    /// Runs `nkd` with these words; gives what it printed.
    pub fn nkd(&self, words: &[&str]) -> Result<String, Error> {
        self.nkd.nkd(&self.net, words)
    }

    /// Writes the file and applies it; waits until its machines are taken. What the command said is returned.
    pub fn apply(&self, file: &ClusterFile) -> Result<String, Error> {
        let told = self.apply_only(file)?;
        self.wait_for(&file.name, "machines are taken", within(30), |s| {
            s["members"].as_array().is_some_and(|members| members.iter().all(|m| m["machine"].is_string()))
        })?;
        Ok(told)
    }

    /// Writes the file and applies it, and waits for nothing.
    pub fn apply_only(&self, file: &ClusterFile) -> Result<String, Error> {
        let path = file.write(self.net.folder())?;
        self.nkd(&["cluster", "apply", "-f", &path.display().to_string()])
    }

    /// Installs a member's machine and starts its node, on which the agent goes to work.
    pub fn node(&self, member: &LabMember) -> Result<Node, Error> {
        let node = self.idle_node(member)?;
        self.start_agent(&node)?;
        Ok(node)
    }

    /// The same with an agent that is not started.
    pub fn idle_node(&self, member: &LabMember) -> Result<Node, Error> {
        let node = self.bare_node(member)?;
        self.install(&node)?;
        Ok(node)
    }

    /// A node with Kubernetes, its images and the agent's program, of which the service knows nothing.
    pub fn bare_node(&self, member: &LabMember) -> Result<Node, Error> {
        self.programs.node(&self.net, member)
    }

    /// Brings a node to where an installed machine is at its first start.
    pub fn install(&self, node: &Node) -> Result<(), Error> {
        let config = install_by_hand(&self.net, &self.host, node.mac())?;
        node.write_file("/etc/nkd/agent.json", 0o600, &config)
    }

    /// Starts the agent.
    pub fn start_agent(&self, node: &Node) -> Result<(), Error> {
        node.shell("systemctl start nkd-agent", within(20)).map(|_| ())
    }

    /// Waits until a cluster is as it should be. A service that is down on purpose is waited for.
    pub fn wait_for(
        &self,
        cluster: &str,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let end = Instant::now() + limit;
        let mut last = Value::Null;
        loop {
            if let Ok(status) = self.nkd.json(&self.net, &["cluster", "status", cluster]) {
                if fits(&status) {
                    return Ok(status);
                }
                last = status;
            }
            if Instant::now() >= end {
                let events = self.nkd(&["cluster", "events", cluster]).unwrap_or_default();
                return Err(Error::Unexpected { what: what.into(), got: format!("{last:#}\n{events}") });
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until every member is Ready, the add-ons applied and the API healthy.
    pub fn wait_ready(&self, cluster: &str, limit: Duration) -> Result<Value, Error> {
        let ready = |s: &Value| s["phase"] == "ready" && s["health"]["state"] == "healthy";
        self.wait_for(cluster, &format!("{cluster} is Ready"), limit, ready)
    }

    /// Runs kubectl as an operator does: with a kubeconfig of the service, from a computer that is none of the nodes.
    pub fn kubectl(&self, cluster: &str, words: &[&str]) -> Result<String, Error> {
        let path = self.net.folder().join(format!("kubeconfig-{cluster}"));
        if !path.exists() {
            let config = self.nkd(&["cluster", "kubeconfig", cluster])?;
            std::fs::write(&path, config).map_err(Error::io(format!("writing {}", path.display())))?;
        }
        let mut command = Command::new(self.programs.kubernetes.join("versions").join(KUBERNETES).join("kubectl"));
        command.arg("--kubeconfig").arg(&path).args(words);
        Ok(self.host.run(command, within(60))?.success()?.text())
    }

    /// Names of the bootstrap tokens that are in a cluster.
    pub fn bootstrap_tokens(&self, cluster: &str) -> Result<Vec<String>, Error> {
        let words = ["-n", "kube-system", "get", "secrets", "-o", "name", "--field-selector"];
        let found = self.kubectl(cluster, &[&words[..], &["type=bootstrap.kubernetes.io/token"]].concat())?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    /// Waits until no bootstrap token is left; kubeadm's own of init has a minute to live.
    pub fn expect_no_tokens(&self, cluster: &str, limit: Duration) -> Result<(), Error> {
        let end = Instant::now() + limit;
        loop {
            let tokens = self.bootstrap_tokens(cluster)?;
            if tokens.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                let what = format!("no bootstrap token is left in {cluster}");
                return Err(Error::Unexpected { what, got: tokens.join(" ") });
            }
            std::thread::sleep(Duration::from_secs(2));
        }
    }

    /// What happened to a cluster, oldest first.
    pub fn events(&self, cluster: &str) -> Result<Vec<String>, Error> {
        let events = self.nkd.json(&self.net, &["cluster", "events", cluster, "--limit", "1000"])?;
        let said = events.as_array().into_iter().flatten().filter_map(|e| e["message"].as_str());
        Ok(said.map(str::to_owned).collect())
    }

    /// Where the programs and images of Kubernetes lie.
    pub fn kubernetes(&self) -> &Path {
        &self.programs.kubernetes
    }
}

impl LabPrograms {
    /// As `cargo xtask test` gives them.
    pub fn from_environment() -> Result<Self, Error> {
        Ok(Self { nkd: built("NKD_PROGRAM")?, agent: built("NKD_AGENT")?, kubernetes: kubernetes_folder()? })
    }

    /// A node with Kubernetes, its images and the agent's program, of which no service knows anything.
    pub fn node(&self, net: &Network, member: &LabMember) -> Result<Node, Error> {
        let spec = Node::named(&member.hostname).address(&member.address).mac(&member.mac);
        let node = spec.kubernetes(&self.kubernetes, &member.version).agent(&self.agent).start(net)?;
        node.expect_unit_active("containerd", within(60))?;
        if member.pulls {
            return Ok(node);
        }
        node.import_images(member.images, within(180))?;
        // CoreDNS is not in Debian and its add-on is left out, but kubeadm wants its image all the same.
        node.shell("ctr -n k8s.io images tag k8s.gcr.io/pause:3.2 k8s.gcr.io/coredns:1.7.0", within(20))?;
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_one_network_share_nothing() {
        let of = |number| ClusterFile::named("a").number(number).control_planes(3).workers(9).members();
        let all: Vec<LabMember> = (0..5).flat_map(of).collect();
        for value in
            [|m: &LabMember| m.mac.clone(), |m: &LabMember| m.address.clone(), |m: &LabMember| m.hostname.clone()]
        {
            let mut values: Vec<String> = all.iter().map(value).collect();
            values.sort();
            values.dedup();
            assert_eq!(values.len(), all.len(), "{values:?}");
        }
    }

    #[test]
    fn a_file_names_its_machines_and_no_empty_pool() {
        let text = ClusterFile::named("rack7").with("endpoint: 192.0.2.9:6443").text();
        assert!(text.contains("    - {mac: '52:54:00:00:00:01', hostname: cp1, ip: 192.0.2.11/24}\n"), "{text}");
        assert!(text.contains("\n  endpoint: 192.0.2.9:6443\n") && !text.contains("name: w"), "{text}");
    }
}
