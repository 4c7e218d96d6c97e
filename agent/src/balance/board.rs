//! Which API server a connection goes to, and which it has to leave (pure).
//!
//! ```text
//! Unknown ──answers──▶ Healthy ──silent FAILURES times in a row──▶ Unhealthy
//!    └──────silent FAILURES times in a row──────▶ Unhealthy ──answers──▶ Healthy
//! ```

use std::net::SocketAddr;

/// So many checks in a row must fail before a backend counts as unhealthy.
pub const FAILURES: u32 = 2;

/// What is known of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not enough to judge.
    Unknown,
    /// It answered the last check, or missed fewer than [`FAILURES`] since.
    Healthy,
    /// It does not answer.
    Unhealthy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Backend {
    address: SocketAddr,
    /// On this node.
    own: bool,
    health: Health,
    failures: u32,
}

/// All backends, in the order of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Board {
    backends: Vec<Backend>,
}

impl Board {
    /// Takes a new list. What is known of those that stay is kept.
    pub fn set(&mut self, addresses: &[SocketAddr], own: impl Fn(SocketAddr) -> bool) {
        let mut backends: Vec<Backend> = Vec::with_capacity(addresses.len());
        for &address in addresses {
            if backends.iter().any(|backend| backend.address == address) {
                continue;
            }
            let known = self.backends.iter().find(|backend| backend.address == address);
            let (health, failures) = known.map_or((Health::Unknown, 0), |known| (known.health, known.failures));
            backends.push(Backend { address, own: own(address), health, failures });
        }
        self.backends = backends;
    }

    /// Forgets what is known of all of them: they are judged by another authority now.
    pub fn forget(&mut self) {
        for backend in &mut self.backends {
            (backend.health, backend.failures) = (Health::Unknown, 0);
        }
    }

    /// A check of a backend has ended. The new health, when it is another one.
    pub fn checked(&mut self, address: SocketAddr, answered: bool) -> Option<Health> {
        let backend = self.backends.iter_mut().find(|backend| backend.address == address)?;
        backend.failures = if answered { 0 } else { backend.failures.saturating_add(1) };
        let health = match backend.health {
            _ if answered => Health::Healthy,
            _ if backend.failures >= FAILURES => Health::Unhealthy,
            before => before,
        };
        (std::mem::replace(&mut backend.health, health) != health).then_some(health)
    }

    /// What a new connection tries, best first: those that are healthy, or all when none is; the node's own before the
    /// others, and these in turn. `turn` counts the connections.
    #[must_use]
    pub fn order(&self, turn: usize) -> Vec<SocketAddr> {
        let any = self.any_healthy();
        let (own, others): (Vec<&Backend>, Vec<&Backend>) =
            self.backends.iter().filter(|b| !any || b.health == Health::Healthy).partition(|b| b.own);
        let rotated = |group: Vec<&Backend>| {
            let start = turn.checked_rem(group.len()).unwrap_or(0);
            let mut addresses: Vec<SocketAddr> = group.iter().map(|b| b.address).collect();
            addresses.rotate_left(start);
            addresses
        };
        [rotated(own), rotated(others)].concat()
    }

    /// True when a connection to this backend is to be closed: it is not in the list any more, or it is unhealthy and
    /// another one is healthy. With no healthy one there is nowhere to go.
    #[must_use]
    pub fn is_to_leave(&self, address: SocketAddr) -> bool {
        match self.backends.iter().find(|backend| backend.address == address) {
            None => true,
            Some(backend) => backend.health == Health::Unhealthy && self.any_healthy(),
        }
    }

    fn any_healthy(&self) -> bool {
        self.backends.iter().any(|backend| backend.health == Health::Healthy)
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
