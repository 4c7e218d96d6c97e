//! The tasks of the running service, and their queues.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::config::Mode;
use super::super::decision::Port;
use super::super::metrics::Metrics;
use super::decider::Decider;
use super::link::Link;
use super::probe::{self, Finding, PROBES, Question};
use super::reader::Reader;
use super::{Server, advert, commit, rogue};

/// Batches that wait for the engine.
const BATCHES: usize = 16;
/// Decisions that wait for the store.
const COMMITS: usize = 8192;

/// Runs everything until shutdown, then lets the committer finish.
pub(super) async fn run(server: Server, shutdown: CancellationToken) {
    let Server { mode, config, engine, links, store, sightings, metrics, others, replacements, handle: _ } = server;
    let mut tasks = JoinSet::new();
    let (batches_in, batches) = mpsc::channel(BATCHES);
    let (findings_in, findings) = mpsc::channel(PROBES);
    let (commits, queue) = mpsc::channel(COMMITS);
    let mut probers = Vec::new();
    let own: Vec<Ipv4Addr> = config.interfaces.iter().map(|one| one.server_ip).collect();
    for (interface, link) in links.iter().enumerate() {
        for port in [Port::Dhcp, Port::Pxe] {
            let (links, others, metrics) = (Arc::clone(&links), others.clone(), metrics.clone());
            let reader = Reader { links, interface, port, others, metrics };
            tasks.spawn(reader.run(batches_in.clone(), shutdown.clone()));
        }
        let probing = mode == Mode::Server && config.conflict_probe;
        probers.push(if probing { start_prober(&mut tasks, link, &findings_in, &shutdown) } else { None });
        if let (Mode::Server, Some(mac)) = (mode, link.facts.mac) {
            tasks.spawn(rogue::run(link.name.clone(), mac, own.clone(), others.clone(), shutdown.clone()));
        }
        if config.router_advertisements {
            start_advertiser(&mut tasks, link, &metrics, &shutdown);
        }
        tracing::info!(interface = link.name, ?mode, "DHCP service listens");
    }
    drop((batches_in, findings_in));
    let committer = tokio::spawn(commit::run(queue, store, Arc::clone(&links), metrics.clone()));
    let decider = Decider {
        mode,
        engine,
        sightings,
        metrics,
        others,
        commits,
        probers,
        subnets: config.interfaces.iter().map(|one| (one.subnet, one.server_ip)).collect(),
        own_macs: links.iter().filter_map(|link| link.facts.mac).collect(),
        links,
        waiting: HashMap::new(),
        warned: HashMap::new(),
        ipxe_dir: config.ipxe_dir.clone(),
    };
    // A task of its own runs on the threads of the readers, wherever `run` is awaited.
    tasks.spawn(decider.run(batches, findings, replacements, shutdown.clone()));
    // The decider ends at shutdown, which closes the committer's queue.
    if let Err(error) = committer.await {
        tracing::error!(%error, "saving leases ended early");
    }
    if !shutdown.is_cancelled() {
        tracing::error!("the DHCP service ended by itself: restart nkd");
    }
    tasks.shutdown().await;
}

fn start_prober(
    tasks: &mut JoinSet<()>,
    link: &Link,
    findings: &mpsc::Sender<Finding>,
    shutdown: &CancellationToken,
) -> Option<mpsc::Sender<Question>> {
    match (link.arp_socket(), link.facts.mac) {
        (Ok(Some(socket)), Some(mac)) => {
            let (questions, receiver) = mpsc::channel(PROBES);
            tasks.spawn(probe::run(socket, mac, receiver, findings.clone(), shutdown.clone()));
            Some(questions)
        }
        (Err(error), _) => {
            tracing::warn!(interface = link.name, %error, "addresses are offered without a conflict probe");
            None
        }
        (Ok(_), _) => None,
    }
}

fn start_advertiser(tasks: &mut JoinSet<()>, link: &Link, metrics: &Metrics, shutdown: &CancellationToken) {
    match advert::socket(&link.name, &link.facts) {
        Ok(socket) => {
            let (name, facts) = (link.name.clone(), link.facts.clone());
            tasks.spawn(advert::run(socket, name, facts, metrics.clone(), shutdown.clone()));
        }
        Err(error) => tracing::warn!(
            interface = link.name, %error,
            "no IPv6 router advertisements here: firmware may wait some seconds for one"
        ),
    }
}
