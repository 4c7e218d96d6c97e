//! The host's interfaces: what the settings leave open is taken from them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use nix::ifaddrs::getifaddrs;

use crate::netboot::dhcp;
use crate::settings::{DhcpInterface, DhcpSettings};

/// An interface cannot be used as the settings say.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The list of interfaces cannot be read.
    #[error("the host's interfaces cannot be read")]
    List(#[source] nix::Error),
    /// No such address.
    #[error("dhcp.interface: {0} has no IPv4 address; give it one, or set server_ip and subnet")]
    NoAddress(String),
}

/// Every unicast address of this host.
pub(super) fn addresses() -> Result<Vec<IpAddr>, LinkError> {
    let mut found = Vec::new();
    for interface in getifaddrs().map_err(LinkError::List)? {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            found.push(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6()
            && !v6.ip().is_unicast_link_local()
        {
            found.push(IpAddr::V6(v6.ip()));
        }
    }
    Ok(found)
}

/// The DHCP service's configuration, completed from the interfaces.
pub(super) fn dhcp_config(settings: &DhcpSettings, http_port: u16) -> Result<dhcp::Config, LinkError> {
    let mut interfaces = Vec::new();
    if settings.mode != dhcp::Mode::Off {
        for interface in &settings.interfaces {
            interfaces.push(complete(interface)?);
        }
    }
    Ok(dhcp::Config {
        mode: settings.mode,
        interfaces,
        reservations: settings.reservations.clone(),
        http_port,
        router_advertisements: settings.router_advertisements,
        conflict_probe: settings.conflict_probe,
    })
}

fn complete(interface: &DhcpInterface) -> Result<dhcp::InterfaceConfig, LinkError> {
    let own = ipv4_of(&interface.name)?;
    let missing = || LinkError::NoAddress(interface.name.clone());
    let matching = |(ip, _): &&(Ipv4Addr, Ipv4Net)| interface.server_ip.is_none_or(|wanted| wanted == *ip);
    let (server_ip, subnet) = match (interface.server_ip, interface.subnet, own.iter().find(matching)) {
        (Some(ip), Some(subnet), _) => (ip, subnet),
        (ip, subnet, Some((own_ip, own_subnet))) => (ip.unwrap_or(*own_ip), subnet.unwrap_or(*own_subnet)),
        _ => return Err(missing()),
    };
    Ok(dhcp::InterfaceConfig {
        name: interface.name.clone(),
        server_ip,
        subnet,
        pool: interface.pool.clone(),
        gateway: interface.gateway,
        dns: interface.dns.clone(),
        ntp: interface.ntp.clone(),
        domain: interface.domain.clone(),
        lease_time: interface.lease_time,
    })
}

fn ipv4_of(name: &str) -> Result<Vec<(Ipv4Addr, Ipv4Net)>, LinkError> {
    let mut found = Vec::new();
    for interface in getifaddrs().map_err(LinkError::List)? {
        let (Some(address), Some(mask)) = (interface.address, interface.netmask) else { continue };
        if interface.interface_name != name {
            continue;
        }
        if let (Some(ip), Some(mask)) = (address.as_sockaddr_in(), mask.as_sockaddr_in())
            && let Ok(net) = Ipv4Net::with_netmask(ip.ip(), mask.ip())
        {
            found.push((ip.ip(), net.trunc()));
        }
    }
    Ok(found)
}
