//! The running DHCP service: sockets around the engine.
//!
//! One task per socket reads and decodes, one task decides (the only owner of the lease tables), one task saves leases
//! in groups and then sends the replies that depend on them. Full queues drop packets and count them: clients ask again.

mod advert;
mod commit;
mod decider;
mod frame;
mod link;
mod probe;
mod reader;
mod rogue;
mod run;

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::config::{Config, ConfigError, Mode, Reservation};
use super::engine::Engine;
use super::lease::{LeaseStore, LeaseStoreError};
use super::metrics::Metrics;
use super::sighting::Sightings;
use link::Link;
pub use rogue::OtherServer;
use rogue::OtherServers;

/// The service could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The settings contradict themselves.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No such interface.
    #[error("dhcp: there is no network interface {name} (there are: {known})")]
    NoSuchInterface {
        /// The name.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// The interface does not have the server's address.
    #[error("dhcp: interface {interface} does not have the address {address}: add it, or correct the dhcp settings")]
    AddressMissing {
        /// Interface name.
        interface: String,
        /// The address.
        address: Ipv4Addr,
    },
    /// Somebody else listens.
    #[error("dhcp: UDP port {port} on interface {interface} is taken by {}: stop it, or set the dhcp mode to proxy or off",
        .holder.as_deref().unwrap_or("another process"))]
    PortTaken {
        /// The port.
        port: u16,
        /// Interface name.
        interface: String,
        /// Name and id of the process, when it may be seen.
        holder: Option<String>,
    },
    /// A capability is missing.
    #[error("dhcp: not allowed to {what}: give the process {capability}")]
    Permission {
        /// What was tried.
        what: String,
        /// What it needs.
        capability: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The leases could not be read.
    #[error("dhcp: the leases could not be read")]
    Leases(#[from] LeaseStoreError),
    /// Anything else.
    #[error("dhcp: failed to {what}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A new set of reservations, and where to tell whether it was taken over.
type Replacement = (Vec<Reservation>, oneshot::Sender<Result<(), ConfigError>>);

/// Steers a running service. Clones steer the same one.
#[derive(Debug, Clone)]
pub struct Handle {
    replacements: mpsc::Sender<Replacement>,
    others: OtherServers,
}

/// The reservations were not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// They contradict themselves; the former ones stay.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The service is off, or has stopped.
    #[error("the DHCP service does not run: reservations have no effect")]
    NotRunning,
}

impl Handle {
    /// Replaces all reservations.
    ///
    /// # Errors
    /// When they contradict themselves, or the service does not run as a server.
    pub async fn replace_reservations(&self, reservations: Vec<Reservation>) -> Result<(), ReplaceError> {
        let (sender, answer) = oneshot::channel();
        self.replacements.send((reservations, sender)).await.map_err(|_| ReplaceError::NotRunning)?;
        Ok(answer.await.map_err(|_| ReplaceError::NotRunning)??)
    }

    /// Other DHCP servers heard in the last quarter of an hour.
    #[must_use]
    pub fn other_servers(&self) -> Vec<OtherServer> {
        self.others.list()
    }
}

/// The bound service.
pub struct Server {
    mode: Mode,
    config: Config,
    engine: Engine,
    links: Arc<Vec<Link>>,
    store: Arc<dyn LeaseStore>,
    sightings: Arc<dyn Sightings>,
    metrics: Metrics,
    others: OtherServers,
    replacements: mpsc::Receiver<Replacement>,
    handle: Handle,
}

impl Server {
    /// Opens the sockets and reads the leases.
    ///
    /// # Errors
    /// When the settings contradict themselves, an interface or address is missing, a port is taken, a capability is
    /// missing, or the leases cannot be read.
    pub async fn bind(
        config: Config,
        store: Arc<dyn LeaseStore>,
        sightings: Arc<dyn Sightings>,
        metrics: Metrics,
    ) -> Result<Self, BindError> {
        let mut engine = Engine::new(&config)?;
        let mut links = Vec::new();
        if config.mode != Mode::Off {
            for name in engine.interfaces() {
                let addresses: Vec<Ipv4Addr> =
                    config.interfaces.iter().filter(|one| one.name == *name).map(|one| one.server_ip).collect();
                links.push(Link::open(name, &addresses, config.mode == Mode::Proxy)?);
            }
        }
        if config.mode == Mode::Server {
            engine.restore(store.load().await?);
        }
        let (sender, replacements) = mpsc::channel(4);
        let others = OtherServers::new(metrics.clone());
        let handle = Handle { replacements: sender, others: others.clone() };
        let links = Arc::new(links);
        let mode = config.mode;
        Ok(Self { mode, config, engine, links, store, sightings, metrics, others, replacements, handle })
    }

    /// Steers this service.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until shutdown; leases that were decided are saved before it returns.
    pub async fn run(self, shutdown: CancellationToken) {
        if self.mode == Mode::Off {
            // Whoever steers it is told that it does not run.
            drop(self);
            shutdown.cancelled().await;
            return;
        }
        run::run(self, shutdown).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netboot::dhcp::testing::{config, host, reservation};
    use crate::netboot::dhcp::{MemoryLeaseStore, Sighting};

    struct Blind;

    impl Sightings for Blind {
        fn seen(&self, _: Sighting) {}
    }

    #[tokio::test]
    async fn off_opens_nothing_and_says_that_it_does_not_run() {
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let store = Arc::new(MemoryLeaseStore::default());
        let server = Server::bind(config(Mode::Off, 50, 59), store, Arc::new(Blind), metrics).await.unwrap();
        let handle = server.handle();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(server.run(shutdown.clone()));
        let answer = handle.replace_reservations(vec![reservation(1, host(10))]).await;
        assert!(matches!(answer, Err(ReplaceError::NotRunning)));
        shutdown.cancel();
        running.await.unwrap();
    }
}
