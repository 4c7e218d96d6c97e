//! From enrolled nodes to a Ready cluster, with real kubeadm, kubelet, containerd and etcd in namespace machines.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nkd_vm_tests::{
    Builds, DhcpMode, Error, Images, Network, Nkd, Node, bridge_pods, install_by_hand, kubernetes_folder, within,
};
use serde_json::Value;

type Result<T = ()> = std::result::Result<T, Error>;

const VERSION: &str = "v1.20.2";

/// A service, and an image that nobody boots.
fn service(net: &Network) -> Result<Nkd> {
    let builds = Builds::program_from_environment()?;
    let nkd = Nkd::start(net, &builds, DhcpMode::Off, &[])?;
    let folder = net.folder().join("image");
    std::fs::create_dir_all(&folder).unwrap();
    for name in [
        "lab-1-live-kernel-x86_64",
        "lab-1-live-initramfs.x86_64.img",
        "lab-1-live-rootfs.x86_64.img",
        "lab-1-metal.x86_64.raw",
    ] {
        std::fs::write(folder.join(name), vec![7; 10_000]).unwrap();
    }
    nkd.nkd(net, &["image", "import", &folder.display().to_string(), "--name", "lab"])?;
    Ok(nkd)
}

fn agent() -> Result<PathBuf> {
    let remedy = "run this through `cargo xtask test`, which builds it";
    let agent = std::env::var_os("NKD_AGENT").map(PathBuf::from).filter(|p| p.exists());
    agent.ok_or(Error::NotBuilt { variable: "NKD_AGENT", remedy })
}

fn file(net: &Network, workers: u8) -> String {
    let worker =
        |n: u8| format!("    - {{mac: '52:54:00:00:01:{n:02x}', hostname: w{n}, ip: 192.0.2.{}/24}}\n", 20 + n);
    let workers: String = (1..=workers).map(worker).collect();
    let text = format!(
        "apiVersion: nkd.io/v1alpha1\nkind: Cluster\nmetadata: {{name: rack7}}\nspec:\n  os: {{profile: lab, image: lab}}\n  kubernetes:\n    version: {VERSION}\n    skipPhases: [addon/coredns]\n    cni: {{manifest: ./cni.yaml}}\n    kubeProxyConfiguration: {{conntrack: {{maxPerCore: 0}}}}\n    # The disk is this computer's, which may be fuller than a kubelet likes.\n    kubeletConfiguration: {{evictionHard: {{imagefs.available: 1%, nodefs.available: 1%, nodefs.inodesFree: 1%}}}}\n  hooks: {{after: [./after.yaml]}}\n  pools:\n  - name: cp\n    role: control-plane\n    machines:\n    - {{mac: '52:54:00:00:00:01', hostname: cp1, ip: 192.0.2.11/24}}\n  - name: w\n    role: worker\n    machines:\n{workers}"
    );
    let map = |name: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: kube-system}}\ndata: {{a: b}}\n")
    };
    std::fs::write(net.folder().join("cni.yaml"), map("made-by-cni")).unwrap();
    std::fs::write(net.folder().join("after.yaml"), map("made-after")).unwrap();
    let path = net.folder().join("cluster.yaml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn wait_for(net: &Network, nkd: &Nkd, what: &str, limit: Duration, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    let end = Instant::now() + limit;
    loop {
        let status = nkd.json(net, &["cluster", "status", "rack7"])?;
        if fits(&status) {
            return Ok(status);
        }
        if Instant::now() >= end {
            let events = nkd.nkd(net, &["cluster", "events", "rack7"])?;
            return Err(Error::Unexpected { what: what.into(), got: format!("{status:#}\n{events}") });
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn one_control_plane_and_one_worker_become_ready_with_no_hand_on_them() -> Result {
    let (folder, agent) = (kubernetes_folder()?, agent()?);
    let net = Network::create("cluster")?;
    let nkd = service(&net)?;
    let host = net.host("by-hand", Some("192.0.2.3/24"))?;
    let told = nkd.nkd(&net, &["cluster", "apply", "-f", &file(&net, 1)])?;
    assert!(told.contains("rack7"), "{told}");
    wait_for(&net, &nkd, "machines are taken", within(20), |s| {
        s["members"].as_array().unwrap().iter().all(|m| m["machine"].is_string())
    })?;
    let start = |name: &str, mac: &str, address: &str, images| -> Result<Node> {
        let config = install_by_hand(&net, &host, mac)?;
        let node =
            Node::named(name).address(address).mac(mac).kubernetes(&folder, VERSION).agent(&agent).start(&net)?;
        node.expect_unit_active("containerd", within(60))?;
        node.import_images(images, within(180))?;
        // CoreDNS is not in Debian and its add-on is left out, but kubeadm wants its image all the same.
        node.shell("ctr -n k8s.io images tag k8s.gcr.io/pause:3.2 k8s.gcr.io/coredns:1.7.0", within(20))?;
        node.write_file("/etc/nkd/agent.json", 0o600, &config)?;
        node.shell("systemctl start nkd-agent", within(20))?;
        Ok(node)
    };
    let mut cp = start("cp1", "52:54:00:00:00:01", "192.0.2.11/24", Images::ControlPlane)?;
    let mut worker = start("w1", "52:54:00:00:01:01", "192.0.2.21/24", Images::Worker)?;
    bridge_pods(&mut [&mut cp, &mut worker])?;
    wait_for(&net, &nkd, "the cluster is Ready", within(400), |s| s["phase"] == "ready")?;
    // Static pods take a while to be Ready after their node is.
    wait_for(&net, &nkd, "the cluster is healthy", within(180), |s| s["health"]["state"] == "healthy")?;
    assert_eq!(nkd.machine(&net, "w1")?["phase"]["name"], "ready");

    // The way of an operator: a kubeconfig, and kubectl.
    let config = nkd.nkd(&net, &["cluster", "kubeconfig", "rack7"])?;
    let path = net.folder().join("kubeconfig");
    std::fs::write(&path, config).unwrap();
    let kubectl = |words: &[&str]| -> Result<String> {
        let mut command = Command::new(folder.join("versions").join(VERSION).join("kubectl"));
        command.arg("--kubeconfig").arg(&path).args(words);
        Ok(host.run(command, within(60))?.success()?.text())
    };
    let nodes = kubectl(&["get", "nodes", "--no-headers"])?;
    assert_eq!(nodes.lines().filter(|l| l.split_whitespace().nth(1) == Some("Ready")).count(), 2, "{nodes}");
    // Applied before and after; and no token is left.
    kubectl(&["-n", "kube-system", "get", "configmap", "made-by-cni", "made-after"])?;
    // kubeadm's own token of init has a minute to live.
    let end = Instant::now() + within(120);
    loop {
        let tokens = ["-n", "kube-system", "get", "secrets", "--no-headers"];
        let tokens = kubectl(&[&tokens[..], &["--field-selector", "type=bootstrap.kubernetes.io/token"]].concat())?;
        if tokens.trim().is_empty() {
            break;
        }
        assert!(Instant::now() < end, "bootstrap tokens are left:\n{tokens}");
        std::thread::sleep(Duration::from_secs(2));
    }
    // Nothing secret in what the nodes say.
    for node in [&cp, &worker] {
        assert!(!node.logs()?.contains("--token "), "a token is in the log of {}", node.name());
    }
    Ok(())
}
