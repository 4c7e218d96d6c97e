//! One running transfer: its socket, its state, and how its packets go out.

use std::io;
use std::net::UdpSocket;
use std::time::Instant;

use nix::errno::Errno;
use tracing::{debug, warn};

use super::admission::Permit;
use super::codec::{self, DATA_HEADER, ErrorCode, Mode, Options, Packet};
use super::metrics::Metrics;
use super::source::Source;
use super::transfer::{self, Action, State, Terms};
use super::{FileRequest, socket};

/// The most bytes that one segmented send carries (RFC 768 length field, less headers).
pub(super) const MAX_SEND: usize = 65_000;
/// The most packets that one segmented send carries (the kernel's limit).
const MAX_SEGMENTS: usize = 64;

/// A transfer on its way to a worker.
#[derive(Debug)]
pub(super) struct Handoff {
    pub(super) socket: UdpSocket,
    pub(super) request: FileRequest,
    pub(super) mode: Mode,
    pub(super) asked: Options,
    pub(super) terms: Terms,
    pub(super) source: Source,
    pub(super) permit: Permit,
    pub(super) received: Instant,
}

/// A transfer that runs.
pub(super) struct Active {
    pub(super) socket: UdpSocket,
    pub(super) request: FileRequest,
    mode: Mode,
    asked: Options,
    pub(super) terms: Terms,
    pub(super) state: State,
    source: Source,
    /// The earliest entry in the heap of deadlines.
    pub(super) queued: Instant,
    /// Whether one send carries several packets.
    segmented: bool,
    /// The last block ever sent: what lies below is sent again.
    highest: u64,
    /// Bytes that the client acknowledged.
    pub(super) acknowledged: u64,
    pub(super) retransmissions: u64,
    pub(super) received: Instant,
    _permit: Permit,
}

/// Why a transfer cannot go on.
pub(super) enum SendError {
    /// The client's port is closed.
    Gone,
    /// The file cannot be read.
    Read(io::Error),
}

impl Active {
    /// The transfer, and the first thing to do.
    pub(super) fn new(handoff: Handoff, now: Instant) -> (Self, Action) {
        let (state, action) = transfer::begin(&handoff.terms, now);
        let segment = usize::from(handoff.terms.block_size) + DATA_HEADER;
        // An OACK or ERROR is always shorter than such a segment, so it is never cut.
        let segmented = handoff.terms.window > 1
            && handoff.terms.block_size >= codec::DEFAULT_BLOCK_SIZE
            && socket::segment(&handoff.socket, segment).is_ok();
        let active = Self {
            socket: handoff.socket,
            request: handoff.request,
            mode: handoff.mode,
            asked: handoff.asked,
            terms: handoff.terms,
            state,
            source: handoff.source,
            queued: state.deadline().unwrap_or(now),
            segmented,
            highest: 0,
            acknowledged: 0,
            retransmissions: 0,
            received: handoff.received,
            _permit: handoff.permit,
        };
        (active, action)
    }

    pub(super) fn same_request(&self, other: &Handoff) -> bool {
        self.request == other.request && self.mode == other.mode && self.asked == other.asked
    }

    pub(super) fn offer(&mut self, out: &mut Vec<u8>, metrics: &Metrics) -> Result<(), SendError> {
        if let State::OptionsOffered { timer } = self.state
            && timer.tries > 1
        {
            self.retransmissions += 1;
            metrics.retransmissions.inc();
        }
        out.clear();
        codec::encode(&Packet::OptionAcknowledgement(self.terms.accepted), out);
        self.flush(out, out.len())
    }

    pub(super) fn send_blocks(
        &mut self,
        first: u64,
        count: u16,
        out: &mut Vec<u8>,
        metrics: &Metrics,
    ) -> Result<(), SendError> {
        let last = first + u64::from(count) - 1;
        let again = self.highest.saturating_add(1).saturating_sub(first).min(count.into());
        if again > 0 {
            self.retransmissions += again;
            metrics.retransmissions.inc_by(again);
        }
        self.highest = self.highest.max(last);
        let segment = usize::from(self.terms.block_size) + DATA_HEADER;
        let mut bytes = 0;
        out.clear();
        for block in first..=last {
            let (offset, length) = self.terms.extent(block);
            // The wire counts modulo 65536.
            out.extend_from_slice(&codec::data_header(block as u16));
            out.extend_from_slice(self.source.read(offset, length).map_err(SendError::Read)?);
            bytes += length as u64;
            let room = self.segmented && out.len() + segment <= MAX_SEND && out.len() < segment * MAX_SEGMENTS;
            if !room || block == last {
                self.flush(out, segment)?;
            }
        }
        metrics.sent_bytes.inc_by(bytes);
        Ok(())
    }

    /// Sends what is gathered. If the way out knows no segmentation, packet by packet from now on.
    fn flush(&mut self, out: &mut Vec<u8>, segment: usize) -> Result<(), SendError> {
        if self.segmented {
            match send(&self.socket, out) {
                Ok(()) => {}
                Err(Refused::Port) => return Err(SendError::Gone),
                Err(Refused::Segments) => {
                    self.segmented = false;
                    debug!(client = %self.request.client, "no segmentation offload on this way");
                    if let Err(error) = socket::segment(&self.socket, 0) {
                        warn!(client = %self.request.client, %error, "segmentation offload cannot be turned off");
                    }
                }
            }
        }
        if !self.segmented {
            for packet in out.chunks(segment) {
                if let Err(Refused::Port) = send(&self.socket, packet) {
                    return Err(SendError::Gone);
                }
            }
        }
        out.clear();
        Ok(())
    }
}

enum Refused {
    Port,
    Segments,
}

/// Sends. A full buffer or a passing fault of the network counts as a packet that was lost: the timer covers it.
fn send(socket: &UdpSocket, packet: &[u8]) -> Result<(), Refused> {
    let Err(error) = socket.send(packet) else { return Ok(()) };
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => Err(Refused::Port),
        Some(Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::EOPNOTSUPP) => Err(Refused::Segments),
        _ => Ok(()),
    }
}

/// Sends an ERROR packet, once: nobody acknowledges it.
pub(super) fn send_error(socket: &UdpSocket, code: ErrorCode, text: &str) {
    let mut out = Vec::new();
    codec::encode(&Packet::Error { code, text: text.into() }, &mut out);
    if let Err(error) = socket.send(&out) {
        debug!(%error, "TFTP error packet not sent");
    }
}
