//! `nkd cluster schema|template|check|import`, as an operator runs them.
#![allow(clippy::disallowed_methods, reason = "tests start programs and open files")]
#![allow(clippy::unwrap_used, reason = "clippy takes only the test functions themselves for tests")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

fn nkd(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nkd")).args(args).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn ok(dir: &Path, args: &[&str]) -> String {
    let out = nkd(dir, args);
    assert!(out.status.success(), "{args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout).to_owned()
}

#[test]
fn a_template_passes_the_check_as_it_is() {
    let dir = TempDir::new().unwrap();
    for platform in ["metal", "qemu"] {
        let template = ok(dir.path(), &["cluster", "template", "--platform", platform, "--name", "rack7"]);
        assert!(template.contains("name: rack7"), "{template}");
        std::fs::write(dir.path().join("c.yaml"), &template).unwrap();
        assert_eq!(ok(dir.path(), &["cluster", "check", "-f", "c.yaml"]), "c.yaml: 0 problems, 0 warnings\n");
    }
    let out = nkd(dir.path(), &["cluster", "template", "--platform", "metal", "--name", "Rack 7"]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
}

#[test]
fn the_schema_is_json_schema() {
    let dir = TempDir::new().unwrap();
    let schema: Value = serde_json::from_str(&ok(dir.path(), &["cluster", "schema"])).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(schema["properties"]["spec"].is_object());
}

/// Thirty wrong fields of one file, wrong in shape and in meaning, are thirty lines in one run.
#[test]
fn thirty_wrong_fields_are_thirty_lines() {
    let dir = TempDir::new().unwrap();
    let file = "\
apiVersion: nkd.io/v2
kind: Klaster
metadata: {name: Rack_7, colour: red}
spec:
  os: {profile: debian, image: ../x}
  kubernetes:
    version: 1.31
    podSubnet: 10.244.0.0
    dnsDomain: a_b
    runtime: podman
    cni: {manifest: ./none.yaml}
    imageRepository: https://a.example
    pauseImage: pause
    skipPhases: [Addon]
    featureGates: {NodeSwap: maybe}
    certSans: [a b]
    apiServer: {extraArgs: {--v: '2'}}
    kubeletConfiguration: {MaxPods: 1}
  endpoint: https://a.example
  ssh: {authorizedKeys: [me]}
  pools:
  - {name: cp, role: master, machines: [{mac: '52:54'}, {ip: 10.0.0.11, mac: '52:54:00:00:00:01'}, {}]}
  - {name: cp, role: control-plane, count: -1, installDisk: sda, taints: [a]}
  ntp: ['a:1']
  proxy: {http: a, noProxy: [b c]}
  housekeeper: {maxUnavailable: 0, enable: true}
";
    let expected = [
        "apiVersion",
        "kind",
        "metadata.colour",
        "metadata.name",
        "spec.endpoint",
        "spec.housekeeper.enable",
        "spec.housekeeper.maxUnavailable",
        "spec.kubernetes.apiServer.extraArgs.--v",
        "spec.kubernetes.certSans[0]",
        "spec.kubernetes.cni.manifest",
        "spec.kubernetes.dnsDomain",
        "spec.kubernetes.featureGates.NodeSwap",
        "spec.kubernetes.imageRepository",
        "spec.kubernetes.kubeletConfiguration.MaxPods",
        "spec.kubernetes.pauseImage",
        "spec.kubernetes.podSubnet",
        "spec.kubernetes.runtime",
        "spec.kubernetes.skipPhases[0]",
        "spec.kubernetes.version",
        "spec.ntp[0]",
        "spec.os.image",
        "spec.os.profile",
        "spec.pools[0].machines[0].mac",
        "spec.pools[0].machines[1].ip",
        "spec.pools[0].machines[2]",
        "spec.pools[0].role",
        "spec.pools[1].count",
        "spec.pools[1].installDisk",
        "spec.pools[1].name",
        "spec.pools[1].taints[0]",
        "spec.proxy.http",
        "spec.proxy.noProxy[0]",
        "spec.ssh.authorizedKeys[0]",
    ];
    assert!(expected.len() >= 30);
    std::fs::write(dir.path().join("c.yaml"), file).unwrap();
    let out = nkd(dir.path(), &["cluster", "check", "-f", "c.yaml"]);
    assert_eq!(out.status.code(), Some(64), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("nkd cluster check -f c.yaml"), "{}", text(&out.stderr));
    let said = text(&out.stdout);
    let problems: Vec<&str> = said.lines().filter(|l| !l.starts_with("warning: ")).collect();
    let (last, problems) = problems.split_last().unwrap();
    let mut paths: Vec<&str> = problems.iter().map(|line| line.split(": ").next().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, expected, "{said}");
    assert!(last.starts_with(&format!("c.yaml: {} problems", expected.len())), "{last}");

    let out = nkd(dir.path(), &["cluster", "check", "-f", "c.yaml", "-o", "json"]);
    assert_eq!(out.status.code(), Some(64));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["problems"].as_array().unwrap().len(), expected.len());
    assert_eq!(report["file"], "c.yaml");
}

#[test]
fn paths_are_relative_to_the_file_and_not_to_the_caller() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("clusters")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let template = ok(dir.path(), &["cluster", "template", "--platform", "qemu"]);
    write("clusters/c.yaml", &template.replace("#- cni", "cni"));
    let out = nkd(dir.path(), &["cluster", "check", "-f", "clusters/c.yaml"]);
    assert_eq!(out.status.code(), Some(64));
    assert!(
        text(&out.stdout).starts_with("spec.kubernetes.cni.manifest: cannot read clusters/./cni.yaml: "),
        "{}",
        text(&out.stdout)
    );
    write("clusters/cni.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: cni}\n");
    ok(dir.path(), &["cluster", "check", "-f", "clusters/c.yaml"]);
    write("clusters/cni.yaml", "kind: Namespace\n");
    let out = nkd(dir.path(), &["cluster", "check", "-f", "clusters/c.yaml"]);
    assert!(text(&out.stdout).contains("apiVersion"), "the text itself is checked: {}", text(&out.stdout));
    let out = nkd(dir.path(), &["cluster", "check", "-f", "gone.yaml"]);
    assert_eq!(out.status.code(), Some(64));
    assert!(text(&out.stderr).contains("cannot read gone.yaml"), "{}", text(&out.stderr));
}

#[test]
fn a_foreign_file_becomes_one_that_lacks_the_machines_keys_only() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("id.pub", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH me@here\n");
    let foreign = "\
cluster_id: cluster
architecture: arm64
platform: pxe
infraPlatform: {ip: 10.0.0.1, httpServerPort: \"9080\", httpRootDir: /var/www/html/}
osImage: {type: nestos}
username: root
password: $1$yoursalt$UGhjCXAJKpWWpeN8xsF.c/
sshkey: id.pub
master:
- {hostname: k8s-master01, hardwareinfo: {cpu: 4, ram: 8192, disk: 50}}
worker:
- {hostname: k8s-worker01, hardwareinfo: {cpu: 4, ram: 8192, disk: 50}, ip: \"\"}
runtime: crio
kubernetes:
  kubernetes-version: v1.29.1
  kubernetes-apiversion: v1beta3
  token: \"\"
  network: {service-subnet: 10.96.0.0/16, pod-subnet: 10.244.0.0/16, plugin: https://a.example/calico.yaml}
";
    write("cluster_config.yaml", foreign);
    let out = nkd(dir.path(), &["cluster", "import", "cluster_config.yaml"]);
    let notes = text(&out.stderr);
    assert!(out.status.success(), "{notes}");
    for note in [
        "note: password: ",
        "note: infraPlatform.ip: ",
        "note: master[0].hardwareinfo.disk: ",
        "note: kubernetes.kubernetes-apiversion: ",
        "to complete: spec.pools[0].machines[0]: ",
        "to complete: spec.pools[1].machines[0]: ",
    ] {
        assert!(notes.contains(note), "{note}\n{notes}");
    }
    assert!(!notes.contains("$1$"), "{notes}");
    let mut ours: Value = serde_saphyr::from_str(text(&out.stdout)).unwrap();
    assert_eq!(ours["spec"]["kubernetes"]["runtime"], "cri-o");
    assert_eq!(ours["spec"]["pools"][1]["match"]["architecture"], "aarch64");
    for pool in [0, 1] {
        ours["spec"]["pools"][pool]["machines"][0]["mac"] = json!(format!("52:54:00:00:00:0{pool}"));
    }
    write("ours.json", &ours.to_string());
    ok(dir.path(), &["cluster", "check", "-f", "ours.json"]);

    write("cluster_config.yaml", &foreign.replace("type: nestos", "type: generalos"));
    let out = nkd(dir.path(), &["cluster", "import", "cluster_config.yaml"]);
    assert_eq!(out.status.code(), Some(64));
    assert!(out.stdout.is_empty());
    assert!(text(&out.stderr).contains("problem: osImage.type: "), "{}", text(&out.stderr));
}
