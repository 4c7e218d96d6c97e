//! What is counted of channels.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    channel: String,
    payload: &'static str,
}

/// Of so many systems with an unknown release, one is told in the log.
const TOLD: u64 = 100;

/// Counters of channels.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    asked: Family<Asked, Counter>,
}

impl Metrics {
    /// Registers `nkd_graph_requests_total{channel,payload}`; `payload` is `known` or `unknown`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Requests for the update graph, by channel and by whether it has the release of the asker";
        registry.register("nkd_graph_requests", help, metrics.asked.clone());
        metrics
    }

    /// Whether this one is to be told: the first, and then every hundredth.
    pub(super) fn asked(&self, channel: &str, known: bool) -> bool {
        let payload = if known { "known" } else { "unknown" };
        self.asked.get_or_create(&Asked { channel: channel.to_owned(), payload }).inc().is_multiple_of(TOLD)
    }
}
