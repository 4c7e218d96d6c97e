//! Of which version a control plane's half of Kubernetes is: what kubeadm has made of it (pure).

use std::collections::BTreeMap;

use serde::Deserialize;

/// Where kubeadm keeps the cluster's configuration.
pub const CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config";

/// What kubeadm has made of a control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plane {
    /// The version of the API server that its manifest names; none: it names none.
    pub server: Option<String>,
    /// The cluster's version as kubeadm has written it down, or why nobody can tell now.
    pub config: Result<Option<String>, String>,
}

impl Plane {
    /// Whether kubeadm of this version has been here.
    ///
    /// # Errors
    /// The API does not say.
    pub fn is_of(&self, version: &str) -> Result<bool, String> {
        if self.server.as_deref() != Some(tag(version).as_str()) {
            return Ok(false);
        }
        let config = self.config.as_ref().map_err(Clone::clone)?;
        Ok(config.as_deref() == Some(version))
    }
}

/// A version as the tag of an image has it: kubeadm writes `_` for what a tag may not hold.
fn tag(version: &str) -> String {
    let may = |c: char| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' };
    version.chars().map(may).collect()
}

/// The tag of the first image in a manifest that kubeadm wrote: `    image: k8s.gcr.io/kube-apiserver:v1.21.0`.
#[must_use]
pub fn image_tag(manifest: &str) -> Option<String> {
    let image = manifest.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image:"))?;
    let image = image.trim().trim_matches(['"', '\'']);
    let name = image.split('@').next()?.rsplit('/').next()?;
    name.split_once(':').map(|(_, tag)| tag.to_owned()).filter(|tag| !tag.is_empty())
}

/// The version in the `ConfigMap` [`CONFIG`]; none: it says none.
///
/// # Errors
/// It does not read.
pub fn config_version(body: &[u8]) -> Result<Option<String>, String> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        data: BTreeMap<String, String>,
    }
    let config: Config =
        serde_json::from_slice(body).map_err(|error| format!("kubeadm's configuration does not read: {error}"))?;
    let line = |text: &String| text.lines().find_map(|line| line.strip_prefix("kubernetesVersion:").map(str::to_owned));
    let version = config.data.get("ClusterConfiguration").and_then(line);
    Ok(version.map(|version| version.trim().trim_matches(['"', '\'']).to_owned()))
}

/// What an API server answers to `/version` is this version.
///
/// # Errors
/// It is not, in one sentence.
pub fn is_version(body: &[u8], wanted: &str) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        git_version: String,
    }
    let is: Version =
        serde_json::from_slice(body).map_err(|error| format!("its API server's version does not read: {error}"))?;
    let is = is.git_version;
    if is == wanted { Ok(()) } else { Err(format!("its API server is {is}, not {wanted}")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_version_of_a_static_pod_is_the_tag_of_its_image() {
        for (image, tag) in [
            ("k8s.gcr.io/kube-apiserver:v1.21.0", Some("v1.21.0")),
            ("10.0.0.1:8443/k8s/kube-apiserver:v1.21.0", Some("v1.21.0")),
            ("\"kube-apiserver:v1.21.0@sha256:ab\"", Some("v1.21.0")),
            ("10.0.0.1:8443/k8s/kube-apiserver@sha256:ab", None),
            ("kube-apiserver", None),
        ] {
            let text = format!("spec:\n  containers:\n  - command:\n    - kube-apiserver\n    image: {image}\n");
            assert_eq!(image_tag(&text).as_deref(), tag, "{image}");
        }
        assert_eq!(image_tag("spec: {}\n"), None);
    }

    #[test]
    fn the_version_of_a_cluster_is_what_kubeadm_wrote_down() {
        let text = "apiServer:\n  kubernetesVersion: v1.19.0\nkubernetesVersion: v1.21.0\nnetworking: {}\n";
        let body = |data| json!({"kind": "ConfigMap", "data": data}).to_string().into_bytes();
        assert_eq!(config_version(&body(json!({"ClusterConfiguration": text}))), Ok(Some("v1.21.0".to_owned())));
        assert_eq!(config_version(&body(json!({}))), Ok(None));
        config_version(b"{").unwrap_err();
    }

    #[test]
    fn both_have_to_be_of_the_version_and_the_api_has_to_say_so() {
        let plane = |server: &str, config: Result<&str, &str>| Plane {
            server: Some(server.into()),
            config: config.map(|version| Some(version.to_owned())).map_err(str::to_owned),
        };
        assert_eq!(plane("v1.21.0", Ok("v1.21.0")).is_of("v1.21.0"), Ok(true));
        assert_eq!(plane("v1.21.0_site.1", Ok("v1.21.0+site.1")).is_of("v1.21.0+site.1"), Ok(true));
        assert_eq!(plane("v1.20.2", Ok("v1.21.0")).is_of("v1.21.0"), Ok(false));
        assert_eq!(plane("v1.21.0", Ok("v1.20.2")).is_of("v1.21.0"), Ok(false));
        assert_eq!(plane("v1.21.0", Err("away")).is_of("v1.21.0"), Err("away".to_owned()));
        // Whatever the API would say.
        assert_eq!(plane("v1.20.2", Err("away")).is_of("v1.21.0"), Ok(false));
        assert_eq!(Plane { server: None, config: Ok(None) }.is_of("v1.21.0"), Ok(false));
    }

    #[test]
    fn an_api_server_tells_its_version() {
        let body = json!({"major": "1", "minor": "21", "gitVersion": "v1.21.0"}).to_string();
        assert_eq!(is_version(body.as_bytes(), "v1.21.0"), Ok(()));
        assert!(is_version(body.as_bytes(), "v1.22.0").unwrap_err().contains("v1.21.0, not v1.22.0"));
        is_version(b"{}", "v1.22.0").unwrap_err();
    }
}
