//! What takes a clock or a broken connection: the routes themselves, over a store of their own.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use nkd_api::agent::Purpose;
use nkd_api::machine::Identity;
use nkd_server::content::image::ImageStore;
use nkd_server::fleet::pki::Pki;
use nkd_server::fleet::secret;
use nkd_server::http::{Connection, FirstToken, router};
use nkd_server::ignition::TemplateSet;
use nkd_server::machine::Registry;
use nkd_server::machine::lifecycle::Input;
use nkd_server::service::{Addresses, Service};
use nkd_server::store::{Boot, NewToken, RowEffects, Scope, Seal, Store, TokenUse};
use rcgen::KeyPair;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tower::ServiceExt;
use uuid::Uuid;

use super::{harness, node};

struct Bench {
    _dir: TempDir,
    service: Arc<Service>,
    machine: Uuid,
    boot: Uuid,
}

async fn bench() -> Bench {
    harness::provider();
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Seal::from_key(&[7; 32]).unwrap()).await.unwrap();
    let pki = Pki::load_or_create(&store, OffsetDateTime::now_utc()).await.unwrap();
    let registry = Registry::new(store);
    let identity = Identity { macs: vec!["52:54:00:aa:09:01".parse().unwrap()], ..Identity::default() };
    let machine = registry.declare(Some("n1".into()), identity, "test").await.unwrap().id;
    let boot = Boot {
        id: Uuid::new_v4(),
        machine,
        generation: 0,
        purpose: Purpose::Discovery,
        image: "lab-1".into(),
        created: OffsetDateTime::now_utc(),
        overlay: Vec::new(),
        config: b"{}".to_vec(),
    };
    let id = boot.id;
    let effects = RowEffects { boot: Some(boot), ..RowEffects::default() };
    let booted = Input::Booted(nkd_server::machine::lifecycle::BootTaken::Discovery);
    registry.apply(machine, booted, effects).await.unwrap();
    let service = Arc::new(Service {
        registry,
        images: Arc::new(ImageStore::open(dir.path()).unwrap()),
        templates: TemplateSet::builtin(),
        pki: Arc::new(pki),
        addresses: Addresses { advertise: None, boot_port: 1, api_port: 2 },
        discovery_image: None,
        agent_file: None,
        dhcp: std::sync::OnceLock::new(),
        first_token: FirstToken::default(),
        stopping: tokio_util::sync::CancellationToken::new(),
    });
    Bench { _dir: dir, service, machine, boot: id }
}

impl Bench {
    async fn issue(&self, text: &str, scope: Scope, expires: OffsetDateTime) {
        let token = NewToken {
            hash: secret::digest(text),
            scope,
            machine: self.machine,
            generation: 0,
            purpose: Purpose::Discovery,
            boot: Some(self.boot),
            expires,
        };
        self.service.registry.store().issue_token(&token).await.unwrap();
    }

    async fn send(&self, request: axum::http::request::Builder, body: Body) -> axum::http::Response<Body> {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let connection = Connection { peer: (ip, 1).into(), local: ip, node: None };
        router(Arc::clone(&self.service)).oneshot(request.extension(connection).body(body).unwrap()).await.unwrap()
    }

    async fn fetch(&self, token: &str) -> axum::http::Response<Body> {
        let request = Request::get("/ignition/v1/config").header("Authorization", format!("Bearer {token}"));
        self.send(request, Body::empty()).await
    }

    async fn enroll(&self, token: &str, key: &KeyPair) -> StatusCode {
        let order = node::enroll_order(self.machine, token, &node::request(key)).to_string();
        let request = Request::post("/agent/v1/enroll").header("Content-Type", "application/json");
        self.send(request, Body::from(order)).await.status()
    }

    async fn stopped(&self) -> bool {
        self.service.registry.store().machine(self.machine).await.unwrap().unwrap().0.stopped.is_some()
    }
}

#[tokio::test]
async fn an_expired_token_is_refused_and_accuses_nobody() {
    let bench = bench().await;
    let (past, key) = (OffsetDateTime::now_utc() - Duration::seconds(1), KeyPair::generate().unwrap());
    bench.issue("old-config", Scope::Config, past).await;
    bench.issue("old-enroll", Scope::Enroll, past).await;
    assert_eq!(bench.fetch("old-config").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(bench.enroll("old-enroll", &key).await, StatusCode::FORBIDDEN);
    assert!(!bench.stopped().await);
    // Used in time by a key, asked again by the same key too late: no second user, no alarm.
    let (issued, now) = (OffsetDateTime::now_utc(), OffsetDateTime::now_utc() + Duration::hours(2));
    bench.issue("late", Scope::Enroll, issued + Duration::hours(1)).await;
    let store = bench.service.registry.store();
    let hash = secret::digest("late");
    let used = async |user: [u8; 32], at| store.use_token(&hash, Scope::Enroll, Some(&user), at).await.unwrap();
    assert!(matches!(used([1; 32], issued).await, TokenUse::Granted(_)));
    assert!(matches!(used([1; 32], issued).await, TokenUse::Granted(_)));
    assert!(matches!(used([1; 32], now).await, TokenUse::Expired(_)));
    assert!(matches!(used([2; 32], issued).await, TokenUse::Reused(..)));
    // A token is good for one thing: not the other.
    bench.issue("config", Scope::Config, now).await;
    assert_eq!(bench.enroll("config", &key).await, StatusCode::FORBIDDEN);
    assert!(!bench.stopped().await);
}

#[tokio::test]
async fn a_configuration_that_was_never_handed_over_can_be_fetched_again() {
    let bench = bench().await;
    bench.issue("config", Scope::Config, OffsetDateTime::now_utc() + Duration::hours(1)).await;
    let answer = bench.fetch("config").await;
    assert_eq!(answer.status(), StatusCode::OK);
    // The client went away before a byte was handed over.
    drop(answer);
    let answer = harness::eventually("the token is given back", async || {
        let token = bench.service.registry.store().token(&secret::digest("config"), Scope::Config).await.unwrap();
        match token.unwrap().used {
            None => Some(bench.fetch("config").await),
            Some(_) => None,
        }
    })
    .await;
    assert_eq!(answer.status(), StatusCode::OK);
    let body = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
    assert_eq!(&body[..], b"{}");
    assert!(!bench.stopped().await);
    assert_eq!(bench.fetch("config").await.status(), StatusCode::FORBIDDEN);
    assert!(bench.stopped().await, "handed over is used");
}

#[tokio::test]
async fn only_the_newest_events_are_kept() {
    let bench = bench().await;
    let store = bench.service.registry.store();
    let labels = (0..1_020).map(|n| (format!("l{n:04}"), "x".to_owned())).collect();
    let input = Input::Accept { name: None, labels, cause: "test".into() };
    bench.service.registry.apply(bench.machine, input, RowEffects::default()).await.unwrap();
    let first = store.events(None, Some(0), 1).await.unwrap()[0].id;
    store.prune(OffsetDateTime::now_utc()).await.unwrap();
    let kept = store.events(Some(bench.machine), Some(0), 2_000).await.unwrap();
    assert_eq!(kept.len(), 1_000);
    assert!(kept[0].id > first && kept.last().unwrap().kind == "accepted");
    // A reader who is behind gets the next ones, not the newest ones.
    let next = store.events(None, Some(kept[0].id), 10).await.unwrap();
    assert_eq!(next[0].id, kept[1].id);
    assert_eq!(store.events(None, None, 1).await.unwrap()[0].kind, "accepted");
}
