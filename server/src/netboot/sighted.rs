//! From DHCP packets to the inventory: between two packets nobody waits for the store.

use std::sync::Arc;
use std::time::Duration;

use nkd_api::MacAddr;
use nkd_api::facts::Firmware;
use nkd_api::machine::{Identity, Machine};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::dhcp::packet::MessageKind;
use super::dhcp::profile::Client;
use super::dhcp::{Sighting, Sightings};
use crate::machine::lifecycle::{self, Input};
use crate::machine::{Registry, RegistryError};
use crate::store::RowEffects;
use crate::trace::{Trace, Traces};

/// Sightings that may wait for the store.
const QUEUE: usize = 4096;

/// The side that the DHCP service talks to.
#[derive(Debug)]
pub struct Sighted {
    queue: mpsc::Sender<Sighting>,
    traces: Traces,
}

/// The side that writes down.
pub struct Writer {
    registry: Registry,
    queue: mpsc::Receiver<Sighting>,
}

impl Sighted {
    /// Both sides.
    #[must_use]
    pub fn new(registry: Registry) -> (Arc<Self>, Writer) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (Arc::new(Self { queue: sender, traces: registry.traces().clone() }), Writer { registry, queue })
    }
}

impl Sightings for Sighted {
    fn seen(&self, sighting: Sighting) {
        if let Some(address) = sighting.ip {
            self.traces.learn_address(sighting.mac, address);
        }
        if self.queue.try_send(sighting).is_err() {
            tracing::debug!("a sighting was dropped: the store is behind, the machine will be seen again");
        }
    }

    fn trace(&self, mac: MacAddr) -> Trace {
        self.traces.of_mac(mac)
    }
}

impl Writer {
    /// Writes down until shutdown.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let sighting = tokio::select! {
                () = stop.cancelled() => return,
                sighting = self.queue.recv() => match sighting {
                    Some(sighting) => sighting,
                    None => return,
                },
            };
            let mac = sighting.mac;
            let (identity, from_os) = identity(&sighting);
            let written = self.registry.sighted(identity, sighting.ip, "dhcp", from_os).await;
            let written = match written {
                Ok(machine) => self.answered(&machine, &sighting).await,
                Err(error) => Err(error),
            };
            // Too many unknown machines: said by the registry, once in a while.
            if let Err(error) = written
                && !matches!(error, RegistryError::TooManyUnknown)
            {
                tracing::warn!(trace = %self.registry.traces().of_mac(mac), machine = %mac, error = &error as &dyn std::error::Error, "a sighting could not be written down");
                // A broken store must not be hammered.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Writer {
    /// Writes down what was kept from the machine, and that it is no longer.
    async fn answered(&self, machine: &Machine, sighting: &Sighting) -> Result<(), RegistryError> {
        let input = match &sighting.not_served {
            Some(reason) => Input::NotServed { reason: reason.to_string() },
            None if sighting.served => Input::Served,
            None => return Ok(()),
        };
        if lifecycle::is_news(machine, &input) {
            self.registry.apply(machine.id, input, RowEffects::default()).await?;
        }
        Ok(())
    }
}

fn identity(sighting: &Sighting) -> (Identity, bool) {
    let (firmware, from_os) = match sighting.client {
        Client::BiosPxe => (Firmware::Bios, false),
        Client::UefiPxe(_) | Client::UefiHttp(_) => (Firmware::Uefi, false),
        Client::Plain => (Firmware::Unknown, matches!(sighting.kind, MessageKind::Discover | MessageKind::Request)),
        Client::Ipxe | Client::Unsupported(_) => (Firmware::Unknown, false),
    };
    let identity = Identity {
        macs: vec![sighting.mac],
        uuid: sighting.uuid.and_then(|u| crate::machine::identity::usable_uuid(&u.to_string())),
        firmware,
        ..Identity::default()
    };
    (identity, from_os)
}
