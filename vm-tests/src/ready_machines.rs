//! The cluster of the lab on two machines that were blank, with the operator in it: what a test of whole machines begins with.

use std::path::PathBuf;

use crate::{Builds, DhcpMode, Error, LabCluster, Machine, Network, Nkd, Rollout, built, kubernetes_folder, within};

/// A Ready cluster of two blank machines. The service is the only server on the network, and the cluster file is there before
/// the machines are switched on.
pub struct ReadyMachines {
    /// What it is made of; the image that they were installed from is at `NKD_CLUSTER_IMAGE`.
    pub image: PathBuf,
    /// The cluster, whose kubeconfig is there.
    pub cluster: LabCluster,
    /// The service, whose registry holds the operator's image (`NKD_HOUSEKEEPER`).
    pub nkd: Nkd,
    /// The control plane and the worker.
    pub machines: Vec<Machine>,
    /// Last: what lives in it ends before.
    pub net: Network,
}

impl ReadyMachines {
    /// Takes about ten minutes under emulation. What is looked for on the worker's console is for the test to say, if it brings
    /// that machine into trouble.
    pub fn start(network: &str, worker_survives_trouble: bool) -> Result<Self, Error> {
        let net = Network::create(network)?;
        let builds = Builds { image: built("NKD_CLUSTER_IMAGE")?, ..Builds::program_from_environment()? };
        let nkd = Nkd::start(&net, &builds, DhcpMode::Server, &[])?;
        nkd.nkd(&net, &["image", "import", &builds.image.display().to_string(), "--name", "lab"])?;
        let cluster = LabCluster::with_housekeeper(&net, &kubernetes_folder()?)?;
        nkd.push_housekeeper(&net, &built("NKD_HOUSEKEEPER")?)?;
        nkd.nkd(&net, &["cluster", "apply", "-f", &cluster.file().display().to_string()])?;
        LabCluster::wait_until(&net, &nkd, "the machines are awaited", within(30), |status| {
            status["members"].as_array().is_some_and(|members| members.iter().all(|m| m["machine"].is_string()))
        })?;
        let [control_plane, worker] = LabCluster::machines();
        let worker = if worker_survives_trouble { worker.survives_trouble() } else { worker };
        let machines = vec![control_plane.start(&net)?, worker.start(&net)?];
        LabCluster::wait_until(&net, &nkd, "the cluster is Ready", within(1500), LabCluster::is_ready)?;
        for name in LabCluster::MACHINES {
            let machine = nkd.machine(&net, name)?;
            if machine["phase"]["name"] != "ready" || machine["installedGeneration"] != 1 {
                let what = format!("{name} is ready, and was installed once");
                return Err(Error::Unexpected { what, got: format!("{machine:#}") });
            }
        }
        // The way of an operator: a kubeconfig, and kubectl.
        cluster.access(&net, &nkd)?;
        Ok(Self { image: builds.image, cluster, nkd, machines, net })
    }

    /// For upgrades of it.
    pub fn rollout(&self) -> Rollout<'_> {
        Rollout { cluster: &self.cluster, net: &self.net, nkd: &self.nkd }
    }

    /// Switches one off and on: it boots its own disk, and comes back into the cluster by itself.
    pub fn cycle_power(&mut self, machine: usize) -> Result<(), Error> {
        let machines = &mut self.machines[machine..=machine];
        self.cluster.cycle_power(&self.net, &self.nkd, machines, within(900))
    }
}
