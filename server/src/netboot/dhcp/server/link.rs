//! Interfaces of this host, and the sockets that serve one of them.
#![expect(clippy::disallowed_methods, reason = "opens the sockets of the DHCP service")]

use std::fs;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use nix::sys::socket::{ControlMessage, LinkAddr, MsgFlags, SockaddrIn, SockaddrLike, sendmsg, setsockopt, sockopt};
use nkd_api::MacAddr;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;

use super::super::decision::{Destination, Port};
use super::super::reply::Reply;
use super::super::{CLIENT_PORT, PXE_PORT, SERVER_PORT};
use super::{BindError, frame};

/// Kernel buffer for requests that wait, in bytes: about a thousand. A longer queue would be answered after its clients gave
/// up.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Ethernet (linux/if_arp.h): other kinds have no hardware address that DHCP could use.
const ARPHRD_ETHER: u16 = 1;

/// What the kernel says of an interface.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub index: u32,
    pub mac: Option<MacAddr>,
    addresses: Vec<Ipv4Addr>,
    link: Option<LinkAddr>,
}

/// Looks an interface up.
pub(super) fn facts(name: &str) -> Result<Facts, BindError> {
    let io =
        |source: nix::Error| BindError::Io { what: "read the network interfaces".to_owned(), source: source.into() };
    let mut facts = Facts::default();
    let mut known = Vec::new();
    for one in nix::ifaddrs::getifaddrs().map_err(io)? {
        let Some(address) = one.address else { continue };
        if let Some(link) = address.as_link_addr() {
            known.push(one.interface_name.clone());
            if one.interface_name == name {
                facts.index = u32::try_from(link.ifindex()).unwrap_or_default();
                facts.mac = link.addr().map(MacAddr).filter(|mac| link.hatype() == ARPHRD_ETHER && mac.is_usable());
                facts.link = Some(*link);
            }
        } else if let Some(v4) = address.as_sockaddr_in()
            && one.interface_name == name
        {
            facts.addresses.push(v4.ip());
        }
    }
    if facts.link.is_none() {
        known.sort();
        return Err(BindError::NoSuchInterface { name: name.to_owned(), known: known.join(", ") });
    }
    Ok(facts)
}

/// The sockets of one interface.
pub(super) struct Link {
    pub name: String,
    pub facts: Facts,
    pub dhcp: UdpSocket,
    pub pxe: Option<UdpSocket>,
    raw: Option<Socket>,
}

impl Link {
    /// Opens the sockets on an interface that has all of these addresses.
    pub fn open(name: &str, addresses: &[Ipv4Addr], proxy: bool) -> Result<Self, BindError> {
        let facts = facts(name)?;
        if let Some(address) = addresses.iter().copied().find(|ip| !facts.addresses.contains(ip)) {
            return Err(BindError::AddressMissing { interface: name.to_owned(), address });
        }
        // Beside a DHCP server on this same host, broadcasts reach both of us; a server shares its port with nobody.
        let dhcp = udp_socket(name, SERVER_PORT, proxy)?;
        let pxe = if proxy { Some(udp_socket(name, PXE_PORT, false)?) } else { None };
        let raw = match (&facts.link, facts.mac) {
            (Some(_), Some(_)) => Some(packet_socket(&facts, 0)?),
            _ => None,
        };
        Ok(Self { name: name.to_owned(), facts, dhcp, pxe, raw })
    }

    /// A socket that hears the interface's ARP frames; none when it is not Ethernet.
    pub fn arp_socket(&self) -> Result<Option<AsyncFd<Socket>>, BindError> {
        if self.facts.mac.is_none() {
            return Ok(None);
        }
        let socket = packet_socket(&self.facts, frame::ETHERTYPE_ARP)?;
        watch(socket).map(Some).map_err(|source| BindError::Io { what: "watch the ARP socket".to_owned(), source })
    }

    /// Sends a reply.
    pub fn send(&self, reply: &Reply, to: Destination, port: Port) -> io::Result<()> {
        let payload = reply.encode();
        let udp = match (port, &self.pxe) {
            (Port::Pxe, Some(pxe)) => pxe,
            _ => &self.dhcp,
        };
        let target = match to {
            Destination::Relay(ip) => SocketAddrV4::new(ip, SERVER_PORT),
            Destination::Client(ip) => SocketAddrV4::new(ip, CLIENT_PORT),
            Destination::Source(source) => source,
            Destination::Broadcast => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
            Destination::Link { mac, ip } => match (&self.raw, self.facts.mac) {
                (Some(raw), Some(own)) => {
                    let from = (own, SocketAddrV4::new(reply.server_id, SERVER_PORT));
                    let frame = frame::udp(from, (mac, SocketAddrV4::new(ip, CLIENT_PORT)), &payload);
                    return raw.send(&frame).map(drop);
                }
                _ => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
            },
        };
        send_from(udp, reply.server_id, target, &payload)
    }
}

/// Sends with the source address that the client knows us by, on interfaces with several.
fn send_from(socket: &UdpSocket, from: Ipv4Addr, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    let iov = [IoSlice::new(payload)];
    sendmsg(socket.as_fd().as_raw_fd(), &iov, &control, MsgFlags::MSG_DONTWAIT, Some(&SockaddrIn::from(to)))?;
    Ok(())
}

/// A broadcasting UDP socket on all addresses of one interface.
pub(super) fn udp_socket(name: &str, port: u16, shared: bool) -> Result<UdpSocket, BindError> {
    let open = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_broadcast(true)?;
        socket.set_reuse_address(shared)?;
        // Without CAP_NET_ADMIN the kernel caps it to `net.core.rmem_max`, some 200 requests.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        socket.bind_device(Some(name.as_bytes()))?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::PortTaken { port, interface: name.to_owned(), holder: holder(port) },
        io::ErrorKind::PermissionDenied => BindError::Permission {
            what: format!("listen on UDP port {port} of interface {name}"),
            capability: "CAP_NET_BIND_SERVICE and CAP_NET_RAW",
            source,
        },
        _ => BindError::Io { what: format!("listen on UDP port {port} of interface {name}"), source },
    })
}

/// A packet socket on one interface: sends whole frames, receives those of `ethertype` (0: none).
fn packet_socket(facts: &Facts, ethertype: u16) -> Result<Socket, BindError> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ethertype.to_be()))))?;
        socket.set_nonblocking(true)?;
        if let Some(link) = &facts.link {
            // The kernel's own address of the interface; protocol 0 in it keeps the socket's.
            nix::sys::socket::bind(socket.as_raw_fd(), link as &dyn SockaddrLike)?;
        }
        Ok(socket)
    };
    open().map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => BindError::Permission {
            what: "open a packet socket for clients without an address".to_owned(),
            capability: "CAP_NET_RAW",
            source,
        },
        _ => BindError::Io { what: "open a packet socket".to_owned(), source },
    })
}

/// Registers a socket with the runtime.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that may change their descriptor, and a socket does not"
)]
pub(super) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    AsyncFd::new(socket)
}

/// The process that listens on a UDP port, as far as we may see it: `dnsmasq (pid 812)`.
fn holder(port: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/thread-self/net/udp").ok()?;
    let local = format!(":{port:04X}");
    let inodes: Vec<String> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(1).is_some_and(|address| address.ends_with(&local)))
        .filter_map(|fields| fields.get(9).map(|inode| format!("socket:[{inode}]")))
        .collect();
    let is_id = |process: &fs::DirEntry| process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
    for process in fs::read_dir("/proc").ok()?.flatten().filter(is_id) {
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = |path: &std::path::Path| {
            fs::read_link(path).is_ok_and(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
        };
        if descriptors.flatten().any(|descriptor| holds(&descriptor.path())) {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(format!("{} (pid {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}
