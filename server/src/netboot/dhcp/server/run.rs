//! The tasks of the running service.
#![expect(clippy::disallowed_methods, reason = "reads the clock for the engine")]

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use nkd_api::MacAddr;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::config::Mode;
use super::super::engine::{Arrival, Decision, Engine, Outcome, Port, Reason};
use super::super::metrics::{Addresses, Cause, Kind, Metrics};
use super::super::packet::{self, DecodeError, Request};
use super::super::profile::Client;
use super::super::sighting::{Sighting, Sightings};
use super::commit::{self, Commit, Outbound};
use super::link::Link;
use super::probe::{self, Finding, Question};
use super::rogue::OtherServers;
use super::{Server, advert, rogue};

/// Packets decoded before the engine gets them.
const BATCH: usize = 128;
/// Batches that wait for the engine, for each socket.
const BATCHES: usize = 16;
/// Decisions that wait for the store.
const COMMITS: usize = 8192;
/// Probes under way at once; more offers than this go out without one.
const PROBES: usize = 256;
/// Between two looks at pool usage.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Between two warnings of the same exhausted pool.
const EXHAUSTION_WARNING: u64 = 60;

type Batch = Vec<(Request, Arrival)>;

/// Runs everything until shutdown, then lets the committer finish.
pub(super) async fn run(server: Server, shutdown: CancellationToken) {
    let Server { mode, config, engine, links, store, sightings, metrics, others, mut replacements, handle: _ } = server;
    let mut tasks = JoinSet::new();
    let (batches_in, mut batches) = mpsc::channel(BATCHES);
    let (findings_in, mut findings) = mpsc::channel(PROBES);
    let mut probers = Vec::new();
    for (interface, link) in links.iter().enumerate() {
        let own: Vec<Ipv4Addr> = config.interfaces.iter().map(|one| one.server_ip).collect();
        for port in [Port::Dhcp, Port::Pxe] {
            let reader =
                Reader { links: Arc::clone(&links), interface, port, others: others.clone(), metrics: metrics.clone() };
            tasks.spawn(reader.run(batches_in.clone(), shutdown.clone()));
        }
        let mut prober = None;
        if let Some(mac) = link.facts.mac {
            if mode == Mode::Server && config.conflict_probe {
                match link.arp_socket() {
                    Ok(Some(socket)) => {
                        let (questions, receiver) = mpsc::channel(PROBES);
                        tasks.spawn(probe::run(socket, mac, receiver, findings_in.clone(), shutdown.clone()));
                        prober = Some(questions);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(interface = link.name, %error, "addresses are offered without a conflict probe")
                    }
                }
            }
            if mode == Mode::Server {
                tasks.spawn(rogue::run(link.name.clone(), mac, own, others.clone(), shutdown.clone()));
            }
            if config.router_advertisements {
                match advert::socket(&link.name, &link.facts) {
                    Ok(socket) => drop(tasks.spawn(advert::run(
                        socket,
                        link.name.clone(),
                        link.facts.clone(),
                        metrics.clone(),
                        shutdown.clone(),
                    ))),
                    Err(error) => tracing::warn!(
                        interface = link.name, %error,
                        "no IPv6 router advertisements here: firmware may wait some seconds for one"
                    ),
                }
            }
        }
        probers.push(prober);
        tracing::info!(interface = link.name, ?mode, "DHCP service listens");
    }
    drop((batches_in, findings_in));
    let (commits, queue) = mpsc::channel(COMMITS);
    let committer = tokio::spawn(commit::run(queue, store, Arc::clone(&links), metrics.clone()));
    let subnets = config.interfaces.iter().map(|one| (one.subnet, one.server_ip)).collect();
    let own_macs = links.iter().filter_map(|link| link.facts.mac).collect();
    let mut decider = Decider {
        mode,
        engine,
        links,
        sightings,
        metrics,
        others,
        commits,
        probers,
        subnets,
        own_macs,
        waiting: HashMap::new(),
        warned: HashMap::new(),
    };
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(batch) = batches.recv() => decider.batch(batch),
            Some(finding) = findings.recv() => decider.finding(finding),
            Some((reservations, answer)) = replacements.recv() => {
                // Whoever asked may have gone away; the reservations count all the same.
                drop(answer.send(decider.engine.replace_reservations(&reservations)));
            }
            _ = housekeeping.tick() => decider.housekeeping(),
        }
    }
    drop(decider);
    if let Err(error) = committer.await {
        tracing::error!(%error, "saving leases ended early");
    }
    tasks.shutdown().await;
}

/// Reads one socket.
struct Reader {
    links: Arc<Vec<Link>>,
    interface: usize,
    port: Port,
    others: OtherServers,
    metrics: Metrics,
}

impl Reader {
    fn socket(&self) -> Option<&UdpSocket> {
        let link = self.links.get(self.interface)?;
        match self.port {
            Port::Dhcp => Some(&link.dhcp),
            Port::Pxe => link.pxe.as_ref(),
        }
    }

    async fn run(self, batches: mpsc::Sender<Batch>, shutdown: CancellationToken) {
        let Some(socket) = self.socket() else { return };
        let mut buffer = [0; 2048];
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                ready = socket.readable() => {
                    if let Err(error) = ready {
                        tracing::error!(%error, "DHCP socket failed");
                        return;
                    }
                }
            }
            let mut batch = Vec::new();
            while batch.len() < BATCH {
                match socket.try_recv_from(&mut buffer) {
                    Ok((length, SocketAddr::V4(source))) => {
                        let arrival = Arrival { interface: self.interface, port: self.port, source };
                        batch.extend(self.decode(&buffer[..length]).map(|request| (request, arrival)));
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    // An ICMP error for an earlier reply, or the link is down for a moment.
                    Err(error) => {
                        tracing::debug!(%error, "DHCP socket error");
                        break;
                    }
                }
            }
            if !batch.is_empty() && batches.send(batch).await.is_err() {
                return;
            }
        }
    }

    fn decode(&self, bytes: &[u8]) -> Option<Request> {
        let error = match packet::decode(bytes) {
            Ok(request) => return Some(request),
            Err(error) => error,
        };
        if let (DecodeError::NotARequest(2), Some(offer)) = (error, packet::decode_offer(bytes)) {
            self.others.note(offer.server, &self.links[self.interface].name);
        }
        self.metrics.dropped.get_or_create(&Cause { cause: "malformed" }).inc();
        tracing::debug!(interface = self.links[self.interface].name, %error, "DHCP packet was dropped");
        None
    }
}

/// Owns the engine.
struct Decider {
    mode: Mode,
    engine: Engine,
    links: Arc<Vec<Link>>,
    sightings: Arc<dyn Sightings>,
    metrics: Metrics,
    others: OtherServers,
    commits: mpsc::Sender<Commit>,
    probers: Vec<Option<mpsc::Sender<Question>>>,
    subnets: Vec<(Ipv4Net, Ipv4Addr)>,
    own_macs: HashSet<MacAddr>,
    /// Requests that wait for a probe, by the address that is probed.
    waiting: HashMap<Ipv4Addr, (Request, Arrival)>,
    /// When the exhaustion of a subnet was logged last.
    warned: HashMap<Ipv4Net, u64>,
}

impl Decider {
    fn batch(&mut self, batch: Batch) {
        let now = unix_now();
        for (request, arrival) in batch {
            // Our own look for other servers comes back to us.
            if !self.own_macs.contains(&request.mac) {
                self.metrics.requests.get_or_create(&Kind { kind: request.kind.name() }).inc();
                self.decide(request, arrival, now);
            }
        }
    }

    fn decide(&mut self, request: Request, arrival: Arrival, now: u64) {
        let mut decision = self.engine.step(&request, &arrival, now);
        if let Outcome::Probe(ip) = decision.outcome {
            let Some((request, arrival)) = self.probe(ip, request, arrival) else { return };
            // Too many under way: offer without one.
            self.metrics.probes_skipped.inc();
            self.engine.probed(ip, None, now);
            decision = self.engine.step(&request, &arrival, now);
            self.conclude(&request, &arrival, decision, now);
            return;
        }
        self.conclude(&request, &arrival, decision, now);
    }

    /// Starts a probe and parks the request; gives the request back when that is not possible.
    fn probe(&mut self, ip: Ipv4Addr, request: Request, arrival: Arrival) -> Option<(Request, Arrival)> {
        if let Some(waiting) = self.waiting.get_mut(&ip) {
            *waiting = (request, arrival);
            return None;
        }
        let from = self.subnets.iter().find(|(subnet, _)| subnet.contains(&ip)).map(|(_, server)| *server);
        let prober = self.probers.get(arrival.interface).and_then(Option::as_ref);
        if let (Some(prober), Some(from)) = (prober, from)
            && self.waiting.len() < PROBES
            && prober.try_send(Question { wanted: ip, from }).is_ok()
        {
            self.waiting.insert(ip, (request, arrival));
            return None;
        }
        Some((request, arrival))
    }

    fn finding(&mut self, finding: Finding) {
        let now = unix_now();
        let changes = self.engine.probed(finding.ip, finding.holder, now);
        if let Some(holder) = finding.holder.filter(|_| !changes.is_empty()) {
            self.metrics.conflicts.inc();
            tracing::warn!(address = %finding.ip, %holder, "an address of the DHCP pool is in use by somebody else: left out for a while");
            self.commit(Commit { changes, then: None });
        }
        if let Some((request, arrival)) = self.waiting.remove(&finding.ip) {
            self.decide(request, arrival, now);
        }
    }

    fn conclude(&mut self, request: &Request, arrival: &Arrival, decision: Decision, now: u64) {
        let Decision { client, outcome, reason, ip, changes } = decision;
        self.take_note(&reason, arrival, now);
        let text = describe(&reason, client, &outcome);
        let machine = request.mac;
        let kind = request.kind.name();
        if client == Client::Plain {
            tracing::debug!(%machine, kind, reason = text, "DHCP");
        } else {
            tracing::info!(%machine, kind, %client, reason = text, "DHCP");
        }
        self.sightings.seen(Sighting {
            interface: self.links.get(arrival.interface).map(|link| link.name.clone()).unwrap_or_default(),
            mac: request.mac,
            uuid: request.uuid,
            client,
            architectures: request.architectures.clone(),
            vendor_class: request.vendor_class.clone(),
            hostname: request.hostname.clone(),
            ip: ip.map(Into::into),
            kind: request.kind,
            reason: text,
        });
        let then = match outcome {
            Outcome::Send { reply, to } => {
                Some(Outbound { interface: arrival.interface, port: arrival.port, reply, to })
            }
            Outcome::Probe(_) | Outcome::Silent => None,
        };
        if !changes.is_empty() {
            self.commit(Commit { changes, then });
        } else if let Some(out) = then {
            commit::send(&self.links, &out, &self.metrics);
        }
    }

    fn commit(&self, commit: Commit) {
        if self.commits.try_send(commit).is_err() {
            self.metrics.dropped.get_or_create(&Cause { cause: "store busy" }).inc();
        }
    }

    fn take_note(&mut self, reason: &Reason, arrival: &Arrival, now: u64) {
        match reason {
            Reason::Exhausted(subnet) => {
                self.metrics.exhausted.inc();
                let warned = self.warned.entry(*subnet).or_insert(0);
                if now >= *warned + EXHAUSTION_WARNING {
                    *warned = now;
                    tracing::warn!(%subnet, "the DHCP pool has no free address: widen it, or shorten the lease time");
                }
            }
            Reason::ForOtherServer(Some(server)) if self.mode == Mode::Server => {
                self.others.note(*server, &self.links[arrival.interface].name);
            }
            Reason::Declined(_) => drop(self.metrics.conflicts.inc()),
            Reason::NoSubnet(_) => drop(self.metrics.dropped.get_or_create(&Cause { cause: "no subnet" }).inc()),
            _ => {}
        }
    }

    fn housekeeping(&mut self) {
        for (subnet, usage) in self.engine.usage(unix_now()) {
            let counts = [
                ("size", usage.size),
                ("bound", usage.bound),
                ("offered", usage.offered),
                ("declined", usage.declined),
            ];
            for (state, count) in counts {
                self.metrics.addresses.get_or_create(&Addresses { subnet: subnet.to_string(), state }).set(count);
            }
        }
    }
}

/// The reason, and what is booted.
fn describe(reason: &Reason, client: Client, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Send { reply, .. } => match &reply.boot {
            Some(boot) if reply.network.is_some() => format!("{reason}; {client} loads {}", boot.file),
            _ => reason.to_string(),
        },
        Outcome::Probe(_) | Outcome::Silent => reason.to_string(),
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
