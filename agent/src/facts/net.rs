//! Network interfaces, from sysfs; their addresses from the kernel.

use std::collections::BTreeMap;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use nkd_api::MacAddr;
use nkd_api::facts::Nic;

use super::Root;

/// Addresses with prefix length, by interface.
pub type Addresses = BTreeMap<String, Vec<String>>;

/// The addresses of this machine, without link-local ones.
#[must_use]
pub fn addresses() -> Addresses {
    let mut all = Addresses::new();
    for interface in getifaddrs().into_iter().flatten() {
        if let Some(text) = written(interface.address.as_ref(), interface.netmask.as_ref()) {
            all.entry(interface.interface_name).or_default().push(text);
        }
    }
    all.values_mut().for_each(|addresses| addresses.sort());
    all
}

fn written(address: Option<&SockaddrStorage>, mask: Option<&SockaddrStorage>) -> Option<String> {
    let (address, mask) = (address?, mask?);
    if let (Some(v4), Some(mask)) = (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
        (!v4.ip().is_link_local()).then(|| format!("{}/{}", v4.ip(), mask.ip().to_bits().count_ones()))
    } else if let (Some(v6), Some(mask)) = (address.as_sockaddr_in6(), mask.as_sockaddr_in6()) {
        let link_local = v6.ip().is_unicast_link_local();
        (!link_local).then(|| format!("{}/{}", v6.ip(), mask.ip().to_bits().count_ones()))
    } else {
        None
    }
}

/// Interfaces of hardware: those with a device behind them and a usable address.
#[must_use]
pub fn list(root: &Root, addresses: &Addresses) -> Vec<Nic> {
    let names = root.list("/sys/class/net");
    names.into_iter().filter_map(|name| nic(root, name, addresses)).collect()
}

fn nic(root: &Root, name: String, addresses: &Addresses) -> Option<Nic> {
    let sys = format!("/sys/class/net/{name}");
    if !root.exists(&format!("{sys}/device")) {
        return None;
    }
    let mac: MacAddr = root.text(&format!("{sys}/address"))?.parse().ok()?;
    let up = root.number(&format!("{sys}/carrier")) == Some(1);
    let mut found = addresses.get(&name).cloned().unwrap_or_default();
    // An address may sit on the bridge or bond that this interface is part of.
    if found.is_empty()
        && let Some(master) = root.link(&format!("{sys}/master"))
        && let Some(behind) = addresses.get(master.rsplit('/').next().unwrap_or_default())
    {
        found.clone_from(behind);
    }
    mac.is_usable().then_some(Nic { name, mac, up, addresses: found })
}
