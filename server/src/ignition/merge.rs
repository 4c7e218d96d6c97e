//! Merging one configuration over another, by the rules of the Ignition specification: objects field by field, lists
//! by the key of their elements, other values replaced. Pure.

use serde_json::Value;

/// Lists whose elements have a key of their own; `""` means that the element itself is the key.
const KEYED: [(&str, &str); 13] = [
    ("files", "path"),
    ("directories", "path"),
    ("links", "path"),
    ("filesystems", "device"),
    ("disks", "device"),
    ("raid", "name"),
    ("luks", "name"),
    ("partitions", "label"),
    ("users", "name"),
    ("groups", "name"),
    ("units", "name"),
    ("dropins", "name"),
    ("httpHeaders", "name"),
];

/// Merges `over` into `base`.
pub(super) fn merge(base: &mut Value, over: Value) {
    merge_field(base, over, "");
}

fn merge_field(base: &mut Value, over: Value, field: &str) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(&key) {
                    Some(old) => merge_field(old, value, &key),
                    None => {
                        base.insert(key, value);
                    }
                }
            }
        }
        (Value::Array(base), Value::Array(over)) => {
            let key = KEYED.iter().find(|(list, _)| *list == field).map(|(_, key)| *key);
            for item in over {
                let same = match key {
                    Some(key) => base.iter_mut().find(|old| old.get(key).is_some() && old.get(key) == item.get(key)),
                    None => base.iter_mut().find(|old| **old == item),
                };
                match same {
                    Some(old) => merge_field(old, item, ""),
                    None => base.push(item),
                }
            }
        }
        (base, over) => *base = over,
    }
}
