//! Listens, accepts within a limit, and drains at the end.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{Shared, serve};
use super::request::Endpoints;
use super::{Answer, Metrics, Request};
use crate::lanes::Lanes;

/// Connections that the kernel holds for us while we do not accept.
const BACKLOG: i32 = 1024;

/// Chunks read from the disk at a time, each by a thread.
const DISK_READS: usize = 16;

/// How long accepting rests after a failure such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Knows what stands behind each path.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. A panic becomes a 500, an answer that comes too late a 503.
    async fn answer(&self, request: &Request) -> Answer;

    /// A path as it may stand in a log.
    fn shown<'a>(&self, path: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(path)
    }

    /// Is told how an answered request ended: the status that went out, the body bytes that the network took, and
    /// whether these were all. Heads that were refused have no request and are not told. It must not block.
    fn finished(&self, request: &Request, status: u16, sent: u64, complete: bool) {
        let _ = (request, status, sent, complete);
    }
}

/// How the boot plane listens.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses with ports; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// The most connections at a time. Beyond it, clients wait in the kernel's queue, and answers close theirs.
    /// The process needs as many file descriptors and some more.
    pub max_connections: usize,
    /// How long anything may take.
    pub timeouts: Timeouts,
}

/// How long anything may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// A request head, from its first byte (on a new connection from the start) to its last.
    pub head: Duration,
    /// A connection between two requests.
    pub idle: Duration,
    /// The handler, for its answer.
    pub answer: Duration,
    /// A response of which the client takes nothing. It may take twice as long to be noticed.
    pub stall: Duration,
    /// All responses together after the shutdown.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            answer: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Listens there, with up to 4096 connections and the usual limits.
    #[must_use]
    pub fn new(listen: Vec<SocketAddr>) -> Self {
        Self { listen, max_connections: 4096, timeouts: Timeouts::default() }
    }
}

/// Why the boot plane cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error(
        "HTTP boot plane: {0} is taken by another program; stop that one (`ss -ltnp` names it) or configure another port"
    )]
    Taken(SocketAddr),
    /// A port below 1024 needs a capability.
    #[error(
        "HTTP boot plane: no permission to listen on {0}; grant CAP_NET_BIND_SERVICE or configure a port above 1023"
    )]
    Permission(SocketAddr),
    /// No interface has the address.
    #[error("HTTP boot plane: this host has no address {}; configure one that `ip address` shows, or 0.0.0.0", .0.ip())]
    NoSuchAddress(SocketAddr),
    /// Anything else.
    #[error("HTTP boot plane: cannot listen on {address}")]
    Other {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system gives no more threads or descriptors.
    #[error("HTTP boot plane: cannot start its threads; raise the limits of the process (`ulimit -u`, `ulimit -n`)")]
    Threads(#[source] io::Error),
    /// No address was given.
    #[error("HTTP boot plane: no address to listen on; configure at least one")]
    NoAddress,
}

/// A boot plane that listens already and accepts when it runs.
pub struct Server {
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    lanes: Lanes,
    config: Config,
    handler: Arc<dyn Handler>,
    metrics: Metrics,
}

impl Server {
    /// Takes all addresses of `config`, or none.
    ///
    /// # Errors
    /// [`BindError`] names the address and what to do.
    pub async fn bind(config: Config, handler: Arc<dyn Handler>, metrics: Metrics) -> Result<Self, BindError> {
        if config.listen.is_empty() {
            return Err(BindError::NoAddress);
        }
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for &address in &config.listen {
            let (listener, bound) = listen(address, &config.listen).map_err(|source| explain(address, source))?;
            listeners.push(listener);
            addresses.push(bound);
        }
        let lanes = Lanes::start("boot-plane").map_err(BindError::Threads)?;
        Ok(Self { listeners, addresses, lanes, config, handler, metrics })
    }

    /// Where it listens, in the order of the configuration, with real ports.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Serves until `shutdown`, then finishes the responses under way, within the drain limit, and returns.
    pub async fn run(self, shutdown: CancellationToken) {
        let room = Arc::new(Semaphore::new(self.config.max_connections.min(Semaphore::MAX_PERMITS)));
        let (timeouts, disk) = (self.config.timeouts, Semaphore::new(DISK_READS));
        let shared = Arc::new(Shared { handler: self.handler, metrics: self.metrics, timeouts, room, disk, shutdown });
        let accepting = |listener| accept_all(listener, Arc::clone(&shared), &self.lanes);
        join_all(self.listeners.into_iter().map(accepting)).await;
    }
}

/// Accepts connections of one listener until the shutdown; then drains them.
async fn accept_all(listener: TcpListener, shared: Arc<Shared>, lanes: &Lanes) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => report(ended),
            accepted = accept(&listener, &shared.room) => match accepted {
                Ok((stream, ends, permit)) => {
                    let shared = Arc::clone(&shared);
                    let lane = lanes.least();
                    let serving = async move {
                        serve(stream, ends, shared).await;
                        drop(permit);
                    };
                    connections.spawn_on(lane.carry(serving), lane.handle());
                }
                Err(error) => {
                    shared.metrics.accept_errors.inc();
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(shared.timeouts.drain, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "answers cut off: they did not end within the drain limit");
        connections.shutdown().await;
    }
}

/// Accepts a connection when there is room for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(std::net::TcpStream, Endpoints, OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    let local = stream.local_addr()?;
    // Its lane has an event loop of its own.
    Ok((stream.into_std()?, Endpoints { peer, local }, permit))
}

/// Logs a connection whose task panicked: a fault of the engine, which others outlive.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection of the boot plane failed");
    }
}

/// Opens a listening socket. An IPv6 one takes IPv4 as well, unless `all` has an IPv4 address with the same port.
fn listen(address: SocketAddr, all: &[SocketAddr]) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(all.iter().any(|other| other.is_ipv4() && other.port() == address.port()))?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Names the cause.
fn explain(address: SocketAddr, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken(address),
        io::ErrorKind::PermissionDenied => BindError::Permission(address),
        io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress(address),
        _ => BindError::Other { address, source },
    }
}
