//! Templates and checks against Ignition's own validator, properties of merge and overlay.
#![allow(clippy::disallowed_methods, reason = "runs the real tools")]

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn validate(config: &[u8]) -> Result<(), String> {
    let mut child = Command::new("ignition-validate")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ignition-validate: apt-get install ignition");
    child.stdin.take().unwrap().write_all(config).unwrap();
    let out = child.wait_with_output().unwrap();
    if out.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    }
}

pub(crate) fn example(agent_in_image: bool) -> Variables {
    Variables {
        machine: MachineFacts {
            id: "01890a5d-ac96-774b-bcce-b302099a8057".into(),
            name: "cp1".into(),
            hostname: "cp1".into(),
            labels: [("rack".to_owned(), "7".to_owned())].into(),
            macs: vec!["52:54:00:00:00:01".parse().unwrap()],
        },
        profile: ProfileFacts { name: "nestos".into(), default_user: "nest".into(), karg_prefix: "nestos".into() },
        agent: AgentFiles {
            config: "{\"token\":\"example: {{ not a template }} 'quoted' \\\"twice\\\"\"}".into(),
            url: (!agent_in_image).then(|| "http://192.0.2.1:8080/agent/x86_64/nkd-agent".into()),
            sha256: (!agent_in_image).then(|| "ab".repeat(32)),
            unit: (!agent_in_image).then(|| "[Service]\nExecStart=/usr/local/bin/nkd-agent run\n".into()),
            balancer_unit: (!agent_in_image).then(|| "[Service]\nExecStart=/usr/local/bin/nkd-agent balance\n".into()),
            updater_unit: (!agent_in_image).then(|| "[Service]\nExecStart=/usr/local/bin/nkd-agent update\n".into()),
            deadline_unit: (!agent_in_image).then(|| "[Service]\nExecStart=/bin/true\n".into()),
        },
        ssh_authorized_keys: vec!["ssh-ed25519 AAAAC3Nza example".into()],
        installer_config: Some(InstallerConfig {
            path: "/etc/nestos/installer.d/10-nkd.yaml".into(),
            contents: "offline: true\n".into(),
        }),
        service: "192.0.2.1".into(),
    }
}

#[test]
fn every_template_passes_ignitions_own_validator() {
    let templates = TemplateSet::builtin();
    for name in templates.names() {
        for in_image in [true, false] {
            let config = compose(&templates, name, &example(in_image), &[], "3.3.0").unwrap();
            validate(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

/// A change of a template shows in review.
#[test]
fn templates_give_their_golden_results() {
    let templates = TemplateSet::builtin();
    for name in templates.names() {
        let config = compose(&templates, name, &example(true), &[], "3.3.0").unwrap();
        let value: Value = serde_json::from_slice(&config).unwrap();
        let text = serde_json::to_string_pretty(&value).unwrap() + "\n";
        let path = format!("{}/../ignition-templates/{name}/golden.ign", env!("CARGO_MANIFEST_DIR"));
        if std::env::var("NKD_UPDATE_GOLDEN").is_ok() {
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, golden, "{path}: run with NKD_UPDATE_GOLDEN=1 and read the difference");
    }
}

/// What a template puts into a file arrives there byte by byte, whatever it is.
#[test]
fn the_agents_configuration_arrives_unchanged() {
    let variables = example(true);
    let config = compose(&TemplateSet::builtin(), "node", &variables, &[], "3.3.0").unwrap();
    let value: Value = serde_json::from_slice(&config).unwrap();
    let file =
        value["storage"]["files"].as_array().unwrap().iter().find(|f| f["path"] == "/etc/nkd/agent.json").unwrap();
    assert_eq!(file["mode"], 0o600);
    assert_eq!(file["contents"]["source"], butane::data_url(variables.agent.config.as_bytes()));
}

#[test]
fn the_first_stage_is_valid_and_pins_digest_ca_and_token() {
    let stage = FirstStage {
        url: "https://192.0.2.1:8443/ignition/v1/config",
        ca_pem: "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n",
        token: "t0ken",
        config: b"{}",
    };
    let config = first_stage(&stage, "3.3.0");
    validate(&config).unwrap();
    let value: Value = serde_json::from_slice(&config).unwrap();
    let merge = &value["ignition"]["config"]["merge"][0];
    assert_eq!(merge["httpHeaders"][0]["value"], "Bearer t0ken");
    // printf '{}' | sha512sum
    assert!(merge["verification"]["hash"].as_str().unwrap().starts_with("sha512-27c74670adb75075fad058d5ceaf7b20c4e7786c83bae8a32f626f9782af34c9a33c2046ef60fd2a7878d378e29fec851806bbd9a67878f3a9f1cda4830763fd"));
}

#[test]
fn snippets_merge_by_key_and_win() {
    let snippet = "storage:\n  files:\n    - path: /etc/hostname\n      mode: 0600\n    - path: /etc/motd\n      contents: {inline: hello}\nsystemd:\n  units:\n    - name: nkd-agent.service\n      dropins:\n        - {name: 10-slow.conf, contents: \"[Service]\\nCPUWeight=10\\n\"}\n";
    let config = compose(&TemplateSet::builtin(), "node", &example(true), &[snippet.into()], "3.3.0").unwrap();
    validate(&config).unwrap();
    let value: Value = serde_json::from_slice(&config).unwrap();
    let files = value["storage"]["files"].as_array().unwrap();
    let hostname: Vec<_> = files.iter().filter(|f| f["path"] == "/etc/hostname").collect();
    assert_eq!(hostname.len(), 1);
    assert_eq!(hostname[0]["mode"], 0o600);
    assert!(hostname[0]["contents"]["source"].is_string(), "the template's content stays");
    assert!(files.iter().any(|f| f["path"] == "/etc/motd"));
    let units = value["systemd"]["units"].as_array().unwrap();
    let names: Vec<_> = units.iter().map(|unit| unit["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["nkd-agent.service", "nkd-balancer.service", "nkd-updater.service", "nkd-boot-deadline.service"]
    );
    assert_eq!(units[0]["enabled"], true);
    assert_eq!(units[0]["dropins"][0]["name"], "10-slow.conf");
}

#[test]
fn every_problem_is_said_with_its_path() {
    let snippet = "storage:\n  files:\n    - path: etc/relative\n    - path: /a/../b\n    - path: /twice\n      mode: 99999\n    - path: /twice\n    - path: /x\n      contnts: {inline: a}\n    - path: /y\n      contents: {source: 'ftp://h/x', verification: {hash: sha256-12}}\n  links:\n    - {path: /link, target: /t}\n  directories:\n    - path: /link/below\nsystemd:\n  units:\n    - name: nodot\npasswd:\n  users:\n    - {name: a}\n    - {name: a}\n";
    let Err(IgnitionError::Invalid(problems)) = check_snippet(snippet, "s", "3.3.0") else { panic!("accepted") };
    for path in [
        "storage.files[0].path",
        "storage.files[1].path",
        "storage.files[2].mode",
        "storage.files[3].path",
        "storage.files[4].contnts",
        "storage.files[5].contents.source",
        "storage.files[5].contents.verification.hash",
        "storage.directories[0]",
        "systemd.units[0].name",
        "passwd.users[1].name",
    ] {
        assert!(problems.iter().any(|p| p.path == path), "{path} is missing in {problems:#?}");
    }
    assert_eq!(problems.len(), 10, "{problems:#?}");
}

#[test]
fn wrong_yaml_and_wrong_types_are_errors() {
    for text in [
        "a: [",
        "- 1",
        "storage: 7",
        "storage:\n  files: {}\n",
        "systemd:\n  units:\n    - {name: a.service, enabled: maybe}\n",
    ] {
        assert!(check_snippet(text, "s", "3.3.0").is_err(), "{text}");
    }
}

/// The real cpio reads what we write.
#[test]
fn the_overlay_is_an_archive_that_cpio_reads() {
    let config = b"{\"ignition\":{}}x";
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("cpio")
        .args(["-i", "--quiet"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .spawn()
        .expect("cpio: apt-get install cpio");
    child.stdin.take().unwrap().write_all(&overlay::archive(config)).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read(dir.path().join("config.ign")).unwrap(), config);
}

proptest! {
    #[test]
    fn overlay_and_padding_are_aligned(size: u64, config in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(overlay::archive(&config).len() % 4, 0);
        prop_assert_eq!((size % (1 << 60) + overlay::padding(size % (1 << 60))) % 4, 0);
        prop_assert!(overlay::padding(size) < 4);
    }

    /// Merging a configuration over itself changes nothing.
    #[test]
    fn merge_is_idempotent(paths in proptest::collection::btree_set("/[a-z]{1,8}", 0..6), text in "[a-z]{0,8}") {
        let files: Vec<Value> = paths.iter().map(|p| json!({"path": p, "contents": {"source": format!("data:,{text}")}})).collect();
        let config = json!({"ignition": {"version": "3.3.0"}, "storage": {"files": files}});
        let mut merged = config.clone();
        merge::merge(&mut merged, config.clone());
        prop_assert_eq!(merged, config);
    }

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = check_snippet(&text, "s", "3.3.0");
    }
}
