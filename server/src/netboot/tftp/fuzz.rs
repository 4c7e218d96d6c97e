//! One fuzz input through everything that is pure: the codec, the names, the negotiation and the state machine.

use std::time::{Duration, Instant};

use super::codec::{self, Packet};
use super::transfer::{self, Action, Event, Policy, State};
use super::{names, netascii};

/// Runs one input. Panics if an invariant breaks.
///
/// Layout: a parameter byte each for the block limit and the window limit, four for the file size, then packets, each
/// behind a length byte and a byte of milliseconds that pass before it.
pub fn run_one(data: &[u8]) {
    roundtrip(data);
    let _ = netascii::encode(data);
    let Some(([block_limit, window_limit, size @ ..], mut rest)) = data.split_first_chunk::<6>() else { return };
    let policy = Policy {
        max_block_size: u16::from(*block_limit) * 257,
        max_window: (*window_limit).into(),
        timeout: Duration::from_millis(40),
        max_timeout: Duration::from_millis(160),
        tries: 3,
    };
    let mut asked = codec::Options::default();
    let mut transfer: Option<(transfer::Terms, State)> = None;
    // The clock starts anywhere: only differences count.
    let mut now = start();
    while let Some(([length, wait], after)) = rest.split_first_chunk::<2>() {
        let (bytes, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        now += Duration::from_millis((*wait).into());
        roundtrip(bytes);
        let event = match codec::parse(bytes) {
            Ok(Packet::Request(request)) => {
                if let Ok(name) = names::normalise(request.name) {
                    assert!(!name.starts_with('/') && name.split('/').all(|part| !matches!(part, "" | "." | "..")));
                }
                asked = request.options;
                Event::Requested
            }
            Ok(Packet::Acknowledgement { block }) => Event::Acknowledged(block),
            Ok(Packet::Error { code, .. }) => Event::Refused(code),
            Ok(_) | Err(_) => Event::Woken,
        };
        let (terms, before, (state, action)) = match transfer {
            Some((terms, state)) => (terms, Some(state), transfer::step(&terms, state, event, now)),
            None => {
                let terms = transfer::negotiate(&asked, u32::from_be_bytes(*size).into(), &policy);
                (terms, None, transfer::begin(&terms, now))
            }
        };
        check(&terms, before, &state, action);
        transfer = Some((terms, state));
    }
}

/// What no step may break.
fn check(terms: &transfer::Terms, before: Option<State>, state: &State, action: Action) {
    assert_eq!(state.deadline().is_none(), action == Action::Close, "closed and nothing to wait for are the same");
    if let Action::SendBlocks { first, count } = action {
        assert!(count >= 1 && count <= terms.window, "a window of {count} blocks");
        let last = first + u64::from(count) - 1;
        assert!(last <= terms.blocks(), "block {last} of {}", terms.blocks());
        let (offset, length) = terms.extent(last);
        assert!(offset + length as u64 <= terms.size);
    }
    if let (Some(State::BlocksSent { acknowledged: old, .. }), State::BlocksSent { acknowledged, sent, .. }) =
        (before, state)
    {
        assert!(*acknowledged >= old && sent > acknowledged, "{old} -> {acknowledged}..{sent}");
    }
}

/// What parses is written and read back as the same.
fn roundtrip(bytes: &[u8]) {
    let Ok(packet) = codec::parse(bytes) else { return };
    let mut out = Vec::new();
    codec::encode(&packet, &mut out);
    if let Packet::Error { .. } = packet {
        // A text that was no UTF-8 grows when it is made so, and is cut again.
        assert!(matches!(codec::parse(&out), Ok(Packet::Error { .. })));
    } else {
        assert_eq!(codec::parse(&out).as_ref(), Ok(&packet));
    }
}

#[allow(clippy::disallowed_methods, reason = "std has no other way to make an Instant; its value does not matter")]
fn start() -> Instant {
    Instant::now()
}
