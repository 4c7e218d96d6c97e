//! Whole machines and whole networks, for tests that read as prose and for the lab.
//!
//! ```no_run
//! use nkd_vm_tests::{Firmware, Machine, Network, within};
//! use std::process::Command;
//!
//! # fn main() -> Result<(), nkd_vm_tests::Error> {
//! let net = Network::create("boot")?;
//! let mut service = net.spawn("nkd", Command::new("target/debug/nkd"))?;
//! let mut machine = Machine::named("bios-1").firmware(Firmware::Bios).disk_gib(8).start(&net)?;
//! machine.console().expect("iPXE", within(60))?;
//! service.kill()?;
//! service.start_again()?;
//! machine.console().expect("login:", within(300))?;
//! machine.power_off(within(60))?;
//! # Ok(())
//! # }
//! ```
//!
//! Where firmware, kernel and disk do not matter, a [`Node`] is a machine that is up in a second: namespaces of its own with
//! real systemd as the first process, on which containerd, the kubelet and kubeadm run.
//!
//! ```no_run
//! use nkd_vm_tests::{Error, Images, Network, Node, bridge_pods, kubernetes_folder, within};
//!
//! # fn main() -> Result<(), Error> {
//! let net = Network::create("cluster")?;
//! let folder = kubernetes_folder()?;
//! let mut cp1 = Node::named("cp1").address("192.0.2.11/24").kubernetes(&folder, "v1.20.2").start(&net)?;
//! cp1.expect_unit_active("containerd", within(30))?;
//! cp1.import_images(Images::ControlPlane, within(120))?;
//! bridge_pods(&mut [&mut cp1])?;
//! cp1.shell("kubeadm init --skip-phases=addon/coredns", within(240))?;
//! cp1.power_cut()?;
//! cp1.power_on()?;
//! # Ok(())
//! # }
//! ```
//!
//! A node leaves this computer as it was: it has devices, control groups and the kernel's settings of the network for
//! itself, and can write none of the others. It wants control groups of version 1, and a folder that does not lie below
//! `/usr`, `/etc`, `/var` or `/opt`, over which its own lie.
//!
//! A [`Network`] is a network namespace of its own with a bridge. A [`Machine`] is a QEMU guest on that bridge, a
//! [`Host`] a further namespace on it, a [`Service`] a process inside one of them. All of them, nodes too, are torn down
//! when they are dropped, in a panic too; what a killed program left behind is removed when the next one starts.
//!
//! Every wait has a limit. Logs, screenshots and captures of a network are kept in its folder,
//! `$NKD_VM_TEST_DIR/<name>` or `target/vm-tests/<name>`, until a network of that name is made again.
//!
//! It wants root, `iproute2` and QEMU; what is missing is named in the error with its Debian package.

mod budgeted;
mod by_hand;
mod cluster;
mod error;
mod fault_table;
mod faults;
mod folder;
mod lab_cluster;
mod machine;
mod network;
mod node;
mod other_dhcp;
mod process;
mod programs;
mod ready_machines;
mod remote;
mod rollout;
mod service;

use std::time::Duration;

pub use budgeted::budgeted_pods;
pub use by_hand::install_by_hand;
pub use cluster::LabCluster;
pub use error::{ConsoleFailure, Error};
pub use fault_table::FaultTable;
pub use faults::{Harm, Saboteur};
pub use lab_cluster::{ClusterFile, ClusterLab, KUBERNETES, LabMember, LabPrograms};
pub use machine::Machine;
pub use machine::accel::Accelerator;
pub use machine::boot_sector;
pub use machine::console::{Console, Seen};
pub use machine::disk::{DiskCache, golden_disk};
pub use machine::spec::{BootOrder, Firmware, MachineSpec, Nic};
pub use network::capture::Capture;
pub use network::namespace::{HttpAnswer, Namespace};
pub use network::{Host, Network};
pub use node::containerd::{Images, bridge_pods, bridge_pods_in, kubernetes_folder};
pub use node::spec::NodeSpec;
pub use node::{Ending, Node};
pub use other_dhcp::other_dhcp;
pub use process::{Output, Service};
pub use programs::built;
pub use ready_machines::ReadyMachines;
pub use remote::{Remote, SshKey};
pub use rollout::{Answers, Probe, Rollout, switch_on};
pub use service::{Builds, Clock, DhcpMode, Nkd};

/// A limit in seconds for a wait, as in `console.expect("login:", within(300))`. `NKD_VM_PATIENCE=3` makes all of them
/// three times as long, for a slow or a busy computer.
pub fn within(seconds: u64) -> Duration {
    Duration::from_secs(seconds).mul_f64(folder::patience())
}
