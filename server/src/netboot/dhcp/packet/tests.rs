//! Decoding: hostile bytes, odd firmware, and an independent codec as a peer.

use dhcproto::v4::{self, DhcpOption, Encodable, OptionCode};
use proptest::prelude::*;

use super::super::testing::{Message, host, mac};
use super::*;

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        let _ = decode(&bytes);
        let _ = decode_offer(&bytes);
    }

    #[test]
    fn no_options_panic(options in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = Message::discover(mac(1)).bytes();
        bytes.pop();
        bytes.extend(options);
        // The message type stands before them: whatever follows, the request is read.
        prop_assert_eq!(decode(&bytes).map(|request| request.mac), Ok(mac(1)));
    }

    #[test]
    fn no_truncation_panics(cut in 0usize..400) {
        let bytes = pxe_discover().bytes();
        let cut = cut.min(bytes.len());
        prop_assert_eq!(decode(&bytes[..cut]).is_ok(), cut >= HEADER + 7);
    }

    #[test]
    fn an_independent_encoder_is_understood(
        xid: u32, hardware: [u8; 5], ciaddr: u32, requested in 1u32.., server in 1u32.., size in 576u16..1500,
        broadcast: bool, name in "[a-z]{1,20}", client_id in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        let mac = [2, hardware[0], hardware[1], hardware[2], hardware[3], hardware[4]];
        let mut message = v4::Message::new_with_id(xid, ciaddr.into(), [0, 0, 0, 0].into(), [0, 0, 0, 0].into(), [0, 0, 0, 0].into(), &mac);
        if broadcast {
            message.set_flags(v4::Flags::default().set_broadcast());
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(v4::MessageType::Request));
        options.insert(DhcpOption::RequestedIpAddress(requested.into()));
        options.insert(DhcpOption::ServerIdentifier(server.into()));
        options.insert(DhcpOption::MaxMessageSize(size));
        options.insert(DhcpOption::Hostname(name.clone()));
        options.insert(DhcpOption::ClientIdentifier(client_id.clone()));
        options.insert(DhcpOption::ClassIdentifier(b"PXEClient:Arch:00007:UNDI:003000".to_vec()));
        options.insert(DhcpOption::ParameterRequestList(vec![OptionCode::SubnetMask, OptionCode::Router]));
        let request = decode(&message.to_vec().unwrap()).unwrap();
        prop_assert_eq!(request.kind, MessageKind::Request);
        prop_assert_eq!((request.mac, request.xid, request.broadcast), (MacAddr(mac), xid, broadcast));
        prop_assert_eq!(request.ciaddr, Ipv4Addr::from(ciaddr));
        prop_assert_eq!(request.requested_ip, Some(requested.into()));
        prop_assert_eq!(request.server_id, Some(server.into()));
        prop_assert_eq!((request.max_size, request.hostname), (Some(size), Some(name)));
        prop_assert_eq!(request.client_id, Some(client_id));
        prop_assert_eq!(request.vendor_class.as_deref(), Some("PXEClient:Arch:00007:UNDI:003000"));
        prop_assert_eq!(request.parameters, vec![1, 3]);
        prop_assert_eq!(request.malformed_option, None);
    }
}

fn pxe_discover() -> Message {
    let mut uuid = vec![0];
    uuid.extend(0..16);
    Message::discover(mac(1))
        .with(option::MACHINE_UUID, uuid)
        .with(option::ARCHITECTURE, [0, 7])
        .with(option::VENDOR_CLASS, *b"PXEClient:Arch:00007:UNDI:003016")
}

#[test]
fn the_uuid_is_read_in_smbios_order() {
    let request = pxe_discover().decoded();
    assert_eq!(request.uuid, Some("03020100-0504-0706-0809-0a0b0c0d0e0f".parse().unwrap()));
    assert_eq!(request.uuid_option.map(|raw| raw.len()), Some(17));
}

#[test]
fn a_uuid_that_names_no_machine_is_none_but_still_echoed() {
    for bytes in [[0; 17].to_vec(), [vec![0], vec![0xff; 16]].concat(), vec![0, 1, 2], vec![]] {
        let request = Message::discover(mac(1)).with(option::MACHINE_UUID, bytes.clone()).decoded();
        assert_eq!((request.uuid, request.uuid_option), (None, Some(bytes)));
    }
}

#[test]
fn odd_and_missing_values_hide_nothing_else() {
    let request = Message::discover(mac(1))
        .with(94, [1, 2, 3])
        .with(option::ARCHITECTURE, [0, 7, 0, 9, 1])
        .with(option::REQUESTED_IP, [1, 2, 3])
        .with(option::MAX_SIZE, [5])
        .with(option::HOSTNAME, *b"n\x00junk")
        .with(option::VENDOR_CLASS, [])
        .decoded();
    assert_eq!(request.architectures, vec![7, 9]);
    assert_eq!((request.requested_ip, request.max_size, request.vendor_class), (None, None, None));
    assert_eq!(request.hostname.as_deref(), Some("n"));
}

#[test]
fn a_broken_option_is_named_and_those_before_it_count() {
    let mut bytes = Message::discover(mac(1)).with(option::HOSTNAME, *b"node").bytes();
    bytes.pop();
    bytes.extend([option::ARCHITECTURE, 200, 0]);
    let request = decode(&bytes).unwrap();
    assert_eq!((request.hostname.as_deref(), request.malformed_option), (Some("node"), Some(option::ARCHITECTURE)));
}

#[test]
fn options_continue_in_pieces_and_in_the_header() {
    let mut message = Message::discover(mac(1))
        .with(option::HOSTNAME, *b"long-")
        .with(option::HOSTNAME, *b"name")
        .with(option::OVERLOAD, [3]);
    message.header[108..114].copy_from_slice(&[option::REQUESTED_IP, 4, 192, 0, 2, 77]);
    message.header[114] = option::END;
    message.header[44..48].copy_from_slice(&[option::ARCHITECTURE, 2, 0, 11]);
    let request = message.decoded();
    assert_eq!(request.hostname.as_deref(), Some("long-name"));
    assert_eq!((request.requested_ip, request.architectures), (Some(host(77)), vec![11]));
}

#[test]
fn ipxe_is_known_by_its_user_class_or_its_features() {
    let http = Some(Ipxe { http: true });
    let cases: [(Message, Option<Ipxe>); 6] = [
        (Message::discover(mac(1)), None),
        (Message::discover(mac(1)).with(option::USER_CLASS, *b"iPXE"), http),
        (Message::discover(mac(1)).with(option::USER_CLASS, *b"\x04iPXE"), http),
        (Message::discover(mac(1)).with(option::USER_CLASS, *b"other"), None),
        (Message::discover(mac(1)).with(option::IPXE, [0xb1, 1, 1, 0x13, 1, 1]), http),
        (Message::discover(mac(1)).with(option::IPXE, [0xb1, 1, 1]), Some(Ipxe { http: false })),
    ];
    for (message, expected) in cases {
        assert_eq!(message.decoded().ipxe, expected, "{:?}", message.options);
    }
}

#[test]
fn a_relay_may_select_another_link() {
    let request = Message::discover(mac(1)).with(option::RELAY_INFO, [1, 1, 9, 5, 4, 10, 1, 0, 0]).decoded();
    assert_eq!(request.link_selection, Some(Ipv4Addr::new(10, 1, 0, 0)));
}

#[test]
fn what_is_not_a_request_says_why() {
    let change = |at: usize, value: u8| {
        let mut bytes = Message::discover(mac(1)).bytes();
        bytes[at] = value;
        decode(&bytes)
    };
    assert_eq!(decode(&[0; 100]), Err(DecodeError::TooShort(100)));
    assert_eq!(change(0, 2), Err(DecodeError::NotARequest(2)));
    assert_eq!(change(1, 32), Err(DecodeError::Hardware { htype: 32, hlen: 6 }));
    assert_eq!(change(2, 16), Err(DecodeError::Hardware { htype: 1, hlen: 16 }));
    assert_eq!(change(28, 1), Err(DecodeError::Mac(MacAddr([1, 0, 0, 0, 0, 1]))));
    assert_eq!(change(236, 0), Err(DecodeError::NoCookie));
    assert_eq!(change(240, 52), Err(DecodeError::NoMessageType));
    assert_eq!(change(242, 2), Err(DecodeError::MessageType(2)));
}

#[test]
fn our_own_discover_is_one() {
    let request = decode(&encode_discover(mac(7), 42)).unwrap();
    assert_eq!((request.kind, request.mac, request.xid, request.broadcast), (MessageKind::Discover, mac(7), 42, true));
}
