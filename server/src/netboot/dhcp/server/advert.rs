//! IPv6 router advertisements (RFC 4861): firmware that looks for IPv6 stops waiting as soon as it hears one.
//!
//! They say "no default router here, no prefix, no DHCPv6": nothing changes for the other hosts of the link.
#![expect(clippy::disallowed_methods, reason = "keeps the time between advertisements")]

use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use nkd_api::MacAddr;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::metrics::Metrics;
use super::link::{Facts, watch};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// Without a question.
const PERIOD: Duration = Duration::from_secs(60);
/// After one that could not be sent.
const RETRY: Duration = Duration::from_secs(3);
/// Between two answers; one reaches all that asked.
const GAP: Duration = Duration::from_millis(250);

/// An advertisement: lifetime 0 (not a default router), no flags, our hardware address. The kernel fills the checksum.
pub(super) fn advertisement(mac: MacAddr) -> [u8; 24] {
    let mut message = [0; 24];
    message[0] = ROUTER_ADVERTISEMENT;
    message[16..18].copy_from_slice(&[1, 1]);
    message[18..].copy_from_slice(&mac.0);
    message
}

/// A socket that hears solicitations on the interface and sends advertisements.
pub(super) fn socket(name: &str, facts: &Facts) -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(name.as_bytes()))?;
    // Receivers drop anything that may have passed a router.
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_loop_v6(false)?;
    socket.set_multicast_if_v6(facts.index)?;
    socket.join_multicast_v6(&ALL_ROUTERS, facts.index)?;
    watch(socket)
}

/// Advertises now and then, and soon after each solicitation, until shutdown.
pub(super) async fn run(
    socket: AsyncFd<Socket>,
    name: String,
    facts: Facts,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let Some(mac) = facts.mac else { return };
    let message = advertisement(mac);
    let target = SocketAddrV6::new(ALL_NODES, 0, 0, facts.index).into();
    let mut last: Option<Instant> = None;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep_until(next) => {
                let now = Instant::now();
                next = now + PERIOD;
                match socket.get_ref().send_to(&message, &target) {
                    Ok(_) => {
                        metrics.advertisements.inc();
                        last = Some(now);
                    }
                    // The link-local address may not be there yet, or the link be down.
                    Err(error) => {
                        tracing::debug!(interface = name, %error, "router advertisement was not sent");
                        next = now + RETRY;
                    }
                }
            }
            ready = socket.readable() => {
                let Ok(mut ready) = ready else { return };
                let mut buffer = [0; 256];
                while let Ok(Ok(length)) = ready.try_io(|socket| socket.get_ref().read(&mut buffer)) {
                    if length >= 8 && buffer[0] == ROUTER_SOLICITATION {
                        let now = Instant::now();
                        next = next.min(last.map_or(now, |last| now.max(last + GAP)));
                    }
                }
            }
        }
    }
}
