//! The TFTP server through its sockets: what real clients do, and what hostile ones try.
#![allow(clippy::disallowed_methods, reason = "tests with real sockets")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod tftp_support;

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nkd_server::netboot::tftp::codec::{self, Direction, ErrorCode, Mode, Options, Packet};
use nkd_server::netboot::tftp::{BindError, Config, Content, Metrics, Outcome, Server};
use prometheus_client::registry::Registry;
use tftp_support::{Client, PATIENCE, STUCK, Tree, blocking, loopback, pattern, serve, serve_tree};

const NO_OPTIONS: Options = Options { block_size: None, transfer_size: None, timeout: None, window_size: None };

fn windowed(window: u16) -> Options {
    Options { block_size: Some(1468), window_size: Some(window), ..NO_OPTIONS }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_whole_with_any_terms() {
    let sizes = [0, 1, 511, 512, 513, 1468, 14680, 100_000];
    let files: Vec<(String, Bytes)> = sizes.iter().map(|size| (format!("f{size}"), pattern(*size))).collect();
    let named: Vec<(&str, Bytes)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let server = serve(loopback(), &named).await;
    let address = server.address;
    blocking(move || {
        for (name, bytes) in &files {
            let large = Options { block_size: Some(60_000), ..NO_OPTIONS };
            let tiny = Options { block_size: Some(8), window_size: Some(64), ..NO_OPTIONS };
            for options in [NO_OPTIONS, windowed(1), windowed(16), windowed(64), tiny, large] {
                assert!(Client::new(address).fetch(name, options) == *bytes, "{name} with {options:?}");
            }
        }
    })
    .await;
    assert!(server.outcomes(48).await.iter().all(|outcome| *outcome == Outcome::Delivered));
    server.stop().await;
}

/// Block numbers roll over: 33 MiB + 5 bytes in blocks of 512 bytes, from a file; and in windows.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_more_than_65535_blocks_arrives() {
    let bytes = pattern(33 * 1024 * 1024 + 5);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let content = Content::File { file: Arc::new(file), len: bytes.len() as u64 };
    let server =
        serve_tree(loopback(), Tree { files: HashMap::from([("big".to_owned(), content)]), ..Tree::default() }).await;
    let address = server.address;
    blocking(move || {
        assert!(Client::new(address).fetch("big", NO_OPTIONS) == bytes);
        let tiny = Options { block_size: Some(512), window_size: Some(32), ..NO_OPTIONS };
        assert!(Client::new(address).fetch("big", tiny) == bytes);
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_comes_from_the_address_that_was_asked() {
    let config = Config { listen: SocketAddr::from(([0, 0, 0, 0], 0)), ..loopback() };
    let server = serve(config, &[("f", pattern(10))]).await;
    let port = server.address.port();
    blocking(move || {
        for asked in [[127, 0, 0, 1], [127, 0, 0, 2], [127, 9, 8, 7]] {
            let mut client = Client::new(SocketAddr::from((asked, port)));
            client.ask("f", NO_OPTIONS);
            let (_, from) = client.receive_data();
            assert_eq!(from.ip(), IpAddr::from(asked));
            assert_ne!(from.port(), port, "a transfer has a port of its own");
            client.acknowledge(1, from);
        }
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_clients_are_served() {
    let config = Config { listen: SocketAddr::from(([0; 16], 0)), ..loopback() };
    let server = serve(config, &[("f", pattern(5000))]).await;
    let asked = SocketAddr::new([0, 0, 0, 0, 0, 0, 0, 1].into(), server.address.port());
    blocking(move || {
        let socket = UdpSocket::bind(SocketAddr::from(([0u8; 16], 0))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client { socket, ..Client::new(asked) };
        assert!(client.fetch("f", windowed(4)) == pattern(5000));
    })
    .await;
    server.stop().await;
}

/// EDK2 asks for the size, ends the transfer with an ERROR, and asks for the file from the same port.
#[tokio::test(flavor = "multi_thread")]
async fn a_size_probe_and_the_request_after_it_are_served() {
    let server = serve(loopback(), &[("ipxe.efi", pattern(3000))]).await;
    let address = server.address;
    blocking(move || {
        let mut client = Client::new(address);
        client.ask("ipxe.efi", Options { transfer_size: Some(0), ..NO_OPTIONS });
        let (options, from) = client.receive_offer();
        assert_eq!(options, Options { transfer_size: Some(3000), ..NO_OPTIONS });
        client.send(&Packet::Error { code: ErrorCode::OPTION_REFUSED, text: "User aborted".into() }, from);
        assert!(client.fetch("ipxe.efi", windowed(4)) == pattern(3000));
    })
    .await;
    let mut outcomes = server.outcomes(2).await;
    outcomes.sort_by_key(|outcome| *outcome == Outcome::Delivered);
    assert!(matches!(outcomes[..], [Outcome::Probed | Outcome::Replaced, Outcome::Delivered]), "{outcomes:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_error_ends_the_transfer() {
    let server = serve(loopback(), &[("f", pattern(3000))]).await;
    let address = server.address;
    blocking(move || {
        let mut client = Client::new(address);
        client.ask("f", NO_OPTIONS);
        let (_, from) = client.receive_data();
        client.send(&Packet::Error { code: ErrorCode(3), text: "disk full".into() }, from);
    })
    .await;
    assert_eq!(server.outcomes(1).await, [Outcome::Refused]);
    assert_eq!(server.metric("nkd_tftp_transfers_total{outcome=\"Refused\"}"), Some(1.0));
    assert_eq!(server.metric("nkd_tftp_active_transfers"), Some(0.0));
    server.stop().await;
}

/// A client that heard nothing repeats its request: both sides must keep one port. One that has begun, and asks again
/// from the same port, has started anew (ROMs use a fixed port).
#[tokio::test(flavor = "multi_thread")]
async fn a_retried_request_is_answered_from_the_same_port_and_a_new_one_served_anew() {
    let server = serve(loopback(), &[("f", pattern(3000)), ("g", pattern(10))]).await;
    let address = server.address;
    blocking(move || {
        let mut client = Client::new(address);
        client.ask("f", windowed(2));
        let (_, first) = client.receive_offer();
        client.ask("f", windowed(2));
        let (_, second) = client.receive_offer();
        assert_eq!(first, second);
        client.acknowledge(0, second);
        assert_eq!(client.receive_data(), (1, first));
        assert_eq!(client.receive_data(), (2, first));

        client.ask("f", windowed(2));
        let (_, third) = client.receive_offer();
        assert_ne!(first, third, "a new transfer");
        client.ask("g", NO_OPTIONS);
        let (block, fourth) = client.receive_data();
        assert!(block == 1 && fourth != third, "another file replaces it");
        client.acknowledge(1, fourth);
    })
    .await;
    assert_eq!(server.outcomes(3).await, [Outcome::Replaced, Outcome::Replaced, Outcome::Delivered]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_block_is_sent_again() {
    let mut config = loopback();
    config.policy.timeout = Duration::from_millis(20);
    let server = serve(config, &[("f", pattern(3000))]).await;
    let address = server.address;
    blocking(move || {
        let mut client = Client::new(address);
        client.ask("f", NO_OPTIONS);
        for _ in 0..3 {
            assert_eq!(client.receive_data().0, 1);
        }
        let (_, from) = client.receive_data();
        client.acknowledge(1, from);
        assert_eq!(std::iter::from_fn(|| Some(client.receive_data().0)).find(|block| *block != 1), Some(2));
    })
    .await;
    assert_eq!(server.outcomes(1).await.len(), 1, "and given up in the end");
    assert!(server.metric("nkd_tftp_retransmissions_total").is_some_and(|count| count >= 3.0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_served_is_refused_with_a_reason() {
    let server = serve(loopback(), &[("f", pattern(10))]).await;
    let address = server.address;
    blocking(move || {
        let refused = |name: &[u8], direction, mode| {
            let mut client = Client::new(address);
            client.ask_as(name, direction, mode, NO_OPTIONS);
            let (code, text) = client.receive_error();
            assert!(!text.is_empty());
            code
        };
        let hostile: [&[u8]; 7] =
            [b"../f", b"/../../etc/passwd", b"a/../../f", b"..\\f", b"%2e%2e/f", b"f\x01", b"\xc0\xae\xc0\xae/f"];
        for name in hostile {
            assert_eq!(refused(name, Direction::Read, Mode::Octet), ErrorCode::ACCESS_VIOLATION, "{name:?}");
        }
        assert_eq!(
            refused(b"/etc/passwd", Direction::Read, Mode::Octet),
            ErrorCode::NOT_FOUND,
            "no path of the system"
        );
        assert_eq!(refused(b"denied", Direction::Read, Mode::Octet), ErrorCode::ACCESS_VIOLATION);
        assert_eq!(refused(b"later", Direction::Read, Mode::Octet), ErrorCode::OTHER);
        assert_eq!(refused(b"f", Direction::Write, Mode::Octet), ErrorCode::ACCESS_VIOLATION);
        assert_eq!(refused(b"f", Direction::Read, Mode::Mail), ErrorCode::ILLEGAL_OPERATION);
        for packet in [&b"\0"[..], b"\0\x01f", b"\0\x01f\0octet", b"\0\x01f\0ebcdic\0", b"\0\x63", &[0, 1].repeat(3000)]
        {
            let mut client = Client::new(address);
            client.socket.send_to(packet, address).unwrap();
            assert_eq!(client.receive_error().0, ErrorCode::ILLEGAL_OPERATION, "{packet:?}");
        }
        assert!(Client::new(address).fetch("/f", NO_OPTIONS) == pattern(10), "and the service goes on");
    })
    .await;
    server.stop().await;
}

/// Two servers that answer each other's errors would never stop.
#[tokio::test(flavor = "multi_thread")]
async fn packets_of_no_transfer_are_not_answered() {
    let server = serve(loopback(), &[("f", pattern(10))]).await;
    let address = server.address;
    blocking(move || {
        let mut client = Client::new(address);
        client.send(&Packet::Error { code: ErrorCode::OTHER, text: "no".into() }, address);
        client.acknowledge(7, address);
        client.send(&Packet::Data { block: 1, payload: b"x" }, address);
        client.ask("f", NO_OPTIONS);
        assert_eq!(client.receive_data().0, 1, "the first answer is that to the request");
    })
    .await;
    assert_eq!(server.metric("nkd_tftp_requests_total{result=\"Ignored\"}"), Some(3.0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn netascii_is_translated() {
    let server = serve(loopback(), &[("f", Bytes::from_static(b"a\nb\rc")), ("big", pattern(300 * 1024))]).await;
    let address = server.address;
    blocking(move || {
        let mut client = Client::new(address);
        let size = Options { transfer_size: Some(0), ..NO_OPTIONS };
        client.ask_as(b"f", Direction::Read, Mode::Netascii, size);
        let (options, from) = client.receive_offer();
        assert_eq!(options.transfer_size, Some(7), "the size as sent");
        client.acknowledge(0, from);
        assert_eq!(client.receive().packet, Packet::Data { block: 1, payload: b"a\r\nb\r\0c" });
        client.acknowledge(1, from);
        let mut client = Client::new(address);
        client.ask_as(b"big", Direction::Read, Mode::Netascii, NO_OPTIONS);
        let (code, text) = client.receive_error();
        assert!(code == ErrorCode::OTHER && text.contains("octet"), "{text}");
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_says_so_and_goes_on() {
    let server = serve(Config { max_transfers: 2, ..loopback() }, &[("f", pattern(3000))]).await;
    let address = server.address;
    blocking(move || {
        let mut held: Vec<Client> = (0..2).map(|_| Client::new(address)).collect();
        let from = held.iter_mut().map(|client| {
            client.ask("f", NO_OPTIONS);
            client.receive_data().1
        });
        let from: Vec<SocketAddr> = from.collect();
        let mut third = Client::new(address);
        third.ask("f", NO_OPTIONS);
        let (code, text) = third.receive_error();
        assert!(code == ErrorCode::OTHER && text.contains("try again"), "{text}");
        held[0].ask("f", NO_OPTIONS);
        held[0].receive_data();
        held[1].send(&Packet::Error { code: ErrorCode::OTHER, text: "done".into() }, from[1]);
    })
    .await;
    server.outcomes(1).await;
    blocking(move || assert!(Client::new(address).fetch("f", NO_OPTIONS) == pattern(3000))).await;
    assert_eq!(server.metric("nkd_tftp_requests_total{result=\"Busy\"}"), Some(1.0));
    server.stop().await;
}

/// One that stands still, one whose file is never opened: a third is served as if it were alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_costs_the_others_nothing() {
    let server = serve(Config { workers: 1, ..loopback() }, &[("f", pattern(2_000_000))]).await;
    let address = server.address;
    blocking(move || {
        let mut still = Client::new(address);
        still.ask("f", windowed(64));
        let (_, from) = still.receive_offer();
        still.acknowledge(0, from);
        let waiting = Client::new(address);
        waiting.ask(STUCK, NO_OPTIONS);
        assert!(Client::new(address).fetch("f", windowed(16)) == pattern(2_000_000));
    })
    .await;
    assert_eq!(server.outcomes(1).await, [Outcome::Delivered]);
    assert_eq!(server.metric("nkd_tftp_retransmissions_total"), Some(0.0));
    server.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_at_once_all_get_their_file() {
    let server = serve(loopback(), &[("f", pattern(300_000))]).await;
    let address = server.address;
    let clients: Vec<_> = (0..100u16)
        .map(|index| {
            tokio::task::spawn_blocking(move || {
                let options = if index % 2 == 0 { windowed(index % 32 + 1) } else { NO_OPTIONS };
                Client::new(address).fetch("f", options) == pattern(300_000)
            })
        })
        .collect();
    for client in clients {
        assert!(client.await.unwrap());
    }
    assert_eq!(server.outcomes(100).await.len(), 100);
    assert_eq!(server.metric("nkd_tftp_requests_total{result=\"Served\"}"), Some(100.0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_port_closed_holds_no_slot() {
    let server = serve(loopback(), &[("f", pattern(3000))]).await;
    let address = server.address;
    blocking(move || {
        let client = Client::new(address);
        client.ask("f", windowed(2));
    })
    .await;
    assert_eq!(server.outcomes(1).await, [Outcome::Unreachable]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_shrinks_ends_its_transfer_with_an_error() {
    let file = tempfile::tempfile().unwrap();
    let content = Content::File { file: Arc::new(file), len: 3000 };
    let tree = Tree { files: HashMap::from([("f".to_owned(), content)]), ..Tree::default() };
    let server = serve_tree(loopback(), tree).await;
    let address = server.address;
    blocking(move || {
        let mut client = Client::new(address);
        client.ask("f", NO_OPTIONS);
        assert_eq!(client.receive_error().0, ErrorCode::OTHER);
    })
    .await;
    assert_eq!(server.outcomes(1).await, [Outcome::ReadFailed]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_tells_the_clients_that_are_left() {
    let server = serve(Config { drain: Duration::ZERO, ..loopback() }, &[("f", pattern(3000))]).await;
    let (address, shutdown) = (server.address, server.shutdown.clone());
    blocking(move || {
        let mut client = Client::new(address);
        client.ask("f", NO_OPTIONS);
        client.receive_data();
        shutdown.cancel();
        let (code, text) = client.receive_error();
        assert!(code == ErrorCode::OTHER && text.contains("stopping"), "{text}");
    })
    .await;
    assert_eq!(server.outcomes(1).await, [Outcome::Stopped]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_lets_a_running_transfer_end() {
    let server = serve(Config { drain: PATIENCE, ..loopback() }, &[("f", pattern(700))]).await;
    let (address, shutdown) = (server.address, server.shutdown.clone());
    blocking(move || {
        let mut client = Client::new(address);
        client.ask("f", NO_OPTIONS);
        let (_, from) = client.receive_data();
        shutdown.cancel();
        client.acknowledge(1, from);
        assert_eq!(client.receive_data().0, 2);
        client.acknowledge(2, from);
    })
    .await;
    assert_eq!(server.outcomes(1).await, [Outcome::Delivered]);
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_cannot_bind_says_what_to_do() {
    let bind = |config: Config| async move {
        let metrics = Metrics::register(&mut Registry::default());
        Server::bind(config, Arc::new(Tree::default()), metrics).await.map(drop).unwrap_err()
    };
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let error = bind(Config { listen: address, ..loopback() }).await;
    assert!(matches!(error, BindError::Taken { .. }));
    assert!(error.to_string().contains(&address.port().to_string()), "{error}");
    let error = bind(Config { listen: SocketAddr::from(([192, 0, 2, 1], 0)), ..loopback() }).await;
    assert!(matches!(error, BindError::NoAddress { .. }), "{error}");
    let error = bind(Config { interface: Some("nosuch0".to_owned()), ..loopback() }).await;
    assert!(matches!(error, BindError::NoInterface { .. } | BindError::Permission { .. }), "{error}");
}

/// Any bytes, sent to both kinds of port: the server goes on.
#[tokio::test(flavor = "multi_thread")]
async fn rubbish_stops_nothing() {
    let server = serve(loopback(), &[("f", pattern(3000))]).await;
    let address = server.address;
    blocking(move || {
        let rubbish = pattern(4000);
        let mut client = Client::new(address);
        client.ask("f", NO_OPTIONS);
        let (_, from) = client.receive_data();
        // They live to the end: a late answer to one of them must not reach a later client on the same port.
        let others: Vec<Client> = (0..16).map(|_| Client::new(address)).collect();
        for length in (0..1500).step_by(7) {
            let mut packet = rubbish[length..2 * length].to_vec();
            for opcode in 0..8u8 {
                if let Some(place) = packet.get_mut(..2) {
                    place.copy_from_slice(&[0, opcode]);
                }
                others[(length + usize::from(opcode)) % others.len()].socket.send_to(&packet, address).unwrap();
                // An ERROR or an ACK of the right block would mean something.
                if !matches!(codec::parse(&packet), Ok(Packet::Error { .. } | Packet::Acknowledgement { block: 1 })) {
                    client.socket.send_to(&packet, from).unwrap();
                }
            }
        }
        // The acknowledgement may be lost behind the rubbish: then the block comes again.
        client.acknowledge(1, from);
        let mut block = client.receive_data().0;
        while block == 1 {
            client.acknowledge(1, from);
            block = client.receive_data().0;
        }
        assert_eq!(block, 2);
        assert!(Client::new(address).fetch("f", NO_OPTIONS) == pattern(3000));
    })
    .await;
    server.stop().await;
}
