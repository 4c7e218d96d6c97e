//! DHCPv4 requests: raw bytes to a typed value (RFC 2131 section 2, RFC 2132, RFC 3396, RFC 4578).
//!
//! One broken option never hides the others before it, and never fails the packet while the message type was readable:
//! firmware in the field sends options of odd length, several architectures, and missing end marks.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use nkd_api::MacAddr;
use uuid::Uuid;

/// Bytes before the magic cookie.
pub(super) const HEADER: usize = 236;
/// First bytes of the options field (RFC 2132 section 2).
pub(super) const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// Option numbers (RFC 2132 unless named).
pub(super) mod option {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOSTNAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const BROADCAST: u8 = 28;
    pub const NTP: u8 = 42;
    pub const VENDOR: u8 = 43;
    pub const REQUESTED_IP: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL: u8 = 58;
    pub const REBINDING: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const TFTP_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    /// RFC 3004.
    pub const USER_CLASS: u8 = 77;
    /// RFC 3046.
    pub const RELAY_INFO: u8 = 82;
    /// RFC 4578.
    pub const ARCHITECTURE: u8 = 93;
    /// RFC 4578.
    pub const MACHINE_UUID: u8 = 97;
    /// iPXE's encapsulated options.
    pub const IPXE: u8 = 175;
    pub const END: u8 = 255;
}

/// Message types that clients send (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Looks for servers.
    Discover,
    /// Takes an offer, or extends or verifies a lease.
    Request,
    /// Says that somebody else uses the address.
    Decline,
    /// Gives the address back.
    Release,
    /// Has an address and wants the other parameters.
    Inform,
}

impl MessageKind {
    /// Lower-case name, for logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Request => "request",
            Self::Decline => "decline",
            Self::Release => "release",
            Self::Inform => "inform",
        }
    }
}

/// iPXE's self-description (option 175).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipxe {
    /// It can load from HTTP. True as well when it listed no features.
    pub http: bool,
}

/// A client's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Message type.
    pub kind: MessageKind,
    /// Hardware address of the interface that boots.
    pub mac: MacAddr,
    /// Transaction id.
    pub xid: u32,
    /// Seconds that the client has been trying for.
    pub secs: u16,
    /// The client cannot take unicast before it has an address.
    pub broadcast: bool,
    /// The client's address, when it has one and uses it.
    pub ciaddr: Ipv4Addr,
    /// Address of the relay; zero when there is none.
    pub giaddr: Ipv4Addr,
    /// Option 50.
    pub requested_ip: Option<Ipv4Addr>,
    /// Option 54.
    pub server_id: Option<Ipv4Addr>,
    /// Option 61, as sent.
    pub client_id: Option<Vec<u8>>,
    /// Option 82, as sent.
    pub relay_info: Option<Vec<u8>>,
    /// Subnet that the relay asks for (option 82 sub-option 5, RFC 3527).
    pub link_selection: Option<Ipv4Addr>,
    /// Option 93: architectures in the client's order.
    pub architectures: Vec<u16>,
    /// Option 77 or 175 says iPXE.
    pub ipxe: Option<Ipxe>,
    /// Option 60.
    pub vendor_class: Option<String>,
    /// Option 97 when it is a UUID that can name a machine (not all zeros, not all ones).
    pub uuid: Option<Uuid>,
    /// Option 97, as sent.
    pub uuid_option: Option<Vec<u8>>,
    /// Option 12, printable part.
    pub hostname: Option<String>,
    /// Option 55.
    pub parameters: Vec<u8>,
    /// Option 57: largest message in bytes, IP header included.
    pub max_size: Option<u16>,
    /// First option that could not be read, if any.
    pub malformed_option: Option<u8>,
}

/// The bytes are not a request that this server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than a BOOTP header and a cookie.
    #[error("packet of {0} bytes is too short for DHCP")]
    TooShort(usize),
    /// Not from a client.
    #[error("BOOTP operation {0} is not a request")]
    NotARequest(u8),
    /// Not Ethernet.
    #[error("hardware type {htype} with {hlen}-byte addresses is not served, only Ethernet is")]
    Hardware {
        /// RFC 1700 hardware type.
        htype: u8,
        /// Address length.
        hlen: u8,
    },
    /// All zeros, or multicast.
    #[error("hardware address {0} cannot name a machine")]
    Mac(MacAddr),
    /// BOOTP without options.
    #[error("packet without the DHCP cookie")]
    NoCookie,
    /// BOOTP with options.
    #[error("packet without a DHCP message type")]
    NoMessageType,
    /// Not a client's message.
    #[error("DHCP message type {0} is not one that clients send")]
    MessageType(u8),
}

/// Reads a client's message.
///
/// # Errors
/// When it is not one, or when it is not from an Ethernet address.
pub fn decode(bytes: &[u8]) -> Result<Request, DecodeError> {
    let (header, options) = split(bytes)?;
    if header[0] != 1 {
        return Err(DecodeError::NotARequest(header[0]));
    }
    if (header[1], header[2]) != (1, 6) {
        return Err(DecodeError::Hardware { htype: header[1], hlen: header[2] });
    }
    let mac = MacAddr([header[28], header[29], header[30], header[31], header[32], header[33]]);
    if !mac.is_usable() {
        return Err(DecodeError::Mac(mac));
    }
    let options = Options::read(header, options);
    let kind = match options.first(option::MESSAGE_TYPE).and_then(<[u8]>::first).copied() {
        None => return Err(DecodeError::NoMessageType),
        Some(1) => MessageKind::Discover,
        Some(3) => MessageKind::Request,
        Some(4) => MessageKind::Decline,
        Some(7) => MessageKind::Release,
        Some(8) => MessageKind::Inform,
        Some(other) => return Err(DecodeError::MessageType(other)),
    };
    let uuid_option = options.first(option::MACHINE_UUID);
    let relay_info = options.first(option::RELAY_INFO);
    Ok(Request {
        kind,
        mac,
        xid: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        secs: u16::from_be_bytes([header[8], header[9]]),
        broadcast: header[10] & 0x80 != 0,
        ciaddr: address(header, 12),
        giaddr: address(header, 24),
        requested_ip: options.address(option::REQUESTED_IP),
        server_id: options.address(option::SERVER_ID),
        client_id: options.first(option::CLIENT_ID).map(<[u8]>::to_vec),
        relay_info: relay_info.map(<[u8]>::to_vec),
        link_selection: relay_info.and_then(|info| sub_option(info, 5)).and_then(exact_address),
        architectures: options
            .first(option::ARCHITECTURE)
            .map_or_else(Vec::new, |value| value.as_chunks::<2>().0.iter().copied().map(u16::from_be_bytes).collect()),
        ipxe: ipxe(&options),
        vendor_class: options.first(option::VENDOR_CLASS).and_then(printable),
        uuid: uuid_option.and_then(machine_uuid),
        uuid_option: uuid_option.map(<[u8]>::to_vec),
        hostname: options.first(option::HOSTNAME).and_then(printable),
        parameters: options.first(option::PARAMETERS).map_or_else(Vec::new, <[u8]>::to_vec),
        max_size: options.first(option::MAX_SIZE).and_then(|v| v.try_into().ok()).map(u16::from_be_bytes),
        malformed_option: options.malformed,
    })
}

/// An offer of another server, as far as we need it to tell that there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignOffer {
    /// Transaction id.
    pub xid: u32,
    /// Option 54; the BOOTP `siaddr` when it is missing.
    pub server: Ipv4Addr,
    /// The offered address; zero in a ProxyDHCP offer.
    pub yiaddr: Ipv4Addr,
}

/// Reads another server's offer; nothing when it is none.
#[must_use]
pub fn decode_offer(bytes: &[u8]) -> Option<ForeignOffer> {
    let (header, options) = split(bytes).ok()?;
    let options = Options::read(header, options);
    if header[0] != 2 || options.first(option::MESSAGE_TYPE)? != [2] {
        return None;
    }
    Some(ForeignOffer {
        xid: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        server: options.address(option::SERVER_ID).unwrap_or_else(|| address(header, 20)),
        yiaddr: address(header, 16),
    })
}

fn split(bytes: &[u8]) -> Result<(&[u8; HEADER], &[u8]), DecodeError> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or(DecodeError::TooShort(bytes.len()))?;
    let options = rest.strip_prefix(COOKIE.as_slice()).ok_or(DecodeError::NoCookie)?;
    Ok((header, options))
}

fn address(header: &[u8; HEADER], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])
}

fn exact_address(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

/// Options in order of appearance, repeated ones joined (RFC 3396).
struct Options<'a> {
    list: Vec<(u8, Cow<'a, [u8]>)>,
    malformed: Option<u8>,
}

impl<'a> Options<'a> {
    fn read(header: &'a [u8; HEADER], field: &'a [u8]) -> Self {
        let mut options = Self { list: Vec::with_capacity(16), malformed: None };
        options.walk(field);
        // RFC 2131 section 4.1: the `file` field first, then `sname`.
        let overload = options.first(option::OVERLOAD).and_then(<[u8]>::first).copied().unwrap_or(0);
        if overload & 1 != 0 {
            options.walk(&header[108..HEADER]);
        }
        if overload & 2 != 0 {
            options.walk(&header[44..108]);
        }
        options
    }

    fn walk(&mut self, mut field: &'a [u8]) {
        while let Some((&code, rest)) = field.split_first() {
            match code {
                option::PAD => field = rest,
                option::END => return,
                _ => {
                    let Some((value, next)) =
                        rest.split_first().and_then(|(&length, rest)| rest.split_at_checked(usize::from(length)))
                    else {
                        self.malformed.get_or_insert(code);
                        return;
                    };
                    match self.list.iter_mut().find(|(known, _)| *known == code) {
                        Some((_, known)) => known.to_mut().extend_from_slice(value),
                        None => self.list.push((code, Cow::Borrowed(value))),
                    }
                    field = next;
                }
            }
        }
    }

    fn first(&self, code: u8) -> Option<&[u8]> {
        self.list.iter().find(|(known, _)| *known == code).map(|(_, value)| value.as_ref())
    }

    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.first(code).and_then(exact_address).filter(|ip| !ip.is_unspecified())
    }
}

fn sub_option(mut field: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [code, length, rest @ ..] = field {
        let (value, next) = rest.split_at_checked(usize::from(*length))?;
        if *code == wanted {
            return Some(value);
        }
        field = next;
    }
    None
}

/// iPXE names itself in the user class, either bare or as an RFC 3004 list, and lists its features in option 175.
fn ipxe(options: &Options<'_>) -> Option<Ipxe> {
    const FEATURE_HTTP: u8 = 0x13;
    let named = options.first(option::USER_CLASS).is_some_and(|class| class == b"iPXE" || class == b"\x04iPXE");
    match options.first(option::IPXE) {
        Some(features) if !features.is_empty() => Some(Ipxe { http: sub_option(features, FEATURE_HTTP).is_some() }),
        Some(_) => Some(Ipxe { http: true }),
        None => named.then_some(Ipxe { http: true }),
    }
}

fn printable(value: &[u8]) -> Option<String> {
    let text: String =
        value.iter().take_while(|b| **b != 0).filter(|b| (b' '..=b'~').contains(*b)).map(|b| *b as char).collect();
    (!text.is_empty()).then_some(text)
}

/// Type 0 and sixteen bytes in SMBIOS order, which has the first three fields in little endian; PXE firmware sends
/// them as the SMBIOS table has them, and so does iPXE.
fn machine_uuid(value: &[u8]) -> Option<Uuid> {
    let (0, bytes) = value.split_first().map(|(kind, bytes)| (*kind, bytes))? else { return None };
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    (bytes != [0; 16] && bytes != [0xff; 16]).then(|| Uuid::from_bytes_le(bytes))
}

/// A DISCOVER that asks for a broadcast answer: finds other servers.
#[must_use]
pub fn encode_discover(mac: MacAddr, xid: u32) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes[10] = 0x80;
    bytes[28..34].copy_from_slice(&mac.0);
    bytes.extend_from_slice(&COOKIE);
    bytes.extend_from_slice(&[option::MESSAGE_TYPE, 1, 1]);
    bytes.extend_from_slice(&[option::PARAMETERS, 2, option::SUBNET_MASK, option::ROUTER, option::END]);
    bytes.resize(300, option::PAD);
    bytes
}

#[cfg(test)]
mod tests;
