//! What the metrics of API servers tell about APIs that a later version does not have (pure).

use std::collections::BTreeMap;

/// A gauge of every API server since 1.19: 1 for each deprecated API that was asked for since it started.
const REQUESTED: &str = "apiserver_requested_deprecated_apis{";
/// How often each verb was asked for.
const TOTAL: &str = "apiserver_request_total{";
/// What the garbage collector of Kubernetes reads in every cluster. It lists and watches each resource in the version that
/// its group prefers, and these have no other one in their group until they are gone.
const COLLECTED: [&str; 2] = ["extensions/v1beta1 ingresses", "policy/v1beta1 podsecuritypolicies"];
/// All that it asks for, and the controller that empties a namespace which was deleted.
const KUBERNETES_OWN: [&str; 3] = ["LIST", "WATCH", "DELETECOLLECTION"];

/// An API that is in use, and goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deprecated {
    /// `policy/v1beta1 podsecuritypolicies`
    pub name: String,
    /// Minor version of the first release without it.
    pub removed_in: u64,
    /// Nothing was asked for but what the garbage collector asks for in every cluster.
    pub collected: bool,
}

/// Labels and value of a line of this metric.
fn line<'a>(text: &'a str, metric: &str) -> Option<(&'a str, &'a str)> {
    let (labels, value) = text.strip_prefix(metric)?.rsplit_once("} ")?;
    Some((labels, value.trim())).filter(|(_, value)| *value != "0")
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels
        .split(',')
        .find_map(|pair| Some(pair.split_once('=')?).filter(|(key, _)| *key == name)?.1.strip_prefix('"'))
        .and_then(|text| text.strip_suffix('"'))
}

fn name_of(labels: &str) -> Option<String> {
    let group = label(labels, "group").unwrap_or_default();
    let slash = if group.is_empty() { "" } else { "/" };
    Some(format!("{group}{slash}{} {}", label(labels, "version")?, label(labels, "resource")?))
}

/// Those of the API servers' pages of metrics, in the text format of Prometheus, that go by `minor`.
#[must_use]
pub fn gone_by(pages: &[String], minor: u64) -> Vec<Deprecated> {
    let lines = || pages.iter().flat_map(|page| page.lines());
    let requested = |text: &str| {
        let (labels, _) = line(text, REQUESTED)?;
        let (major, removed_in) = label(labels, "removed_release")?.split_once('.')?;
        let removed_in: u64 = removed_in.parse().ok().filter(|_| major == "1")?;
        Some((name_of(labels)?, removed_in)).filter(|(_, removed_in)| *removed_in <= minor)
    };
    let found: BTreeMap<String, u64> = lines().filter_map(requested).collect();
    let more = |text: &str| {
        let (labels, _) = line(text, TOTAL)?;
        let reads = KUBERNETES_OWN.contains(&label(labels, "verb")?);
        if reads { None } else { name_of(labels) }
    };
    let used: Vec<String> = lines().filter_map(more).filter(|name| found.contains_key(name)).collect();
    let one = |(name, removed_in): (String, u64)| {
        let collected = COLLECTED.contains(&name.as_str()) && !used.contains(&name);
        Deprecated { name, removed_in, collected }
    };
    found.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(group: &str, resource: &str, removed: &str, value: u8) -> String {
        format!(
            "{REQUESTED}group=\"{group}\",removed_release=\"{removed}\",resource=\"{resource}\",subresource=\"\",version=\"v1beta1\"}} {value}\n"
        )
    }

    fn total(group: &str, resource: &str, verb: &str) -> String {
        format!(
            "{TOTAL}code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"{group}\",resource=\"{resource}\",scope=\"cluster\",subresource=\"\",verb=\"{verb}\",version=\"v1beta1\"}} 7\n"
        )
    }

    fn names(found: &[Deprecated]) -> Vec<&str> {
        found.iter().map(|one| one.name.as_str()).collect()
    }

    #[test]
    fn what_goes_is_found_at_each_api_server_and_nothing_else() {
        let lines = [
            "# HELP x\n".to_owned(),
            requested("extensions", "ingresses", "1.22", 1),
            requested("extensions", "ingresses", "1.22", 1),
            requested("policy", "poddisruptionbudgets", "1.25", 1),
            requested("batch", "cronjobs", "1.21", 0),
            requested("", "componentstatuses", "", 1),
            "apiserver_other{a=\"b\"} 1\n".to_owned(),
        ];
        let pages = [lines.concat(), requested("batch", "cronjobs", "1.25", 1)];
        assert_eq!(names(&gone_by(&pages, 22)), ["extensions/v1beta1 ingresses"]);
        assert_eq!(gone_by(&pages, 22)[0].removed_in, 22);
        assert!(gone_by(&pages, 21).is_empty());
        let all = ["batch/v1beta1 cronjobs", "extensions/v1beta1 ingresses", "policy/v1beta1 poddisruptionbudgets"];
        assert_eq!(names(&gone_by(&pages, 25)), all);
    }

    /// As an API server of 1.21 says it of a cluster in which nobody has an Ingress.
    #[test]
    fn what_the_garbage_collector_reads_in_every_cluster_is_told_apart() {
        let reads = [
            total("extensions", "ingresses", "LIST"),
            total("extensions", "ingresses", "WATCH"),
            total("extensions", "ingresses", "DELETECOLLECTION"),
        ]
        .concat();
        let stock = requested("extensions", "ingresses", "1.22", 1) + &reads;
        let collected = |pages: &[String]| gone_by(pages, 22)[0].collected;
        assert!(collected(std::slice::from_ref(&stock)));
        // Somebody writes them, by one API server of three.
        let writes = requested("extensions", "ingresses", "1.22", 1) + &total("extensions", "ingresses", "PATCH");
        assert!(!collected(&[stock.clone(), writes, stock.clone()]));
        // Of another version it is no matter what is done.
        let newer = total("networking.k8s.io", "ingresses", "PATCH");
        assert!(collected(&[stock + &newer]));
        // Who lists these is a client of its own.
        let budgets =
            [requested("policy", "poddisruptionbudgets", "1.22", 1), total("policy", "poddisruptionbudgets", "LIST")];
        assert!(!collected(&[budgets.concat()]));
    }
}
