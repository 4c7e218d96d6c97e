//! The OpenAPI document in the repository is the one that the program prints.

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
