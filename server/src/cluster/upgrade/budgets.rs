//! Disruption budgets that can never let a pod go, and pods that nothing makes anew, found before an upgrade begins (pure). The
//! operator finds them as well, node by node; this is the same question, asked earlier.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::housekeeper;

/// The label of the operator's own pods, which are not evicted.
const OWN: (&str, &str) = ("app.kubernetes.io/name", "nkd-housekeeper");

/// A disruption budget.
#[derive(Debug, Clone)]
pub struct Budget {
    namespace: String,
    name: String,
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

/// A pod that can never be evicted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stuck {
    /// Where it runs.
    pub node: String,
    /// Why, with the names of pod, namespace and budget.
    pub why: String,
    /// What its owner can do about it.
    pub way: &'static str,
}

impl Budget {
    /// Reads a budget of policy/v1 or, if `v1` is false, of policy/v1beta1.
    #[must_use]
    pub fn read(object: &Value, v1: bool) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        let failed = |one: &&Value| one["type"] == "DisruptionAllowed" && one["reason"] == "SyncFailed";
        let failed = object["status"]["conditions"].as_array().into_iter().flatten().find(failed);
        let (metadata, selector, status) = (&object["metadata"], &object["spec"]["selector"], &object["status"]);
        Some(Self {
            namespace: text(&metadata["namespace"])?,
            name: text(&metadata["name"])?,
            selector: LabelSelector::deserialize(selector).ok().filter(|_| !selector.is_null()),
            empty_is_all: v1,
            expected: number(&status["expectedPods"]),
            wanted: number(&status["desiredHealthy"]),
            broken: failed.map(|one| one["message"].as_str().unwrap_or("SyncFailed").to_owned()),
            current: status["observedGeneration"].as_i64().is_some_and(|seen| seen == metadata["generation"]),
            lets_unready: object["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow",
        })
    }

    /// Why this pod of it can never go, if that is so.
    fn never_lets(&self, pod: &Pod, full: &str) -> Option<String> {
        if self.lets_unready && !is_ready(pod) {
            return None;
        }
        let (name, wanted, expected) = (&self.name, self.wanted, self.expected);
        if let Some(broken) = &self.broken {
            return Some(format!("the disruption budget {name} lets nothing go, {full} neither: {broken}"));
        }
        if expected > 0 && wanted >= expected {
            return Some(format!(
                "the disruption budget {name} never lets {full} go: it wants {wanted} of {expected} pods healthy"
            ));
        }
        (expected == 0 && self.current).then(|| {
            format!("the disruption budget {name} never lets {full} go: it counts no pods, though it chooses this one")
        })
    }

    fn chooses(&self, pod: &Pod) -> bool {
        let Some(selector) =
            self.selector.as_ref().filter(|_| pod.metadata.namespace.as_ref() == Some(&self.namespace))
        else {
            return false;
        };
        let label = |key: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        let labels = selector.match_labels.as_ref().filter(|labels| !labels.is_empty());
        let rules = selector.match_expressions.as_ref().filter(|rules| !rules.is_empty());
        if labels.is_none() && rules.is_none() {
            return self.empty_is_all;
        }
        let has = labels.into_iter().flatten().all(|(key, value)| label(key) == Some(value));
        has && rules.into_iter().flatten().all(|rule| {
            let value = label(&rule.key);
            let listed = value.is_some_and(|value| rule.values.iter().flatten().any(|one| one == value));
            match rule.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
    }
}

/// The pods that no drain could ever move. A budget that only has to wait is none of them.
#[must_use]
pub fn stuck(pods: &[Pod], budgets: &[Budget]) -> Vec<Stuck> {
    let mut all: Vec<Stuck> = pods.iter().filter(|pod| has_to_leave(pod)).filter_map(|pod| why(pod, budgets)).collect();
    all.sort();
    all
}

fn why(pod: &Pod, budgets: &[Budget]) -> Option<Stuck> {
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let full = format!("{}/{}", pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
    let mut controllers = pod.metadata.owner_references.iter().flatten().filter(|owner| owner.controller == Some(true));
    if controllers.next().is_none() {
        let why = format!("{full} has no controller, and nothing makes it anew");
        return Some(Stuck { node, why, way: "delete it" });
    }
    // No budget is asked about a pod that was never started.
    let runs = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    let own: Vec<&Budget> = budgets.iter().filter(|budget| runs && budget.chooses(pod)).collect();
    let why = match (own.iter().find_map(|budget| budget.never_lets(pod, &full)), own.as_slice()) {
        (Some(never), _) => never,
        (None, [one, other, ..]) => {
            format!("{full} has two disruption budgets, {} and {}: no pod is evicted then", one.name, other.name)
        }
        _ => return None,
    };
    Some(Stuck { node, why, way: "change the budget" })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// It has something to lose, and somewhere to go.
fn has_to_leave(pod: &Pod) -> bool {
    let metadata = &pod.metadata;
    let over = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed");
    let ours = metadata.namespace.as_deref() == Some(housekeeper::NAMESPACE)
        && metadata.labels.as_ref().and_then(|labels| labels.get(OWN.0)).is_some_and(|name| name == OWN.1);
    !over && !ours && metadata.deletion_timestamp.is_none() && crate::cluster::drain::moves(pod)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, app: &str) -> Value {
        let owners =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]);
        json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": app}, "ownerReferences": owners}, "spec": {"nodeName": "w1", "containers": []},
            "status": {"phase": "Running"}})
    }

    fn budget(name: &str, selector: Value, wanted: i64, expected: i64) -> Value {
        json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"selector": selector},
            "status": {"desiredHealthy": wanted, "expectedPods": expected}})
    }

    fn asked(pods: &[Value], budgets: &[Value], v1: bool) -> Vec<String> {
        let pods: Vec<Pod> = pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect();
        let budgets: Vec<Budget> = budgets.iter().map(|budget| Budget::read(budget, v1).unwrap()).collect();
        stuck(&pods, &budgets).into_iter().map(|stuck| format!("{}: {}", stuck.node, stuck.why)).collect()
    }

    #[test]
    fn a_budget_that_can_never_be_met_is_named_with_pod_and_node() {
        let web = json!({"matchLabels": {"app": "web"}});
        let never = budget("web", web.clone(), 2, 2);
        let told = asked(&[pod("web-1", "web"), pod("db-1", "db")], std::slice::from_ref(&never), false);
        assert_eq!(told, ["w1: the disruption budget web never lets shop/web-1 go: it wants 2 of 2 pods healthy"]);
        assert_eq!(asked(&[pod("web-1", "web")], &[budget("web", web.clone(), 1, 2)], false), [""; 0], "it only waits");
        assert_eq!(
            asked(&[pod("web-1", "web")], &[budget("web", web.clone(), 0, 0)], false),
            [""; 0],
            "nothing counted yet"
        );
        let two = asked(&[pod("web-1", "web")], &[budget("a", web.clone(), 0, 2), budget("b", web, 0, 2)], false);
        assert_eq!(two, ["w1: shop/web-1 has two disruption budgets, a and b: no pod is evicted then"]);
    }

    #[test]
    fn a_budget_that_lets_nothing_go_is_told_from_one_that_is_not_asked() {
        let web = json!({"matchLabels": {"app": "web"}});
        let (waits, never) = (budget("web", web.clone(), 1, 2), budget("web", web.clone(), 2, 2));
        let mut failed = waits.clone();
        failed["status"]["conditions"] =
            json!([{"type": "DisruptionAllowed", "reason": "SyncFailed", "message": "found no controller ref"}]);
        let mut empty = budget("web", web, 1, 0);
        (empty["metadata"]["generation"], empty["status"]["observedGeneration"]) = (3.into(), 3.into());
        let mut old = empty.clone();
        old["metadata"]["generation"] = 4.into();
        let mut unready = never.clone();
        unready["spec"]["unhealthyPodEvictionPolicy"] = "AlwaysAllow".into();
        let (runs, mut ready, mut pending) = (pod("web-1", "web"), pod("web-1", "web"), pod("web-1", "web"));
        ready["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        pending["status"]["phase"] = "Pending".into();
        let said = |pod: &Value, budget: &Value| {
            asked(std::slice::from_ref(pod), std::slice::from_ref(budget), true).join("; ")
        };
        assert!(said(&runs, &failed).ends_with("lets nothing go, shop/web-1 neither: found no controller ref"));
        assert!(said(&runs, &empty).contains("counts no pods"));
        assert_eq!(said(&runs, &old), "", "it has not been counted anew yet");
        assert_eq!(said(&runs, &unready), "");
        assert!(said(&ready, &unready).contains("wants 2 of 2") && said(&runs, &never).contains("wants 2 of 2"));
        for budget in [&failed, &empty, &never] {
            assert_eq!(said(&pending, budget), "", "no budget is asked about it");
        }
    }

    #[test]
    fn a_pod_that_nothing_makes_anew_is_its_owners_to_delete() {
        let mut bare = pod("web-1", "web");
        bare["metadata"]["ownerReferences"][0]["controller"] = false.into();
        let text = "w1: shop/web-1 has no controller, and nothing makes it anew";
        assert_eq!(asked(&[bare, pod("web-2", "web")], &[], true), [text]);
    }

    #[test]
    fn selectors_choose_as_the_api_server_does() {
        let rule = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
        for (selector, v1, chosen) in [
            (json!({}), true, true),
            (json!({}), false, false),
            (Value::Null, true, false),
            (rule("In", json!(["web", "x"])), false, true),
            (rule("NotIn", json!(["web"])), false, false),
            (rule("Exists", Value::Null), false, true),
            (rule("DoesNotExist", Value::Null), false, false),
            (rule("Near", json!(["web"])), false, false),
        ] {
            let told = asked(&[pod("web-1", "web")], &[budget("b", selector.clone(), 1, 1)], v1);
            assert_eq!(told.len(), usize::from(chosen), "{selector} {v1}");
        }
        let mut elsewhere = budget("b", json!({"matchLabels": {"app": "web"}}), 1, 1);
        elsewhere["metadata"]["namespace"] = "other".into();
        assert_eq!(asked(&[pod("web-1", "web")], &[elsewhere], true), [""; 0]);
    }

    #[test]
    fn pods_that_do_not_leave_are_in_nobodys_way() {
        let all = budget("b", json!({}), 1, 1);
        let spoil: [fn(&mut Value); 5] = [
            |pod| pod["status"]["phase"] = "Succeeded".into(),
            |pod| pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"}),
            |pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into(),
            |pod| {
                pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}]);
            },
            |pod| drop(pod["spec"].as_object_mut().unwrap().remove("nodeName")),
        ];
        assert_eq!(asked(&[pod("a", "a")], std::slice::from_ref(&all), true).len(), 1);
        for (number, spoil) in spoil.into_iter().enumerate() {
            let mut pod = pod("a", "a");
            spoil(&mut pod);
            assert_eq!(asked(&[pod], std::slice::from_ref(&all), true), [""; 0], "{number}");
        }
        let mut own = pod("housekeeper-1", "x");
        own["metadata"]["namespace"] = housekeeper::NAMESPACE.into();
        own["metadata"]["labels"] = json!({OWN.0: OWN.1});
        let mut of_own = all;
        of_own["metadata"]["namespace"] = housekeeper::NAMESPACE.into();
        assert_eq!(asked(&[own], &[of_own], true), [""; 0]);
    }
}
