//! Properties of the choice over random lives of the backends.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 6443))
}

#[derive(Debug, Clone)]
enum Event {
    Set(Vec<u8>),
    Checked(u8, bool),
    Forget,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => prop::collection::vec(1..6u8, 0..6).prop_map(Event::Set),
        8 => (1..6u8, any::<bool>()).prop_map(|(n, answered)| Event::Checked(n, answered)),
        1 => Just(Event::Forget),
    ]
}

/// What is known of a backend, from all the answers since it is listed.
fn expected(answers: &[bool]) -> Health {
    let silent = answers.iter().rev().take_while(|answered| !**answered).count();
    if silent >= FAILURES as usize {
        Health::Unhealthy
    } else if answers.contains(&true) {
        Health::Healthy
    } else {
        Health::Unknown
    }
}

proptest! {
    #[test]
    fn a_connection_goes_to_a_healthy_backend_when_there_is_one(
        events in prop::collection::vec(event(), 0..60),
        own in 0..6u8,
        turn in any::<usize>(),
    ) {
        let mut board = Board::default();
        let mut lives: BTreeMap<u8, Vec<bool>> = BTreeMap::new();
        for event in events {
            match event {
                Event::Set(list) => {
                    let addresses: Vec<_> = list.iter().map(|n| address(*n)).collect();
                    board.set(&addresses, |a| a == address(own));
                    lives.retain(|n, _| list.contains(n));
                    for n in list {
                        lives.entry(n).or_default();
                    }
                }
                Event::Checked(n, answered) => {
                    let before = lives.get(&n).map(|life| expected(life));
                    let told = board.checked(address(n), answered);
                    if let Some(life) = lives.get_mut(&n) {
                        life.push(answered);
                    }
                    let after = lives.get(&n).map(|life| expected(life));
                    prop_assert_eq!(told, after.filter(|_| before != after), "only a change is told");
                }
                Event::Forget => {
                    board.forget();
                    lives.values_mut().for_each(Vec::clear);
                }
            }
            let with = |health| -> Vec<SocketAddr> {
                lives.iter().filter(|(_, life)| expected(life) == health).map(|(n, _)| address(*n)).collect()
            };
            let healthy = with(Health::Healthy);
            let all: Vec<SocketAddr> = lives.keys().map(|n| address(*n)).collect();
            let order = board.order(turn);
            let mut sorted = order.clone();
            sorted.sort();
            prop_assert_eq!(&sorted, if healthy.is_empty() { &all } else { &healthy });
            if order.contains(&address(own)) {
                prop_assert_eq!(order[0], address(own));
            }
            for n in 1..6 {
                let leave = match lives.get(&n) {
                    None => true,
                    Some(life) => expected(life) == Health::Unhealthy && !healthy.is_empty(),
                };
                prop_assert_eq!(board.is_to_leave(address(n)), leave);
            }
            // Whoever is sent somewhere now may stay there.
            prop_assert!(order.iter().all(|address| !board.is_to_leave(*address)));
        }
    }

    #[test]
    fn the_others_take_turns(count in 1..6u8, start in 0..1000usize) {
        let mut board = Board::default();
        let addresses: Vec<_> = (1..=count).map(address).collect();
        board.set(&addresses, |_| false);
        let mut first: Vec<_> = (0..usize::from(count)).map(|n| board.order(start + n)[0]).collect();
        first.sort();
        prop_assert_eq!(first, addresses);
    }
}
