//! What is tried again, and what a clock that is set does to releases that are retired: nothing.
#![expect(clippy::disallowed_methods, reason = "there is no other way to get an instant, and it makes a file")]

use std::net::IpAddr;
use std::path::Path;

use serde_json::json;

use super::super::polled::Polled;
use super::super::unknown::Who;
use super::*;
use crate::store::{Seal, Store};

const HOUR: Duration = Duration::from_secs(3600);

async fn channels(place: &Path) -> Channels {
    let seal = Seal::from_key_file(&place.join("key"), true).unwrap();
    Channels::new(Store::open(place, seal).await.unwrap(), place).with_grace(HOUR)
}

fn date() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

/// The commits of releases that are off the list, and not gone.
async fn waiting(channels: &Channels) -> Vec<String> {
    channels.store.retired().await.unwrap().into_iter().map(|retired| retired.commit).collect()
}

#[test]
fn what_goes_wrong_again_is_tried_more_seldom_and_told_when_it_changes() {
    let (mut trouble, tick) = (Trouble::default(), Duration::from_secs(60));
    assert_eq!(trouble.rest(tick), tick);
    assert!(!trouble.is_over());
    assert!(trouble.is_news("renameat(./tmp.uvsHSZ, summary): the disk is full"));
    assert_eq!(trouble.rest(tick), tick * 2);
    assert!(!trouble.is_news("renameat(./tmp.jTUs91, summary): the disk is full"));
    assert_eq!(trouble.rest(tick), tick * 4);
    assert!(trouble.is_news("it is read-only"));
    for _ in 0..40 {
        trouble.is_news("it is read-only");
    }
    assert_eq!(trouble.rest(tick), LONGEST);
    assert!(trouble.is_over() && !trouble.is_over());
    assert_eq!(trouble.rest(tick), tick);
    assert!(trouble.is_news("it is read-only"));
}

#[tokio::test]
async fn what_was_retired_while_the_clock_was_ahead_goes_after_the_grace() {
    let place = tempfile::tempdir().unwrap();
    let (commit, start) = ("ab".repeat(32), Instant::now());
    // In an earlier run.
    let before = channels(place.path()).await;
    before.store.retire_loose("lab", &[&commit], date() + time::Duration::days(400)).await.unwrap();
    before.store.close().await;
    let channels = channels(place.path()).await;
    channels.sweep(date(), start).await.unwrap();
    channels.sweep(date() + HOUR / 2, start + HOUR / 2).await.unwrap();
    assert_eq!(waiting(&channels).await, [commit]);
    channels.sweep(date() + HOUR, start + HOUR).await.unwrap();
    assert_eq!(waiting(&channels).await, [""; 0]);
}

#[tokio::test]
async fn a_clock_that_is_set_forward_ends_neither_the_grace_nor_a_reading() {
    let place = tempfile::tempdir().unwrap();
    let (read, loose, client) = ("ab".repeat(32), "cd".repeat(32), IpAddr::from([10, 0, 0, 1]));
    let objects = place.path().join("ostree/lab/objects/ab");
    std::fs::create_dir_all(&objects).unwrap();
    std::fs::write(objects.join(format!("{}.commit", &read[2..])), "").unwrap();
    let channels = channels(place.path()).await;
    let start = Instant::now();
    let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
    channels.store.retire_loose("lab", &[&read, &loose], date()).await.unwrap();
    channels.sweep(date(), at(0)).await.unwrap();
    let path = format!("objects/ab/{}.commit", &read[2..]);
    let client = channels.reading("lab", client, &path, at(29));
    channels.read("lab", client, at(30));
    // Nothing is being sent: the client applies what it has.
    let jumped = date() + time::Duration::days(1);
    channels.sweep(jumped, at(31)).await.unwrap();
    assert_eq!(waiting(&channels).await, [read.as_str(), loose.as_str()]);
    channels.sweep(jumped, at(60)).await.unwrap();
    assert_eq!(waiting(&channels).await, [read.as_str()], "the other one has had its hour");
    channels.sweep(jumped, at(89)).await.unwrap();
    assert_eq!(waiting(&channels).await, [read.as_str()]);
    channels.sweep(jumped, at(90)).await.unwrap();
    assert_eq!(waiting(&channels).await, [""; 0]);
}

#[tokio::test]
async fn what_strangers_run_is_needed_for_seven_days_whatever_the_clock_says() {
    let place = tempfile::tempdir().unwrap();
    let channels = channels(place.path()).await;
    let commits = ["01", "02", "03"].map(|byte| byte.repeat(32));
    let release = |(number, commit): (usize, &String)| json!({"number": number + 1, "version": "", "commit": commit, "reference": "r", "publishedAt": "2026-01-01T00:00:00Z"});
    let releases: Vec<_> = commits.iter().enumerate().map(release).collect();
    let channel = json!({"name": "stable", "profile": "lab", "architecture": "x86_64", "releases": releases});
    channels.store.save_channel(&serde_json::from_value(channel).unwrap(), 0).await.unwrap();
    // The first one in this run, the second one in one whose clock was ahead, or this one's is behind for a while.
    let (start, days) = (Instant::now(), time::Duration::days);
    let who = Who { node: Some("n1"), address: IpAddr::from([10, 0, 0, 1]) };
    channels.asked("stable", "x86_64", &commits[0], who, (date(), start)).await.unwrap().unwrap();
    let ahead = Polled { commit: commits[1].clone(), node: "n2".into(), at: date() + days(400) };
    channels.store.save_polled("stable", &ahead).await.unwrap();
    channels.sweep(date() - days(4000), start).await.unwrap();
    let retired = async |date, at| {
        let order = PruneOrder { keep: 1, dry_run: true };
        let pruned = channels.prune("stable", order, "ada", (date, at)).await.unwrap();
        pruned.retired.iter().map(|release| release.number).collect::<Vec<_>>()
    };
    assert_eq!(retired(date() + days(6), start + days(6)).await, [0; 0]);
    assert_eq!(retired(date() + days(8), start + days(1)).await, [0; 0], "the first one has asked yesterday");
    // Seven days later all that is known by this run's own clock; what was ahead all the while is one of now.
    channels.sweep(date() + days(8), start + days(8)).await.unwrap();
    assert_eq!(retired(date() + days(8), start + days(8)).await, [1]);
    assert_eq!(retired(date() + days(16), start + days(16)).await, [1, 2]);
}
