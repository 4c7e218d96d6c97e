//! An ostree that checks ed25519 signatures, which Debian's does not: the peer of what the service signs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::cache::Cache;
use super::inputs::Inputs;
use crate::{apt, repository, stage};

const DEBIAN_SUITE: &str = "bookworm";

const BUILD_PACKAGES: [&str; 14] = [
    "bison",
    "dpkg-dev",
    "gcc",
    "libc6-dev",
    "libcurl4-openssl-dev",
    "libext2fs-dev",
    "libglib2.0-dev",
    "libgpgme-dev",
    "liblzma-dev",
    "libsodium-dev",
    "make",
    "pkg-config",
    "xz-utils",
    "zlib1g-dev",
];
/// What the program is linked to; the cache may be older than this machine.
const RUN_PACKAGES: [&str; 5] = ["gnupg", "libcurl4", "libglib2.0-0", "libgpgme11", "libsodium23"];

/// The directory with `bin/ostree`.
pub fn image() -> Result<PathBuf> {
    let cache = Cache::of_user()?;
    let directory = repository().join("images/ostree");
    let source_key = Inputs::default().text("suite", DEBIAN_SUITE).file("script", &directory.join("fetch.sh"))?.key();
    let key = Inputs::default().text("source", &source_key).file("build", &directory.join("build.sh"))?.key();
    apt::ensure(&RUN_PACKAGES, &cache.logs())?;
    if let Some(result) = cache.find("ostree", &key) {
        return Ok(result);
    }
    let lock = cache.lock()?;
    apt::ensure(&BUILD_PACKAGES, &cache.logs())?;
    let mirror = apt::mirror()?;
    let source = cache.entry(&lock, "ostree-source", &source_key, |out| {
        let mut fetch = Command::new(directory.join("fetch.sh"));
        fetch.env("MIRROR", &mirror).env("SUITE", DEBIAN_SUITE).arg(out);
        stage::run("ostree's source", &cache.logs().join("ostree-source.log"), fetch)
    })?;
    cache.entry(&lock, "ostree", &key, |out| {
        let mut build = Command::new(directory.join("build.sh"));
        build.arg("--source").arg(&source).arg("--out").arg(out);
        stage::run("ostree with ed25519", &cache.logs().join("ostree.log"), build)
    })
}
