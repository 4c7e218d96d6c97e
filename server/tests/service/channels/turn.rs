//! Orders wait for one another, say so, and are called off by who leaves before their turn.

use std::fs::File;
use std::process::{Child, Stdio};

use super::Builder;
use super::harness::{Place, ended, eventually};
use super::stop::{Gate, publisher};

/// A command that waits, and what it says meanwhile.
struct Waiting {
    client: Child,
    name: String,
}

impl Waiting {
    /// Begins when the service says that it waits.
    async fn new(place: &Place, name: &str, words: &[&str]) -> Self {
        let said = File::create(place.dir.path().join(name)).unwrap();
        let mut client = place.client(&place.admin_token());
        let client = client.arg("channel").args(words).stdout(Stdio::null()).stderr(said).spawn().unwrap();
        let waits = format!("{name} is waiting for its turn");
        eventually("it waits", async || place.log_text().contains(&waits).then_some(())).await;
        Self { client, name: name.into() }
    }

    async fn says(&self, place: &Place, what: &str) {
        let said = || std::fs::read_to_string(place.dir.path().join(&self.name)).unwrap();
        eventually(what, async || said().contains(what).then_some(())).await;
    }
}

#[tokio::test]
async fn who_leaves_before_the_turn_of_an_order_has_called_it_off_and_who_stays_is_told_what_is_waited_for() {
    let place = Place::new();
    let builder = Builder::new(&place);
    builder.build("1", b"one", &[]);
    let before = place.start().await;
    for channel in ["other", "second"] {
        place.ok(&["channel", "publish", channel, "--ostree", &builder.path("repo")]);
    }
    drop(before);
    let gate = Gate::new(&place);
    let _service = gate.start(&place).await;
    builder.build("2", b"two", &[]);
    let mut first = publisher(&place, &builder);
    gate.waiting().await;

    let repo = builder.path("repo");
    let leaving = [
        Waiting::new(&place, "channel.publish of `second`", &["publish", "second", "--ostree", &repo]).await,
        Waiting::new(&place, "channel.promote of `other`", &["promote", "other", "--to", "third"]).await,
        Waiting::new(&place, "channel.prune of `second`", &["prune", "second", "--keep", "1"]).await,
        Waiting::new(&place, "channel.delete of `other`", &["delete", "other", "--confirm", "other"]).await,
    ];
    let mut staying = Waiting::new(&place, "channel.prune of `other`", &["prune", "other", "--keep", "1"]).await;
    let told = "waiting for its turn: channel.publish of `stable` comes to its end first";
    for waiting in &leaving[..2] {
        waiting.says(&place, told).await;
    }
    for waiting in leaving[2..].iter().chain([&staying]) {
        waiting.says(&place, "waiting: the service carries out one order for its channels at a time").await;
    }
    let count = leaving.len();
    for mut waiting in leaving {
        waiting.client.kill().unwrap();
        waiting.client.wait().unwrap();
    }
    let called_off = async || {
        let trail = place.ok(&["audit"]);
        let lines = trail.matches("failed: its client went away before its turn came: nothing was done");
        (lines.count() == count).then_some(())
    };
    eventually("all are called off", called_off).await;

    gate.open().await;
    assert!(ended(&mut first).success() && ended(&mut staying.client).success(), "{}", place.log_text());
    let list = place.ok(&["channel", "list", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let releases = |name: &str| {
        let channel = list.as_array().unwrap().iter().find(|channel| channel["name"] == name);
        channel.map(|channel| channel["releases"].as_array().unwrap().len())
    };
    let names = ["stable", "other", "second", "third"];
    assert_eq!(names.map(releases), [Some(1), Some(1), Some(1), None], "{list:#}");
}
