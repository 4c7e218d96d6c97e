//! Hands the disk image to the installer over loopback, and keeps its end back until its digest is right.
//!
//! ```text
//! service ──HTTP, Range──▶ relay ──http://127.0.0.1:PORT/NAME──▶ installer ──▶ disk
//! ```
//! coreos-installer, as of 0.27, first asks for `NAME.sig` (404: no signature, which `--insecure` permits), then sends
//! one GET for the image, wants status 200, sniffs the compression by magic, and writes the first MiB of the disk last,
//! when it has seen the end. The relay promises the whole length and holds the last [`TAIL`] bytes: if the digest is
//! wrong it closes the connection, the installer sees a short body, fails, and resets the partition table.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nkd_api::Sha256Digest;
use ring::digest::{Context, SHA256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::fetch::{FetchError, Image, Patience};

/// Bytes that are held back.
pub const TAIL: usize = 256 << 10;
/// Largest request head.
const HEAD_LIMIT: usize = 16 << 10;
/// An installer that takes no byte for this long is stuck.
const STUCK: Duration = Duration::from_secs(900);

/// What the relay knows of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody asked for it.
    Untouched,
    /// This many bytes came.
    Relaying(u64),
    /// Every byte came and the digest is right.
    Verified,
    /// Every byte came and the digest is wrong.
    Mismatch(Sha256Digest),
    /// They did not all come.
    FetchFailed(FetchError),
    /// The installer went away.
    Dropped(String),
}

/// The image as the task names it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where it is.
    pub url: String,
    /// Digest of its bytes.
    pub sha256: Sha256Digest,
    /// Their number.
    pub size: u64,
    /// When to give up.
    pub patience: Patience,
}

impl Wanted {
    /// The last part of its address, which the installer's log shows.
    #[must_use]
    pub fn file_name(&self) -> String {
        let path = self.url.split(['?', '#']).next().unwrap_or_default();
        let name: String = path
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
            .collect();
        if name.is_empty() { "image".to_owned() } else { name }
    }
}

/// Serves one image until it is dropped.
pub async fn serve(listener: TcpListener, wanted: Wanted, verdict: watch::Sender<Verdict>) {
    let wanted = Arc::new(wanted);
    let image_path = format!("/{}", wanted.file_name());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the installer's connection could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // One after the other: there is one installer, and it asks for one thing at a time.
        if let Err(error) = answer(stream, &image_path, &wanted, &verdict).await {
            tracing::debug!(%error, "the installer's connection broke");
        }
    }
}

async fn answer(
    mut stream: TcpStream,
    image_path: &str,
    wanted: &Wanted,
    verdict: &watch::Sender<Verdict>,
) -> io::Result<()> {
    let head = timeout(Duration::from_secs(30), read_head(&mut stream)).await.map_err(io::Error::from)??;
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if path != image_path || !matches!(method, "GET" | "HEAD") {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?;
        return stream.shutdown().await;
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        wanted.size
    );
    stream.write_all(head.as_bytes()).await?;
    if method == "HEAD" {
        return stream.shutdown().await;
    }
    if let Err(ended) = relay(&mut stream, wanted, verdict).await {
        // Dropping the stream cuts the promised body short.
        verdict.send_replace(ended);
        return Ok(());
    }
    stream.shutdown().await
}

async fn relay(stream: &mut TcpStream, wanted: &Wanted, verdict: &watch::Sender<Verdict>) -> Result<(), Verdict> {
    let mut image = Image::new(&wanted.url, wanted.size, wanted.patience).map_err(Verdict::FetchFailed)?;
    let mut digest = Context::new(&SHA256);
    let mut held = BytesMut::new();
    let mut came = 0u64;
    verdict.send_replace(Verdict::Relaying(0));
    while let Some(bytes) = image.next().await.map_err(Verdict::FetchFailed)? {
        digest.update(&bytes);
        came += bytes.len() as u64;
        held.extend_from_slice(&bytes);
        if held.len() > TAIL {
            let free = held.split_to(held.len() - TAIL).freeze();
            hand_over(stream, &free).await?;
        }
        verdict.send_replace(Verdict::Relaying(came));
    }
    let mut found = [0; 32];
    found.copy_from_slice(digest.finish().as_ref());
    let found = Sha256Digest(found);
    if found != wanted.sha256 {
        return Err(Verdict::Mismatch(found));
    }
    verdict.send_replace(Verdict::Verified);
    hand_over(stream, &held.freeze()).await
}

async fn hand_over(stream: &mut TcpStream, bytes: &Bytes) -> Result<(), Verdict> {
    match timeout(STUCK, stream.write_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Verdict::Dropped(error.to_string())),
        Err(_) => Err(Verdict::Dropped(format!("the installer took nothing for {} s", STUCK.as_secs()))),
    }
}

async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= HEAD_LIMIT || stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
