//! Upgrades, as far as that goes without a cluster that answers: what is refused, by whom, and what is written down.

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use nkd_api::agent::ReportEvent;
use nkd_api::channel::Channel;
use nkd_api::facts::Facts;
use nkd_api::machine::Identity;
use nkd_api::upgrade::UpgradeOrder;
use nkd_api::user::{Role, User};
use nkd_server::cluster::record::Record;
use nkd_server::cluster::upgrade::follow;
use nkd_server::fleet::secret;
use nkd_server::machine::lifecycle::Input;
use nkd_server::store::RowEffects;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::cluster::{file, refused, write};
use super::harness::Place;
use super::in_process::{Bench, bench};

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
    for (field, value) in [("maxUnavailable", 0), ("drainSeconds", 0)] {
        let none = json!({"dryRun": true, field: value});
        let (_, body) = vera.call(Method::POST, "/api/v1/clusters/rack7/upgrades", Some(&none)).await;
        let said = body.to_string();
        assert!(said.contains(field) && said.contains("give at least 1"), "{body:#}");
    }
    let audit = place.ok(&["audit"]);
    assert!(audit.contains("cluster.upgrade") && audit.contains("refused"), "{audit}");
}

/// A channel of four releases: the second is a dead end, the third a barrier whose rollout has only begun.
async fn four_releases(bench: &Bench) -> String {
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap();
    let release = |number: u32| {
        json!({"number": number, "version": format!("{number}.0"), "commit": format!("{number}").repeat(64),
            "reference": "lab", "publishedAt": now})
    };
    let mut releases = [1, 2, 3, 4].map(release);
    releases[1]["deadEnd"] = "it eats disks".into();
    releases[2]["barrier"] = true.into();
    releases[2]["rolloutMinutes"] = (48 * 60).into();
    let channel = json!({"name": "stable", "profile": "lab", "architecture": "x86_64", "releases": releases});
    let channel: Channel = serde_json::from_value(channel).unwrap();
    bench.service.registry.store().save_channel(&channel, 0).await.unwrap();
    "1".repeat(64)
}

async fn answer(bench: &Bench, path: &str) -> Value {
    let request = Request::get(path).header("Authorization", "Bearer token-of-vera");
    let answer = bench.send(request, Body::empty()).await;
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// What `nkd upgrade explain` prints of a machine.
async fn explained(bench: &Bench, machine: &str) -> Vec<String> {
    let explained = answer(bench, &format!("/api/v1/machines/{machine}/upgrade")).await;
    serde_json::from_value(explained["sentences"].clone()).unwrap()
}

#[tokio::test]
async fn a_node_that_updates_itself_is_told_why_no_edge_leads_it_on() {
    let bench = bench().await;
    let store = bench.service.registry.store();
    let user = User { name: "vera".into(), role: Role::Viewer, created_at: OffsetDateTime::now_utc() };
    store.create_user(&user, &secret::digest("token-of-vera")).await.unwrap();
    let commit = four_releases(&bench).await;
    // It is seen at the address that it asks from, as a machine that has no agent of ours and no cluster.
    let seen = Identity { macs: vec!["52:54:00:aa:09:01".parse().unwrap()], ..Identity::default() };
    bench.service.registry.sighted(seen, Some("127.0.0.1".parse().unwrap()), "test", false).await.unwrap();
    let before = explained(&bench, "n1").await;
    assert_eq!(before, ["it has not said which commit it runs", "it belongs to no cluster"]);

    // As zincati does: under a name of its own, and rather late than early.
    let poll = async |more: &str| {
        let query = format!("/v1/graph?stream=stable&basearch=x86_64&os_checksum={commit}&node_uuid=0a0b{more}");
        answer(&bench, &query).await
    };
    let graph = poll("&rollout_wariness=0.500000").await;
    assert_eq!(graph["edges"], json!([[2, 3]]), "nothing leads it on: {graph:#}");
    let told = explained(&bench, "n1").await;
    let rollout = "its rollout has reached 0 % of the nodes, and this one comes at 50 %";
    let edges = [
        "release 2 (2.0): it is a dead end: it eats disks".to_owned(),
        format!("release 3 (3.0): {rollout}"),
        "release 4 (4.0): release 3 is a barrier and comes first".to_owned(),
    ];
    assert_eq!(told[0], format!("it runs the commit {commit}"));
    assert!(told[1].contains("the channel stable on ") && told[1].contains("as 0a0b"), "{told:#?}");
    assert!(told[1].ends_with("a rollout wariness of 0.5"), "{told:#?}");
    assert_eq!(told[3], "by the channel stable: stays at release 1", "{told:#?}");
    assert_eq!(told[4..], edges);
    let by_channel = answer(&bench, "/api/v1/machines/n1/updates?channel=stable").await;
    assert_eq!((&by_channel["release"], &by_channel["newer"][1]["closed"]), (&json!(1), &json!(rollout)));

    // What it says next counts: it leads where the graph leads.
    assert_eq!(poll("&rollout_wariness=0").await["edges"], json!([[0, 2], [2, 3]]));
    assert_eq!(explained(&bench, "n1").await[5], "release 3 (3.0): open");

    // Its cluster names no channel either, and it has asked for none: those that hold what its agent says that it runs.
    let identity = Identity { macs: vec!["52:54:00:aa:09:02".parse().unwrap()], ..Identity::default() };
    let quiet = bench.service.registry.declare(Some("n2".into()), identity, "test").await.unwrap();
    let cluster = json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "rack7"},
        "spec": {"kubernetes": {"version": "v1.20.2"}, "pools": [{"name": "cp", "role": "control-plane",
            "machines": [{"mac": "52:54:00:aa:09:02", "hostname": "cp1", "ip": "192.0.2.11/24"}]}]}});
    let now = OffsetDateTime::now_utc();
    let mut record = Record::new(Uuid::new_v4(), serde_json::from_value(cluster).unwrap(), now);
    record.members[0].machine = Some(quiet.id);
    store.save_cluster(&record, 0, &[], "test", now).await.unwrap();
    let says = async |commit: &str| {
        let facts = Facts { booted_deployment: Some(commit.to_owned()), ..Facts::default() };
        let input = Input::Reported(ReportEvent::Facts { facts: Box::new(facts) });
        bench.service.registry.apply(quiet.id, input, RowEffects::default()).await.unwrap();
    };
    let order = UpgradeOrder { channel: Some("stable".into()), dry_run: true, ..UpgradeOrder::default() };
    let refused = follow::start(&bench.service, &record, &order, "test").await.unwrap_err().to_string();
    assert!(refused.contains("rack7 has not come up yet: `nkd cluster status rack7 --watch`"), "{refused}");
    says(&commit).await;
    let told = explained(&bench, "n2").await;
    assert_eq!(told[1..3], ["rack7 was never upgraded", "by the channel stable: stays at release 1"]);
    assert!(told[3] == edges[0] && told[5] == edges[2] && told.len() == 6, "{told:#?}");
    says(&"9".repeat(64)).await;
    assert!(explained(&bench, "n2").await[2].contains("no channel leads it anywhere"));
}
