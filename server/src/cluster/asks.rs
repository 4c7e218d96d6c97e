//! How agents ask for their orders to join: what tells a join that goes on from one that is no more.
//!
//! An agent asks only while no kubeadm runs on its node, and runs none without an order. So a node that asks, and has
//! been given nothing since, does not join. This is known in memory only: after a restart of the service nothing is known
//! until the agents ask again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;
use uuid::Uuid;

use super::recovery::InVain;

/// The questions that are open, by machine.
#[derive(Debug, Default)]
pub(super) struct Asks {
    open: Mutex<HashMap<Uuid, InVain>>,
    /// Held when an order to join is given, and when a recovery of etcd is ordered: never both.
    pub(super) joins: tokio::sync::Mutex<()>,
}

impl Asks {
    /// It asks for its order: it runs nothing.
    pub(super) fn asked(&self, machine: Uuid, operation: Uuid, now: OffsetDateTime) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = open.entry(machine).or_insert(InVain { operation, since: now });
        if asked.operation != operation {
            *asked = InVain { operation, since: now };
        }
    }

    /// It is given its order, or has left.
    pub(super) fn close(&self, machine: Uuid) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
    }

    /// Everybody who has asked and was given nothing since.
    pub(super) fn in_vain(&self) -> Vec<InVain> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }

    /// True when the order of this run was asked for, and not given since.
    pub(super) fn is_in_vain(&self, operation: Uuid) -> bool {
        self.in_vain().iter().any(|asked| asked.operation == operation)
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    #[test]
    fn only_who_was_given_nothing_since_asks_in_vain() {
        let asks = Asks::default();
        let (machine, run, next) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let at = OffsetDateTime::UNIX_EPOCH;
        asks.asked(machine, run, at);
        asks.asked(machine, run, at + Duration::seconds(9));
        assert_eq!(asks.in_vain(), [InVain { operation: run, since: at }], "since the first time");
        asks.close(machine);
        assert!(!asks.is_in_vain(run));
        asks.asked(machine, run, at);
        asks.asked(machine, next, at + Duration::seconds(9));
        assert!(!asks.is_in_vain(run), "nobody runs it any more");
        assert_eq!(asks.in_vain(), [InVain { operation: next, since: at + Duration::seconds(9) }]);
    }
}
