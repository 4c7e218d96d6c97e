//! Decisions: cases of the standards, and a simulated network that must never see an address twice.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use proptest::prelude::*;

use super::super::decision::Port;
use super::super::packet::option;
use super::super::testing::{LEASE_SECONDS, Message, ON_LINK, SERVER, config, host, mac, reservation};
use super::*;

const NOW: u64 = 1_700_000_000;

fn server(first: u8, last: u8) -> Engine {
    Engine::new(&config(Mode::Server, first, last)).unwrap()
}

fn step(engine: &mut Engine, message: &Message, now: u64) -> Decision {
    engine.step(&message.decoded(), &ON_LINK, now)
}

fn sent(decision: &Decision) -> (ReplyKind, Ipv4Addr, Destination) {
    match &decision.outcome {
        Outcome::Send { reply, to } => (reply.kind, reply.yiaddr, *to),
        other => panic!("{other:?}: {}", decision.reason),
    }
}

fn lease(engine: &mut Engine, machine: u8, now: u64) -> Ipv4Addr {
    let (_, offered, _) = sent(&step(engine, &Message::discover(mac(machine)), now));
    let (kind, granted, _) = sent(&step(engine, &Message::request(mac(machine), offered), now));
    assert_eq!((kind, granted), (ReplyKind::Ack, offered));
    granted
}

#[test]
fn an_offer_keeps_nothing_and_an_ack_keeps_the_lease() {
    let mut engine = server(50, 59);
    let offer = step(&mut engine, &Message::discover(mac(1)), NOW);
    assert_eq!(sent(&offer), (ReplyKind::Offer, host(50), Destination::Link { mac: mac(1), ip: host(50) }));
    assert_eq!(offer.changes, vec![]);
    let ack = step(&mut engine, &Message::request(mac(1), host(50)).with(option::HOSTNAME, *b"box"), NOW);
    assert_eq!(sent(&ack), (ReplyKind::Ack, host(50), Destination::Link { mac: mac(1), ip: host(50) }));
    assert_eq!(ack.reason, Reason::Granted(host(50)));
    let expected = Lease {
        ip: host(50).into(),
        mac: mac(1),
        state: LeaseState::Bound,
        granted_at: NOW,
        expires_at: NOW + LEASE_SECONDS,
        hostname: Some("box".to_owned()),
    };
    assert_eq!(ack.changes, vec![LeaseChange::Put(expected)]);
}

#[test]
fn replies_go_where_rfc_2131_says() {
    let mut engine = server(50, 59);
    let discover = Message::discover(mac(1));
    let offer = sent(&step(&mut engine, &discover.clone().broadcast(), NOW));
    assert_eq!(offer.2, Destination::Broadcast);
    let relayed = sent(&step(&mut engine, &discover.broadcast().address(24, host(3)), NOW));
    assert_eq!(relayed.2, Destination::Relay(host(3)));
    let ip = lease(&mut engine, 1, NOW);
    let renewed = step(&mut engine, &Message::renew(mac(1), ip), NOW + 300);
    assert_eq!(sent(&renewed), (ReplyKind::Ack, ip, Destination::Client(ip)));
    assert_eq!(renewed.reason, Reason::Renewed(ip));
    let refused = step(&mut engine, &Message::renew(mac(2), ip), NOW + 300);
    assert_eq!(sent(&refused), (ReplyKind::Nak, Ipv4Addr::UNSPECIFIED, Destination::Broadcast));
    let refused = step(&mut engine, &Message::request(mac(2), ip).address(24, host(3)), NOW + 300);
    let Outcome::Send { reply, to } = refused.outcome else { panic!("no answer") };
    assert_eq!((reply.kind, reply.broadcast, to), (ReplyKind::Nak, true, Destination::Relay(host(3))));
}

#[test]
fn a_relayed_machine_gets_an_address_of_the_relays_subnet() {
    let mut config = config(Mode::Server, 50, 59);
    let mut remote = config.interfaces[0].clone();
    remote.subnet = "10.1.0.0/16".parse().unwrap();
    remote.pool = Some(Ipv4Addr::new(10, 1, 0, 10)..=Ipv4Addr::new(10, 1, 0, 20));
    config.interfaces.push(remote);
    config.conflict_probe = true;
    let mut engine = Engine::new(&config).unwrap();
    let relay = Ipv4Addr::new(10, 1, 0, 1);
    let message = Message::discover(mac(1)).address(24, relay);
    // No ARP reaches it: no probe.
    let offer = sent(&step(&mut engine, &message, NOW));
    assert_eq!(offer, (ReplyKind::Offer, Ipv4Addr::new(10, 1, 0, 10), Destination::Relay(relay)));
    let selected = Message::discover(mac(2)).address(24, host(3)).with(option::RELAY_INFO, [5, 4, 10, 1, 0, 0]);
    assert_eq!(sent(&step(&mut engine, &selected, NOW)).1, Ipv4Addr::new(10, 1, 0, 11));
    // It renews through a router, without the relay.
    assert_eq!(sent(&step(&mut engine, &Message::renew(mac(1), offer.1), NOW)).0, ReplyKind::Ack);
    let unknown = step(&mut engine, &Message::discover(mac(3)).address(24, Ipv4Addr::new(10, 9, 0, 1)), NOW);
    assert_eq!((unknown.outcome, unknown.reason), (Outcome::Silent, Reason::NoSubnet(Ipv4Addr::new(10, 9, 0, 1))));
}

#[test]
fn an_exhausted_pool_answers_nothing_and_says_so() {
    let mut engine = server(50, 51);
    lease(&mut engine, 1, NOW);
    lease(&mut engine, 2, NOW);
    let decision = step(&mut engine, &Message::discover(mac(3)), NOW + LEASE_SECONDS - 1);
    assert_eq!(decision.outcome, Outcome::Silent);
    assert_eq!(decision.reason, Reason::Exhausted("192.0.2.0/24".parse().unwrap()));
    assert_eq!(decision.reason.to_string(), "no answer: the pool of 192.0.2.0/24 is exhausted");
    assert_eq!(engine.usage(NOW)[0].1, Usage { size: 2, bound: 2, offered: 0, declined: 0 });
    // When the leases end, the address that has been free for longest is given.
    assert_eq!(lease(&mut engine, 3, NOW + LEASE_SECONDS), host(50));
}

#[test]
fn a_machine_keeps_its_address_over_release_expiry_and_changing_identifiers() {
    let mut engine = server(50, 59);
    lease(&mut engine, 1, NOW);
    let ip = lease(&mut engine, 2, NOW);
    let released = step(&mut engine, &Message::new(7, mac(2)).address(12, ip), NOW + 5);
    assert!(matches!(&released.changes[..], [LeaseChange::Put(lease)] if lease.state == LeaseState::Released));
    lease(&mut engine, 3, NOW + 5);
    assert_eq!(lease(&mut engine, 2, NOW + 10), ip);
    assert_eq!(lease(&mut engine, 2, NOW + 10 * LEASE_SECONDS), ip);
    let other_stage = Message::discover(mac(2)).with(option::CLIENT_ID, [255, 1, 2, 3]);
    assert_eq!(sent(&step(&mut engine, &other_stage, NOW)).1, ip);
}

#[test]
fn a_stranger_cannot_release_or_decline() {
    let mut engine = server(50, 59);
    let ip = lease(&mut engine, 1, NOW);
    let release = step(&mut engine, &Message::new(7, mac(2)).address(12, ip), NOW);
    let decline = step(&mut engine, &Message::new(4, mac(2)).with(option::REQUESTED_IP, ip.octets()), NOW);
    for decision in [release, decline] {
        assert_eq!((decision.reason, decision.changes), (Reason::NotItsAddress, vec![]));
    }
    assert_eq!(sent(&step(&mut engine, &Message::renew(mac(1), ip), NOW)).0, ReplyKind::Ack);
}

#[test]
fn a_declined_address_rests_and_then_comes_back() {
    let mut engine = server(50, 51);
    let ip = lease(&mut engine, 1, NOW);
    let declined = step(&mut engine, &Message::new(4, mac(1)).with(option::REQUESTED_IP, ip.octets()), NOW);
    assert_eq!(declined.reason, Reason::Declined(ip));
    assert!(matches!(&declined.changes[..], [LeaseChange::Put(lease)] if lease.state == LeaseState::Declined));
    assert_eq!(lease(&mut engine, 1, NOW), host(51));
    let refused = step(&mut engine, &Message::request(mac(2), ip), NOW);
    assert_eq!(refused.reason, Reason::Refused(ip, Refusal::Taken));
    assert!(matches!(step(&mut engine, &Message::discover(mac(2)), NOW).reason, Reason::Exhausted(_)));
    assert_eq!(lease(&mut engine, 2, NOW + QUARANTINE_SECONDS), ip);
}

#[test]
fn inform_gets_parameters_and_no_address() {
    let mut engine = server(50, 59);
    let decision = step(&mut engine, &Message::new(8, mac(1)).address(12, host(200)), NOW);
    let Outcome::Send { reply, to } = decision.outcome else { panic!("no answer") };
    assert_eq!((reply.kind, reply.yiaddr, reply.lease_time), (ReplyKind::Ack, Ipv4Addr::UNSPECIFIED, None));
    assert_eq!((to, decision.changes), (Destination::Client(host(200)), vec![]));
    assert!(reply.network.is_some());
}

#[test]
fn addresses_that_a_machine_may_not_have_are_refused() {
    let mut config = config(Mode::Server, 50, 59);
    config.reservations = vec![reservation(1, host(10))];
    let mut engine = Engine::new(&config).unwrap();
    let taken = lease(&mut engine, 9, NOW);
    let reboot = |mac, ip: Ipv4Addr| Message::new(3, mac).with(option::REQUESTED_IP, ip.octets());
    let cases = [
        (reboot(mac(2), Ipv4Addr::new(10, 0, 0, 5)), Refusal::WrongNetwork),
        (reboot(mac(2), host(60)), Refusal::OutsidePool),
        (reboot(mac(2), SERVER), Refusal::OutsidePool),
        (reboot(mac(2), taken), Refusal::Taken),
        (reboot(mac(2), host(10)), Refusal::ReservedForAnother),
        (reboot(mac(1), host(55)), Refusal::HasReservation(host(10))),
    ];
    for (message, refusal) in cases {
        let decision = step(&mut engine, &message, NOW);
        let Reason::Refused(_, found) = decision.reason else { panic!("{}", decision.reason) };
        assert_eq!((sent(&decision).0, found), (ReplyKind::Nak, refusal));
    }
    // After a lost lease file a machine that comes back keeps its address.
    assert_eq!(sent(&step(&mut engine, &reboot(mac(2), host(58)), NOW)).1, host(58));
}

#[test]
fn the_choice_of_another_server_is_respected() {
    let mut engine = server(50, 50);
    step(&mut engine, &Message::discover(mac(1)), NOW);
    let elsewhere = Message::new(3, mac(1)).with(option::SERVER_ID, host(9).octets());
    let decision = step(&mut engine, &elsewhere.with(option::REQUESTED_IP, host(77).octets()), NOW);
    assert_eq!((decision.outcome, decision.reason), (Outcome::Silent, Reason::ForOtherServer(Some(host(9)))));
    // The offer is free again at once.
    assert_eq!(lease(&mut engine, 2, NOW), host(50));
}

#[test]
fn a_reservation_wins_over_a_lease_and_over_the_pool() {
    let mut engine = server(50, 51);
    let squatter = lease(&mut engine, 7, NOW);
    engine.replace_reservations(&[reservation(1, squatter), reservation(2, host(10))]).unwrap();
    let offer = step(&mut engine, &Message::discover(mac(1)), NOW);
    let Outcome::Send { reply, .. } = &offer.outcome else { panic!("no answer") };
    assert_eq!((reply.yiaddr, reply.hostname.as_deref()), (squatter, Some("m1")));
    assert_eq!(lease(&mut engine, 1, NOW), squatter);
    assert_eq!(lease(&mut engine, 2, NOW), host(10));
    let refused = step(&mut engine, &Message::renew(mac(7), squatter), NOW);
    assert_eq!(refused.reason, Reason::Refused(squatter, Refusal::ReservedForAnother));
    assert_eq!(lease(&mut engine, 7, NOW), host(51));
    // Nobody else gets a reserved address, also when its machine is away.
    assert!(matches!(step(&mut engine, &Message::discover(mac(8)), NOW).reason, Reason::Exhausted(_)));
    engine.replace_reservations(&[]).unwrap();
    assert_eq!(lease(&mut engine, 8, NOW + 2 * LEASE_SECONDS), squatter);
}

#[test]
fn bad_reservations_are_refused_and_the_former_stay() {
    let mut engine = server(50, 59);
    engine.replace_reservations(&[reservation(1, host(10))]).unwrap();
    let outside = Ipv4Addr::new(10, 0, 0, 1);
    for bad in [
        vec![reservation(1, outside)],
        vec![reservation(1, SERVER)],
        vec![reservation(1, host(254))],
        vec![reservation(1, host(255))],
        vec![reservation(1, host(11)), reservation(2, host(11))],
        vec![reservation(1, host(11)), reservation(1, host(12))],
    ] {
        assert!(engine.replace_reservations(&bad).is_err(), "{bad:?}");
        assert_eq!(sent(&step(&mut engine, &Message::discover(mac(1)), NOW)).1, host(10));
    }
}

fn probing() -> Engine {
    let mut config = config(Mode::Server, 50, 51);
    config.conflict_probe = true;
    config.reservations = vec![reservation(1, host(10))];
    Engine::new(&config).unwrap()
}

#[test]
fn an_address_is_probed_once_and_left_out_when_in_use() {
    let mut engine = probing();
    let discover = Message::discover(mac(5));
    assert_eq!(step(&mut engine, &discover, NOW).outcome, Outcome::Probe(host(50)));
    let changes = engine.probed(host(50), Some(mac(99)), NOW);
    assert!(matches!(&changes[..], [LeaseChange::Put(lease)] if lease.state == LeaseState::Declined));
    assert_eq!(step(&mut engine, &discover, NOW).outcome, Outcome::Probe(host(51)));
    assert_eq!(engine.probed(host(51), None, NOW), vec![]);
    assert_eq!(lease(&mut engine, 5, NOW), host(51));
    // A live lease needs no probe.
    assert_eq!(sent(&step(&mut engine, &discover, NOW + 2 * PROBE_SECONDS)).1, host(51));
}

#[test]
fn the_machine_itself_is_no_conflict() {
    let mut engine = probing();
    assert_eq!(step(&mut engine, &Message::discover(mac(5)), NOW).outcome, Outcome::Probe(host(50)));
    assert_eq!(engine.probed(host(50), Some(mac(5)), NOW), vec![]);
    assert_eq!(lease(&mut engine, 5, NOW), host(50));
}

#[test]
fn a_reserved_address_in_use_is_not_offered_and_the_user_is_named() {
    let mut engine = probing();
    let discover = Message::discover(mac(1));
    assert_eq!(step(&mut engine, &discover, NOW).outcome, Outcome::Probe(host(10)));
    assert_eq!(engine.probed(host(10), Some(mac(99)), NOW), vec![]);
    let decision = step(&mut engine, &discover, NOW);
    assert_eq!((decision.outcome, decision.reason), (Outcome::Silent, Reason::ReservedInUse(host(10), mac(99))));
    assert_eq!(step(&mut engine, &discover, NOW + PROBE_SECONDS).outcome, Outcome::Probe(host(10)));
    assert_eq!(engine.probed(host(10), None, NOW + PROBE_SECONDS), vec![]);
    assert_eq!(sent(&step(&mut engine, &discover, NOW + PROBE_SECONDS)).1, host(10));
}

#[test]
fn a_proxy_gives_boot_files_and_no_addresses() {
    let mut engine = Engine::new(&config(Mode::Proxy, 50, 59)).unwrap();
    let uefi = |kind| Message::new(kind, mac(1)).with(option::ARCHITECTURE, [0, 7]);
    let offer = step(&mut engine, &uefi(1), NOW);
    assert_eq!(sent(&offer), (ReplyKind::Offer, Ipv4Addr::UNSPECIFIED, Destination::Broadcast));
    let Outcome::Send { reply, .. } = offer.outcome else { panic!("no answer") };
    assert_eq!((reply.network, reply.lease_time), (None, None));
    assert_eq!(reply.boot.unwrap().vendor_class, Some("PXEClient"));

    // The request to the DHCP server tells us the address, and is not ours to answer.
    let chosen = uefi(3).with(option::SERVER_ID, host(9).octets()).with(option::REQUESTED_IP, host(77).octets());
    let decision = step(&mut engine, &chosen, NOW);
    assert_eq!((decision.outcome, decision.ip), (Outcome::Silent, Some(host(77))));

    let source = SocketAddrV4::new(host(77), 4011);
    let arrival = Arrival { interface: 0, port: Port::Pxe, source };
    let ack = engine.step(&uefi(3).address(12, host(77)).decoded(), &arrival, NOW);
    assert_eq!(sent(&ack), (ReplyKind::Ack, Ipv4Addr::UNSPECIFIED, Destination::Source(source)));
    assert_eq!(ack.reason, Reason::BootFileServed("snponly.efi".to_owned()));

    let plain = step(&mut engine, &Message::discover(mac(2)), NOW);
    assert_eq!((plain.outcome, plain.reason), (Outcome::Silent, Reason::NothingToBoot(Client::Plain)));
    let relayed = step(&mut engine, &uefi(1).address(24, host(3)), NOW);
    assert_eq!(sent(&relayed).2, Destination::Relay(host(3)));
}

fn firmware(last: u8, architecture: u8) -> Message {
    Message::discover(mac(last)).with(option::ARCHITECTURE, [0, architecture])
}

#[test]
fn what_a_machine_does_not_get_is_named() {
    let mut engine = server(50, 50);
    lease(&mut engine, 1, NOW);
    let exhausted = step(&mut engine, &firmware(2, 7), NOW);
    assert_eq!(
        engine.not_served(&exhausted).unwrap().to_string(),
        "no address: the pool of eth0 (192.0.2.50-192.0.2.50) has no free one; enlarge it or reserve one"
    );
    let ia32 = "nothing to boot: its firmware is of architecture 6 (IA32 EFI), which nkd has no iPXE for";
    for mode in [Mode::Server, Mode::Proxy] {
        let mut engine = Engine::new(&config(mode, 50, 59)).unwrap();
        let unsupported = step(&mut engine, &firmware(1, 6), NOW);
        assert_eq!(engine.not_served(&unsupported).unwrap().to_string(), ia32, "{mode:?}");
        let plain = step(&mut engine, &Message::discover(mac(2)), NOW);
        assert_eq!(engine.not_served(&plain), None, "{mode:?}");
    }
}

#[test]
fn a_file_that_is_not_there_is_not_offered() {
    for mode in [Mode::Server, Mode::Proxy] {
        let settings = Config { ipxe_dir: Some("/usr/lib/ipxe".into()), ..config(mode, 50, 59) };
        let mut engine = Engine::new(&settings).unwrap();
        engine.files_missing(HashSet::from(["arm64/snponly.efi"]));
        let decision = step(&mut engine, &firmware(1, 11), NOW);
        let said = engine.not_served(&decision).unwrap().to_string();
        let wanted = "nothing to boot: arm64/snponly.efi is not in /usr/lib/ipxe: install it, or set netboot.ipxe_dir";
        assert_eq!(said, wanted, "{mode:?}");
        match &decision.outcome {
            Outcome::Send { reply, .. } => assert!(mode == Mode::Server && reply.boot.is_none()),
            outcome => assert_eq!((mode, outcome), (Mode::Proxy, &Outcome::Silent)),
        }
        let x64 = step(&mut engine, &firmware(2, 7), NOW);
        assert!(engine.not_served(&x64).is_none() && x64.serves(), "{mode:?}");
        // Installed meanwhile.
        engine.files_missing(HashSet::new());
        let decision = step(&mut engine, &firmware(1, 11), NOW);
        assert!(engine.not_served(&decision).is_none());
        let Outcome::Send { reply, .. } = decision.outcome else { panic!("{mode:?}: no answer") };
        assert_eq!(reply.boot.unwrap().file, "arm64/snponly.efi");
    }
}

/// What may happen on the simulated network.
#[derive(Debug, Clone)]
enum Event {
    Discover {
        machine: u8,
        wanted: Option<u8>,
    },
    /// Takes up the last offer.
    Accept {
        machine: u8,
    },
    /// Asks for any address, as after a reboot.
    Claim {
        machine: u8,
        ip: u8,
    },
    Renew {
        machine: u8,
    },
    Release {
        machine: u8,
    },
    Decline {
        machine: u8,
    },
    Sleep {
        seconds: u64,
    },
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    let machine = 1u8..8;
    prop_oneof![
        4 => (machine.clone(), prop::option::of(48u8..58)).prop_map(|(machine, wanted)| Event::Discover { machine, wanted }),
        6 => machine.clone().prop_map(|machine| Event::Accept { machine }),
        1 => (machine.clone(), 48u8..58).prop_map(|(machine, ip)| Event::Claim { machine, ip }),
        2 => machine.clone().prop_map(|machine| Event::Renew { machine }),
        1 => machine.clone().prop_map(|machine| Event::Release { machine }),
        1 => machine.prop_map(|machine| Event::Decline { machine }),
        2 => (1u64..LEASE_SECONDS).prop_map(|seconds| Event::Sleep { seconds }),
        1 => Just(Event::Crash),
    ]
}

/// The network as its machines see it.
#[derive(Default)]
struct World {
    now: u64,
    store: BTreeMap<IpAddr, Lease>,
    offers: BTreeMap<u8, Ipv4Addr>,
    /// Addresses that machines were granted, and until when.
    granted: BTreeMap<Ipv4Addr, (u8, u64)>,
    /// Addresses in quarantine, and until when.
    declined: BTreeMap<Ipv4Addr, u64>,
}

impl World {
    fn address(&self, machine: u8) -> Option<Ipv4Addr> {
        let held = |(_, (holder, until)): &(&Ipv4Addr, &(u8, u64))| *holder == machine && *until > self.now;
        self.granted.iter().find(held).map(|(ip, _)| *ip)
    }

    fn message(&mut self, event: &Event) -> Option<(u8, Message)> {
        Some(match *event {
            Event::Discover { machine, wanted } => {
                let message = Message::discover(mac(machine));
                let wanted = wanted.map(|last| host(last).octets());
                (machine, if let Some(ip) = wanted { message.with(option::REQUESTED_IP, ip) } else { message })
            }
            Event::Accept { machine } => (machine, Message::request(mac(machine), self.offers.remove(&machine)?)),
            Event::Claim { machine, ip } => {
                (machine, Message::new(3, mac(machine)).with(option::REQUESTED_IP, host(ip).octets()))
            }
            Event::Renew { machine } => (machine, Message::renew(mac(machine), self.address(machine)?)),
            Event::Release { machine } => {
                let ip = self.address(machine)?;
                self.granted.remove(&ip);
                (machine, Message::new(7, mac(machine)).address(12, ip))
            }
            Event::Decline { machine } => {
                let ip = self.address(machine)?;
                self.granted.remove(&ip);
                if ip != RESERVED {
                    self.declined.insert(ip, self.now + QUARANTINE_SECONDS);
                }
                (machine, Message::new(4, mac(machine)).with(option::REQUESTED_IP, ip.octets()))
            }
            Event::Sleep { .. } | Event::Crash => return None,
        })
    }
}

const RESERVED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 52);

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Four dynamic addresses and a reserved one in the middle of them, seven machines, crashes in between.
    #[test]
    fn no_two_machines_hold_one_address(events in prop::collection::vec(event(), 1..120)) {
        let mut config = config(Mode::Server, 50, 54);
        config.reservations = vec![reservation(1, RESERVED)];
        let mut engine = Engine::new(&config).unwrap();
        let mut world = World { now: NOW, ..World::default() };
        for event in &events {
            match event {
                Event::Sleep { seconds } => world.now += seconds,
                Event::Crash => {
                    engine = Engine::new(&config).unwrap();
                    engine.restore(world.store.values().cloned().collect());
                }
                _ => {}
            }
            let Some((machine, message)) = world.message(event) else { continue };
            let now = world.now;
            let decision = engine.step(&message.decoded(), &ON_LINK, now);
            for change in &decision.changes {
                match change {
                    LeaseChange::Put(lease) => drop(world.store.insert(lease.ip, lease.clone())),
                    LeaseChange::Remove(ip) => drop(world.store.remove(ip)),
                }
            }
            let Outcome::Send { reply, .. } = &decision.outcome else {
                prop_assert!(!matches!(event, Event::Renew { .. } | Event::Claim { .. }), "{}", decision.reason);
                if let Reason::Exhausted(_) = decision.reason {
                    let live = world.granted.iter().filter(|(ip, (_, until))| **ip != RESERVED && *until > now).count();
                    let quarantined = world.declined.values().filter(|until| **until > now).count();
                    let offered = usize::try_from(engine.usage(now)[0].1.offered).unwrap();
                    prop_assert!(live + quarantined + offered >= 4, "an address was left");
                }
                continue;
            };
            let ip = reply.yiaddr;
            if reply.kind == ReplyKind::Nak {
                // Nobody loses what it holds.
                prop_assert!(!matches!(event, Event::Renew { .. }), "{}", decision.reason);
                continue;
            }
            prop_assert_eq!(machine == 1, ip == RESERVED, "reservation of {} given to {}", ip, machine);
            prop_assert!((50..=54).contains(&ip.octets()[3]));
            let holder = world.granted.get(&ip).filter(|(_, until)| *until > now);
            prop_assert!(holder.is_none_or(|(holder, _)| *holder == machine), "{} is {:?}'s", ip, holder);
            prop_assert!(world.declined.get(&ip).is_none_or(|until| *until <= now), "{} is in quarantine", ip);
            match reply.kind {
                ReplyKind::Offer => drop(world.offers.insert(machine, ip)),
                ReplyKind::Ack => {
                    let kept = world.store.get(&ip.into()).cloned();
                    let holds = |lease: &Lease| lease.mac == mac(machine) && lease.state == LeaseState::Bound && lease.expires_at == now + LEASE_SECONDS;
                    prop_assert!(kept.as_ref().is_some_and(holds), "granted but not kept: {kept:?}");
                    world.granted.retain(|_, (holder, _)| *holder != machine);
                    world.granted.insert(ip, (machine, now + LEASE_SECONDS));
                }
                ReplyKind::Nak => {}
            }
        }
    }

    #[test]
    fn no_bytes_break_decision_or_reply(data in prop::collection::vec(any::<u8>(), 0..4000)) {
        super::super::fuzz::run_one(&data);
    }

    /// As above, with the message type in place, so that the engine is reached.
    #[test]
    fn no_options_break_decision_or_reply(messages in prop::collection::vec((1u8..9, 0u8..4, prop::collection::vec(any::<u8>(), 0..200)), 1..8)) {
        let mut data = Vec::new();
        for (kind, machine, options) in messages {
            let mut bytes = Message::new(kind, mac(machine)).bytes();
            bytes.pop();
            bytes.extend(options);
            data.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
            data.extend(bytes);
        }
        super::super::fuzz::run_one(&data);
    }
}
