//! Machines made of namespaces: that they are machines, and that this computer is as it was afterwards.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, of processes and files")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nkd_vm_tests::{Ending, Error, Network, Node, within};

type Result<T = ()> = std::result::Result<T, Error>;

#[test]
fn a_node_boots_with_an_identity_and_devices_of_its_own() -> Result {
    let net = Network::create("nodes-boot")?;
    let begin = Instant::now();
    let node = Node::named("cp1").address("192.0.2.11/24").start(&net)?;
    eprintln!("up after {:.1?}", begin.elapsed());
    node.expect_running(within(20))?;
    eprintln!(
        "{}",
        node.shell("systemd-analyze blame; systemd-analyze critical-chain; ls -la /dev; mount; ps aux", within(10))?
    );
    eprintln!("{}", node.logs()?);
    Ok(())
}
