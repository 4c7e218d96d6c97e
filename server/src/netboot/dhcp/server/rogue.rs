//! Other DHCP servers on the link: two that both hand out addresses break machines at random.
#![expect(clippy::disallowed_methods, reason = "keeps when another server was heard last")]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nkd_api::MacAddr;
use tokio_util::sync::CancellationToken;

use super::super::metrics::Metrics;
use super::super::packet::{decode_offer, encode_discover};
use super::super::{CLIENT_PORT, SERVER_PORT};
use super::link::udp_socket;

const PERIOD: Duration = Duration::from_secs(300);
const WAIT: Duration = Duration::from_secs(3);
/// A server is forgotten when it was not heard for this long.
const MEMORY: Duration = Duration::from_secs(900);

/// No more servers than this are remembered: addresses can be made up.
const MOST: usize = 64;

/// How somebody came to know of another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It answered.
    Answer,
    /// A client asks for it, and may be wrong.
    Hearsay,
}

/// Another DHCP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherServer {
    /// Its server identifier.
    pub ip: Ipv4Addr,
    /// The interface it was heard on.
    pub interface: String,
    /// When it was heard last.
    pub last_seen: SystemTime,
}

/// The servers heard of late. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct OtherServers {
    heard: Arc<Mutex<HashMap<Ipv4Addr, OtherServer>>>,
    metrics: Metrics,
}

impl OtherServers {
    pub fn new(metrics: Metrics) -> Self {
        Self { heard: Arc::default(), metrics }
    }

    /// Takes note, and warns when it is news.
    pub fn note(&self, ip: Ipv4Addr, interface: &str, how: Heard) {
        let server = OtherServer { ip, interface: interface.to_owned(), last_seen: SystemTime::now() };
        let mut heard = self.locked();
        if heard.len() >= MOST && !heard.contains_key(&ip) {
            return;
        }
        if heard.insert(ip, server).is_none() {
            let what = match how {
                Heard::Answer => {
                    "another DHCP server answers on this link: stop it, or set the dhcp mode of this one to proxy"
                }
                Heard::Hearsay => {
                    "a machine asks for another DHCP server: if there is one on this link, stop it, or set the dhcp mode of this one to proxy"
                }
            };
            tracing::warn!(server = %ip, interface, "{what}");
            if heard.len() == MOST {
                tracing::warn!(servers = MOST, "so many other DHCP servers are made up: further ones are not told");
            }
        }
        self.metrics.other_servers.set(heard.len() as u64);
    }

    /// Those heard of late.
    pub fn list(&self) -> Vec<OtherServer> {
        let now = SystemTime::now();
        let mut heard = self.locked();
        heard.retain(|_, server| now.duration_since(server.last_seen).is_ok_and(|age| age < MEMORY));
        self.metrics.other_servers.set(heard.len() as u64);
        heard.values().cloned().collect()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Ipv4Addr, OtherServer>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for other servers now and then, until shutdown.
pub(super) async fn run(
    name: String,
    mac: MacAddr,
    own: Vec<Ipv4Addr>,
    others: OtherServers,
    shutdown: CancellationToken,
) {
    let mut period = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = period.tick() => {}
        }
        let look = tokio::time::timeout(WAIT, listen(&name, mac, &own, &others));
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look => {}
        }
        others.list();
    }
}

/// Asks for an offer as a client would, and listens for answers until it is dropped.
async fn listen(name: &str, mac: MacAddr, own: &[Ipv4Addr], others: &OtherServers) {
    let socket = match udp_socket(name, CLIENT_PORT, true) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(interface = name, %error, "cannot look for other DHCP servers: the client port is taken");
            return;
        }
    };
    let mut random = [0; 4];
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        return;
    }
    let xid = u32::from_be_bytes(random);
    let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
    if let Err(error) = socket.send_to(&encode_discover(mac, xid), everybody).await {
        tracing::debug!(interface = name, %error, "cannot look for other DHCP servers");
        return;
    }
    let mut buffer = [0; 1500];
    while let Ok(length) = socket.recv(&mut buffer).await {
        if let Some(offer) = decode_offer(&buffer[..length])
            && offer.xid == xid
            && !offer.yiaddr.is_unspecified()
            && !own.contains(&offer.server)
        {
            others.note(offer.server, name, Heard::Answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_servers_do_not_fill_the_memory() {
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let others = OtherServers::new(metrics);
        let first = Ipv4Addr::new(10, 0, 0, 1);
        others.note(first, "eth0", Heard::Answer);
        for n in 0..5_000u32 {
            others.note(Ipv4Addr::from(0xc000_0200 + n), "eth1", Heard::Hearsay);
        }
        assert_eq!(others.list().len(), MOST);
        others.note(first, "eth2", Heard::Answer);
        let known = others.list().into_iter().find(|server| server.ip == first).unwrap();
        assert_eq!(known.interface, "eth2", "one that is known is heard again");
    }
}
