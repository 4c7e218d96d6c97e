//! Settings: fragments (files, environment, flags), merged into inputs, read into validated [`Settings`].
//!
//! Rising order: defaults, `/etc/nkd/nkd.toml`, `/etc/nkd/nkd.d/*.toml` by name, environment `NKD_*` with `__` between
//! levels (`NKD_HTTP__API_LISTEN`), flags (`--set http.api_listen=...`). Every problem is reported, each with the name of
//! the setting and where the value came from.

mod fragments;
mod read;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

pub use fragments::{Inputs, Sources};

use crate::netboot::dhcp::{Mode, Reservation};

/// Validated settings of `nkd serve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// State: database, images, keys.
    pub state_dir: PathBuf,
    /// Key that secrets are sealed with.
    pub key_file: PathBuf,
    /// What machines are told to reach the service by; otherwise the address that they reached it by.
    pub advertise: Option<String>,
    /// Image for machines without an assignment.
    pub discovery_image: Option<String>,
    /// Operator's own Ignition templates, `<name>/template.bu`.
    pub templates_dir: Option<PathBuf>,
    /// Agent for images that do not carry it.
    pub agent_binary: Option<PathBuf>,
    /// Logs.
    pub log: LogSettings,
    /// DHCP.
    pub dhcp: DhcpSettings,
    /// TFTP.
    pub tftp: TftpSettings,
    /// HTTP.
    pub http: HttpSettings,
    /// Network boot.
    pub netboot: NetbootSettings,
    /// Registry of container images.
    pub registry: RegistrySettings,
    /// The right to restart, for nodes that ask for it.
    pub fleet_lock: FleetLockSettings,
    /// Channels of releases.
    pub channels: ChannelSettings,
}

impl Settings {
    /// As a settings file, which reads as the same settings.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogSettings {
    /// One JSON object a line instead of text.
    #[serde(rename = "format", serialize_with = "format_name")]
    pub json: bool,
    /// Filter, `info` or `nkd_server::netboot=debug,info`.
    pub filter: String,
}

/// DHCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DhcpSettings {
    /// Mode.
    pub mode: Mode,
    /// Interfaces.
    #[serde(rename = "interface", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<DhcpInterface>,
    /// Reservations.
    #[serde(rename = "reservation", skip_serializing_if = "Vec::is_empty")]
    pub reservations: Vec<Reservation>,
    /// Router advertisements.
    pub router_advertisements: bool,
    /// Conflict probe.
    pub conflict_probe: bool,
    /// In the mode `server`: boot scripts go only to the address that was leased to the machine.
    pub require_lease: bool,
}

/// One subnet. What is not given is taken from the interface when the service starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DhcpInterface {
    /// Interface name.
    pub name: String,
    /// Our address there.
    pub server_ip: Option<IpAddr>,
    /// Subnet.
    pub subnet: Option<IpNet>,
    /// Pool.
    #[serde(serialize_with = "range_text")]
    pub pool: Option<RangeInclusive<IpAddr>>,
    /// Router.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Time servers.
    pub ntp: Vec<IpAddr>,
    /// Domain.
    pub domain: Option<String>,
    /// Lease time.
    #[serde(serialize_with = "seconds")]
    pub lease_time: Duration,
}

/// TFTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TftpSettings {
    /// Serve it.
    pub enabled: bool,
    /// Where.
    pub listen: SocketAddr,
}

/// HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HttpSettings {
    /// Boot plane.
    pub boot_listen: SocketAddr,
    /// API and agents.
    pub api_listen: SocketAddr,
    /// Metrics and health.
    pub metrics_listen: SocketAddr,
    /// Further names and addresses in the service's certificate.
    pub names: Vec<String>,
}

/// Network boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetbootSettings {
    /// Folder of the iPXE binaries.
    pub ipxe_dir: PathBuf,
}

/// Registry of container images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegistrySettings {
    /// Anybody may pull.
    pub anonymous_pull: bool,
}

/// The right to restart, by the FleetLock protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FleetLockSettings {
    /// So many nodes of a group may restart at a time.
    pub slots: usize,
    /// So many minutes a node keeps that right after it has asked last.
    pub lease_minutes: u32,
    /// In so many groups the nodes behind one address may hold that right at a time.
    pub groups_per_client: usize,
}

/// Channels of releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelSettings {
    /// How long the objects of a retired release stay, and how long after a client has read of them.
    #[serde(serialize_with = "seconds")]
    pub grace: Duration,
}

fn format_name<S: Serializer>(json: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *json { "json" } else { "text" })
}

fn range_text<S: Serializer>(range: &Option<RangeInclusive<IpAddr>>, serializer: S) -> Result<S::Ok, S::Error> {
    range.as_ref().map(|range| format!("{}-{}", range.start(), range.end())).serialize(serializer)
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.as_secs())
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingProblem {
    /// Name of the setting, `dhcp.interface[0].pool`.
    pub name: String,
    /// Where the value came from: a file, `NKD_...`, a flag.
    pub origin: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl std::fmt::Display for SettingProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.is_empty() {
            write!(f, "{}: {}", self.origin, self.message)
        } else if self.origin.is_empty() {
            write!(f, "{}: {}", self.name, self.message)
        } else {
            write!(f, "{}: {} (from {})", self.name, self.message, self.origin)
        }
    }
}

/// The settings are wrong, at all of these places.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} wrong:\n{}", count(.0.len()), .0.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
pub struct SettingsError(pub Vec<SettingProblem>);

fn count(n: usize) -> String {
    if n == 1 { "1 setting is".into() } else { format!("{n} settings are") }
}

#[cfg(test)]
mod example_tests;
#[cfg(test)]
mod tests;
