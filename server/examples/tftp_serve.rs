//! Serves one folder over TFTP, for measurements: `tftp_serve ADDRESS:PORT FOLDER [WORKERS]`.
#![allow(clippy::disallowed_methods, reason = "a measuring program: files are its business")]

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use async_trait::async_trait;
use nkd_server::netboot::tftp::{Config, Content, FileRequest, Files, Metrics, OpenError, Server};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

struct Folder(PathBuf);

#[async_trait]
impl Files for Folder {
    async fn open(&self, request: &FileRequest) -> Result<Content, OpenError> {
        let file = std::fs::File::open(self.0.join(&request.name)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => OpenError::NotFound,
            _ => OpenError::Io(error),
        })?;
        let len = file.metadata().map_err(OpenError::Io)?.len();
        Ok(Content::File { file: Arc::new(file), len })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (address, folder, workers) = match arguments.as_slice() {
        [address, folder] => (address, folder, None),
        [address, folder, workers] => (address, folder, Some(workers.parse()?)),
        _ => bail!("usage: tftp_serve ADDRESS:PORT FOLDER [WORKERS]"),
    };
    let mut config = Config { listen: address.parse().context("ADDRESS:PORT")?, ..Config::default() };
    config.workers = workers.unwrap_or(config.workers);
    let metrics = Metrics::register(&mut Registry::default());
    let server = Server::bind(config, Arc::new(Folder(folder.into())), metrics).await?;
    println!("{}", server.local_addr());
    Ok(server.run(CancellationToken::new()).await?)
}
