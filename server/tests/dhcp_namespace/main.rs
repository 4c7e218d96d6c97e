//! The DHCP service against real clients and servers, each in a network namespace of its own.
//!
//! Needs root, iproute2, dhclient, udhcpc and dnsmasq: run with `--ignored`.
#![allow(clippy::disallowed_methods, reason = "tests open sockets, start processes and read the clock")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod account;
mod net;
mod told;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, mpsc};

use async_trait::async_trait;
use dhcproto::v4::{self, Decodable, DhcpOption, Encodable, OptionCode};
use net::{LIMIT, Lan, Namespace, SERVER, config, eventually};
use nkd_server::netboot::dhcp::{
    BindError, Lease, LeaseChange, LeaseState, LeaseStore, LeaseStoreError, MemoryLeaseStore, Mode, Reservation,
};
use socket2::{Domain, Protocol, Socket, Type};

fn memory() -> Arc<MemoryLeaseStore> {
    Arc::new(MemoryLeaseStore::default())
}

/// Lets busybox's client take an address and leave.
fn udhcpc(machine: &Namespace) -> String {
    let arguments = ["-f", "-q", "-n", "-i", "eth0", "-s", "/bin/true"];
    let line = machine.start("udhcpc", &arguments).wait_for("lease of");
    line.split_whitespace().skip_while(|word| *word != "of").nth(1).unwrap().to_owned()
}

fn mac_of(machine: &Namespace) -> nkd_api::MacAddr {
    machine.ip_output("-br link show eth0").split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
#[ignore = "namespace tier: needs root, udhcpc and dhclient"]
fn udhcpc_and_dhclient_take_renew_and_release_leases() {
    let mut lan = Lan::new();
    let (one, two) = (lan.machine(), lan.machine());
    let store = memory();
    let service = lan.serve(config(Mode::Server, 50, 59), store.clone());
    assert_eq!(udhcpc(&one), "192.0.2.50");
    assert_eq!(udhcpc(&one), "192.0.2.50");

    let folder = tempfile::tempdir().unwrap();
    let (leases, pid) = (folder.path().join("leases"), folder.path().join("pid"));
    let files = ["-lf", leases.to_str().unwrap(), "-pf", pid.to_str().unwrap(), "-sf", "/bin/true"];
    let client = two.start("dhclient", &[&["-d", "-v", "-1"], &files[..], &["eth0"]].concat());
    client.wait_for("bound to 192.0.2.51");
    drop(client);
    two.ip("addr add 192.0.2.51/24 dev eth0");
    let leaving = two.start("dhclient", &[&["-r", "-v"], &files[..], &["eth0"]].concat());
    leaving.wait_for("DHCPRELEASE");
    let state = |ip: &str| store.leases().into_iter().find(|lease| lease.ip.to_string() == ip).map(|lease| lease.state);
    eventually("release", || state("192.0.2.51") == Some(LeaseState::Released));
    assert_eq!(state("192.0.2.50"), Some(LeaseState::Bound));

    let seen: Vec<_> = service.sightings.try_iter().collect();
    let macs = [mac_of(&one), mac_of(&two)];
    assert!(macs.iter().all(|mac| seen.iter().any(|sighting| sighting.mac == *mac)));
    assert!(seen.iter().any(|sighting| sighting.reason == "granted 192.0.2.50" && sighting.ip.is_some()));
}

#[test]
#[ignore = "namespace tier: needs root and udhcpc"]
fn leases_outlive_the_service() {
    let mut lan = Lan::new();
    let (one, two) = (lan.machine(), lan.machine());
    let store = memory();
    let service = lan.serve(config(Mode::Server, 50, 59), store.clone());
    assert_eq!(udhcpc(&one), "192.0.2.50");
    drop(service);
    let _service = lan.serve(config(Mode::Server, 50, 59), store);
    assert_eq!(udhcpc(&two), "192.0.2.51");
    assert_eq!(udhcpc(&one), "192.0.2.50");
}

#[test]
#[ignore = "namespace tier: needs root and udhcpc"]
fn an_address_in_use_is_found_and_left_out() {
    let mut lan = Lan::new();
    let (squatter, machine) = (lan.machine(), lan.machine());
    squatter.ip("addr add 192.0.2.50/24 dev eth0");
    let store = memory();
    let mut config = config(Mode::Server, 50, 59);
    config.conflict_probe = true;
    let _service = lan.serve(config, store.clone());
    assert_eq!(udhcpc(&machine), "192.0.2.51");
    let declined = |lease: &Lease| lease.state == LeaseState::Declined && lease.mac == mac_of(&squatter);
    eventually("quarantine", || store.leases().iter().any(declined));
}

#[test]
#[ignore = "namespace tier: needs root and udhcpc"]
fn reservations_are_replaced_while_running() {
    let mut lan = Lan::new();
    let machine = lan.machine();
    let service = lan.serve(config(Mode::Server, 50, 59), memory());
    assert_eq!(udhcpc(&machine), "192.0.2.50");
    let reservation = |ip: [u8; 4]| Reservation { mac: mac_of(&machine), ip: ip.into(), hostname: None };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let replace = |ip| runtime.block_on(service.handle.replace_reservations(vec![reservation(ip)]));
    replace([10, 0, 0, 1]).unwrap_err();
    replace([192, 0, 2, 10]).unwrap();
    assert_eq!(udhcpc(&machine), "192.0.2.10");
}

#[test]
#[ignore = "namespace tier: needs root, udhcpc and dnsmasq"]
fn a_machine_behind_a_relay_gets_an_address_of_its_subnet() {
    let mut lan = Lan::new();
    let relay = lan.machine();
    relay.ip("addr add 192.0.2.3/24 dev eth0");
    let machine = Namespace::new();
    relay.ip(&format!("link add far0 type veth peer name eth0 netns {}", machine.path()));
    relay.ip("addr add 10.1.0.1/24 dev far0");
    relay.ip("link set far0 up");
    machine.ip("link set eth0 up");
    lan.server.ip("route add 10.1.0.0/24 via 192.0.2.3");
    let arguments = ["-k", "-C", "/dev/null", "--port=0", "--user=root", "--pid-file=", "--log-facility=-"];
    let relaying = relay.start("dnsmasq", &[&arguments[..], &["--dhcp-relay=10.1.0.1,192.0.2.1"]].concat());
    relaying.wait_for("DHCP relay from 10.1.0.1 to 192.0.2.1");
    let mut config = config(Mode::Server, 50, 59);
    let mut far = config.interfaces[0].clone();
    far.subnet = "10.1.0.0/24".parse().unwrap();
    far.pool = Some(Ipv4Addr::new(10, 1, 0, 50)..=Ipv4Addr::new(10, 1, 0, 59));
    config.interfaces.push(far);
    let _service = lan.serve(config, memory());
    assert_eq!(udhcpc(&machine), "10.1.0.50");
}

#[test]
#[ignore = "namespace tier: needs root and dnsmasq"]
fn another_server_on_the_link_is_noticed() {
    let mut lan = Lan::new();
    let other = lan.machine();
    other.ip("addr add 192.0.2.2/24 dev eth0");
    let _dnsmasq = dnsmasq(&other);
    let service = lan.serve(config(Mode::Server, 50, 59), memory());
    let expected = Ipv4Addr::new(192, 0, 2, 2);
    eventually("the other server is heard", || service.handle.other_servers().iter().any(|one| one.ip == expected));
}

#[test]
#[ignore = "namespace tier: needs root"]
fn a_taken_port_and_a_missing_interface_are_said_clearly() {
    let lan = Lan::new();
    let _service = lan.serve(config(Mode::Server, 50, 59), memory());
    let taken = lan.try_serve(config(Mode::Server, 50, 59), memory()).err().unwrap();
    let holder = format!("(pid {})", std::process::id());
    assert!(
        matches!(&taken, BindError::PortTaken { port: 67, holder: Some(text), .. } if text.contains(&holder)),
        "{taken}"
    );
    let mut wrong = config(Mode::Server, 50, 59);
    wrong.interfaces[0].name = "eth7".to_owned();
    let missing = lan.try_serve(wrong, memory()).err().unwrap();
    assert_eq!(missing.to_string(), "dhcp: there is no network interface eth7 (there are: br0, lo)");
    let mut wrong = config(Mode::Server, 50, 59);
    wrong.interfaces[0].server_ip = Ipv4Addr::new(192, 0, 2, 3);
    assert!(matches!(lan.try_serve(wrong, memory()).err(), Some(BindError::AddressMissing { .. })));
}

/// Tells when a save begins, and lets it end when told.
struct GatedStore {
    begun: mpsc::Sender<Vec<LeaseChange>>,
    gate: Mutex<Option<tokio::sync::oneshot::Receiver<bool>>>,
}

#[async_trait]
impl LeaseStore for GatedStore {
    async fn load(&self) -> Result<Vec<Lease>, LeaseStoreError> {
        Ok(Vec::new())
    }

    async fn save(&self, changes: &[LeaseChange]) -> Result<(), LeaseStoreError> {
        self.begun.send(changes.to_vec()).unwrap();
        let gate = self.gate.lock().unwrap().take();
        if let Some(gate) = gate
            && !gate.await.unwrap()
        {
            return Err(LeaseStoreError { action: "save leases", source: "disk full".into() });
        }
        Ok(())
    }
}

#[test]
#[ignore = "namespace tier: needs root"]
fn an_ack_leaves_after_the_lease_is_saved() {
    let mut lan = Lan::new();
    let machine = lan.machine();
    machine.ip("addr add 192.0.2.200/24 dev eth0");
    let (begun, saves) = mpsc::channel();
    let (open, gate) = tokio::sync::oneshot::channel();
    let store = Arc::new(GatedStore { begun, gate: Mutex::new(Some(gate)) });
    let _service = lan.serve(config(Mode::Server, 50, 59), store);
    let client = Client::new(&machine, 68);
    let request = client.message(v4::MessageType::Request, |options| {
        options.insert(DhcpOption::RequestedIpAddress(Ipv4Addr::new(192, 0, 2, 50)));
        options.insert(DhcpOption::ServerIdentifier(SERVER));
    });
    client.broadcast(&request);
    let changes = saves.recv_timeout(LIMIT).unwrap();
    assert!(matches!(&changes[..], [LeaseChange::Put(lease)] if lease.state == LeaseState::Bound));
    // An offer needs no save, and tells that an ACK would have been here by now.
    client.broadcast(&client.message(v4::MessageType::Discover, |_| {}));
    assert_eq!(kind(&client.receive()), v4::MessageType::Offer);
    open.send(false).unwrap();
    // It was not saved: no ACK, and the client asks again.
    client.broadcast(&request);
    saves.recv_timeout(LIMIT).unwrap();
    assert_eq!(kind(&client.receive()), v4::MessageType::Ack);
    client.broadcast(&client.message(v4::MessageType::Discover, |_| {}));
    assert_eq!(kind(&client.receive()), v4::MessageType::Offer);
}

#[test]
#[ignore = "namespace tier: needs root and dnsmasq"]
fn a_proxy_stands_beside_dnsmasq() {
    let mut lan = Lan::new();
    let (other, machine) = (lan.machine(), lan.machine());
    other.ip("addr add 192.0.2.2/24 dev eth0");
    machine.ip("addr add 192.0.2.200/24 dev eth0");
    let _dnsmasq = dnsmasq(&other);
    let _service = lan.serve(config(Mode::Proxy, 50, 59), memory());
    let client = Client::new(&machine, 68);
    let uefi = |options: &mut v4::DhcpOptions| {
        options.insert(DhcpOption::ClassIdentifier(b"PXEClient:Arch:00007:UNDI:003016".to_vec()));
        options.insert(DhcpOption::ClientSystemArchitecture(v4::Architecture::X64));
    };
    client.broadcast(&client.message(v4::MessageType::Discover, uefi));
    let offers = [client.receive(), client.receive()];
    let (proxy, server): (Vec<_>, Vec<_>) = offers.iter().partition(|offer| offer.yiaddr().is_unspecified());
    let ([proxy], [server]) = (&proxy[..], &server[..]) else { panic!("{offers:?}") };
    assert_eq!(server_id(server), Some(Ipv4Addr::new(192, 0, 2, 2)));
    assert_eq!(server_id(proxy), Some(SERVER));
    let class = proxy.opts().get(OptionCode::ClassIdentifier);
    assert_eq!(class, Some(&DhcpOption::ClassIdentifier(b"PXEClient".to_vec())));

    let boot = Client::new(&machine, 4011);
    let request = boot.message(v4::MessageType::Request, uefi);
    boot.send(&request, (SERVER, 4011).into());
    let ack = boot.receive();
    assert_eq!((kind(&ack), ack.siaddr(), server_id(&ack)), (v4::MessageType::Ack, SERVER, Some(SERVER)));
    assert_eq!(ack.fname().map(|name| name.trim_ascii_end()), Some(&b"snponly.efi\0"[..]));
}

#[test]
#[ignore = "namespace tier: needs root"]
fn a_router_solicitation_is_answered() {
    let mut lan = Lan::new();
    let machine = lan.machine();
    let mut config = config(Mode::Server, 50, 59);
    config.router_advertisements = true;
    let _service = lan.serve(config, memory());
    let mut advertisement = machine.run(|| {
        let index = std::fs::read_to_string("/sys/class/net/eth0/ifindex");
        let index = nix::net::if_::if_nametoindex("eth0").ok().or(index.ok().and_then(|text| text.trim().parse().ok()));
        let index = index.unwrap();
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        socket.join_multicast_v6(&"ff02::1".parse().unwrap(), index).unwrap();
        let routers = std::net::SocketAddrV6::new("ff02::2".parse().unwrap(), 0, 0, index).into();
        let mut found = None;
        eventually("an advertisement", || {
            // Until duplicate address detection is over, there is no address to send from.
            drop(socket.send_to(&[133, 0, 0, 0, 0, 0, 0, 0], &routers));
            let mut buffer = [0; 128];
            let length = std::io::Read::read(&mut &socket, &mut buffer).unwrap_or(0);
            found = (length > 0 && buffer[0] == 134).then(|| buffer[..length].to_vec());
            found.is_some()
        });
        found.unwrap()
    });
    // The checksum is the kernel's.
    advertisement[2..4].fill(0);
    assert_eq!(advertisement[..16], [134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(advertisement[16..18], [1, 1]);
}

fn dnsmasq(namespace: &Namespace) -> net::Program {
    let arguments = [
        "-k",
        "-C",
        "/dev/null",
        "--port=0",
        "--user=root",
        "--pid-file=",
        "--log-facility=-",
        "--interface=eth0",
        "--bind-interfaces",
        "--no-ping",
        "--dhcp-range=192.0.2.100,192.0.2.120,1h",
        "--leasefile-ro",
    ];
    let program = namespace.start("dnsmasq", &arguments);
    program.wait_for("IP range");
    program
}

/// A client of our own, with a codec that is not.
struct Client {
    socket: UdpSocket,
    mac: [u8; 6],
}

impl Client {
    fn new(machine: &Namespace, port: u16) -> Self {
        let socket = machine.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            socket.set_broadcast(true).unwrap();
            socket.bind_device(Some(b"eth0")).unwrap();
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
            UdpSocket::from(socket)
        });
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self { socket, mac: mac_of(machine).0 }
    }

    fn message(&self, kind: v4::MessageType, fill: impl FnOnce(&mut v4::DhcpOptions)) -> v4::Message {
        let mut message = v4::Message::default();
        message.set_chaddr(&self.mac).set_flags(v4::Flags::default().set_broadcast());
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        fill(message.opts_mut());
        message
    }

    fn broadcast(&self, message: &v4::Message) {
        self.send(message, (Ipv4Addr::BROADCAST, 67).into());
    }

    fn send(&self, message: &v4::Message, to: SocketAddr) {
        self.socket.send_to(&message.to_vec().unwrap(), to).unwrap();
    }

    fn receive(&self) -> v4::Message {
        let mut buffer = [0; 1500];
        let length = self.socket.recv(&mut buffer).expect("an answer");
        v4::Message::decode(&mut v4::Decoder::new(&buffer[..length])).unwrap()
    }
}

fn kind(message: &v4::Message) -> v4::MessageType {
    message.opts().msg_type().unwrap()
}

fn server_id(message: &v4::Message) -> Option<Ipv4Addr> {
    match message.opts().get(OptionCode::ServerIdentifier)? {
        DhcpOption::ServerIdentifier(ip) => Some(*ip),
        _ => None,
    }
}
