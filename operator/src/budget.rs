//! Pods that have to leave a node, and disruption budgets that can never let them (pure).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Static pods carry it: the API only mirrors them.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The operator's own pods. They stay like those of daemon sets: on a cluster with one control plane they could be nowhere
/// else, and the drain would never end.
pub const OWN: (&str, &str) = ("app.kubernetes.io/name", "nkd-housekeeper");
/// The taint of a node that is closed to pods, which the scheduler goes by.
const CLOSED: (&str, &str) = ("node.kubernetes.io/unschedulable", "NoSchedule");

/// A pod that has something to lose and somewhere to go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Another pod of that name has another one.
    pub uid: String,
    /// Labels, by which budgets choose it.
    pub labels: BTreeMap<String, String>,
    /// It has been asked to end, and its time to do so is over then.
    pub ends: Option<OffsetDateTime>,
    /// When it was made.
    pub made: Option<OffsetDateTime>,
    /// It comes to nodes that are closed, too: what has made it makes it anew on the same one.
    pub comes_back: bool,
    /// Nothing makes it anew.
    pub alone: bool,
    /// It has been started.
    pub runs: bool,
    /// It answers.
    pub ready: bool,
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
    /// Why the cluster cannot reckon with it: then it lets nothing go.
    broken: Option<String>,
    /// What it says of its pods is of its newest version.
    current: bool,
    /// It lets pods go that are not ready.
    lets_unready: bool,
}

/// The pods of a node that have to leave before it upgrades. `own` is the namespace of the operator.
#[must_use]
pub fn leaving(pods: &[Pod], own: &str) -> Vec<PodSeen> {
    pods.iter().filter_map(|pod| seen(pod, own)).collect()
}

fn seen(pod: &Pod, own: &str) -> Option<PodSeen> {
    let metadata = &pod.metadata;
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let over = matches!(phase, Some("Succeeded" | "Failed"));
    let mirrored = metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR));
    let mut owners = metadata.owner_references.iter().flatten().filter(|owner| owner.controller == Some(true));
    let alone = owners.clone().next().is_none();
    let of_daemon_set = owners.any(|owner| owner.kind == "DaemonSet");
    let labels = metadata.labels.clone().unwrap_or_default();
    let namespace = metadata.namespace.clone()?;
    let ours = namespace == own && labels.get(OWN.0).is_some_and(|name| name == OWN.1);
    let tolerates = |toleration: &Toleration| {
        let any = toleration.operator.as_deref() == Some("Exists");
        let key = toleration.key.as_deref().unwrap_or_default();
        let is_it = if any { key.is_empty() || key == CLOSED.0 } else { key == CLOSED.0 };
        let value = any || toleration.value.as_deref().unwrap_or_default().is_empty();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        is_it && value && (effect.is_empty() || effect == CLOSED.1)
    };
    let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    (!over && !mirrored && !of_daemon_set && !ours).then_some(PodSeen {
        namespace,
        name: metadata.name.clone()?,
        uid: metadata.uid.clone().unwrap_or_default(),
        labels,
        ends: metadata.deletion_timestamp.as_ref().and_then(date),
        made: metadata.creation_timestamp.as_ref().and_then(date),
        comes_back: tolerations.into_iter().any(tolerates),
        alone,
        runs: phase == Some("Running"),
        ready: is_ready(pod),
    })
}

fn date(time: &Time) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(serde_json::to_value(time).ok()?.as_str()?, &Rfc3339).ok()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

impl BudgetSeen {
    /// Reads a budget of policy/v1 or, if `v1` is false, of policy/v1beta1.
    #[must_use]
    pub fn read(object: &Value, v1: bool) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (selector, status) = (&object["spec"]["selector"], &object["status"]);
        let failed = |one: &&Value| one["type"] == "DisruptionAllowed" && one["reason"] == "SyncFailed";
        let failed = status["conditions"].as_array().into_iter().flatten().find(failed);
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        Some(Self {
            namespace: text(&object["metadata"]["namespace"])?,
            name: text(&object["metadata"]["name"])?,
            selector: if selector.is_null() { None } else { LabelSelector::deserialize(selector).ok() },
            empty_is_all: v1,
            expected: number(&status["expectedPods"]),
            wanted: number(&status["desiredHealthy"]),
            broken: failed.map(|one| one["message"].as_str().unwrap_or("SyncFailed").to_owned()),
            current: status["observedGeneration"].as_i64().is_some_and(|seen| seen == object["metadata"]["generation"]),
            lets_unready: object["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow",
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

    /// Why this pod of it can never go, if that is so: a budget that only has to wait is no reason.
    fn never_lets(&self, pod: &PodSeen) -> Option<String> {
        // Who is not ready goes without it, where it says so.
        if self.lets_unready && !pod.ready {
            return None;
        }
        let (name, full) = (&self.name, format!("{}/{}", pod.namespace, pod.name));
        if let Some(broken) = &self.broken {
            return Some(format!("the disruption budget {name} lets nothing go, {full} neither: {broken}"));
        }
        // Even when each of its pods is healthy, none may go.
        if self.expected > 0 && self.wanted >= self.expected {
            let (wanted, expected) = (self.wanted, self.expected);
            return Some(format!(
                "the disruption budget {name} never lets {full} go: it wants {wanted} of {expected} pods healthy"
            ));
        }
        (self.expected == 0 && self.current).then(|| {
            format!("the disruption budget {name} never lets {full} go: it counts no pods, though it chooses this one")
        })
    }
}

/// Why these pods could never be evicted, a sentence each. A budget that only has to wait is not among them. One that nothing makes
/// anew is: its end is for its owner to decide.
#[must_use]
pub fn obstacles(pods: &[PodSeen], budgets: &[BudgetSeen]) -> Vec<String> {
    let mut said = Vec::new();
    for pod in pods.iter().filter(|pod| pod.ends.is_none()) {
        let full = format!("{}/{}", pod.namespace, pod.name);
        if pod.alone {
            said.push(format!("{full} has no controller, and nothing makes it anew: delete it, or drain by force"));
            continue;
        }
        // No budget is asked about a pod that was never started.
        let own = budgets.iter().filter(|budget| pod.runs && budget.chooses(pod));
        let own: Vec<&BudgetSeen> = own.collect();
        if let Some(never) = own.iter().find_map(|budget| budget.never_lets(pod)) {
            said.push(never);
        } else if let [one, other, ..] = own[..] {
            said.push(format!(
                "{full} has two disruption budgets, {} and {}: no pod is evicted then",
                one.name, other.name
            ));
        }
    }
    said
}

/// What keeps etcd and the API of each control plane, by node, from being counted on: static pods that are not ready, or are missing
/// where others have them. An etcd that is elsewhere has no such pods.
#[must_use]
pub fn ill_planes(pods: &[Pod], planes: &[&str]) -> BTreeMap<String, String> {
    let of = |pod: &&Pod, component: &str, node: &str| {
        let mirrored = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR));
        let here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
        mirrored && here && pod.metadata.name.as_ref().is_some_and(|name| *name == format!("{component}-{node}"))
    };
    let mut ill = BTreeMap::new();
    for component in ["etcd", "kube-apiserver"] {
        let anywhere = planes.iter().any(|node| pods.iter().any(|pod| of(&pod, component, node)));
        for node in planes.iter().filter(|_| anywhere) {
            let why = match pods.iter().find(|pod| of(pod, component, node)) {
                Some(pod) if is_ready(pod) => continue,
                Some(_) => "is not Ready",
                None => "is missing",
            };
            ill.entry((*node).to_owned()).or_insert_with(|| format!("{component}-{node} {why}"));
        }
    }
    ill
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

    /// A pod that something makes anew.
    fn web(status: Value, phase: &str) -> Pod {
        let mut metadata = owner("ReplicaSet");
        metadata["labels"] = json!({"app": "web", "tier": "front"});
        let mut pod = serde_json::to_value(pod(metadata, phase)).unwrap();
        pod["status"].as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
        serde_json::from_value(pod).unwrap()
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
        let pods = leaving(&[web(json!({}), "Running")], "nkd-system");
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
        ending[0].ends = Some(OffsetDateTime::UNIX_EPOCH);
        assert!(obstacles(&ending, &[budget(web, 2, 2, true)]).is_empty());
    }

    #[test]
    fn a_budget_that_lets_nothing_go_is_told_from_one_that_is_not_asked() {
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let held = |status: &Value, phase: &str, change: &dyn Fn(&mut Value)| {
            let mut budget = json!({
                "metadata": {"name": "b", "namespace": "default", "generation": 3},
                "spec": {"selector": {"matchLabels": {"app": "web"}}},
                "status": {"expectedPods": 2, "desiredHealthy": 1, "observedGeneration": 3},
            });
            change(&mut budget);
            let pods = leaving(&[web(status.clone(), phase)], "nkd-system");
            obstacles(&pods, &[BudgetSeen::read(&budget, true).unwrap()]).join("; ")
        };
        let failed = |budget: &mut Value| {
            let of = |kind: &str| json!({"type": kind, "reason": "SyncFailed", "message": "found no controller ref"});
            budget["status"]["conditions"] = json!([of("Other"), of("DisruptionAllowed")]);
        };
        let empty = |budget: &mut Value| budget["status"]["expectedPods"] = 0.into();
        let old = |budget: &mut Value| {
            budget["status"]["expectedPods"] = 0.into();
            budget["metadata"]["generation"] = 4.into();
        };
        let never = |budget: &mut Value| budget["status"]["desiredHealthy"] = 2.into();
        let unready = |budget: &mut Value| {
            budget["status"]["desiredHealthy"] = 2.into();
            budget["spec"]["unhealthyPodEvictionPolicy"] = "AlwaysAllow".into();
        };
        assert_eq!(held(&ready, "Running", &|_| {}), "", "it only waits");
        assert!(held(&ready, "Running", &failed).ends_with("default/p neither: found no controller ref"));
        assert!(held(&ready, "Running", &empty).contains("counts no pods"));
        assert_eq!(held(&ready, "Running", &old), "", "it has not been counted anew yet");
        assert!(held(&ready, "Running", &never).contains("wants 2 of 2"));
        assert!(
            held(&json!({}), "Running", &never).contains("wants 2 of 2"),
            "as budgets are unless they say otherwise"
        );
        assert_eq!(held(&json!({}), "Running", &unready), "");
        assert!(held(&ready, "Running", &unready).contains("wants 2 of 2"));
        for change in [&failed as &dyn Fn(&mut Value), &empty, &never] {
            assert_eq!(held(&json!({}), "Pending", change), "", "no budget is asked about it");
        }
    }

    #[test]
    fn a_pod_that_nothing_makes_anew_is_its_owners_to_delete() {
        let said = |metadata: Value| obstacles(&leaving(&[pod(metadata, "Running")], "nkd-system"), &[]).join("; ");
        let text = "default/p has no controller, and nothing makes it anew: delete it, or drain by force";
        assert_eq!(said(json!({})), text);
        assert_eq!(said(owner("ReplicaSet")), "");
        let mut owned = owner("Thing");
        owned["ownerReferences"][0]["controller"] = false.into();
        assert_eq!(said(owned), text, "an owner is no controller");
        assert_eq!(said(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})), "", "it goes already");
    }

    #[test]
    fn a_pod_that_comes_to_closed_nodes_is_known() {
        let comes = |toleration: Value| {
            let mut pod = serde_json::to_value(pod(owner("StatefulSet"), "Running")).unwrap();
            pod["spec"] =
                json!({"containers": [], "tolerations": [{"key": "other", "operator": "Exists"}, toleration]});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            leaving(&[pod], "nkd-system")[0].comes_back
        };
        assert!(comes(json!({"operator": "Exists"})));
        assert!(comes(json!({"key": CLOSED.0, "operator": "Exists", "effect": "NoSchedule"})));
        assert!(comes(json!({"key": CLOSED.0})));
        assert!(!comes(json!({"key": CLOSED.0, "value": "x"})));
        assert!(!comes(json!({"key": CLOSED.0, "operator": "Exists", "effect": "NoExecute"})));
        assert!(!comes(json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists"})));
    }

    #[test]
    fn static_pods_say_whether_a_control_plane_holds() {
        let of = |component: &str, node: &str, ready: bool| -> Pod {
            let status = if ready { "True" } else { "False" };
            serde_json::from_value(json!({
                "metadata": {"name": format!("{component}-{node}"), "namespace": "kube-system", "annotations": {(MIRROR): "x"}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]},
            }))
            .unwrap()
        };
        let planes = ["cp1", "cp2"];
        let ill = |pods: &[Pod]| {
            ill_planes(pods, &planes).into_iter().map(|(node, why)| format!("{node}: {why}")).collect::<Vec<_>>()
        };
        let both = |component: &str, ready: bool| vec![of(component, "cp1", true), of(component, "cp2", ready)];
        assert_eq!(ill(&[both("etcd", true), both("kube-apiserver", true)].concat()), [""; 0]);
        assert_eq!(ill(&[both("etcd", false), both("kube-apiserver", true)].concat()), ["cp2: etcd-cp2 is not Ready"]);
        assert_eq!(ill(&both("kube-apiserver", false)), ["cp2: kube-apiserver-cp2 is not Ready"], "etcd is elsewhere");
        assert_eq!(ill(&[of("etcd", "cp1", true)]), ["cp2: etcd-cp2 is missing"]);
        assert_eq!(ill(&[of("etcd", "w1", false)]), [""; 0]);
    }
}
