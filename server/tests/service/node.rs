//! A simulated machine: what iPXE, Ignition and the agent do, in this order.

use std::io::Write;
use std::process::{Command, Stdio};

use nkd_api::agent::{AgentConfig, EnrollResponse};
use rcgen::{CertificateParams, KeyPair};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use uuid::Uuid;

use super::harness::{Place, image_files, text};

/// What a boot script says.
#[derive(Debug, Clone)]
pub struct Script {
    pub status: StatusCode,
    pub text: String,
}

impl Script {
    pub fn installs(&self) -> bool {
        self.text.contains("\nkernel ") && !self.text.contains("nothing is assigned")
    }

    pub fn word_after(&self, before: &str) -> Option<String> {
        let line = self.text.lines().find(|l| l.starts_with(before))?;
        Some(line[before.len()..].split(' ').next()?.to_owned())
    }
}

/// The first stage out of an initrd.
#[derive(Debug, Clone)]
pub struct FirstStage {
    pub url: String,
    pub authorization: String,
    pub ca: String,
    pub hash: String,
}

impl FirstStage {
    pub fn token(&self) -> String {
        self.authorization.strip_prefix("Bearer ").unwrap().to_owned()
    }
}

/// A node that holds a client certificate.
pub struct Enrolled {
    pub http: reqwest::Client,
    pub certificate: String,
}

/// Asks for the second script as iPXE does.
pub async fn script(place: &Place, mac: &str) -> Script {
    script_with(place, &format!("mac={mac}&arch=x86_64&platform=efi")).await
}

pub async fn script_with(place: &Place, query: &str) -> Script {
    let answer = reqwest::get(place.boot_url(&format!("/boot.ipxe?{query}"))).await.unwrap();
    Script { status: answer.status(), text: answer.text().await.unwrap() }
}

/// Fetches what the script names, as iPXE does, and takes the configuration out of the initrd as the kernel does.
pub async fn first_stage(place: &Place, script: &Script) -> FirstStage {
    let kernel =
        script.word_after("kernel ").unwrap_or_else(|| panic!("no kernel in\n{}\n{}", script.text, place.log_text()));
    let initrd = script.word_after("initrd --name initrd ").unwrap();
    let files = image_files();
    assert_eq!(reqwest::get(kernel).await.unwrap().bytes().await.unwrap(), files[0].1);
    let initrd = reqwest::get(initrd).await.unwrap().bytes().await.unwrap();
    let (initramfs, overlay) = initrd.split_at(files[1].1.len());
    assert_eq!(initramfs, files[1].1);
    let padding = (4 - initramfs.len() % 4) % 4;
    assert!(overlay[..padding].iter().all(|b| *b == 0));
    let config = extract(&overlay[padding..]);
    validate(place, &config);
    let stage: Value = serde_json::from_slice(&config).unwrap();
    let merge = &stage["ignition"]["config"]["merge"][0];
    let header = &merge["httpHeaders"][0];
    assert_eq!(header["name"], "Authorization");
    let ca = stage["ignition"]["security"]["tls"]["certificateAuthorities"][0]["source"].as_str().unwrap();
    FirstStage {
        url: merge["source"].as_str().unwrap().to_owned(),
        authorization: header["value"].as_str().unwrap().to_owned(),
        ca: text(&data_url(ca)),
        hash: merge["verification"]["hash"].as_str().unwrap().to_owned(),
    }
}

/// The real cpio reads the archive.
fn extract(archive: &[u8]) -> Vec<u8> {
    let mut cpio = Command::new("cpio")
        .args(["-i", "--quiet", "--to-stdout", "config.ign"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cpio.stdin.take().unwrap().write_all(archive).unwrap();
    let out = cpio.wait_with_output().unwrap();
    assert!(out.status.success());
    out.stdout
}

/// The real `ignition-validate` accepts it.
pub fn validate(place: &Place, config: &[u8]) {
    let file = tempfile::NamedTempFile::new_in(place.dir.path()).unwrap();
    std::fs::write(file.path(), config).unwrap();
    let out = Command::new("ignition-validate").arg(file.path()).output().unwrap();
    assert!(out.status.success(), "{}\n{}", text(&out.stderr), text(config));
}

fn data_url(source: &str) -> Vec<u8> {
    use base64::Engine;
    let (head, data) = source.strip_prefix("data:").unwrap().split_once(',').unwrap();
    match head.ends_with(";base64") {
        true => base64::engine::general_purpose::STANDARD.decode(data).unwrap(),
        false => url::form_urlencoded::parse(format!("x={}", data.replace('+', "%2B")).as_bytes())
            .next()
            .unwrap()
            .1
            .into_owned()
            .into_bytes(),
    }
}

/// Fetches the configuration as Ignition does: over TLS with the pinned CA, with the token, checking the digest.
pub async fn fetch(stage: &FirstStage) -> Result<Vec<u8>, (StatusCode, String)> {
    fetch_from(stage, "127.0.0.1").await
}

/// The same from some address of this host.
pub async fn fetch_from(stage: &FirstStage, own: &str) -> Result<Vec<u8>, (StatusCode, String)> {
    let own: std::net::IpAddr = own.parse().unwrap();
    let ca = reqwest::Certificate::from_pem(stage.ca.as_bytes()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([ca]).local_address(own).build().unwrap();
    let answer = http.get(&stage.url).header("Authorization", &stage.authorization).send().await.unwrap();
    let status = answer.status();
    let body = answer.bytes().await.unwrap();
    if status != StatusCode::OK {
        return Err((status, text(&body)));
    }
    assert_eq!(stage.hash, format!("sha512-{}", hex::encode(Sha512::digest(&body))));
    Ok(body.to_vec())
}

/// What Ignition leaves for the agent.
pub fn agent_config(config: &[u8]) -> AgentConfig {
    let config: Value = serde_json::from_slice(config).unwrap();
    let files = config["storage"]["files"].as_array().unwrap();
    let file = files.iter().find(|f| f["path"] == nkd_api::agent::AGENT_CONFIG_PATH).unwrap();
    serde_json::from_slice(&data_url(file["contents"]["source"].as_str().unwrap())).unwrap()
}

/// A certificate request for a key.
pub fn request(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

pub fn enroll_order(machine: Uuid, token: &str, csr: &str) -> Value {
    json!({"machine": machine, "token": token, "csr": csr, "facts": {"architecture": "x86_64", "cpus": 2, "memoryBytes": 1 << 30, "os": "Lab", "osVersion": "1"}})
}

/// Asks for a certificate.
pub async fn try_enroll(place: &Place, machine: Uuid, token: &str, csr: &str) -> (StatusCode, Value) {
    let api = place.user("");
    api.call(Method::POST, "/agent/v1/enroll", Some(&enroll_order(machine, token, csr))).await
}

/// Enrolls with a key.
pub async fn enroll(place: &Place, config: &AgentConfig, key: &KeyPair) -> Enrolled {
    let (status, body) = try_enroll(place, config.machine, &config.token, &request(key)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    enrolled(place, &serde_json::from_value(body).unwrap(), key)
}

/// The client that an answer and a key make.
pub fn enrolled(place: &Place, answer: &EnrollResponse, key: &KeyPair) -> Enrolled {
    let pem = format!("{}{}", answer.certificate, key.serialize_pem());
    let identity = reqwest::Identity::from_pem(pem.as_bytes()).unwrap();
    Enrolled { http: place.https().identity(identity).build().unwrap(), certificate: answer.certificate.clone() }
}

impl Enrolled {
    pub async fn call(&self, place: &Place, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let mut request = self.http.request(method, place.api_url(path));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn task(&self, place: &Place) -> Value {
        let (status, body) = self.call(place, Method::GET, "/agent/v1/task", None).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body["task"].clone()
    }

    pub async fn report(&self, place: &Place, event: Value) -> (StatusCode, Value) {
        self.report_as(place, Uuid::new_v4(), event).await
    }

    pub async fn report_as(&self, place: &Place, id: Uuid, event: Value) -> (StatusCode, Value) {
        let report = json!({"id": id, "bootId": "b", "event": event});
        self.call(place, Method::POST, "/agent/v1/report", Some(&report)).await
    }

    pub async fn install_config(&self, place: &Place, generation: u32) -> (StatusCode, Value) {
        self.call(place, Method::GET, &format!("/agent/v1/install-config?generation={generation}"), None).await
    }
}

/// From the script to what Ignition leaves for the agent.
pub async fn fetched(place: &Place, mac: &str) -> AgentConfig {
    let stage = first_stage(place, &script(place, mac).await).await;
    agent_config(&fetch(&stage).await.unwrap())
}

/// From the script to the certificate of the live system.
pub async fn live(place: &Place, mac: &str) -> (AgentConfig, KeyPair, Enrolled) {
    let config = fetched(place, mac).await;
    let key = KeyPair::generate().unwrap();
    let node = enroll(place, &config, &key).await;
    (config, key, node)
}

/// From a blank disk to an enrolled node.
pub async fn enroll_installed(place: &Place, mac: &str) -> (AgentConfig, KeyPair, Enrolled) {
    let (config, _, live) = live(place, mac).await;
    let task = live.task(place).await;
    assert_eq!((&task["do"], &task["generation"]), (&json!("install"), &json!(config.generation)), "{task}");
    let (status, body) = live.install_config(place, config.generation).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let node_config = serde_json::to_vec(&body).unwrap();
    validate(place, &node_config);
    let installed = json!({"kind": "installed", "generation": config.generation});
    assert_eq!(live.report(place, installed).await.0, StatusCode::OK);
    let local = script(place, mac).await;
    assert!(!local.installs(), "{}", local.text);
    let config = agent_config(&node_config);
    let key = KeyPair::generate().unwrap();
    let node = enroll(place, &config, &key).await;
    (config, key, node)
}

/// The same, with a node that has nothing to do.
pub async fn install(place: &Place, mac: &str) -> (AgentConfig, KeyPair, Enrolled) {
    let (config, key, node) = enroll_installed(place, mac).await;
    assert_eq!(node.task(place).await["do"], "run");
    (config, key, node)
}
