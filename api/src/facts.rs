//! What a machine says of itself.

use serde::{Deserialize, Serialize};

use crate::MacAddr;

/// Hardware and system facts, gathered by the agent on the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, rename_all = "camelCase")]
pub struct Facts {
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// How this system was booted.
    pub firmware: Firmware,
    /// SMBIOS system UUID, lower case, when the board has a usable one.
    pub uuid: Option<String>,
    /// SMBIOS serial number.
    pub serial: Option<String>,
    /// SMBIOS manufacturer.
    pub vendor: Option<String>,
    /// SMBIOS product name.
    pub product: Option<String>,
    /// Model name of the first processor.
    pub cpu_model: String,
    /// Logical processors.
    pub cpus: u32,
    /// Bytes of memory that the kernel manages.
    pub memory_bytes: u64,
    /// Whole disks that could take an installation.
    pub disks: Vec<Disk>,
    /// Network interfaces with a hardware address.
    pub nics: Vec<Nic>,
    /// Kernel release.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    /// Version of the node image, `NESTOS_VERSION` or `VERSION_ID`.
    pub os_version: String,
    /// Checksum of the booted ostree deployment; none on a live system.
    pub booted_deployment: Option<String>,
    /// True on a live (network-booted, memory only) system.
    pub live: bool,
    /// What is free where a node keeps its system; empty: it has not said. In steps: it is told when it changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub room: Vec<Room>,
    /// Version of the agent.
    pub agent_version: String,
    /// What the agent can do that not every agent before it could, [`ETCD_SNAPSHOT`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub can: Vec<String>,
}

/// In [`Facts::can`]: it takes snapshots of etcd.
pub const ETCD_SNAPSHOT: &str = "etcd-snapshot";

/// A file system of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, rename_all = "camelCase")]
pub struct Room {
    /// `/sysroot` (`/` on a system that has none); `/boot` and `/var` where they are file systems of their own.
    pub path: String,
    /// Bytes that are free there, at least.
    pub free_bytes: u64,
}

/// Boot firmware.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// Not known yet.
    #[default]
    Unknown,
    /// PC BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

/// One whole disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, rename_all = "camelCase")]
pub struct Disk {
    /// Device node, `/dev/vda`.
    pub device: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Model as the kernel reads it.
    pub model: Option<String>,
    /// Serial as the kernel reads it.
    pub serial: Option<String>,
    /// Spinning disk.
    pub rotational: bool,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// Kernel name, `eth0`.
    pub name: String,
    /// Hardware address.
    pub mac: MacAddr,
    /// Carrier seen.
    #[serde(default)]
    pub up: bool,
    /// Addresses with prefix length.
    #[serde(default)]
    pub addresses: Vec<String>,
}
