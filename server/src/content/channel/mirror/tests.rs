//! What becomes of a look at an upstream, with the real ostree.

use std::path::PathBuf;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio_util::sync::CancellationToken;

use super::super::metrics::Metrics;
use super::super::program::run as program;
use super::*;
use crate::store::{Seal, Store};

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(40);

fn ostree(words: &[&str]) -> String {
    String::from_utf8(program("ostree", "ostree", words, b"").unwrap()).unwrap().trim().to_owned()
}

async fn channels(place: &Path) -> Channels {
    let seal = Seal::from_key_file(&place.join("key"), true).unwrap();
    Channels::new(Store::open(place, seal).await.unwrap(), place)
}

fn order(from: &Path) -> MirrorOrder {
    MirrorOrder {
        from: format!("file://{}", from.display()),
        reference: "lab/x86_64/stable".into(),
        unsigned: true,
        ..MirrorOrder::default()
    }
}

/// Waits until something is so.
async fn eventually(mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

/// The look comes to its end while the channel is told to follow another upstream.
#[tokio::test]
async fn what_came_from_an_upstream_that_is_followed_no_more_is_not_published() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { place.path().join(name) };
    let channels = channels(place.path()).await;
    let repo = format!("--repo={}", path("up").display());
    std::fs::create_dir(path("tree")).unwrap();
    ostree(&["init", &repo, "--mode=archive"]);
    let tree = format!("--tree=dir={}", path("tree").display());
    let branch = "--branch=lab/x86_64/stable";
    let commit = ostree(&[
        "commit",
        &repo,
        branch,
        &tree,
        "--add-metadata-string=version=1",
        "--timestamp=1970-01-01 00:00:00 +0000",
    ]);
    let now = OffsetDateTime::UNIX_EPOCH;
    let publish = |record: Record| {
        let ostree = path("up").display().to_string();
        let channels = &channels;
        async move {
            let order = PublishOrder { ostree, ..PublishOrder::default() };
            channels.publish_from("stable", order, Some(&record), now, |_| {}).await
        }
    };
    channels.follow("stable", order(&path("up")), now).await.unwrap();
    let before = channels.followed("stable").await.unwrap().0;
    channels.follow("stable", order(&path("other")), now).await.unwrap();
    let refused = publish(before.clone()).await;
    assert!(matches!(refused, Err(ChannelError::FollowsAnother(_))), "{refused:?}");
    assert!(channels.store.channel("stable").await.unwrap().is_none());
    channels.unfollow("stable").await.unwrap();
    assert!(matches!(publish(before.clone()).await, Err(ChannelError::FollowsAnother(_))));

    // The same again, looked at at other times.
    let again = MirrorOrder { every_minutes: Some(7), ..order(&path("up")) };
    channels.follow("stable", again, now).await.unwrap();
    assert_eq!(publish(before).await.unwrap().commit, commit);
}

/// The store says all the while that it is due.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_cannot_be_written_down_is_not_begun_again_at_once() {
    let place = tempfile::tempdir().unwrap();
    let mut registry = Registry::default();
    let stop = CancellationToken::new();
    let channels = channels(place.path()).await.with_metrics(Metrics::register(&mut registry));
    let channels = Arc::new(channels.with_stop(stop.clone()));
    for name in ["full", "other"] {
        channels.follow(name, order(&place.path().join("nowhere")), OffsetDateTime::UNIX_EPOCH).await.unwrap();
    }
    let database = SqliteConnectOptions::new().filename(place.path().join("nkd.db"));
    let mut database = SqliteConnection::connect_with(&database).await.unwrap();
    let full = "CREATE TRIGGER no_room BEFORE UPDATE ON channel_mirror WHEN NEW.name = 'full'
         BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END";
    sqlx::query(full).execute(&mut database).await.unwrap();
    let failed = |name: &str| {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let line = format!("nkd_channel_mirror_looks_total{{channel=\"{name}\",result=\"failed\"}} ");
        text.lines().find_map(|text| text.strip_prefix(&line)).map_or(0, |count| count.parse::<u32>().unwrap())
    };
    let running = tokio::spawn(run(Arc::clone(&channels)));
    eventually(async || failed("full") == 1 && failed("other") == 1).await;
    // The other one is looked at several times more meanwhile, each of which takes as long.
    for times in 2..7 {
        eventually(async || channels.look_now("other", OffsetDateTime::UNIX_EPOCH).await.is_ok()).await;
        eventually(async || failed("other") >= times).await;
    }
    assert_eq!(failed("full"), 1);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_look_that_breaks_leaves_its_channel_alone_for_a_while() {
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    assert_eq!(unbroken(async { panic!("of the test") }, "stable", hour).await, minute);
    assert_eq!(unbroken(async { Duration::ZERO }, "stable", hour).await, Duration::ZERO);
}

#[tokio::test]
async fn what_came_of_an_upstream_goes_when_nobody_needs_it_any_more() {
    let place = tempfile::tempdir().unwrap();
    for name in [".mirror-followed", ".mirror-left/repo", "lab"] {
        std::fs::create_dir_all(place.path().join(name)).unwrap();
    }
    upstream::tidy(place.path(), ["followed".to_owned()].into()).await;
    let names = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<BTreeSet<_>>(), [".mirror-followed".into(), "lab".into()].into());
    upstream::tidy(&place.path().join("nowhere"), BTreeSet::new()).await;
}

#[test]
#[expect(clippy::disallowed_methods, reason = "files of a test")]
fn a_file_that_is_no_authority_of_an_upstream_is_said_to_be_none() {
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let good = rcgen::generate_simple_self_signed(["up.example".to_owned()]).unwrap().cert.pem();
    assert_eq!(authority_of(&file("good", &good)).unwrap(), good);
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (path, why) in [
        (file("words", "no certificate"), "no certificate that reads"),
        (file("half", &format!("{good}{garbage}")), "no certificate that reads"),
        (file("key", "-----BEGIN PGP PUBLIC KEY BLOCK-----"), "no certificate that reads"),
        (place.path().join("gone"), "No such file"),
        (place.path().into(), "it is no file"),
    ] {
        let told = authority_of(&path).unwrap_err().to_string();
        let start = format!("upstream-ca: {} is no CA certificate: ", path.display());
        assert!(told.starts_with(&start) && told.contains(why), "{told}");
    }
}
