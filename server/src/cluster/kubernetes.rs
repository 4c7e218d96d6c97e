//! A cluster's API server, as far as the service talks to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Secret, Taint};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Config};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::health::{NodeSeen, OperatorSeen, PRESSURES, PodSeen};
use super::{housekeeper, taints};

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);
/// On a node: the keys of the labels that are ours, with commas.
const LABELS: &str = "nkd.io/labels";
/// On a node: the taints that are ours, with commas.
const TAINTS: &str = "nkd.io/taints";
/// Who owns the fields that we apply.
const MANAGER: &str = "nkd";

/// The API server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// The kubeconfig or the client could not be made.
    #[error("the client for the cluster's API cannot be made")]
    Config(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request failed.
    #[error("{what}: the cluster's API server says no, or nothing")]
    Request {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// An object of the cluster is not as it should be.
    #[error("{what} does not read")]
    Unreadable {
        /// Which object.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A manifest does not read.
    #[error("document {number} of the manifest {what}: {reason}")]
    Manifest {
        /// Which manifest.
        what: String,
        /// Number of the document, from 1.
        number: usize,
        /// Why.
        reason: String,
    },
}

impl KubeError {
    /// Nothing has answered; else somebody has, and what it said is worth reading.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        let Self::Request { source, .. } = self else { return false };
        matches!(**source, kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_))
    }

    /// What was asked, and what the API server says to that, without what else its answer holds.
    #[must_use]
    pub fn answer(&self) -> Option<String> {
        let Self::Request { what, source } = self else { return None };
        let kube::Error::Api(status) = &**source else { return None };
        Some(format!("{what}: the API server says no ({} {}): {}", status.code, status.reason, status.message))
    }
}

/// A client of one cluster, with the rights of its administrator.
pub struct Cluster {
    client: Client,
}

pub(super) fn request(what: impl Into<String>) -> impl FnOnce(kube::Error) -> KubeError {
    let what = what.into();
    move |source| KubeError::Request { what, source: Box::new(source) }
}

impl Cluster {
    /// A client by this kubeconfig.
    pub async fn connect(kubeconfig: &str) -> Result<Self, KubeError> {
        let file = Kubeconfig::from_yaml(kubeconfig).map_err(|e| KubeError::Config(e.into()))?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .map_err(|e| KubeError::Config(e.into()))?;
        config.connect_timeout = Some(LIMIT);
        config.read_timeout = Some(LIMIT);
        config.write_timeout = Some(LIMIT);
        // Clusters are on our own networks.
        config.proxy_url = None;
        // What holds a pod answers 429: the client's own tries would go on for minutes. Who asks comes again anyway.
        config.default_retry = false;
        Ok(Self { client: Client::try_from(config).map_err(|e| KubeError::Config(e.into()))? })
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether the API server is ready, in its own words.
    pub async fn ready(&self) -> Result<(), KubeError> {
        let question = http::Request::get("/readyz").body(Vec::new()).map_err(|e| KubeError::Config(e.into()))?;
        self.client.request_text(question).await.map(drop).map_err(request("ask whether it is ready"))
    }

    /// Its version, `v1.21.0`.
    pub async fn version(&self) -> Result<String, KubeError> {
        let info = self.client.apiserver_version().await.map_err(request("ask for its version"))?;
        Ok(info.git_version)
    }

    /// Its nodes, with the conditions that count.
    pub async fn nodes(&self) -> Result<Vec<NodeSeen>, KubeError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let list = nodes.list(&ListParams::default()).await.map_err(request("list nodes"))?;
        Ok(list.items.into_iter().map(node_seen).collect())
    }

    /// Versions of the kubelets, by node.
    pub async fn kubelets(&self) -> Result<BTreeMap<String, String>, KubeError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let list = nodes.list(&ListParams::default()).await.map_err(request("list nodes"))?;
        let version = |node: Node| Some((node.metadata.name?, node.status?.node_info?.kubelet_version));
        Ok(list.items.into_iter().filter_map(version).collect())
    }

    /// When each node's kubelet renewed its lease last, as it is written there: the clock is the node's.
    pub async fn heartbeats(&self) -> Result<BTreeMap<String, String>, KubeError> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
        let list = leases.list(&ListParams::default()).await.map_err(request("list the leases of nodes"))?;
        let beat = |lease: Lease| {
            let renewed = serde_json::to_value(lease.spec?.renew_time?).ok()?;
            Some((lease.metadata.name?, renewed.as_str()?.to_owned()))
        };
        Ok(list.items.into_iter().filter_map(beat).collect())
    }

    /// The deployment of the operator; none: it is not there.
    pub async fn operator(&self) -> Result<Option<OperatorSeen>, KubeError> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), housekeeper::NAMESPACE);
        let there = deployments.get_opt(housekeeper::NAME).await.map_err(request("look at the housekeeper"))?;
        Ok(there.map(operator_seen))
    }

    /// The static pods that kubeadm makes on control planes.
    pub async fn control_plane_pods(&self) -> Result<Vec<PodSeen>, KubeError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "kube-system");
        let of = ListParams::default().labels("tier=control-plane");
        let list = pods.list(&of).await.map_err(request("list the pods of the control planes"))?;
        Ok(list.items.into_iter().map(pod_seen).collect())
    }

    /// Gives a node its labels and those of kubeadm that it has lost, takes others away, and writes down on the node which are ours. Through the API, because
    /// a kubelet may not set every label of its own node.
    pub async fn label(
        &self,
        node: &str,
        set: &BTreeMap<String, String>,
        lost: &[&str],
        remove: &BTreeSet<String>,
    ) -> Result<(), KubeError> {
        let mut labels: BTreeMap<&str, Option<&str>> = remove.iter().map(|key| (key.as_str(), None)).collect();
        labels.extend(lost.iter().map(|key| (*key, Some(""))));
        labels.extend(set.iter().map(|(key, value)| (key.as_str(), Some(value.as_str()))));
        let keys: Vec<&str> = set.keys().map(String::as_str).collect();
        let keys = (!keys.is_empty()).then(|| keys.join(","));
        let patch = json!({"metadata": {"labels": labels, "annotations": {LABELS: keys}}});
        let nodes: Api<Node> = Api::all(self.client.clone());
        let done = nodes.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await;
        done.map(drop).map_err(request(format!("label the node {node}")))
    }

    /// Gives a node its taints, takes others away, and writes down on the node which are ours, if they are. Those of others stay.
    pub async fn taint(&self, node: &str, change: &taints::Change, are_ours: bool) -> Result<(), KubeError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let doing = format!("taint the node {node}");
        let there = nodes.get(node).await.map_err(request(doing.clone()))?;
        let mut all = there.spec.unwrap_or_default().taints.unwrap_or_default();
        let had: BTreeSet<String> = all.iter().map(written).collect();
        all.retain(|taint| !change.remove.contains(&written(taint)));
        for taint in change.set.difference(&had).filter_map(|text| taints::parse(text).ok()) {
            all.push(Taint {
                key: taint.key.to_owned(),
                value: (!taint.value.is_empty()).then(|| taint.value.to_owned()),
                effect: taint.effect.to_owned(),
                time_added: None,
            });
        }
        let ours: Vec<&str> = change.set.iter().map(String::as_str).collect();
        // The whole list is written: somebody else's change in between is not to be lost.
        let annotations = if are_ours { json!({TAINTS: ours.join(",")}) } else { json!({}) };
        let patch = json!({
            "metadata": {"resourceVersion": there.metadata.resource_version, "annotations": annotations},
            "spec": {"taints": all},
        });
        let done = nodes.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await;
        done.map(drop).map_err(request(doing))
    }

    /// Makes a bootstrap token for one node, or makes the same one live longer. The cluster removes it by itself when its
    /// time is over.
    pub async fn put_token(&self, id: &str, secret: &str, node: &str, until: OffsetDateTime) -> Result<(), KubeError> {
        let expiration = until.replace_nanosecond(0).unwrap_or(until).format(&Rfc3339).unwrap_or_default();
        let token = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "stringData": {
                "token-id": id,
                "token-secret": secret,
                "expiration": expiration,
                "usage-bootstrap-authentication": "true",
                "usage-bootstrap-signing": "true",
                "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
                "description": format!("nkd: for the node {node} alone, until it has joined"),
            },
        });
        let token: Secret = serde_json::from_value(token).map_err(|e| KubeError::Config(e.into()))?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "kube-system");
        let made = match secrets.create(&PostParams::default(), &token).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                secrets.replace(&format!("bootstrap-token-{id}"), &PostParams::default(), &token).await
            }
            other => other,
        };
        made.map(drop).map_err(request("create a bootstrap token"))
    }

    /// Removes the node object that an earlier try to join left: as long as it counts as Ready, kubeadm refuses to join
    /// under its name. One that is not there is no error.
    pub async fn forget_node(&self, name: &str) -> Result<(), KubeError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        match nodes.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(request(format!("remove what is left of the node {name}"))),
        }
    }

    /// Removes a bootstrap token. One that is gone is no error.
    pub async fn revoke_token(&self, id: &str) -> Result<(), KubeError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "kube-system");
        match secrets.delete(&format!("bootstrap-token-{id}"), &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(request("revoke a bootstrap token")),
        }
    }

    /// Applies every document of a manifest (server-side apply).
    pub async fn apply(&self, what: &str, manifest: &str) -> Result<(), KubeError> {
        for (index, object) in documents(what, manifest)?.into_iter().enumerate() {
            let bad =
                |reason: &str| KubeError::Manifest { what: what.into(), number: index + 1, reason: reason.into() };
            let types = object.types.clone().ok_or_else(|| bad("apiVersion and kind are missing"))?;
            let kind = GroupVersionKind::try_from(&types).map_err(|e| bad(&e.to_string()))?;
            let name = object.metadata.name.clone().ok_or_else(|| bad("metadata.name is missing"))?;
            let doing = format!("apply {} {name} of {what}", types.kind);
            let (resource, capabilities) =
                kube::discovery::pinned_kind(&self.client, &kind).await.map_err(request(doing.clone()))?;
            let api: Api<DynamicObject> = match capabilities.scope {
                kube::discovery::Scope::Cluster => Api::all_with(self.client.clone(), &resource),
                kube::discovery::Scope::Namespaced => {
                    let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
                    Api::namespaced_with(self.client.clone(), namespace, &resource)
                }
            };
            let params = PatchParams::apply(MANAGER).force();
            api.patch(&name, &params, &Patch::Apply(&object)).await.map_err(request(doing))?;
        }
        Ok(())
    }
}

fn node_seen(node: Node) -> NodeSeen {
    let managed = node.metadata.annotations.as_ref().and_then(|all| all.get(LABELS));
    let managed = managed.into_iter().flat_map(|keys| keys.split(',')).filter(|key| !key.is_empty());
    let own_taints = node.metadata.annotations.as_ref().and_then(|all| all.get(TAINTS));
    let own_taints = own_taints.map(|all| all.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect());
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready");
    let under = |pressure: &&str| conditions.iter().any(|c| c.type_ == *pressure && c.status == "True");
    NodeSeen {
        managed: managed.map(str::to_owned).collect(),
        taints: taints.iter().map(written).collect(),
        own_taints,
        labels: node.metadata.labels.unwrap_or_default(),
        name: node.metadata.name.unwrap_or_default(),
        ready: ready.is_some_and(|c| c.status == "True"),
        cause: ready.and_then(|c| c.reason.clone()).unwrap_or_default(),
        pressures: PRESSURES.into_iter().filter(under).map(str::to_owned).collect(),
    }
}

fn operator_seen(deployment: Deployment) -> OperatorSeen {
    let conditions = deployment.status.and_then(|status| status.conditions).unwrap_or_default();
    let available = conditions.into_iter().find(|c| c.type_ == "Available");
    let since = available.as_ref().and_then(|c| {
        let at = serde_json::to_value(c.last_transition_time.as_ref()?).ok()?;
        OffsetDateTime::parse(at.as_str()?, &Rfc3339).ok()
    });
    OperatorSeen { available: available.is_some_and(|c| c.status == "True"), since }
}

fn written(taint: &Taint) -> String {
    let value = taint.value.as_deref().unwrap_or_default();
    taints::Taint { key: &taint.key, value, effect: &taint.effect }.written()
}

fn pod_seen(pod: Pod) -> PodSeen {
    let status = pod.status.unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let cause = status.container_statuses.into_iter().flatten().find_map(|container| {
        let state = container.state?;
        let waits = state.waiting.and_then(|waiting| waiting.reason);
        waits.or_else(|| state.terminated.and_then(|ended| ended.reason))
    });
    PodSeen { name: pod.metadata.name.unwrap_or_default(), ready, cause }
}

/// The objects of a manifest; lists are taken apart, empty documents left out.
fn documents(what: &str, manifest: &str) -> Result<Vec<DynamicObject>, KubeError> {
    let mut objects = Vec::new();
    let parsed: Vec<serde_json::Value> = serde_saphyr::from_multiple(manifest).map_err(|e| KubeError::Manifest {
        what: what.into(),
        number: 1,
        reason: e.to_string(),
    })?;
    for (index, value) in parsed.into_iter().enumerate() {
        let items = match value.get("items") {
            Some(serde_json::Value::Array(items)) if value["kind"].as_str().is_some_and(|k| k.ends_with("List")) => {
                items.clone()
            }
            _ if value.is_null() => continue,
            _ => vec![value],
        };
        for item in items {
            let object = serde_json::from_value(item).map_err(|e| KubeError::Manifest {
                what: what.into(),
                number: index + 1,
                reason: e.to_string(),
            })?;
            objects.push(object);
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_pods_are_seen_with_what_is_wrong() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "w1", "annotations": {TAINTS: "gpu=a100:NoExecute"}}, "spec": {"taints": [
                {"key": "gpu", "value": "a100", "effect": "NoExecute"},
                {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"},
            ]}, "status": {"conditions": [
                {"type": "DiskPressure", "status": "True"}, {"type": "PIDPressure", "status": "Unknown"},
                {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"},
            ]}}),
        )
        .unwrap();
        let wanted = NodeSeen {
            name: "w1".into(),
            ready: false,
            cause: "NodeStatusUnknown".into(),
            pressures: vec!["DiskPressure".into()],
            labels: BTreeMap::new(),
            managed: BTreeSet::new(),
            taints: BTreeSet::from(["gpu=a100:NoExecute".into(), "node.kubernetes.io/unreachable:NoSchedule".into()]),
            own_taints: Some(BTreeSet::from(["gpu=a100:NoExecute".into()])),
        };
        assert_eq!(node_seen(node), wanted);
        let pod = |ready: &str, state: serde_json::Value| {
            let container =
                json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 9, "state": state});
            let conditions = json!([{"type": "Ready", "status": ready}]);
            let pod = json!({"metadata": {"name": "p"}, "status": {"conditions": conditions, "containerStatuses": [container]}});
            pod_seen(serde_json::from_value(pod).unwrap())
        };
        let crashing = pod("False", json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        assert_eq!((crashing.ready, crashing.cause.as_deref()), (false, Some("CrashLoopBackOff")));
        let ended = pod("False", json!({"terminated": {"exitCode": 1, "reason": "Error"}}));
        assert_eq!(ended.cause.as_deref(), Some("Error"));
        let fine = pod("True", json!({"running": {}}));
        assert_eq!((fine.ready, fine.cause), (true, None));
    }

    #[test]
    fn the_operator_is_seen_with_the_time_of_its_last_change() {
        let condition =
            |status: &str| json!({"type": "Available", "status": status, "lastTransitionTime": "2026-11-23T10:00:00Z"});
        let seen = |conditions: Vec<serde_json::Value>| {
            let deployment = json!({"metadata": {}, "status": {"conditions": conditions}});
            operator_seen(serde_json::from_value(deployment).unwrap())
        };
        let since = Some(time::macros::datetime!(2026-11-23 10:00 UTC));
        assert_eq!(seen(vec![condition("True")]), OperatorSeen { available: true, since });
        assert_eq!(seen(vec![condition("False")]), OperatorSeen { available: false, since });
        assert_eq!(seen(Vec::new()), OperatorSeen { available: false, since: None });
    }

    #[test]
    fn manifests_are_read_document_by_document() {
        let text = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n# nothing\n---\nkind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: a}}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n";
        let names: Vec<_> = documents("m", text).unwrap().into_iter().map(|o| o.metadata.name.unwrap()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(documents("m", "a: [").unwrap_err().to_string().contains("document 1 of the manifest m"));
    }
}
