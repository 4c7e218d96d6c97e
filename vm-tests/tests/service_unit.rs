//! The service as its package installs it: as an ordinary user, in the sandbox of its unit, under a systemd of its own.

#![allow(clippy::disallowed_methods, reason = "a test, of processes and files")]

use nkd_vm_tests::{Builds, Error, Network, Node, within};
use serde_json::Value;

type Result<T = ()> = std::result::Result<T, Error>;

const UNIT: &str = include_str!("../../server/dist/nkd.service");
const USER: &str = include_str!("../../server/dist/nkd.sysusers");
const SETTINGS: &str = include_str!("../../server/dist/nkd.toml");

/// Says this to the service, as its first administrator, whose token is kept nowhere once it was used.
fn nkd(node: &Node, words: &str) -> Result<String> {
    let line = format!(
        "NKD_TOKEN=$(cat /root/token) NKD_CA=/var/lib/nkd/ca.pem \
         NKD_SERVER=https://127.0.0.1:8443 nkd {words}"
    );
    node.shell(&line, within(120))
}

/// Builds a system, and publishes it as the next release; its commit.
fn publish(node: &Node, version: &str) -> Result<String> {
    let build = format!(
        "mkdir -p /opt/build/tree/usr/bin; cd /opt/build; echo {version} >tree/usr/bin/system
         test -d repo || ostree init --repo=repo --mode=archive
         ostree commit --repo=repo --branch=lab/x86_64/stable --tree=dir=tree --add-metadata-string=version={version}"
    );
    let commit = node.shell(&build, within(60))?.trim().to_owned();
    nkd(node, "channel publish stable --ostree /opt/build/repo")?;
    Ok(commit)
}

/// What nobody but the service may read is not left anywhere: the unpacked key that it signs with.
fn leaves_no_key(node: &Node) -> Result {
    let left = node.shell("ls -d /dev/shm/nkd-key-* /run/shm/nkd-key-* /var/lib/nkd/nkd-key-* || true", within(10))?;
    assert_eq!(left, "", "an unpacked key");
    Ok(())
}

#[test]
fn the_service_publishes_signed_releases_in_the_sandbox_of_its_unit() -> Result {
    let net = Network::create("service-unit")?;
    let node = Node::named("service")
        .address("192.0.2.11/24")
        .program(&Builds::program_from_environment()?.program, "nkd")
        .file("/usr/lib/systemd/system/nkd.service", 0o644, UNIT)
        .file("/usr/lib/sysusers.d/nkd.conf", 0o644, USER)
        .file("/etc/nkd/nkd.toml", 0o644, SETTINGS)
        .start(&net)?;
    node.shell("systemd-sysusers nkd.conf; systemctl start nkd", within(90))?;
    node.expect_unit_active("nkd.service", within(20))?;
    assert_eq!(node.shell("stat -c '%U %a' /var/lib/nkd", within(10))?, "nkd 700\n");
    node.shell("install -m 600 /var/lib/nkd/first-admin-token /root/token", within(10))?;

    let commits = [publish(&node, "1.0.0")?, publish(&node, "1.1.0")?];
    let channel: Value = serde_json::from_str(&nkd(&node, "channel show stable -o json")?).unwrap_or_default();
    let known: Vec<&str> =
        channel["releases"].as_array().into_iter().flatten().filter_map(|r| r["commit"].as_str()).collect();
    assert_eq!(known, commits, "{channel:#}");

    // As a node takes it: commit and summary have to be signed.
    let pull = "cd /opt
         curl -sSf --cacert /var/lib/nkd/ca.pem -o key.asc https://127.0.0.1:8443/ostree/key.asc
         ostree init --repo=node --mode=bare-user
         ostree remote add --repo=node nkd https://127.0.0.1:8443/ostree/PROFILE --gpg-import=key.asc \
             --set=gpg-verify-summary=true --set=tls-ca-path=/var/lib/nkd/ca.pem
         ostree pull --repo=node nkd lab/x86_64/stable
         ostree cat --repo=node nkd:lab/x86_64/stable /usr/bin/system";
    let said = node.shell(&pull.replace("PROFILE", channel["profile"].as_str().unwrap_or_default()), within(60))?;
    assert!(said.ends_with("1.1.0\n"), "{said}");
    leaves_no_key(&node)?;

    // Nothing of its sandbox made it begin anew, and what it answered for is there after its next start.
    assert_eq!(node.shell("systemctl show --property=NRestarts --value nkd", within(10))?, "0\n");
    node.shell("systemctl restart nkd", within(90))?;
    let after: Value = serde_json::from_str(&nkd(&node, "channel show stable -o json")?).unwrap_or_default();
    assert_eq!(after["releases"], channel["releases"]);
    node.shell("systemctl stop nkd", within(60))?;
    assert_eq!(node.shell("systemctl show --property=Result --value nkd", within(10))?, "success\n");
    leaves_no_key(&node)
}
