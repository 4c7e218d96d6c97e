//! The state machine, step by step.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::network::start;
use crate::netboot::tftp::codec::{ErrorCode, Options};
use crate::netboot::tftp::transfer::{Action, Ending, Event, Policy, State, Terms, begin, negotiate, step};

const NO_OPTIONS: Options = Options { block_size: None, transfer_size: None, timeout: None, window_size: None };

/// A transfer and what it did last.
struct Run {
    terms: Terms,
    state: State,
    action: Action,
    now: Instant,
}

impl Run {
    fn new(asked: Options, size: u64) -> Self {
        let terms = negotiate(&asked, size, &Policy::default());
        let now = start();
        let (state, action) = begin(&terms, now);
        Self { terms, state, action, now }
    }

    fn after(&mut self, wait: Duration, event: Event) -> Action {
        self.now += wait;
        (self.state, self.action) = step(&self.terms, self.state, event, self.now);
        self.action
    }

    fn ack(&mut self, block: u16) -> Action {
        self.after(Duration::from_millis(1), Event::Acknowledged(block))
    }
}

fn blocks(first: u64, count: u16) -> Action {
    Action::SendBlocks { first, count }
}

fn windowed(window: u16, size: u64) -> Run {
    Run::new(Options { window_size: Some(window), ..NO_OPTIONS }, size)
}

#[test]
fn without_options_block_one_is_sent_at_once() {
    let mut run = Run::new(NO_OPTIONS, 1000);
    assert_eq!(run.action, blocks(1, 1));
    assert_eq!(run.ack(1), blocks(2, 1));
    assert_eq!(run.terms.extent(2), (512, 488));
    assert_eq!(run.ack(2), Action::Close);
    assert_eq!(run.state, State::Closed(Ending::Delivered));
}

#[test]
fn an_exact_multiple_ends_with_an_empty_block() {
    let mut run = Run::new(NO_OPTIONS, 1024);
    run.ack(1);
    assert_eq!(run.ack(2), blocks(3, 1));
    assert_eq!(run.terms.extent(3), (1024, 0));
    assert_eq!(run.ack(3), Action::Close);
}

#[test]
fn an_empty_file_is_one_empty_block() {
    let mut run = Run::new(NO_OPTIONS, 0);
    assert_eq!((run.action, run.terms.extent(1)), (blocks(1, 1), (0, 0)));
    assert_eq!(run.ack(1), Action::Close);
}

#[test]
fn the_answer_is_never_above_the_question() {
    let asked =
        Options { block_size: Some(65464), transfer_size: Some(0), timeout: Some(255), window_size: Some(65535) };
    let terms = negotiate(&asked, 12345, &Policy::default());
    let expected =
        Options { block_size: Some(1468), transfer_size: Some(12345), timeout: Some(255), window_size: Some(64) };
    assert_eq!(terms.accepted, expected);
    assert_eq!((terms.timeout, terms.max_timeout), (Duration::from_secs(255), Duration::from_secs(255)));
    let terms = negotiate(&Options { block_size: Some(8), ..NO_OPTIONS }, 16, &Policy::default());
    assert_eq!((terms.block_size, terms.blocks()), (8, 3));
}

/// EDK2 asks for the size, gets the OACK, sends ERROR, and asks again from the same port.
#[test]
fn an_error_after_the_oack_is_a_probe() {
    let mut run = Run::new(Options { transfer_size: Some(0), ..NO_OPTIONS }, 5);
    assert_eq!(run.action, Action::OfferOptions);
    assert_eq!(run.after(Duration::ZERO, Event::Refused(ErrorCode::OPTION_REFUSED)), Action::Close);
    let expected = Ending::Refused { code: ErrorCode::OPTION_REFUSED, probe: true };
    assert_eq!(run.state, State::Closed(expected));
    assert_eq!(run.ack(0), Action::Close, "a closed transfer stays closed");
}

#[test]
fn a_duplicate_ack_never_makes_lock_step_send_again() {
    let mut run = Run::new(NO_OPTIONS, 10_000);
    run.ack(1);
    run.ack(2);
    for _ in 0..5 {
        assert_eq!(run.ack(2), Action::Wait);
        assert_eq!(run.ack(1), Action::Wait, "older still");
        assert_eq!(run.ack(7), Action::Wait, "never sent");
    }
    assert_eq!(run.ack(3), blocks(4, 1));
}

#[test]
fn a_window_restarts_behind_the_last_block_that_arrived() {
    let mut run = windowed(8, 512 * 100);
    assert_eq!(run.ack(0), blocks(1, 8));
    assert_eq!(run.ack(3), blocks(4, 8), "block 4 was lost");
    assert_eq!(run.ack(11), blocks(12, 8));
}

#[test]
fn a_lost_first_block_restarts_its_window_once() {
    let mut run = windowed(8, 512 * 100);
    run.ack(0);
    assert_eq!(run.ack(8), blocks(9, 8));
    assert_eq!(run.after(Duration::from_micros(10), Event::Acknowledged(8)), Action::Wait, "a copy of the ACK before");
    assert_eq!(run.ack(8), blocks(9, 8), "late enough to be an answer to this window");
    assert_eq!(run.ack(8), Action::Wait);
    assert_eq!(run.ack(8), Action::Wait);
    assert_eq!(run.ack(16), blocks(17, 8));
}

#[test]
fn the_last_window_is_as_short_as_the_file() {
    let mut run = windowed(8, 512 * 10);
    run.ack(0);
    assert_eq!(run.ack(8), blocks(9, 3));
    assert_eq!(run.ack(11), Action::Close);
}

#[test]
fn silence_is_answered_slower_and_slower_and_then_no_more() {
    let mut run = Run::new(NO_OPTIONS, 10_000);
    let mut waits = Vec::new();
    while let Some(deadline) = run.state.deadline() {
        assert_eq!(run.after(Duration::ZERO, Event::Woken), Action::Wait, "not yet due");
        waits.push(deadline.duration_since(run.now).as_secs());
        run.after(deadline.duration_since(run.now), Event::Woken);
    }
    assert_eq!(waits, [1, 2, 4, 8, 8, 8]);
    assert_eq!(run.state, State::Closed(Ending::Silent));
}

#[test]
fn progress_resets_the_timer() {
    let mut run = Run::new(NO_OPTIONS, 10_000);
    for _ in 0..3 {
        let deadline = run.state.deadline().unwrap();
        assert_eq!(run.after(deadline.duration_since(run.now), Event::Woken), blocks(1, 1));
    }
    run.ack(1);
    assert_eq!(run.state.deadline().unwrap().duration_since(run.now), Duration::from_secs(1));
}

#[test]
fn a_repeated_request_is_answered_again_until_the_client_has_answered() {
    let mut run = windowed(4, 10_000);
    assert_eq!(run.after(Duration::ZERO, Event::Requested), Action::OfferOptions);
    run.ack(0);
    assert_eq!(run.after(Duration::ZERO, Event::Requested), Action::Wait);
    let mut run = Run::new(NO_OPTIONS, 10_000);
    assert_eq!(run.after(Duration::ZERO, Event::Requested), blocks(1, 1));
    run.ack(1);
    assert_eq!(run.after(Duration::ZERO, Event::Requested), Action::Wait);
}

#[test]
fn block_numbers_roll_over_to_zero() {
    for window in [1, 16] {
        let count = 70_000u64;
        let mut run = windowed(window, count * 512 - 1);
        let mut action = run.ack(0);
        let mut seen = 0;
        while let Action::SendBlocks { first, count } = action {
            assert_eq!(first, seen + 1);
            seen += u64::from(count);
            action = run.ack(seen as u16);
        }
        assert_eq!((seen, run.state), (count, State::Closed(Ending::Delivered)));
    }
}

proptest! {
    #[test]
    fn blocks_cover_the_file_without_gap(size in 0u64..5_000_000, block_size in 8u16..=1468) {
        let terms = negotiate(&Options { block_size: Some(block_size), ..NO_OPTIONS }, size, &Policy::default());
        let mut covered = 0;
        for block in 1..=terms.blocks() {
            let (offset, length) = terms.extent(block);
            prop_assert_eq!(offset, covered);
            prop_assert_eq!(length < usize::from(block_size), block == terms.blocks());
            covered += length as u64;
        }
        prop_assert_eq!(covered, size);
    }

    #[test]
    fn acks_out_of_the_window_change_nothing(window in 1u16..=64, progress in 0u64..100_000, block: u16) {
        let mut run = windowed(window, 512 * 200_000);
        let mut action = run.ack(0);
        while let Action::SendBlocks { first, count } = action {
            if first + u64::from(count) > progress {
                break;
            }
            action = run.ack((first + u64::from(count) - 1) as u16);
        }
        let State::BlocksSent { acknowledged, sent, .. } = run.state else { panic!("{:?}", run.state) };
        let inside = (acknowledged + 1..=sent).any(|inside| inside as u16 == block);
        let before = run.state;
        run.after(Duration::ZERO, Event::Acknowledged(block));
        prop_assert_eq!(run.state != before, inside);
    }
}
