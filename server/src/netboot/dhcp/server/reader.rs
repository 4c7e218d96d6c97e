//! Reads and decodes the packets of one socket.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::decision::{Arrival, Port};
use super::super::metrics::{Cause, Metrics};
use super::super::packet::{self, DecodeError, Request};
use super::link::Link;
use super::rogue::{Heard, OtherServers};

/// Packets decoded before the engine gets them.
const BATCH: usize = 128;

/// Requests that came in together.
pub(super) type Batch = Vec<(Request, Arrival)>;

/// Reads one socket.
pub(super) struct Reader {
    pub links: Arc<Vec<Link>>,
    pub interface: usize,
    pub port: Port,
    pub others: OtherServers,
    pub metrics: Metrics,
}

impl Reader {
    fn socket(&self) -> Option<&UdpSocket> {
        let link = self.links.get(self.interface)?;
        match self.port {
            Port::Dhcp => Some(&link.dhcp),
            Port::Pxe => link.pxe.as_ref(),
        }
    }

    /// Reads until shutdown.
    pub async fn run(self, batches: mpsc::Sender<Batch>, shutdown: CancellationToken) {
        let Some(socket) = self.socket() else { return };
        let mut buffer = [0; 2048];
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                ready = socket.readable() => {
                    if let Err(error) = ready {
                        tracing::error!(%error, "DHCP socket failed");
                        return;
                    }
                }
            }
            let mut batch = Vec::new();
            while batch.len() < BATCH {
                match socket.try_recv_from(&mut buffer) {
                    Ok((length, SocketAddr::V4(source))) => {
                        let arrival = Arrival { interface: self.interface, port: self.port, source };
                        batch.extend(self.decode(&buffer[..length]).map(|request| (request, arrival)));
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    // An ICMP error for an earlier reply, or the link is down for a moment.
                    Err(error) => {
                        tracing::debug!(%error, "DHCP socket error");
                        break;
                    }
                }
            }
            if !batch.is_empty() && batches.send(batch).await.is_err() {
                return;
            }
        }
    }

    fn decode(&self, bytes: &[u8]) -> Option<Request> {
        let error = match packet::decode(bytes) {
            Ok(request) => return Some(request),
            Err(error) => error,
        };
        if let (DecodeError::NotARequest(2), Some(offer)) = (error, packet::decode_offer(bytes)) {
            self.others.note(offer.server, &self.links[self.interface].name, Heard::Answer);
        }
        self.metrics.dropped.get_or_create(&Cause { cause: "malformed" }).inc();
        tracing::debug!(interface = self.links[self.interface].name, %error, "DHCP packet was dropped");
        None
    }
}
