//! What the list says and the disk does not have, and the other way round.

use std::fs;

use serde_json::{Value, json};

use super::harness::{Place, eventually};
use super::prune::{has, repo};
use super::{Builder, good, object, publish, refused};

fn shown(place: &Place) -> Value {
    serde_json::from_str(&place.ok(&["channel", "show", "stable", "-o", "json"])).unwrap()
}

async fn edges(place: &Place) -> Value {
    let address = place.api_url("/v1/graph?basearch=x86_64&stream=stable&os_checksum=1");
    let answer = place.https().build().unwrap().get(address).send().await.unwrap();
    answer.json::<Value>().await.unwrap()["edges"].clone()
}

/// As after a backup was restored, which holds the list alone.
#[tokio::test]
async fn nothing_leads_to_a_release_whose_commit_is_lost_until_it_is_published_again() {
    let place = Place::new();
    let service = place.start().await;
    let builder = Builder::new(&place);
    let mut commits = Vec::new();
    for number in 1..=3_u8 {
        commits.push(builder.build(&number.to_string(), &[number; 9], &[]));
        publish(&place, &builder, &[]);
    }
    assert_eq!(edges(&place).await, json!([[0, 2], [1, 2]]));
    service.kill();
    fs::remove_dir_all(place.state().join("ostree")).unwrap();

    let _service = place.start().await;
    assert_eq!(edges(&place).await, json!([]));
    assert_eq!(shown(&place)["missing"], json!([1, 2, 3]));
    let table = place.ok(&["channel", "show", "stable"]);
    assert_eq!(table.matches("missing: publish it again").count(), 3, "{table}");
    assert!(place.ok(&["channel", "list"]).contains("3 (missing)"));
    refused(&place.cli(&["channel", "promote", "stable", "--to", "other"]), "is not here: publish it again first");

    assert_eq!(publish(&place, &builder, &["--ref", &commits[1]])["number"], 2);
    assert_eq!(shown(&place)["missing"], json!([1, 3]));
    assert_eq!(edges(&place).await, json!([[0, 1]]), "who runs release 1 is led past what is lost");
    publish(&place, &builder, &[]);
    publish(&place, &builder, &["--ref", &commits[0]]);
    assert_eq!(edges(&place).await, json!([[0, 2], [1, 2]]));
    assert!(shown(&place).get("missing").is_none());
}

/// Killed while it published: half a commit, what was on its way to it, and a whole commit that never came on the list.
#[tokio::test]
async fn what_a_killed_publication_left_goes_and_is_no_release() {
    let place = Place::new().with("channels.grace=1");
    let service = place.start().await;
    let builder = Builder::new(&place);
    let first = builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    service.kill();
    let ours = place.state().join("ostree/lab");
    let whole = builder.build("2", b"two", &[]);
    let half = builder.build("3", b"three", &[]);
    for commit in [&whole, &half] {
        good("ostree", &["pull-local", &repo(&place), &builder.path("repo"), commit]);
    }
    good("ostree", &["refs", &repo(&place), "--create=nkd/stable/2", &whole]);
    // What only this one has has come, and one file of it has not.
    fs::write(ours.join("state").join(format!("{half}.commitpartial")), b"").unwrap();
    let staged = ours.join("tmp/staging-0-x");
    fs::create_dir_all(staged.join("ab")).unwrap();
    fs::write(staged.join("ab/cd.filez"), b"half of it").unwrap();
    fs::write(ours.join("tmp/staging-0-x-lock"), b"").unwrap();

    let _service = place.start().await;
    eventually("the half is gone", async || (!object(&ours, &half, "commit").exists()).then_some(())).await;
    eventually("so is the other one, as what is retired", async || (!has(&place, &whole)).then_some(())).await;
    eventually("and what was in them", async || {
        let said = good("ostree", &["prune", &repo(&place), "--refs-only", "--no-prune"]);
        (said.contains("Would delete: 0 objects") || said.contains("No unreachable objects")).then_some(())
    })
    .await;
    assert!(!staged.exists() && !ours.join("tmp/staging-0-x-lock").exists());
    assert!(has(&place, &first));
    good("ostree", &["fsck", &repo(&place)]);
    let channel = shown(&place);
    assert_eq!((channel["releases"].as_array().unwrap().len(), channel.get("missing")), (1, None));
    assert_eq!(publish(&place, &builder, &[])["number"], 3, "its ref had number 2");
    good("ostree", &["fsck", &repo(&place)]);
}

/// Half a commit is none: it is taken again, whole.
#[tokio::test]
async fn a_commit_that_is_here_by_half_is_fetched_again() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let commit = builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    let ours = place.state().join("ostree/lab");
    let listed = good("ostree", &["ls", &repo(&place), "-C", &commit, "/usr/bin/system"]);
    let file = listed.split_whitespace().find(|word| word.len() == 64).unwrap();
    fs::remove_file(object(&ours, file, "filez")).unwrap();
    fs::write(ours.join("state").join(format!("{commit}.commitpartial")), b"").unwrap();
    assert_eq!(publish(&place, &builder, &[])["number"], 1);
    good("ostree", &["fsck", &repo(&place)]);
}

#[tokio::test]
async fn what_is_older_than_the_newest_is_published_only_if_that_is_meant() {
    let place = Place::new();
    let _service = place.start().await;
    let builder = Builder::new(&place);
    let path = builder.path("repo");
    let order = |more: &[&str]| place.cli(&[&["channel", "publish", "stable", "--ostree", &path], more].concat());
    builder.build("1.2", b"one", &["--timestamp=2026-02-01 00:00:00 +0000"]);
    publish(&place, &builder, &["--kubernetes", "v1.21.0"]);

    builder.build("1.3", b"two", &["--timestamp=2026-02-02 00:00:00 +0000"]);
    let led_back = "every system of the channel `stable` would be led back: ";
    let older = |why: &str| format!("{led_back}{why}; say --allow-downgrade if that is meant");
    refused(&order(&["--kubernetes", "v1.20.9"]), &older("it holds Kubernetes v1.20.9, and release 1 holds v1.21.0"));
    refused(&order(&["--version", "1.1.9"]), &older("its version 1.1.9 is lower than 1.2 of release 1"));
    builder.build("1.3", b"three", &["--timestamp=2026-01-31 00:00:00 +0000"]);
    refused(&order(&[]), "its commit was made at 2026-01-31");
    assert_eq!(shown(&place)["releases"].as_array().unwrap().len(), 1, "nothing was published");
    // A newest one that is a dead end is to be replaced, by whatever is newer than the one before.
    let good_one = publish(&place, &builder, &["--allow-downgrade", "--kubernetes", "v1.20.9"]);
    assert_eq!((&good_one["number"], &good_one["kubernetes"]), (&2.into(), &"v1.20.9".into()));
    place.ok(&["channel", "mark", "stable", "2", "--dead-end", "it was a mistake"]);
    builder.build("1.2.1", b"four", &["--timestamp=2026-02-03 00:00:00 +0000"]);
    assert_eq!(publish(&place, &builder, &["--kubernetes", "v1.21.1"])["number"], 3);

    place.ok(&["channel", "promote", "stable", "3", "--to", "production"]);
    let back = ["channel", "promote", "stable", "1", "--to", "production"];
    refused(
        &place.cli(&back),
        "every system of the channel `production` would be led back: it holds Kubernetes v1.21.0",
    );
    place.ok(&[&back[..], &["--allow-downgrade"]].concat());
}

/// The first one of its profile, at that: no channel names it yet.
#[tokio::test]
async fn what_is_left_of_a_first_publication_goes_too_and_holds_up_no_other_profile() {
    let place = Place::new().with("channels.grace=1");
    let service = place.start().await;
    let builder = Builder::new(&place);
    builder.build("1", b"one", &[]);
    publish(&place, &builder, &[]);
    service.kill();
    let other = place.state().join("ostree/fedora-coreos");
    let flag = format!("--repo={}", other.display());
    good("ostree", &["init", &flag, "--mode=archive"]);
    let half = builder.build("2", b"two", &[]);
    good("ostree", &["pull-local", &flag, &builder.path("repo"), &half]);
    fs::write(other.join("state").join(format!("{half}.commitpartial")), b"").unwrap();
    // A summary that cannot be written, of the profile that comes before.
    fs::create_dir_all(other.join("summary/in-the-way")).unwrap();
    fs::remove_file(place.state().join("ostree/lab/summary")).unwrap();

    let _service = place.start().await;
    eventually("the half is gone", async || (!object(&other, &half, "commit").exists()).then_some(())).await;
    eventually("the other one has its summary", async || {
        place.state().join("ostree/lab/summary").is_file().then_some(())
    })
    .await;
    assert!(good("find", &[other.join("objects").to_str().unwrap(), "-type", "f"]).is_empty());
    fs::remove_dir_all(other.join("summary")).unwrap();
    eventually("it is written when it can be", async || other.join("summary").is_file().then_some(())).await;
}

/// As `ostree fsck` marks a commit that has lost a file.
#[tokio::test]
async fn the_half_of_a_release_stays_until_it_is_published_again_and_is_in_nobodys_way() {
    let place = Place::new().with("channels.grace=1");
    let service = place.start().await;
    let builder = Builder::new(&place);
    for version in ["1", "2"] {
        builder.build(version, version.as_bytes(), &[]);
        publish(&place, &builder, &[]);
    }
    let half = shown(&place)["releases"][1]["commit"].as_str().unwrap().to_owned();
    let ours = place.state().join("ostree/lab");
    let mark = ours.join("state").join(format!("{half}.commitpartial"));
    fs::write(&mark, b"").unwrap();
    eventually("it is seen", async || (shown(&place)["missing"] == json!([2])).then_some(())).await;
    service.kill();
    let _service = place.start().await;
    refused(
        &place.cli(&["channel", "publish", "stable", "--ostree", &builder.path("repo"), "--key", "/nowhere"]),
        "cannot read /nowhere",
    );
    assert_eq!(shown(&place)["missing"], json!([2]));
    assert!(object(&ours, &half, "commit").exists() && mark.exists());
    assert_eq!(publish(&place, &builder, &[])["number"], 2);
    assert!(shown(&place).get("missing").is_none() && !mark.exists());
    good("ostree", &["fsck", &repo(&place)]);

    // One whose commit is gone has no ref, which would be in the way of the summary.
    fs::remove_file(object(&ours, &half, "commit")).unwrap();
    builder.build("3", b"three", &[]);
    assert_eq!(publish(&place, &builder, &[])["number"], 3);
    let refs = good("ostree", &["refs", &repo(&place)]);
    assert!(refs.contains("nkd/stable/3") && !refs.contains("nkd/stable/2"), "{refs}");
    assert!(good("ostree", &["summary", &repo(&place), "-v"]).contains("nkd/stable/3"));
    // And one that is damaged is replaced.
    let newest = shown(&place)["releases"][2]["commit"].as_str().unwrap().to_owned();
    fs::write(object(&ours, &newest, "commit"), [0x5a; 300]).unwrap();
    builder.build("4", b"four", &[]);
    assert_eq!(publish(&place, &builder, &[])["number"], 4);
}
