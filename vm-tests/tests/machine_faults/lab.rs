//! The network, the service and the machines.

use std::path::PathBuf;
use std::time::Instant;

use nkd_vm_tests::{
    Builds, DhcpMode, Host, Images, LabCluster, LabPrograms, Machine, Network, Nkd, Remote, Rollout, Saboteur, Service,
    SshKey, built, install_by_hand, other_dhcp, within,
};

use super::Result;
use super::scene::{Scene, table};

/// The gate is narrow, so that an ill release is told soon. It has to hold a start under emulation.
const GATE: &str = "ExecStart=\nExecStart=/usr/bin/nkd-agent update --gate 300";

/// A cluster to be, of one BIOS and one UEFI machine.
pub struct Lab {
    pub net: Network,
    pub nkd: Nkd,
    pub cluster: LabCluster,
    /// The image that machines are installed from.
    pub image: PathBuf,
    programs: LabPrograms,
    key: SshKey,
    _dhcp: (Host, Service),
}

impl Lab {
    pub fn new(name: &str) -> Result<Self> {
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

    pub fn rollout(&self) -> Rollout<'_> {
        Rollout { cluster: &self.cluster, net: &self.net, nkd: &self.nkd }
    }

    /// The machines are installed and the cluster is Ready; what does harm is on the nodes, and the system that they run is the
    /// channel's first release.
    pub fn scene(self) -> Result<Scene> {
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
        let kubernetes = self.programs.kubernetes.clone();
        let first = String::new();
        let mut scene = Scene { lab: self, control_plane, machines, shells, table, started, first };
        scene.first = scene.newest()?;
        scene.control_plane.lay_out(&scene.first, &kubernetes, LabCluster::KUBERNETES, Images::ControlPlane)?;
        scene.control_plane.deploy(&scene.first)?;
        scene.say("the cluster is Ready");
        Ok(scene)
    }
}
