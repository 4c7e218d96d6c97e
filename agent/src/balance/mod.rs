//! The balancer of a node: kubelet, kube-proxy and kubeadm reach the API servers of their cluster by 127.0.0.1:7443.
//!
//! ```text
//! kubelet ──▶ 127.0.0.1:7443 ── relay ──▶ one of the healthy API servers
//!                                 │ board (pure): which one, and who has to leave
//! API servers ◀── GET /readyz ── check
//! ```
//! It is a unit of its own, so that neither an end nor an upgrade of the agent breaks a connection. TLS goes through it
//! from end to end: it holds no key and cannot read what it passes on. What it checks itself is verified: a backend must
//! show a certificate of the cluster's authority for its own address.
//!
//! A machine whose power is cut closes no connection. So the balancer does, as soon as the checks have told: kubelet's one
//! long connection moves in seconds.

mod board;
mod check;
mod relay;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use nkd_api::agent::{BALANCER_CONFIG_PATH, BalancerConfig};
use nkd_api::cluster::BALANCER_PORT;
use rustls::ClientConfig;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use self::board::Board;
use crate::client::chain;
use crate::clock::Clock;
use crate::facts::net;
use crate::files::{self, FileError};
use crate::tls::{self, TlsError};

/// Connections at a time. Further ones wait in the backlog.
const CONNECTIONS: usize = 512;

/// Where the balancer works.
#[derive(Debug, Clone)]
pub struct Options {
    /// `balancer.json`.
    pub config: PathBuf,
    /// Addresses to listen on. The first one must be had; the others only if this machine has such addresses.
    pub listen: Vec<SocketAddr>,
    /// How patient it is.
    pub pace: Pace,
}

impl Default for Options {
    fn default() -> Self {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        Self {
            config: BALANCER_CONFIG_PATH.into(),
            listen: loopback.map(|ip| SocketAddr::new(ip, BALANCER_PORT)).into(),
            pace: Pace::default(),
        }
    }
}

/// How patient it is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between the starts of two checks of a backend, and between two looks at `balancer.json`.
    pub check: Duration,
    /// For a TCP connection: the kernel of a machine that is there answers at once, however busy its API server is.
    pub connect: Duration,
    /// For TLS and the answer of a check.
    pub answer: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { check: seconds(2), connect: seconds(2), answer: seconds(6) }
    }
}

/// The balancer cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BalanceError {
    /// The configuration cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It makes no sense.
    #[error("{path} is damaged: the next run of kubeadm on this node writes it anew")]
    Config {
        /// Where it lies.
        path: PathBuf,
        /// Where it makes no sense.
        #[source]
        source: serde_json::Error,
    },
    /// Its authority cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The port is taken.
    #[error("cannot listen on {address}: another program has that port; the cluster needs it on every node")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Tells the balancer of this node what its backends are; false when there is none, or when it knows.
///
/// # Errors
/// When its configuration cannot be read or written.
pub(crate) fn keep(path: &Path, servers: &[SocketAddr]) -> Result<bool, FileError> {
    let Some(mut config) = files::read_json::<BalancerConfig>(path)? else { return Ok(false) };
    if config.backends == servers {
        return Ok(false);
    }
    config.backends = servers.to_vec();
    files::write_public_json(path, &config)?;
    Ok(true)
}

/// What listeners, connections and checks share.
struct Shared {
    board: watch::Sender<Board>,
    pace: Pace,
    /// Counts the connections.
    turn: AtomicUsize,
    room: Arc<Semaphore>,
}

/// A balancer that listens.
pub struct Balancer {
    config: PathBuf,
    pace: Pace,
    listeners: Vec<TcpListener>,
}

impl Balancer {
    /// Listens. Connections are answered by [`Balancer::run`].
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn bind(options: Options) -> Result<Self, BalanceError> {
        let listeners = relay::listen(&options.listen).await?;
        Ok(Self { config: options.config, pace: options.pace, listeners })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Works until the configuration is removed.
    ///
    /// # Errors
    /// When there is no configuration that can be used from the start. Later it goes on with the last good one.
    pub async fn run(self) -> Result<(), BalanceError> {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let board = watch::channel(Board::default()).0;
        let shared = Arc::new(Shared { board, pace: self.pace, turn: AtomicUsize::new(0), room });
        let mut followed = Followed::new(&shared);
        followed.look(&self.config)?;
        // They end with this future.
        let mut listening = JoinSet::new();
        for listener in self.listeners {
            listening.spawn(relay::accept(listener, Arc::clone(&shared)));
        }
        loop {
            tokio::time::sleep(self.pace.check).await;
            match followed.look(&self.config) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => tracing::error!("goes on as before: {}", chain(&error)),
            }
        }
    }
}

/// The configuration that is followed, and the checks that it asks for.
struct Followed {
    shared: Arc<Shared>,
    /// The file as it was read last.
    text: String,
    good: Option<(BalancerConfig, Arc<ClientConfig>)>,
    running: HashMap<SocketAddr, AbortHandle>,
    checks: JoinSet<()>,
}

impl Followed {
    fn new(shared: &Arc<Shared>) -> Self {
        let shared = Arc::clone(shared);
        Self { shared, text: String::new(), good: None, running: HashMap::new(), checks: JoinSet::new() }
    }

    /// Looks at the file and at the addresses of this node. False: the file is gone.
    fn look(&mut self, path: &Path) -> Result<bool, BalanceError> {
        let Some(text) = files::read(path)? else { return Ok(false) };
        let result = if text == self.text { Ok(()) } else { self.take(path, text) };
        let Some((config, tls)) = &self.good else { return result.map(|()| true) };
        let own: Vec<IpAddr> =
            net::addresses().values().flatten().filter_map(|text| text.split('/').next()?.parse().ok()).collect();
        self.shared.board.send_if_modified(|board| {
            let before = board.clone();
            board.set(&config.backends, |address| own.contains(&address.ip()));
            *board != before
        });
        self.running.retain(|address, check| {
            let stays = config.backends.contains(address);
            if !stays {
                check.abort();
            }
            stays
        });
        for &address in &config.backends {
            let check = || self.checks.spawn(check::follow(address, Arc::clone(tls), Arc::clone(&self.shared)));
            self.running.entry(address).or_insert_with(check);
        }
        while self.checks.try_join_next().is_some() {}
        result.map(|()| true)
    }

    /// Takes another text; a damaged one is complained about once.
    fn take(&mut self, path: &Path, text: String) -> Result<(), BalanceError> {
        let damaged = |source| BalanceError::Config { path: path.to_owned(), source };
        let parsed = serde_json::from_str::<BalancerConfig>(&text).map_err(damaged);
        self.text = text;
        let config = parsed?;
        let shown: Vec<String> = config.backends.iter().map(ToString::to_string).collect();
        tracing::info!("the API servers are {}", shown.join(", "));
        let tls = match &self.good {
            Some((before, tls)) if before.ca == config.ca => Arc::clone(tls),
            _ => {
                // No service tells the time here: dates are judged as those of a service whose clock is not known yet.
                let tls = tls::client_config(&config.ca, None, &Clock::new(Duration::ZERO))?;
                self.running.drain().for_each(|(_, check)| check.abort());
                self.shared.board.send_modify(Board::forget);
                tls
            }
        };
        self.good = Some((config, tls));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "reads and writes files")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_balancer_is_told_in_a_file_that_it_may_read_and_only_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("balancer.json");
        let servers = ["192.0.2.11:6443".parse().unwrap(), "[2001:db8::12]:6443".parse().unwrap()];
        assert!(!keep(&path, &servers).unwrap());
        assert!(!path.exists());
        std::fs::write(&path, r#"{"ca": "PEM", "backends": ["192.0.2.11:6443"]}"#).unwrap();
        assert!(keep(&path, &servers).unwrap());
        assert!(!keep(&path, &servers).unwrap(), "nothing is written twice");
        let config: BalancerConfig = files::read_json(&path).unwrap().unwrap();
        assert_eq!(config, BalancerConfig { ca: "PEM".into(), backends: servers.to_vec() });
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }
}
