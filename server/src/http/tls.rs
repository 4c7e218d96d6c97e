//! The TLS listener: accepts, shakes hands within a limit, and tells every request whose connection it came over.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::fleet::pki::NodeIdentity;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const HEADER_LIMIT: Duration = Duration::from_secs(10);
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
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
}

impl TlsServer {
    /// Takes the port.
    #[expect(clippy::disallowed_methods, reason = "opens the listening socket")]
    pub async fn bind(address: SocketAddr, config: rustls::ServerConfig, router: Router) -> Result<Self, BindError> {
        let listener = TcpListener::bind(address).await.map_err(|source| BindError {
            address,
            advice: match source.kind() {
                std::io::ErrorKind::AddrInUse => "another program has the port; stop it or set http.api_port",
                std::io::ErrorKind::AddrNotAvailable => "this host has no such address; correct http.listen",
                std::io::ErrorKind::PermissionDenied => "the port needs CAP_NET_BIND_SERVICE",
                _ => "the system refused",
            },
            source,
        })?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), router })
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
            let (acceptor, router, stop) = (self.acceptor.clone(), self.router.clone(), shutdown.clone());
            tasks.spawn(async move {
                let _permit = permit;
                connection(stream, peer, acceptor, router, stop).await;
            });
        }
        tasks.close();
        if tokio::time::timeout(DRAIN_LIMIT, tasks.wait()).await.is_err() {
            tracing::warn!(open = tasks.len(), "connections were still open when the drain limit was over");
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) {
    let Ok(local) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let node = tls.get_ref().1.peer_certificates().and_then(|c| NodeIdentity::from_certificate(c.first()?));
    let connection = Connection { peer, local: local.ip().to_canonical(), node };
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(connection);
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(60));
    let serving = builder.serve_connection(TokioIo::new(tls), service);
    tokio::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, error = %error, "connection ended early");
    }
}
