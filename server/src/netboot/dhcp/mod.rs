//! DHCP for machines that boot from the network (RFC 2131, RFC 2132, PXE 2.1, RFC 4578).
//!
//! ```text
//!  socket ── bytes ──▶ packet ── Request ──▶ engine ── Decision ──▶ server ── reply bytes ──▶ socket
//!                                            │  ▲                     │
//!                                  profile, pool│              LeaseStore (an ACK leaves after it)
//! ```
//!
//! `packet`, `reply`, `profile`, `pool`, `decision` and `engine` are pure: no socket, clock or randomness. `server` and its
//! children own the sockets. A machine is keyed by its hardware address and not by its client identifier,
//! because firmware, iPXE and the installed system of one machine send different identifiers and must keep one address.

pub mod config;
pub mod decision;
pub mod engine;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod lease;
pub mod metrics;
pub mod packet;
pub mod pool;
pub mod profile;
mod proxy;
pub mod reply;
pub mod server;
pub mod sighting;
#[cfg(test)]
mod testing;

pub use config::{Config, ConfigError, InterfaceConfig, Mode, Reservation};
pub use lease::{Lease, LeaseChange, LeaseState, LeaseStore, LeaseStoreError, MemoryLeaseStore};
pub use metrics::Metrics;
pub use server::{BindError, Handle, OtherServer, ReplaceError, Server};
pub use sighting::{Sighting, Sightings};

/// Port that servers and relays listen on.
pub const SERVER_PORT: u16 = 67;
/// Port that clients listen on.
pub const CLIENT_PORT: u16 = 68;
/// Port of a PXE boot server beside a DHCP server (ProxyDHCP, PXE 2.1 section 2.2).
pub const PXE_PORT: u16 = 4011;
