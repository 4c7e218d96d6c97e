//! Moves the pods of a node elsewhere, as far as that goes now.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, EvictParams, ListParams};

use super::kubernetes::{Cluster, KubeError, request};

/// How long one round of asking pods to go may take: others wait for it, and there is another round soon.
const ROUND: Duration = Duration::from_secs(30);
/// How long one pod may take to be asked: an admission webhook may be slow.
const ONE: Duration = Duration::from_secs(10);
/// Static pods carry it: the API only mirrors them.
const MIRROR: &str = "kubernetes.io/config.mirror";

impl Cluster {
    /// Closes a node to new pods and asks every pod that can go to go. What is still there is said, one pod each, with
    /// the reason when a disruption budget holds it; nothing left: the node is drained.
    ///
    /// Pods of daemon sets and static pods stay: they belong to the node. Volumes that live as long as their pod are lost.
    pub(super) async fn drain(&self, node: &str) -> Result<Vec<String>, KubeError> {
        let nodes: Api<Node> = Api::all(self.client());
        match nodes.cordon(node).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
            other => drop(other.map_err(request(format!("cordon {node}")))?),
        }
        let pods: Api<Pod> = Api::all(self.client());
        let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let here = pods.list(&here).await.map_err(request(format!("list the pods of {node}")))?;
        let mut left = Vec::new();
        let pods: Vec<&Pod> = here.items.iter().filter(|pod| moves(pod)).collect();
        match tokio::time::timeout(ROUND, self.ask_to_go(&pods, &mut left)).await {
            Ok(asked) => asked?,
            Err(_) => left.push(format!("asking them took longer than {} s, and goes on", ROUND.as_secs())),
        }
        Ok(left)
    }

    /// Asks each of them. What the API server says of one holds up no other one.
    async fn ask_to_go(&self, pods: &[&Pod], left: &mut Vec<String>) -> Result<(), KubeError> {
        for pod in pods {
            let (name, namespace) = (pod.metadata.name.as_deref(), pod.metadata.namespace.as_deref());
            let (Some(name), Some(namespace)) = (name, namespace) else { continue };
            let full = format!("{namespace}/{name}");
            if pod.metadata.deletion_timestamp.is_some() {
                left.push(format!("{full} is ending"));
                continue;
            }
            let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
            match tokio::time::timeout(ONE, pods.evict(name, &EvictParams::default())).await {
                Ok(Ok(_)) => left.push(format!("{full} is ending")),
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
                // A disruption budget says no, or not now; or an admission webhook does.
                Ok(Err(kube::Error::Api(status))) => left.push(format!("{full}: {}", status.message)),
                Ok(Err(error)) => return Err(request(format!("evict {full}"))(error)),
                Err(_) => left.push(format!("{full}: no answer within {} s", ONE.as_secs())),
            }
        }
        Ok(())
    }

    /// Removes a node. One that is gone is no error.
    pub(super) async fn delete_node(&self, node: &str) -> Result<(), KubeError> {
        let nodes: Api<Node> = Api::all(self.client());
        match nodes.delete(node, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(request(format!("remove the node {node}"))),
        }
    }
}

/// True for a pod that has something to lose and somewhere to go.
pub(super) fn moves(pod: &Pod) -> bool {
    let over = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed");
    let mirrored = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR));
    let owners = pod.metadata.owner_references.iter().flatten();
    let of_daemon_set = owners.filter(|owner| owner.controller == Some(true)).any(|owner| owner.kind == "DaemonSet");
    !over && !mirrored && !of_daemon_set
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test, which listens on a socket")]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::extract::{Path, State};
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use axum::routing::{get, patch, post};
    use axum::{Json, Router};
    use serde_json::{Value, json};

    use super::*;

    type Asked = Arc<Mutex<Vec<String>>>;

    fn says(code: u16, message: &str) -> Response {
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code});
        (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
    }

    async fn evict(State(asked): State<Asked>, Path(pod): Path<String>) -> Response {
        asked.lock().unwrap().push(pod.clone());
        match pod.as_str() {
            "held" => says(429, "a budget"),
            "broken" => says(503, "a webhook"),
            _ => Json(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})).into_response(),
        }
    }

    /// The client is the real one, with whatever it does by itself about an answer.
    #[tokio::test]
    async fn a_pod_that_is_held_is_asked_once_and_holds_up_no_other_one() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let pods = ["held", "broken", "free"].map(|name| {
            json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"nodeName": "w1", "containers": []}})
        });
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods});
        let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "w1"}});
        let asked = Asked::default();
        let router = Router::new()
            .route("/api/v1/nodes/w1", patch(move || async move { Json(node) }))
            .route("/api/v1/pods", get(move || async move { Json(list) }))
            .route("/api/v1/namespaces/shop/pods/{pod}/eviction", post(evict))
            .with_state(Arc::clone(&asked));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let kubeconfig = format!(
            "clusters: [{{name: a, cluster: {{server: 'http://{address}'}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
             users: [{{name: a, user: {{}}}}]\ncurrent-context: a\n"
        );
        let cluster = Cluster::connect(&kubeconfig).await.unwrap();
        let left = cluster.drain("w1").await.unwrap();
        assert_eq!(left, ["shop/held: a budget", "shop/broken: a webhook", "shop/free is ending"]);
        assert_eq!(*asked.lock().unwrap(), ["held", "broken", "free"], "each of them once");
    }

    #[test]
    fn what_belongs_to_the_node_stays() {
        let owner =
            |kind: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "u", "controller": true}]);
        let pod = |metadata: Value, phase: &str| -> Pod {
            serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap()
        };
        assert!(moves(&pod(json!({"name": "a"}), "Running")));
        assert!(moves(&pod(json!({"ownerReferences": owner("ReplicaSet")}), "Pending")));
        assert!(!moves(&pod(json!({"ownerReferences": owner("DaemonSet")}), "Running")));
        assert!(!moves(&pod(json!({"annotations": {(MIRROR): "x"}}), "Running")));
        assert!(!moves(&pod(json!({"ownerReferences": owner("Job")}), "Succeeded")));
    }
}
