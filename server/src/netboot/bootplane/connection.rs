//! The life of one connection: read a head, ask the handler, send, and again.

#![expect(clippy::disallowed_methods, reason = "the date of a response and the limits of a wait")]

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BufMut as _;
use futures_util::FutureExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Duration, Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Metrics;
use super::request::{Endpoints, HEAD_LIMIT, Refusal, Request, parse};
use super::response::{Answer, Response, refuse, respond, timed_out};
use super::server::{Handler, Timeouts};
use super::transfer::{SendError, transmit};

/// How long a closing connection waits for its client to have read all, and how many bytes it discards meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 * 1024;

/// What all connections of a server share.
pub(super) struct Shared {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) metrics: Metrics,
    pub(super) timeouts: Timeouts,
    /// The permits that are left for further connections.
    pub(super) room: Arc<Semaphore>,
    /// Permits to read from the disk.
    pub(super) disk: Semaphore,
    /// Set when the server stops: finish the current response, begin no other.
    pub(super) shutdown: CancellationToken,
}

/// Serves a connection to its end, on the event loop that polls it first.
pub(super) async fn serve(stream: std::net::TcpStream, ends: Endpoints, shared: Arc<Shared>) {
    let _open = Open::new(&shared.metrics);
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(peer = %ends.peer, %error, "cannot watch a connection; it is closed");
            return;
        }
    };
    let mut connection = Connection { stream, ends, shared: &shared, received: Vec::new() };
    // Packets of a response are marked with MSG_MORE where they should wait; Nagle's algorithm must not delay the rest.
    if let Err(error) = connection.stream.set_nodelay(true) {
        tracing::debug!(peer = %ends.peer, %error, "connection lost at once");
        return;
    }
    if connection.run().await {
        connection.linger().await;
    }
}

/// A connection and what it has received beyond the last request.
struct Connection<'a> {
    stream: TcpStream,
    ends: Endpoints,
    shared: &'a Shared,
    /// Empty, and without memory, while a body is being sent.
    received: Vec<u8>,
}

/// What the client did next.
enum Next {
    Request(Box<Request>),
    Refused(Refusal),
    /// It began a head and did not finish it in time.
    Late,
    /// It left, failed, or was idle too long.
    Gone,
}

impl Connection<'_> {
    /// Answers requests until one is the last. `true` asks for an orderly close.
    async fn run(&mut self) -> bool {
        let mut wait = self.shared.timeouts.head;
        loop {
            let response = match self.next(wait).await {
                Next::Request(request) => match self.answer(&request).await {
                    Ok(true) => return true,
                    Ok(false) => {
                        wait = self.shared.timeouts.idle;
                        continue;
                    }
                    Err(error) => return self.cut_off(&request, &error),
                },
                Next::Refused(refusal) => {
                    tracing::info!(peer = %self.ends.peer, status = refusal.status(), %refusal, "request refused");
                    refuse(refusal, SystemTime::now())
                }
                Next::Late => timed_out(SystemTime::now()),
                Next::Gone => return false,
            };
            self.shared.metrics.count(response.status);
            return transmit(&self.stream, &response, self.shared, |_| {}).await.is_ok();
        }
    }

    /// Reads up to the next request; `wait` is the limit for its first byte.
    async fn next(&mut self, wait: Duration) -> Next {
        let mut idle = self.received.is_empty();
        let mut deadline = Instant::now() + if idle { wait } else { self.shared.timeouts.head };
        loop {
            match parse(&self.received, self.ends) {
                Ok(Some((request, length))) => {
                    self.received.drain(..length);
                    if self.received.is_empty() {
                        self.received = Vec::new();
                    }
                    return Next::Request(Box::new(request));
                }
                Ok(None) => {}
                Err(refusal) => return Next::Refused(refusal),
            }
            let readable = tokio::select! {
                biased;
                readable = timeout_at(deadline, self.stream.readable()) => readable,
                () = self.shared.shutdown.cancelled() => return Next::Gone,
            };
            match readable {
                Err(_) if idle => return Next::Gone,
                Err(_) => return Next::Late,
                Ok(Err(_)) => return Next::Gone,
                Ok(Ok(())) => {}
            }
            let space = HEAD_LIMIT.saturating_sub(self.received.len());
            self.received.reserve(space.min(1024));
            match self.stream.try_read_buf(&mut (&mut self.received).limit(space)) {
                Ok(0) => return Next::Gone,
                Ok(_) if idle => {
                    idle = false;
                    deadline = Instant::now() + self.shared.timeouts.head;
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Next::Gone,
            }
        }
    }

    /// Answers one request; `true` if it was the last.
    async fn answer(&mut self, request: &Request) -> Result<bool, SendError> {
        let shared = self.shared;
        let answer = ask(shared, request).await;
        // A full house does not keep idle guests.
        let last = shared.shutdown.is_cancelled() || shared.room.available_permits() == 0;
        let response = respond(request, answer, last, SystemTime::now());
        let mut record = Record { shared, request, status: response.status, sent: 0, complete: false };
        self.send(&response, &mut record).await?;
        record.complete = true;
        Ok(response.close)
    }

    async fn send(&self, response: &Response, record: &mut Record<'_>) -> Result<(), SendError> {
        let sent = |count| {
            record.sent += count;
            record.shared.metrics.sent_bytes.inc_by(count);
        };
        transmit(&self.stream, response, self.shared, sent).await
    }

    /// Says why a response was cut off. The client sees that bytes are missing, because the connection ends.
    fn cut_off(&self, request: &Request, error: &SendError) -> bool {
        let (peer, path) = (self.ends.peer, &*self.shared.handler.shown(&request.path));
        match error {
            SendError::Io(source) if client_left(source) => tracing::info!(%peer, path, "client left before the end"),
            SendError::Stalled(_) => tracing::warn!(%peer, path, %error, "answer cut off"),
            SendError::FileEnded { .. } => tracing::error!(%peer, path, %error, "answer cut off"),
            SendError::Io(source) => tracing::error!(%peer, path, error = %source, "answer cut off"),
        }
        false
    }

    /// Ends the sending side and waits a little for the client to have read all. An immediate close would reset the
    /// connection if anything is unread here, and the reset may overtake the response.
    async fn linger(mut self) {
        let _ = self.stream.shutdown().await;
        let mut discarded = Vec::with_capacity(4096);
        let until_closed = async {
            for _ in 0..LINGER_BYTES / 4096 {
                discarded.clear();
                match self.stream.readable().await.and_then(|()| self.stream.try_read_buf(&mut discarded)) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        };
        let _ = timeout(LINGER, until_closed).await;
    }
}

/// Asks the handler, within the time it has; its panic is a 500.
async fn ask(shared: &Shared, request: &Request) -> Answer {
    let answer = AssertUnwindSafe(shared.handler.answer(request)).catch_unwind();
    match timeout(shared.timeouts.answer, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => {
            tracing::error!(peer = %request.peer, path = %shared.handler.shown(&request.path), "the handler of this request panicked");
            Answer::text(500, "The service failed on this request; its log says more.\n")
        }
        Err(_) => {
            tracing::error!(peer = %request.peer, path = %shared.handler.shown(&request.path), "no answer in time");
            Answer::unavailable("The service has no answer yet; try again.\n", Duration::from_secs(5))
        }
    }
}

/// Whether an error of the socket only says that the client went away.
fn client_left(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::TimedOut
    )
}

/// Counts a connection while it is open.
struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.connections.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// Tells how an answer ended, by whatever way it ended: a cancelled task too.
struct Record<'a> {
    shared: &'a Shared,
    request: &'a Request,
    status: u16,
    sent: u64,
    complete: bool,
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let Self { shared, request, status, sent, complete } = self;
        shared.metrics.count(*status);
        if !*complete {
            shared.metrics.aborted.inc();
        }
        tracing::debug!(peer = %request.peer, path = %shared.handler.shown(&request.path), status, sent, complete, "answered");
        let told = std::panic::catch_unwind(AssertUnwindSafe(|| {
            shared.handler.finished(request, *status, *sent, *complete);
        }));
        if told.is_err() {
            tracing::error!(peer = %request.peer, path = %shared.handler.shown(&request.path), "the handler panicked after this request");
        }
    }
}
