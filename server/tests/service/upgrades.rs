//! Upgrades, as far as that goes without a cluster that answers: what is refused, by whom, and what is written down.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::cluster::{file, refused, write};
use super::harness::Place;

#[tokio::test]
async fn what_cannot_be_upgraded_is_refused_with_a_next_step() {
    let place = Place::new();
    let _service = place.start().await;
    place.import().await;
    let path = write(&place, &file(&[1], ""));
    place.ok(&["cluster", "apply", "-f", &path]);

    let start = ["upgrade", "start", "rack7"];
    assert!(refused(&place, &["upgrade", "start", "rack9"]).contains("no cluster `rack9`"));
    assert!(refused(&place, &start).contains("names no channel (spec.os.channel): give --channel"));
    let told = refused(&place, &[&start[..], &["--channel", "edge"]].concat());
    assert!(told.contains("there is no channel `edge`") && told.contains("nkd channel list"), "{told}");
    assert!(refused(&place, &["upgrade", "status", "rack7"]).contains("rack7 was never upgraded"));
    for verb in ["pause", "resume", "abort", "retry"] {
        assert!(refused(&place, &["upgrade", verb, "rack7"]).contains("was never upgraded"), "{verb}");
    }
    assert_eq!(place.ok(&["upgrade", "history", "rack7"]).trim(), "Nothing found.");
    for words in [&["--max-unavailable", "0"][..], &["--soak", "1 hour"], &["--os-only", "--kubernetes-only"]] {
        refused(&place, &[&start[..], words].concat());
    }
    for check in ["all", "a b"] {
        let told = refused(&place, &[&start[..], &["--ignore-preflight-errors", check]].concat());
        assert!(told.contains("is not the name of one check"), "{told}");
    }
    let told = place.ok(&["upgrade", "explain", "w1"]);
    assert!(told.contains("w1 in rack7") && told.contains("rack7 was never upgraded"), "{told}");

    // Who only looks may rehearse, and begin nothing.
    let made = place.ok(&["user", "create", "vera", "--role", "viewer", "-o", "json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let vera = place.user(made["token"].as_str().unwrap());
    for (order, status) in [
        (json!({}), StatusCode::FORBIDDEN),
        (json!({"dryRun": true}), StatusCode::BAD_REQUEST),
        (json!({"releese": 2}), StatusCode::BAD_REQUEST),
    ] {
        let (answer, body) = vera.call(Method::POST, "/api/v1/clusters/rack7/upgrades", Some(&order)).await;
        assert_eq!(answer, status, "{order}: {body:#}");
    }
    let audit = place.ok(&["audit"]);
    assert!(audit.contains("cluster.upgrade") && audit.contains("refused"), "{audit}");
}
