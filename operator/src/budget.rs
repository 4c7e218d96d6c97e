//! Pods that have to leave a node, and disruption budgets that can never let them (pure).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

/// Static pods carry it: the API only mirrors them.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The operator's own pods. They stay like those of daemon sets: on a cluster with one control plane they could be nowhere
/// else, and the drain would never end.
pub const OWN: (&str, &str) = ("app.kubernetes.io/name", "nkd-housekeeper");

/// A pod that has something to lose and somewhere to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Another pod of that name has another one.
    pub uid: String,
    /// Labels, by which budgets choose it.
    pub labels: BTreeMap<String, String>,
    /// It has been asked to end.
    pub ending: bool,
}

/// A disruption budget.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetSeen {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    selector: Option<LabelSelector>,
    /// In policy/v1 an empty selector chooses every pod, before that none.
    empty_is_all: bool,
    expected: i64,
    wanted: i64,
}

/// The pods of a node that have to leave before it upgrades. `own` is the namespace of the operator.
#[must_use]
pub fn leaving(pods: &[Pod], own: &str) -> Vec<PodSeen> {
    pods.iter().filter_map(|pod| seen(pod, own)).collect()
}

fn seen(pod: &Pod, own: &str) -> Option<PodSeen> {
    let metadata = &pod.metadata;
    let over = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed");
    let mirrored = metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR));
    let mut owners = metadata.owner_references.iter().flatten().filter(|owner| owner.controller == Some(true));
    let of_daemon_set = owners.any(|owner| owner.kind == "DaemonSet");
    let labels = metadata.labels.clone().unwrap_or_default();
    let namespace = metadata.namespace.clone()?;
    let ours = namespace == own && labels.get(OWN.0).is_some_and(|name| name == OWN.1);
    (!over && !mirrored && !of_daemon_set && !ours).then_some(PodSeen {
        namespace,
        name: metadata.name.clone()?,
        uid: metadata.uid.clone().unwrap_or_default(),
        labels,
        ending: metadata.deletion_timestamp.is_some(),
    })
}

impl BudgetSeen {
    /// Reads a budget of policy/v1 or, if `v1` is false, of policy/v1beta1.
    #[must_use]
    pub fn read(object: &Value, v1: bool) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let selector = &object["spec"]["selector"];
        Some(Self {
            namespace: text(&object["metadata"]["namespace"])?,
            name: text(&object["metadata"]["name"])?,
            selector: if selector.is_null() { None } else { LabelSelector::deserialize(selector).ok() },
            empty_is_all: v1,
            expected: object["status"]["expectedPods"].as_i64().unwrap_or_default(),
            wanted: object["status"]["desiredHealthy"].as_i64().unwrap_or_default(),
        })
    }

    fn chooses(&self, pod: &PodSeen) -> bool {
        let Some(selector) = &self.selector else { return false };
        let labels = selector.match_labels.iter().flatten();
        let expressions = selector.match_expressions.iter().flatten();
        if labels.clone().next().is_none() && expressions.clone().next().is_none() {
            return self.empty_is_all && self.namespace == pod.namespace;
        }
        self.namespace == pod.namespace
            && labels.clone().all(|(key, value)| pod.labels.get(key) == Some(value))
            && expressions.clone().all(|rule| {
                let value = pod.labels.get(&rule.key);
                let listed = || value.is_some_and(|value| rule.values.iter().flatten().any(|one| one == value));
                match rule.operator.as_str() {
                    "In" => listed(),
                    "NotIn" => !listed(),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }

    /// Even when each of its pods is healthy, none may go.
    fn is_unsatisfiable(&self) -> bool {
        self.expected > 0 && self.wanted >= self.expected
    }
}

/// Why these pods could never be evicted, a sentence each. A budget that only has to wait is not among them.
#[must_use]
pub fn obstacles(pods: &[PodSeen], budgets: &[BudgetSeen]) -> Vec<String> {
    let mut said = Vec::new();
    for pod in pods.iter().filter(|pod| !pod.ending) {
        let own: Vec<&BudgetSeen> = budgets.iter().filter(|budget| budget.chooses(pod)).collect();
        let full = format!("{}/{}", pod.namespace, pod.name);
        if let Some(never) = own.iter().find(|budget| budget.is_unsatisfiable()) {
            said.push(format!(
                "the disruption budget {} never lets {full} go: it wants {} of {} pods healthy",
                never.name, never.wanted, never.expected
            ));
        } else if let [one, other, ..] = own[..] {
            said.push(format!(
                "{full} has two disruption budgets, {} and {}: no pod is evicted then",
                one.name, other.name
            ));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(metadata: Value, phase: &str) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "default"}, "status": {"phase": phase}});
        pod["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        serde_json::from_value(pod).unwrap()
    }

    fn owner(kind: &str) -> Value {
        json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "u", "controller": true}]})
    }

    fn budget(selector: Value, wanted: i64, expected: i64, v1: bool) -> BudgetSeen {
        let object = json!({
            "metadata": {"name": "b", "namespace": "default"}, "spec": {"selector": selector},
            "status": {"expectedPods": expected, "desiredHealthy": wanted},
        });
        BudgetSeen::read(&object, v1).unwrap()
    }

    #[test]
    fn what_belongs_to_the_node_stays() {
        let leaves = |metadata: Value, phase: &str| !leaving(&[pod(metadata, phase)], "nkd-system").is_empty();
        assert!(leaves(json!({}), "Running"));
        assert!(leaves(owner("ReplicaSet"), "Pending"));
        assert!(!leaves(owner("DaemonSet"), "Running"));
        assert!(!leaves(json!({"annotations": {(MIRROR): "x"}}), "Running"));
        assert!(!leaves(owner("Job"), "Succeeded"));
        let own = json!({"namespace": "nkd-system", "labels": {(OWN.0): OWN.1}});
        assert!(!leaves(own, "Running"));
        assert!(leaves(json!({"labels": {(OWN.0): OWN.1}}), "Running"), "the label alone is anybody's");
    }

    #[test]
    fn a_budget_that_waits_is_no_obstacle_and_one_that_never_ends_is() {
        let pods = leaving(&[pod(json!({"labels": {"app": "web", "tier": "front"}}), "Running")], "nkd-system");
        let held = |budgets: &[BudgetSeen]| !obstacles(&pods, budgets).is_empty();
        let web = json!({"matchLabels": {"app": "web"}});
        assert!(!held(&[budget(web.clone(), 1, 2, true)]));
        assert!(held(&[budget(web.clone(), 2, 2, true)]));
        assert!(!held(&[budget(web.clone(), 0, 0, true)]), "nothing is known of it yet");
        assert!(!held(&[budget(json!({"matchLabels": {"app": "db"}}), 2, 2, true)]));
        assert!(held(&[budget(web.clone(), 1, 2, true), budget(json!({}), 1, 2, true)]), "two budgets");
        assert!(!held(&[budget(json!({}), 2, 2, false)]), "an empty selector of old chooses none");
        assert!(held(&[budget(json!({}), 2, 2, true)]));
        for (operator, values, chosen) in [
            ("In", json!(["front", "back"]), true),
            ("NotIn", json!(["front"]), false),
            ("NotIn", json!(["back"]), true),
            ("Exists", json!(null), true),
            ("DoesNotExist", json!(null), false),
        ] {
            let rule = json!({"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]});
            assert_eq!(held(&[budget(rule, 1, 1, true)]), chosen, "{operator} {values}");
        }
        let mut ending = pods.clone();
        ending[0].ending = true;
        assert!(obstacles(&ending, &[budget(web, 2, 2, true)]).is_empty());
    }
}
