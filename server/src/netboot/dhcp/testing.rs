//! Requests as bytes, and a small network, for the tests of this folder.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use nkd_api::MacAddr;

use super::config::{Config, InterfaceConfig, Mode, Reservation};
use super::decision::{Arrival, Port};
use super::packet::{self, COOKIE, HEADER, Request, option};

pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const LEASE_SECONDS: u64 = 600;
pub(super) const ON_LINK: Arrival =
    Arrival { interface: 0, port: Port::Dhcp, source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68) };

pub(super) fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

pub(super) fn host(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

/// A client's message, field by field.
#[derive(Clone)]
pub(super) struct Message {
    pub header: [u8; HEADER],
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    pub fn new(kind: u8, mac: MacAddr) -> Self {
        let mut header = [0; HEADER];
        header[..3].copy_from_slice(&[1, 1, 6]);
        header[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        header[28..34].copy_from_slice(&mac.0);
        Self { header, options: vec![(option::MESSAGE_TYPE, vec![kind])] }
    }

    pub fn discover(mac: MacAddr) -> Self {
        Self::new(1, mac)
    }

    pub fn request(mac: MacAddr, ip: Ipv4Addr) -> Self {
        Self::new(3, mac).with(option::REQUESTED_IP, ip.octets()).with(option::SERVER_ID, SERVER.octets())
    }

    pub fn renew(mac: MacAddr, ip: Ipv4Addr) -> Self {
        Self::new(3, mac).address(12, ip)
    }

    pub fn with(mut self, code: u8, value: impl Into<Vec<u8>>) -> Self {
        self.options.push((code, value.into()));
        self
    }

    /// Sets an address of the header: 12 `ciaddr`, 24 `giaddr`.
    pub fn address(mut self, at: usize, ip: Ipv4Addr) -> Self {
        self.header[at..at + 4].copy_from_slice(&ip.octets());
        self
    }

    pub fn broadcast(mut self) -> Self {
        self.header[10] = 0x80;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        bytes.extend_from_slice(&COOKIE);
        for (code, value) in &self.options {
            bytes.extend_from_slice(&[*code, u8::try_from(value.len()).unwrap()]);
            bytes.extend_from_slice(value);
        }
        bytes.push(option::END);
        bytes
    }

    pub fn decoded(&self) -> Request {
        packet::decode(&self.bytes()).unwrap()
    }
}

/// One interface with 192.0.2.0/24 and a pool of `first..=last`.
pub(super) fn config(mode: Mode, first: u8, last: u8) -> Config {
    Config {
        mode,
        interfaces: vec![InterfaceConfig {
            name: "eth0".to_owned(),
            server_ip: SERVER,
            subnet: "192.0.2.0/24".parse().unwrap(),
            pool: Some(host(first)..=host(last)),
            gateway: Some(host(254)),
            dns: vec![host(53).into(), "2001:db8::53".parse().unwrap()],
            ntp: vec![host(123).into()],
            domain: Some("example.org".to_owned()),
            lease_time: Duration::from_secs(LEASE_SECONDS),
        }],
        reservations: Vec::new(),
        http_port: 8080,
        router_advertisements: false,
        conflict_probe: false,
        ipxe_dir: None,
    }
}

pub(super) fn reservation(last: u8, ip: Ipv4Addr) -> Reservation {
    Reservation { mac: mac(last), ip: ip.into(), hostname: Some(format!("m{last}")) }
}
