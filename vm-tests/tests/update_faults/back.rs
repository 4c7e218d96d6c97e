//! The only control plane does not come up on a release with another Kubernetes: what stands then, and both ways on. At the end
//! a node joins that was installed from the image of before.

use nkd_vm_tests::{ClusterFile, LabMember, bridge_pods, within};
use serde_json::Value;

use super::scene::{AFTER, BEFORE, CLUSTER, NEW, OLD, Release, Scene, unexpected};
use crate::Result;

const CP: usize = 0;
/// In seconds.
const GATE: u32 = 120;

impl Scene {
    /// The kubelet of the release does not run on the control plane.
    fn spoil(&self, release: &Release) -> Result {
        let tree = format!("/var/lib/site-os/trees/{}/usr/bin", release.commit);
        let ill = format!("#!/bin/sh\n[ \"$1\" = --version ] && echo Kubernetes {AFTER} && exit\nexit 7\n");
        self.nodes[CP].shell(&format!("rm {tree}/kubelet"), within(20))?;
        self.nodes[CP].write_file(&format!("{tree}/kubelet"), 0o755, ill.as_bytes())
    }

    /// kubeadm has brought its static pods to the new version, and all else is of before: both work together.
    fn expect_new_planes_on_the_old_system(&self) -> Result {
        self.expect_whole(&self.nodes[CP], &self.runs, "rolled-back")?;
        self.expect_open("cp1", true)?;
        let version = self.json(&["version"])?;
        assert_eq!(version["serverVersion"]["gitVersion"], AFTER, "{version:#}");
        let seen = self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}"])?;
        assert_eq!(seen, format!("{BEFORE} {BEFORE}"));
        let status = self.status()?;
        let said = status["detail"].as_str().unwrap_or_default();
        assert!(said.contains("cp1: rolled back: not healthy after 120 s"), "{status:#}");
        let worker = status["nodes"].as_array().into_iter().flatten().find(|node| node["name"] == "w1");
        match worker {
            Some(worker) if worker["state"] == "Staged" => Ok(()),
            _ => Err(unexpected("w1 waits with the release laid out", format!("{status:#}"))),
        }
    }

    /// How often `kubeadm upgrade apply` has come to its end.
    fn applied(&self) -> Result<usize> {
        Ok(self.nodes[CP].logs()?.matches("[upgrade/successful] SUCCESS!").count())
    }

    pub fn a_control_plane_goes_back(&mut self) -> Result {
        self.nodes[CP].configure_updater("", GATE)?;
        self.nodes[CP].shell("systemctl restart nkd-updater", within(30))?;
        let first = self.publish(AFTER)?;
        self.spoil(&first)?;
        self.begin(&first, &[])?;
        self.until_state("halted", 900)?;
        self.expect_new_planes_on_the_old_system()?;
        assert_eq!(self.applied()?, 1);

        // It is called off, and the next release is ill as well.
        self.lab.nkd(&["upgrade", "abort", CLUSTER])?;
        self.until_state("aborted", 120)?;
        let second = self.publish(AFTER)?;
        self.spoil(&second)?;
        self.begin(&second, &[])?;
        self.until_state("halted", 900)?;
        self.expect_new_planes_on_the_old_system()?;

        // Put right, and tried again.
        self.nodes[CP].lay_out_again(&second.commit, NEW)?;
        self.lab.nkd(&["upgrade", "retry", CLUSTER])?;
        self.until_state("complete", 900)?;
        for node in &self.nodes {
            self.expect_whole(node, &second.commit, "healthy")?;
        }
        assert_eq!(
            self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}"])?,
            format!("{AFTER} {AFTER}")
        );
        assert_eq!(self.applied()?, 3, "once with each attempt");
        self.runs.clone_from(&second.commit);
        self.one_that_comes_later(&second)
    }

    /// A worker is installed from the image that the cluster's file names still, whose Kubernetes is that of before.
    fn one_that_comes_later(&mut self, release: &Release) -> Result {
        let small = ClusterFile::named(CLUSTER).workers(1).with("housekeeper: {enabled: true}");
        // The file of the first day says a version that the cluster has left.
        let refused = self.lab.apply_only(&small).unwrap_err().to_string();
        assert!(refused.contains("v1.21.0") && refused.contains("spec.kubernetes.version"), "{refused}");
        let large = ClusterFile::named(CLUSTER).workers(2).version(AFTER).with("housekeeper: {enabled: true}");
        let members = large.members();
        self.lab.apply(&large)?;
        let late = LabMember { version: BEFORE.to_owned(), ..members[2].clone() };
        let node = self.lab.node(&late)?;
        self.nodes.push(node);
        bridge_pods(&mut self.nodes.iter_mut().collect::<Vec<_>>())?;
        self.lab.wait_ready(CLUSTER, within(400))?;
        let node = &self.nodes[2];
        node.lay_out(OLD, self.lab.kubernetes(), BEFORE, late.images)?;
        node.lay_out(NEW, self.lab.kubernetes(), AFTER, late.images)?;
        node.lay_out_again(&release.commit, NEW)?;
        node.deploy(OLD)?;
        assert_eq!(self.kubelet("w2")?, BEFORE);
        // The same release once more: who runs it already is only looked at.
        let boot = |scene: &Self| scene.nodes[1].shell("cat /proc/sys/kernel/random/boot_id", within(20));
        let before = boot(self)?;
        self.begin(release, &[])?;
        self.until_state("complete", 900)?;
        assert_eq!(self.kubelet("w2")?, AFTER);
        assert_eq!(boot(self)?, before, "w1 is not restarted");
        for node in &self.nodes {
            self.expect_whole(node, &release.commit, "healthy")?;
        }
        Ok(())
    }

    fn kubelet(&self, name: &str) -> Result<String> {
        let node: Value = self.json(&["get", "node", name])?;
        Ok(node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default().to_owned())
    }
}
