//! The sockets: one that listens and tells which address was asked, and one for each transfer.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::codec::{DATA_HEADER, MAX_REQUEST};

/// Receive buffer of the listening socket, in bytes: a rack that is switched on asks all at once.
const LISTEN_BUFFER: usize = 1 << 20;

/// Bytes of IP and UDP headers.
const IPV4_HEADERS: u16 = 28;
const IPV6_HEADERS: u16 = 48;

/// A packet at the listening socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram {
    /// Bytes in the buffer. A packet longer than the buffer fills it.
    pub(super) length: usize,
    /// Who sent it.
    pub(super) client: SocketAddr,
    /// Our address that it was sent to; `None` if it was a broadcast or a multicast.
    pub(super) local: Option<IpAddr>,
}

/// A buffer that holds every acceptable request, and one byte more to tell a longer one.
pub(super) fn request_buffer() -> Vec<u8> {
    vec![0; MAX_REQUEST + 1]
}

/// The listening socket.
pub(super) fn listen(address: SocketAddr, interface: Option<&str>) -> io::Result<UdpSocket> {
    let socket = new(address, interface)?;
    // The kernel may grant less; that is no reason not to serve.
    let _ = socket.set_recv_buffer_size(LISTEN_BUFFER);
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The next packet at the listening socket.
pub(super) fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let client = message.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|address| SocketAddr::from(*address));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::from(*address)))
    });
    let client = client.ok_or_else(|| io::Error::other("a packet came without a sender's address"))?;
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let asked = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
            // The kernel gives an address of ours here; it differs if the packet was a broadcast.
            let ours = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
            (asked == ours).then_some(IpAddr::V4(ours))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let asked = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            (!asked.is_multicast()).then_some(IpAddr::V6(asked))
        }
        _ => None,
    });
    Ok(Datagram { length: message.bytes, client, local })
}

/// A socket from the address that was asked to the client, with a port of its own (the transfer ID of RFC 1350).
pub(super) fn connect(client: SocketAddr, local: IpAddr, interface: Option<&str>) -> io::Result<UdpSocket> {
    let mut from = SocketAddr::new(local, 0);
    if let (SocketAddr::V6(from), SocketAddr::V6(client)) = (&mut from, client) {
        from.set_scope_id(client.scope_id());
    }
    let socket = new(from, interface)?;
    socket.bind(&from.into())?;
    socket.connect(&client.into())?;
    Ok(socket.into())
}

/// The largest block that needs no fragments on the way that the kernel knows, in bytes.
pub(super) fn path_block_size(socket: &UdpSocket, client: &SocketAddr) -> Option<u16> {
    let headers = if client.is_ipv4() { IPV4_HEADERS } else { IPV6_HEADERS };
    let mtu = match client {
        SocketAddr::V4(_) => nix::sys::socket::getsockopt(socket, sockopt::IpMtu).ok()?,
        SocketAddr::V6(_) => 1500,
    };
    u16::try_from(mtu.min(i32::from(u16::MAX))).ok()?.checked_sub(headers + DATA_HEADER as u16)
}

/// Lets one send carry several packets of `segment` bytes each (UDP generic segmentation offload); 0 ends that.
pub(super) fn segment(socket: &UdpSocket, segment: usize) -> io::Result<()> {
    let segment = i32::try_from(segment).map_err(io::Error::other)?;
    Ok(setsockopt(socket, sockopt::UdpGsoSegment, &segment)?)
}

fn new(address: SocketAddr, interface: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}
