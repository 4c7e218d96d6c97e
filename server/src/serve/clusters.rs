//! Figures about clusters, made when somebody looks.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use nkd_api::cluster::{Health, MemberState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;

use crate::cluster::certificates;
use crate::cluster::record::Record;
use crate::service::Service;

/// Gauges by cluster.
#[derive(Default)]
pub(super) struct ClusterMetrics {
    health: Family<HealthLabels, Gauge>,
    reasons: Family<ClusterLabel, Gauge>,
    nodes: Family<ClusterLabel, Gauge>,
    ready: Family<ClusterLabel, Gauge>,
    ends: Family<CertificateLabels, Gauge>,
    left: Family<CertificateLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabel {
    cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HealthLabels {
    cluster: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabels {
    cluster: String,
    certificate: String,
    /// Empty: the service holds it.
    node: String,
}

impl ClusterMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        registry.register("nkd_cluster_health", "1 for the state that a cluster is in", all.health.clone());
        registry.register("nkd_cluster_reasons", "What is wrong with a cluster, how many things", all.reasons.clone());
        registry.register("nkd_cluster_nodes", "Nodes that a cluster is to have", all.nodes.clone());
        registry.register("nkd_cluster_nodes_ready", "Nodes that were Ready at the last look", all.ready.clone());
        let help = "End of a certificate, in seconds since 1970";
        registry.register("nkd_cluster_certificate_expiry_timestamp_seconds", help, all.ends.clone());
        let help = "What is left of a certificate, in seconds by the service's clock; negative when it is over";
        registry.register("nkd_cluster_certificate_left_seconds", help, all.left.clone());
        all
    }

    /// Looks at every cluster. What cannot be read is left out: readyz tells of a broken store.
    pub(super) async fn update(&self, service: &Service) {
        let Ok(clusters) = service.registry.store().clusters().await else { return };
        self.health.clear();
        self.reasons.clear();
        self.nodes.clear();
        self.ready.clear();
        self.ends.clear();
        self.left.clear();
        for (record, _) in &clusters {
            self.cluster(record);
            if let Ok(all) = certificates::view(service, record).await {
                for certificate in all.certificates {
                    let labels = CertificateLabels {
                        cluster: record.name().to_owned(),
                        certificate: certificate.name,
                        node: certificate.node.unwrap_or_default(),
                    };
                    let left = certificate.not_after - OffsetDateTime::now_utc();
                    self.ends.get_or_create(&labels).set(certificate.not_after.unix_timestamp());
                    self.left.get_or_create(&labels).set(left.whole_seconds());
                }
            }
        }
    }

    fn cluster(&self, record: &Record) {
        let label = ClusterLabel { cluster: record.name().to_owned() };
        let state = word(&record.health);
        for one in ["unknown", "healthy", "degraded", "unreachable"] {
            let labels = HealthLabels { cluster: label.cluster.clone(), state: one };
            self.health.get_or_create(&labels).set(i64::from(one == state));
        }
        let reasons = match &record.health {
            Health::Degraded { reasons } => reasons.len(),
            _ => 0,
        };
        let ready = record.members.iter().filter(|m| m.state == MemberState::Ready).count();
        let set = |family: &Family<ClusterLabel, Gauge>, count: usize| {
            family.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set(&self.reasons, reasons);
        set(&self.nodes, record.members.len());
        set(&self.ready, ready);
    }
}

fn word(health: &Health) -> &'static str {
    match health {
        Health::Unknown => "unknown",
        Health::Healthy => "healthy",
        Health::Degraded { .. } => "degraded",
        Health::Unreachable { .. } => "unreachable",
    }
}
