//! What a packet told about a machine.

use std::net::IpAddr;

use nkd_api::MacAddr;
use uuid::Uuid;

use super::decision::NotServed;
use super::packet::MessageKind;
use super::profile::Client;
use crate::trace::Trace;

/// One message of one machine, and what was made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Interface that the message came in on.
    pub interface: String,
    /// The machine's hardware address.
    pub mac: MacAddr,
    /// SMBIOS UUID, when a usable one was sent.
    pub uuid: Option<Uuid>,
    /// Firmware or loader.
    pub client: Client,
    /// Option 93, in the client's order.
    pub architectures: Vec<u16>,
    /// Option 60.
    pub vendor_class: Option<String>,
    /// Option 12.
    pub hostname: Option<String>,
    /// The machine's address, once it is settled: what it asked for or has been given.
    pub ip: Option<IpAddr>,
    /// What it sent.
    pub kind: MessageKind,
    /// What was answered and why, as text for people.
    pub reason: String,
    /// What it asked for and does not get.
    pub not_served: Option<NotServed>,
    /// It was given something, and nothing was kept from it.
    pub served: bool,
}

/// Is told of each message.
pub trait Sightings: Send + Sync + 'static {
    /// Takes note. Must not block: it is called between two packets.
    fn seen(&self, sighting: Sighting);

    /// The trace of a machine, for the log.
    fn trace(&self, mac: MacAddr) -> Trace {
        Trace::of_mac(mac)
    }
}
