//! What is known of a request's way in, and what is decided: plain data.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use nkd_api::MacAddr;

use super::lease::LeaseChange;
use super::profile::Client;
use super::reply::{Reply, ReplyKind};

/// Port that a request came in on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Port {
    /// 67.
    Dhcp,
    /// 4011.
    Pxe,
}

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Index into [`Engine::interfaces`](super::engine::Engine::interfaces).
    pub interface: usize,
    /// Port.
    pub port: Port,
    /// Sender.
    pub source: SocketAddrV4,
}

/// Where a reply goes (RFC 2131 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To the relay, port 67.
    Relay(Ipv4Addr),
    /// To the client's own address, port 68.
    Client(Ipv4Addr),
    /// To a client that does not have this address yet: by its hardware address.
    Link {
        /// Hardware address.
        mac: MacAddr,
        /// Address to be.
        ip: Ipv4Addr,
    },
    /// To everybody on the link, port 68.
    Broadcast,
    /// To where it came from.
    Source(SocketAddrV4),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "lives for one packet, and a box would cost an allocation for each")]
pub enum Outcome {
    /// Send a reply, after the changes are kept.
    Send {
        /// The reply.
        reply: Reply,
        /// Where to.
        to: Destination,
    },
    /// Find out who uses the address, tell [`Engine::probed`](super::engine::Engine::probed), then ask again with the same request.
    Probe(Ipv4Addr),
    /// Send nothing.
    Silent,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Who asked.
    pub client: Client,
    /// What to do.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The client's address, when it is settled.
    pub ip: Option<Ipv4Addr>,
    /// What is to be kept before the reply leaves.
    pub changes: Vec<LeaseChange>,
}

impl Decision {
    /// True when the client is given something.
    #[must_use]
    pub fn serves(&self) -> bool {
        matches!(&self.outcome, Outcome::Send { reply, .. } if reply.kind != ReplyKind::Nak)
    }
}

/// Why a request was answered as it was. Displayed for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// An address was offered.
    Offered(Ipv4Addr),
    /// The reserved address was offered.
    OfferedReserved(Ipv4Addr),
    /// The address was granted.
    Granted(Ipv4Addr),
    /// The lease was extended.
    Renewed(Ipv4Addr),
    /// The client asks for an address it may not have.
    Refused(Ipv4Addr, Refusal),
    /// The pool of this subnet has no free address.
    Exhausted(Ipv4Net),
    /// The reserved address is used by somebody else.
    ReservedInUse(Ipv4Addr, MacAddr),
    /// It is being found out whether the address is in use.
    Probing(Ipv4Addr),
    /// No subnet is configured for the relay, or on the interface.
    NoSubnet(Ipv4Addr),
    /// The client chose another server.
    ForOtherServer(Option<Ipv4Addr>),
    /// The client found somebody else at the address.
    Declined(Ipv4Addr),
    /// The client gave the address back.
    Released(Ipv4Addr),
    /// The client declines or releases what it does not have.
    NotItsAddress,
    /// Parameters without an address.
    Informed,
    /// A request that names no address.
    NoAddress,
    /// Proxy mode: the client boots nothing from us.
    NothingToBoot(Client),
    /// Proxy mode: told beside another server's offer.
    BootFileOffered(String),
    /// Proxy mode: told on port 4011.
    BootFileServed(String),
}

/// What a machine asked for and does not get, as text for its operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotServed {
    /// The pool has no free address.
    NoAddress {
        /// Interface name.
        interface: String,
        /// The pool, if there is one.
        pool: Option<RangeInclusive<Ipv4Addr>>,
    },
    /// No iPXE is built for its firmware; the architecture of option 93.
    NoLoader(u16),
    /// The file for its firmware is not there.
    NoFile {
        /// Name in the folder.
        file: &'static str,
        /// The folder.
        folder: PathBuf,
    },
}

impl fmt::Display for NotServed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress { interface, pool: Some(pool) } => {
                let (first, last) = (pool.start(), pool.end());
                write!(
                    f,
                    "no address: the pool of {interface} ({first}-{last}) has no free one; enlarge it or reserve one"
                )
            }
            Self::NoAddress { interface, pool: None } => {
                write!(f, "no address: {interface} has no pool, and none is reserved; set a pool or reserve one")
            }
            Self::NoLoader(code) => {
                write!(f, "nothing to boot: its firmware is of architecture {code}")?;
                // The register of processor architectures of RFC 5970.
                let name = match code {
                    2 => Some("Itanium EFI"),
                    6 => Some("IA32 EFI"),
                    10 => Some("ARM32 UEFI"),
                    15 => Some("IA32 UEFI HTTP boot"),
                    18 => Some("ARM32 UEFI HTTP boot"),
                    27 => Some("RISC-V 64 UEFI"),
                    _ => None,
                };
                if let Some(name) = name {
                    write!(f, " ({name})")?;
                }
                f.write_str(", which nkd has no iPXE for")
            }
            Self::NoFile { file, folder } => {
                let folder = folder.display();
                write!(f, "nothing to boot: {file} is not in {folder}: install it, or set netboot.ipxe_dir")
            }
        }
    }
}

/// Why an address was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is of another network.
    WrongNetwork,
    /// It is outside the pool.
    OutsidePool,
    /// Another machine has it.
    Taken,
    /// It is reserved for another machine.
    ReservedForAnother,
    /// The machine has another one reserved.
    HasReservation(Ipv4Addr),
}

impl Refusal {
    /// Text of option 56.
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::WrongNetwork => "address is of another network",
            Self::OutsidePool => "address is outside the pool",
            Self::Taken => "address is in use by another machine",
            Self::ReservedForAnother => "address is reserved for another machine",
            Self::HasReservation(_) => "another address is reserved for this machine",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offered(ip) => write!(f, "offered {ip} from the pool"),
            Self::OfferedReserved(ip) => write!(f, "offered {ip}, reserved for this machine"),
            Self::Granted(ip) => write!(f, "granted {ip}"),
            Self::Renewed(ip) => write!(f, "renewed {ip}"),
            Self::Refused(ip, Refusal::HasReservation(own)) => {
                write!(f, "refused {ip}: {own} is reserved for this machine")
            }
            Self::Refused(ip, refusal) => write!(f, "refused {ip}: {}", refusal.message()),
            Self::Exhausted(subnet) => write!(f, "no answer: the pool of {subnet} is exhausted"),
            Self::ReservedInUse(ip, holder) => write!(f, "no answer: the reserved {ip} is used by {holder}"),
            Self::Probing(ip) => write!(f, "looking whether {ip} is in use"),
            Self::NoSubnet(ip) if ip.is_unspecified() => {
                f.write_str("no answer: no subnet is configured on this interface")
            }
            Self::NoSubnet(ip) => write!(f, "no answer: no subnet is configured for {ip}"),
            Self::ForOtherServer(Some(server)) => write!(f, "no answer: the message is for the DHCP server {server}"),
            Self::ForOtherServer(None) => f.write_str("no answer: the message is for another DHCP server"),
            Self::Declined(ip) => write!(f, "declined {ip}: the machine found it in use"),
            Self::Released(ip) => write!(f, "released {ip}"),
            Self::NotItsAddress => f.write_str("no answer: the address is not this machine's"),
            Self::Informed => f.write_str("told parameters, the machine has its own address"),
            Self::NoAddress => f.write_str("no answer: the request names no address"),
            Self::NothingToBoot(client) => write!(f, "no answer: nothing to boot for {client}"),
            Self::BootFileOffered(file) => write!(f, "offered boot file {file} beside the DHCP server"),
            Self::BootFileServed(file) => write!(f, "told boot file {file} as boot server"),
        }
    }
}
