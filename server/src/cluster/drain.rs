//! Moves the pods of a node elsewhere, as far as that goes now.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, EvictParams, ListParams};

use super::kubernetes::{Cluster, KubeError, request};

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
        for pod in here.items.iter().filter(|pod| moves(pod)) {
            let (name, namespace) = (pod.metadata.name.as_deref(), pod.metadata.namespace.as_deref());
            let (Some(name), Some(namespace)) = (name, namespace) else { continue };
            let full = format!("{namespace}/{name}");
            if pod.metadata.deletion_timestamp.is_some() {
                left.push(format!("{full} is ending"));
                continue;
            }
            let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
            match pods.evict(name, &EvictParams::default()).await {
                Ok(_) => left.push(format!("{full} is ending")),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                // A disruption budget says no, or not now.
                Err(kube::Error::Api(status)) if status.code == 429 => left.push(format!("{full}: {}", status.message)),
                Err(error) => return Err(request(format!("evict {full}"))(error)),
            }
        }
        Ok(left)
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
mod tests {
    use serde_json::{Value, json};

    use super::*;

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
