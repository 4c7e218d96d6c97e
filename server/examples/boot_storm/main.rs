//! So many machines that start at the same time, from their first DHCP packet to an enrolled agent, for measurements.
//!
//! `boot_storm --server 10.0.0.1 --relay 10.0.0.2 --machines 1000`, in a network namespace where every address that the
//! server gives is local (`ip route add local 10.0.8.0/21 dev cli0`): each machine speaks from the address that it was
//! given. DHCP goes through one relay, which is this program too.
//!
//! A machine is a UEFI machine: its firmware takes an address and fetches iPXE over TFTP; iPXE takes the address again,
//! asks for its script, fetches kernel and initramfs; Ignition takes the configuration with the token and the CA out of
//! the overlay and checks its digest; the agent enrolls and asks for its task. Whatever is not answered is asked for
//! again, as firmware does, so many times. The last line is one JSON object. With `--stay`, they go on as installed nodes
//! that ask for their task and tell that they live.
#![allow(clippy::disallowed_methods, reason = "a measuring program: sockets and the clock are its business")]

mod http;
mod machine;
mod relay;
mod report;
mod stay;
mod tftp;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use machine::Machine;
use relay::Relay;
use report::Report;
use stay::{Fleet, Node};

#[derive(Parser)]
struct Options {
    /// Address of the service
    #[arg(long)]
    server: Ipv4Addr,
    /// Our own address as a relay
    #[arg(long)]
    relay: Ipv4Addr,
    /// Machines
    #[arg(long, default_value_t = 1000)]
    machines: u16,
    /// How many of them are on their way at a time
    #[arg(long, default_value_t = 128)]
    in_flight: usize,
    /// Go on as nodes that are installed and enrolled, for so many seconds from when all of them are
    #[arg(long)]
    stay: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    // One thread: the service is to have the rest of the machine.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(storm(Options::parse()))
}

async fn storm(options: Options) -> anyhow::Result<()> {
    let relay = Relay::start(options.relay, options.server).await.context("the relay")?;
    let tls = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (report, slots) = (Arc::new(Report::default()), Arc::new(Semaphore::new(options.in_flight)));
    let begun = Instant::now();
    let mut machines = JoinSet::new();
    for number in 0..options.machines {
        let machine = Machine {
            number,
            server: IpAddr::V4(options.server),
            relay: Arc::clone(&relay),
            tls: Arc::clone(&tls),
            report: Arc::clone(&report),
        };
        let slots = Arc::clone(&slots);
        machines.spawn(async move {
            let _slot = slots.acquire_owned().await?;
            let mac = machine.mac();
            machine.boot(options.stay.is_some()).await.with_context(|| format!("machine {mac}"))
        });
    }
    let (mut failed, mut nodes) = (0, Vec::new());
    while let Some(ended) = machines.join_next().await {
        match ended? {
            Ok(node) => nodes.extend(node),
            Err(error) => {
                failed += 1;
                eprintln!("{error:#}");
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut told = report.as_json(usize::from(options.machines), failed, seconds);
    ensure!(failed == 0, "{failed} of {} machines did not get through", options.machines);
    if let Some(stay) = options.stay {
        told["fleet"] = fleet(nodes, Duration::from_secs(stay)).await?;
    }
    println!("{told}");
    Ok(())
}

/// The nodes stay for so long; the last one to be there is said on standard error.
async fn fleet(nodes: Vec<Node>, stay: Duration) -> anyhow::Result<serde_json::Value> {
    let fleet = Arc::new(Fleet::default());
    let until = tokio::time::Instant::now() + stay;
    let mut staying = JoinSet::new();
    for node in nodes {
        let fleet = Arc::clone(&fleet);
        staying.spawn(async move { node.stay(&fleet, until).await });
    }
    eprintln!("all are nodes");
    while let Some(ended) = staying.join_next().await {
        ended??;
    }
    let of = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    Ok(serde_json::json!({
        "heartbeats": of(&fleet.heartbeats),
        "answers": of(&fleet.answers),
        "connections": of(&fleet.connections),
    }))
}
