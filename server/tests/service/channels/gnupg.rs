//! A host of the service where gpg was not installed.

use std::os::unix::fs::symlink;
use std::process::Stdio;

use super::super::harness::{Running, eventually};
use super::*;

#[tokio::test]
async fn a_host_without_gpg_is_told_what_to_install() {
    let place = Place::new();
    let builder = Builder::new(&place);
    builder.build("1", b"one", &[]);
    let bin = place.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let ostree = good("sh", &["-c", "command -v ostree"]);
    symlink(ostree.trim(), bin.join("ostree")).unwrap();
    let mut command = place.serve();
    let child = command.env("PATH", &bin).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _service = Running { child };
    eventually("the service is ready", async || reqwest::get(place.metrics_url("/readyz")).await.ok()).await;
    let output = place.cli(&["channel", "publish", "stable", "--ostree", &builder.path("repo")]);
    refused(
        &output,
        "nothing was published: cannot run gpgconf: install it on the service's host (package gnupg, or gnupg2 on",
    );
}
