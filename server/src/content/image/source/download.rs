//! Downloads over http and https that go on where they broke off.
//!
//! A file is kept under `<state>/partial/<sha256>` until it is whole and its digest is right. A later attempt, also one
//! of a later process, asks for the rest (`Range`, with `If-Range` when the server gave a strong ETag or a date). What
//! was spliced wrongly shows in the digest, and is then fetched once more from the start.

#![expect(clippy::disallowed_methods, reason = "fetches and keeps files")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use http::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, StatusCode};
use nkd_api::Sha256Digest;
use reqwest::{Certificate, Client, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use url::Url;

use super::public_url;
use crate::content::blob::{BlobError, finish_hash, reserve, sync_dir, write_error};
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
    _lock: File,
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
            let actual = finish_hash(transfer.hash.clone());
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
enum Failed {
    /// Another may do better.
    Again(String),
    /// Another will not.
    Final(DownloadError),
}

impl Failed {
    fn transport(error: reqwest::Error) -> Self {
        Self::Again(chain(&error.without_url()))
    }

    fn too_large(url: &Url, size: u64, limit: u64) -> Self {
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

/// What is remembered beside a part, to know whether the server still has the same file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    url: String,
    /// Strong ETag, or date of the last change.
    validator: Option<String>,
}

/// One file on its way.
struct Transfer<'a> {
    url: &'a Url,
    sha256: Sha256Digest,
    limit: u64,
    path: PathBuf,
    notes: PathBuf,
    file: File,
    hash: Context,
    offset: u64,
    kept: Kept,
}

impl<'a> Transfer<'a> {
    async fn open(dir: &Path, url: &'a Url, sha256: Sha256Digest, limit: u64) -> Result<Self, DownloadError> {
        let path = dir.join(sha256.to_string());
        let notes = dir.join(format!("{sha256}.json"));
        let mut file = lock_partial(&path)?.ok_or_else(|| DownloadError::Busy { url: public_url(url) })?;
        let kept = fs::read(&notes).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let hashed = tokio::task::spawn_blocking(move || {
            let mut hash = Context::new(&SHA256);
            let mut writer = HashWriter(&mut hash);
            let len = io::copy(&mut file, &mut writer)?;
            Ok((file, hash, len))
        });
        let joined = hashed.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        let (file, hash, offset) = joined.map_err(io_error("read", &path))?;
        Ok(Self { url, sha256, limit, path, notes, file, hash, offset, kept })
    }

    async fn attempt(&mut self, client: &Client, stage: &str, progress: &dyn Progress) -> Result<(), Failed> {
        if self.offset > 0 && finish_hash(self.hash.clone()) == self.sha256 {
            progress.stage(stage, Some(self.offset));
            progress.advance(self.offset);
            return Ok(());
        }
        let mut request = client.get(self.url.clone()).header(ACCEPT_ENCODING, "identity");
        if self.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.offset));
            if let Some(validator) = self.kept.validator.as_ref().filter(|_| self.kept.url == self.url.as_str()) {
                request = request.header(IF_RANGE, validator);
            }
        }
        let response = request.send().await.map_err(Failed::transport)?;
        let total = self.accept(&response)?;
        if let Some(total) = total {
            if total > self.limit {
                return Err(Failed::too_large(self.url, total, self.limit));
            }
            reserve(&self.file, total, &self.path)?;
        }
        self.note(response.headers())?;
        progress.stage(stage, total);
        progress.advance(self.offset);
        self.receive(response, progress).await?;
        match total {
            Some(total) if self.offset < total => Err(Failed::Again(format!("{} of {total} bytes came", self.offset))),
            _ => Ok(()),
        }
    }

    /// Judges the answer's head: the length of the whole file, when it is told.
    fn accept(&mut self, response: &Response) -> Result<Option<u64>, Failed> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).and_then(parse_range);
                match range {
                    Some((start, total)) if start == self.offset => Ok(total),
                    _ => {
                        self.restart()?;
                        Err(Failed::Again("the server sent another range than was asked for".to_owned()))
                    }
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE if self.offset > 0 => {
                self.restart()?;
                Err(Failed::Again("the server has fewer bytes than were kept".to_owned()))
            }
            status => {
                check_status(self.url, status)?;
                self.restart()?;
                Ok(response.content_length())
            }
        }
    }

    async fn receive(&mut self, mut response: Response, progress: &dyn Progress) -> Result<(), Failed> {
        while let Some(chunk) = response.chunk().await.map_err(Failed::transport)? {
            let len = chunk.len() as u64;
            if self.offset + len > self.limit {
                return Err(Failed::too_large(self.url, self.offset + len, self.limit));
            }
            // A page cache write of some kilobytes; the blocking pool would cost more than it takes.
            self.file.write_all(&chunk).map_err(|e| write_error(e, self.offset + len, &self.path))?;
            self.hash.update(&chunk);
            self.offset += len;
            progress.advance(len);
        }
        Ok(())
    }

    /// Remembers what the server knows the file by. A weak ETag does not vouch for bytes.
    fn note(&mut self, headers: &HeaderMap) -> Result<(), DownloadError> {
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let validator = text(ETAG).filter(|t| t.starts_with('"')).or_else(|| text(LAST_MODIFIED));
        self.kept = Kept { url: self.url.to_string(), validator };
        let json = serde_json::to_vec(&self.kept).map_err(|e| io_error("write", &self.notes)(e.into()))?;
        fs::write(&self.notes, json).map_err(|e| write_error(e, 512, &self.notes))?;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), DownloadError> {
        self.file.set_len(0).map_err(io_error("empty", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(io_error("empty", &self.path))?;
        self.hash = Context::new(&SHA256);
        self.offset = 0;
        Ok(())
    }

    fn discard(&mut self) -> Result<(), DownloadError> {
        self.restart()?;
        remove(&self.notes)?;
        remove(&self.path)
    }

    fn finish(self) -> Result<Fetched, DownloadError> {
        self.file.sync_all().map_err(|e| write_error(e, self.offset, &self.path))?;
        remove(&self.notes)?;
        if let Some(dir) = self.path.parent() {
            sync_dir(dir)?;
        }
        Ok(Fetched { path: self.path, size: self.offset, _lock: self.file })
    }
}

struct HashWriter<'a>(&'a mut Context);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens and locks a part; `None` when another process has it.
fn lock_partial(path: &Path) -> Result<Option<File>, DownloadError> {
    // Between opening and locking, the former owner may have made the file a blob.
    for _ in 0..16 {
        let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.map_err(|e| write_error(e, 0, path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(e)) => return Err(io_error("lock", path)(e)),
        }
        let mine = file.metadata().map_err(io_error("examine", path))?;
        if fs::metadata(path).is_ok_and(|there| there.ino() == mine.ino() && there.dev() == mine.dev()) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn check_status(url: &Url, status: StatusCode) -> Result<(), Failed> {
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Failed::Again(format!("answer {status}"))),
        status if status.is_server_error() => Err(Failed::Again(format!("answer {status}"))),
        status => Err(Failed::Final(DownloadError::Status { url: public_url(url), status })),
    }
}

/// First byte and whole length of `Content-Range: bytes 5-9/10` (RFC 9110, 14.4).
fn parse_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}

fn remove(path: &Path) -> Result<(), DownloadError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
        _ => Ok(()),
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

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DownloadError {
    let path = path.to_path_buf();
    move |source| DownloadError::Io { action, path, source }
}
