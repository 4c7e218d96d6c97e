//! The disk of the state folder runs full: the service says so, goes on, and recovers.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::harness::{Place, eventually};
use super::node;

/// A small file system in memory; gone when dropped.
pub struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    pub fn mount(at: &'a Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        mount(Some("nkd-test"), at, Some("tmpfs"), MsFlags::empty(), Some("size=16m")).expect("mounting takes root");
        Self(at)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

/// Takes every free byte; true when there was one.
fn fill(file: &Path) -> bool {
    use std::io::Write;
    let mut file = std::fs::File::options().create(true).append(true).open(file).unwrap();
    let (mut size, mut wrote) = (1 << 16, false);
    while size > 0 {
        match file.write(&vec![0; size]) {
            Ok(n) if n > 0 => wrote = true,
            _ => size /= 4,
        }
    }
    wrote
}

#[tokio::test]
#[ignore = "namespace tier: needs root"]
async fn a_full_disk_is_said_and_survived() {
    let place = Place::new();
    let state = place.state();
    let _small = Small::mount(&state);
    let service = place.start().await;
    place.import().await;
    let api = place.admin();
    api.declare("n1", "52:54:00:0d:00:01").await;
    let live = node::first_stage(&place, &node::script(&place, "52:54:00:0d:00:01").await).await;
    let ballast = state.join("ballast");
    fill(&ballast);
    // The log of the database has room of its own that is used up first.
    let mut n = 1;
    let (status, body) = eventually("a change is refused", async || {
        n += 1;
        fill(&ballast);
        let order = json!({"name": format!("n{n}"), "identity": {"macs": [format!("52:54:00:0d:01:{:02x}", n % 256)]}, "labels": {"fill": "x".repeat(100)}});
        let (status, body) = api.call(Method::POST, "/api/v1/machines", Some(&order)).await;
        (!status.is_success()).then_some((status, body))
    })
    .await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert!(body["message"].as_str().unwrap().contains("full"), "{body}");
    // A machine that asks is told to come again; Ignition too, and its token is not lost.
    let answer = eventually("the boot plane has no room either", async || {
        fill(&ballast);
        let answer = reqwest::get(place.boot_url("/boot.ipxe?mac=52:54:00:0d:00:01&arch=x86_64")).await.unwrap();
        (answer.status() != StatusCode::OK).then_some(answer)
    })
    .await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));
    let fetched = node::fetch(&live).await;
    assert_eq!(fetched.unwrap_err().0, StatusCode::SERVICE_UNAVAILABLE);
    // Reading goes on.
    assert_eq!(api.machine("n1").await["generation"], 1);
    let before = api.get("/api/v1/machines").await.as_array().unwrap().len();

    std::fs::remove_file(&ballast).unwrap();
    eventually("changes are taken again", async || {
        let (status, _) =
            api.call(Method::POST, "/api/v1/machines/n1/accept", Some(&json!({"labels": {"a": "b"}}))).await;
        status.is_success().then_some(())
    })
    .await;
    assert_eq!(api.get("/api/v1/machines").await.as_array().unwrap().len(), before);
    assert!(api.machine("n1").await["stopped"].is_null());
    node::install(&place, "52:54:00:0d:00:01").await;
    drop(service);
    let _again = place.start().await;
    assert_eq!(place.admin().machine("n1").await["phase"]["name"], "enrolled");
}
