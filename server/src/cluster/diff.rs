//! What changes between two cluster files (pure).
//!
//! Pools and machines are told by their names and keys, not by their place in the list. Secrets and inline texts are never
//! part of a change: it says that they differ.

use std::fmt;

use nkd_api::cluster::{Change, Cluster};
use serde_json::{Map, Value, json};
use url::Url;

use super::file::syntax::field;

/// A change in one line: `~ path: old -> new`, `+ path: new`, `- path: old`.
#[must_use]
pub fn line(change: &Change) -> String {
    let path = &change.path;
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => format!("~ {path}: {} -> {}", Plain(old), Plain(new)),
        (Some(old), None) => format!("- {path}: {}", Plain(old)),
        (None, Some(new)) => format!("+ {path}: {}", Plain(new)),
        (None, None) => format!("  {path}"),
    }
}

/// Text without quotes, everything else as JSON.
struct Plain<'a>(&'a Value);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(text) if !text.is_empty() => f.write_str(text),
            other => write!(f, "{other}"),
        }
    }
}

/// All changes from `old` to `new`, in the order of the fields. A default is the same whether it was written or not.
#[must_use]
pub fn diff(old: &Cluster, new: &Cluster) -> Vec<Change> {
    let mut changes = Vec::new();
    // A cluster is written by derived code without maps of other keys than text: this does not fail.
    let whole = |cluster| serde_json::to_value(cluster).unwrap_or_default();
    compare("", Some(&whole(old)), Some(&whole(new)), Kind::Plain, &mut changes);
    changes
}

/// What a value is, as far as showing it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// A private key.
    Key,
    /// Text that may hold passwords and tokens.
    Text,
    /// An address that may hold a password.
    Address,
}

/// What the field `name` below something of kind `around` is.
fn kind(path: &str, name: &str, around: Kind) -> Kind {
    match name {
        _ if around != Kind::Plain => around,
        "key" if path.starts_with("spec.certificates") => Kind::Key,
        "inline" => Kind::Text,
        "http" | "https" if path == "spec.proxy" => Kind::Address,
        // An argument or a field of a component may be a credential, and is one rarely: names say it.
        _ if path.starts_with("spec.kubernetes")
            && ["password", "secret", "token"].iter().any(|w| name.contains(w)) =>
        {
            Kind::Key
        }
        _ => Kind::Plain,
    }
}

fn compare(path: &str, old: Option<&Value>, new: Option<&Value>, what: Kind, changes: &mut Vec<Change>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let gone = old.keys().filter(|name| !new.contains_key(*name));
            for name in new.keys().chain(gone) {
                compare(&field(path, name), old.get(name), new.get(name), kind(path, name, what), changes);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if has_items(old) && has_items(new) => {
            let (old, new) = (named(old), named(new));
            let gone = old.iter().filter(|(name, _)| new.iter().all(|(other, _)| other != name));
            for (name, _) in new.iter().chain(gone) {
                let find =
                    |list: &[(String, &Value)]| list.iter().find(|(other, _)| other == name).map(|(_, v)| (*v).clone());
                compare(&format!("{path}[{name}]"), find(&old).as_ref(), find(&new).as_ref(), what, changes);
            }
        }
        _ => changes.push(Change {
            path: path.to_owned(),
            old: old.map(|value| shown(path, value, what)),
            new: new.map(|value| shown(path, value, what)),
        }),
    }
}

/// True for a list whose items have fields; others are one value, their order counts.
fn has_items(list: &[Value]) -> bool {
    list.iter().any(Value::is_object)
}

/// Items by what tells them apart: a machine by its key, a pool and a registry by name, everything else by its place.
fn named(list: &[Value]) -> Vec<(String, &Value)> {
    let mut names: Vec<(String, &Value)> = Vec::new();
    for (i, item) in list.iter().enumerate() {
        let own = ["mac", "uuid", "serial", "name", "host"]
            .iter()
            .find_map(|key| Some(format!("{key}={}", item[key].as_str()?)))
            .filter(|name| names.iter().all(|(other, _)| other != name));
        names.push((own.unwrap_or_else(|| i.to_string()), item));
    }
    names
}

fn shown(path: &str, value: &Value, what: Kind) -> Value {
    match (what, value) {
        (Kind::Key, _) => json!("(hidden)"),
        (Kind::Text, Value::String(text)) => json!(format!("(text of {} bytes)", text.len())),
        (Kind::Address, Value::String(text)) => json!(without_password(text)),
        (_, Value::Object(map)) => {
            let inner = |(name, value): (&String, &Value)| {
                (name.clone(), shown(&field(path, name), value, kind(path, name, what)))
            };
            Value::Object(map.iter().map(inner).collect::<Map<_, _>>())
        }
        (_, Value::Array(items)) => items.iter().map(|item| shown(path, item, what)).collect(),
        _ => value.clone(),
    }
}

fn without_password(text: &str) -> String {
    let Ok(mut url) = text.parse::<Url>() else { return "(hidden)".into() };
    if url.password().is_some() && url.set_password(Some("hidden")).is_err() {
        return "(hidden)".into();
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::file::{self, tests as files};

    fn cluster(document: Value) -> Cluster {
        file::check(document, file::Paths::Refused).cluster.unwrap()
    }

    fn lines(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut document = files::full();
        change(&mut document);
        let new: Cluster = serde_json::from_value(document).unwrap();
        diff(&cluster(files::full()), &new).iter().map(line).collect()
    }

    #[test]
    fn a_change_is_one_line_at_its_path() {
        assert_eq!(lines(|_| {}), [""; 0]);
        assert_eq!(
            lines(|d| d["spec"]["kubernetes"]["version"] = json!("v1.32.0")),
            ["~ spec.kubernetes.version: v1.31.4 -> v1.32.0"]
        );
        assert_eq!(lines(|d| d["spec"]["pools"][1]["count"] = json!(5)), ["~ spec.pools[name=worker].count: 3 -> 5"]);
        assert_eq!(
            lines(|d| d["spec"]["ntp"] = json!(["ntp.example"])),
            ["~ spec.ntp: [\"ntp.example\",\"10.0.0.1\"] -> [\"ntp.example\"]"]
        );
        assert_eq!(
            lines(|d| drop(d["spec"].as_object_mut().unwrap().remove("endpoint"))),
            ["- spec.endpoint: api.rack7.example:6443"]
        );
        assert_eq!(
            lines(|d| d["spec"]["pools"][0]["machines"][0]["labels"]["a.b/c"] = json!("d")),
            ["+ spec.pools[name=control-plane].machines[mac=52:54:00:00:00:01].labels[\"a.b/c\"]: d"]
        );
    }

    #[test]
    fn order_of_pools_and_defaults_are_no_changes() {
        assert_eq!(lines(|d| d["spec"]["pools"].as_array_mut().unwrap().reverse()), [""; 0]);
        assert_eq!(lines(|d| drop(d["spec"]["kubernetes"].as_object_mut().unwrap().remove("podSubnet"))), [""; 0]);
    }

    #[test]
    fn a_new_machine_is_shown_whole() {
        let changed = lines(|d| {
            let machines = d["spec"]["pools"][1]["machines"].as_array_mut().unwrap();
            machines.insert(0, json!({"mac": "52:54:00:00:00:09", "hostname": "w9"}));
        });
        assert_eq!(changed.len(), 1, "{changed:?}");
        assert!(changed[0].starts_with("+ spec.pools[name=worker].machines[mac=52:54:00:00:00:09]: {"), "{changed:?}");
        assert!(changed[0].contains("\"hostname\":\"w9\""), "{changed:?}");
    }

    proptest! {
        /// Whatever differs is said, and no secret is in it.
        #[test]
        fn every_difference_is_said_and_no_secret(secret in "[a-z]{20}", which in 0usize..7) {
            let places = [
                "/spec/certificates/cluster/key/inline",
                "/spec/certificates/cluster/key",
                "/spec/snippets/0/inline",
                "/spec/hooks/before/0/inline",
                "/spec/kubernetes/cni/manifest/inline",
                "/spec/proxy/http",
                "/spec/certificates",
            ];
            let mut document = files::full();
            let value = document.pointer_mut(places[which]).unwrap();
            *value = match places[which] {
                "/spec/proxy/http" => json!(format!("http://user:{secret}@proxy.example:3128")),
                "/spec/certificates" => json!({"etcd": {"certificate": {"inline": secret}, "key": {"inline": secret}}}),
                _ => json!(secret),
            };
            let new: Cluster = serde_json::from_value(document).unwrap();
            let changes = diff(&cluster(files::full()), &new);
            prop_assert!(!changes.is_empty());
            let text = serde_json::to_string(&changes).unwrap() + &changes.iter().map(line).collect::<String>();
            prop_assert!(!text.contains(&secret), "{}", text);
            prop_assert!(!text.contains("PRIVATE KEY"), "{}", text);
        }

        /// What is added one way is removed the other way.
        #[test]
        fn both_ways_are_mirrors(spot in any::<prop::sample::Index>(), value in files::any_value()) {
            let mut document = files::full();
            let all = files::spots(&document);
            *document.pointer_mut(&all[spot.index(all.len())]).unwrap() = value;
            let Ok(new) = serde_json::from_value::<Cluster>(document) else { return Ok(()) };
            let old = cluster(files::full());
            let there = diff(&old, &new);
            prop_assert_eq!(there.is_empty(), old == new);
            let mut back: Vec<Change> = diff(&new, &old).into_iter().map(|c| Change { old: c.new, new: c.old, ..c }).collect();
            let mut there = there;
            there.sort_by(|a, b| a.path.cmp(&b.path));
            back.sort_by(|a, b| a.path.cmp(&b.path));
            prop_assert_eq!(there, back);
        }
    }
}
