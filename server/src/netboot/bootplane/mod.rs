//! The HTTP boot plane: plain HTTP for firmware, iPXE, installers and Ignition.
//!
//! It hands out public bytes only, by GET and HEAD, from small scripts to images of many gigabytes. Files go from the
//! page cache to the socket by `sendfile(2)`, so a slow reader holds a socket and a small task, no buffer.
//!
//! [`request`] reads a request head, [`response`] turns an [`Answer`] into the bytes and segments to send; both are
//! pure. [`server`] accepts and drains, `connection` is the life of one connection.
//! It runs on [lanes](crate::lanes); `transfer` sends a body.
//! What is answered is the [`Handler`]'s business: this engine knows no path.

mod connection;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod metrics;
pub mod request;
pub mod response;
pub mod server;
mod transfer;

pub use metrics::Metrics;
pub use request::{Method, Request};
pub use response::{Answer, Body, Cache, Segment};
pub use server::{BindError, Config, Handler, Server, Timeouts};
