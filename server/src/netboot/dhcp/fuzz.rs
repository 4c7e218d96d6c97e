//! One fuzz round: bytes as packets into decoder and engine, in both modes.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::config::{Config, InterfaceConfig, Mode, Reservation};
use super::decision::{Arrival, Outcome, Port};
use super::engine::Engine;
use super::packet;

/// Splits `data` into packets (a two-byte length before each), decodes them, decides on them, encodes the replies.
///
/// # Panics
/// When a reply breaks its bounds: that is the finding.
pub fn run_one(data: &[u8]) {
    let mut engines =
        [Mode::Server, Mode::Proxy].map(|mode| Engine::new(&config(mode)).expect("fixed settings are valid"));
    let mut rest = data;
    let mut now = 1_000;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (bytes, next) = after.split_at(length);
        rest = next;
        now += 7;
        let _ = packet::decode_offer(bytes);
        let Ok(request) = packet::decode(bytes) else { continue };
        for engine in &mut engines {
            for port in [Port::Dhcp, Port::Pxe] {
                let arrival = Arrival { interface: 0, port, source: SocketAddrV4::new(request.ciaddr, 68) };
                let mut decision = engine.step(&request, &arrival, now);
                if let Outcome::Probe(ip) = decision.outcome {
                    engine.probed(ip, (request.xid & 1 == 0).then_some(request.mac), now);
                    decision = engine.step(&request, &arrival, now);
                }
                if let Outcome::Send { reply, .. } = decision.outcome {
                    let bytes = reply.encode();
                    assert!((300..=1472).contains(&bytes.len()), "reply of {} bytes", bytes.len());
                }
            }
        }
    }
}

fn config(mode: Mode) -> Config {
    let server_ip = Ipv4Addr::new(192, 0, 2, 1);
    let pool = Ipv4Addr::new(192, 0, 2, 50)..=Ipv4Addr::new(192, 0, 2, 59);
    Config {
        mode,
        interfaces: vec![InterfaceConfig {
            name: "eth0".to_owned(),
            server_ip,
            subnet: ipnet::Ipv4Net::new_assert(server_ip, 24).trunc(),
            pool: Some(pool),
            gateway: Some(server_ip),
            dns: vec![server_ip.into()],
            ntp: Vec::new(),
            domain: Some("example.org".to_owned()),
            lease_time: Duration::from_secs(600),
        }],
        reservations: vec![Reservation {
            mac: nkd_api::MacAddr([2, 0, 0, 0, 0, 1]),
            ip: Ipv4Addr::new(192, 0, 2, 55).into(),
            hostname: Some("one".to_owned()),
        }],
        http_port: 8080,
        router_advertisements: false,
        conflict_probe: true,
        ipxe_dir: None,
    }
}
