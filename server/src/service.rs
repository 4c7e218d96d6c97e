//! What the parts of the running service share.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cluster::bringup::Orders;
use crate::cluster::snapshot::take::Snapshots;
use crate::cluster::watch::Watches;
use crate::content::channel::Channels;
use crate::content::image::ImageStore;
use crate::content::registry::OciRegistry;
use crate::fleet::pki::Pki;
use crate::fleet::reboots::Reboots;
use crate::http::FirstToken;
use crate::ignition::TemplateSet;
use crate::machine::Registry;
use crate::netboot::dhcp;

/// The running service.
pub struct Service {
    /// Machines.
    pub registry: Registry,
    /// Images.
    pub images: Arc<ImageStore>,
    /// Who may restart.
    pub reboots: Reboots,
    /// Channels of releases.
    pub channels: Arc<Channels>,
    /// The registry of container images.
    pub oci: Arc<OciRegistry>,
    /// Anybody may pull from it.
    pub anonymous_pull: bool,
    /// Ignition templates.
    pub templates: TemplateSet,
    /// Certificates.
    pub pki: Arc<Pki>,
    /// What machines are told of the service.
    pub addresses: Addresses,
    /// Image for machines without an assignment.
    pub discovery_image: Option<String>,
    /// Boot scripts go only to the address that was leased to the machine.
    pub require_lease: bool,
    /// The agent's binary and unit for images that do not carry it.
    pub agent_file: Option<AgentFile>,
    /// What nodes are to do for their clusters.
    pub orders: Orders,
    /// An upgrade has begun, or was changed: it is looked at now.
    pub upgrades: Notify,
    /// Snapshots of etcd.
    pub snapshots: Snapshots,
    /// What was seen of clusters last.
    pub watches: Watches,
    /// The running DHCP service, once it is bound.
    pub dhcp: OnceLock<dhcp::Handle>,
    /// The first user's token, until somebody uses it.
    pub first_token: FirstToken,
    /// Cancelled when the service ends: whoever holds a request answers then.
    pub stopping: CancellationToken,
}

/// How machines reach the service. Without an advertised address they use the one that they reached it by.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Advertised address: a name, a VIP, an address behind NAT.
    pub advertise: Option<String>,
    /// Port of the boot plane.
    pub boot_port: u16,
    /// Port of API and agents.
    pub api_port: u16,
}

impl Addresses {
    /// The service as the peer of a connection to `local` should call it.
    #[must_use]
    pub fn host(&self, local: IpAddr) -> String {
        match (&self.advertise, local.to_canonical()) {
            (Some(name), _) => name.clone(),
            (None, IpAddr::V4(ip)) => ip.to_string(),
            (None, IpAddr::V6(ip)) => format!("[{ip}]"),
        }
    }

    /// Base address of the boot plane.
    #[must_use]
    pub fn boot_url(&self, local: IpAddr) -> String {
        format!("http://{}:{}", self.host(local), self.boot_port)
    }

    /// Base address of API and agents.
    #[must_use]
    pub fn api_url(&self, local: IpAddr) -> String {
        format!("https://{}:{}", self.host(local), self.api_port)
    }
}

/// The agent's binary, served to machines whose image does not carry it.
#[derive(Debug, Clone)]
pub struct AgentFile {
    /// Where it is.
    pub path: std::path::PathBuf,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

/// The agent's unit, for images that do not carry it.
pub const AGENT_UNIT: &str = include_str!("../../agent/dist/nkd-agent.service");
/// The unit of its balancer, likewise.
pub const BALANCER_UNIT: &str = include_str!("../../agent/dist/nkd-balancer.service");
/// The unit of its updates, likewise.
pub const UPDATER_UNIT: &str = include_str!("../../agent/dist/nkd-updater.service");
/// The unit that restarts a node whose new release is not confirmed, likewise.
pub const DEADLINE_UNIT: &str = include_str!("../../agent/dist/nkd-boot-deadline.service");
