//! A read-only TFTP server on a virtual tree (RFC 1350, 2347, 2348, 2349, 7440).
//!
//! - [`codec`], [`names`], [`netascii`], [`transfer`], [`admission`], `spin`: pure.
//! - [`server`]: the listening socket; requests are judged and files opened on the async runtime.
//! - `worker`: a few threads of their own, each with one epoll set, carry the blocks of all transfers. A packet costs
//!   one receive and one send, wakes no task, and one client's silence costs the others nothing.
//!
//! Each transfer has its own socket, bound to the address that was asked and connected to the client, so replies come
//! from that address and the kernel drops strangers' packets (and tells them so by ICMP).
//!
//! Both octet and netascii are served; see [`netascii`] for the limit. Write requests and mail are refused.

mod active;
pub mod admission;
pub mod codec;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod metrics;
pub mod names;
pub mod netascii;
pub mod server;
mod socket;
mod source;
mod spin;
#[cfg(test)]
mod tests;
pub mod transfer;
mod worker;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;

pub use metrics::{Metrics, Outcome};
pub use server::{BindError, Config, Server};

/// What the server serves. The boot plane's tree implements it.
#[async_trait]
pub trait Files: Send + Sync + 'static {
    /// Looks a name up. Called once for each request, before the first packet of the answer.
    ///
    /// # Errors
    /// [`OpenError`]; its text goes to the client.
    async fn open(&self, request: &FileRequest) -> Result<Content, OpenError>;

    /// Called when a transfer that [`Files::open`] began is over. It runs on a thread that carries packets: it must
    /// not block.
    fn closed(&self, _report: &TransferReport) {}
}

/// Who asks for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRequest {
    /// The name as a path of the virtual tree: no leading slash, no empty, `.` or `..` segment.
    pub name: String,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The server's address that was asked.
    pub local: IpAddr,
}

/// The bytes to serve.
#[derive(Clone, Debug)]
pub enum Content {
    /// From memory.
    Bytes(Bytes),
    /// From a regular file. It must not change while it is served.
    File {
        /// Read with `pread`, so that transfers can share it.
        file: Arc<std::fs::File>,
        /// Bytes to serve, from the file's start.
        len: u64,
    },
}

/// Why a file is not served.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No such name in the tree (error 1).
    #[error("file not found")]
    NotFound,
    /// The name is there, but not for this client (error 2).
    #[error("{0}")]
    Denied(String),
    /// Not now: the client should try again (error 0).
    #[error("{0}")]
    NotReady(String),
    /// Reading it failed (error 0).
    #[error("the file cannot be read")]
    Io(#[source] std::io::Error),
}

/// What became of a transfer.
#[derive(Clone, Debug)]
pub struct TransferReport {
    /// The request.
    pub request: FileRequest,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes of the file that the client acknowledged.
    pub acknowledged: u64,
    /// Bytes of the file as sent (netascii counts translated).
    pub size: u64,
    /// From the request to the end.
    pub duration: Duration,
    /// Times that something was sent again.
    pub retransmissions: u64,
}
