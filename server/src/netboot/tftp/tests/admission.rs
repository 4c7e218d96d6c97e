//! Slots: bounded, shared, given back.

use std::net::SocketAddr;

use proptest::prelude::*;

use crate::netboot::tftp::admission::{Admissions, Permit};

fn client(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], port))
}

#[test]
fn one_address_cannot_take_all() {
    let admissions = Admissions::new(4, 2, 1);
    let held: Vec<Option<Permit>> = (1..=3).map(|port| admissions.admit(client(1, port))).collect();
    assert!(held[0].is_some() && held[1].is_some() && held[2].is_none());
    let others = [admissions.admit(client(2, 1)), admissions.admit(client(3, 1))];
    assert!(others.iter().all(Option::is_some));
    assert!(admissions.admit(client(4, 1)).is_none(), "all four slots are taken");
    drop(held);
    assert!(admissions.admit(client(4, 1)).is_some());
}

#[test]
fn a_client_that_asks_again_needs_no_second_slot() {
    let admissions = Admissions::new(1, 1, 2);
    let first = admissions.admit(client(1, 1)).unwrap();
    let second = admissions.admit(client(1, 1)).expect("the same client");
    assert_eq!(first.worker(), second.worker());
    drop(first);
    assert!(admissions.admit(client(2, 1)).is_none());
    drop(second);
    assert_eq!(admissions.active(), 0);
}

#[test]
fn clients_spread_over_the_workers() {
    let admissions = Admissions::new(8, 8, 2);
    let permits: Vec<Permit> = (1..=8).map(|port| admissions.admit(client(1, port)).unwrap()).collect();
    assert_eq!(permits.iter().filter(|permit| permit.worker() == 0).count(), 4);
}

proptest! {
    #[test]
    fn nothing_leaks(steps in prop::collection::vec((any::<bool>(), 0u8..4, 0u16..4), 0..200)) {
        let admissions = Admissions::new(5, 3, 3);
        let mut held: Vec<(SocketAddr, Permit)> = Vec::new();
        for (take, host, port) in steps {
            if take {
                held.extend(admissions.admit(client(host, port)).map(|permit| (client(host, port), permit)));
            } else if !held.is_empty() {
                held.swap_remove(usize::from(host) % held.len());
            }
            let mut clients: Vec<SocketAddr> = held.iter().map(|(client, _)| *client).collect();
            clients.sort();
            clients.dedup();
            prop_assert_eq!(admissions.active(), clients.len());
            prop_assert!(clients.len() <= 5);
        }
        drop(held);
        prop_assert_eq!(admissions.active(), 0);
        prop_assert!((0..3).all(|port| admissions.admit(client(9, port)).is_some()));
    }
}
