//! A process that dies in the middle, and several at once.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nkd_server::content::image::ImageStore;
use nkd_server::content::image::source::Source;
use url::Url;

use crate::support::*;

const STATE: &str = "NKD_TEST_STATE";
const STREAM: &str = "NKD_TEST_STREAM";
const ROOTFS: &str = "lab-1-live-rootfs.x86_64.img";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_import_shows_nothing_and_the_next_goes_on() {
    if let (Ok(state), Ok(stream)) = (std::env::var(STATE), std::env::var(STREAM)) {
        provider();
        let store = ImageStore::open(state.as_ref()).unwrap();
        let request = request(Source::StreamUrl(Url::parse(&stream).unwrap()));
        let _ = store.import(request, Arc::new(Recorder::default()), NOW).await;
        return;
    }
    let (server, place) = (Server::start().await, Place::new());
    let parts = parts("lab", "1", "x86_64", 1);
    for (name, bytes) in &parts {
        server.put(name, bytes.clone());
    }
    server.put("stream.json", stream(&parts, "1", "x86_64", str::to_owned).to_string());
    server.fail(ROOTFS, [Fault::Hold(123_456)]);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::a_killed_import_shows_nothing_and_the_next_goes_on"])
        .env(STATE, &place.state)
        .env(STREAM, server.join("stream.json").as_str())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let partial = place.state.join("partial").join(sha(&parts[2].1).to_string());
    let limit = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(&partial).map_or(0, |m| m.len()) < 123_456 {
        assert!(Instant::now() < limit, "the child fetched nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.store.list().unwrap(), vec![]);
    let image = place.import(request(Source::StreamUrl(server.join("stream.json")))).await.unwrap();
    place.store.verify(&image.name, &Recorder::default()).unwrap();
    assert_eq!(server.asked(ROOTFS).last().unwrap().range.as_deref(), Some("bytes=123456-"));
    assert_eq!(server.asked(&parts[0].0).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imports_at_once_do_not_meet() {
    let place = Place::new();
    for version in ["1", "2"] {
        for (name, bytes) in parts("lab", version, "x86_64", 1) {
            place.write(&name, &bytes);
        }
    }
    let import = |version: &str| {
        let mut request = place.folder();
        request.version = Some(version.to_owned());
        place.import(request)
    };
    let (a, b, c) = tokio::join!(import("1"), import("2"), import("1"));
    assert_eq!(a.unwrap(), c.unwrap());
    b.unwrap();
    assert_eq!(place.store.list().unwrap().len(), 2);
    for image in place.store.list().unwrap() {
        place.store.verify(&image.name, &Recorder::default()).unwrap();
    }
}
