//! This node's object in the cluster's API, with the kubelet's own access: what is desired of it, and what it has said.
#![expect(clippy::disallowed_methods, reason = "reads the kubelet's access")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, StatusCode};
use nkd_api::update::{DESIRED, Desired, REPORTED, Reported};
use serde::Deserialize;
use serde_json::json;

use super::plane;
use crate::client::{CallError, Client, chain};
use crate::clock::Clock;
use crate::kubeadm::embedded;
use crate::tls::{self, Presented};

/// The kubelet's access, made by kubeadm.
const CONFIG: &str = "etc/kubernetes/kubelet.conf";
/// Its certificate and key, which it renews by itself.
const CERTIFICATE: &str = "var/lib/kubelet/pki/kubelet-client-current.pem";
/// Beginning of its name.
const USER: &str = "CN=system:node:";

/// The node, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSeen {
    /// What is desired of it.
    pub desired: Option<Desired>,
    /// What it has said.
    pub reported: Option<Reported>,
    /// Its condition Ready is true.
    pub ready: bool,
    /// Why it is not.
    pub why: String,
    /// The boot that its kubelet speaks of.
    pub boot_id: String,
    /// The version of its kubelet.
    pub kubelet: String,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    conditions: Vec<Condition>,
    node_info: NodeInfo,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NodeInfo {
    #[serde(rename = "bootID")]
    boot_id: String,
    kubelet_version: String,
}

/// Why the node's object cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The kubelet's access, which is this node's own, cannot be used.
    #[error("the kubelet's access cannot be used: {0}")]
    Access(String),
    /// The API does not answer, or not with the node.
    #[error("{0}")]
    Api(String),
}

/// Asks and tells.
pub struct NodeClient {
    root: PathBuf,
    /// The client, and what it was made of.
    made: Option<(String, Client, String)>,
}

impl NodeClient {
    /// Of the node at `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), made: None }
    }

    /// True once kubeadm has made it a node.
    #[must_use]
    pub fn is_node(&self) -> bool {
        self.root.join(CONFIG).exists() && self.root.join(CERTIFICATE).exists()
    }

    /// The client, made anew when the kubelet has renewed its certificate.
    fn client(&mut self) -> Result<(&Client, &str), String> {
        let read = |name: &str| {
            let path = self.root.join(name);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let (config, certificate) = (read(CONFIG)?, read(CERTIFICATE)?);
        let of = format!("{config}{certificate}");
        if self.made.as_ref().is_none_or(|(before, ..)| *before != of) {
            let shown = crate::kubeadm::certificates(&self.root).certificates;
            let name = shown.iter().find(|shown| shown.name == "kubelet").and_then(|shown| {
                let (_, name) = shown.subject.split_once(USER)?;
                name.split(',').next().map(|name| name.trim().to_owned())
            });
            let name = name.ok_or_else(|| format!("{CERTIFICATE} names no node"))?;
            let server = field(&config, "server").ok_or_else(|| format!("{CONFIG} names no server"))?;
            let ca = embedded(&config, "certificate-authority-data").ok_or_else(|| format!("{CONFIG} has no CA"))?;
            let shown = Presented { certificate: &certificate, key: &certificate };
            // Nobody tells the time here: dates are judged as those of a service whose clock is not known yet.
            let tls = tls::client_config(&ca, Some(shown), &Clock::new(Duration::ZERO)).map_err(|e| chain(&e))?;
            let client = Client::new(&server, tls).map_err(|error| chain(&error))?;
            self.made = Some((of, client, name));
        }
        let (_, client, name) = self.made.as_ref().ok_or("the client was not made")?;
        Ok((client, name))
    }

    /// Looks at the node.
    ///
    /// # Errors
    /// [`NodeError`]
    pub async fn look(&mut self) -> Result<NodeSeen, NodeError> {
        let (client, name) = self.client().map_err(NodeError::Access)?;
        let path = format!("/api/v1/nodes/{name}");
        let body = client.exchange(Method::GET, &path, "application/json", Vec::new().into()).await;
        let body = body.map_err(|error| NodeError::Api(chain(&error)))?;
        seen(&body).map_err(NodeError::Api)
    }

    /// The version of the cluster as kubeadm has written it down; none: it has not.
    ///
    /// # Errors
    /// [`NodeError`]
    pub async fn cluster_version(&mut self) -> Result<Option<String>, NodeError> {
        let (client, _) = self.client().map_err(NodeError::Access)?;
        match client.exchange(Method::GET, plane::CONFIG, "application/json", Vec::new().into()).await {
            Ok(body) => plane::config_version(&body).map_err(NodeError::Api),
            Err(CallError::Status { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(NodeError::Api(chain(&error))),
        }
    }

    /// Writes what it says.
    ///
    /// # Errors
    /// [`NodeError`]
    pub async fn tell(&mut self, report: &Reported) -> Result<(), NodeError> {
        let (client, name) = self.client().map_err(NodeError::Access)?;
        let text = serde_json::to_string(report).map_err(|error| NodeError::Api(error.to_string()))?;
        let patch = json!({"metadata": {"annotations": {REPORTED: text}}}).to_string();
        let path = format!("/api/v1/nodes/{name}");
        let told = client.exchange(Method::PATCH, &path, "application/merge-patch+json", patch.into()).await;
        told.map(drop).map_err(|error| NodeError::Api(chain(&error)))
    }
}

fn seen(body: &[u8]) -> Result<NodeSeen, String> {
    let node: Object = serde_json::from_slice(body).map_err(|error| format!("the node does not read: {error}"))?;
    let annotation = |key: &str| node.metadata.annotations.get(key).map(String::as_str);
    let desired = annotation(DESIRED).map(serde_json::from_str).transpose();
    let desired = desired.map_err(|error| format!("the annotation {DESIRED} does not read: {error}"))?;
    // What does not read is written anew.
    let reported = annotation(REPORTED).and_then(|text| serde_json::from_str(text).ok());
    let condition = node.status.conditions.iter().find(|condition| condition.kind == "Ready");
    Ok(NodeSeen {
        desired,
        reported,
        ready: condition.is_some_and(|condition| condition.status == "True"),
        why: condition.map(|condition| condition.message.clone()).unwrap_or_default(),
        boot_id: node.status.node_info.boot_id,
        kubelet: node.status.node_info.kubelet_version,
    })
}

/// A plain field of a kubeconfig that kubeadm wrote.
fn field(config: &str, name: &str) -> Option<String> {
    let value = config.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read() {
        let desired = r#"{"update":"u","uid":"1","attempt":2,"os":{"commit":"c"},"first":false,"go":true}"#;
        let body = json!({
            "metadata": {"annotations": {DESIRED: desired, REPORTED: "damaged"}},
            "status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "False", "message": "no network"}],
                "nodeInfo": {"bootID": "b", "kubeletVersion": "v1.21.0"}},
        });
        let node = seen(body.to_string().as_bytes()).unwrap();
        assert!(node.desired.as_ref().unwrap().go && node.reported.is_none() && !node.ready);
        assert_eq!((node.why.as_str(), node.boot_id.as_str(), node.kubelet.as_str()), ("no network", "b", "v1.21.0"));
        let damaged = json!({"metadata": {"annotations": {DESIRED: "{"}}});
        assert!(seen(damaged.to_string().as_bytes()).unwrap_err().contains(DESIRED));
    }

    #[tokio::test]
    async fn an_access_that_is_broken_is_told_from_an_api_that_is_away() {
        let root = tempfile::tempdir().unwrap();
        let look = async || NodeClient::new(root.path()).look().await.unwrap_err();
        assert!(matches!(look().await, NodeError::Access(why) if why.contains("kubelet.conf")));
        for (name, text) in [(CONFIG, "server: https://127.0.0.1:1\n"), (CERTIFICATE, "garbage")] {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        assert!(matches!(look().await, NodeError::Access(why) if why.contains("names no node")));
    }

    #[test]
    fn a_kubeconfig_names_its_server() {
        let config =
            "clusters:\n- cluster:\n    certificate-authority-data: eA==\n    server: https://127.0.0.1:7443\n";
        assert_eq!(field(config, "server").as_deref(), Some("https://127.0.0.1:7443"));
        assert_eq!(field("a: b\n", "server"), None);
    }
}
