//! What is applied to a cluster that wants the operator: its resources and its deployment, as the operator's own folder
//! has them (pure).

use nkd_api::cluster::Cluster;

/// Its name as an add-on, with the version of what is applied: a newer service applies its own.
pub const ADDON: &str = concat!("housekeeper-", env!("CARGO_PKG_VERSION"));
/// The image that nodes have, or find in their registry.
pub const IMAGE: &str = concat!("nkd.io/housekeeper:", env!("CARGO_PKG_VERSION"));
/// Where it is deployed.
pub const NAMESPACE: &str = "nkd-system";
/// The name of its deployment there.
pub const NAME: &str = "housekeeper";
/// The resources that it listens to.
const RESOURCES: &str = include_str!("../../../operator/deploy/crds.yaml");
/// Itself.
const DEPLOYMENT: &str = include_str!("../../../operator/deploy/housekeeper.yaml");

/// Whether an add-on of that name is the operator, of this version or an earlier one.
#[must_use]
pub fn is_addon(addon: &str) -> bool {
    addon.starts_with("housekeeper-")
}

/// What is applied.
#[must_use]
pub fn manifest(cluster: &Cluster) -> String {
    let image = cluster.spec.housekeeper.image.as_deref().unwrap_or(IMAGE);
    format!("{RESOURCES}\n---\n{}", DEPLOYMENT.replace(IMAGE, image))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images of the deployment in what is applied.
    fn images(image: Option<&str>) -> Vec<String> {
        let mut cluster: Cluster = serde_json::from_value(crate::cluster::file::tests::full()).unwrap();
        cluster.spec.housekeeper.image = image.map(str::to_owned);
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&manifest(&cluster)).unwrap();
        let kinds: Vec<_> = documents.iter().filter_map(|d| d["kind"].as_str()).collect();
        assert!(kinds.contains(&"CustomResourceDefinition") && kinds.contains(&"ClusterRole"), "{kinds:?}");
        let deployment = documents.iter().find(|d| d["kind"] == "Deployment").unwrap();
        let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        containers.iter().map(|c| c["image"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_image_is_ours_or_the_operators() {
        assert_eq!(images(None), [IMAGE]);
        assert_eq!(images(Some("registry.example/tools/housekeeper:1")), ["registry.example/tools/housekeeper:1"]);
    }
}
