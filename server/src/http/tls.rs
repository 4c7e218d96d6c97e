//! The TLS listener: accepts, shakes hands within a limit, and tells every request whose connection it came over.
//!
//! Connections live on [lanes](crate::lanes). So do requests for files of repositories, of which a node that pulls a
//! release sends thousands; all others are answered by the service's own event loop, and only their bytes pass here.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::ServiceExt;

use super::ApiError;
use super::gathered::Gathered;
use super::read_to_end::ReadToEnd;
use crate::fleet::pki::NodeIdentity;
use crate::lanes::Lanes;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Until the first request's head is there.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// Until the next one's is, over HTTP/1: nodes say that they live every 30 s, and shall not shake hands for each sign.
const NEXT_HEADER_LIMIT: Duration = Duration::from_secs(75);
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Between two pings on an HTTP/2 connection that is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const MAX_CONNECTIONS: usize = 8192;

/// The connection that a request came over.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    /// Who is there.
    pub peer: SocketAddr,
    /// Which of our addresses was reached.
    pub local: IpAddr,
    /// The node, if it showed a certificate of ours.
    pub node: Option<NodeIdentity>,
}

/// The port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for HTTPS: {advice}")]
pub struct BindError {
    address: SocketAddr,
    advice: &'static str,
    #[source]
    source: std::io::Error,
}

/// The HTTPS server.
pub struct TlsServer {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
    lanes: Lanes,
}

impl TlsServer {
    /// Takes the port.
    #[expect(clippy::disallowed_methods, reason = "opens the listening socket")]
    pub async fn bind(address: SocketAddr, config: rustls::ServerConfig, router: Router) -> Result<Self, BindError> {
        let listener = TcpListener::bind(address).await.map_err(|source| BindError {
            address,
            advice: match source.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "another program has the port; stop it, or set http.api_listen to a free one"
                }
                std::io::ErrorKind::AddrNotAvailable => "this host has no such address; correct http.api_listen",
                std::io::ErrorKind::PermissionDenied => {
                    "the port needs CAP_NET_BIND_SERVICE; grant it, or set http.api_listen to a port above 1023"
                }
                _ => "the system refused",
            },
            source,
        })?;
        let lanes = Lanes::start("https").map_err(|source| BindError {
            address,
            advice: "the system gives no more threads; raise the limits of the process (`ulimit -u`, `ulimit -n`)",
            source,
        })?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), router, lanes })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then finishes what is under way within a limit.
    pub async fn run(self, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let permit = tokio::select! {
                () = shutdown.cancelled() => break,
                permit = Arc::clone(&permits).acquire_owned() => permit,
            };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Its lane has an event loop of its own.
            let Ok(stream) = stream.into_std() else { continue };
            let (acceptor, router, stop) = (self.acceptor.clone(), self.router.clone(), shutdown.clone());
            let (lane, service) = (self.lanes.least(), Handle::current());
            let serving = async move {
                let _permit = permit;
                connection(stream, peer, acceptor, (router, service), stop).await;
            };
            tasks.spawn_on(lane.carry(serving), lane.handle());
        }
        tasks.close();
        if tokio::time::timeout(DRAIN_LIMIT, tasks.wait()).await.is_err() {
            tracing::warn!(open = tasks.len(), "connections were still open when the drain limit was over");
        }
    }
}

async fn connection(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    (router, service): (Router, Handle),
    stop: CancellationToken,
) {
    let (Ok(local), Ok(stream)) = (stream.local_addr(), TcpStream::from_std(stream)) else { return };
    let _ = stream.set_nodelay(true);
    let mut tls = match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(Gathered::new(stream))).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let node = tls.get_ref().1.peer_certificates().and_then(|c| NodeIdentity::from_certificate(c.first()?));
    let connection = Connection { peer, local: local.ip().to_canonical(), node };
    let asked = Arc::new(Notify::new());
    let first = Arc::clone(&asked);
    let requests = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        asked.notify_one();
        request.extensions_mut().insert(connection);
        let request = request.map(|body| axum::body::Body::new(ReadToEnd::new(body)));
        answer(router.clone(), service.clone(), request)
    });
    // The protocol is the one that TLS agreed on. Guessing it from the first bytes would wait for them without a limit.
    let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let serving = async move {
        if http2 {
            tls.get_mut().0.gather();
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(HEADER_LIMIT);
            let serving = std::pin::pin!(builder.serve_connection(TokioIo::new(tls), requests));
            until(serving, stop, |serving| serving.graceful_shutdown()).await
        } else {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(NEXT_HEADER_LIMIT);
            let serving = std::pin::pin!(builder.serve_connection(TokioIo::new(tls), requests));
            until(serving, stop, |serving| serving.graceful_shutdown()).await
        }
    };
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        asked = tokio::time::timeout(HEADER_LIMIT, first.notified()) => match asked {
            Ok(()) => serving.await,
            Err(_) => return,
        },
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended early");
    }
}

/// Answers here or by the service, which stops when the client goes away.
async fn answer(
    router: Router,
    service: Handle,
    request: hyper::Request<axum::body::Body>,
) -> Result<axum::response::Response, std::convert::Infallible> {
    if super::channels::is_file(request.uri().path()) {
        return router.oneshot(request).await;
    }
    let answering = AbortOnDropHandle::new(service.spawn(router.oneshot(request)));
    answering.await.unwrap_or_else(|_| {
        Ok(ApiError::unavailable("the service is about to stop").hint("try again in a minute").into_response())
    })
}

/// Drives a connection to its end; asks it to end when the service stops.
async fn until<C: Future>(
    mut serving: Pin<&mut C>,
    stop: CancellationToken,
    end: impl FnOnce(Pin<&mut C>),
) -> C::Output {
    tokio::select! {
        result = serving.as_mut() => result,
        () = stop.cancelled() => {
            end(serving.as_mut());
            serving.await
        }
    }
}
