//! Validated settings of the DHCP service.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use nkd_api::MacAddr;
use serde::{Deserialize, Serialize};

/// What the service does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing: another server hands out addresses and boot files.
    Off,
    /// Beside another DHCP server: boot files only, on ports 67 and 4011.
    #[default]
    Proxy,
    /// Addresses and boot files, from an own pool.
    Server,
}

/// Everything that the service is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the service does.
    pub mode: Mode,
    /// Subnets that are served. Several may share one interface: the one that holds the interface's own address serves the
    /// link, the others serve relays.
    pub interfaces: Vec<InterfaceConfig>,
    /// Addresses kept for one machine each.
    pub reservations: Vec<Reservation>,
    /// TCP port of the boot plane, on `server_ip`.
    pub http_port: u16,
    /// Send IPv6 router advertisements, so that firmware does not wait for one.
    pub router_advertisements: bool,
    /// Ask the link by ARP whether an address is in use, before it is offered.
    pub conflict_probe: bool,
    /// Folder with the files of iPXE: a file that is not there is not offered. None: not looked at.
    pub ipxe_dir: Option<PathBuf>,
}

/// One subnet, on one interface.
#[derive(Debug, Clone)]
pub struct InterfaceConfig {
    /// Kernel name of the interface, `eth0`.
    pub name: String,
    /// Our address on the interface: server identifier, TFTP and HTTP server.
    pub server_ip: Ipv4Addr,
    /// The subnet whose machines are served.
    pub subnet: Ipv4Net,
    /// Addresses to hand out; none serves reservations only.
    pub pool: Option<RangeInclusive<Ipv4Addr>>,
    /// Default router.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers; IPv6 ones are not told over DHCPv4.
    pub dns: Vec<IpAddr>,
    /// Time servers; IPv6 ones are not told over DHCPv4.
    pub ntp: Vec<IpAddr>,
    /// Domain name.
    pub domain: Option<String>,
    /// How long an address is given.
    pub lease_time: Duration,
}

impl InterfaceConfig {
    /// True when this subnet is the one on the link; false when it is reached by relays.
    #[must_use]
    pub fn on_link(&self) -> bool {
        self.subnet.contains(&self.server_ip)
    }
}

/// An address kept for one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The machine.
    pub mac: MacAddr,
    /// Its address; a DHCPv4 server uses the IPv4 ones.
    pub ip: IpAddr,
    /// Its host name (option 12).
    #[serde(default)]
    pub hostname: Option<String>,
}

/// The settings contradict themselves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nowhere to listen.
    #[error("dhcp mode {0:?} needs at least one interface: name it in the dhcp settings")]
    NoInterface(Mode),
    /// A pool outside its subnet.
    #[error("the dhcp pool {first}-{last} of interface {interface} is not inside its subnet {subnet}")]
    PoolOutsideSubnet {
        /// Interface name.
        interface: String,
        /// First address.
        first: Ipv4Addr,
        /// Last address.
        last: Ipv4Addr,
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// The first address is behind the last one.
    #[error("the dhcp pool {first}-{last} of interface {interface} is empty: write the lower address first")]
    PoolEmpty {
        /// Interface name.
        interface: String,
        /// First address.
        first: Ipv4Addr,
        /// Last address.
        last: Ipv4Addr,
    },
    /// Two subnets overlap.
    #[error("the dhcp subnets {0} and {1} overlap: a machine would be served from either")]
    SubnetsOverlap(Ipv4Net, Ipv4Net),
    /// A lease time that clients cannot use.
    #[error("the dhcp lease time {seconds} s of interface {interface} is out of range: use 60 s to 4294967294 s")]
    LeaseTime {
        /// Interface name.
        interface: String,
        /// Seconds.
        seconds: u64,
    },
    /// A reservation outside every subnet.
    #[error("the reservation of {ip} for {mac} is in none of the dhcp subnets")]
    ReservationOutside {
        /// The machine.
        mac: MacAddr,
        /// The address.
        ip: IpAddr,
    },
    /// An address reserved twice, or our own.
    #[error("the reservation of {ip} for {mac} clashes: the address belongs to {owner}")]
    ReservationClash {
        /// The machine.
        mac: MacAddr,
        /// The address.
        ip: IpAddr,
        /// Who has it: a MAC address, or what it is used for.
        owner: String,
    },
    /// A machine with two addresses in one subnet.
    #[error("machine {mac} has two reservations in the subnet {subnet}: keep one")]
    ReservationTwice {
        /// The machine.
        mac: MacAddr,
        /// The subnet.
        subnet: Ipv4Net,
    },
}

impl Config {
    /// Checks that the settings can be served.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.mode == Mode::Off {
            return Ok(());
        }
        if self.interfaces.is_empty() {
            return Err(ConfigError::NoInterface(self.mode));
        }
        for (index, one) in self.interfaces.iter().enumerate() {
            if self.mode == Mode::Server {
                one.validate()?;
            }
            for other in &self.interfaces[..index] {
                if one.subnet.contains(&other.subnet) || other.subnet.contains(&one.subnet) {
                    return Err(ConfigError::SubnetsOverlap(other.subnet, one.subnet));
                }
            }
        }
        if self.mode == Mode::Server {
            validate_reservations(&self.interfaces, &self.reservations)?;
        }
        Ok(())
    }
}

impl InterfaceConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let interface = || self.name.clone();
        if let Some(pool) = &self.pool {
            let (first, last) = (*pool.start(), *pool.end());
            if first > last {
                return Err(ConfigError::PoolEmpty { interface: interface(), first, last });
            }
            if !self.subnet.contains(&first) || !self.subnet.contains(&last) {
                let subnet = self.subnet;
                return Err(ConfigError::PoolOutsideSubnet { interface: interface(), first, last, subnet });
            }
        }
        let seconds = self.lease_time.as_secs();
        if !(60..u64::from(u32::MAX)).contains(&seconds) {
            return Err(ConfigError::LeaseTime { interface: interface(), seconds });
        }
        Ok(())
    }
}

/// Checks reservations against the subnets.
///
/// # Errors
/// The first reservation that clashes with another one, with one of our addresses, or lies outside every subnet.
pub fn validate_reservations(subnets: &[InterfaceConfig], reservations: &[Reservation]) -> Result<(), ConfigError> {
    let mut owners: HashMap<IpAddr, String> = HashMap::new();
    for subnet in subnets {
        owners.insert(subnet.server_ip.into(), "this server".to_owned());
        if let Some(gateway) = subnet.gateway {
            owners.entry(gateway.into()).or_insert_with(|| "the gateway".to_owned());
        }
        if subnet.subnet.prefix_len() < 31 {
            owners.insert(subnet.subnet.network().into(), "the network".to_owned());
            owners.insert(subnet.subnet.broadcast().into(), "the broadcast address".to_owned());
        }
    }
    let mut seen = HashSet::new();
    for Reservation { mac, ip, .. } in reservations {
        let (mac, ip) = (*mac, *ip);
        let IpAddr::V4(v4) = ip else { continue };
        let Some(subnet) = subnets.iter().position(|s| s.subnet.contains(&v4)) else {
            return Err(ConfigError::ReservationOutside { mac, ip });
        };
        if let Some(owner) = owners.insert(ip, mac.to_string()) {
            return Err(ConfigError::ReservationClash { mac, ip, owner });
        }
        if !seen.insert((mac, subnet)) {
            return Err(ConfigError::ReservationTwice { mac, subnet: subnets[subnet].subnet });
        }
    }
    Ok(())
}
