//! Counters of the boot plane.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the boot plane counts. A clone counts into the same place.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Requests answered, refused ones too, by status class.
    pub requests: Family<StatusLabel, Counter>,
    /// Body bytes given to the network.
    pub sent_bytes: Counter,
    /// Connections open now.
    pub connections: Gauge,
    /// Answers cut off before their last byte: the client left or stood still, a file ended early, or the drain was over.
    pub aborted: Counter,
    /// Chunks of files that the page cache did not hold when they were due.
    pub cold_chunks: Counter,
    /// Connections that could not be accepted.
    pub accept_errors: Counter,
}

/// The label of a status class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabel {
    /// `2xx`, `3xx`, `4xx` or `5xx`.
    pub class: &'static str,
}

impl Metrics {
    /// Makes the counters and puts them into `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let area = registry.sub_registry_with_prefix("nkd_bootplane");
        area.register("requests", "Requests answered, by status class", metrics.requests.clone());
        area.register("sent_bytes", "Body bytes sent", metrics.sent_bytes.clone());
        area.register("connections", "Open connections", metrics.connections.clone());
        area.register("aborted", "Answers cut off before their end", metrics.aborted.clone());
        area.register("cold_chunks", "Chunks of files that had to be read from the disk", metrics.cold_chunks.clone());
        area.register("accept_errors", "Connections not accepted", metrics.accept_errors.clone());
        metrics
    }

    /// Counts one answer.
    pub(super) fn count(&self, status: u16) {
        let class = match status / 100 {
            0..=2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.requests.get_or_create(&StatusLabel { class }).inc();
    }
}
