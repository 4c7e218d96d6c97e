//! Metrics of the DHCP service.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Message type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// `discover`, `offer` and so on.
    pub kind: &'static str,
}

/// Why a packet got no answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Cause {
    /// A short word.
    pub cause: &'static str,
}

/// State of addresses in a subnet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Addresses {
    /// The subnet.
    pub subnet: String,
    /// `size`, `bound`, `offered` or `declined`.
    pub state: &'static str,
}

/// Counters and gauges; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Requests understood, by type.
    pub requests: Family<Kind, Counter>,
    /// Replies sent, by type.
    pub replies: Family<Kind, Counter>,
    /// Packets dropped, by cause.
    pub dropped: Family<Cause, Counter>,
    /// Addresses by subnet and state.
    pub addresses: Family<Addresses, Gauge<u64, AtomicU64>>,
    /// Requests not answered because a pool had no free address.
    pub exhausted: Counter,
    /// Addresses at which somebody else was found.
    pub conflicts: Counter,
    /// Offers made without a probe, because too many were under way.
    pub probes_skipped: Counter,
    /// Other DHCP servers heard in the last minutes.
    pub other_servers: Gauge<u64, AtomicU64>,
    /// Router advertisements sent.
    pub advertisements: Counter,
    /// Seconds that a save of leases took.
    pub commit_seconds: Histogram,
    /// Changes in a save of leases.
    pub commit_changes: Histogram,
}

impl Metrics {
    /// Adds all metrics to the registry.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            replies: Family::default(),
            dropped: Family::default(),
            addresses: Family::default(),
            exhausted: Counter::default(),
            conflicts: Counter::default(),
            probes_skipped: Counter::default(),
            other_servers: Gauge::default(),
            advertisements: Counter::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            commit_changes: Histogram::new(exponential_buckets(1.0, 2.0, 13)),
        };
        registry.register("nkd_dhcp_requests", "DHCP requests understood", metrics.requests.clone());
        registry.register("nkd_dhcp_replies", "DHCP replies sent", metrics.replies.clone());
        registry.register("nkd_dhcp_dropped", "DHCP packets dropped", metrics.dropped.clone());
        registry.register("nkd_dhcp_addresses", "Addresses by subnet and state", metrics.addresses.clone());
        registry.register(
            "nkd_dhcp_pool_exhausted",
            "DHCP requests not answered because no address was free",
            metrics.exhausted.clone(),
        );
        registry.register("nkd_dhcp_conflicts", "Addresses found in use by others", metrics.conflicts.clone());
        registry.register(
            "nkd_dhcp_probes_skipped",
            "Offers made without a conflict probe",
            metrics.probes_skipped.clone(),
        );
        registry.register("nkd_dhcp_other_servers", "Other DHCP servers on the link", metrics.other_servers.clone());
        registry.register(
            "nkd_dhcp_router_advertisements",
            "IPv6 router advertisements sent",
            metrics.advertisements.clone(),
        );
        registry.register("nkd_dhcp_commit_seconds", "Seconds to save leases", metrics.commit_seconds.clone());
        registry.register("nkd_dhcp_commit_changes", "Lease changes in one save", metrics.commit_changes.clone());
        metrics
    }
}
