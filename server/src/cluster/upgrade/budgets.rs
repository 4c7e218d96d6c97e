//! Disruption budgets that can never let a pod go, found before an upgrade begins (pure). The operator finds them as well,
//! node by node, when a drain has begun; this is the same question, asked earlier.

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
}

/// A pod that can never be evicted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stuck {
    /// Where it runs.
    pub node: String,
    /// Why, with the names of pod, namespace and budget.
    pub why: String,
}

impl Budget {
    /// Reads a budget of policy/v1 or, if `v1` is false, of policy/v1beta1.
    #[must_use]
    pub fn read(object: &Value, v1: bool) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        let (metadata, selector, status) = (&object["metadata"], &object["spec"]["selector"], &object["status"]);
        Some(Self {
            namespace: text(&metadata["namespace"])?,
            name: text(&metadata["name"])?,
            selector: LabelSelector::deserialize(selector).ok().filter(|_| !selector.is_null()),
            empty_is_all: v1,
            expected: number(&status["expectedPods"]),
            wanted: number(&status["desiredHealthy"]),
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
    let own: Vec<&Budget> = budgets.iter().filter(|budget| budget.chooses(pod)).collect();
    let never = own.iter().find(|budget| budget.expected > 0 && budget.wanted >= budget.expected);
    let why = match (never, own.as_slice()) {
        (Some(never), _) => format!(
            "the disruption budget {} never lets {full} go: it wants {} of {} pods healthy",
            never.name, never.wanted, never.expected
        ),
        (None, [one, other, ..]) => {
            format!("{full} has two disruption budgets, {} and {}: no pod is evicted then", one.name, other.name)
        }
        _ => return None,
    };
    Some(Stuck { node, why })
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
        json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": app}}, "spec": {"nodeName": "w1", "containers": []},
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
