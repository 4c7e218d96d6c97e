//! What an agent is to do (pure).

use nkd_api::agent::{InstallTask, Purpose, Task};
use nkd_api::image::{ArtifactKind, Image};
use nkd_api::machine::Machine;
use nkd_api::profile::Profile;

use super::pki::NodeIdentity;

/// What the certificate of a node is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It belongs to the boot that counts.
    Current,
    /// Its boot or generation is over: whoever holds it starts again.
    Over,
    /// Another boot has taken its configuration since, and yet this one speaks: two parties act as one machine.
    Contested,
}

/// Compares a certificate with the record of its machine.
#[must_use]
pub fn standing(machine: &Machine, node: NodeIdentity) -> Standing {
    let wanted = if node.purpose == Purpose::Discovery { 0 } else { machine.generation };
    let discovered_before =
        node.purpose == Purpose::Discovery && machine.generation > 0 && machine.assignment.is_some();
    match machine.current_boot {
        // A live system of an older order, or a node whose disk is to be written anew, may go on speaking for a while.
        _ if node.generation != wanted || discovered_before => Standing::Over,
        Some(boot) if boot == node.boot => Standing::Current,
        Some(_) => Standing::Contested,
        None => Standing::Over,
    }
}

/// The task of the node that holds this certificate.
#[must_use]
pub fn task(machine: &Machine, node: NodeIdentity, image: Option<(&Image, &Profile)>, boot_url: &str) -> Task {
    if let Some(reason) = &machine.stopped {
        return Task::Stop { reason: reason.clone() };
    }
    let name = &machine.name;
    let (wanted, on_disk) = (machine.generation, machine.installed_generation == Some(machine.generation));
    match node.purpose {
        Purpose::Discovery => match (&machine.assignment, machine.accepted) {
            (Some(_), true) if !on_disk => {
                Task::Reboot { reason: format!("{name} is assigned: the next boot installs it") }
            }
            (Some(_), true) => Task::Reboot { reason: format!("{name} has its system on its disk") },
            (_, false) => Task::Wait { reason: format!("{name} waits to be accepted: nkd machine accept {name}") },
            (None, true) => {
                Task::Wait { reason: format!("nothing is assigned to {name}: nkd machine assign {name} --image NAME") }
            }
        },
        Purpose::Install if on_disk => Task::Reboot { reason: format!("generation {wanted} is on the disk of {name}") },
        Purpose::Install if node.generation != wanted => {
            Task::Reboot { reason: format!("generation {} is over, generation {wanted} is wanted", node.generation) }
        }
        Purpose::Install if standing(machine, node) != Standing::Current => {
            Task::Reboot { reason: format!("this boot of {name} is over") }
        }
        Purpose::Install => {
            let disk_image = image.and_then(|(i, p)| Some((i, p, i.artifact(ArtifactKind::Disk)?)));
            let (Some(assignment), Some((image, profile, disk))) = (&machine.assignment, disk_image) else {
                return Task::Wait {
                    reason: format!("the image of {name} has no disk image in the store: nkd image import"),
                };
            };
            let append_kargs = profile.installed_args.iter().chain(&assignment.kernel_args).cloned().collect();
            Task::Install(InstallTask {
                generation: wanted,
                image_url: format!("{boot_url}/images/{}/disk", image.name),
                image_sha256: disk.sha256,
                image_size: disk.size,
                disk: assignment.install_disk.clone(),
                installer: profile.installer.clone(),
                append_kargs,
                firstboot_args: String::new(),
            })
        }
        Purpose::Node if machine.wipe_generation.is_some_and(|wipe| node.generation <= wipe) => {
            Task::Wipe { generation: node.generation }
        }
        Purpose::Node if node.generation != wanted => {
            Task::Wait { reason: format!("generation {wanted} is wanted: network-boot {name} to install it") }
        }
        Purpose::Node => Task::Run,
    }
}
