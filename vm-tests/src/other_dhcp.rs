//! A DHCP server of somebody else's.
#![expect(clippy::disallowed_methods, reason = "runs dnsmasq")]

use std::process::Command;

use crate::{Error, Host, Network, Service, within};

/// It hands out addresses on the segment and knows nothing of network boot: dnsmasq at 192.0.2.2.
pub fn other_dhcp(net: &Network) -> Result<(Host, Service), Error> {
    let host = net.host("dhcp", Some("192.0.2.2/24"))?;
    let mut command = Command::new("dnsmasq");
    command.args(["-k", "-C", "/dev/null", "--port=0", "--user=root", "--pid-file=", "--log-facility=-", "--no-ping"]);
    command.arg("--dhcp-range=192.0.2.100,192.0.2.150,1h");
    command.arg(format!("--dhcp-leasefile={}/leases", net.folder().display()));
    let mut dnsmasq = host.spawn("dnsmasq", command)?;
    dnsmasq.expect_log("started", within(20))?;
    Ok((host, dnsmasq))
}
