//! The OpenAPI document in the repository is the one that the program prints.

use std::collections::BTreeSet;

use serde_json::Value;

use super::harness::{Place, text};

#[test]
fn the_committed_document_is_current() {
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../api/openapi.json"));
    let out = Place::new().nkd().arg("openapi").output().unwrap();
    assert!(
        committed.unwrap_or_default() == text(&out.stdout),
        "api/openapi.json is not what the program prints: run `cargo run --bin nkd -- openapi > api/openapi.json`"
    );
}

/// By which readers of the document find their way: none is without a word on what it is, and none is about nothing.
#[test]
fn every_tag_is_described_and_in_use() {
    let document = text(&Place::new().nkd().arg("openapi").output().unwrap().stdout);
    let document: Value = serde_json::from_str(&document).unwrap();
    let listed = document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]);
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let used = operations.flat_map(|operation| operation["tags"].as_array().unwrap());
    assert_eq!(names(listed), names(used));
}

fn names<'a>(tags: impl Iterator<Item = &'a Value>) -> BTreeSet<&'a str> {
    tags.map(|tag| tag.as_str().unwrap()).collect()
}
