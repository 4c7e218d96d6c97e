//! The listening socket: reads requests, judges them, opens files, hands transfers to the workers.
#![expect(clippy::disallowed_methods, reason = "reads the clock and owns the listening socket")]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::active::{Handoff, send_error};
use super::admission::{Admissions, Permit};
use super::codec::{self, Direction, ErrorCode, Mode, Options, Packet};
use super::metrics::{Metrics, RequestResult};
use super::socket::{self, Datagram};
use super::source::Source;
use super::transfer::{self, Policy};
use super::worker::Worker;
use super::{FileRequest, Files, OpenError, names, netascii};

/// How the server serves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where requests are awaited; port 69 by default.
    pub listen: SocketAddr,
    /// The only interface to serve (`SO_BINDTODEVICE`); all if `None`.
    pub interface: Option<String>,
    /// Limits of the negotiation, and the retransmission timer.
    pub policy: Policy,
    /// The most transfers at a time; further clients are told to try again.
    pub max_transfers: usize,
    /// The most transfers of one client address.
    pub max_transfers_per_address: usize,
    /// Threads that carry packets.
    pub workers: usize,
    /// The longest wait for [`Files::open`].
    pub open_timeout: Duration,
    /// How long running transfers may go on after the shutdown began.
    pub drain: Duration,
}

/// A TFTP server that is bound and not yet running.
pub struct Server {
    config: Arc<Config>,
    socket: UdpSocket,
    local: SocketAddr,
    files: Arc<dyn Files>,
    metrics: Metrics,
}

/// Why the server cannot start.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another program has the port.
    #[error(
        "UDP port {} of {} is taken: stop the other TFTP server (`ss -ulpn 'sport = :{}'` names it) or listen elsewhere",
        .address.port(), .address.ip(), .address.port()
    )]
    Taken {
        /// The address that was wanted.
        address: SocketAddr,
    },
    /// The port, or the interface, needs a capability.
    #[error(
        "no permission to serve TFTP on UDP port {} of {}: grant CAP_NET_BIND_SERVICE (and CAP_NET_RAW to bind to an \
         interface), or listen on a port above 1023",
        .address.port(), .address.ip()
    )]
    Permission {
        /// The address that was wanted.
        address: SocketAddr,
    },
    /// The address is none of this machine's.
    #[error("cannot serve TFTP on UDP port {} of {}: no interface has this address", .address.port(), .address.ip())]
    NoAddress {
        /// The address that was wanted.
        address: SocketAddr,
    },
    /// No such interface.
    #[error("cannot serve TFTP on interface {interface}: there is none of this name (`ip link` lists them)")]
    NoInterface {
        /// The interface that was wanted.
        interface: String,
    },
    /// Anything else.
    #[error("cannot serve TFTP on UDP port {} of {}", .address.port(), .address.ip())]
    Other {
        /// The address that was wanted.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 69)),
            interface: None,
            policy: Policy::default(),
            max_transfers: 1024,
            max_transfers_per_address: 256,
            // A worker that is awake wants a processor for itself; the rest of the service wants some too.
            workers: std::thread::available_parallelism().map_or(1, |processors| processors.get() / 2).clamp(1, 4),
            open_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

impl Default for Policy {
    /// Blocks of 1468 bytes (one Ethernet frame), windows of 64 blocks, six tries of 1 s, doubling to 8 s.
    fn default() -> Self {
        Self {
            max_block_size: 1468,
            max_window: 64,
            timeout: Duration::from_secs(1),
            max_timeout: Duration::from_secs(8),
            tries: 6,
        }
    }
}

impl Server {
    /// Takes the port. Requests wait in the socket until [`Server::run`]. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`], which names the port and says what to do.
    pub async fn bind(config: Config, files: Arc<dyn Files>, metrics: Metrics) -> Result<Self, BindError> {
        let address = config.listen;
        let bound = socket::listen(address, config.interface.as_deref()).and_then(|socket| {
            let socket = UdpSocket::from_std(socket)?;
            let local = socket.local_addr()?;
            Ok((socket, local))
        });
        let (socket, local) = bound.map_err(|source| BindError::new(source, address, config.interface.as_deref()))?;
        Ok(Self { config: Arc::new(config), socket, local, files, metrics })
    }

    /// Where the server listens; the port is the real one if 0 was asked.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `shutdown`. Then no request is taken any more, running transfers get [`Config::drain`] to end, and
    /// the rest is told that the server stops.
    ///
    /// # Errors
    /// If the worker threads cannot start. Faults of single packets and transfers are logged and counted.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let Self { config, socket, local, files, metrics } = self;
        let workers = (0..config.workers.max(1))
            .map(|index| Worker::start(index, Arc::clone(&files), metrics.clone()))
            .collect::<io::Result<Vec<Worker>>>()?;
        let workers = Arc::new(workers);
        let admissions = Admissions::new(config.max_transfers, config.max_transfers_per_address, workers.len());
        info!(address = %local, interface = config.interface, "TFTP server listens");
        let mut desk = Desk {
            context: Arc::new(Context { config: Arc::clone(&config), files, metrics, workers: Arc::clone(&workers) }),
            admissions,
            opening: HashMap::new(),
            tasks: JoinSet::new(),
        };
        let mut buffer = socket::request_buffer();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = desk.tasks.join_next_with_id() => desk.forget(match ended {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                }),
                received = socket.async_io(Interest::READABLE, || socket::receive(&socket, &mut buffer)) => match received {
                    Ok(datagram) => desk.judge(&buffer[..datagram.length], datagram),
                    Err(error) => {
                        debug!(%error, "TFTP request not received");
                        // An error that stays must not turn this loop into a busy one.
                        tokio::task::yield_now().await;
                    }
                },
            }
        }
        drop(socket);
        desk.tasks.shutdown().await;
        drop(desk);
        let until = Instant::now() + config.drain;
        workers.iter().for_each(|worker| worker.drain(until));
        let joined = tokio::task::spawn_blocking(move || {
            Arc::into_inner(workers).into_iter().flatten().for_each(Worker::join);
        });
        if let Err(error) = joined.await {
            warn!(%error, "TFTP workers did not end in order");
        }
        Ok(())
    }
}

impl BindError {
    fn new(source: io::Error, address: SocketAddr, interface: Option<&str>) -> Self {
        match (source.kind(), source.raw_os_error(), interface) {
            (io::ErrorKind::AddrInUse, ..) => Self::Taken { address },
            (io::ErrorKind::PermissionDenied, ..) => Self::Permission { address },
            (io::ErrorKind::AddrNotAvailable, ..) => Self::NoAddress { address },
            (_, Some(nix::libc::ENODEV), Some(interface)) => Self::NoInterface { interface: interface.to_owned() },
            _ => Self::Other { address, source },
        }
    }
}

/// What a task needs to answer one request.
struct Context {
    config: Arc<Config>,
    files: Arc<dyn Files>,
    metrics: Metrics,
    workers: Arc<Vec<Worker>>,
}

/// The front desk: knows which requests are being opened.
struct Desk {
    context: Arc<Context>,
    admissions: Arc<Admissions>,
    opening: HashMap<SocketAddr, Opening>,
    tasks: JoinSet<()>,
}

struct Opening {
    request: Box<[u8]>,
    task: AbortHandle,
}

/// A request that passed the desk.
struct Accepted {
    request: FileRequest,
    mode: Mode,
    options: Options,
    permit: Permit,
    received: Instant,
}

/// A request's end without a transfer.
struct Refusal {
    result: RequestResult,
    code: ErrorCode,
    text: String,
}

impl Desk {
    fn judge(&mut self, bytes: &[u8], datagram: Datagram) {
        let Datagram { client, local, .. } = datagram;
        let metrics = &self.context.metrics;
        let Some(local) = local.filter(|_| client.port() != 0) else {
            return metrics.request(RequestResult::Ignored);
        };
        if let Some(opening) = self.opening.get(&client) {
            if *opening.request == *bytes {
                return metrics.request(RequestResult::Repeated);
            }
            opening.task.abort();
        }
        let judged = match codec::parse(bytes) {
            Ok(Packet::Request(request)) => self.accept(&request, client, local),
            // An error must never answer an error: two servers would do so for ever.
            Ok(_) => return metrics.request(RequestResult::Ignored),
            Err(error) => Err(Refusal::new(RequestResult::Malformed, ErrorCode::ILLEGAL_OPERATION, error.to_string())),
        };
        match judged {
            Ok(accepted) => {
                let task = self.tasks.spawn(Arc::clone(&self.context).answer(accepted));
                self.opening.insert(client, Opening { request: bytes.into(), task });
            }
            Err(refusal) => self.context.refuse(client, local, &refusal),
        }
    }

    fn accept(&self, request: &codec::Request<'_>, client: SocketAddr, local: IpAddr) -> Result<Accepted, Refusal> {
        let received = Instant::now();
        if request.direction == Direction::Write {
            let text = "this server is read-only";
            return Err(Refusal::new(RequestResult::WriteRefused, ErrorCode::ACCESS_VIOLATION, text));
        }
        if request.mode == Mode::Mail {
            let text = "mail mode is obsolete: use octet";
            return Err(Refusal::new(RequestResult::Malformed, ErrorCode::ILLEGAL_OPERATION, text));
        }
        let name = names::normalise(request.name)
            .map_err(|error| Refusal::new(RequestResult::Denied, ErrorCode::ACCESS_VIOLATION, error.to_string()))?;
        let permit = self.admissions.admit(client).ok_or_else(Refusal::busy)?;
        let request_for = FileRequest { name, client, local };
        Ok(Accepted { request: request_for, mode: request.mode, options: request.options, permit, received })
    }

    fn forget(&mut self, id: Id) {
        self.opening.retain(|_, opening| opening.task.id() != id);
    }
}

impl Context {
    async fn answer(self: Arc<Self>, accepted: Accepted) {
        let (client, local) = (accepted.request.client, accepted.request.local);
        let name = accepted.request.name.clone();
        match self.prepare(accepted).await {
            // The worker counts it: only there is known whether it is a repeated one.
            Ok(handoff) => self.workers[handoff.permit.worker()].begin(handoff),
            Err(refusal) => {
                info!(%client, file = name, code = %refusal.code, reason = refusal.text, "TFTP request refused");
                self.refuse(client, local, &refusal);
            }
        }
    }

    async fn prepare(&self, accepted: Accepted) -> Result<Handoff, Refusal> {
        let Accepted { request, mode, options, permit, received } = accepted;
        let opened = tokio::time::timeout(self.config.open_timeout, self.files.open(&request)).await;
        let content = opened.map_err(|_| Refusal::failed("the file is not ready: try again"))??;
        let mut source = Source::new(content);
        if mode == Mode::Netascii {
            // A short read from a local file; the content is in memory afterwards.
            source = source.translated().map_err(|error| Refusal::from(OpenError::Io(error)))?.ok_or_else(|| {
                let limit = netascii::MAX_TRANSLATED / 1024;
                Refusal::failed(format!("netascii is for text up to {limit} KiB: use octet (binary) mode"))
            })?;
        }
        let interface = self.config.interface.as_deref();
        let socket = socket::connect(request.client, request.local, interface).map_err(|error| {
            warn!(client = %request.client, %error, "no socket for a TFTP transfer");
            Refusal::busy()
        })?;
        let mut policy = self.config.policy;
        if let Some(path) = socket::path_block_size(&socket, &request.client) {
            policy.max_block_size = policy.max_block_size.min(path);
        }
        let terms = transfer::negotiate(&options, source.len(), &policy);
        Ok(Handoff { socket, request, mode, asked: options, terms, source, permit, received })
    }

    fn refuse(&self, client: SocketAddr, local: IpAddr, refusal: &Refusal) {
        self.metrics.request(refusal.result);
        match socket::connect(client, local, self.config.interface.as_deref()) {
            Ok(socket) => send_error(&socket, refusal.code, &refusal.text),
            Err(error) => debug!(%client, %error, "TFTP refusal not sent"),
        }
    }
}

impl Refusal {
    fn new(result: RequestResult, code: ErrorCode, text: impl Into<String>) -> Self {
        Self { result, code, text: text.into() }
    }

    fn busy() -> Self {
        Self::new(RequestResult::Busy, ErrorCode::OTHER, "the server is busy: try again")
    }

    fn failed(text: impl Into<String>) -> Self {
        Self::new(RequestResult::Failed, ErrorCode::OTHER, text)
    }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        let text = error.to_string();
        match error {
            OpenError::NotFound => Self::new(RequestResult::NotFound, ErrorCode::NOT_FOUND, text),
            OpenError::Denied(_) => Self::new(RequestResult::Denied, ErrorCode::ACCESS_VIOLATION, text),
            OpenError::NotReady(_) => Self::failed(text),
            OpenError::Io(source) => {
                warn!(%source, "TFTP file cannot be read");
                Self::failed(text)
            }
        }
    }
}
