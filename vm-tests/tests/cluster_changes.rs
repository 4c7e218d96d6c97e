//! From enrolled nodes to a Ready cluster, and what an operator does to it after its first day: nodes that come and go, with real
//! kubeadm, kubelet, containerd, etcd and pods in namespace machines.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, which writes files and waits")]

use std::time::Instant;

use nkd_vm_tests::{ClusterFile, ClusterLab, Error, bridge_pods, budgeted_pods, within};

type Result<T = ()> = std::result::Result<T, Error>;

/// Names of the nodes that are Ready.
fn ready(lab: &ClusterLab) -> Result<Vec<String>> {
    let nodes = lab.kubectl("rack7", &["get", "nodes", "--no-headers"])?;
    let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready"));
    Ok(ready.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

fn members(status: &serde_json::Value) -> Vec<&str> {
    status["members"].as_array().into_iter().flatten().filter_map(|m| m["hostname"].as_str()).collect()
}

#[test]
fn a_cluster_comes_up_grows_shrinks_and_is_taken_apart_with_no_hand_on_its_nodes() -> Result {
    let lab = ClusterLab::start("cluster-changes")?;
    let small = ClusterFile::named("rack7").workers(1);
    let large = ClusterFile::named("rack7").control_planes(2).workers(2);
    let told = lab.apply(&small)?;
    assert!(told.contains("rack7"), "{told}");
    let all = large.members();
    let [cp1, cp2, w1, w2] = &all[..] else { unreachable!("two and two") };
    let mut cp1 = lab.node(cp1)?;
    let mut w1 = lab.node(w1)?;
    bridge_pods(&mut [&mut cp1, &mut w1])?;
    lab.wait_ready("rack7", within(400))?;
    // A label that no kubelet may give its own node.
    let roles = lab.kubectl("rack7", &["get", "nodes", "-l", "node-role.kubernetes.io/worker", "-o", "name"])?;
    assert_eq!(roles.trim(), "node/w1");

    // What was to be applied is there, and nothing secret is in what the nodes say.
    lab.kubectl("rack7", &["-n", "kube-system", "get", "configmap", "made-by-cni", "made-after"])?;
    assert_eq!(lab.nkd.machine(&lab.net, "w1")?["phase"]["name"], "ready");
    for node in [&cp1, &w1] {
        assert!(!node.logs()?.contains("--token "), "a token is in the log of {}", node.name());
    }

    // Growing, when every token of the first day is gone.
    lab.expect_no_tokens("rack7", within(120))?;
    let told = lab.apply(&large)?;
    assert!(told.contains("cp2, w2: to join"), "{told}");
    let mut cp2 = lab.node(cp2)?;
    let mut w2 = lab.node(w2)?;
    bridge_pods(&mut [&mut cp1, &mut w1, &mut cp2, &mut w2])?;
    lab.wait_ready("rack7", within(500))?;
    assert_eq!(ready(&lab)?, ["cp1", "cp2", "w1", "w2"]);

    // A node that somebody deletes is missed, and what health says brings it back.
    lab.kubectl("rack7", &["delete", "node", "w1"])?;
    let advice = "`systemctl restart kubelet`";
    lab.wait_for("rack7", "w1 is missed", within(120), |s| s["health"]["reasons"].to_string().contains(advice))?;
    w1.shell("systemctl restart kubelet", within(60))?;
    lab.wait_ready("rack7", within(180))?;
    lab.wait_for("rack7", "the cluster is healthy", within(180), |s| s["health"]["state"] == "healthy")?;
    assert_eq!(ready(&lab)?, ["cp1", "cp2", "w1", "w2"]);

    // A worker leaves: its pods go first, never more of them than their budget allows.
    let path = lab.net.folder().join("pods.yaml");
    std::fs::write(&path, budgeted_pods("web", 2, None)).unwrap();
    lab.kubectl("rack7", &["apply", "-f", &path.display().to_string()])?;
    lab.kubectl("rack7", &["rollout", "status", "deployment/web", "--timeout=55s"])?;
    lab.nkd(&["cluster", "remove", "rack7", "w1"])?;
    lab.wait_for("rack7", "w1 has left", within(300), |s| members(s) == ["cp1", "cp2", "w2"])?;
    assert_eq!(ready(&lab)?, ["cp1", "cp2", "w2"]);
    let events = lab.events("rack7")?;
    let at = |text: &str| events.iter().position(|e| e.contains(text)).unwrap_or_else(|| panic!("{text}: {events:#?}"));
    assert!(at("w1: its pods are elsewhere") < at("w1: kubeadm reset is ordered"));
    assert!(at("w1: kubeadm has undone its part") < at("w1: has left"));
    let end = Instant::now() + within(120);
    loop {
        let pods =
            ["get", "pods", "-l", "app=web", "--no-headers", "-o", "custom-columns=:spec.nodeName,:status.phase"];
        let pods = lab.kubectl("rack7", &pods)?;
        let running: Vec<&str> = pods.lines().filter(|line| line.ends_with("Running")).collect();
        if running.len() == 2 && running.iter().all(|line| line.starts_with("w2")) {
            break;
        }
        assert!(Instant::now() < end, "{pods}");
    }
    // Nothing of the cluster is left on it, and its machine is in the pool.
    w1.shell("! systemctl is-active --quiet kubelet && ! test -e /etc/kubernetes/kubelet.conf", within(20))?;
    let machine = lab.nkd.machine(&lab.net, "w1")?;
    assert!(machine["assignment"].is_null() && machine["accepted"] == true, "{machine:#}");

    // The first control plane leaves: etcd goes on with the other one, and so does every node.
    lab.nkd(&["cluster", "remove", "rack7", "cp1"])?;
    lab.wait_for("rack7", "cp1 has left", within(300), |s| members(s) == ["cp2", "w2"])?;
    cp1.power_cut()?;
    std::fs::remove_file(lab.net.folder().join("kubeconfig-rack7")).unwrap();
    let status = lab.wait_ready("rack7", within(120))?;
    assert_eq!(status["endpoints"], serde_json::json!(["192.0.2.12:6443"]), "{status:#}");
    assert_eq!(ready(&lab)?, ["cp2", "w2"]);
    // What mirrors the pods of a node that is gone goes a while after it.
    let end = Instant::now() + within(180);
    loop {
        let etcd = ["-n", "kube-system", "get", "pods", "-l", "component=etcd", "-o", "name"];
        let etcd = lab.kubectl("rack7", &etcd)?;
        if etcd.trim() == "pod/etcd-cp2" {
            break;
        }
        assert!(Instant::now() < end, "{etcd}");
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    // The last one has to stay.
    let told = lab.nkd(&["cluster", "remove", "rack7", "cp2"]).unwrap_err().to_string();
    assert!(told.contains("cannot be without cp2"), "{told}");

    // A machine that died is taken out without asking it.
    w2.power_cut()?;
    lab.nkd(&["cluster", "remove", "rack7", "w2", "--lost"])?;
    lab.wait_for("rack7", "w2 has left", within(120), |s| members(s) == ["cp2"])?;
    assert_eq!(ready(&lab)?, ["cp2"]);

    lab.nkd(&["cluster", "destroy", "rack7", "--confirm", "rack7"])?;
    let end = Instant::now() + within(200);
    while lab.nkd(&["cluster", "status", "rack7"]).is_ok() {
        assert!(Instant::now() < end, "{}", lab.nkd(&["cluster", "events", "rack7"])?);
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    cp2.shell("! test -e /etc/kubernetes/pki/ca.key && ! test -e /var/lib/etcd/member", within(20))?;
    Ok(())
}
