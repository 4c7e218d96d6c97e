//! What the machine says of itself, read from sysfs, procfs and a few files.
//!
//! Everything is read below a [`Root`], so that the tests read fixture trees.

pub mod block;
pub mod net;
mod room;
mod root;
mod system;
#[cfg(test)]
mod tests;

use nkd_api::facts::{ETCD_SNAPSHOT, Facts};

pub use net::Addresses;
pub use root::Root;

/// Looks at the machine.
#[must_use]
pub fn gather(root: &Root, addresses: &Addresses) -> Facts {
    let (cpu_model, cpus) = system::processors(root);
    let (os, os_version) = system::os(root);
    let live = system::live(root);
    let disks = block::list(root).into_iter().filter(|device| !device.removable && !device.read_only);
    Facts {
        architecture: std::env::consts::ARCH.to_owned(),
        firmware: system::firmware(root),
        uuid: system::uuid(root),
        serial: system::board(root, "product_serial"),
        vendor: system::board(root, "sys_vendor"),
        product: system::board(root, "product_name"),
        cpu_model,
        cpus,
        memory_bytes: system::memory(root),
        disks: disks.map(|device| device.disk).collect(),
        nics: net::list(root, addresses),
        kernel: root.text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        os,
        os_version,
        booted_deployment: if live { None } else { system::deployment(root) },
        room: if live { Vec::new() } else { room::room(root) },
        live,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        can: vec![ETCD_SNAPSHOT.to_owned()],
    }
}

/// Identity of this boot.
#[must_use]
pub fn boot_id(root: &Root) -> String {
    root.text("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Time since the kernel started.
#[must_use]
pub fn uptime(root: &Root) -> std::time::Duration {
    let text = root.text("/proc/uptime").unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
    std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
