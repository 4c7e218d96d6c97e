//! The disk image, read from the service by as many connections as it takes.
//!
//! A broken connection is taken up again with a Range request at the byte where it broke. The waits in between double
//! up to a cap; bytes that arrive start the count anew, so a slow or often broken line is no reason to give up.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};

use crate::client::{Streaming, authority, chain, connect, handshake, host_and_port};

/// When to give up.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Broken attempts in a row, without a byte between them.
    pub tries: u32,
    /// First wait; doubles.
    pub first: Duration,
    /// Longest wait.
    pub cap: Duration,
    /// A connection without a byte for this long is broken.
    pub stall: Duration,
}

impl Patience {
    /// The wait after `failures` failures in a row.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Duration {
        (self.first * (1 << failures.saturating_sub(1).min(16))).min(self.cap)
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 24,
            first: Duration::from_millis(500),
            cap: Duration::from_secs(30),
            stall: Duration::from_secs(30),
        }
    }
}

/// The image cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Not `http://host[:port]/path`.
    #[error("the image address {0} is not a plain HTTP address")]
    Address(String),
    /// The service said no.
    #[error("the service answers {0} for the image")]
    Status(StatusCode),
    /// The service has other bytes than the task says.
    #[error("the service's image has {found} bytes, the task says {expected}")]
    Size {
        /// Bytes there.
        found: u64,
        /// Bytes that the task names.
        expected: u64,
    },
    /// Too many broken connections.
    #[error("the image could not be fetched, {tries} attempts in a row brought nothing: {last}")]
    GaveUp {
        /// Attempts.
        tries: u32,
        /// What the last one said.
        last: String,
    },
}

/// What one attempt brought.
enum Broken {
    /// Worth another attempt.
    Again(String),
    /// Not.
    Final(FetchError),
}

/// An image that is being read.
pub struct Image {
    uri: Uri,
    host: String,
    port: u16,
    size: u64,
    patience: Patience,
    /// Bytes handed out.
    position: u64,
    /// Bytes that a service without Range sends again.
    skip: u64,
    body: Option<Incoming>,
    failures: u32,
}

impl Image {
    /// The image of `size` bytes at `url`, nothing read yet.
    ///
    /// # Errors
    /// [`FetchError::Address`].
    pub fn new(url: &str, size: u64, patience: Patience) -> Result<Self, FetchError> {
        let bad = || FetchError::Address(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("http") {
            return Err(bad());
        }
        let (host, port) = host_and_port(&uri, 80).ok_or_else(bad)?;
        Ok(Self { uri, host, port, size, patience, position: 0, skip: 0, body: None, failures: 0 })
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// When the patience is at its end or the service does not have the image.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        while self.position < self.size {
            match self.attempt().await {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    self.position += bytes.len() as u64;
                    self.failures = 0;
                    return Ok(Some(bytes));
                }
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Again(last)) => {
                    self.body = None;
                    self.failures += 1;
                    if self.failures >= self.patience.tries {
                        return Err(FetchError::GaveUp { tries: self.failures, last });
                    }
                    tracing::warn!(position = self.position, error = %last, "the image connection broke");
                    sleep(self.patience.wait(self.failures)).await;
                }
            }
        }
        Ok(None)
    }

    async fn attempt(&mut self) -> Result<Bytes, Broken> {
        let stall = self.patience.stall;
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let answer = timeout(stall, self.open())
                    .await
                    .map_err(|_| Broken::Again(format!("no answer in {} s", stall.as_secs())))??;
                self.body.insert(answer)
            }
        };
        let frame = timeout(stall, body.frame())
            .await
            .map_err(|_| Broken::Again(format!("no byte in {} s", stall.as_secs())))?
            .ok_or_else(|| Broken::Again("the connection ended early".into()))?
            .map_err(|error| Broken::Again(chain(&error)))?;
        let mut bytes = frame.into_data().unwrap_or_default();
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        bytes = bytes.slice(usize::try_from(skipped).unwrap_or(bytes.len())..);
        let left = usize::try_from(self.size - self.position).unwrap_or(usize::MAX);
        bytes.truncate(left);
        Ok(bytes)
    }

    /// Asks for the bytes from `position` on.
    async fn open(&mut self) -> Result<Incoming, Broken> {
        let stream = connect(&self.host, self.port).await.map_err(|error| Broken::Again(error.to_string()))?;
        let mut sender = handshake(stream).await.map_err(|error| Broken::Again(chain(&error)))?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().uri(path).header(header::HOST, authority(&self.host, self.port));
        if self.position > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", self.position));
        }
        let request = request
            .body(Full::new(Bytes::new()))
            .map_err(|_| Broken::Final(FetchError::Address(self.uri.to_string())))?;
        let answer = sender.send_request(request).await.map_err(|error| Broken::Again(chain(&error)))?;
        self.skip = skip(&answer, self.position, self.size)?;
        Ok(answer.into_body())
    }
}

/// How many bytes of this answer are known already.
fn skip(answer: &Streaming, position: u64, size: u64) -> Result<u64, Broken> {
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let (start, total) = match answer.status() {
        StatusCode::OK => (0, header(header::CONTENT_LENGTH).and_then(|length| length.parse().ok())),
        StatusCode::PARTIAL_CONTENT => match header(header::CONTENT_RANGE).and_then(content_range) {
            Some((start, total)) => (start, Some(total)),
            None => return Err(Broken::Again("the answer to a Range request names no range".into())),
        },
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(Broken::Again(format!("the service answers {status}")));
        }
        status => return Err(Broken::Final(FetchError::Status(status))),
    };
    if let Some(found) = total.filter(|total| *total != size) {
        return Err(Broken::Final(FetchError::Size { found, expected: size }));
    }
    position.checked_sub(start).ok_or_else(|| Broken::Again("the service sent another range".into()))
}

/// `bytes START-END/TOTAL` (RFC 9110, 14.4): start and total.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}
