//! A release of one channel becomes a release of another.

use serde_json::Value;

use super::{Builder, REF, good, harness::Place, pull, refused, system};

fn publish(place: &Place, builder: &Builder, more: &[&str]) {
    let repo = builder.path("repo");
    place.ok(&[&["channel", "publish", "testing", "--ostree", &repo], more].concat());
}

fn promote(place: &Place, words: &[&str]) -> Value {
    let all = [&["channel", "promote", "testing"], words, &["--to", "stable", "-o", "json"]].concat();
    serde_json::from_str(&place.ok(&all)).unwrap()
}

fn releases(place: &Place, channel: &str) -> Value {
    let shown = place.ok(&["channel", "show", channel, "-o", "json"]);
    serde_json::from_str::<Value>(&shown).unwrap()["releases"].clone()
}

#[tokio::test]
async fn a_release_is_promoted_as_it_is_and_once_however_often_it_is_said() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let one = builder.build("1", b"one", &[]);
    publish(&place, &builder, &["--kubernetes", "v1.20.2", "--notes", "the first", "--barrier", "--rollout", "2h"]);
    let two = builder.build("2", b"two", &[]);
    publish(&place, &builder, &[]);

    let first = promote(&place, &["1", "--rollout", "48h"]);
    let tested = &releases(&place, "testing")[0];
    for same in ["commit", "version", "kubernetes", "notes", "reference"] {
        assert_eq!(first[same], tested[same], "{same}");
    }
    assert_eq!((&first["number"], &first["commit"]), (&1.into(), &one.clone().into()));
    assert_eq!(first["promotedFrom"], serde_json::json!({"channel": "testing", "release": 1}));
    assert_eq!((&first["rolloutMinutes"], &first["barrier"]), (&2880.into(), &Value::Null), "its own marks");
    assert_eq!(promote(&place, &["1"]), first, "the same again is no release");

    let second = promote(&place, &[]);
    assert_eq!((&second["number"], &second["commit"]), (&2.into(), &two.clone().into()), "the newest");
    assert_eq!(promote(&place, &["1"]), first, "an order that comes late takes nobody back");
    assert_eq!(releases(&place, "stable").as_array().unwrap().len(), 2);
    let channel: Value = serde_json::from_str(&place.ok(&["channel", "show", "stable", "-o", "json"])).unwrap();
    assert_eq!((&channel["profile"], &channel["architecture"]), (&"lab".into(), &"x86_64".into()));
    let trail = place.ok(&["audit"]);
    assert!(trail.contains("channel.promote") && trail.contains("\"to\":\"stable\""), "{trail}");

    // Nodes find it, and the ref that it came from stays where its builds are.
    let repo = system(&place, "node");
    assert!(pull(&repo, &one).status.success());
    let refs = good("ostree", &["remote", "refs", &repo, "nkd"]);
    assert!(refs.contains("nkd:nkd/stable/1") && refs.contains("nkd:nkd/testing/1"), "{refs}");
    let three = builder.build("3", b"three", &[]);
    publish(&place, &builder, &[]);
    place.ok(&["channel", "promote", "testing", "2", "--to", "old"]);
    assert!(pull(&repo, REF).status.success());
    assert_eq!(good("ostree", &["rev-parse", &repo, &format!("nkd:{REF}")]).trim(), three);
}

#[tokio::test]
async fn what_cannot_be_promoted_says_why() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    let order = |words: &[&str]| place.cli(&[&["channel", "promote"], words].concat());
    refused(&order(&["testing", "--to", "testing"]), "that is the channel itself");
    refused(&order(&["testing", "--to", "No Name"]), "to: ");
    refused(&order(&["testing", "7", "--to", "stable"]), "no release 7 in the channel `testing`");
    refused(&order(&["none", "--to", "stable"]), "there is no channel `none`");

    place.ok(&["channel", "mark", "testing", "1", "--dead-end", "it eats disks"]);
    refused(
        &order(&["testing", "1", "--to", "stable"]),
        "release 1 of the channel `testing` is a dead end: it eats disks",
    );
    refused(&place.cli(&["channel", "show", "stable"]), "there is no channel `stable`");
    place.ok(&["channel", "mark", "testing", "1", "--dead-end", ""]);
    place.ok(&["channel", "promote", "testing", "--to", "stable"]);
    place.ok(&["channel", "mark", "stable", "1", "--dead-end", "not on this hardware"]);
    refused(
        &order(&["testing", "--to", "stable"]),
        "release 1 of the channel `stable` is a dead end: not on this hardware",
    );

    let repo = builder.path("repo");
    place.ok(&["channel", "publish", "arm", "--ostree", &repo, "--architecture", "aarch64"]);
    refused(&order(&["testing", "--to", "arm"]), "the channel `arm` is of lab for aarch64");
    let viewer: Value =
        serde_json::from_str(&place.ok(&["user", "create", "eve", "--role", "viewer", "-o", "json"])).unwrap();
    let words = ["channel", "promote", "testing", "--to", "stable"];
    refused(&place.cli_as(viewer["token"].as_str().unwrap(), &words), "this takes the role operator");
}
