//! The codec: packets as clients send them, and as nobody should.

use proptest::prelude::*;

use crate::netboot::tftp::codec::{
    Direction, ErrorCode, MAX_ERROR_TEXT, MAX_REQUEST, Mode, Options, Packet, ParseError, Request, encode, parse,
};
use crate::netboot::tftp::fuzz;

fn bytes(packet: &Packet<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(packet, &mut out);
    out
}

fn options(bytes: &[u8]) -> Options {
    let mut packet = b"\0\x01f\0octet\0".to_vec();
    packet.extend_from_slice(bytes);
    match parse(&packet) {
        Ok(Packet::Request(request)) => request.options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_of_real_clients_are_read() {
    // iPXE, then EDK2.
    let ipxe = b"\0\x01ipxe.efi\0octet\0blksize\x001432\0tsize\x000\0";
    let expected = Options { block_size: Some(1432), transfer_size: Some(0), ..Options::default() };
    let request = Request { direction: Direction::Read, name: b"ipxe.efi", mode: Mode::Octet, options: expected };
    assert_eq!(parse(ipxe), Ok(Packet::Request(request)));
    let edk2 = b"\0\x01/shim.efi\0OCTET\0tsize\x000\0blksize\x001468\0windowsize\x004\0";
    let Ok(Packet::Request(request)) = parse(edk2) else { panic!("EDK2's request was not read") };
    assert_eq!((request.mode, request.options.window_size), (Mode::Octet, Some(4)));
}

#[test]
fn senseless_options_are_ignored_and_large_ones_cut() {
    assert_eq!(options(b"blksize\x007\0windowsize\x000\0timeout\x000\0tsize\0-1\0"), Options::default());
    assert_eq!(options(b"timeout\x00256\0blksize\0\0tsize\0 1\0"), Options::default());
    assert_eq!(options(b"blksize\x0099999999999999999999999\0"), Options::default());
    assert_eq!(options(b"blksize\x00100000\0").block_size, Some(65464));
    assert_eq!(options(b"BlkSize\x008\0unknown\0x\0multicast\0\0timeout\x00255\0").timeout, Some(255));
    assert_eq!(options(b"blksize\x00900\0blksize\x00800\0").block_size, Some(900), "the first of two counts");
}

#[test]
fn rubbish_behind_the_options_is_ignored() {
    let expected = Options { block_size: Some(1024), ..Options::default() };
    assert_eq!(options(b"blksize\x001024\0\0\0\0\0\0"), expected);
    assert_eq!(options(b"blksize\x001024\0tsize\0"), expected);
    assert_eq!(options(b"blksize\x001024\0tsize"), expected);
    assert_eq!(options(b"blksize\x001024\0\xff\xff\xff"), expected);
}

#[test]
fn malformed_packets_say_what_is_wrong() {
    assert_eq!(parse(b""), Err(ParseError::Short(0)));
    assert_eq!(parse(b"\0"), Err(ParseError::Short(1)));
    assert_eq!(parse(b"\0\x04\0"), Err(ParseError::Short(3)));
    assert_eq!(parse(b"\0\x03\0"), Err(ParseError::Short(3)));
    assert_eq!(parse(b"\0\x09xx"), Err(ParseError::Opcode(9)));
    assert_eq!(parse(b"\0\x01name"), Err(ParseError::Name));
    assert_eq!(parse(b"\0\x01name\0"), Err(ParseError::ModeMissing));
    assert_eq!(parse(b"\0\x01name\0octet"), Err(ParseError::ModeMissing));
    assert_eq!(parse(b"\0\x01name\0binary\0"), Err(ParseError::ModeUnknown));
}

#[test]
fn a_request_may_fill_a_frame_and_no_more() {
    let request = |length: usize| {
        let mut packet = b"\0\x01".to_vec();
        packet.resize(length - 7, b'a');
        packet.extend_from_slice(b"\0octet\0");
        packet
    };
    assert!(parse(&request(1024)).is_ok(), "longer than RFC 2347's 512 bytes");
    assert!(parse(&request(MAX_REQUEST)).is_ok());
    assert_eq!(parse(&request(MAX_REQUEST + 1)), Err(ParseError::Long { limit: MAX_REQUEST }));
}

#[test]
fn an_error_text_is_cut_between_characters() {
    let text = "é".repeat(MAX_ERROR_TEXT);
    let packet = bytes(&Packet::Error { code: ErrorCode::OTHER, text: text.into() });
    let Ok(Packet::Error { text, .. }) = parse(&packet) else { panic!("the error was not read") };
    assert_eq!(text, "é".repeat(MAX_ERROR_TEXT / 2));
}

/// The owner's crate as an independent peer: what one writes, the other reads.
mod peer {
    use tftp_server::packet::{ErrorCode as PeerCode, Packet as Peer};

    use super::*;

    #[test]
    fn our_packets_are_read_by_the_other_codec() {
        let ours = bytes(&Packet::Request(Request {
            direction: Direction::Read,
            name: b"pxelinux.0",
            mode: Mode::Octet,
            options: Options::default(),
        }));
        let peer = Peer::RRQ { filename: "pxelinux.0".into(), mode: "octet".into() };
        assert_eq!(read(&ours), peer);
        assert_eq!(parse(peer.bytes().unwrap().to_slice()), parse(&ours));

        let ours = bytes(&Packet::Data { block: 65535, payload: &[7; 512] });
        let Peer::DATA { block_num: 65535, len: 512, .. } = read(&ours) else { panic!("not our block") };

        let ours = bytes(&Packet::Acknowledgement { block: 513 });
        assert_eq!(read(&ours), Peer::ACK(513));

        let ours = bytes(&Packet::Error { code: ErrorCode::NOT_FOUND, text: "file not found".into() });
        assert_eq!(read(&ours), Peer::ERROR { code: PeerCode::FileNotFound, msg: "file not found".into() });
    }

    fn read(bytes: &[u8]) -> Peer {
        let mut buffer = [0; tftp_server::packet::MAX_PACKET_SIZE];
        buffer[..bytes.len()].copy_from_slice(bytes);
        Peer::read(tftp_server::packet::PacketData::new(buffer, bytes.len())).unwrap()
    }
}

fn any_options() -> impl Strategy<Value = Options> {
    let block_size = prop::option::of(8u16..=65464);
    let window_size = prop::option::of(1u16..);
    (block_size, prop::option::of(any::<u64>()), prop::option::of(1u8..), window_size).prop_map(
        |(block_size, transfer_size, timeout, window_size)| Options { block_size, transfer_size, timeout, window_size },
    )
}

proptest! {
    #[test]
    fn requests_survive_the_wire(
        name in prop::collection::vec(1u8.., 0..600),
        mode in prop::sample::select(vec![Mode::Octet, Mode::Netascii, Mode::Mail]),
        write: bool,
        options in any_options(),
    ) {
        let direction = if write { Direction::Write } else { Direction::Read };
        let packet = Packet::Request(Request { direction, name: &name, mode, options });
        let sent = bytes(&packet);
        prop_assert_eq!(parse(&sent), Ok(packet));
    }

    #[test]
    fn answers_survive_the_wire(block: u16, payload in prop::collection::vec(any::<u8>(), 0..1500), options in any_options()) {
        for packet in [
            Packet::Data { block, payload: &payload },
            Packet::Acknowledgement { block },
            Packet::Error { code: ErrorCode(block), text: "text".into() },
            Packet::OptionAcknowledgement(options),
        ] {
            let sent = bytes(&packet);
            prop_assert_eq!(parse(&sent), Ok(packet));
        }
    }

    #[test]
    fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz::run_one(&data);
    }

    #[test]
    fn no_nearly_valid_packets_panic(
        head in any::<[u8; 6]>(),
        packets in prop::collection::vec((0u8..8, any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..40),
    ) {
        let mut data = head.to_vec();
        for (opcode, wait, body) in packets {
            data.extend([u8::try_from(body.len() + 2).unwrap(), wait, 0, opcode]);
            data.extend(body);
        }
        fuzz::run_one(&data);
    }
}
