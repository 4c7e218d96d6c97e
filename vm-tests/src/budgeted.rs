//! Pods that a disruption budget protects, as those who run a site have them.

/// A deployment with a budget of the same name that keeps one pod of it alive; of a single pod that is a budget which can never be
/// met. On one node only, if one is named. The image is one that every node of the lab has.
pub fn budgeted_pods(name: &str, replicas: u32, node: Option<&str>) -> String {
    let selector =
        node.map(|node| format!("\n      nodeSelector: {{kubernetes.io/hostname: {node}}}")).unwrap_or_default();
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: default}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1{selector}
      containers: [{{name: {name}, image: 'k8s.gcr.io/pause:3.2', imagePullPolicy: Never}}]
---
apiVersion: policy/v1beta1
kind: PodDisruptionBudget
metadata: {{name: {name}, namespace: default}}
spec: {{minAvailable: 1, selector: {{matchLabels: {{app: {name}}}}}}}
"
    )
}
