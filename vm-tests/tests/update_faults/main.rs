//! What goes wrong while a cluster is upgraded: programs that are killed and power that is cut at every step, and all else that
//! may happen in the middle. Real are the service, housekeeper, the agents, kubeadm, kubelet, containerd and etcd; deployments
//! and boot loader are played by a program of the nodes (`vm-tests/src/node/deployments.rs`). Upgrades are begun by the
//! service, to commits that are published in a channel.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

mod back;
mod planes;
mod scenarios;
mod scene;
mod steps;

use nkd_vm_tests::{Error, FaultTable};
use scene::Scene;
use steps::{Fault, STEPS};

type Result<T = ()> = std::result::Result<T, Error>;

/// One fault at every step of a rollout, each of which ends on the old or the new release.
fn at_every_step(fault: Fault, name: &str) -> Result {
    let mut scene = Scene::start(name, 1)?;
    let mut table = FaultTable::new(STEPS.iter().copied(), [fault.name()]);
    let outcome = scene.rollout_under(fault, &mut table);
    let path = table.write(scene.lab.net.folder())?;
    println!("{table}\nis {}", path.display());
    outcome?;
    for step in STEPS {
        assert!(table.get(step, fault.name()).is_some(), "{step} was not hit by {}: {table}", fault.name());
    }
    Ok(())
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn power_is_cut_at_every_step() -> Result {
    at_every_step(Fault::Power, "update-power")
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn the_operator_is_killed_at_every_step() -> Result {
    at_every_step(Fault::Operator, "update-operator")
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn the_service_is_killed_at_every_step() -> Result {
    at_every_step(Fault::Service, "update-service")
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn the_updater_is_killed_at_every_step() -> Result {
    at_every_step(Fault::Main, "update-updater")
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn the_updater_and_its_children_are_killed_at_every_step() -> Result {
    at_every_step(Fault::Unit, "update-children")
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn two_starts_at_once_an_impossible_budget_and_a_full_disk() -> Result {
    Scene::start("update-two-starts", 2)?.two_starts_a_budget_and_a_full_disk()
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn of_two_updates_one_waits_and_silent_agents_are_given_up() -> Result {
    Scene::start("update-silent", 2)?.two_updates_and_silent_agents()
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn the_api_server_is_away_and_clocks_of_nodes_jump() -> Result {
    Scene::start("update-api-away", 2)?.no_api_server_and_other_clocks()
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn the_clock_of_the_operator_jumps() -> Result {
    Scene::start("update-clock", 2)?.an_operator_with_another_clock()
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn the_clock_jumps_in_front_of_a_window() -> Result {
    Scene::start("update-window", 2)?.a_clock_in_front_of_a_window()
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn nodes_are_deleted_and_a_machine_is_lost() -> Result {
    Scene::start("update-gone", 2)?.nodes_that_go_away()
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn three_control_planes_go_one_after_the_other_and_their_worker_last() -> Result {
    Scene::of("update-planes", 3, 1)?.control_planes_one_after_the_other()
}

#[test]
#[ignore = "takes minutes: cargo xtask soak update_faults"]
fn a_control_plane_goes_back_across_versions_and_a_node_comes_later() -> Result {
    Scene::start("update-back", 1)?.a_control_plane_goes_back()
}
