//! The decision on a request: lease tables, request, receiving interface and time to an answer, changes to keep, and a reason.
//!
//! Whoever runs it keeps `changes` durable before the reply leaves; an offer changes nothing durable. Time is in Unix
//! seconds, so that leases mean the same after a restart.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use nkd_api::MacAddr;

use super::config::{Config, ConfigError, InterfaceConfig, Mode, Reservation, validate_reservations};
use super::decision::{Arrival, Decision, Destination, NotServed, Outcome, Reason, Refusal};
use super::lease::{Lease, LeaseChange, LeaseState};
use super::packet::{MessageKind, Request};
use super::pool::{Pool, Usage, Use};
use super::profile::{self, Carrier, Client};
use super::proxy;
use super::reply::{NetworkOptions, Reply, ReplyKind};

/// How long an offered address waits for its machine. Firmware may take many seconds between offer and request.
const OFFER_SECONDS: u64 = 60;
/// How long an address rests after somebody else was found at it.
const QUARANTINE_SECONDS: u64 = 600;
/// How long a probe's result holds.
const PROBE_SECONDS: u64 = 60;

struct Subnet {
    interface: usize,
    config: InterfaceConfig,
    network: Arc<NetworkOptions>,
    pool: Pool,
}

/// All lease tables and what is needed to decide.
pub struct Engine {
    mode: Mode,
    http_port: u16,
    conflict_probe: bool,
    interfaces: Vec<String>,
    subnets: Vec<Subnet>,
    reserved: HashMap<Ipv4Addr, (MacAddr, Option<String>)>,
    /// Addresses of reservations by machine; one for each subnet at most.
    reservations: HashMap<MacAddr, Vec<Ipv4Addr>>,
    /// Results of probes, and until when they hold.
    probes: HashMap<Ipv4Addr, (Option<MacAddr>, u64)>,
    ipxe_dir: Option<PathBuf>,
    /// Files of iPXE that are not in the folder.
    missing: HashSet<&'static str>,
}

impl Engine {
    /// Empty tables.
    ///
    /// # Errors
    /// When the settings contradict themselves.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut interfaces: Vec<String> = Vec::new();
        let mut subnets = Vec::new();
        for one in &config.interfaces {
            let interface = interfaces.iter().position(|name| *name == one.name).unwrap_or_else(|| {
                interfaces.push(one.name.clone());
                interfaces.len() - 1
            });
            let network = Arc::new(NetworkOptions::from(one));
            subnets.push(Subnet { interface, pool: Pool::new(one), network, config: one.clone() });
        }
        let mut engine = Self {
            mode: config.mode,
            http_port: config.http_port,
            conflict_probe: config.conflict_probe,
            interfaces,
            subnets,
            reserved: HashMap::new(),
            reservations: HashMap::new(),
            probes: HashMap::new(),
            ipxe_dir: config.ipxe_dir.clone(),
            missing: HashSet::new(),
        };
        engine.replace_reservations(&config.reservations)?;
        Ok(engine)
    }

    /// Names of the interfaces, each once; their order is what [`Arrival::interface`] counts in.
    #[must_use]
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// Puts durable leases back; those outside every subnet are left alone.
    pub fn restore(&mut self, mut leases: Vec<Lease>) {
        // A machine goes by its latest lease.
        leases.sort_by_key(|lease| lease.granted_at);
        for lease in leases {
            if let IpAddr::V4(ip) = lease.ip
                && let Some(subnet) = self.subnets.iter_mut().find(|subnet| subnet.config.subnet.contains(&ip))
            {
                subnet.pool.restore(ip, lease);
            }
        }
    }

    /// Takes over a new set of reservations. A proxy gives no addresses and needs none.
    ///
    /// # Errors
    /// When they contradict themselves; the former set stays.
    pub fn replace_reservations(&mut self, reservations: &[Reservation]) -> Result<(), ConfigError> {
        if self.mode != Mode::Server {
            return Ok(());
        }
        let subnets: Vec<InterfaceConfig> = self.subnets.iter().map(|subnet| subnet.config.clone()).collect();
        validate_reservations(&subnets, reservations)?;
        self.reserved.clear();
        self.reservations.clear();
        for Reservation { mac, ip, hostname } in reservations {
            if let IpAddr::V4(ip) = *ip {
                self.reserved.insert(ip, (*mac, hostname.clone()));
                self.reservations.entry(*mac).or_default().push(ip);
            }
        }
        for subnet in &mut self.subnets {
            subnet.pool.rescan();
        }
        Ok(())
    }

    /// Use of each subnet's addresses. Forgets outdated probes.
    pub fn usage(&mut self, now: u64) -> Vec<(Ipv4Net, Usage)> {
        self.probes.retain(|_, (_, until)| *until > now);
        self.subnets.iter().map(|subnet| (subnet.config.subnet, subnet.pool.usage(now))).collect()
    }

    /// Takes note of who was found at an address that [`Outcome::Probe`] named.
    pub fn probed(&mut self, ip: Ipv4Addr, holder: Option<MacAddr>, now: u64) -> Vec<LeaseChange> {
        self.probes.insert(ip, (holder, now + PROBE_SECONDS));
        let Some(holder) = holder else { return Vec::new() };
        let Some(subnet) = self.subnets.iter_mut().find(|subnet| subnet.config.subnet.contains(&ip)) else {
            return Vec::new();
        };
        let offered_to = subnet.pool.entry(ip).map(|entry| entry.mac);
        if offered_to == Some(holder) || self.reserved.contains_key(&ip) {
            return Vec::new();
        }
        vec![subnet.pool.quarantine(ip, holder, now, now + QUARANTINE_SECONDS)]
    }

    /// Takes note of the files of iPXE that are not there: they are not offered.
    pub fn files_missing(&mut self, missing: HashSet<&'static str>) {
        self.missing = missing;
    }

    /// The file that the client would load, when it is not there.
    fn missing_file(&self, client: Client) -> Option<&'static str> {
        profile::file_of(client).filter(|file| self.missing.contains(file))
    }

    /// What a decision keeps from its machine.
    #[must_use]
    pub fn not_served(&self, decision: &Decision) -> Option<NotServed> {
        if let Reason::Exhausted(exhausted) = decision.reason {
            let subnet = self.subnets.iter().find(|subnet| subnet.config.subnet == exhausted)?;
            let (interface, pool) = (subnet.config.name.clone(), subnet.config.pool.clone());
            return Some(NotServed::NoAddress { interface, pool });
        }
        if !decision.serves() && !matches!(decision.reason, Reason::NothingToBoot(_)) {
            return None;
        }
        match (decision.client, self.missing_file(decision.client)) {
            (Client::Unsupported(code), _) => Some(NotServed::NoLoader(code)),
            (_, Some(file)) => Some(NotServed::NoFile { file, folder: self.ipxe_dir.clone().unwrap_or_default() }),
            (_, None) => None,
        }
    }

    /// Decides on a request.
    pub fn step(&mut self, request: &Request, arrival: &Arrival, now: u64) -> Decision {
        let client = Client::of(request);
        let silent = |reason| Decision { client, outcome: Outcome::Silent, reason, ip: None, changes: Vec::new() };
        let Some(index) = self.subnet_of(request, arrival) else {
            return silent(Reason::NoSubnet(request.giaddr));
        };
        if self.mode != Mode::Server {
            let loadable = self.missing_file(client).is_none();
            return proxy::step(request, arrival, self.subnets[index].config.server_ip, self.http_port, loadable);
        }
        let server = self.subnets[index].config.server_ip;
        if let Some(chosen) = request.server_id.filter(|id| *id != server) {
            if request.kind == MessageKind::Request
                && let Some(offered) = self.subnets[index].pool.address_of(request.mac)
            {
                self.subnets[index].pool.withdraw_offer(offered, now);
            }
            return silent(Reason::ForOtherServer(Some(chosen)));
        }
        match request.kind {
            MessageKind::Discover => self.discover(index, client, request, now),
            MessageKind::Request => self.request(index, client, request, now),
            MessageKind::Decline => match request.requested_ip {
                Some(ip) => Decision { ip: None, ..self.decline(index, client, request, ip, now) },
                None => silent(Reason::NoAddress),
            },
            MessageKind::Release => {
                let pool = &mut self.subnets[index].pool;
                let ip = request.ciaddr;
                if !pool.entry(ip).is_some_and(|entry| entry.is_held_by(request.mac, now)) {
                    return silent(Reason::NotItsAddress);
                }
                let changes = pool.release(ip, now).into_iter().collect();
                Decision { changes, ..silent(Reason::Released(ip)) }
            }
            MessageKind::Inform if request.ciaddr.is_unspecified() => silent(Reason::NoAddress),
            MessageKind::Inform => {
                let reply = self.reply(index, client, request, ReplyKind::Ack);
                let to = destination(&reply, request);
                let ip = Some(request.ciaddr);
                Decision { ip, outcome: Outcome::Send { reply, to }, ..silent(Reason::Informed) }
            }
        }
    }

    /// A relay names its subnet; a client that has an address is of that address's subnet; the others are on the link.
    fn subnet_of(&self, request: &Request, arrival: &Arrival) -> Option<usize> {
        let holding = |ip: Ipv4Addr| self.subnets.iter().position(|subnet| subnet.config.subnet.contains(&ip));
        if !request.giaddr.is_unspecified() {
            return match request.link_selection {
                Some(link) => holding(link),
                None => holding(request.giaddr),
            };
        }
        let on_link = || {
            let on_link = |subnet: &Subnet| subnet.interface == arrival.interface && subnet.config.on_link();
            self.subnets.iter().position(on_link)
        };
        if request.ciaddr.is_unspecified() || self.mode != Mode::Server {
            return on_link();
        }
        holding(request.ciaddr).or_else(on_link)
    }

    fn reservation(&self, index: usize, mac: MacAddr) -> Option<Ipv4Addr> {
        let subnet = &self.subnets[index].config.subnet;
        self.reservations.get(&mac)?.iter().copied().find(|ip| subnet.contains(ip))
    }

    fn discover(&mut self, index: usize, client: Client, request: &Request, now: u64) -> Decision {
        let mac = request.mac;
        let reserved = self.reservation(index, mac);
        let decision = |outcome, reason| Decision { client, outcome, reason, ip: None, changes: Vec::new() };
        let Some(ip) = reserved.or_else(|| self.choose(index, request, now)) else {
            return decision(Outcome::Silent, Reason::Exhausted(self.subnets[index].config.subnet));
        };
        let subnet = &mut self.subnets[index];
        let bound = subnet
            .pool
            .entry(ip)
            .is_some_and(|entry| entry.usage == Use::Kept(LeaseState::Bound) && entry.is_held_by(mac, now));
        if !bound {
            subnet.pool.offer(ip, mac, now, now + OFFER_SECONDS);
            if self.conflict_probe && subnet.config.on_link() {
                match self.probes.get(&ip).filter(|(_, until)| *until > now) {
                    None => return decision(Outcome::Probe(ip), Reason::Probing(ip)),
                    // Only a reserved address is still chosen after somebody was found at it.
                    Some((Some(holder), _)) if *holder != mac => {
                        return decision(Outcome::Silent, Reason::ReservedInUse(ip, *holder));
                    }
                    Some(_) => {}
                }
            }
        }
        let mut reply = self.reply(index, client, request, ReplyKind::Offer);
        self.fill_lease(index, &mut reply, ip);
        let to = destination(&reply, request);
        let reason = if reserved.is_some() { Reason::OfferedReserved(ip) } else { Reason::Offered(ip) };
        decision(Outcome::Send { reply, to }, reason)
    }

    /// The address it has or had, else the one it asks for, else any free one.
    fn choose(&mut self, index: usize, request: &Request, now: u64) -> Option<Ipv4Addr> {
        let reserved = &self.reserved;
        let pool = &mut self.subnets[index].pool;
        let usable = |ip: &Ipv4Addr| {
            pool.is_dynamic(*ip) && !reserved.contains_key(ip) && pool.is_free_for(*ip, request.mac, now)
        };
        pool.address_of(request.mac)
            .filter(usable)
            .or_else(|| request.requested_ip.filter(usable))
            .or_else(|| pool.free_address(|ip| reserved.contains_key(&ip), now))
    }

    fn request(&mut self, index: usize, client: Client, request: &Request, now: u64) -> Decision {
        let mac = request.mac;
        let in_use = Some(request.ciaddr).filter(|ip| !ip.is_unspecified());
        let Some(ip) = request.requested_ip.or(in_use) else {
            let outcome = Outcome::Silent;
            return Decision { client, outcome, reason: Reason::NoAddress, ip: None, changes: Vec::new() };
        };
        if let Err(refusal) = self.entitled(index, mac, ip, now) {
            let mut reply = Reply::to(request, ReplyKind::Nak, self.subnets[index].config.server_ip);
            reply.message = Some(refusal.message());
            // RFC 2131 section 4.3.2: the relay has to broadcast it.
            reply.broadcast |= !request.giaddr.is_unspecified();
            let to = if request.giaddr.is_unspecified() {
                Destination::Broadcast
            } else {
                Destination::Relay(request.giaddr)
            };
            let outcome = Outcome::Send { reply, to };
            return Decision { client, outcome, reason: Reason::Refused(ip, refusal), ip: None, changes: Vec::new() };
        }
        let subnet = &mut self.subnets[index];
        let until = now.saturating_add(subnet.config.lease_time.as_secs());
        let renewed = subnet
            .pool
            .entry(ip)
            .is_some_and(|entry| entry.usage == Use::Kept(LeaseState::Bound) && entry.is_held_by(mac, now));
        let changes = subnet.pool.bind(ip, mac, request.hostname.clone(), now, until);
        let mut reply = self.reply(index, client, request, ReplyKind::Ack);
        self.fill_lease(index, &mut reply, ip);
        let to = destination(&reply, request);
        let reason = if renewed { Reason::Renewed(ip) } else { Reason::Granted(ip) };
        Decision { client, outcome: Outcome::Send { reply, to }, reason, ip: Some(ip), changes }
    }

    /// This server is the authority of its subnets: a machine that comes back with an address it may have gets it, also
    /// when no lease is known; any other address is refused.
    fn entitled(&self, index: usize, mac: MacAddr, ip: Ipv4Addr, now: u64) -> Result<(), Refusal> {
        let subnet = &self.subnets[index];
        if !subnet.config.subnet.contains(&ip) {
            return Err(Refusal::WrongNetwork);
        }
        match (self.reservation(index, mac), self.reserved.get(&ip)) {
            (Some(own), _) if own == ip => return Ok(()),
            (Some(own), _) => return Err(Refusal::HasReservation(own)),
            (None, Some(_)) => return Err(Refusal::ReservedForAnother),
            (None, None) => {}
        }
        if !subnet.pool.is_dynamic(ip) {
            return Err(Refusal::OutsidePool);
        }
        if subnet.pool.is_free_for(ip, mac, now) { Ok(()) } else { Err(Refusal::Taken) }
    }

    fn decline(&mut self, index: usize, client: Client, request: &Request, ip: Ipv4Addr, now: u64) -> Decision {
        let decide = |reason, changes| Decision { client, outcome: Outcome::Silent, reason, ip: None, changes };
        let pool = &mut self.subnets[index].pool;
        if !pool.entry(ip).is_some_and(|entry| entry.is_held_by(request.mac, now)) {
            return decide(Reason::NotItsAddress, Vec::new());
        }
        self.probes.remove(&ip);
        // A reserved address is probed again for its machine and not kept from it.
        let changes = if self.reserved.contains_key(&ip) {
            pool.release(ip, now).into_iter().collect()
        } else {
            vec![pool.quarantine(ip, request.mac, now, now + QUARANTINE_SECONDS)]
        };
        decide(Reason::Declined(ip), changes)
    }

    fn reply(&self, index: usize, client: Client, request: &Request, kind: ReplyKind) -> Reply {
        let subnet = &self.subnets[index];
        let server = subnet.config.server_ip;
        let mut reply = Reply::to(request, kind, server);
        reply.network = Some(Arc::clone(&subnet.network));
        reply.boot = match self.missing_file(client) {
            Some(_) => None,
            None => profile::boot(client, Carrier::Lease, server, self.http_port),
        };
        reply
    }

    fn fill_lease(&self, index: usize, reply: &mut Reply, ip: Ipv4Addr) {
        reply.yiaddr = ip;
        reply.lease_time = Some(Duration::from_secs(self.subnets[index].config.lease_time.as_secs()));
        if let Some((mac, hostname)) = self.reserved.get(&ip)
            && *mac == reply.mac
        {
            reply.hostname.clone_from(hostname);
        }
    }
}

/// RFC 2131 section 4.1, for replies other than NAK.
fn destination(reply: &Reply, request: &Request) -> Destination {
    if !request.giaddr.is_unspecified() {
        Destination::Relay(request.giaddr)
    } else if !request.ciaddr.is_unspecified() {
        Destination::Client(request.ciaddr)
    } else if request.broadcast || reply.yiaddr.is_unspecified() {
        Destination::Broadcast
    } else {
        Destination::Link { mac: request.mac, ip: reply.yiaddr }
    }
}

#[cfg(test)]
mod tests;
