//! Nodes that ask before they restart, as zincati asks: no type of content, again and again, from everywhere at once.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::cluster::refused;
use super::harness::Place;

/// What a node hears.
async fn ask(place: &Place, verb: &str, id: &str) -> (StatusCode, Value) {
    let body = json!({"client_params": {"id": id, "group": "workers"}}).to_string();
    send(place, verb, body, true).await
}

async fn send(place: &Place, verb: &str, body: String, header: bool) -> (StatusCode, Value) {
    let mut request = place.https().build().unwrap().post(place.api_url(&format!("/v1/{verb}"))).body(body);
    if header {
        request = request.header("fleet-lock-protocol", "true");
    }
    let answer = request.send().await.unwrap();
    let status = answer.status();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

#[tokio::test]
async fn one_node_at_a_time_restarts_even_when_the_service_is_killed() {
    let place = Place::new();
    let service = place.start().await;
    let nodes: Vec<String> = (0..8).map(|n| format!("{n:032x}")).collect();
    let all = nodes.iter().map(|id| ask(&place, "pre-reboot", id));
    let answers = futures_util::future::join_all(all).await;
    let good: Vec<usize> = (0..nodes.len()).filter(|n| answers[*n].0 == StatusCode::OK).collect();
    let [holder] = good.as_slice() else { panic!("{answers:?}") };
    let (holder, lease) = (&nodes[*holder], &answers[*holder].1);
    let other = nodes.iter().find(|id| *id != holder).unwrap();
    service.kill();

    let _service = place.start().await;
    let (status, told) = ask(&place, "pre-reboot", other).await;
    assert_eq!((status, &told["kind"]), (StatusCode::CONFLICT, &json!("failed_lock")));
    let why = told["value"].as_str().unwrap();
    assert!(why.contains("1 of 1 slots of the group `workers`") && why.contains(holder.as_str()), "{why}");
    let (status, again) = ask(&place, "pre-reboot", holder).await;
    assert_eq!((status, &again["fencing"]), (StatusCode::OK, &lease["fencing"]), "it keeps what it has");
    let list = place.ok(&["lock", "list"]);
    assert!(list.contains("workers") && list.contains(holder.as_str()) && list.contains("127.0.0.1"), "{list}");

    assert_eq!(ask(&place, "steady-state", other).await.0, StatusCode::OK, "it holds nothing, and may say so");
    for _ in 0..2 {
        assert_eq!(ask(&place, "steady-state", holder).await.0, StatusCode::OK);
    }
    let (status, next) = ask(&place, "pre-reboot", other).await;
    assert_eq!(status, StatusCode::OK);
    assert!(next["fencing"].as_u64() > lease["fencing"].as_u64(), "{next} after {lease}");

    // It never comes back: somebody with the right to do so takes its lease away.
    let viewer: Value =
        serde_json::from_str(&place.ok(&["user", "create", "vera", "--role", "viewer", "-o", "json"])).unwrap();
    let path = format!("/api/v1/locks/workers/{other}");
    let vera = place.user(viewer["token"].as_str().unwrap());
    assert_eq!(vera.text(Method::DELETE, &path, None).await.0, StatusCode::FORBIDDEN);
    assert!(place.ok(&["lock", "release", "workers", other]).contains("holds nothing"));
    assert!(refused(&place, &["lock", "release", "workers", other]).contains("nkd lock list"));
    assert_eq!(place.ok(&["lock", "list"]).trim(), "Nothing found.");
    assert!(place.ok(&["audit"]).contains("lock.release"));
}

#[tokio::test]
async fn what_is_not_the_protocol_is_refused_in_its_words() {
    let place = Place::new().with("fleet_lock.slots=2");
    let _service = place.start().await;
    let good = |id: &str, group: &str| json!({"client_params": {"id": id, "group": group}}).to_string();
    let long = "a".repeat(129);
    for (body, header, kind) in [
        (good("a", "g"), false, "missing_fleet_lock_header"),
        (String::new(), true, "invalid_client_params"),
        ("{}".to_owned(), true, "invalid_client_params"),
        (good("", "g"), true, "invalid_client_params"),
        (good("a", "g/h"), true, "invalid_client_params"),
        (good(&long, "g"), true, "invalid_client_params"),
        (good("a", &long), true, "invalid_client_params"),
    ] {
        let (status, told) = send(&place, "pre-reboot", body.clone(), header).await;
        assert_eq!((status, &told["kind"]), (StatusCode::BAD_REQUEST, &json!(kind)), "{body}: {told}");
    }
    let (status, told) = send(&place, "pre-reboot", " ".repeat(20_000), true).await;
    assert_eq!((status, &told["kind"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("invalid_client_params")));
    let mut seen = Vec::new();
    for id in ["a", "b", "c"] {
        seen.push(ask(&place, "pre-reboot", id).await.0);
    }
    assert_eq!(seen, [StatusCode::OK, StatusCode::OK, StatusCode::CONFLICT], "two slots");
}

#[tokio::test]
async fn a_client_that_makes_up_groups_gets_no_more_than_its_share() {
    let place = Place::new();
    let _service = place.start().await;
    let ask = async |group: &str| {
        let body = json!({"client_params": {"id": "a", "group": group}}).to_string();
        send(&place, "pre-reboot", body, true).await
    };
    for number in 0..32 {
        assert_eq!(ask(&number.to_string()).await.0, StatusCode::OK, "{number}");
    }
    let (status, told) = ask("another").await;
    assert_eq!((status, &told["kind"]), (StatusCode::TOO_MANY_REQUESTS, &json!("too_many_leases")), "{told}");
    let value = told["value"].as_str().unwrap();
    assert!(value.contains("from 127.0.0.1") && value.contains("`nkd lock list`"), "{value}");
    assert_eq!(ask("7").await.0, StatusCode::OK, "what it has it keeps");
    // Another client is not held up.
    let other = place.https().local_address(std::net::IpAddr::from([127, 0, 0, 2])).build().unwrap();
    let request = other.post(place.api_url("/v1/pre-reboot")).header("fleet-lock-protocol", "true");
    let body = json!({"client_params": {"id": "b", "group": "another"}}).to_string();
    assert_eq!(request.body(body).send().await.unwrap().status(), StatusCode::OK);
}
