//! A snapshot of etcd on the real thing: one control plane and a worker with real kubeadm. What takes it, and what keeps it,
//! is killed and cut off in the middle; then what was changed afterwards is undone as docs/restore.md says.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nkd_vm_tests::{ClusterFile, ClusterLab, Error, Node, bridge_pods, within};
use serde_json::Value;

type Result<T = ()> = std::result::Result<T, Error>;

/// What is tried here is what people are told.
const RESTORE: &str = include_str!("../../docs/restore.md");

/// Looks again and again until it fits.
fn until(what: &str, limit: Duration, mut fits: impl FnMut() -> Result<bool>) -> Result {
    let end = Instant::now() + limit;
    while !fits()? {
        if Instant::now() >= end {
            return Err(Error::Unexpected { what: what.to_owned(), got: format!("not within {limit:?}") });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Where the run on a node is.
fn step(node: &Node) -> Option<String> {
    let path = node.folder().join("disk/var/upper/lib/nkd-agent/kubeadm.json");
    let entry: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Some(entry["state"]["step"].as_str()?.to_owned())
}

struct World {
    lab: ClusterLab,
    cp: Node,
}

impl World {
    /// Orders one; its identity.
    fn order(&self) -> Result<String> {
        let made = self.lab.nkd.json(&self.lab.net, &["cluster", "snapshot", "take", "rack7"])?;
        assert_eq!((&made["state"], &made["node"]), (&"taking".into(), &"cp1".into()), "{made:#}");
        Ok(made["id"].as_str().unwrap().to_owned())
    }

    fn at(&self, wanted: &str) -> Result {
        until(&format!("it is at {wanted}"), within(120), || Ok(step(&self.cp).as_deref() == Some(wanted)))
    }

    fn row(&self, id: &str) -> Result<Value> {
        let all = self.lab.nkd.json(&self.lab.net, &["cluster", "snapshot", "list", "rack7"])?;
        Ok(all.as_array().unwrap().iter().find(|row| row["id"] == id).cloned().unwrap_or_default())
    }

    fn expect_verified(&self, id: &str) -> Result<Value> {
        let mut last = Value::Null;
        let seen = until("the snapshot is verified", within(300), || {
            last = self.row(id)?;
            assert_ne!(last["state"], "failed", "{last:#}\n{}", self.cp.logs().unwrap_or_default());
            Ok(last["state"] == "verified")
        });
        seen.map_err(|error| Error::Unexpected { what: error.to_string(), got: format!("{last:#}") })?;
        assert!(last["proof"]["keys"].as_u64().unwrap() > 100, "{last:#}");
        let left = self.cp.shell("ls /var/lib/nkd-agent/etcd-snapshots; pgrep -cx etcd", within(20))?;
        assert!(left.contains(&format!("{id}.db")) && !left.contains("work") && left.trim().ends_with("\n1"), "{left}");
        Ok(last)
    }

    /// Files that are on their way to the service.
    fn coming(&self) -> bool {
        let state = self.lab.nkd.state().join("etcd-snapshots");
        let list = |folder: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let is_coming = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("coming-");
        list(&state).iter().flat_map(|cluster| list(cluster)).any(|path| is_coming(&path))
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.lab.kubectl("rack7", words)
    }
}

#[test]
#[ignore = "takes minutes: cargo xtask soak snapshot"]
fn a_snapshot_is_taken_through_kills_and_power_cuts_and_brings_the_old_state_back() -> Result {
    let lab = ClusterLab::start("snapshots")?;
    let file = ClusterFile::named("rack7").workers(1);
    lab.apply(&file)?;
    let members = file.members();
    let (mut cp, mut worker) = (lab.node(&members[0])?, lab.node(&members[1])?);
    for node in [&cp, &worker] {
        node.shell("systemctl enable nkd-agent", within(20))?;
    }
    bridge_pods(&mut [&mut cp, &mut worker])?;
    lab.wait_ready("rack7", within(400))?;
    let mut world = World { lab, cp };
    world.kubectl(&["create", "configmap", "before", "--from-literal=a=b"])?;

    // Much data, so that each step takes its time.
    let fill = "for i in $(seq 40); do head -c 900000 /dev/urandom | base64 -w0 | ETCDCTL_API=3 etcdctl \
        --endpoints=https://127.0.0.1:2379 --cacert=/etc/kubernetes/pki/etcd/ca.crt \
        --cert=/etc/kubernetes/pki/etcd/server.crt --key=/etc/kubernetes/pki/etcd/server.key put /nkd-test/$i >/dev/null; done";
    world.cp.shell(fill, within(240))?;

    // The agent is killed: what takes it goes on. Then that one is killed, and the etcd of the copy ends with it.
    let id = world.order()?;
    world.at("restore")?;
    world.cp.shell("systemctl kill --kill-who=main --signal=KILL nkd-agent || true", within(20))?;
    let proof = world.expect_verified(&id)?["proof"].clone();
    assert!(proof["etcdVersion"].as_str().unwrap().starts_with("3."), "{proof:#}");
    let id = world.order()?;
    world.at("prove")?;
    let killed = "systemctl kill --kill-who=main --signal=KILL 'nkd-kubeadm-*'; sleep 0.2; pgrep -cx etcd";
    assert_eq!(world.cp.shell(killed, within(20))?.trim(), "1", "the etcd of the copy outlives who started it");
    assert!(step(&world.cp).is_some(), "it was killed in the middle");
    world.expect_verified(&id)?;

    // The power goes in the middle of the next one.
    let id = world.order()?;
    world.at("prove")?;
    world.cp.power_cut()?;
    assert!(step(&world.cp).is_some(), "it was cut off in the middle");
    world.cp.power_on()?;
    bridge_pods(&mut [&mut world.cp, &mut worker])?;
    world.expect_verified(&id)?;
    world.lab.wait_ready("rack7", within(400))?;

    // The service is killed in the middle of the upload.
    let id = world.order()?;
    until("the upload goes on", within(300), || Ok(world.coming()))?;
    world.lab.nkd.process().kill()?;
    assert!(world.coming(), "it was killed in the middle");
    world.lab.nkd.process().start_again()?;
    world.lab.nkd.process().expect_log("nkd serves", within(60))?;
    let row = world.expect_verified(&id)?;
    assert!(!world.coming(), "what broke off is gone");
    assert!(row["proof"]["size"].as_u64().unwrap() > 40_000_000, "{row:#}");

    // What the service gives back is what etcd wrote, and brings the state of then.
    world.kubectl(&["delete", "configmap", "before"])?;
    world.kubectl(&["create", "configmap", "after", "--from-literal=a=b"])?;
    let copy = world.lab.net.folder().join("snapshot.db");
    let refused = world.lab.nkd(&["cluster", "snapshot", "get", "rack7", "00000000-0000-0000-0000-000000000000"]);
    assert!(refused.unwrap_err().to_string().contains("has no snapshot"));
    world.lab.nkd.nkd_into(&world.lab.net, &["cluster", "snapshot", "get", "rack7", &id], &copy)?;
    let mut sum = Command::new("sha256sum");
    let sum = sum.arg(&copy).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert_eq!(sum.split(' ').next(), row["proof"]["sha256"].as_str());
    world.cp.write_file("/root/snapshot.db", 0o600, &std::fs::read(&copy).unwrap())?;
    let blocks: Vec<&str> =
        RESTORE.split("```sh restore\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 4, "stop, restore, start, and every node");
    for block in &blocks {
        world.cp.shell(&format!("set -eu\n{block}"), within(240))?;
    }
    worker.shell(blocks[3], within(60))?;
    until("the old state is back", within(240), || {
        let maps = world.kubectl(&["get", "configmaps", "-o", "name"]).unwrap_or_default();
        Ok(maps.contains("configmap/before") && !maps.contains("configmap/after"))
    })?;
    world.lab.wait_ready("rack7", within(400))?;
    world.kubectl(&["create", "configmap", "later", "--from-literal=a=b"])?;
    // And it can be taken again.
    let id = world.order()?;
    world.expect_verified(&id)?;
    Ok(())
}
