//! Nodes that ask for the update graph, each with its own identity, as zincati does: how many answers come in a second.
//!
//! `cargo run --release --example graph_load -- https://127.0.0.1:8443 --ca ca.pem --channel stable --architecture x86_64
//! --commit 64-HEX --nodes 10000 --at-once 64`
//!
//! The last line is a JSON object: `requests_per_second`, `requests`, `seconds`, `bytes` (of one answer).

#![expect(clippy::disallowed_methods, reason = "a measuring program")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Parser;

#[derive(Parser, Clone)]
struct Options {
    /// Base address of the service.
    server: String,
    /// Its CA, PEM.
    #[arg(long)]
    ca: PathBuf,
    #[arg(long)]
    channel: String,
    #[arg(long)]
    architecture: String,
    /// What every node says that it runs.
    #[arg(long)]
    commit: String,
    /// Nodes, each of which asks twice.
    #[arg(long)]
    nodes: usize,
    /// How many ask at the same time.
    #[arg(long)]
    at_once: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // A process has one; nobody was before us.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let options = Options::parse();
    let ca = std::fs::read(&options.ca).with_context(|| format!("cannot read {}", options.ca.display()))?;
    let client = reqwest::Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&ca)?]).build()?;
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let askers: Vec<_> =
        (0..options.at_once).map(|_| tokio::spawn(ask(client.clone(), options.clone(), Arc::clone(&next)))).collect();
    let mut bytes = 0;
    for asker in askers {
        bytes = bytes.max(asker.await??);
    }
    let (seconds, requests) = (begun.elapsed().as_secs_f64(), options.nodes * 2);
    let rate = requests as f64 / seconds;
    println!(
        "{}",
        serde_json::json!({"requests": requests, "seconds": seconds, "requests_per_second": rate, "bytes": bytes})
    );
    Ok(())
}

/// Asks for one node after another; gives the length of the longest answer.
async fn ask(client: reqwest::Client, options: Options, next: Arc<AtomicUsize>) -> anyhow::Result<usize> {
    let mut longest = 0;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= options.nodes * 2 {
            return Ok(longest);
        }
        let node = format!("{:032x}", number % options.nodes);
        let url = format!(
            "{}/v1/graph?stream={}&basearch={}&os_checksum={}&node_uuid={node}&group=default",
            options.server, options.channel, options.architecture, options.commit
        );
        let answer = client.get(url).send().await?.error_for_status()?.bytes().await?;
        ensure!(answer.starts_with(b"{"), "no graph: {}", String::from_utf8_lossy(&answer));
        longest = longest.max(answer.len());
    }
}
