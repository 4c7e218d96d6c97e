//! From enrolled nodes to a Ready cluster, with real kubeadm, kubelet, containerd and etcd in namespace machines.

#![allow(clippy::unwrap_used, reason = "a test")]

use nkd_vm_tests::{ClusterFile, ClusterLab, Error, bridge_pods, within};

type Result<T = ()> = std::result::Result<T, Error>;

#[test]
fn one_control_plane_and_one_worker_become_ready_with_no_hand_on_them() -> Result {
    let lab = ClusterLab::start("cluster")?;
    let file = ClusterFile::named("rack7").workers(1);
    let told = lab.apply(&file)?;
    assert!(told.contains("rack7"), "{told}");
    let members = file.members();
    let mut cp = lab.node(&members[0])?;
    let mut worker = lab.node(&members[1])?;
    bridge_pods(&mut [&mut cp, &mut worker])?;
    // Static pods take a while to be Ready after their node is.
    lab.wait_ready("rack7", within(400))?;
    assert_eq!(lab.nkd.machine(&lab.net, "w1")?["phase"]["name"], "ready");

    // The way of an operator: a kubeconfig, and kubectl.
    let nodes = lab.kubectl("rack7", &["get", "nodes", "--no-headers"])?;
    assert_eq!(nodes.lines().filter(|l| l.split_whitespace().nth(1) == Some("Ready")).count(), 2, "{nodes}");
    // Applied before and after; and no token is left.
    lab.kubectl("rack7", &["-n", "kube-system", "get", "configmap", "made-by-cni", "made-after"])?;
    lab.expect_no_tokens("rack7", within(120))?;
    // Nothing secret in what the nodes say.
    for node in [&cp, &worker] {
        assert!(!node.logs()?.contains("--token "), "a token is in the log of {}", node.name());
    }
    Ok(())
}
