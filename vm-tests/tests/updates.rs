//! Updates on real nodes: housekeeper, the agents, kubeadm, kubelet, containerd and etcd are real; deployments and boot loader
//! are played by a program of the nodes (`vm-tests/src/node/deployments.rs`). Kubelet and containerd pull the operator's image
//! from the service, whose registry is closed to strangers.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, which writes files and waits")]

use std::process::Command;
use std::time::{Duration, Instant};

use nkd_vm_tests::{ClusterLab, Error, Images, Node, within};
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Error>;

const CLUSTER: &str = "rack7";
/// The system that the nodes begin with, one with a newer Kubernetes, and one whose kubelet does not run.
const OLD: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const NEW: &str = "2222222222222222222222222222222222222222222222222222222222222222";
const ILL: &str = "3333333333333333333333333333333333333333333333333333333333333333";
const NO_BOOT: &str = "4444444444444444444444444444444444444444444444444444444444444444";
const KUBERNETES: &str = "v1.21.0";

struct Scene {
    lab: ClusterLab,
    nodes: Vec<Node>,
}

impl Scene {
    fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.lab.kubectl(CLUSTER, words)
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|_| Error::Unexpected { what: "JSON".into(), got: text })
    }

    fn ask(&self, name: &str, commit: &str) -> Result {
        self.ask_for(name, &json!({"name": name, "os": {"commit": commit}, "kubernetes": KUBERNETES}))
    }

    fn ask_for(&self, name: &str, release: &Value) -> Result {
        self.ask_with(name, release, &["ImagePull", "CoreDNSUnsupportedPlugins", "CoreDNSMigration"])
    }

    /// `ignored`: what kubeadm's checks may find.
    fn ask_with(&self, name: &str, release: &Value, ignored: &[&str]) -> Result {
        let update = json!({
            "apiVersion": "nkd.io/v1alpha1", "kind": "Update", "metadata": {"name": name},
            "spec": {
                "release": release,
                "strategy": {"haltAfterFailures": 1, "ignorePreflightErrors": ignored},
            },
        });
        let path = self.lab.net.folder().join(format!("update-{name}.json"));
        std::fs::write(&path, update.to_string()).unwrap();
        self.kubectl(&["apply", "-f", &path.display().to_string()]).map(drop)
    }

    /// Nodes that have gone down are switched on again, until the update is in this phase.
    fn until(&mut self, name: &str, phase: &str, limit: u64) -> Result<Value> {
        let end = Instant::now() + within(limit);
        let mut last = String::new();
        loop {
            for node in &mut self.nodes {
                if !node.is_on() {
                    println!("{} has gone down, and is switched on", node.name());
                    node.power_on()?;
                }
            }
            // The only control plane may be away.
            let status = self.json(&["get", "nkdupdate", name]).map(|update| update["status"].clone());
            if let Ok(status) = &status {
                let said = status["nodes"].to_string();
                if said != last {
                    println!("{said}");
                    last = said;
                }
                if status["phase"] == phase {
                    return Ok(status.clone());
                }
            }
            if Instant::now() >= end {
                let log = self.kubectl(&[
                    "-n",
                    "nkd-system",
                    "logs",
                    "-l",
                    "app.kubernetes.io/name=nkd-housekeeper",
                    "--tail=40",
                ]);
                let journals: Vec<String> = self
                    .nodes
                    .iter()
                    .map(|node| {
                        node.shell("journalctl -u nkd-updater --no-pager | tail -60", within(20)).unwrap_or_default()
                    })
                    .collect();
                let got = format!("{status:#?}\n{}\n{}", log.unwrap_or_default(), journals.join("\n==\n"));
                return Err(Error::Unexpected { what: format!("{name} is {phase}"), got });
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Every node is, and knows it; `apply` ran on the control plane, and once.
    fn is_at_the_new_kubernetes(&self) -> Result {
        assert_eq!(self.kubelets()?, "v1.21.0 v1.21.0");
        let version = self.json(&["version"])?;
        assert_eq!(version["serverVersion"]["gitVersion"], KUBERNETES, "{version:#}");
        for node in &self.nodes {
            let journal: Value = serde_json::from_slice(&node.read_file("/var/lib/nkd-agent/update.json")?).unwrap();
            assert_eq!(journal["job"]["stage"], "healthy", "{journal:#}");
        }
        assert_eq!(self.nodes[0].logs()?.matches("[upgrade/successful] SUCCESS!").count(), 1);
        Ok(())
    }

    /// A release with the new Kubernetes, whose system nobody is to run.
    fn publish(&self) -> Result {
        let folder = self.lab.net.folder().join("builder");
        std::fs::create_dir_all(folder.join("tree/usr")).unwrap();
        let ostree = |words: &[&str]| {
            let mut command = Command::new("ostree");
            command.arg(format!("--repo={}", folder.join("repo").display())).args(words);
            self.lab.net.run(command, within(60))?.success().map(drop)
        };
        ostree(&["init", "--mode=archive"])?;
        let tree = format!("--tree=dir={}", folder.join("tree").display());
        ostree(&["commit", "--branch", "lab/x86_64/stable", "--add-metadata-string=version=2", &tree])?;
        let repository = folder.join("repo").display().to_string();
        let words = ["channel", "publish", "stable", "--ostree", &repository, "--kubernetes", KUBERNETES];
        self.lab.nkd(&words).map(drop)
    }

    fn kubelets(&self) -> Result<String> {
        self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}"])
    }
}

/// A cluster of a control plane and a worker that has gone to the new release, first the one and then the other.
fn upgraded(test: &str) -> Result<Scene> {
    let (lab, nodes) = ClusterLab::with_pulled_housekeeper(test, CLUSTER, 1)?;
    for (node, images) in nodes.iter().zip([Images::ControlPlane, Images::Worker]) {
        node.lay_out(OLD, lab.kubernetes(), "v1.20.2", images)?;
        node.lay_out(NEW, lab.kubernetes(), KUBERNETES, images)?;
        node.deploy(OLD)?;
    }
    let mut scene = Scene { lab, nodes };

    scene.ask("to-2", NEW)?;
    scene.until("to-2", "Complete", 900)?;
    scene.is_at_the_new_kubernetes()?;
    for node in &scene.nodes {
        assert!(node.shell("cat /var/lib/site-os/counter", within(20)).is_err(), "the boot loader counts still");
    }
    Ok(scene)
}

/// What administrators do by hand where the system is no image: they install packages, and ask for Kubernetes alone.
#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn kubernetes_alone_is_upgraded_where_programs_were_installed() -> Result {
    let (lab, nodes) = ClusterLab::with_pulled_housekeeper("updates-alone", CLUSTER, 1)?;
    for node in &nodes {
        node.shell("systemctl restart nkd-updater", within(60))?;
    }
    let mut scene = Scene { lab, nodes };
    let release = json!({"name": "alone", "kubernetes": KUBERNETES});
    // Nobody has installed them.
    scene.ask_for("too-early", &release)?;
    let status = scene.until("too-early", "Halted", 400)?;
    let said = status["conditions"].to_string();
    assert!(
        said.contains("cp1: rolled back") && said.contains("install kubeadm and kubelet of v1.21.0 first"),
        "{said}"
    );
    scene.kubectl(&["delete", "nkdupdate", "too-early"])?;

    let boots = |scene: &Scene| -> Result<Vec<String>> {
        let of = |node: &Node| node.shell("cat /proc/sys/kernel/random/boot_id", within(20));
        scene.nodes.iter().map(of).collect()
    };
    for (node, images) in scene.nodes.iter().zip([Images::ControlPlane, Images::Worker]) {
        node.lay_out(NEW, scene.lab.kubernetes(), KUBERNETES, images)?;
        let install = format!("cd /var/lib/site-os/trees/{NEW}/usr/bin && install -m 755 kubeadm kubelet /usr/bin/");
        node.shell(&install, within(60))?;
    }
    let before = boots(&scene)?;
    // The way of an operator: checks, a snapshot of etcd, and then the same Update.
    scene.publish()?;
    let ignored = "ImagePull,CoreDNSUnsupportedPlugins,CoreDNSMigration";
    let words = ["upgrade", "start", CLUSTER, "--channel", "stable", "--kubernetes-only", "--ignore-preflight-errors"];
    println!("{}", scene.lab.nkd(&[&words[..], &[ignored]].concat())?);
    scene.until("nkd-1", "Complete", 900)?;
    let end = Instant::now() + within(60);
    while scene.lab.nkd.json(&scene.lab.net, &["upgrade", "status", CLUSTER])?["state"] != "complete" {
        assert!(Instant::now() < end, "the service has not heard of it");
        std::thread::sleep(Duration::from_secs(1));
    }
    scene.is_at_the_new_kubernetes()?;
    assert_eq!(boots(&scene)?, before, "no node restarts for it");
    Ok(())
}

/// A site without any registry but the service's, which is closed to strangers: no node is given an image. kubeadm, the
/// kubelets and containerd pull all of them, for the first version and for the next.
#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn a_site_without_another_registry_brings_up_and_upgrades_a_cluster() -> Result {
    let (lab, nodes) = ClusterLab::with_all_pulled("updates-pull", CLUSTER, 1, KUBERNETES)?;
    for node in &nodes {
        node.lay_out_without_images(OLD, lab.kubernetes(), "v1.20.2")?;
        node.lay_out_without_images(NEW, lab.kubernetes(), KUBERNETES)?;
        node.deploy(OLD)?;
    }
    let mut scene = Scene { lab, nodes };
    scene.kubectl(&["run", "web", "--image=busybox:1.35", "--restart=Never", "--", "sleep", "3600"])?;
    scene.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=50s"])?;
    scene.kubectl(&["delete", "pod", "web", "--grace-period=0", "--force"])?;

    let release = json!({"name": "to-2", "os": {"commit": NEW}, "kubernetes": KUBERNETES});
    // Pulling is not among what may fail.
    scene.ask_with("to-2", &release, &["CoreDNSUnsupportedPlugins", "CoreDNSMigration"])?;
    scene.until("to-2", "Complete", 900)?;
    scene.is_at_the_new_kubernetes()?;
    for node in &scene.nodes {
        let named = node.shell("ctr -n k8s.io images ls -q | grep -v ^sha256: | cut -d/ -f1 | sort -u", within(20))?;
        let strange: Vec<&str> =
            named.lines().filter(|host| !["docker.io", "k8s.gcr.io", "nkd.io"].contains(host)).collect();
        assert_eq!(strange, Vec::<&str>::new());
    }
    Ok(())
}

#[test]
fn a_cluster_is_upgraded() -> Result {
    upgraded("updates").map(drop)
}

#[test]
#[ignore = "takes minutes: cargo xtask soak"]
fn what_does_not_come_up_goes_back() -> Result {
    let mut scene = upgraded("updates-back")?;
    // A release whose kubelet does not run, and one that does not boot: the control plane goes back by itself.
    for (name, release, why) in [("to-3", ILL, "not healthy after"), ("to-4", NO_BOOT, "did not come up")] {
        for (node, images) in scene.nodes.iter().zip([Images::ControlPlane, Images::Worker]) {
            node.lay_out(release, scene.lab.kubernetes(), KUBERNETES, images)?;
        }
        let tree = format!("/var/lib/site-os/trees/{release}");
        let ill = match release {
            ILL => format!(
                "printf '#!/bin/sh\\n[ \"$1\" = --version ] && echo Kubernetes {KUBERNETES} && exit\\nexit 7\\n' > {tree}/usr/bin/kubelet"
            ),
            _ => format!("touch {tree}/no-boot"),
        };
        scene.nodes[0].shell(&ill, within(20))?;
        scene.ask(name, release)?;
        let status = scene.until(name, "Halted", 700)?;
        let said = status["conditions"].to_string();
        assert!(said.contains("cp1: rolled back") && said.contains(why), "{said}");
        let booted = scene.nodes[0].read_file("/var/lib/site-os/booted")?;
        assert_eq!(String::from_utf8_lossy(&booted).trim(), NEW);
        assert_eq!(scene.kubelets()?, "v1.21.0 v1.21.0");
        let node = scene.json(&["get", "node", "cp1"])?;
        assert!(node["spec"]["unschedulable"].is_null(), "{node:#}");
        scene.kubectl(&["delete", "nkdupdate", name])?;
    }
    // The same once more is refused, until somebody asks for a retry.
    scene.ask("to-4-again", NO_BOOT)?;
    let status = scene.until("to-4-again", "Halted", 200)?;
    assert!(status["conditions"].to_string().contains("did not come up here on"), "{status:#}");
    Ok(())
}
