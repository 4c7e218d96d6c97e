//! What operators write may hold passwords: the texts of snippets and hooks, and the addresses of proxies, are sealed one
//! by one inside the documents that the database can otherwise look into.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Seal, SealError, StoreError};

/// Fields whose texts are sealed, wherever they stand.
const FIELDS: [&str; 3] = ["snippets", "hooks", "proxy"];
/// Begins a sealed text. What was written by an earlier version stands as it was.
const MARK: &str = "nkd-sealed:";
/// What the texts are sealed as.
const NAME: &str = "document text";

impl Seal {
    /// A document as it is written.
    pub(super) fn encode<T: Serialize>(&self, what: &'static str, value: &T) -> Result<String, StoreError> {
        let failed = |source| StoreError::Document { what, source };
        let mut document = serde_json::to_value(value).map_err(failed)?;
        change(&mut document, false, &mut |text| {
            let sealed = self.seal(NAME, text.as_bytes())?;
            *text = format!("{MARK}{}", STANDARD.encode(sealed));
            Ok(())
        })?;
        serde_json::to_string(&document).map_err(failed)
    }

    /// A document as it was.
    pub(super) fn decode<T: DeserializeOwned>(&self, what: &'static str, text: &str) -> Result<T, StoreError> {
        let failed = |source| StoreError::Document { what, source };
        let mut document: Value = serde_json::from_str(text).map_err(failed)?;
        change(&mut document, false, &mut |text| {
            let Some(sealed) = text.strip_prefix(MARK) else { return Ok(()) };
            let broken = || SealError::Open(NAME.into());
            let sealed = STANDARD.decode(sealed).map_err(|_| broken())?;
            *text = String::from_utf8(self.open(NAME, &sealed)?).map_err(|_| broken())?;
            Ok(())
        })?;
        serde_json::from_value(document).map_err(failed)
    }
}

/// Changes every text below one of [`FIELDS`].
fn change(
    value: &mut Value,
    within: bool,
    one: &mut impl FnMut(&mut String) -> Result<(), SealError>,
) -> Result<(), SealError> {
    match value {
        Value::String(text) if within => one(text),
        Value::Array(values) => values.iter_mut().try_for_each(|value| change(value, within, one)),
        Value::Object(fields) => fields
            .iter_mut()
            .try_for_each(|(name, value)| change(value, within || FIELDS.contains(&name.as_str()), one)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_that_may_be_secret_stands_in_the_open() {
        let seal = Seal::from_key(&[7; 32]).unwrap();
        let document = json!({
            "accepted": false,
            "assignment": {"image": "lab", "snippets": ["passwd: hush", ""]},
            "spec": {"proxy": {"http": "http://u:hush@p"}, "hooks": {"after": [{"inline": "hush"}]}},
        });
        let text = seal.encode("x", &document).unwrap();
        assert!(!text.contains("hush") && text.contains("\"accepted\":false") && text.contains("\"lab\""), "{text}");
        assert_eq!(seal.decode::<Value>("x", &text).unwrap(), document);
        // A document of an earlier version, and one under another key.
        assert_eq!(seal.decode::<Value>("x", &document.to_string()).unwrap(), document);
        assert!(Seal::from_key(&[8; 32]).unwrap().decode::<Value>("x", &text).is_err());
    }
}
