//! A machine that is brought to its node configuration by hand: what firmware, iPXE, Ignition and the installing agent say
//! to the service, said by curl and openssl. For machines that have no firmware ([`crate::Node`]).
#![allow(clippy::disallowed_methods, reason = "reads and writes files of the test")]

use std::process::Command;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::{Error, Host, Network, within};

const BOOT: &str = "http://192.0.2.1:8080";
const API: &str = "https://192.0.2.1:8443";

/// What an installed node of this machine finds at `/etc/nkd/agent.json`. The machine has to be assigned; afterwards it is
/// `Installed`.
///
/// # Errors
/// What the service refuses, and answers that are not as they should be.
pub fn install_by_hand(net: &Network, host: &Host, mac: &str) -> Result<Vec<u8>, Error> {
    let place = net.folder().join(format!("by-hand-{}", mac.replace(':', "")));
    std::fs::create_dir_all(&place).map_err(Error::io(place.display().to_string()))?;
    let path = |name: &str| place.join(name).display().to_string();
    let url = format!("{BOOT}/boot.ipxe?mac={mac}&arch=x86_64&platform=efi");
    let script = host.http_get(&url, within(20))?.text();
    let initrd = word(&script, "/initrd").ok_or_else(|| unexpected("a script that installs", &script))?;
    // It is as long as the image's initrd, with the machine's own part behind it.
    let overlay = path("initrd");
    host.curl(&["--output", &overlay, initrd], within(60))?;
    let overlay = std::fs::read(&overlay).map_err(Error::io(overlay))?;
    let overlay = String::from_utf8_lossy(&overlay).into_owned();
    let token = overlay.rsplit_once("Bearer ").and_then(|(_, rest)| rest.split('"').next());
    let token = token.ok_or_else(|| unexpected("a token in the overlay", "none"))?;
    let header = format!("Authorization: Bearer {token}");
    let config = answer(host, &["-k", "-H", &header, &format!("{API}/ignition/v1/config")])?;
    let live = agent_file(&config)?;
    let live: Value = serde_json::from_slice(&live).map_err(|_| unexpected("agent.json", "no JSON"))?;
    let generation = live["generation"].clone();

    let (key, csr) = (path("key.pem"), path("csr.pem"));
    let mut request = Command::new("openssl");
    request.args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"]);
    request.args(["-keyout", &key, "-out", &csr]);
    host.run(request, within(20))?.success()?;
    let csr = std::fs::read_to_string(&csr).map_err(Error::io(csr))?;
    let order =
        json!({"machine": live["machine"], "token": live["token"], "csr": csr, "facts": {"architecture": "x86_64"}});
    let body = format!("@{}", write(&path("enroll.json"), &order)?);
    let post = ["-k", "-H", "Content-Type: application/json", "--data-binary"];
    let bought = answer(host, &[&post[..], &[&body, &format!("{API}/agent/v1/enroll")]].concat())?;
    let certificate = path("certificate.pem");
    let pem = bought["certificate"].as_str().unwrap_or_default();
    std::fs::write(&certificate, pem).map_err(Error::io(certificate.clone()))?;

    let identity = ["-k", "--cert", &certificate, "--key", &key];
    let url = format!("{API}/agent/v1/install-config?generation={generation}");
    let config = answer(host, &[&identity[..], &[&url]].concat())?;
    let event = json!({"kind": "installed", "generation": generation});
    let report = json!({"id": live["machine"], "bootId": "by-hand", "event": event});
    let body = format!("@{}", write(&path("report.json"), &report)?);
    let words = ["-H", "Content-Type: application/json", "--data-binary", &body, &format!("{API}/agent/v1/report")];
    answer(host, &[&identity[..], &words].concat())?;
    agent_file(&config)
}

fn word<'a>(text: &'a str, ending: &str) -> Option<&'a str> {
    text.split_whitespace().find(|word| word.starts_with("http") && word.ends_with(ending))
}

fn unexpected(what: &str, got: &str) -> Error {
    Error::Unexpected { what: what.to_owned(), got: got.to_owned() }
}

fn write(path: &str, value: &Value) -> Result<String, Error> {
    std::fs::write(path, value.to_string()).map_err(Error::io(path.to_owned()))?;
    Ok(path.to_owned())
}

fn answer(host: &Host, words: &[&str]) -> Result<Value, Error> {
    let answer = host.curl(words, within(30))?;
    let text = answer.text();
    if answer.status != 200 {
        return Err(unexpected(words.last().unwrap_or(&""), &format!("{} {text}", answer.status)));
    }
    serde_json::from_str(&text).map_err(|_| unexpected("JSON", &text))
}

/// `agent.json` in an Ignition configuration.
fn agent_file(config: &Value) -> Result<Vec<u8>, Error> {
    let files = config["storage"]["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    let file = files.iter().find(|file| file["path"] == "/etc/nkd/agent.json");
    let source = file.and_then(|file| file["contents"]["source"].as_str()).and_then(|s| s.split_once("base64,"));
    let (_, data) = source.ok_or_else(|| unexpected("agent.json in the configuration", &config.to_string()))?;
    base64::engine::general_purpose::STANDARD.decode(data).map_err(|e| unexpected("base64", &e.to_string()))
}
