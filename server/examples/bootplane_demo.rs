//! Serves one file at every path over the boot plane: the peer of a load generator.
//!
//! `cargo run --release --example bootplane_demo -- --listen 127.0.0.1:8080 --file image.raw`

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use clap::Parser;
use nkd_server::netboot::bootplane::{Answer, Cache, Config, Handler, Metrics, Request, Server};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Options {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// What to serve.
    #[arg(long)]
    file: PathBuf,
}

struct OneFile {
    file: Arc<File>,
    len: u64,
}

#[async_trait]
impl Handler for OneFile {
    async fn answer(&self, _: &Request) -> Answer {
        Answer::file("application/octet-stream", Arc::clone(&self.file), self.len).with_cache(Cache::NoCache)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    #[expect(clippy::disallowed_methods, reason = "the file to serve")]
    let file = File::open(&options.file).with_context(|| format!("cannot open {}", options.file.display()))?;
    let len = file.metadata()?.len();
    let handler = Arc::new(OneFile { file: Arc::new(file), len });
    let server = Server::bind(Config::new(vec![options.listen]), handler, Metrics::default()).await?;
    println!("listening on {}", server.local_addrs()[0]);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    server.run(shutdown).await;
    Ok(())
}
