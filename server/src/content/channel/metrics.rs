//! What is counted of channels.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    channel: String,
    payload: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Looked {
    channel: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    channel: String,
}

/// Of so many systems with an unknown release, one is told in the log.
const TOLD: u64 = 100;

/// Counters of channels.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    asked: Family<Asked, Counter>,
    looked: Family<Looked, Counter>,
    succeeded: Family<Of, Gauge>,
}

impl Metrics {
    /// Registers `nkd_graph_requests_total{channel,payload}`; `payload` is `known`, `unknown`, or `none` of who says
    /// nothing of itself. Of mirrors,
    /// `nkd_channel_mirror_looks_total{channel,result}` (`published`, `same` or `failed`), and
    /// `nkd_channel_mirror_success_timestamp_seconds{channel}`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Requests for the update graph, by channel and by whether it has the release of the asker";
        registry.register("nkd_graph_requests", help, metrics.asked.clone());
        let help = "Looks of mirrors at their upstreams, by how they ended";
        registry.register("nkd_channel_mirror_looks", help, metrics.looked.clone());
        let help = "When a mirror found its upstream in order last";
        registry.register("nkd_channel_mirror_success_timestamp_seconds", help, metrics.succeeded.clone());
        metrics
    }

    /// A mirror has looked.
    pub(super) fn looked(&self, channel: &str, result: &'static str, now: OffsetDateTime) {
        let channel = channel.to_owned();
        if result != "failed" {
            self.succeeded.get_or_create(&Of { channel: channel.clone() }).set(now.unix_timestamp());
        }
        self.looked.get_or_create(&Looked { channel, result }).inc();
    }

    /// A channel is no more: what was counted of it would stand there until the service ends.
    pub(super) fn forget(&self, channel: &str) {
        for payload in ["known", "unknown", "none"] {
            self.asked.remove(&Asked { channel: channel.to_owned(), payload });
        }
        for result in ["published", "same", "failed"] {
            self.looked.remove(&Looked { channel: channel.to_owned(), result });
        }
        self.succeeded.remove(&Of { channel: channel.to_owned() });
    }

    /// Whether this one is to be told: the first, and then every hundredth.
    pub(super) fn asked(&self, channel: &str, payload: &'static str) -> bool {
        self.asked.get_or_create(&Asked { channel: channel.to_owned(), payload }).inc().is_multiple_of(TOLD)
    }
}
