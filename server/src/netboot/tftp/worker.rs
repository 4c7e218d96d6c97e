//! A thread that carries packets: one epoll set, many transfers.
//!
//! Each round answers at most one packet of each ready transfer, at once, so a greedy client gets no more turns than
//! the others. Answers are not gathered: the clients would sleep meanwhile, and waking them costs more than it saves.
//! Deadlines lie in a heap; an entry that comes up early, because its transfer went on
//! meanwhile, is put back.
#![expect(clippy::disallowed_methods, reason = "the thread reads the clock for the pure state machine")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::{debug, warn};

use super::active::{Active, Handoff, MAX_SEND, SendError, send_error};
use super::codec::{self, DATA_HEADER, ErrorCode, Packet};
use super::metrics::{Metrics, Outcome, RequestResult};
use super::spin::{self, Spin};
use super::transfer::{self, Action, Ending, Event, State};
use super::{Files, TransferReport};

/// Events taken from the kernel in one round.
const ROUND: usize = 64;
/// Visits in a row to the transfers just served, before the kernel is asked again which ones have packets.
const MAX_REVISITS: usize = 8;
/// The fewest transfers for which such a visit is tried.
const MIN_REVISITED: usize = 4;
/// Packets of one transfer that are read in one round, if none of them asks for anything.
const MAX_READS: usize = 64;
/// The longest packet of a client that means anything: an ERROR, in bytes.
const PACKET: usize = DATA_HEADER + codec::MAX_ERROR_TEXT + 1;
/// The token of the wake-up descriptor; transfers count from 0.
const WAKE: u64 = u64::MAX;

enum Message {
    Begin(Box<Handoff>),
    Drain { until: Instant },
}

/// The other end of a worker thread.
#[derive(Debug)]
pub(super) struct Worker {
    inbox: Sender<Message>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn start(index: usize, files: Arc<dyn Files>, metrics: Metrics) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let (sender, inbox) = channel();
        let carrier = Carrier {
            epoll,
            wake: Arc::clone(&wake),
            inbox,
            files,
            metrics,
            transfers: HashMap::new(),
            by_client: HashMap::new(),
            deadlines: BinaryHeap::new(),
            next_token: 0,
            drain_until: None,
            spin: Spin::default(),
            revisits: Spin::default(),
            out: Vec::with_capacity(MAX_SEND),
        };
        let thread = std::thread::Builder::new().name(format!("tftp-{index}")).spawn(move || carrier.run())?;
        Ok(Self { inbox: sender, wake, thread: Some(thread) })
    }

    /// Hands a transfer over.
    pub(super) fn begin(&self, handoff: Handoff) {
        self.send(Message::Begin(Box::new(handoff)));
    }

    /// Ends the thread as soon as its transfers are over, or at `until`.
    pub(super) fn drain(&self, until: Instant) {
        self.send(Message::Drain { until });
    }

    /// Waits for the thread's end. Blocks.
    pub(super) fn join(mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("a TFTP worker thread panicked");
        }
    }

    fn send(&self, message: Message) {
        // A thread that is gone drops what it is sent: the transfer's permit and socket with it.
        if self.inbox.send(message).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The thread sees that nobody can send any more.
        drop(std::mem::replace(&mut self.inbox, channel().0));
        let _ = self.wake.write(1);
    }
}

struct Carrier {
    epoll: Epoll,
    wake: Arc<EventFd>,
    inbox: Receiver<Message>,
    files: Arc<dyn Files>,
    metrics: Metrics,
    transfers: HashMap<u64, Active>,
    by_client: HashMap<SocketAddr, u64>,
    deadlines: BinaryHeap<Reverse<(Instant, u64)>>,
    next_token: u64,
    drain_until: Option<Instant>,
    spin: Spin,
    revisits: Spin,
    /// Packets on their way out.
    out: Vec<u8>,
}

impl Carrier {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); ROUND];
        let mut served = Vec::with_capacity(ROUND);
        loop {
            let now = Instant::now();
            self.take_messages(now);
            self.wake_due(now);
            if let Some(until) = self.drain_until
                && (self.transfers.is_empty() || now >= until)
            {
                return self.stop(now);
            }
            let count = match self.wait(&mut events, now) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => {
                    warn!(%error, "TFTP worker cannot wait for packets; its transfers are dropped");
                    return self.stop(now);
                }
            };
            let now = Instant::now();
            for event in &events[..count] {
                match event.data() {
                    WAKE => drop(self.wake.read()),
                    token => {
                        if self.serve(token, now) {
                            served.push(token);
                        }
                    }
                }
            }
            self.revisit(&mut served);
            served.clear();
        }
    }

    /// Serves the same transfers again while most of them have the next packet already: with many clients in lock-step
    /// they do, and asking the kernel about each costs more than reading in vain from a few.
    fn revisit(&mut self, served: &mut Vec<u64>) {
        for _ in 0..MAX_REVISITS {
            if served.len() < MIN_REVISITED || !self.revisits.worthwhile() {
                return;
            }
            let now = Instant::now();
            let visited = served.len();
            served.retain(|token| self.serve(*token, now));
            self.revisits.looked(2 * served.len() >= visited);
        }
    }

    /// Reads from one transfer and answers; whether there was anything to answer.
    fn serve(&mut self, token: u64, now: Instant) -> bool {
        let Some(action) = self.receive(token, now) else { return false };
        self.perform(token, action, now);
        true
    }

    /// Waits for packets: awake for a short while if that pays, then asleep until the next deadline.
    fn wait(&mut self, events: &mut [EpollEvent], now: Instant) -> Result<usize, Errno> {
        if !self.transfers.is_empty() && self.spin.worthwhile() {
            let until = now + spin::LOOK;
            loop {
                let count = self.epoll.wait(events, EpollTimeout::ZERO)?;
                if count > 0 {
                    self.spin.looked(true);
                    return Ok(count);
                }
                if Instant::now() >= until {
                    break;
                }
                // Whoever else wants this processor, a client on this machine for one, goes first.
                std::thread::yield_now();
            }
            self.spin.looked(false);
        }
        self.epoll.wait(events, self.timeout(now))
    }

    fn timeout(&self, now: Instant) -> EpollTimeout {
        let next = self.deadlines.peek().map(|Reverse((deadline, _))| *deadline);
        let Some(next) = [next, self.drain_until].into_iter().flatten().min() else { return EpollTimeout::NONE };
        let wait = next.saturating_duration_since(now) + Duration::from_micros(999);
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
    }

    fn take_messages(&mut self, now: Instant) {
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Begin(handoff)) => self.begin(*handoff, now),
                Ok(Message::Drain { until }) => self.drain_until = Some(until),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.drain_until.get_or_insert(now);
                    return;
                }
            }
        }
    }

    fn begin(&mut self, handoff: Handoff, now: Instant) {
        let client = handoff.request.client;
        if let Some(token) = self.by_client.get(&client).copied()
            && let Some(active) = self.transfers.get_mut(&token)
        {
            // A client that heard nothing asks again: the same transfer answers, so that both sides keep one port.
            if active.same_request(&handoff) && !active.state.answered(&active.terms) {
                self.metrics.request(RequestResult::Repeated);
                if let Some(action) = self.advance(token, Event::Requested, now) {
                    self.perform(token, action, now);
                }
                return;
            }
            self.close(token, Outcome::Replaced, now);
        }
        self.metrics.request(RequestResult::Served);
        let token = self.next_token;
        self.next_token += 1;
        if let Err(error) = self.epoll.add(&handoff.socket, watched(token)) {
            warn!(%client, %error, "TFTP transfer cannot be watched; it is dropped");
            return;
        }
        let (active, action) = Active::new(handoff, now);
        let deadline = active.queued;
        self.transfers.insert(token, active);
        self.by_client.insert(client, token);
        self.deadlines.push(Reverse((deadline, token)));
        self.metrics.active.inc();
        self.perform(token, action, now);
    }

    fn wake_due(&mut self, now: Instant) {
        while let Some(Reverse((deadline, token))) = self.deadlines.peek().copied()
            && deadline <= now
        {
            self.deadlines.pop();
            if self.transfers.get(&token).is_none_or(|active| active.queued != deadline) {
                continue;
            }
            // What was left unread comes before what the timer would do.
            let read = self.receive(token, now);
            let Some(active) = self.transfers.get_mut(&token) else { continue };
            let action = match (read, active.state.deadline()) {
                (Some(action), _) => Some(action),
                (None, Some(later)) if later > now => {
                    if active.queued != later {
                        active.queued = later;
                        self.deadlines.push(Reverse((later, token)));
                    }
                    None
                }
                (None, _) => self.advance(token, Event::Woken, now),
            };
            if let Some(action) = action {
                self.perform(token, action, now);
            }
        }
    }

    /// Reads packets of one transfer until one asks for something.
    ///
    /// What lies behind that one stays: the answer brings a further packet, and with it a further event. Before
    /// anything is sent a second time, the timer reads what may be left.
    fn receive(&mut self, token: u64, now: Instant) -> Option<Action> {
        let mut packet = [0; PACKET];
        for _ in 0..MAX_READS {
            let active = self.transfers.get_mut(&token)?;
            let length = match active.socket.recv(&mut packet) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.close(token, Outcome::Unreachable, now);
                    return None;
                }
                // Nothing there, or a passing fault of the network: the timer covers both.
                Err(_) => return None,
            };
            let event = match codec::parse(&packet[..length]) {
                Ok(Packet::Acknowledgement { block }) => Event::Acknowledged(block),
                Ok(Packet::Error { code, text }) => {
                    debug!(client = %active.request.client, %code, ?text, "TFTP client sent an error");
                    Event::Refused(code)
                }
                Ok(_) | Err(_) => {
                    self.metrics.request(RequestResult::Ignored);
                    continue;
                }
            };
            match self.advance(token, event, now)? {
                Action::Wait => {}
                action => return Some(action),
            }
        }
        // Somebody floods this transfer: the others first, then the rest.
        let active = self.transfers.get(&token)?;
        if let Err(error) = self.epoll.modify(&active.socket, &mut watched(token)) {
            warn!(client = %active.request.client, %error, "TFTP transfer cannot be watched any more");
        }
        None
    }

    fn advance(&mut self, token: u64, event: Event, now: Instant) -> Option<Action> {
        let active = self.transfers.get_mut(&token)?;
        let (state, action) = transfer::step(&active.terms, active.state, event, now);
        active.state = state;
        if let State::BlocksSent { acknowledged, .. } = state {
            active.acknowledged = acknowledged * u64::from(active.terms.block_size);
        }
        if let Some(deadline) = state.deadline()
            && (deadline < active.queued || active.queued <= now)
        {
            active.queued = deadline;
            self.deadlines.push(Reverse((deadline, token)));
        }
        Some(action)
    }

    fn perform(&mut self, token: u64, action: Action, now: Instant) {
        let Some(active) = self.transfers.get_mut(&token) else { return };
        let sent = match action {
            Action::Wait => Ok(()),
            Action::OfferOptions => active.offer(&mut self.out, &self.metrics),
            Action::SendBlocks { first, count } => active.send_blocks(first, count, &mut self.out, &self.metrics),
            Action::Close => {
                let outcome = match active.state {
                    State::Closed(Ending::Delivered) => Outcome::Delivered,
                    State::Closed(Ending::Refused { probe: true, .. }) => Outcome::Probed,
                    State::Closed(Ending::Refused { probe: false, .. }) => Outcome::Refused,
                    _ => Outcome::Silent,
                };
                return self.close(token, outcome, now);
            }
        };
        match sent {
            Ok(()) => {}
            Err(SendError::Gone) => self.close(token, Outcome::Unreachable, now),
            Err(SendError::Read(error)) => {
                warn!(client = %active.request.client, file = active.request.name, %error, "TFTP file cannot be read");
                send_error(&active.socket, ErrorCode::OTHER, "the file cannot be read");
                self.close(token, Outcome::ReadFailed, now);
            }
        }
    }

    fn close(&mut self, token: u64, outcome: Outcome, now: Instant) {
        let Some(active) = self.transfers.remove(&token) else { return };
        let client = active.request.client;
        if self.by_client.get(&client) == Some(&token) {
            self.by_client.remove(&client);
        }
        self.metrics.active.dec();
        self.metrics.ended(outcome);
        let delivered = outcome == Outcome::Delivered;
        let report = TransferReport {
            outcome,
            acknowledged: if delivered { active.terms.size } else { active.acknowledged },
            size: active.terms.size,
            duration: now.saturating_duration_since(active.received),
            retransmissions: active.retransmissions,
            request: active.request,
        };
        self.metrics.durations.observe(report.duration.as_secs_f64());
        debug!(
            %client,
            file = report.request.name,
            ?outcome,
            bytes = report.acknowledged,
            size = report.size,
            block_size = active.terms.block_size,
            window = active.terms.window,
            retransmissions = report.retransmissions,
            duration_ms = report.duration.as_millis(),
            "TFTP transfer ended",
        );
        self.files.closed(&report);
    }

    fn stop(mut self, now: Instant) {
        let tokens: Vec<u64> = self.transfers.keys().copied().collect();
        for token in tokens {
            if let Some(active) = self.transfers.get(&token) {
                send_error(&active.socket, ErrorCode::OTHER, "the server is stopping: try again");
            }
            self.close(token, Outcome::Stopped, now);
        }
    }
}

/// An event for each new packet, not for each round in which one lies there.
fn watched(token: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, token)
}
