//! Encoding, read back by an independent codec.

use dhcproto::v4::{self, Decodable, DhcpOption, OptionCode};
use proptest::prelude::*;

use super::super::profile::{Carrier, Client, boot};
use super::super::testing::{LEASE_SECONDS, Message, SERVER, config, host, mac};
use super::super::{Mode, packet};
use super::*;

fn full(message: &Message, client: Client, carrier: Carrier) -> Reply {
    let mut reply = Reply::to(&message.decoded(), ReplyKind::Ack, SERVER);
    reply.yiaddr = host(50);
    reply.lease_time = Some(Duration::from_secs(LEASE_SECONDS));
    reply.network = Some(Arc::new(NetworkOptions::from(&config(Mode::Server, 50, 59).interfaces[0])));
    reply.hostname = Some("node-1".to_owned());
    reply.boot = boot(client, carrier, SERVER, 8080);
    reply
}

fn decoded(bytes: &[u8]) -> v4::Message {
    v4::Message::decode(&mut v4::Decoder::new(bytes)).unwrap()
}

fn opaque(message: &v4::Message, code: u8) -> Option<Vec<u8>> {
    match message.opts().get(OptionCode::from(code))? {
        DhcpOption::Unknown(option) => Some(option.data().to_vec()),
        DhcpOption::VendorExtensions(data) | DhcpOption::ClassIdentifier(data) | DhcpOption::ClientIdentifier(data) => {
            Some(data.clone())
        }
        DhcpOption::TFTPServerName(data) | DhcpOption::BootfileName(data) => Some(data.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_independent_decoder_reads_every_field() {
    let request = Message::discover(mac(9))
        .broadcast()
        .address(24, host(3))
        .with(option::CLIENT_ID, [1, 2, 0, 0, 0, 0, 9])
        .with(option::RELAY_INFO, [1, 2, 7, 7]);
    let bytes = full(&request, Client::BiosPxe, Carrier::ProxyOffer).encode();
    let message = decoded(&bytes);
    assert_eq!(
        (message.opcode(), message.xid(), message.chaddr()),
        (v4::Opcode::BootReply, 0xdead_beef, &mac(9).0[..])
    );
    assert_eq!((message.yiaddr(), message.siaddr(), message.giaddr()), (host(50), SERVER, host(3)));
    assert!(message.flags().broadcast());
    assert_eq!(message.fname(), Some(&b"undionly.kpxe\0"[..]));
    let get = |code| message.opts().get(code).cloned();
    assert_eq!(get(OptionCode::MessageType), Some(DhcpOption::MessageType(v4::MessageType::Ack)));
    assert_eq!(get(OptionCode::ServerIdentifier), Some(DhcpOption::ServerIdentifier(SERVER)));
    assert_eq!(get(OptionCode::AddressLeaseTime), Some(DhcpOption::AddressLeaseTime(600)));
    assert_eq!(get(OptionCode::Renewal), Some(DhcpOption::Renewal(300)));
    assert_eq!(get(OptionCode::Rebinding), Some(DhcpOption::Rebinding(525)));
    assert_eq!(get(OptionCode::SubnetMask), Some(DhcpOption::SubnetMask([255, 255, 255, 0].into())));
    assert_eq!(get(OptionCode::BroadcastAddr), Some(DhcpOption::BroadcastAddr(host(255))));
    assert_eq!(get(OptionCode::Router), Some(DhcpOption::Router(vec![host(254)])));
    assert_eq!(get(OptionCode::DomainNameServer), Some(DhcpOption::DomainNameServer(vec![host(53)])));
    assert_eq!(get(OptionCode::NtpServers), Some(DhcpOption::NtpServers(vec![host(123)])));
    assert_eq!(get(OptionCode::Hostname), Some(DhcpOption::Hostname("node-1".to_owned())));
    assert_eq!(opaque(&message, option::VENDOR_CLASS).as_deref(), Some(&b"PXEClient"[..]));
    assert_eq!(opaque(&message, option::TFTP_SERVER).as_deref(), Some(&b"192.0.2.1"[..]));
    assert_eq!(opaque(&message, option::BOOT_FILE).as_deref(), Some(&b"undionly.kpxe\0"[..]));
    assert_eq!(opaque(&message, option::VENDOR).as_deref(), Some(&[6, 1, 8, 255][..]));
    assert_eq!(opaque(&message, option::CLIENT_ID).as_deref(), Some(&[1, 2, 0, 0, 0, 0, 9][..]));
    // Relay information is the last option (RFC 3046 section 2.1).
    let end = bytes.windows(5).rposition(|tail| tail == [82, 4, 1, 2, 7]).unwrap() + 6;
    assert_eq!(bytes[end], option::END);
    assert!(bytes[end + 1..].iter().all(|byte| *byte == 0));
}

#[test]
fn ipxe_is_told_not_to_wait_for_a_proxy() {
    let message = decoded(&full(&Message::discover(mac(9)), Client::Ipxe, Carrier::Lease).encode());
    assert_eq!(opaque(&message, option::IPXE), Some(vec![176, 1, 1]));
    assert_eq!(message.fname(), Some(&b"http://192.0.2.1:8080/boot.ipxe\0"[..]));
}

#[test]
fn the_uuid_is_echoed_only_if_it_was_sent() {
    let uuid = [vec![0], vec![7; 16]].concat();
    let with = Message::discover(mac(9)).with(option::MACHINE_UUID, uuid.clone());
    for (request, expected) in [(Message::discover(mac(9)), None), (with, Some(uuid))] {
        let bytes = full(&request, Client::BiosPxe, Carrier::Lease).encode();
        // The codec reads the option as a type of its own, so look at the bytes.
        let found = bytes.windows(3).position(|at| at == [97, 17, 0]).map(|at| bytes[at + 2..at + 19].to_vec());
        assert_eq!(found, expected);
    }
}

#[test]
fn a_short_reply_is_padded_to_300_bytes() {
    let mut reply = Reply::to(&Message::discover(mac(9)).decoded(), ReplyKind::Nak, SERVER);
    reply.message = Some("no");
    assert_eq!(reply.encode().len(), 300);
    assert_eq!(packet::decode(&reply.encode()), Err(packet::DecodeError::NotARequest(2)));
}

proptest! {
    #[test]
    fn a_reply_never_exceeds_what_the_client_takes(
        size in prop::option::of(any::<u16>()), id in 0usize..255, relay in 0usize..255, domain in "[a-z]{0,250}",
    ) {
        let mut request = Message::discover(mac(9));
        if id > 0 {
            request = request.with(option::CLIENT_ID, vec![1; id]);
        }
        if relay > 0 {
            request = request.with(option::RELAY_INFO, vec![1; relay]);
        }
        if let Some(size) = size {
            request = request.with(option::MAX_SIZE, size.to_be_bytes());
        }
        let mut reply = full(&request, Client::UefiHttp(super::super::profile::Arch::Arm64), Carrier::Lease);
        let mut network = (**reply.network.as_ref().unwrap()).clone();
        network.domain = Some(domain);
        reply.network = Some(Arc::new(network));
        let bytes = reply.encode();
        let limit = usize::from(size.unwrap_or(576)).saturating_sub(28).clamp(548, 1472);
        prop_assert!((300..=limit).contains(&bytes.len()), "{} of {limit}", bytes.len());
        let message = decoded(&bytes);
        prop_assert_eq!(message.opts().get(OptionCode::AddressLeaseTime), Some(&DhcpOption::AddressLeaseTime(600)));
        prop_assert!(message.opts().get(OptionCode::SubnetMask).is_some());
        prop_assert_eq!(message.opts().get(OptionCode::RelayAgentInformation).is_some(), relay > 0);
    }
}
