//! The shape of a cluster file: fields, types and choices, held against the JSON Schema of [`Cluster`] (pure).
//!
//! Reading into the type stops at the first problem. This walk finds all of them, and puts something of the right shape in
//! the place of what is wrong, so that the rules of [`super::rules`] still see the rest of the file.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::LazyLock;

use nkd_api::cluster::Cluster;
use nkd_api::update::MaxUnavailable;
use nkd_api::{MacAddr, Problem};
use serde_json::{Map, Value, json};

use super::syntax::{field, shown};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(Cluster).to_value();
    schema["title"] = json!("nkd cluster file");
    schema
});

/// The JSON Schema (draft 2020-12) of a cluster file.
#[must_use]
pub fn schema() -> &'static Value {
    &SCHEMA
}

/// What a walk has found.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// Problems.
    pub problems: Vec<Problem>,
    /// The places whose value was replaced or left out.
    pub bad: BTreeSet<String>,
}

/// Finds everything that is not of the shape of a cluster file. Afterwards `document` is of that shape.
pub(super) fn settle(document: &mut Value) -> Shape {
    let mut shape = Shape::default();
    if !shape.walk(document, schema(), "") {
        *document = sample(schema());
    }
    shape
}

/// Visits every source (see [`nkd_api::cluster::Source`]) that stands in a document of any shape.
pub(in crate::cluster) fn sources(document: &mut Value, visit: &mut dyn FnMut(&str, &mut Value)) {
    visit_sources(document, schema(), "", visit);
}

fn visit_sources(value: &mut Value, schema: &Value, path: &str, visit: &mut dyn FnMut(&str, &mut Value)) {
    if schema["$ref"] == "#/$defs/Source" {
        return visit(path, value);
    }
    let schema = resolve(schema);
    for inner in schema["anyOf"].as_array().into_iter().flatten() {
        visit_sources(value, inner, path, visit);
    }
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                visit_sources(item, &schema["items"], &format!("{path}[{i}]"), visit);
            }
        }
        Value::Object(map) => {
            for (key, inner) in map {
                visit_sources(inner, &schema["properties"][key], &field(path, key), visit);
            }
        }
        _ => {}
    }
}

impl Shape {
    fn problem(&mut self, path: &str, message: String) -> bool {
        self.problems.push(Problem { path: path.to_owned(), message });
        self.bad.insert(path.to_owned());
        false
    }

    /// True when the value is of the shape, or was made so inside.
    fn walk(&mut self, value: &mut Value, schema: &Value, path: &str) -> bool {
        let schema = resolve(schema);
        if let Some(ways) = schema["anyOf"].as_array() {
            let fits = |way: &&Value| takes(resolve(way), value);
            return match ways.iter().find(fits) {
                Some(way) => self.walk(value, way, path),
                None => self.problem(path, mismatch(value, &wanted(schema))),
            };
        }
        if let Some(choices) = choices(schema) {
            return match value.as_str() {
                Some(text) if choices.contains(&text) => true,
                Some(text) => self.problem(path, format!("{} is not one of: {}", shown(text), choices.join(", "))),
                None => self.problem(path, mismatch(value, &format!("one of: {}", choices.join(", ")))),
            };
        }
        if !takes(schema, value) {
            return self.problem(path, mismatch(value, &wanted(schema)));
        }
        match value {
            Value::String(text) => self.text(text, schema, path),
            Value::Number(number) => {
                let fits = number.as_u64().is_some_and(|n| u32::try_from(n).is_ok());
                fits || self.problem(path, format!("{number} is not a whole number from 0 to {}", u32::MAX))
            }
            Value::Array(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    if !self.walk(item, &schema["items"], &format!("{path}[{i}]")) {
                        *item = sample(&schema["items"]);
                    }
                }
                true
            }
            Value::Object(map) => {
                self.object(map, schema, path);
                true
            }
            Value::Null | Value::Bool(_) => true,
        }
    }

    fn text(&mut self, text: &str, schema: &Value, path: &str) -> bool {
        match schema["format"].as_str() {
            Some("mac") => match text.parse::<MacAddr>() {
                Ok(_) => true,
                Err(error) => self.problem(path, error.to_string()),
            },
            Some("ip") if text.parse::<IpAddr>().is_err() => {
                self.problem(path, format!("{} is not an IP address: write it as 10.0.0.1 or fd00::1", shown(text)))
            }
            Some("count-or-share") if text.parse::<MaxUnavailable>().is_err() => {
                self.problem(path, format!("{} is no number such as 2, and no share such as 10%", shown(text)))
            }
            _ => true,
        }
    }

    fn object(&mut self, map: &mut Map<String, Value>, schema: &Value, path: &str) {
        let known = schema["properties"].as_object();
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut replaced = Vec::new();
        map.retain(|key, value| {
            let at = field(path, key);
            match known.and_then(|known| known.get(key)) {
                Some(inner) => {
                    let fits = self.walk(value, inner, &at);
                    if !fits && required.contains(&key.as_str()) {
                        replaced.push((key.clone(), sample(inner)));
                    }
                    fits
                }
                None => match &schema["additionalProperties"] {
                    Value::Bool(false) => {
                        let names: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                        self.problem(&at, format!("there is no such field; known here: {}", names.join(", ")))
                    }
                    Value::Object(inner) => self.walk(value, &Value::Object(inner.clone()), &at),
                    _ => true,
                },
            }
        });
        map.extend(replaced);
        for name in required {
            if !map.contains_key(name) {
                let inner = &schema["properties"][name];
                let what = inner["description"].as_str().unwrap_or_default().replace('\n', " ");
                self.problem(&field(path, name), format!("this field is missing: {what}"));
                map.insert(name.to_owned(), sample(inner));
            }
        }
    }
}

fn resolve(schema: &Value) -> &Value {
    match schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        Some(name) => resolve(&self::schema()["$defs"][name]),
        None => schema,
    }
}

/// The words of an enumeration.
fn choices(schema: &Value) -> Option<Vec<&str>> {
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().filter_map(Value::as_str).collect());
    }
    let ways = schema["oneOf"].as_array()?;
    Some(
        ways.iter()
            .flat_map(|way| way["const"].as_str().into_iter().chain(choices(way).into_iter().flatten()))
            .collect(),
    )
}

/// The types that a schema names; none when it takes everything.
fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ if choices(schema).is_some() => vec!["string"],
        _ => schema["anyOf"].as_array().into_iter().flatten().flat_map(|way| types(resolve(way))).collect(),
    }
}

fn takes(schema: &Value, value: &Value) -> bool {
    let types = types(schema);
    types.is_empty()
        || types.contains(&match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        })
}

fn wanted(schema: &Value) -> String {
    let words = types(schema).into_iter().filter(|t| *t != "null").map(|name| match name {
        "string" => "text",
        "integer" => "a whole number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a map",
        other => other,
    });
    words.collect::<Vec<_>>().join(" or ")
}

fn mismatch(value: &Value, wanted: &str) -> String {
    let text = wanted.starts_with("text") || wanted.starts_with("one of");
    match value {
        Value::Null => format!("this is empty; give {wanted}, or leave the field out"),
        Value::Bool(word) if text => format!("this reads as the word {word}; give {wanted}, in quotes"),
        Value::Number(number) if text => format!("this reads as the number {number}; give {wanted}, in quotes"),
        Value::Bool(word) => format!("this is {word}; give {wanted}"),
        Value::Number(number) => format!("this is the number {number}; give {wanted}"),
        Value::String(_) => format!("this is text; give {wanted}"),
        Value::Array(_) => format!("this is a list; give {wanted}"),
        Value::Object(_) => format!("this is a map; give {wanted}"),
    }
}

/// The smallest value of a shape.
fn sample(schema: &Value) -> Value {
    let schema = resolve(schema);
    if let Some(first) = choices(schema).and_then(|words| words.first().copied()) {
        return first.into();
    }
    if let Some(first) = schema["anyOf"].as_array().and_then(|ways| ways.first()) {
        return sample(first);
    }
    let types = types(schema);
    match types.first() {
        Some(&"object") => {
            let names = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            names.map(|name| (name.to_owned(), sample(&schema["properties"][name]))).collect()
        }
        Some(&"array") => json!([]),
        Some(&"integer") => json!(0),
        Some(&"boolean") => json!(false),
        Some(&"string") => match schema["format"].as_str() {
            Some("mac") => json!("02:00:00:00:00:00"),
            Some("ip") => json!("0.0.0.0"),
            _ => json!(""),
        },
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{any_value, spots};
    use super::*;

    proptest! {
        /// The walk and the type agree on every change of one place of a full file.
        #[test]
        fn the_walk_finds_what_the_type_refuses(spot in any::<prop::sample::Index>(), new in any_value()) {
            let full = super::super::tests::full();
            let all = spots(&full);
            let place = &all[spot.index(all.len())];
            let mut changed = full.clone();
            *changed.pointer_mut(place).unwrap() = new;
            let typed = serde_json::from_value::<Cluster>(changed.clone());
            let shape = settle(&mut changed);
            prop_assert!(typed.is_ok() || !shape.problems.is_empty(), "{}: {:?}", place, typed.err());
            if let Ok(cluster) = typed {
                // The type also reads a list of values in the place of a map; what it means by them passes.
                let again = settle(&mut serde_json::to_value(&cluster).unwrap());
                prop_assert!(again.problems.is_empty(), "{}: {:?}", place, again.problems);
            }
            prop_assert!(serde_json::from_value::<Cluster>(changed).is_ok());
        }
    }
}
