//! An upgrade on real machines: from one lab image to the next with a newer Kubernetes, by the service's own channel; then a
//! release whose kubelet does not run. Real ostree, boot loader, restarts, kubeadm, housekeeper, and pods that answer all the while.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nkd_vm_tests::{Error, LabCluster, Network, Nkd, ReadyMachines, Rollout, built, switch_on, within};

type Result<T = ()> = std::result::Result<T, Error>;

/// The workload may be silent for so long: a node that has gone away without being drained would cost more.
const SILENCE: Duration = Duration::from_secs(40);
/// In the release that is ill the gate is narrow, so that the test ends before its reader does.
const NARROW: &str = "[Service]\nExecStart=\nExecStart=/usr/bin/nkd-agent update --gate 240\n";

fn deployments(net: &Network, nkd: &Nkd) -> Result<Vec<String>> {
    let of = |name: &&str| Ok(nkd.machine(net, name)?["facts"]["bootedDeployment"].as_str().unwrap_or("?").to_owned());
    LabCluster::MACHINES.iter().map(of).collect()
}

#[test]
#[ignore = "takes most of an hour: cargo xtask soak"]
fn two_machines_go_to_the_next_release_and_back_from_an_ill_one() -> Result {
    let newer = built("NKD_NEWER_IMAGE")?;
    let mut lab = ReadyMachines::start("whole-upgrade", false)?;
    let ReadyMachines { image, cluster, nkd, machines, net } = &mut lab;
    let rollout = Rollout { cluster, net, nkd };
    let probe = rollout.run_workload()?;
    rollout.publish(&image.join("repo"), LabCluster::KUBERNETES)?;
    rollout.publish(&newer.join("repo"), LabCluster::NEWER)?;

    rollout.start(2)?;
    let told = |line: &str| println!("{line}");
    let done = rollout.wait_for("complete", within(2400), || switch_on(machines), told)?;
    let answers = probe.end();
    println!("the workload answered {} times, at most {:?} apart", answers.good, answers.gap);
    assert!(answers.good > 0 && answers.gap < SILENCE, "{answers:?}");
    let nodes = cluster.kubectl(net, &["get", "nodes", "--output=wide"])?;
    let new = |name: &str| {
        let line = nodes.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.contains(" Ready ") && line.contains(LabCluster::NEWER) && line.contains("NKD lab node image 2")
    };
    assert!(LabCluster::MACHINES.into_iter().all(new), "{nodes}");
    let second = done["commit"].as_str().unwrap().to_owned();
    assert_eq!(deployments(net, nkd)?, [second.clone(), second.clone()]);

    // A release whose kubelet does not run.
    let overlay = net.folder().join("overlay");
    let unit = overlay.join("usr/lib/systemd/system/nkd-updater.service.d");
    std::fs::create_dir_all(overlay.join("usr/bin")).unwrap();
    std::fs::create_dir_all(&unit).unwrap();
    std::fs::write(unit.join("10-narrow.conf"), NARROW).unwrap();
    let kubelet = overlay.join("usr/bin/kubelet");
    let says = format!("#!/bin/sh\n[ \"$1\" = --version ] && echo Kubernetes {} && exit\nexit 7\n", LabCluster::NEWER);
    std::fs::write(&kubelet, says).unwrap();
    std::fs::set_permissions(&kubelet, std::fs::Permissions::from_mode(0o755)).unwrap();
    rollout.publish(&rollout.spoil(&newer, "3", &overlay)?, LabCluster::NEWER)?;
    rollout.start(3)?;
    let halted = rollout.wait_for("halted", within(2400), || switch_on(machines), told)?;
    let said = halted["detail"].as_str().unwrap_or_default();
    assert!(said.contains("bios-1: rolled back: not healthy after 240 s"), "{halted:#}");
    LabCluster::wait_until(net, nkd, "the cluster is well again", within(600), LabCluster::is_ready)?;
    assert_eq!(deployments(net, nkd)?, [second.clone(), second]);
    nkd.nkd(net, &["upgrade", "abort", LabCluster::NAME])?;
    rollout.wait_for("aborted", within(120), || switch_on(machines), told)?;
    Ok(())
}
