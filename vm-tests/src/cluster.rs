//! The cluster of the lab: its file, its machines, and how an operator looks at it.

#![allow(clippy::disallowed_methods, reason = "writes files, runs kubectl, waits")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{BootOrder, Error, Firmware, Images, LabMember, Machine, MachineSpec, Network, Nic, Nkd, within};

const CLUSTER: &str = include_str!("cluster/cluster.yaml");
const WORKERS: &str = include_str!("cluster/workers.yaml");
const NETWORK: &str = include_str!("cluster/network.yaml");

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(3);

/// A node as the cluster's API has it.
#[derive(Debug)]
struct Node {
    ready: bool,
    /// Another one after each start.
    boot: String,
}

/// One control plane with BIOS and one worker with UEFI, as their owner racks them, blank: the network stays first in the
/// boot order of the one; the other has its disk first, and falls through to the network.
#[derive(Debug)]
pub struct LabCluster {
    file: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl LabCluster {
    /// Its name.
    pub const NAME: &'static str = "lab";
    /// Its version of Kubernetes, which its image holds.
    pub const KUBERNETES: &'static str = "v1.20.2";
    /// The version that it is upgraded to.
    pub const NEWER: &'static str = "v1.21.0";
    /// Its machines, the control plane first.
    pub const MACHINES: [&'static str; 2] = ["bios-1", "uefi-1"];

    /// Writes the cluster file with what it names into the network's folder. `kubernetes` is a folder that
    /// `cargo xtask image kubernetes` makes.
    pub fn create(net: &Network, kubernetes: &Path) -> Result<Self, Error> {
        Self::with(net, kubernetes, "")
    }

    /// The same with the operator in it, whose image comes from the service's registry.
    pub fn with_housekeeper(net: &Network, kubernetes: &Path) -> Result<Self, Error> {
        Self::with(net, kubernetes, "  housekeeper: {enabled: true}\n")
    }

    /// The same with further lines of its file's `spec`, which are indented by two.
    pub fn with(net: &Network, kubernetes: &Path, more: &str) -> Result<Self, Error> {
        Self::write(net, kubernetes, CLUSTER, more)
    }

    /// A cluster of the same name whose machines are both workers, at 192.0.2.21 and 192.0.2.22; the control plane is a node of
    /// namespaces ([`LabCluster::control_plane`]).
    pub fn of_workers(net: &Network, kubernetes: &Path, more: &str) -> Result<Self, Error> {
        Self::write(net, kubernetes, WORKERS, more)
    }

    /// The control plane of a cluster of workers.
    pub fn control_plane() -> LabMember {
        LabMember {
            hostname: "cp-1".into(),
            mac: "52:54:00:00:00:09".into(),
            address: "192.0.2.11/24".into(),
            images: Images::ControlPlane,
            pulls: false,
            version: Self::KUBERNETES.into(),
        }
    }

    fn write(net: &Network, kubernetes: &Path, text: &str, more: &str) -> Result<Self, Error> {
        let write = |name: &str, text: &str| {
            let path = net.folder().join(name);
            std::fs::write(&path, text).map_err(Error::io(format!("writing {}", path.display())))?;
            Ok(path)
        };
        write("network.yaml", NETWORK)?;
        Ok(Self {
            file: write("cluster.yaml", &(text.replace("KUBERNETES_VERSION", Self::KUBERNETES) + more))?,
            kubectl: kubernetes.join("versions").join(Self::KUBERNETES).join("kubectl"),
            kubeconfig: net.folder().join("kubeconfig"),
        })
    }

    /// The cluster file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The file that [`LabCluster::access`] writes.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Its machines to be. The one with UEFI has no ROM on its card, so that the firmware's own PXE and our TFTP are used.
    pub fn machines() -> [MachineSpec; 2] {
        let [control_plane, worker] = Self::MACHINES;
        let racked = |name: &str, mac: &str, boot| Machine::named(name).mac(mac).disk_gib(8).boot(boot);
        let (network, disk) = (BootOrder::NetworkThenDisk, BootOrder::DiskThenNetwork);
        [
            racked(control_plane, "52:54:00:00:00:01", network).firmware(Firmware::Bios).memory_mib(3072),
            racked(worker, "52:54:00:00:00:02", disk).firmware(Firmware::Uefi).nic(Nic::VirtioBare),
        ]
    }

    /// What the service says of it.
    pub fn status(net: &Network, nkd: &Nkd) -> Result<Value, Error> {
        nkd.json(net, &["cluster", "status", Self::NAME])
    }

    /// Whether the service finds it complete and well.
    pub fn is_ready(status: &Value) -> bool {
        status["phase"] == "ready" && status["health"]["state"] == "healthy"
    }

    /// Waits until it is as it should be.
    pub fn wait_until(
        net: &Network,
        nkd: &Nkd,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let end = Instant::now() + limit;
        loop {
            let status = Self::status(net, nkd)?;
            if fits(&status) {
                return Ok(status);
            }
            if Instant::now() >= end {
                let events = nkd.nkd(net, &["cluster", "events", Self::NAME])?;
                return Err(Error::Unexpected { what: what.to_owned(), got: format!("{status:#}\n{events}") });
            }
            // Asking costs processor time that the machines want.
            std::thread::sleep(PAUSE);
        }
    }

    /// Switches these machines off and on again, and waits until each has booted its own disk and the cluster is Ready, by
    /// what the nodes say after their new start; others have to be Ready. Nothing may be installed.
    pub fn cycle_power(
        &self,
        net: &Network,
        nkd: &Nkd,
        machines: &mut [Machine],
        limit: Duration,
    ) -> Result<(), Error> {
        let before = self.nodes(net)?;
        let installs = |name: &str| -> Result<usize, Error> {
            let scripts = nkd.events(net, name, "boot-script")?;
            Ok(scripts.iter().filter(|script| script.contains("live install")).count())
        };
        let installed = Self::MACHINES.map(installs);
        for machine in machines.iter_mut() {
            machine.power_off(within(240))?;
        }
        for machine in machines.iter_mut() {
            machine.power_on()?;
        }
        for machine in machines.iter() {
            machine.console().expect(&format!("{} login:", machine.name()), limit)?;
        }
        let end = Instant::now() + limit;
        let back = |now: &BTreeMap<String, Node>| {
            now.len() == before.len()
                && now.iter().all(|(name, n)| {
                    let stays = machines.iter().all(|cycled| cycled.name() != name);
                    n.ready && before.get(name).is_some_and(|b| stays || b.boot != n.boot)
                })
        };
        loop {
            // The API is the last to come back.
            let now = self.nodes(net);
            if now.as_ref().is_ok_and(back) {
                break;
            }
            if Instant::now() >= end {
                let got = format!("{now:?} after {before:?}");
                return Err(Error::Unexpected { what: "the nodes are Ready after the power cycle".into(), got });
            }
            std::thread::sleep(PAUSE);
        }
        Self::wait_until(net, nkd, "the cluster is Ready again", limit, Self::is_ready)?;
        for (name, before) in Self::MACHINES.into_iter().zip(installed) {
            let (machine, before, now) = (nkd.machine(net, name)?, before?, installs(name)?);
            if now != before || machine["installedGeneration"] != 1 || machine["phase"]["name"] != "ready" {
                let what = format!("{name} is what it was before the power cycle, with {before} starts of an install");
                return Err(Error::Unexpected { what, got: format!("{machine:#}\n{now} starts of an install") });
            }
        }
        Ok(())
    }

    /// The nodes as its API has them; wants [`LabCluster::access`].
    fn nodes(&self, net: &Network) -> Result<BTreeMap<String, Node>, Error> {
        let text = self.kubectl(net, &["get", "nodes", "--output=json", "--request-timeout=20s"])?;
        let list: Value =
            serde_json::from_str(&text).map_err(|_| Error::Unexpected { what: "nodes".into(), got: text.clone() })?;
        let node = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&node["metadata"]["name"]), Node { ready, boot: text(&node["status"]["nodeInfo"]["bootID"]) })
        };
        Ok(list["items"].as_array().into_iter().flatten().map(node).collect())
    }

    /// Asks for a kubeconfig, as an operator does.
    pub fn access(&self, net: &Network, nkd: &Nkd) -> Result<(), Error> {
        let config = nkd.nkd(net, &["cluster", "kubeconfig", Self::NAME])?;
        std::fs::write(&self.kubeconfig, config).map_err(Error::io(format!("writing {}", self.kubeconfig.display())))
    }

    /// How kubectl is called with that kubeconfig.
    pub fn kubectl_line(&self) -> String {
        format!("{} --kubeconfig {}", self.kubectl.display(), self.kubeconfig.display())
    }

    /// The same, tried again until `limit` while it fails: a machine that the emulator has brought to a halt is reset, and its
    /// API is away for minutes. Words that do more when they are said twice are not for this.
    pub fn kubectl_until_answered(&self, net: &Network, words: &[&str], limit: Duration) -> Result<String, Error> {
        let end = Instant::now() + limit;
        loop {
            match self.kubectl(net, words) {
                Err(_) if Instant::now() < end => std::thread::sleep(PAUSE),
                answer => return answer,
            }
        }
    }

    /// What kubectl says with that kubeconfig.
    pub fn kubectl(&self, net: &Network, words: &[&str]) -> Result<String, Error> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(words);
        Ok(net.run(command, within(60))?.success()?.text())
    }
}
