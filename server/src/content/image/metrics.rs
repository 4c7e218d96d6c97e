//! What the image store counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// How an import ended: `ok` or `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Counters of the image store.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    imports: Family<Outcome, Counter>,
    bytes: Counter,
}

impl Metrics {
    /// Registers `nkd_image_imports_total{result}` and `nkd_image_imported_bytes_total`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("nkd_image_imports", "Imports of images, by how they ended", metrics.imports.clone());
        registry.register("nkd_image_imported_bytes", "Bytes of imported images", metrics.bytes.clone());
        metrics
    }

    pub(super) fn imported(&self, bytes: u64) {
        self.imports.get_or_create(&Outcome { result: "ok" }).inc();
        self.bytes.inc_by(bytes);
    }

    pub(super) fn failed(&self) {
        self.imports.get_or_create(&Outcome { result: "failed" }).inc();
    }
}
