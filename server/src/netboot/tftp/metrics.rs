//! What the TFTP server counts, `nkd_tftp_...`.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The metrics of one server; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests by what was answered.
    pub requests: Family<RequestLabels, Counter>,
    /// Ended transfers by how they ended.
    pub transfers: Family<TransferLabels, Counter>,
    /// Transfers that run now.
    pub active: Gauge,
    /// File bytes sent, those sent again included.
    pub sent_bytes: Counter,
    /// Blocks, or OACKs, that were sent again.
    pub retransmissions: Counter,
    /// From the request to the end, in seconds.
    pub durations: Histogram,
}

/// The label of [`Metrics::requests`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// What was answered.
    pub result: RequestResult,
}

/// The label of [`Metrics::transfers`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TransferLabels {
    /// How it ended.
    pub outcome: Outcome,
}

/// What a request was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum RequestResult {
    /// A transfer.
    Served,
    /// Nothing new: the same request is being answered already.
    Repeated,
    /// Error 1.
    NotFound,
    /// Error 2: the name, or the client, is not allowed.
    Denied,
    /// Error 2: a write.
    WriteRefused,
    /// Error 4: no request at all, or one that is malformed.
    Malformed,
    /// Error 0: no slot is free.
    Busy,
    /// Error 0: the file is not ready, or cannot be read.
    Failed,
    /// Nothing: sent to a broadcast address (RFC 1123), or a stray packet of a transfer.
    Ignored,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// The last block was acknowledged.
    Delivered,
    /// The client sent ERROR after the OACK: it wanted the size only.
    Probed,
    /// The client sent ERROR.
    Refused,
    /// The client fell silent.
    Silent,
    /// The client's port is closed.
    Unreachable,
    /// The same client asked for something else, or anew.
    Replaced,
    /// The file could not be read.
    ReadFailed,
    /// The server stopped.
    Stopped,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            transfers: Family::default(),
            active: Gauge::default(),
            sent_bytes: Counter::default(),
            retransmissions: Counter::default(),
            durations: Histogram::new(exponential_buckets(0.001, 4.0, 10)),
        };
        registry.register("nkd_tftp_requests", "TFTP requests by result", metrics.requests.clone());
        registry.register("nkd_tftp_transfers", "Ended TFTP transfers by outcome", metrics.transfers.clone());
        registry.register("nkd_tftp_active_transfers", "TFTP transfers that run now", metrics.active.clone());
        registry.register("nkd_tftp_sent_bytes", "File bytes sent over TFTP", metrics.sent_bytes.clone());
        registry.register("nkd_tftp_retransmissions", "TFTP packets sent again", metrics.retransmissions.clone());
        registry.register(
            "nkd_tftp_transfer_duration_seconds",
            "Time from a TFTP request to the end of its transfer",
            metrics.durations.clone(),
        );
        metrics
    }

    /// Counts one request.
    pub(super) fn request(&self, result: RequestResult) {
        self.requests.get_or_create(&RequestLabels { result }).inc();
    }

    /// Counts one ended transfer.
    pub(super) fn ended(&self, outcome: Outcome) {
        self.transfers.get_or_create(&TransferLabels { outcome }).inc();
    }
}
