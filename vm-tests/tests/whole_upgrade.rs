//! An upgrade on real machines: from one lab image to the next with a newer Kubernetes, by the service's own channel; then a
//! release whose kubelet does not run. Real ostree, boot loader, restarts, kubeadm, housekeeper, and pods that answer all the while.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nkd_vm_tests::{
    Builds, DhcpMode, Error, LabCluster, Machine, Network, Nkd, Rollout, kubernetes_folder, switch_on, within,
};

type Result<T = ()> = std::result::Result<T, Error>;

/// The workload may be silent for so long: a node that has gone away without being drained would cost more.
const SILENCE: Duration = Duration::from_secs(40);
/// In the release that is ill the gate is narrow, so that the test ends before its reader does.
const NARROW: &str = "[Service]\nExecStart=\nExecStart=/usr/bin/nkd-agent update --gate 240\n";

fn built(variable: &'static str) -> Result<PathBuf> {
    let remedy = "run this through `cargo xtask soak`, which builds it";
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.exists());
    path.ok_or(Error::NotBuilt { variable, remedy })
}

fn deployments(net: &Network, nkd: &Nkd) -> Result<Vec<String>> {
    let of = |name: &&str| Ok(nkd.machine(net, name)?["facts"]["bootedDeployment"].as_str().unwrap_or("?").to_owned());
    LabCluster::MACHINES.iter().map(of).collect()
}

#[test]
#[ignore = "takes most of an hour: cargo xtask soak"]
fn two_machines_go_to_the_next_release_and_back_from_an_ill_one() -> Result {
    let (image, newer) = (built("NKD_CLUSTER_IMAGE")?, built("NKD_NEWER_IMAGE")?);
    let net = Network::create("whole-upgrade")?;
    let builds = Builds { image, ..Builds::program_from_environment()? };
    let nkd = Nkd::start(&net, &builds, DhcpMode::Server, &[])?;
    nkd.nkd(&net, &["image", "import", &builds.image.display().to_string(), "--name", "lab"])?;
    let cluster = LabCluster::with_housekeeper(&net, &kubernetes_folder()?)?;
    let rollout = Rollout { cluster: &cluster, net: &net, nkd: &nkd };
    rollout.push_housekeeper(&built("NKD_HOUSEKEEPER")?)?;
    nkd.nkd(&net, &["cluster", "apply", "-f", &cluster.file().display().to_string()])?;
    let mut machines: Vec<Machine> =
        LabCluster::machines().into_iter().map(|spec| spec.start(&net)).collect::<Result<_>>()?;
    LabCluster::wait_until(&net, &nkd, "the cluster is Ready", within(1500), LabCluster::is_ready)?;
    cluster.access(&net, &nkd)?;
    let probe = rollout.run_workload()?;
    rollout.publish(&builds.image.join("repo"), LabCluster::KUBERNETES)?;
    rollout.publish(&newer.join("repo"), LabCluster::NEWER)?;

    rollout.start(2)?;
    let told = |line: &str| println!("{line}");
    let done = rollout.wait_for("complete", within(2400), || switch_on(&mut machines), told)?;
    let answers = probe.end();
    println!("the workload answered {} times, at most {:?} apart", answers.good, answers.gap);
    assert!(answers.good > 0 && answers.gap < SILENCE, "{answers:?}");
    let nodes = cluster.kubectl(&net, &["get", "nodes", "--output=wide"])?;
    let new = |name: &str| {
        let line = nodes.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.contains(" Ready ") && line.contains(LabCluster::NEWER) && line.contains("NKD lab node image 2")
    };
    assert!(LabCluster::MACHINES.into_iter().all(new), "{nodes}");
    let second = done["commit"].as_str().unwrap().to_owned();
    assert_eq!(deployments(&net, &nkd)?, [second.clone(), second.clone()]);

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
    let halted = rollout.wait_for("halted", within(2400), || switch_on(&mut machines), told)?;
    let said = halted["detail"].as_str().unwrap_or_default();
    assert!(said.contains("bios-1: rolled back: not healthy after 240 s"), "{halted:#}");
    LabCluster::wait_until(&net, &nkd, "the cluster is well again", within(600), LabCluster::is_ready)?;
    assert_eq!(deployments(&net, &nkd)?, [second.clone(), second]);
    nkd.nkd(&net, &["upgrade", "abort", LabCluster::NAME])?;
    rollout.wait_for("aborted", within(120), || switch_on(&mut machines), told)?;
    Ok(())
}
