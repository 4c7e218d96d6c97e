//! From two blank disks to a Ready cluster, on real machines, by one service and one cluster file, with a proven snapshot of
//! its etcd and a power cut; and, in a soak, back to the release before from one that does not start.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nkd_vm_tests::{Error, LabCluster, ReadyMachines, Rollout, within};
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Error>;

/// The worker.
const WORKER: &str = LabCluster::MACHINES[1];
/// So long may the API be away when the emulator has brought its machine to a halt, and it was reset.
fn away() -> Duration {
    within(600)
}

/// Asks that the worker alone goes to a release that has no init.
fn ask_for_one_without_init(rollout: &Rollout<'_>, image: &std::path::Path) -> Result {
    rollout.publish(&image.join("repo"), LabCluster::KUBERNETES)?;
    let overlay = rollout.net.folder().join("overlay");
    let init = overlay.join("usr/lib/systemd/systemd");
    std::fs::create_dir_all(init.parent().unwrap()).unwrap();
    std::fs::write(&init, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755)).unwrap();
    rollout.publish(&rollout.spoil(image, "2", &overlay)?, LabCluster::KUBERNETES)?;
    let channel = rollout.nkd.json(rollout.net, &["channel", "show", "stable"])?;
    let commit = channel["releases"].as_array().unwrap().last().unwrap()["commit"].clone();
    let update = json!({
        "apiVersion": "nkd.io/v1alpha1", "kind": "Update", "metadata": {"name": "no-init"},
        "spec": {
            "release": {"name": "no-init", "os": {"commit": commit}},
            "nodeSelector": {"kubernetes.io/hostname": WORKER}, "strategy": {"haltAfterFailures": 1},
        },
    });
    let path = rollout.net.folder().join("update.json");
    std::fs::write(&path, update.to_string()).unwrap();
    let words = ["apply", "-f", &path.display().to_string()];
    rollout.cluster.kubectl_until_answered(rollout.net, &words, away()).map(drop)
}

/// Waits until kubectl shows both nodes Ready, with the version and the image that they were made of.
fn wait_for_nodes(rollout: &Rollout<'_>) -> Result {
    let end = Instant::now() + away();
    loop {
        let nodes = rollout.cluster.kubectl_until_answered(rollout.net, &["get", "nodes", "--output=wide"], away())?;
        let ready = |name: &str| {
            let line = nodes.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let made_of = words.contains(&LabCluster::KUBERNETES) && line.contains("NKD lab node image");
            words.get(1) == Some(&"Ready") && made_of
        };
        if LabCluster::MACHINES.into_iter().all(ready) {
            println!("{nodes}");
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(Error::Unexpected { what: "both nodes are Ready".into(), got: nodes });
        }
        std::thread::sleep(Duration::from_secs(3));
    }
}

/// Waits until the only snapshot of etcd was verified: the programs of the image took it and proved it.
fn wait_until_verified(rollout: &Rollout<'_>, limit: Duration) -> Result {
    let end = Instant::now() + limit;
    loop {
        let all = rollout.nkd.json(rollout.net, &["cluster", "snapshot", "list", LabCluster::NAME])?;
        let snapshot = &all[0];
        if snapshot["state"] == "verified" {
            assert!(snapshot["proof"]["keys"].as_u64().unwrap() > 100, "{snapshot:#}");
            return Ok(());
        }
        if snapshot["state"] == "failed" || Instant::now() >= end {
            return Err(Error::Unexpected { what: "the snapshot is verified".into(), got: format!("{all:#}") });
        }
        std::thread::sleep(Duration::from_secs(3));
    }
}

/// Waits until that update has halted because the boot loader went back, and the worker takes pods again.
fn wait_until_it_went_back(rollout: &Rollout<'_>, limit: Duration) -> Result {
    let get = |words: &[&str]| -> Result<Value> {
        let words = [&["get"], words, &["-o", "json"]].concat();
        let text = rollout.cluster.kubectl_until_answered(rollout.net, &words, away())?;
        serde_json::from_str(&text).map_err(|_| Error::Unexpected { what: "JSON".into(), got: text })
    };
    let end = Instant::now() + limit;
    loop {
        let (update, node) = (get(&["nkdupdate", "no-init"])?, get(&["node", WORKER])?);
        let said = update["status"]["conditions"].to_string();
        let went_back = said.contains("rolled back") && said.contains("did not come up");
        if update["status"]["phase"] == "Halted" && went_back && node["spec"]["unschedulable"].is_null() {
            return Ok(());
        }
        if Instant::now() >= end {
            let got = format!("{:#}\n{:#}", update["status"], node["spec"]);
            return Err(Error::Unexpected { what: format!("{WORKER} went back, and takes pods"), got });
        }
        std::thread::sleep(Duration::from_secs(3));
    }
}

#[test]
fn two_blank_machines_become_a_ready_cluster_and_are_given_back() -> Result {
    let mut chain = ReadyMachines::start("whole-chain", false)?;
    wait_for_nodes(&chain.rollout())?;
    chain.nkd.nkd(&chain.net, &["cluster", "snapshot", "take", LabCluster::NAME])?;
    wait_until_verified(&chain.rollout(), within(300))?;
    chain.cycle_power(1)?;

    // Taken apart, the machines are back in the pool, and what was on their disks boots no more.
    let ReadyMachines { nkd, machines, net, .. } = &mut chain;
    nkd.nkd(net, &["cluster", "destroy", LabCluster::NAME, "--confirm", LabCluster::NAME])?;
    for machine in machines {
        let name = machine.name().to_owned();
        let pooled = nkd.wait_until(net, &name, "it is wiped", within(400), |m| {
            m["assignment"].is_null() && m["installedGeneration"].is_null()
        })?;
        assert_eq!(pooled["phase"]["name"], "discovered", "{pooled:#}");
        machine.power_cut()?;
        assert!(machine.disk_begins_with_zeros()?, "{name} would boot");
    }
    assert_eq!(nkd.json(net, &["cluster", "list"])?, json!([]), "nothing of it is left");
    Ok(())
}

/// The worker starts a release without an init three times in vain, and its boot loader goes back; meanwhile the only control
/// plane is away.
#[test]
#[ignore = "takes half an hour: cargo xtask soak"]
fn a_boot_loader_goes_back_while_the_only_control_plane_is_away() -> Result {
    let mut chain = ReadyMachines::start("goes-back", true)?;
    let deployment = |chain: &ReadyMachines| {
        Ok::<_, Error>(chain.nkd.machine(&chain.net, WORKER)?["facts"]["bootedDeployment"].clone())
    };
    let before = deployment(&chain)?;
    ask_for_one_without_init(&chain.rollout(), &chain.image)?;
    chain.machines[1].console().expect("(boot_counter=2)", within(600))?;
    chain.cycle_power(0)?;
    wait_until_it_went_back(&chain.rollout(), within(300))?;
    assert_eq!(deployment(&chain)?, before);
    let said = chain.machines[1].console().text();
    assert!(["(boot_counter=1)", "(boot_counter=0)", "Kernel panic"].iter().all(|text| said.contains(text)), "{said}");
    Ok(())
}
