//! From YAML in Butane's shape to an Ignition value (pure).
//!
//! Keys are snake_case in Butane and camelCase in Ignition; `inline` becomes a data URL (RFC 2397). Everything else
//! has the same shape. Unknown keys are found later, by the typed check.

use base64::Engine;
use serde_json::{Map, Value};

use super::IgnitionError;

/// Reads one document. `variant` and `version` are taken and ignored: the specification is the profile's matter.
pub(super) fn to_ignition(yaml: &str, place: &str) -> Result<Value, IgnitionError> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: true };
    let value: Value = serde_saphyr::from_str_with_options(yaml, options)
        .map_err(|e| IgnitionError::Yaml { place: place.to_owned(), reason: e.to_string() })?;
    let mut map = match convert(value) {
        Value::Object(map) => map,
        Value::Null => Map::new(),
        _ => {
            return Err(IgnitionError::Yaml {
                place: place.to_owned(),
                reason: "the document must be a mapping".to_owned(),
            });
        }
    };
    map.remove("variant");
    map.remove("version");
    map.entry("ignition").or_insert_with(|| Value::Object(Map::new()));
    Ok(Value::Object(map))
}

/// A data URL that any Ignition reads.
pub(super) fn data_url(bytes: &[u8]) -> String {
    format!("data:;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn convert(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            // Header names and the like are values, not keys, in Ignition: every key is a field.
            let mut out = Map::new();
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("inline", Value::String(text)) => {
                        out.insert("source".to_owned(), Value::String(data_url(text.as_bytes())));
                    }
                    (_, value) => {
                        let name = camel(&key);
                        let value = convert(value);
                        if !value.is_null() {
                            out.insert(name, value);
                        }
                    }
                }
            }
            Value::Object(out)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(convert).collect()),
        other => other,
    }
}

fn camel(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    let mut upper = false;
    for c in key.chars() {
        if c == '_' {
            upper = true;
        } else if upper {
            out.extend(c.to_uppercase());
            upper = false;
        } else {
            out.push(c);
        }
    }
    out
}
