//! Downloads over http and https that go on where they broke off.
//!
//! A file is kept under `<state>/partial/<sha256>` until it is whole and its digest is right. A later attempt, also one
//! of a later process, asks for the rest (`Range`, with `If-Range` when the server gave a strong ETag or a date). What
//! was spliced wrongly shows in the digest, and is then fetched once more from the start.

#![expect(clippy::disallowed_methods, reason = "fetches and keeps files")]

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use http::header::ACCEPT_ENCODING;
use nkd_api::Sha256Digest;
use reqwest::{Certificate, Client};
use tokio::sync::OnceCell;
use url::Url;

use super::public_url;
use super::transfer::Transfer;
use crate::content::blob::BlobError;
use crate::content::image::progress::Progress;

/// Attempts of one file in all, however many of them got on.
const MAX_ATTEMPTS: u32 = 100;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Storing what came failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The client could not be made.
    #[error("cannot set up downloads")]
    Client(#[source] reqwest::Error),
    /// The file of certificates cannot be used.
    #[error("{} cannot be used as a file of CA certificates in PEM form: {reason}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The server said no.
    #[error("{url} answered {status}")]
    Status {
        /// The address.
        url: String,
        /// What it answered.
        status: StatusCode,
    },
    /// Every attempt broke off.
    #[error(
        "{url} could not be fetched in {attempts} attempts: {reason}; what came is kept, the next import goes on from there"
    )]
    GaveUp {
        /// The address.
        url: String,
        /// Attempts.
        attempts: u32,
        /// What happened to the last one.
        reason: String,
    },
    /// The bytes are not those that were stated.
    #[error("{url} has the SHA-256 digest {actual}, and {expected} was stated")]
    Digest {
        /// The address.
        url: String,
        /// As stated.
        expected: Sha256Digest,
        /// As it is.
        actual: Sha256Digest,
    },
    /// More bytes than are taken.
    #[error("{url} has {size} bytes or more; more than {limit} bytes are refused")]
    TooLarge {
        /// The address.
        url: String,
        /// Its bytes, as far as known.
        size: u64,
        /// The most that is taken.
        limit: u64,
    },
    /// Another process is at it.
    #[error("{url} is being fetched by another import; wait for it")]
    Busy {
        /// The address.
        url: String,
    },
    /// The kept part could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// How often and how fast a download is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts in a row that bring nothing new.
    pub attempts: u32,
    /// Wait after the first; doubled after each, up to half a minute.
    pub first_wait: Duration,
    /// Silence after which a connection counts as broken.
    pub silence: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 6, first_wait: Duration::from_millis(500), silence: Duration::from_secs(60) }
    }
}

/// Fetches files.
#[derive(Debug)]
pub struct Fetcher {
    client: OnceCell<Client>,
    partial: PathBuf,
    authorities: Option<PathBuf>,
    retry: Retry,
}

/// A whole file with the right digest, not published yet.
#[derive(Debug)]
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Held so that no other process touches it.
    pub(super) _lock: File,
}

impl Fetcher {
    /// A fetcher that keeps parts in `partial`, a folder in the file system of the blobs. Servers are trusted by the
    /// certificates of this host and, if given, by those of a PEM file.
    #[must_use]
    pub fn new(partial: PathBuf, authorities: Option<PathBuf>, retry: Retry) -> Self {
        Self { client: OnceCell::new(), partial, authorities, retry }
    }

    /// The client, made when it is first needed. The process must have a default TLS provider by then.
    async fn client(&self) -> Result<&Client, DownloadError> {
        self.client.get_or_try_init(|| async { make_client(self.authorities.as_deref(), self.retry) }).await
    }

    /// Fetches a small file, and the address that it came from in the end.
    ///
    /// # Errors
    /// [`DownloadError`].
    pub async fn small(&self, url: &Url, limit: u64) -> Result<(Vec<u8>, Url), DownloadError> {
        let mut attempts = Attempts::new(url, self.retry);
        loop {
            let failed = match self.try_small(url, limit).await {
                Ok(done) => return Ok(done),
                Err(failed) => failed,
            };
            attempts.failed(failed, false).await?;
        }
    }

    async fn try_small(&self, url: &Url, limit: u64) -> Result<(Vec<u8>, Url), Failed> {
        let request = self.client().await?.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        let mut response = request.send().await.map_err(Failed::transport)?;
        check_status(url, response.status())?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Failed::transport)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(Failed::too_large(url, bytes.len() as u64, limit));
            }
        }
        Ok((bytes, response.url().clone()))
    }

    /// Fetches a file with a known digest; goes on with what is kept of it.
    ///
    /// # Errors
    /// [`DownloadError`].
    pub async fn fetch(
        &self,
        url: &Url,
        sha256: Sha256Digest,
        limit: u64,
        stage: &str,
        progress: &dyn Progress,
    ) -> Result<Fetched, DownloadError> {
        fs::create_dir_all(&self.partial).map_err(io_error("create", &self.partial))?;
        let mut transfer = Transfer::open(&self.partial, url, sha256, limit).await?;
        let mut attempts = Attempts::new(url, self.retry);
        // In pieces: some bytes may be those of another file.
        let mut spliced = transfer.offset > 0;
        let mut anew = false;
        loop {
            let before = transfer.offset;
            if let Err(failed) = transfer.attempt(self.client().await?, stage, progress).await {
                if matches!(failed, Failed::Final(DownloadError::Blob(BlobError::NoSpace { .. }))) {
                    transfer.discard()?;
                }
                attempts.failed(failed, transfer.offset > before).await?;
                spliced = transfer.offset > 0;
                continue;
            }
            let actual = transfer.digest();
            if actual == sha256 {
                return transfer.finish();
            }
            if !spliced || anew {
                transfer.discard()?;
                return Err(DownloadError::Digest { url: public_url(url), expected: sha256, actual });
            }
            tracing::warn!(url = public_url(url), "what was kept of a download does not fit; it is fetched anew");
            transfer.restart()?;
            (spliced, anew) = (false, true);
        }
    }
}

fn make_client(authorities: Option<&Path>, retry: Retry) -> Result<Client, DownloadError> {
    let redirects = reqwest::redirect::Policy::custom(|attempt| {
        let secure = attempt.previous().iter().any(|u| u.scheme() == "https");
        if secure && attempt.url().scheme() != "https" {
            attempt.error("a redirect from https to http is refused")
        } else if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else {
            attempt.follow()
        }
    });
    let mut client = Client::builder()
        .user_agent(concat!("nkd/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(15))
        .read_timeout(retry.silence)
        .redirect(redirects);
    if let Some(path) = authorities {
        let bad = |reason: String| DownloadError::Authorities { path: path.to_path_buf(), reason };
        let pem = fs::read(path).map_err(|e| bad(e.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| bad(chain(&e)))?;
        if certificates.is_empty() {
            return Err(bad("it holds no certificate".to_owned()));
        }
        client = client.tls_certs_merge(certificates);
    }
    client.build().map_err(DownloadError::Client)
}

/// An attempt that failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// Another may do better.
    Again(String),
    /// Another will not.
    Final(DownloadError),
}

impl Failed {
    pub(super) fn transport(error: reqwest::Error) -> Self {
        Self::Again(chain(&error.without_url()))
    }

    pub(super) fn too_large(url: &Url, size: u64, limit: u64) -> Self {
        Self::Final(DownloadError::TooLarge { url: public_url(url), size, limit })
    }
}

impl<E: Into<DownloadError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

struct Attempts {
    url: String,
    retry: Retry,
    count: u32,
    idle: u32,
}

impl Attempts {
    fn new(url: &Url, retry: Retry) -> Self {
        Self { url: public_url(url), retry, count: 0, idle: 0 }
    }

    /// Counts a failed attempt and waits before the next one.
    async fn failed(&mut self, failed: Failed, got_on: bool) -> Result<(), DownloadError> {
        let reason = match failed {
            Failed::Final(error) => return Err(error),
            Failed::Again(reason) => reason,
        };
        self.count += 1;
        self.idle = if got_on { 0 } else { self.idle + 1 };
        if self.idle >= self.retry.attempts || self.count >= MAX_ATTEMPTS {
            return Err(DownloadError::GaveUp { url: self.url.clone(), attempts: self.count, reason });
        }
        tracing::info!(url = self.url, attempt = self.count, reason, "a download broke off and is tried again");
        let wait = self.retry.first_wait.saturating_mul(1 << self.idle.min(10)).min(Duration::from_secs(30));
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

pub(super) fn check_status(url: &Url, status: StatusCode) -> Result<(), Failed> {
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Failed::Again(format!("answer {status}"))),
        status if status.is_server_error() => Err(Failed::Again(format!("answer {status}"))),
        status => Err(Failed::Final(DownloadError::Status { url: public_url(url), status })),
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DownloadError {
    let path = path.to_path_buf();
    move |source| DownloadError::Io { action, path, source }
}
