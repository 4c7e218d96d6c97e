//! The host's interfaces: what the settings leave open is taken from them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
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
    /// A value for a protocol that is not there yet.
    #[error(
        "dhcp.interface: {setting} of {interface} is {value}, and DHCPv6 is not served yet: give an IPv4 value, or leave it out"
    )]
    V6 {
        /// Name of the interface.
        interface: String,
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        value: String,
    },
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
        ipxe_dir: None,
    })
}

fn complete(interface: &DhcpInterface) -> Result<dhcp::InterfaceConfig, LinkError> {
    let address = |setting, value: Option<IpAddr>| v4(interface, setting, value.map(v4_address));
    let given_ip = address("server_ip", interface.server_ip)?;
    let given_subnet = interface.subnet.map(|subnet| match subnet {
        IpNet::V4(subnet) => Ok(subnet),
        IpNet::V6(_) => Err(subnet.to_string()),
    });
    let given_subnet = v4(interface, "subnet", given_subnet)?;
    let pool = interface.pool.as_ref().map(|pool| Ok(v4_address(*pool.start())?..=v4_address(*pool.end())?));
    let pool = v4(interface, "pool", pool)?;
    let gateway = address("gateway", interface.gateway)?;
    let own = ipv4_of(&interface.name)?;
    let missing = || LinkError::NoAddress(interface.name.clone());
    let matching = |(ip, _): &&(Ipv4Addr, Ipv4Net)| given_ip.is_none_or(|wanted| wanted == *ip);
    let (server_ip, subnet) = match (given_ip, given_subnet, own.iter().find(matching)) {
        (Some(ip), Some(subnet), _) => (ip, subnet),
        (ip, subnet, Some((own_ip, own_subnet))) => (ip.unwrap_or(*own_ip), subnet.unwrap_or(*own_subnet)),
        _ => return Err(missing()),
    };
    Ok(dhcp::InterfaceConfig {
        name: interface.name.clone(),
        server_ip,
        subnet,
        pool,
        gateway,
        dns: interface.dns.clone(),
        ntp: interface.ntp.clone(),
        domain: interface.domain.clone(),
        lease_time: interface.lease_time,
    })
}

/// The value of a setting, or a word on why this protocol cannot use it.
fn v4<T>(
    interface: &DhcpInterface,
    setting: &'static str,
    value: Option<Result<T, String>>,
) -> Result<Option<T>, LinkError> {
    value.transpose().map_err(|value| LinkError::V6 { interface: interface.name.clone(), setting, value })
}

fn v4_address(address: IpAddr) -> Result<Ipv4Addr, String> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(address.to_string()),
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Settings of an interface that this host does not have: everything is given.
    fn settings() -> DhcpSettings {
        let (first, last) = ("192.0.2.50".parse().unwrap(), "192.0.2.99".parse().unwrap());
        let interface = DhcpInterface {
            name: "nkd-test".into(),
            server_ip: Some("192.0.2.1".parse().unwrap()),
            subnet: Some("192.0.2.0/24".parse().unwrap()),
            pool: Some(first..=last),
            gateway: Some("192.0.2.254".parse().unwrap()),
            dns: vec!["2001:db8::53".parse().unwrap()],
            ntp: Vec::new(),
            domain: None,
            lease_time: Duration::from_secs(60),
        };
        DhcpSettings {
            mode: dhcp::Mode::Server,
            interfaces: vec![interface],
            reservations: Vec::new(),
            router_advertisements: true,
            conflict_probe: true,
            require_lease: true,
        }
    }

    #[test]
    fn ipv4_values_are_taken_as_they_are() {
        let config = dhcp_config(&settings(), 8080).unwrap();
        let interface = &config.interfaces[0];
        assert_eq!(interface.server_ip, Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(interface.subnet.to_string(), "192.0.2.0/24");
        assert_eq!(interface.pool, Some(Ipv4Addr::new(192, 0, 2, 50)..=Ipv4Addr::new(192, 0, 2, 99)));
        assert_eq!(interface.gateway, Some(Ipv4Addr::new(192, 0, 2, 254)));
        assert_eq!(interface.dns.len(), 1, "name servers may be IPv6");
    }

    #[test]
    fn ipv6_values_are_refused_by_name() {
        let ip: IpAddr = "2001:db8::1".parse().unwrap();
        type Change = fn(&mut DhcpInterface, IpAddr);
        let changes: [(&str, Change); 4] = [
            ("server_ip", |interface, ip| interface.server_ip = Some(ip)),
            ("subnet", |interface, ip| interface.subnet = Some(IpNet::new(ip, 64).unwrap())),
            ("pool", |interface, ip| interface.pool = Some(ip..=ip)),
            ("gateway", |interface, ip| interface.gateway = Some(ip)),
        ];
        for (name, change) in changes {
            let mut settings = settings();
            change(&mut settings.interfaces[0], ip);
            let said = dhcp_config(&settings, 8080).unwrap_err().to_string();
            assert!(said.contains(&format!("{name} of nkd-test is 2001:db8::1")), "{said}");
            assert!(said.contains("DHCPv6 is not served yet"), "{said}");
            settings.mode = dhcp::Mode::Off;
            assert!(dhcp_config(&settings, 8080).is_ok(), "nothing is served");
        }
    }
}
