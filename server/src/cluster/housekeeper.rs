//! What is applied to a cluster that wants the operator: its resources and its deployment, as the operator's own folder
//! has them (pure).

use std::sync::LazyLock;

use nkd_api::cluster::Cluster;
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Its name as an add-on, with the version and the beginning of the digest of what is applied: a service that has another
/// one applies that.
pub static ADDON: LazyLock<String> = LazyLock::new(|| {
    let digest = Sha256::new().chain_update(RESOURCES).chain_update(DEPLOYMENT).finalize();
    format!("{PREFIX}{}-{}", env!("CARGO_PKG_VERSION"), &hex::encode(digest)[..8])
});
const PREFIX: &str = "housekeeper-";
/// The image that nodes have, or find in their registry.
pub const IMAGE: &str = concat!("nkd.io/housekeeper:", env!("CARGO_PKG_VERSION"));
/// Where it is deployed.
pub const NAMESPACE: &str = "nkd-system";
/// The name of its deployment there.
pub const NAME: &str = "housekeeper";
/// Where it finds the certificate authorities of registries, beside the web's.
const REGISTRIES: &str = "housekeeper-registries";
/// The resources that it listens to.
const RESOURCES: &str = include_str!("../../../operator/deploy/crds.yaml");
/// Itself.
const DEPLOYMENT: &str = include_str!("../../../operator/deploy/housekeeper.yaml");

/// Whether an add-on of that name is the operator, of this version or an earlier one.
#[must_use]
pub fn is_addon(addon: &str) -> bool {
    addon.starts_with(PREFIX)
}

/// What is applied. With `ca` (PEM), that of this service, it looks up images in the service's registry. Further keys of that
/// ConfigMap are an administrator's, and stay.
#[must_use]
pub fn manifest(cluster: &Cluster, ca: &str) -> String {
    let image = cluster.spec.housekeeper.image.as_deref().unwrap_or(IMAGE);
    let registries = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": REGISTRIES, "namespace": NAMESPACE},
        "data": {"ca.crt": ca},
    });
    // JSON is YAML, and the namespace is in the document before.
    format!("{RESOURCES}\n---\n{}\n---\n{registries}\n", DEPLOYMENT.replace(IMAGE, image).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";

    /// Images of the deployment in what is applied.
    fn images(image: Option<&str>) -> Vec<String> {
        let mut cluster: Cluster = serde_json::from_value(crate::cluster::file::tests::full()).unwrap();
        cluster.spec.housekeeper.image = image.map(str::to_owned);
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&manifest(&cluster, CA)).unwrap();
        let kinds: Vec<_> = documents.iter().filter_map(|d| d["kind"].as_str()).collect();
        assert!(kinds.contains(&"CustomResourceDefinition") && kinds.contains(&"ClusterRole"), "{kinds:?}");
        let deployment = documents.iter().find(|d| d["kind"] == "Deployment").unwrap();
        let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        containers.iter().map(|c| c["image"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn it_is_told_the_authority_of_the_service_where_it_looks_for_one() {
        let cluster: Cluster = serde_json::from_value(crate::cluster::file::tests::full()).unwrap();
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&manifest(&cluster, CA)).unwrap();
        let of = |kind: &str| documents.iter().position(|d| d["kind"] == kind).unwrap();
        let told = &documents[of("ConfigMap")];
        assert!(of("ConfigMap") > of("Namespace"), "it comes after its namespace");
        assert_eq!(told["data"]["ca.crt"], CA);
        let volumes = &documents[of("Deployment")]["spec"]["template"]["spec"]["volumes"];
        assert_eq!(volumes[0]["configMap"]["name"], told["metadata"]["name"]);
        assert_eq!(documents[of("Deployment")]["metadata"]["namespace"], told["metadata"]["namespace"]);
    }

    #[test]
    fn the_image_is_ours_or_the_operators() {
        assert_eq!(images(None), [IMAGE]);
        assert_eq!(images(Some("registry.example/tools/housekeeper:1")), ["registry.example/tools/housekeeper:1"]);
    }
}
