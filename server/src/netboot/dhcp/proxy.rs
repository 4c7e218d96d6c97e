//! ProxyDHCP: boot files for machines that get their address from another server (PXE 2.1 section 2.2).

use std::net::Ipv4Addr;

use super::decision::{Arrival, Decision, Destination, Outcome, Port, Reason};
use super::packet::{MessageKind, Request};
use super::profile::{self, Carrier, Client};
use super::reply::{Reply, ReplyKind};

/// Decides on a request in proxy mode.
///
/// `loadable` says whether the file that the client would load is there.
pub(super) fn step(request: &Request, arrival: &Arrival, server: Ipv4Addr, http_port: u16, loadable: bool) -> Decision {
    let client = Client::of(request);
    // The address that another server has given, told when the machine takes it.
    let ip = Some(request.ciaddr).filter(|ip| !ip.is_unspecified()).or(match request.kind {
        MessageKind::Request => request.requested_ip,
        _ => None,
    });
    let decide = |outcome, reason| Decision { client, outcome, reason, ip, changes: Vec::new() };
    let (carrier, kind) = match (arrival.port, request.kind) {
        (Port::Dhcp, MessageKind::Discover) => (Carrier::ProxyOffer, ReplyKind::Offer),
        (Port::Dhcp, MessageKind::Inform) => (Carrier::ProxyOffer, ReplyKind::Ack),
        // Some firmware asks the boot server on port 67, naming it.
        (Port::Dhcp, MessageKind::Request) if request.server_id == Some(server) => {
            (Carrier::BootServer, ReplyKind::Ack)
        }
        (Port::Pxe, MessageKind::Discover | MessageKind::Request | MessageKind::Inform) => {
            (Carrier::BootServer, ReplyKind::Ack)
        }
        (Port::Dhcp | Port::Pxe, _) => return decide(Outcome::Silent, Reason::ForOtherServer(request.server_id)),
    };
    let Some(boot) = profile::boot(client, carrier, server, http_port).filter(|_| loadable) else {
        return decide(Outcome::Silent, Reason::NothingToBoot(client));
    };
    let reason = match carrier {
        Carrier::BootServer => Reason::BootFileServed(boot.file.clone()),
        Carrier::Lease | Carrier::ProxyOffer => Reason::BootFileOffered(boot.file.clone()),
    };
    let mut reply = Reply::to(request, kind, server);
    reply.boot = Some(boot);
    decide(Outcome::Send { reply, to: destination(request, arrival) }, reason)
}

fn destination(request: &Request, arrival: &Arrival) -> Destination {
    if !request.giaddr.is_unspecified() {
        Destination::Relay(request.giaddr)
    } else if arrival.port == Port::Pxe && !arrival.source.ip().is_unspecified() {
        Destination::Source(arrival.source)
    } else if !request.ciaddr.is_unspecified() {
        Destination::Client(request.ciaddr)
    } else {
        // The client has no address that we know.
        Destination::Broadcast
    }
}
