//! The contract of nkd: what the service, the command line and the node agent say to each other.
//!
//! Types only. Nothing here opens a socket or a file or asks the clock; every time is an argument or a
//! field. The wire form of everything is JSON; times are RFC 3339 in UTC.

pub mod agent;
pub mod channel;
pub mod cluster;
pub mod digest;
pub mod error;
pub mod facts;
pub mod image;
pub mod lock;
pub mod mac;
pub mod machine;
pub mod profile;
pub mod registry;
pub mod snapshot;
pub mod update;
pub mod upgrade;
pub mod user;

pub use digest::Sha256Digest;
pub use error::{ErrorBody, Problem};
pub use mac::MacAddr;
