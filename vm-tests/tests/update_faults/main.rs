//! What goes wrong while a cluster is upgraded: programs that are killed and power that is cut at every step, and all else that
//! may happen in the middle. Real are the service, housekeeper, the agents, kubeadm, kubelet, containerd and etcd; deployments
//! and boot loader are played by a program of the nodes (`vm-tests/src/node/deployments.rs`). Upgrades are begun by the
//! service, to commits that are published in a channel.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

mod scenarios;
mod scene;
mod steps;

use nkd_vm_tests::{Error, FaultTable};
use scene::Scene;
use steps::{FAULTS, Fault, STEPS};

type Result<T = ()> = std::result::Result<T, Error>;

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn every_fault_at_every_step_ends_on_the_old_or_the_new_release() -> Result {
    let mut scene = Scene::start("update-faults", 1)?;
    let mut table = FaultTable::new(STEPS, &FAULTS.map(Fault::name));
    let mut outcome = Ok(());
    for fault in FAULTS {
        outcome = scene.rollout_under(fault, &mut table);
        println!("{table}");
        if outcome.is_err() {
            break;
        }
    }
    let path = table.write(scene.lab.net.folder())?;
    println!("{table}\nis {}", path.display());
    outcome?;
    for step in STEPS {
        for fault in FAULTS {
            assert!(table.get(step, fault.name()).is_some(), "{step} was not hit by {}: {table}", fault.name());
        }
    }
    Ok(())
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn whatever_else_goes_wrong_is_told_and_the_upgrade_goes_on() -> Result {
    let mut scene = Scene::start("update-scenarios", 2)?;
    scene.two_starts_a_budget_and_a_full_disk()?;
    scene.two_updates_and_silent_agents()?;
    scene.no_api_server_and_other_clocks()?;
    scene.an_operator_with_another_clock()?;
    scene.nodes_that_go_away()
}
