//! A channel goes, with everything that only it had, and nothing that somebody else needs.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Place, eventually};
use super::prune::{has, repo};
use super::{Builder, REF, good, publish, pull, refused, run, system};
use crate::cluster;

async fn graph(place: &Place, commit: &str) -> (StatusCode, Value) {
    let query = format!("/v1/graph?basearch=x86_64&stream=stable&node_uuid=0a0b&os_checksum={commit}");
    let answer = place.https().build().unwrap().get(place.api_url(&query)).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

fn refs(place: &Place) -> Vec<String> {
    let mut refs: Vec<String> = good("ostree", &["refs", &repo(place)]).lines().map(str::to_owned).collect();
    refs.sort();
    refs
}

#[tokio::test]
async fn a_channel_goes_and_what_another_one_has_stays() {
    let place = Place::new().with("channels.grace=1");
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let one = builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    let two = builder.build("2", b"two", &[]);
    publish(&place, &builder, &["--notes", "the second"]);
    place.ok(&["channel", "promote", "stable", "1", "--to", "slow"]);
    assert_eq!(graph(&place, &one).await.0, StatusCode::OK);
    // One that the channel does not have.
    graph(&place, &"9".repeat(64)).await;
    assert!(place.ok(&["channel", "unknown", "stable"]).contains(&"9".repeat(64)));

    let viewer: Value =
        serde_json::from_str(&place.ok(&["user", "create", "eve", "--role", "viewer", "-o", "json"])).unwrap();
    let words = ["channel", "delete", "stable", "--confirm", "stable"];
    // Nobody is here to type the name.
    let unsaid = place.cli(&words[..3]);
    refused(&unsaid, "channel delete: say `--confirm stable`");
    assert_eq!(unsaid.status.code(), Some(2));
    let other = place.cli(&[&words[..4], &["stabel"]].concat());
    refused(&other, "`stabel` is not `stable`: nothing was changed");
    assert_eq!(other.status.code(), Some(2));
    let sent = place.admin().call(Method::DELETE, "/api/v1/channels/stable?confirm=stabel", None).await;
    assert_eq!(sent.0, StatusCode::BAD_REQUEST, "{}", sent.1);
    refused(&place.cli_as(viewer["token"].as_str().unwrap(), &words), "this takes the role operator");
    let told = place.ok(&words);
    assert!(
        told.starts_with("stable: deleted with its 2 releases; their objects go when nobody reads them\n"),
        "{told}"
    );
    assert!(told.contains("find no graph there any more"), "{told}");
    let (status, body) = graph(&place, &one).await;
    assert_eq!((status, &body["kind"]), (StatusCode::NOT_FOUND, &json!("no_graph")));
    assert_eq!(refs(&place), ["nkd/slow/1"]);
    assert!(!place.ok(&["channel", "list"]).contains("stable"));
    refused(&place.cli(&words), "there is no channel `stable`");
    for verb in ["show", "unknown"] {
        refused(&place.cli(&["channel", verb, "stable"]), "there is no channel `stable`");
    }
    let metrics = reqwest::get(place.metrics_url("/metrics")).await.unwrap().text().await.unwrap();
    assert!(!metrics.contains("nkd_graph_requests_total{channel=\"stable\""), "{metrics}");
    let trail = place.ok(&["audit"]);
    assert!(trail.contains("channel.delete") && trail.contains(&two) && trail.contains("the second"), "{trail}");

    eventually("what only it had is gone", async || (!has(&place, &two)).then_some(())).await;
    assert!(has(&place, &one));
    eventually("the summary is as the list is", async || {
        let summary = good("ostree", &["summary", &repo(&place), "-v"]);
        (!summary.contains(&two) && summary.contains("nkd/slow/1")).then_some(())
    })
    .await;
    good("ostree", &["fsck", &repo(&place)]);
    assert!(pull(&system(&place, "node"), &one).status.success());

    // No number means another commit now, and what the other channel was given from a channel of its name holds nothing of it.
    let three = builder.build("3", b"three", &[]);
    assert_eq!(publish(&place, &builder, &[])["number"], 3);
    builder.build("4", b"four", &[]);
    assert_eq!(publish(&place, &builder, &[])["number"], 4);
    assert!(place.ok(&["channel", "unknown", "stable"]).contains("Nothing found."));
    let (status, body) = graph(&place, &three).await;
    assert_eq!((status, &body["edges"]), (StatusCode::OK, &json!([[0, 1]])));
    assert_eq!(refs(&place), [REF, "nkd/slow/1", "nkd/stable/3", "nkd/stable/4"]);
    let told = place.ok(&["channel", "prune", "stable", "--keep", "1", "--dry-run"]);
    assert!(told.contains("stable: release 3, 3: stays: a system that asks for the graph (0a0b)"), "{told}");
}

#[tokio::test]
async fn a_service_that_is_killed_while_it_deletes_ends_it_at_its_start() {
    let place = Place::new();
    let service = place.start().await;
    let builder = Builder::new(&place);
    let one = builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    place.ok(&["channel", "delete", "stable", "--confirm", "stable"]);
    service.kill();
    // Killed before the refs went; no channel is there that would lead to this repository.
    assert!(has(&place, &one));
    for name in ["nkd/stable/1", REF] {
        good("ostree", &["refs", &repo(&place), "--force", &format!("--create={name}"), &one]);
    }
    let place = place.with("channels.grace=1");
    let _service = place.start().await;
    eventually("its refs are gone", async || refs(&place).is_empty().then_some(())).await;
    eventually("its objects are gone", async || (!has(&place, &one)).then_some(())).await;
    eventually("all that was in them is gone", async || {
        let said = run("ostree", &["prune", &repo(&place), "--refs-only", "--no-prune"]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        (said.contains("Would delete: 0 objects") || said.contains("No unreachable objects")).then_some(())
    })
    .await;
    let two = builder.build("2", b"two", &[]);
    assert_eq!(publish(&place, &builder, &[])["number"], 2, "also after a start");
    assert!(pull(&system(&place, "node"), &two).status.success());
}

#[tokio::test]
async fn a_channel_that_somebody_needs_stays_and_says_who() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    place.import().await;
    builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    let file = cluster::file(&[1], "");
    let path = cluster::write(&place, &file.replace("{profile: lab}", "{profile: lab, channel: stable}"));
    place.ok(&["cluster", "apply", "-f", &path]);
    let url = format!("file://{}", builder.path("repo"));
    place.ok(&["channel", "mirror", "stable", "--from", &url, "--ref", REF, "--insecure-unsigned"]);

    let order = || place.cli(&["channel", "delete", "stable", "--confirm", "stable"]);
    refused(&order(), "the channel `stable` is not deleted: the file of rack7 names it (spec.os.channel)");
    refused(&order(), &format!("; it follows {url}: `nkd channel mirror stable --off` ends that"));
    cluster::write(&place, &file);
    place.ok(&["cluster", "apply", "-f", &path]);
    refused(&order(), "the channel `stable` is not deleted: it follows");
    place.ok(&["channel", "mirror", "stable", "--off"]);
    assert_eq!(place.ok(&["channel", "show", "stable"]).lines().count(), 2, "nothing has changed");
    let words = ["channel", "delete", "stable", "--confirm", "stable", "-o", "json"];
    let told: Value = serde_json::from_str(&place.ok(&words)).unwrap();
    assert_eq!(
        (&told["channel"]["name"], told["channel"]["releases"].as_array().unwrap().len()),
        (&json!("stable"), 1)
    );
    assert!(told["lastAskedAt"].is_null(), "{told}");
}
