//! Look-ups at a real registry over TLS, which does what the distribution protocol and its registries do: tokens, passwords,
//! redirects, answers without a digest, and answers without sense.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test, which writes files and listens")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nkd_operator::cluster::chain;
use nkd_operator::image::{LookState, Looked, Named, Tagged, read};
use nkd_operator::lookups::Lookups;
use nkd_operator::registry::Registries;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
const PASSWORD: &str = "a-password-that-nobody-says";

/// What it has, by `repository:tag`, and what was asked of it.
#[derive(Default)]
struct Registry {
    asked: Mutex<Vec<String>>,
    address: Mutex<String>,
}

struct Lab {
    registry: Arc<Registry>,
    registries: Registries,
    address: String,
    folder: TempDir,
}

struct Tls(TcpListener, TlsAcceptor);

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.0.accept().await.unwrap();
            // One that does not trust us goes away.
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().fold("sha256:".to_owned(), |all, byte| format!("{all}{byte:02x}"))
}

fn basic(headers: &HeaderMap) -> bool {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    shown == Some(format!("Basic {}", STANDARD.encode(format!("ci:{PASSWORD}"))).as_str())
}

fn refused(status: StatusCode, code: &str, message: &str) -> Response {
    (status, axum::Json(json!({"errors": [{"code": code, "message": message}]}))).into_response()
}

async fn manifest(
    State(registry): State<Arc<Registry>>,
    Path((repository, tag)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    registry.asked.lock().unwrap().push(format!("{method} {repository}:{tag}"));
    let accept = headers[header::ACCEPT].to_str().unwrap();
    assert!(accept.contains("oci.image.index.v1+json") && accept.contains("docker.distribution.manifest.v2+json"));
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let address = registry.address.lock().unwrap().clone();
    let wants = |challenge: String| {
        let refusal = refused(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
        ([(header::WWW_AUTHENTICATE, challenge)], refusal).into_response()
    };
    let told = |digest: String| ([("docker-content-digest", digest)], MANIFEST).into_response();
    match repository.as_str() {
        "open" if tag == "1" => told(digest(MANIFEST)),
        "moved" => {
            ([(header::LOCATION, format!("https://{address}/v2/open/manifests/1"))], StatusCode::TEMPORARY_REDIRECT)
                .into_response()
        }
        "downgraded" => {
            ([(header::LOCATION, format!("http://{address}/v2/open/manifests/1"))], StatusCode::TEMPORARY_REDIRECT)
                .into_response()
        }
        "silent" => MANIFEST.into_response(),
        "get-only" if method == Method::HEAD => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        "get-only" => told(digest(MANIFEST)),
        "liar-in-get" if method == Method::HEAD => StatusCode::OK.into_response(),
        "liar-in-get" => told(digest("something else")),
        "portal" => "<html>please log in</html>".into_response(),
        "endless" => vec![b' '; 5 << 20].into_response(),
        "tokens" | "private" if shown == format!("Bearer token-for-{repository}") => told(digest(MANIFEST)),
        "tokens" | "private" | "cleartext" | "tokenless" => {
            let scheme = if repository == "cleartext" { "http" } else { "https" };
            wants(format!(
                r#"Bearer realm="{scheme}://{address}/token",service="the registry",scope="repository:{repository}:pull""#
            ))
        }
        "passwords" if basic(&headers) => told(digest(MANIFEST)),
        "passwords" => wants(r#"Basic realm="nkd""#.into()),
        "forbidden" => refused(StatusCode::FORBIDDEN, "DENIED", "not you"),
        "busy" => refused(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "come\nback  later"),
        "ill" => (StatusCode::BAD_GATEWAY, "x".repeat(70_000)).into_response(),
        _ => refused(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown"),
    }
}

/// Anybody gets one for `tokens`, who knows the password one for `private`.
async fn token(Query(query): Query<Vec<(String, String)>>, headers: HeaderMap) -> Response {
    let value = |key: &str| query.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    assert_eq!(value("service"), Some("the registry"));
    match value("scope").unwrap() {
        "repository:tokens:pull" => axum::Json(json!({"token": "token-for-tokens"})).into_response(),
        "repository:private:pull" if basic(&headers) => {
            axum::Json(json!({"access_token": "token-for-private", "expires_in": 60})).into_response()
        }
        "repository:tokenless:pull" => axum::Json(json!({"token": ""})).into_response(),
        _ => refused(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "incorrect username or password"),
    }
}

impl Lab {
    /// A registry whose authority nobody knows yet.
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &ca).unwrap();
        std::fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let tls = ServerConfig::builder().with_no_client_auth();
        let tls = tls.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = Arc::new(Registry::default());
        *registry.address.lock().unwrap() = address.clone();
        let router = Router::new()
            .route("/v2/{repository}/manifests/{tag}", get(manifest))
            .route("/token", get(token))
            .with_state(registry.clone());
        tokio::spawn(async move { axum::serve(Tls(listener, TlsAcceptor::from(Arc::new(tls))), router).await });
        let below = |name: &str| Some(folder.path().join(name));
        let registries = Registries { cas: below("cas"), credentials: below("config.json") };
        Self { registry, registries, address, folder }
    }

    /// The same with its authority where Kubernetes would mount it.
    async fn trusted() -> Self {
        let lab = Self::start().await;
        std::fs::create_dir_all(lab.path("cas/..data")).unwrap();
        std::fs::copy(lab.path("ca.pem"), lab.path("cas/..data/ca.crt")).unwrap();
        std::os::unix::fs::symlink("..data/ca.crt", lab.path("cas/ca.crt")).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log_in(&self, password: &str) {
        let auth = STANDARD.encode(format!("ci:{password}"));
        let config = json!({"auths": {self.address.clone(): {"auth": auth}}});
        std::fs::write(self.path("config.json"), config.to_string()).unwrap();
    }

    fn image(&self, name: &str) -> Tagged {
        match read(&format!("{}/{name}", self.address)).unwrap() {
            Named::Tag(tagged) => tagged,
            Named::Digest(name) => panic!("{name}"),
        }
    }

    async fn ask(&self, name: &str) -> Result<String, String> {
        let said = self.registries.digest(&self.image(name)).await.map_err(|error| chain(&error));
        assert!(!format!("{said:?}").contains(PASSWORD), "{said:?}");
        said
    }

    #[track_caller]
    fn asked(&self, expected: &[&str]) {
        assert_eq!(std::mem::take(&mut *self.registry.asked.lock().unwrap()), expected);
    }
}

#[tokio::test]
async fn a_tag_is_its_digest_whichever_way_the_registry_tells_it() {
    let lab = Lab::trusted().await;
    assert_eq!(lab.ask("open:1").await, Ok(digest(MANIFEST)));
    lab.asked(&["HEAD open:1"]);
    for name in ["silent:1", "get-only:1", "moved:1"] {
        assert_eq!(lab.ask(name).await, Ok(digest(MANIFEST)), "{name}");
    }
    for (name, said) in [
        ("liar-in-get:1", "another digest than it says"),
        ("portal:1", "something else than the manifest"),
        ("endless:1", "more than any manifest"),
    ] {
        let error = lab.ask(name).await.unwrap_err();
        assert!(error.starts_with(&format!("{} answers with", lab.address)) && error.contains(said), "{error}");
    }
    assert!(lab.ask("downgraded:1").await.is_err(), "nothing is asked without TLS");
}

#[tokio::test]
async fn a_registry_hears_who_asks_in_its_own_way_and_only_when_it_wants_to() {
    let lab = Lab::trusted().await;
    // Nobody is needed for a token that everybody gets.
    assert_eq!(lab.ask("tokens:1").await, Ok(digest(MANIFEST)));
    lab.asked(&["HEAD tokens:1", "HEAD tokens:1"]);
    for name in ["private:1", "passwords:1", "forbidden:1"] {
        let error = lab.ask(name).await.unwrap_err();
        assert!(error.contains("name a user for it in the Secret housekeeper-registries"), "{error}");
    }
    // The next look-up reads what has been mounted meanwhile.
    lab.log_in(PASSWORD);
    for name in ["tokens:1", "private:1", "passwords:1"] {
        assert_eq!(lab.ask(name).await, Ok(digest(MANIFEST)), "{name}");
    }
    lab.log_in("another");
    for (name, said) in [
        ("private:1", "401 Unauthorized: UNAUTHORIZED incorrect username or password"),
        ("passwords:1", "401 Unauthorized: UNAUTHORIZED authentication required"),
        ("forbidden:1", "403 Forbidden: DENIED not you"),
    ] {
        let error = lab.ask(name).await.unwrap_err();
        assert!(error.contains("does not tell the user") && error.contains(said), "{error}");
    }
    lab.log_in(PASSWORD);
    assert!(lab.ask("cleartext:1").await.is_err(), "no password goes anywhere without TLS");
    assert!(lab.ask("tokenless:1").await.unwrap_err().ends_with("answers with no token"));
    std::fs::write(lab.path("config.json"), format!("{PASSWORD} is no JSON")).unwrap();
    let error = lab.ask("open:1").await.unwrap_err();
    assert!(error.contains("config.json cannot be used: put right the Secret"), "{error}");
}

#[tokio::test]
async fn what_a_registry_refuses_is_said_in_its_words() {
    let lab = Lab::trusted().await;
    for (name, said) in [
        ("open:2", "has no such tag (404 Not Found: MANIFEST_UNKNOWN manifest unknown)"),
        ("busy:1", "says 429 Too Many Requests: TOOMANYREQUESTS come back later"),
        ("ill:1", "says 502 Bad Gateway"),
    ] {
        let error = lab.ask(name).await.unwrap_err();
        assert!(error.contains(said) && error.len() < 500, "{error}");
    }
}

#[tokio::test]
async fn an_authority_that_nobody_knows_is_named_and_comes_by_itself() {
    let lab = Lab::start().await;
    let error = lab.ask("open:1").await.unwrap_err();
    assert!(error.contains("cannot be reached (put the authority") && error.contains("UnknownIssuer"), "{error}");
    std::fs::create_dir(lab.path("cas")).unwrap();
    std::fs::write(lab.path("cas/a.crt"), "no PEM").unwrap();
    let error = lab.ask("open:1").await.unwrap_err();
    assert!(error.contains("a.crt holds no certificates in PEM"), "{error}");
    std::fs::rename(lab.path("ca.pem"), lab.path("cas/a.crt")).unwrap();
    assert_eq!(lab.ask("open:1").await, Ok(digest(MANIFEST)));
    // One file is as good.
    let one = Registries { cas: Some(lab.path("cas/a.crt")), credentials: None };
    assert_eq!(one.digest(&lab.image("open:1")).await.unwrap(), digest(MANIFEST));
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let Ok(Named::Tag(away)) = read(&format!("{free}/open:1")) else { panic!("{free}") };
    let error = chain(&lab.registries.digest(&away).await.unwrap_err());
    assert!(error.contains("cannot be reached:") && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn the_operator_hears_of_the_end_and_counts_the_failures() {
    async fn ended(lookups: &mut Lookups, changed: &Notify) -> Looked {
        loop {
            changed.notified().await;
            match lookups.looked("u").unwrap() {
                Looked { state: LookState::UnderWay, .. } => {}
                looked => return looked,
            }
        }
    }
    let lab = Lab::trusted().await;
    let changed = Arc::new(Notify::new());
    let mut lookups = Lookups::new(lab.registries.clone(), changed.clone());
    let (good, bad) = (lab.image("open:1").to_string(), lab.image("open:2").to_string());
    for failed in 1..=2 {
        lookups.begin("u", &bad);
        let looked = ended(&mut lookups, &changed).await;
        assert_eq!((looked.asked.as_str(), looked.failed), (bad.as_str(), failed));
        assert!(matches!(looked.state, LookState::Failed(_)) && looked.said.contains("no such tag"), "{looked:?}");
    }
    lookups.begin("u", &good);
    let looked = ended(&mut lookups, &changed).await;
    let expected = Looked { asked: good, state: LookState::Found(digest(MANIFEST)), failed: 0, said: String::new() };
    assert_eq!(looked, expected, "another image has not failed yet");
    lookups.keep(&["v"].into());
    assert_eq!(lookups.looked("u"), None);
}
