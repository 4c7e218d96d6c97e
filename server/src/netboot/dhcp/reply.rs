//! DHCPv4 replies: a typed value to bytes (RFC 2131 section 2 and table 3).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use nkd_api::MacAddr;

use super::config::InterfaceConfig;
use super::packet::{COOKIE, HEADER, Request, option};
use super::profile::Boot;

/// Smallest reply: BOOTP clients and old relays drop shorter ones.
const MIN_LEN: usize = 300;
/// What every client takes when it does not say more (RFC 2131 section 2): 576 bytes, of which 28 are IP and UDP.
const DEFAULT_LEN: usize = 548;
/// Never more than fits into one Ethernet frame.
const MAX_LEN: usize = 1472;

/// Message types that servers send (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplyKind {
    /// An address, or a boot file, is offered.
    Offer,
    /// Granted.
    Ack,
    /// Refused: the client starts over.
    Nak,
}

impl ReplyKind {
    /// Lower-case name, for logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Offer => "offer",
            Self::Ack => "ack",
            Self::Nak => "nak",
        }
    }
}

/// Parameters of a subnet that every lease carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Options 1 and 28.
    pub subnet: Ipv4Net,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 42.
    pub ntp: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
}

impl From<&InterfaceConfig> for NetworkOptions {
    fn from(config: &InterfaceConfig) -> Self {
        let v4 = |list: &[IpAddr]| {
            list.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }).collect()
        };
        Self {
            subnet: config.subnet,
            router: config.gateway,
            dns: v4(&config.dns),
            ntp: v4(&config.ntp),
            domain: config.domain.clone(),
        }
    }
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Message type.
    pub kind: ReplyKind,
    /// The request's transaction id.
    pub xid: u32,
    /// The request's broadcast flag; set as well in a NAK to a relay.
    pub broadcast: bool,
    /// The request's `ciaddr`, in an ACK.
    pub ciaddr: Ipv4Addr,
    /// The client's address; zero in ProxyDHCP replies, in a NAK, and to INFORM.
    pub yiaddr: Ipv4Addr,
    /// The request's relay.
    pub giaddr: Ipv4Addr,
    /// The request's hardware address.
    pub mac: MacAddr,
    /// Option 54.
    pub server_id: Ipv4Addr,
    /// Options 51, 58 and 59.
    pub lease_time: Option<Duration>,
    /// Parameters of the subnet.
    pub network: Option<Arc<NetworkOptions>>,
    /// Option 12.
    pub hostname: Option<String>,
    /// What to boot.
    pub boot: Option<Boot>,
    /// Option 56, in a NAK.
    pub message: Option<&'static str>,
    /// Option 61, as it was sent (RFC 6842).
    pub client_id: Option<Vec<u8>>,
    /// Option 97, as it was sent.
    pub uuid: Option<Vec<u8>>,
    /// Option 82, as it was sent (RFC 3046).
    pub relay_info: Option<Vec<u8>>,
    /// Largest UDP payload in bytes.
    pub max_len: usize,
}

impl Reply {
    /// A reply to this request that carries nothing yet.
    #[must_use]
    pub fn to(request: &Request, kind: ReplyKind, server_id: Ipv4Addr) -> Self {
        let max_len = request.max_size.map_or(DEFAULT_LEN, |size| usize::from(size).saturating_sub(28));
        Self {
            kind,
            xid: request.xid,
            broadcast: request.broadcast,
            ciaddr: if kind == ReplyKind::Ack { request.ciaddr } else { Ipv4Addr::UNSPECIFIED },
            yiaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: request.giaddr,
            mac: request.mac,
            server_id,
            lease_time: None,
            network: None,
            hostname: None,
            boot: None,
            message: None,
            client_id: request.client_id.clone(),
            uuid: request.uuid_option.clone(),
            relay_info: request.relay_info.clone(),
            max_len: max_len.clamp(DEFAULT_LEN, MAX_LEN),
        }
    }

    /// The reply's bytes, at least 300. Options that do not fit into `max_len` are left out, the least needed first.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..3].copy_from_slice(&[2, 1, 6]);
        bytes[4..8].copy_from_slice(&self.xid.to_be_bytes());
        bytes[10] = if self.broadcast { 0x80 } else { 0 };
        bytes[12..16].copy_from_slice(&self.ciaddr.octets());
        bytes[16..20].copy_from_slice(&self.yiaddr.octets());
        bytes[24..28].copy_from_slice(&self.giaddr.octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        if let Some(boot) = &self.boot {
            bytes[20..24].copy_from_slice(&boot.server.octets());
            // The field is NUL-terminated; a name that does not fit is only in option 67.
            if boot.file.len() < 128 {
                bytes[108..108 + boot.file.len()].copy_from_slice(boot.file.as_bytes());
            }
        }
        bytes.extend_from_slice(&COOKIE);
        // A relay adds at most one option's worth; more is not a relay's, and would crowd out the rest.
        let relay_info = self.relay_info.as_deref().filter(|info| info.len() <= 255).unwrap_or_default();
        let room_for_relay = if relay_info.is_empty() { 0 } else { 2 + relay_info.len() };
        let mut options = Options { limit: self.max_len.saturating_sub(room_for_relay + 1), bytes };
        self.put_options(&mut options);
        let mut bytes = options.bytes;
        if !relay_info.is_empty() {
            put(&mut bytes, option::RELAY_INFO, relay_info);
        }
        bytes.push(option::END);
        if bytes.len() < MIN_LEN {
            bytes.resize(MIN_LEN, option::PAD);
        }
        bytes
    }

    /// In the order of need: what comes last is left out first.
    fn put_options(&self, options: &mut Options) {
        let kind = match self.kind {
            ReplyKind::Offer => 2,
            ReplyKind::Ack => 5,
            ReplyKind::Nak => 6,
        };
        options.put(option::MESSAGE_TYPE, &[kind]);
        options.put(option::SERVER_ID, &self.server_id.octets());
        if let Some(time) = self.lease_time {
            let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX - 1);
            options.put(option::LEASE_TIME, &seconds.to_be_bytes());
            options.put(option::RENEWAL, &(seconds / 2).to_be_bytes());
            options.put(option::REBINDING, &(seconds - seconds / 8).to_be_bytes());
        }
        if let Some(network) = &self.network {
            options.put(option::SUBNET_MASK, &network.subnet.netmask().octets());
            options.put_addresses(option::ROUTER, network.router.as_slice());
        }
        if let Some(boot) = &self.boot {
            options.put_boot(boot);
        }
        if let Some(uuid) = &self.uuid {
            options.put(option::MACHINE_UUID, uuid);
        }
        if let Some(id) = &self.client_id {
            options.put(option::CLIENT_ID, id);
        }
        if let Some(text) = self.message {
            options.put(option::MESSAGE, text.as_bytes());
        }
        if let Some(network) = &self.network {
            options.put_addresses(option::DNS, &network.dns);
            options.put(option::HOSTNAME, self.hostname.as_deref().unwrap_or_default().as_bytes());
            options.put(option::DOMAIN, network.domain.as_deref().unwrap_or_default().as_bytes());
            options.put(option::BROADCAST, &network.subnet.broadcast().octets());
            options.put_addresses(option::NTP, &network.ntp);
        }
    }
}

struct Options {
    bytes: Vec<u8>,
    limit: usize,
}

impl Options {
    /// Adds an option, unless it is empty, longer than an option can be, or does not fit.
    fn put(&mut self, code: u8, value: &[u8]) {
        let fits = self.bytes.len() + 2 + value.len() <= self.limit;
        if fits && !value.is_empty() && value.len() <= usize::from(u8::MAX) {
            put(&mut self.bytes, code, value);
        }
    }

    fn put_addresses(&mut self, code: u8, list: &[Ipv4Addr]) {
        let value: Vec<u8> = list.iter().take(63).flat_map(Ipv4Addr::octets).collect();
        self.put(code, &value);
    }

    fn put_boot(&mut self, boot: &Boot) {
        if let Some(class) = boot.vendor_class {
            self.put(option::VENDOR_CLASS, class.as_bytes());
        }
        let mut file = boot.file.clone().into_bytes();
        if boot.nul_terminated {
            file.push(0);
        }
        self.put(option::BOOT_FILE, &file);
        self.put(option::TFTP_SERVER, boot.server.to_string().as_bytes());
        if boot.no_discovery {
            self.put(option::VENDOR, &[6, 1, 8, option::END]);
        }
        if boot.no_proxy_dhcp {
            self.put(option::IPXE, &[176, 1, 1]);
        }
    }
}

/// Writes one option, in pieces of 255 bytes when it is longer (RFC 3396).
fn put(bytes: &mut Vec<u8>, code: u8, value: &[u8]) {
    for piece in value.chunks(usize::from(u8::MAX)) {
        bytes.push(code);
        // A chunk of at most 255 bytes: the cast loses nothing.
        bytes.push(piece.len() as u8);
        bytes.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests;
