//! Frames below UDP: what is sent to clients that have no address yet, and what asks who has one. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

use nkd_api::MacAddr;

/// EtherType of ARP (RFC 826).
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV4: u16 = 0x0800;

/// An Ethernet frame with an IPv4 UDP datagram.
pub(super) fn udp(from: (MacAddr, SocketAddrV4), to: (MacAddr, SocketAddrV4), payload: &[u8]) -> Vec<u8> {
    // Payloads are replies of at most 1472 bytes: the lengths fit.
    let udp_len = (8 + payload.len()) as u16;
    let mut frame = Vec::with_capacity(42 + payload.len());
    frame.extend_from_slice(&to.0.0);
    frame.extend_from_slice(&from.0.0);
    frame.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());

    let mut ip = [0u8; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&from.1.ip().octets());
    ip[16..20].copy_from_slice(&to.1.ip().octets());
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(&ip);

    let mut udp = [0u8; 8];
    udp[0..2].copy_from_slice(&from.1.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.1.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    let pseudo = [0, 17, udp[4], udp[5]];
    let sum = match checksum(&[&ip[12..20], &pseudo, &udp, payload]) {
        // Zero would mean that there is none (RFC 768).
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(&udp);
    frame.extend_from_slice(payload);
    frame
}

/// An ARP request: who has `wanted`?
pub(super) fn arp_request(mac: MacAddr, ip: Ipv4Addr, wanted: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&ip.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&wanted.octets());
    frame
}

/// The sender that an ARP frame names; requests and replies alike show that an address is in use.
pub(super) fn arp_sender(frame: &[u8]) -> Option<(MacAddr, Ipv4Addr)> {
    let body = frame.get(14..42)?;
    let ethernet_ipv4 = frame[12..14] == ETHERTYPE_ARP.to_be_bytes() && body[..6] == [0, 1, 8, 0, 6, 4];
    let mac = MacAddr([body[8], body[9], body[10], body[11], body[12], body[13]]);
    let ip = Ipv4Addr::new(body[14], body[15], body[16], body[17]);
    (ethernet_ipv4 && !ip.is_unspecified()).then_some((mac, ip))
}

/// Internet checksum (RFC 1071). All parts but the last are of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const THERE: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    proptest! {
        /// A receiver that sums a correct datagram gets all ones (RFC 1071).
        #[test]
        fn a_receiver_accepts_the_checksums(payload in prop::collection::vec(any::<u8>(), 0..1472), a: u32, b: u32) {
            let (from, to) = (SocketAddrV4::new(a.into(), 67), SocketAddrV4::new(b.into(), 68));
            let frame = udp((HERE, from), (THERE, to), &payload);
            prop_assert_eq!(frame.len(), 42 + payload.len());
            prop_assert_eq!(checksum(&[&frame[14..34]]), 0);
            let length = &frame[38..40];
            prop_assert_eq!(checksum(&[&frame[26..34], &[0, 17], length, &frame[34..]]), 0);
        }

        #[test]
        fn no_frame_panics(frame: Vec<u8>) {
            let _ = arp_sender(&frame);
        }
    }

    #[test]
    fn an_arp_request_names_its_sender() {
        let frame = arp_request(HERE, Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(arp_sender(&frame), Some((HERE, Ipv4Addr::new(192, 0, 2, 1))));
    }
}
