//! One read transfer as a state machine: `step(terms, state, event, now) -> (state, action)`. Pure.
//!
//! ```text
//!            options asked                    ACK 0
//! begin ───────────────────▶ OptionsOffered ─────────▶ BlocksSent ──ACK of the last block──▶ Closed(Delivered)
//!   └────────────────────────────────────────────────────▲  │ ▲
//!            none asked: block 1                           │ └─┘ ACK: the next window; timer: the same again
//! from any: ERROR ▶ Closed(Refused); too many silent timers ▶ Closed(Silent)
//! ```
//!
//! Blocks are counted from 1 and without end; only the wire counts modulo 65536, so rollover needs no case of its own.
//! An ACK is placed by its distance from the last acknowledged block: beyond what was sent it is old, and dropped.
//!
//! A duplicate ACK never makes lock-step send again (the Sorcerer's Apprentice). With a window it is how a client says
//! that the window's first block is missing (RFC 7440), so it restarts the window: once, and only if it is late enough
//! to be an answer to this window and not a copy of the ACK that opened it.

use std::time::{Duration, Instant};

use super::codec::{DEFAULT_BLOCK_SIZE, ErrorCode, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, Options};

/// The largest window that can be told apart from old ACKs, in blocks.
pub const MAX_WINDOW: u16 = 32767;

/// What the server is willing to agree to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The largest block size, in bytes. Above the path MTU blocks fragment.
    pub max_block_size: u16,
    /// The largest window, in blocks.
    pub max_window: u16,
    /// How long to wait for an ACK the first time, unless the client names a time.
    pub timeout: Duration,
    /// The longest wait between two tries, unless the client names a longer time.
    pub max_timeout: Duration,
    /// How often the same packets are sent before the client counts as gone.
    pub tries: u8,
}

/// What both sides agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of every block but the last.
    pub block_size: u16,
    /// Blocks sent before an ACK is awaited.
    pub window: u16,
    /// The first wait.
    pub timeout: Duration,
    /// The longest wait.
    pub max_timeout: Duration,
    /// Times that the same packets are sent.
    pub tries: u8,
    /// Bytes of the file.
    pub size: u64,
    /// The options to acknowledge; empty if the client asked for none that is known.
    pub accepted: Options,
}

/// Where a transfer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The OACK is sent; ACK 0 is awaited.
    OptionsOffered {
        /// When to send it again.
        timer: Timer,
    },
    /// Blocks are sent; the ACK of at least one is awaited.
    BlocksSent {
        /// The last acknowledged block; 0 before the first.
        acknowledged: u64,
        /// The last block sent.
        sent: u64,
        /// When to send them again.
        timer: Timer,
        /// Whether a duplicate ACK restarted this window already.
        restarted: bool,
        /// The quickest answer to a window so far.
        quickest: Option<Duration>,
    },
    /// Over.
    Closed(Ending),
}

/// How a transfer ended, as far as packets tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The last block was acknowledged.
    Delivered,
    /// The client sent ERROR.
    Refused {
        /// Its code.
        code: ErrorCode,
        /// Whether it answered the OACK: a client that only wanted the size does.
        probe: bool,
    },
    /// No answer after all tries.
    Silent,
}

/// The retransmission timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// When the packets were sent last.
    pub sent_at: Instant,
    /// When they are sent again.
    pub deadline: Instant,
    /// How often they were sent.
    pub tries: u8,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An ACK came.
    Acknowledged(u16),
    /// An ERROR came.
    Refused(ErrorCode),
    /// The same request came again from the same client.
    Requested,
    /// The clock moved: the deadline may have passed.
    Woken,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Send the OACK of [`Terms::accepted`].
    OfferOptions,
    /// Send `count` blocks from `first` on.
    SendBlocks {
        /// The first block, counted from 1.
        first: u64,
        /// How many, at least 1.
        count: u16,
    },
    /// Stop: the state is [`State::Closed`].
    Close,
}

/// Agrees to what the client asks, within the policy. The answer to an option is never above the question (RFC 2347).
#[must_use]
pub fn negotiate(asked: &Options, size: u64, policy: &Policy) -> Terms {
    let block_limit = policy.max_block_size.clamp(MIN_BLOCK_SIZE, MAX_BLOCK_SIZE);
    let window_limit = policy.max_window.clamp(1, MAX_WINDOW);
    let accepted = Options {
        block_size: asked.block_size.map(|asked| asked.min(block_limit)),
        transfer_size: asked.transfer_size.map(|_| size),
        timeout: asked.timeout,
        window_size: asked.window_size.map(|asked| asked.min(window_limit)),
    };
    let timeout = accepted.timeout.map_or(policy.timeout, |seconds| Duration::from_secs(seconds.into()));
    Terms {
        block_size: accepted.block_size.unwrap_or(DEFAULT_BLOCK_SIZE),
        window: accepted.window_size.unwrap_or(1),
        timeout,
        max_timeout: policy.max_timeout.max(timeout),
        tries: policy.tries.max(1),
        size,
        accepted,
    }
}

impl Terms {
    /// How many blocks the file has. The last is short, and empty if the size is a multiple of the block size.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.size / u64::from(self.block_size) + 1
    }

    /// Where a block, counted from 1, lies in the file: offset and length in bytes.
    #[must_use]
    pub fn extent(&self, block: u64) -> (u64, usize) {
        let block_size = u64::from(self.block_size);
        let offset = block.saturating_sub(1).saturating_mul(block_size).min(self.size);
        let length = (self.size - offset).min(block_size);
        (offset, usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn window_after(&self, acknowledged: u64) -> u16 {
        let left = self.blocks().saturating_sub(acknowledged);
        u16::try_from(left).unwrap_or(u16::MAX).min(self.window)
    }
}

impl Timer {
    fn armed(terms: &Terms, tries: u8, now: Instant) -> Self {
        let doubled = terms.timeout.saturating_mul(1u32 << u32::from(tries.saturating_sub(1)).min(16));
        Self { sent_at: now, deadline: now + doubled.min(terms.max_timeout), tries }
    }
}

impl State {
    /// When [`Event::Woken`] is due; `None` if the transfer is over.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::OptionsOffered { timer } | Self::BlocksSent { timer, .. } => Some(timer.deadline),
            Self::Closed(_) => None,
        }
    }

    /// Whether the client has answered at all.
    #[must_use]
    pub fn answered(&self, terms: &Terms) -> bool {
        match self {
            Self::OptionsOffered { .. } => false,
            Self::BlocksSent { acknowledged, .. } => *acknowledged > 0 || !terms.accepted.is_empty(),
            Self::Closed(_) => true,
        }
    }
}

/// The first step of a transfer.
#[must_use]
pub fn begin(terms: &Terms, now: Instant) -> (State, Action) {
    if terms.accepted.is_empty() {
        send_window(terms, 0, None, Timer::armed(terms, 1, now), false)
    } else {
        (State::OptionsOffered { timer: Timer::armed(terms, 1, now) }, Action::OfferOptions)
    }
}

/// The next step: the new state and the one thing to do.
#[must_use]
pub fn step(terms: &Terms, state: State, event: Event, now: Instant) -> (State, Action) {
    match (state, event) {
        (State::Closed(_), _) => (state, Action::Close),
        (_, Event::Refused(code)) => {
            let probe = matches!(state, State::OptionsOffered { .. });
            (State::Closed(Ending::Refused { code, probe }), Action::Close)
        }
        (_, Event::Requested) if state.answered(terms) => (state, Action::Wait),
        (_, Event::Requested) => again(terms, state),
        (State::OptionsOffered { timer } | State::BlocksSent { timer, .. }, Event::Woken) => {
            if now < timer.deadline {
                (state, Action::Wait)
            } else if timer.tries >= terms.tries {
                (State::Closed(Ending::Silent), Action::Close)
            } else {
                again(terms, rearmed(state, Timer::armed(terms, timer.tries.saturating_add(1), now)))
            }
        }
        (State::OptionsOffered { .. }, Event::Acknowledged(0)) => {
            send_window(terms, 0, None, Timer::armed(terms, 1, now), false)
        }
        (State::OptionsOffered { .. }, Event::Acknowledged(_)) => (state, Action::Wait),
        (State::BlocksSent { acknowledged, sent, timer, restarted, quickest }, Event::Acknowledged(block)) => {
            let waited = now.duration_since(timer.sent_at);
            // The low 16 bits of the absolute count are the count on the wire.
            let ahead = u64::from(block.wrapping_sub(acknowledged as u16));
            if ahead == 0 {
                let answers_this_window = quickest.is_some_and(|quickest| waited >= quickest);
                if terms.window > 1 && timer.tries == 1 && !restarted && answers_this_window {
                    return send_window(terms, acknowledged, quickest, Timer::armed(terms, 1, now), true);
                }
                return (state, Action::Wait);
            }
            if ahead > sent - acknowledged {
                return (state, Action::Wait);
            }
            let acknowledged = acknowledged + ahead;
            if acknowledged >= terms.blocks() {
                return (State::Closed(Ending::Delivered), Action::Close);
            }
            // Karn: a window that was sent twice tells nothing about the round trip.
            let sample = (timer.tries == 1 && !restarted && acknowledged == sent).then_some(waited);
            let quickest = [quickest, sample].into_iter().flatten().min();
            send_window(terms, acknowledged, quickest, Timer::armed(terms, 1, now), false)
        }
    }
}

fn send_window(
    terms: &Terms,
    acknowledged: u64,
    quickest: Option<Duration>,
    timer: Timer,
    restarted: bool,
) -> (State, Action) {
    let count = terms.window_after(acknowledged);
    let sent = acknowledged + u64::from(count);
    let state = State::BlocksSent { acknowledged, sent, timer, restarted, quickest };
    (state, Action::SendBlocks { first: acknowledged + 1, count })
}

fn rearmed(state: State, timer: Timer) -> State {
    match state {
        State::OptionsOffered { .. } => State::OptionsOffered { timer },
        State::BlocksSent { acknowledged, sent, restarted, quickest, .. } => {
            State::BlocksSent { acknowledged, sent, timer, restarted, quickest }
        }
        State::Closed(_) => state,
    }
}

/// Sends again what the client has not answered.
fn again(terms: &Terms, state: State) -> (State, Action) {
    let action = match state {
        State::OptionsOffered { .. } => Action::OfferOptions,
        State::BlocksSent { acknowledged, .. } => {
            Action::SendBlocks { first: acknowledged + 1, count: terms.window_after(acknowledged) }
        }
        State::Closed(_) => Action::Close,
    };
    (state, action)
}
