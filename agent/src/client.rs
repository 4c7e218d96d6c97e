//! The agent protocol over TLS: see `nkd_api::agent`.
//!
//! Connections are kept and used again; a request is sent once, the caller decides about the next attempt.
#![expect(clippy::disallowed_methods, reason = "opens connections and files")]

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nkd_api::ErrorBody;
use nkd_api::agent::{
    EnrollRequest, EnrollResponse, KubeadmOrder, ReleaseSource, RenewRequest, Report, ReportAnswer, ServerTime,
    TaskAnswer,
};
use nkd_api::snapshot::SnapshotProof;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::resolve::resolve;
use crate::state::Failure;
use crate::upload::FileBody;

/// Limit of one connection attempt, name and TLS included.
const CONNECT: Duration = Duration::from_secs(15);
/// Limit of one request, beyond the time that it asked the service to wait.
const ANSWER: Duration = Duration::from_secs(30);
/// A transfer of which nothing has moved for so long has ended. The service writes it to its disk before it answers.
const STALLED: Duration = Duration::from_secs(120);
/// The service may take this long to answer a poll, in seconds.
const POLL_WAIT: u64 = 30;
/// Largest answer.
const ANSWER_LIMIT: usize = 16 << 20;
/// Connections that wait for their next request.
const IDLE: usize = 4;

/// A request without a good answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection.
    #[error("cannot connect to {to}")]
    Connect {
        /// Address.
        to: String,
        /// What the system or TLS said.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {to} broke")]
    Transport {
        /// Address.
        to: String,
        /// What broke.
        #[source]
        source: hyper::Error,
    },
    /// Nothing came.
    #[error("{0} did not answer in time")]
    Timeout(String),
    /// The answer is not an answer of this protocol.
    #[error("the answer of {to} makes no sense: {reason}")]
    Answer {
        /// Address.
        to: String,
        /// Why.
        reason: String,
    },
    /// What was to be sent cannot be read, or what comes cannot be written.
    #[error("{path} cannot be used", path = path.display())]
    File {
        /// File.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The service said no.
    #[error("{status}: {message}")]
    Status {
        /// HTTP status.
        status: StatusCode,
        /// What the service said.
        message: String,
    },
    /// The request cannot be made.
    #[error("the address {0} of the service cannot be used")]
    Address(String),
}

impl CallError {
    /// True for 503 and transport errors. Everything else is final.
    #[must_use]
    pub fn retry(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Transport { .. } | Self::Timeout(_) | Self::Answer { .. } => true,
            Self::Status { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Address(_) | Self::File { .. } => false,
        }
    }

    /// With every cause, for people.
    #[must_use]
    pub fn failure(&self) -> Failure {
        Failure { retry: self.retry(), reason: chain(self) }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

type Sender = SendRequest<Full<Bytes>>;

/// The client side of the protocol.
pub struct Client {
    host: String,
    port: u16,
    tls: Mutex<Tls>,
}

struct Tls {
    config: Arc<ClientConfig>,
    idle: Vec<Sender>,
    /// Counts the configurations: a connection of an earlier one is not used again.
    epoch: u64,
}

impl Client {
    /// A client of the service at `server` (`https://host:port`).
    ///
    /// # Errors
    /// When that is not an address.
    pub fn new(server: &str, config: Arc<ClientConfig>) -> Result<Self, CallError> {
        let bad = || CallError::Address(server.to_owned());
        let uri: Uri = server.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("https") {
            return Err(bad());
        }
        let (host, port) = host_and_port(&uri, 443).ok_or_else(bad)?;
        Ok(Self { host, port, tls: Mutex::new(Tls { config, idle: Vec::new(), epoch: 0 }) })
    }

    /// From now on, connect in this way.
    pub fn use_config(&self, config: Arc<ClientConfig>) {
        let mut tls = self.lock();
        tls.config = config;
        tls.epoch += 1;
        tls.idle.clear();
    }

    /// `host:port`, as people write it.
    #[must_use]
    pub fn address(&self) -> String {
        authority(&self.host, self.port)
    }

    /// The service's clock.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn time(&self) -> Result<ServerTime, CallError> {
        self.json(self.get("/agent/v1/time")?, ANSWER).await
    }

    /// A token for a certificate.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn enroll(&self, request: &EnrollRequest) -> Result<EnrollResponse, CallError> {
        self.json(self.post("/agent/v1/enroll", request)?, ANSWER).await
    }

    /// A certificate for a new one.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn renew(&self, request: &RenewRequest) -> Result<EnrollResponse, CallError> {
        self.json(self.post("/agent/v1/renew", request)?, ANSWER).await
    }

    /// The task; waits for a change of `seen`.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn task(&self, seen: Option<&str>) -> Result<TaskAnswer, CallError> {
        let path = match seen {
            Some(seen) => format!("/agent/v1/task?seen={}&wait={POLL_WAIT}", percent(seen)),
            None => "/agent/v1/task?wait=0".to_owned(),
        };
        self.json(self.get(&path)?, ANSWER + Duration::from_secs(POLL_WAIT)).await
    }

    /// Tells something.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn report(&self, report: &Report) -> Result<ReportAnswer, CallError> {
        self.json(self.post("/agent/v1/report", report)?, ANSWER).await
    }

    /// The Ignition configuration of the system to be installed.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn install_config(&self, generation: u32) -> Result<Bytes, CallError> {
        self.call(self.get(&format!("/agent/v1/install-config?generation={generation}"))?, ANSWER).await
    }

    /// What a run of kubeadm needs. Holds keys.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn kubeadm(&self, operation: uuid::Uuid) -> Result<KubeadmOrder, CallError> {
        let body = self.call(self.get(&format!("/agent/v1/kubeadm?operation={operation}"))?, ANSWER).await?;
        serde_json::from_slice(&body)
            .map_err(|error| CallError::Answer { to: self.address(), reason: error.to_string() })
    }

    /// A request of any kind, to a service that speaks HTTP and JSON in another protocol.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn exchange(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<Bytes, CallError> {
        let mut request = self.request(method, path, body)?;
        request.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
        self.call(request, ANSWER).await
    }

    /// A snapshot of etcd, on a connection of its own: as long as bytes go, it may take as long as it takes.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn etcd_snapshot(
        &self,
        operation: uuid::Uuid,
        proof: &SnapshotProof,
        file: &std::path::Path,
    ) -> Result<(), CallError> {
        let path = format!("/agent/v1/etcd-snapshot/{operation}?{}", query(proof));
        let local = |source| CallError::File { path: file.to_owned(), source };
        let body = FileBody::open(file).map_err(local)?;
        let moves = body.moves();
        let request = Request::builder()
            .method(Method::PUT)
            .uri(path)
            .header(header::HOST, self.address())
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, proof.size)
            .header(header::USER_AGENT, concat!("nkd-agent/", env!("CARGO_PKG_VERSION")))
            .body(body)
            .map_err(|_| CallError::Address(self.address()))?;
        let config = self.lock().config.clone();
        let broke = |source| CallError::Transport { to: self.address(), source };
        let stream = timeout(CONNECT, self.stream(config)).await.map_err(|_| CallError::Timeout(self.address()))??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let mut connection = std::pin::pin!(connection);
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(broke)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_LIMIT)
                .collect()
                .await
                .map_err(|error| CallError::Answer { to: self.address(), reason: error.to_string() })?;
            if status == StatusCode::OK { Ok(()) } else { Err(refusal(status, &body.to_bytes())) }
        };
        let mut exchange = std::pin::pin!(exchange);
        let (mut open, mut before) = (true, moves.count());
        loop {
            tokio::select! {
                result = &mut exchange => return result,
                // The answer may still be on its way out of the connection.
                _ = &mut connection, if open => open = false,
                () = tokio::time::sleep(STALLED) => {
                    let now = moves.count();
                    if now == before {
                        return Err(CallError::Timeout(self.address()));
                    }
                    before = now;
                }
            }
        }
    }

    /// A file of the service into `file`; whether the service has it. On a connection of its own: as long as bytes come, it
    /// may take as long as it takes.
    ///
    /// # Errors
    /// As every call: [`CallError`]; then there may be a part of it.
    pub async fn download(&self, path: &str, file: &std::path::Path) -> Result<bool, CallError> {
        let late = |_| CallError::Timeout(self.address());
        let broke = |source| CallError::Transport { to: self.address(), source };
        let local = |source| CallError::File { path: file.to_owned(), source };
        let config = self.lock().config.clone();
        let stream = timeout(CONNECT, self.stream(config)).await.map_err(late)??;
        let mut sender = handshake(stream).await.map_err(broke)?;
        let answer = timeout(ANSWER, sender.send_request(self.get(path)?)).await.map_err(late)?.map_err(broke)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(false),
            status => return Err(refusal(status, b"")),
        }
        let (mut body, mut into) = (answer.into_body(), std::fs::File::create(file).map_err(local)?);
        while let Some(frame) = timeout(STALLED, body.frame()).await.map_err(late)? {
            if let Ok(bytes) = frame.map_err(broke)?.into_data() {
                into.write_all(&bytes).map_err(local)?;
            }
        }
        Ok(true)
    }

    /// Where a release comes from.
    ///
    /// # Errors
    /// As every call: [`CallError`].
    pub async fn release(&self, commit: &str) -> Result<ReleaseSource, CallError> {
        self.json(self.get(&format!("/agent/v1/release?commit={}", percent(commit)))?, ANSWER).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tls> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, path: &str) -> Result<Request<Full<Bytes>>, CallError> {
        self.request(Method::GET, path, Bytes::new())
    }

    fn post<T: Serialize>(&self, path: &str, body: &T) -> Result<Request<Full<Bytes>>, CallError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| CallError::Answer { to: self.address(), reason: error.to_string() })?;
        self.request(Method::POST, path, body.into())
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, CallError> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("nkd-agent/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|_| CallError::Address(path.to_owned()))
    }

    async fn json<T: DeserializeOwned>(&self, request: Request<Full<Bytes>>, limit: Duration) -> Result<T, CallError> {
        let body = self.call(request, limit).await?;
        serde_json::from_slice(&body)
            .map_err(|error| CallError::Answer { to: self.address(), reason: error.to_string() })
    }

    async fn call(&self, request: Request<Full<Bytes>>, limit: Duration) -> Result<Bytes, CallError> {
        let (mut sender, epoch) = self.sender().await?;
        let exchange = async {
            let broke = |source| CallError::Transport { to: self.address(), source };
            sender.ready().await.map_err(broke)?;
            let answer = sender.send_request(request).await.map_err(broke)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_LIMIT)
                .collect()
                .await
                .map_err(|error| CallError::Answer { to: self.address(), reason: error.to_string() })?;
            Ok((status, body.to_bytes()))
        };
        let (status, body) = timeout(limit, exchange).await.map_err(|_| CallError::Timeout(self.address()))??;
        let mut tls = self.lock();
        if tls.epoch == epoch && tls.idle.len() < IDLE {
            tls.idle.push(sender);
        }
        drop(tls);
        if status == StatusCode::OK { Ok(body) } else { Err(refusal(status, &body)) }
    }

    /// A connection that waits, or a new one.
    async fn sender(&self) -> Result<(Sender, u64), CallError> {
        let (config, epoch) = {
            let mut tls = self.lock();
            tls.idle.retain(|sender| !sender.is_closed());
            if let Some(sender) = tls.idle.pop() {
                return Ok((sender, tls.epoch));
            }
            (tls.config.clone(), tls.epoch)
        };
        let connect = async {
            let stream = self.stream(config).await?;
            handshake(stream).await.map_err(|source| CallError::Transport { to: self.address(), source })
        };
        let sender = timeout(CONNECT, connect).await.map_err(|_| CallError::Timeout(self.address()))??;
        Ok((sender, epoch))
    }

    /// A new connection.
    async fn stream(&self, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, CallError> {
        let failed = |source| CallError::Connect { to: self.address(), source };
        let stream = connect(&self.host, self.port).await.map_err(failed)?;
        let name = ServerName::try_from(self.host.clone()).map_err(|_| CallError::Address(self.address()))?;
        TlsConnector::from(config).connect(name, stream).await.map_err(failed)
    }
}

/// What Kubernetes says when it says no, as far as it matters.
#[derive(serde::Deserialize)]
struct Said {
    message: String,
}

/// What the service said when it said no.
fn refusal(status: StatusCode, body: &[u8]) -> CallError {
    let message = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { message, hint: Some(hint), .. }) => format!("{message} ({hint})"),
        Ok(ErrorBody { message, .. }) => message,
        Err(_) => serde_json::from_slice(body)
            .map_or_else(|_| "the service gave no reason".to_owned(), |Said { message }| message),
    };
    CallError::Status { status, message }
}

/// What was found of a snapshot, as the service reads it.
fn query(proof: &SnapshotProof) -> String {
    let taken_at = proof.taken_at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    let not_compared = proof.not_compared.as_ref().map(|what| format!("&notCompared={}", percent(what)));
    format!(
        "size={}&sha256={}&revision={}&keys={}&etcdVersion={}&takenAt={}{}",
        proof.size,
        proof.sha256,
        proof.revision,
        proof.keys,
        percent(&proof.etcd_version),
        percent(&taken_at),
        not_compared.unwrap_or_default()
    )
}

/// The unreserved characters of RFC 3986 as they are, the rest as `%XX`.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// Host without brackets, and port.
pub(crate) fn host_and_port(uri: &Uri, default: u16) -> Option<(String, u16)> {
    let host = uri.host()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then(|| (host.to_owned(), uri.port_u16().unwrap_or(default)))
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A TCP connection to the first address that takes it.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in resolve(host).await? {
        match timeout(Duration::from_secs(5), TcpStream::connect(SocketAddr::new(address, port))).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// HTTP/1.1 on a connection; a task of its own moves the bytes until either side closes.
pub(crate) async fn handshake<S>(stream: S) -> Result<Sender, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %chain(&error), "connection closed");
        }
    });
    Ok(sender)
}

/// An answer as it streams in.
pub(crate) type Streaming = Response<Incoming>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_compared_goes_with_the_snapshot() {
        let taken_at = time::OffsetDateTime::UNIX_EPOCH;
        let (sha256, etcd_version) = (nkd_api::Sha256Digest([7; 32]), "3.4.23".to_owned());
        let mut proof =
            SnapshotProof { size: 5, sha256, revision: 60, keys: 2, etcd_version, taken_at, not_compared: None };
        let all = format!(
            "size=5&sha256={}&revision=60&keys=2&etcdVersion=3.4.23&takenAt=1970-01-01T00%3A00%3A00Z",
            "07".repeat(32)
        );
        assert_eq!(query(&proof), all);
        proof.not_compared = Some("not held against it: no answer".to_owned());
        assert_eq!(query(&proof), format!("{all}&notCompared=not%20held%20against%20it%3A%20no%20answer"));
    }
}
