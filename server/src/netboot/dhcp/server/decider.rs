//! The task that decides: the only owner of the lease tables.
#![expect(clippy::disallowed_methods, reason = "reads the clock for the engine")]

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use nkd_api::MacAddr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::config::Mode;
use super::super::decision::{Arrival, Decision, Outcome, Reason};
use super::super::engine::Engine;
use super::super::metrics::{Addresses, Cause, Kind, Metrics};
use super::super::packet::Request;
use super::super::profile::{Client, FILES};
use super::super::sighting::{Sighting, Sightings};
use super::Replacement;
use super::commit::{self, Commit, Outbound};
use super::link::Link;
use super::probe::{Finding, PROBES, Question};
use super::reader::Batch;
use super::rogue::{Heard, OtherServers};

/// Between two looks at pool usage.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Between two warnings of the same exhausted pool.
const EXHAUSTION_WARNING: u64 = 60;

/// Owns the engine.
pub(super) struct Decider {
    pub mode: Mode,
    pub engine: Engine,
    pub links: Arc<Vec<Link>>,
    pub sightings: Arc<dyn Sightings>,
    pub metrics: Metrics,
    pub others: OtherServers,
    pub commits: mpsc::Sender<Commit>,
    pub probers: Vec<Option<mpsc::Sender<Question>>>,
    pub subnets: Vec<(Ipv4Net, Ipv4Addr)>,
    pub own_macs: HashSet<MacAddr>,
    /// Requests that wait for a probe, by the address that is probed.
    pub waiting: HashMap<Ipv4Addr, (Request, Arrival)>,
    /// When the exhaustion of a subnet was logged last.
    pub warned: HashMap<Ipv4Net, u64>,
    /// Where the files of iPXE are.
    pub ipxe_dir: Option<PathBuf>,
}

impl Decider {
    /// Decides until shutdown.
    pub async fn run(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        mut findings: mpsc::Receiver<Finding>,
        mut replacements: mpsc::Receiver<Replacement>,
        shutdown: CancellationToken,
    ) {
        self.look_for_files();
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(batch) = batches.recv() => self.batch(batch),
                Some(finding) = findings.recv() => self.finding(finding),
                Some((reservations, answer)) = replacements.recv() => {
                    // Whoever asked may have gone away; the reservations count all the same.
                    drop(answer.send(self.engine.replace_reservations(&reservations)));
                }
                _ = housekeeping.tick() => self.housekeeping(),
            }
        }
    }

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
        let not_served = self.engine.not_served(&decision);
        let served = decision.serves() && not_served.is_none();
        let Decision { client, outcome, reason, ip, changes } = decision;
        self.take_note(&reason, request.mac, arrival, now);
        let mut text = describe(&reason, client, &outcome);
        if let Some(not_served) = &not_served {
            text = format!("{text}; {not_served}");
        }
        let machine = request.mac;
        let trace = self.sightings.trace(machine);
        let kind = request.kind.name();
        if client == Client::Plain {
            tracing::debug!(%trace, %machine, kind, reason = text, "DHCP");
        } else {
            tracing::info!(%trace, %machine, kind, %client, reason = text, "DHCP");
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
            not_served,
            served,
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

    fn take_note(&mut self, reason: &Reason, machine: MacAddr, arrival: &Arrival, now: u64) {
        match reason {
            Reason::Exhausted(subnet) => {
                self.metrics.exhausted.inc();
                let warned = self.warned.entry(*subnet).or_insert(0);
                if now >= *warned + EXHAUSTION_WARNING {
                    *warned = now;
                    tracing::warn!(%subnet, %machine, "the DHCP pool has no free address for a machine: widen it, or shorten the lease time");
                }
            }
            Reason::ForOtherServer(Some(server)) if self.mode == Mode::Server => {
                self.others.note(*server, &self.links[arrival.interface].name, Heard::Hearsay);
            }
            Reason::Declined(_) => drop(self.metrics.conflicts.inc()),
            Reason::NoSubnet(_) => drop(self.metrics.dropped.get_or_create(&Cause { cause: "no subnet" }).inc()),
            _ => {}
        }
    }

    /// Looks which files of iPXE are there: one that is installed later needs no restart.
    fn look_for_files(&mut self) {
        let Some(folder) = &self.ipxe_dir else { return };
        let missing = FILES.into_iter().filter(|file| !folder.join(file).is_file()).collect();
        self.engine.files_missing(missing);
    }

    fn housekeeping(&mut self) {
        self.look_for_files();
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
