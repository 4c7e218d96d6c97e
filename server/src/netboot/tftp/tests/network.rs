//! A simulated network that loses, delays, reorders and doubles packets, between the state machine and a model of a
//! client. Time is simulated too.
#![allow(clippy::disallowed_methods, reason = "std has no other way to make an Instant; its value does not matter")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::netboot::tftp::codec::Options;
use crate::netboot::tftp::transfer::{Action, Ending, Event, Policy, State, Terms, begin, negotiate, step};

/// Any instant: only differences count.
pub(super) fn start() -> Instant {
    Instant::now()
}

/// How bad the network is: chances in 256, delays in milliseconds. Every packet takes 10 ms; a straggler takes longer,
/// and so comes behind those sent after it.
#[derive(Clone, Copy, Debug)]
struct Weather {
    seed: u64,
    loss: u8,
    duplication: u8,
    stragglers: u8,
    max_delay: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Flight {
    Request,
    Offer,
    Data { wire: u16, absolute: u64 },
    Ack(u16),
    ClientTimer(u64),
}

struct Network {
    now: Instant,
    flights: BinaryHeap<Reverse<(Instant, u64, Flight)>>,
    serial: u64,
    weather: Weather,
    random: u64,
}

impl Network {
    fn random(&mut self) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn at(&mut self, delay: Duration, flight: Flight) {
        self.serial += 1;
        self.flights.push(Reverse((self.now + delay, self.serial, flight)));
    }

    fn send(&mut self, flight: Flight) {
        if self.random() % 256 < self.weather.loss.into() {
            return;
        }
        let copies = 1 + usize::from(self.random() % 256 < self.weather.duplication.into());
        for _ in 0..copies {
            let late = self.random() % 256 < self.weather.stragglers.into();
            let delay = if late { self.random() % self.weather.max_delay } else { 0 };
            self.at(Duration::from_millis(10 + delay), flight);
        }
    }
}

/// A client that follows RFC 7440: it says once where a gap begins. In lock-step, and at the end, it says ACK again to a
/// block that it has, as RFC 1350 wants.
#[derive(Default)]
struct Client {
    heard: bool,
    /// Absolute numbers of the blocks taken, in order: 1, 2, ...
    taken: u64,
    since_ack: u16,
    gap_reported: bool,
    timer: u64,
}

impl Client {
    fn data(&mut self, terms: &Terms, wire: u16, absolute: u64, network: &mut Network) {
        let expected = (self.taken + 1) as u16;
        if wire == expected {
            assert_eq!(absolute, self.taken + 1, "block {wire} was taken for another one");
            self.taken += 1;
            self.since_ack += 1;
            self.gap_reported = false;
            if self.since_ack == terms.window || self.taken == terms.blocks() {
                self.acknowledge(network);
            }
            return;
        }
        let ahead = wire.wrapping_sub(expected) < terms.window;
        let again = terms.window == 1 || self.taken == terms.blocks();
        if (ahead && !self.gap_reported) || (!ahead && again) {
            self.gap_reported = ahead;
            self.acknowledge(network);
        }
    }

    fn acknowledge(&mut self, network: &mut Network) {
        self.since_ack = 0;
        network.send(if self.heard { Flight::Ack(self.taken as u16) } else { Flight::Request });
        self.arm(network);
    }

    fn arm(&mut self, network: &mut Network) {
        self.timer += 1;
        network.at(Duration::from_millis(900), Flight::ClientTimer(self.timer));
    }
}

#[derive(Debug)]
struct Result {
    ending: Ending,
    taken: u64,
    blocks: u64,
    data_sent: u64,
}

fn run(asked: Options, size: u64, weather: Weather) -> Result {
    let policy = Policy {
        max_block_size: 1468,
        max_window: 64,
        timeout: Duration::from_millis(300),
        max_timeout: Duration::from_secs(2),
        tries: 40,
    };
    let terms = negotiate(&asked, size, &policy);
    let random = weather.seed | 1;
    let mut network = Network { now: start(), flights: BinaryHeap::new(), serial: 0, weather, random };
    let mut client = Client::default();
    client.arm(&mut network);
    let (mut state, mut action) = begin(&terms, network.now);
    let (mut steps, mut data_sent) = (0, 0);
    loop {
        match action {
            Action::OfferOptions => network.send(Flight::Offer),
            Action::SendBlocks { first, count } => {
                for absolute in first..first + u64::from(count) {
                    data_sent += 1;
                    network.send(Flight::Data { wire: absolute as u16, absolute });
                }
            }
            Action::Wait | Action::Close => {}
        }
        action = Action::Wait;
        let Some(deadline) = state.deadline() else { break };
        steps += 1;
        assert!(steps < 40 * (terms.blocks() + 50), "no end after {steps} steps: {state:?}");
        let due = network.flights.peek().is_some_and(|Reverse((at, ..))| *at < deadline);
        if !due {
            network.now = deadline;
            (state, action) = step(&terms, state, Event::Woken, network.now);
            continue;
        }
        let Some(Reverse((at, _, flight))) = network.flights.pop() else { continue };
        network.now = at;
        match flight {
            Flight::Offer if client.taken == 0 => {
                client.heard = true;
                client.acknowledge(&mut network);
            }
            Flight::Offer => {}
            Flight::Request => (state, action) = step(&terms, state, Event::Requested, network.now),
            Flight::Data { wire, absolute } => client.data(&terms, wire, absolute, &mut network),
            Flight::Ack(block) => (state, action) = step(&terms, state, Event::Acknowledged(block), network.now),
            Flight::ClientTimer(timer) if timer == client.timer => client.acknowledge(&mut network),
            Flight::ClientTimer(_) => {}
        }
    }
    let State::Closed(ending) = state else { unreachable!("the loop ends with the transfer") };
    Result { ending, taken: client.taken, blocks: terms.blocks(), data_sent }
}

fn asked(block_size: u16, window: u16) -> Options {
    let window_size = (window > 1).then_some(window);
    Options { block_size: Some(block_size), window_size, ..Options::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_bad_network_delivers_every_block_in_order(
        seed: u64, loss in 0u8..70, duplication in 0u8..100, stragglers in 0u8..100, max_delay in 1u64..80,
        window in prop::sample::select(vec![1u16, 2, 4, 16, 64]), size in 0u64..200_000,
    ) {
        let result = run(asked(512, window), size, Weather { seed, loss, duplication, stragglers, max_delay });
        prop_assert_eq!(result.taken, result.blocks, "{:?}", result);
        prop_assert_eq!(result.ending, Ending::Delivered);
    }

    /// The Sorcerer's Apprentice: doubled packets must not be answered with doubled blocks, for ever after.
    #[test]
    fn doubled_packets_are_not_doubled_again(seed: u64, size in 100_000u64..200_000, max_delay in 1u64..100) {
        let weather = Weather { seed, loss: 0, duplication: 255, stragglers: 128, max_delay };
        let result = run(asked(512, 1), size, weather);
        prop_assert_eq!(result.data_sent, result.blocks);
        let result = run(asked(512, 16), size, Weather { stragglers: 0, ..weather });
        prop_assert_eq!(result.data_sent, result.blocks);
    }
}

#[test]
fn more_than_65535_blocks_arrive_over_a_bad_network() {
    for (window, seed) in [(1, 3), (16, 5)] {
        let weather = Weather { seed, loss: 1, duplication: 1, stragglers: 1, max_delay: 20 };
        let result = run(asked(8, window), 8 * 70_000, weather);
        assert_eq!((result.taken, result.ending), (70_001, Ending::Delivered), "{result:?}");
    }
}
