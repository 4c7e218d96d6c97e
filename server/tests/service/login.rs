//! `nkd login` without the CA's file: trust is settled by a fingerprint, and before that nothing is said.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use nkd_server::fleet::fingerprint::Fingerprint;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::harness::{Place, mode, text};

const TOKEN: &str = "the-token-of-somebody";

fn login(place: &Place, server: &str, token_file: &Path) -> Command {
    let mut command = place.nkd();
    command.args(["login", "--server", server, "--token-file"]).arg(token_file);
    command
}

fn remembered(place: &Place) -> PathBuf {
    place.dir.path().join("cli.json")
}

fn refused(place: &Place, out: &Output, words: &str) {
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains(words), "{words}: {said}");
    assert!(!remembered(place).exists(), "nothing is remembered");
}

#[tokio::test]
async fn a_fingerprint_settles_whom_to_trust() {
    let place = Place::new();
    let _service = place.start().await;
    let fingerprint = Fingerprint::of_pem(&place.ca()).unwrap().to_string();
    let said = place.log_text();
    let start = said.lines().find(|line| line.contains("nkd serves")).unwrap();
    assert!(start.contains(&fingerprint), "{start}");
    let login = || login(&place, &place.api_url(""), &place.first_token_file());
    let with = |wanted: &str| login().args(["--ca-fingerprint", wanted]).output().unwrap();

    refused(&place, &login().output().unwrap(), &format!("--ca-fingerprint {fingerprint}"));
    refused(&place, &with(&format!("sha256:{}", "00".repeat(32))), "somebody is in between");
    assert_eq!(with("sha256:00").status.code(), Some(2), "half a fingerprint is none");
    let other = place.dir.path().join("other.pem");
    std::fs::write(&other, Impostor::new(&place.ip, None).ca).unwrap();
    let out = login().arg("--ca").arg(&other).args(["--ca-fingerprint", &fingerprint]).output().unwrap();
    refused(&place, &out, "somebody is in between");
    assert!(place.first_token_file().exists(), "the token was never used");

    let out = with(&fingerprint.to_uppercase().replace("SHA256", "sha256"));
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(mode(&remembered(&place)), 0o600);
    // Variables that are empty say nothing.
    let nothing = ["NKD_SERVER", "NKD_TOKEN", "NKD_CA"].map(|name| (name, ""));
    for variables in [&[][..], &nothing] {
        let out = place.nkd().envs(variables.iter().copied()).args(["status"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
    }
    // A word that is empty was meant to say something.
    assert_eq!(place.nkd().args(["status", "--ca", ""]).output().unwrap().status.code(), Some(2));
    assert_eq!(place.nkd().args(["status", "--token", ""]).output().unwrap().status.code(), Some(64));
}

#[tokio::test]
async fn a_person_at_a_terminal_is_asked() {
    let place = Place::new();
    let _service = place.start().await;
    let fingerprint = Fingerprint::of_pem(&place.ca()).unwrap().to_string();
    let answer = |words: &str| {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let mut keyboard = std::fs::File::from(terminal.master);
        keyboard.write_all(words.as_bytes()).unwrap();
        let mut command = login(&place, &place.api_url(""), &place.first_token_file());
        let out = command.stdin(Stdio::from(terminal.slave)).output().unwrap();
        assert!(text(&out.stderr).contains(&fingerprint), "{}", text(&out.stderr));
        out
    };
    refused(&place, &answer("no\n"), "is not trusted");
    refused(&place, &answer("y\n\nno\n"), "is not trusted");
    assert!(place.first_token_file().exists(), "the token was never used");
    let out = answer("perhaps\nyes\n");
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("you are admin"), "{}", text(&out.stdout));
}

/// Somebody between the command line and the service, with a certificate of their own for its address.
struct Impostor {
    url: String,
    /// Their CA, PEM.
    ca: String,
    /// What came after the handshake.
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Impostor {
    /// Shows another's CA instead of its own, if there is one.
    fn new(ip: &str, other_ca: Option<&str>) -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let ca = authority.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(authority, ca_key);
        let leaf = CertificateParams::new([ip.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let shown = CertificateDer::from_pem_slice(other_ca.unwrap_or(&ca).as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone(), shown], key.serialize_der().try_into().unwrap())
            .unwrap();
        let (config, heard) = (Arc::new(config), Arc::new(Mutex::new(Vec::new())));
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let all = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
                let mut bytes = [0; 4096];
                let n = stream.read(&mut bytes).unwrap_or(0);
                all.lock().unwrap().extend_from_slice(&bytes[..n]);
            }
        });
        Self { url, ca, heard }
    }

    fn heard(&self) -> String {
        text(&self.heard.lock().unwrap())
    }
}

#[tokio::test]
async fn an_impostor_hears_nothing() {
    let place = Place::new();
    let _service = place.start().await;
    let fingerprint = Fingerprint::of_pem(&place.ca()).unwrap().to_string();
    let token_file = place.dir.path().join("token");
    std::fs::write(&token_file, TOKEN).unwrap();
    let own = Impostor::new(&place.ip, None);
    // The CA of the service is public: anybody can show it.
    let borrowed = Impostor::new(&place.ip, Some(&place.ca()));
    for (impostor, words) in [(&own, "somebody is in between"), (&borrowed, "cannot be reached")] {
        let mut command = login(&place, &impostor.url, &token_file);
        let out = command.args(["--ca-fingerprint", &fingerprint]).output().unwrap();
        refused(&place, &out, words);
        assert_eq!(impostor.heard(), "");
    }
    // Had it been trusted, it would have heard the token.
    let ca_file = place.dir.path().join("own.pem");
    std::fs::write(&ca_file, &own.ca).unwrap();
    let out = login(&place, &own.url, &token_file).arg("--ca").arg(&ca_file).output().unwrap();
    refused(&place, &out, "cannot be reached");
    super::harness::eventually("the token is heard", async || own.heard().contains(TOKEN).then_some(())).await;
}
