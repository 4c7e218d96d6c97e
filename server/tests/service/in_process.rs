//! What takes a clock or a broken connection: the routes themselves, over a store of their own.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use nkd_api::agent::Purpose;
use nkd_api::channel::Channel;
use nkd_api::machine::{AcceptRule, Identity, MatchFields};
use nkd_api::upgrade::{Upgrade, UpgradeState};
use nkd_server::cluster::record::Record;
use nkd_server::cluster::snapshot::take::Snapshots;
use nkd_server::cluster::snapshot::vault::Vault;
use nkd_server::cluster::upgrade::follow;
use nkd_server::content::channel::hold::Hold;
use nkd_server::content::image::ImageStore;
use nkd_server::content::registry::OciRegistry;
use nkd_server::fleet::lock::{self, Asker, Clusters, Locks, Refused, Rules};
use nkd_server::fleet::pki::Pki;
use nkd_server::fleet::{reboots, secret};
use nkd_server::http::{Connection, FirstToken, router};
use nkd_server::ignition::TemplateSet;
use nkd_server::machine::lifecycle::Input;
use nkd_server::machine::{Registry, RegistryError};
use nkd_server::netboot::bootplane::{self, Handler};
use nkd_server::netboot::dhcp::{Lease, LeaseChange, LeaseState, LeaseStore};
use nkd_server::netboot::leases::Leases;
use nkd_server::netboot::plane::{BootPlane, NetbootFiles};
use nkd_server::service::{Addresses, Service};
use nkd_server::store::{Boot, Change, NewToken, RowEffects, Scope, Seal, Store, StoreError, TokenUse};
use rcgen::KeyPair;
use serde_json::json;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use super::{harness, node};

pub struct Bench {
    pub dir: TempDir,
    pub service: Arc<Service>,
    pub machine: Uuid,
    pub boot: Uuid,
}

pub async fn bench() -> Bench {
    bench_with(false).await
}

async fn bench_with(require_lease: bool) -> Bench {
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
    let channels = Arc::new(nkd_server::content::channel::Channels::new(registry.store().clone(), dir.path()));
    let images = Arc::new(ImageStore::open(dir.path()).unwrap());
    let oci = OciRegistry::open(registry.store().clone(), images.blobs().clone(), dir.path()).unwrap();
    let rules = nkd_server::fleet::lock::Rules { slots: 1, groups_of_one: 32, lease: time::Duration::HOUR };
    let service = Arc::new(Service {
        reboots: nkd_server::fleet::reboots::Reboots::new(registry.store().clone(), rules),
        registry,
        channels,
        images,
        oci: Arc::new(oci),
        anonymous_pull: true,
        templates: TemplateSet::builtin(),
        pki: Arc::new(pki),
        addresses: Addresses { advertise: None, boot_port: 1, api_port: 2 },
        discovery_image: None,
        require_lease,
        orders: nkd_server::cluster::bringup::Orders::default(),
        upgrades: tokio::sync::Notify::new(),
        snapshots: Snapshots::new(Vault::new(dir.path(), Seal::from_key(&[7; 32]).unwrap())),
        watches: nkd_server::cluster::watch::Watches::default(),
        agent_file: None,
        dhcp: std::sync::OnceLock::new(),
        first_token: FirstToken::default(),
        stopping: tokio_util::sync::CancellationToken::new(),
    });
    Bench { dir, service, machine, boot: id }
}

impl Bench {
    async fn issue(&self, text: &str, scope: Scope, expires: OffsetDateTime) {
        let token = NewToken {
            hash: secret::digest(text),
            scope,
            machine: self.machine,
            generation: 0,
            purpose: Purpose::Discovery,
            boot: self.boot,
            expires,
        };
        self.service.registry.store().issue_node_token(&token, OffsetDateTime::now_utc()).await.unwrap();
    }

    pub async fn send(&self, request: axum::http::request::Builder, body: Body) -> axum::http::Response<Body> {
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

/// A request for the second boot script.
fn script_request(peer: &str, mac: &str) -> bootplane::Request {
    bootplane::Request {
        method: bootplane::Method::Get,
        path: "/boot.ipxe".into(),
        query: format!("mac={mac}"),
        peer: format!("{peer}:1234").parse().unwrap(),
        local: "192.0.2.1:8080".parse().unwrap(),
        host: None,
        user_agent: None,
        range: None,
        if_range: None,
        if_none_match: None,
        keep_alive: false,
        http_10: false,
    }
}

#[tokio::test]
async fn a_boot_script_goes_only_to_the_address_that_was_leased_to_the_machine() {
    let bench = bench_with(true).await;
    let files = NetbootFiles { folder: "/nonexistent".into() };
    let plane = BootPlane::new(Arc::clone(&bench.service), files);
    let leases = Leases::new(bench.service.registry.store().clone());
    let lease = |ip: &str, mac: &str, state| {
        let (ip, mac) = (ip.parse().unwrap(), mac.parse().unwrap());
        LeaseChange::Put(Lease { ip, mac, state, granted_at: 0, expires_at: 1, hostname: None })
    };
    let (ours, other) = ("52:54:00:aa:09:01", "52:54:00:aa:09:02");
    let changes = [
        lease("192.0.2.100", ours, LeaseState::Bound),
        lease("192.0.2.101", other, LeaseState::Bound),
        lease("192.0.2.102", ours, LeaseState::Declined),
    ];
    leases.save(&changes).await.unwrap();
    // A lease whose time is over but that nobody else got is as good: a waiting iPXE does not renew it.
    for (peer, mac, status) in [
        ("192.0.2.100", ours, 200),
        ("192.0.2.101", ours, 403),
        ("192.0.2.102", ours, 403),
        ("192.0.2.103", ours, 403),
        ("127.0.0.1", ours, 403),
        ("192.0.2.101", other, 200),
        ("192.0.2.100", other, 403),
    ] {
        assert_eq!(plane.answer(&script_request(peer, mac)).await.status, status, "{peer} as {mac}");
    }
    // The last change of an address counts, whatever came before it in one go.
    leases
        .save(&[lease("192.0.2.100", other, LeaseState::Bound), LeaseChange::Remove("192.0.2.100".parse().unwrap())])
        .await
        .unwrap();
    assert_eq!(plane.answer(&script_request("192.0.2.100", ours)).await.status, 403);
    assert_eq!(leases.load().await.unwrap().len(), 2);
}

#[tokio::test]
async fn made_up_machines_do_not_fill_the_disk() {
    let bench = bench().await;
    let registry = &bench.service.registry;
    let store = registry.store();
    let stranger = |n: u16| {
        let [high, low] = n.to_be_bytes();
        Identity { macs: vec![nkd_api::MacAddr([0x52, 0x54, 0, 1, high, low])], ..Identity::default() }
    };
    let now = OffsetDateTime::now_utc();
    let insert = |n| {
        let machine = nkd_server::machine::lifecycle::new_machine(Uuid::now_v7(), stranger(n), now);
        async move {
            let change = Change { machine: &machine, revision: 0, events: &[], effects: RowEffects::default() };
            store.save_machine(change, now).await.unwrap();
        }
    };
    futures_util::future::join_all((0..4095).map(insert)).await;
    let meet = async |n| registry.sighted(stranger(n), None, "dhcp", false).await;
    // One of the 4,096 is the declared machine of this bench, which nobody has accepted.
    assert!(matches!(meet(5_000).await, Err(RegistryError::TooManyUnknown)));
    assert!(meet(7).await.is_ok(), "whoever is known is known");
    // Whom a rule lets in is no stranger.
    let matches = MatchFields { mac: Some("52:54:00:01:ee:*".into()), ..MatchFields::default() };
    let rule = AcceptRule { name: "r".into(), matches, labels: Default::default(), assignment: None };
    store.save_rule(&rule).await.unwrap();
    assert!(meet(0xee01).await.unwrap().accepted);
    assert!(matches!(meet(5_001).await, Err(RegistryError::TooManyUnknown)));
    // Those that were not seen for longest make room, but no machine that has a label.
    let later = now + time::Duration::minutes(11);
    assert_eq!(store.forget_unknown(now - time::Duration::minutes(1), 9_999).await.unwrap(), 0);
    assert_eq!(store.forget_unknown(later, 100).await.unwrap(), 100);
    let files = NetbootFiles { folder: "/nonexistent".into() };
    let plane = BootPlane::new(Arc::clone(&bench.service), files);
    assert_eq!(plane.answer(&script_request("192.0.2.9", "52:54:00:02:00:01")).await.status, 503);
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

/// Neither comes first by chance: a release that an upgrade goes to stays, and one that went, or was marked, is not begun. Nor
/// is an upgrade of a cluster of which a node was removed while it was looked at.
#[tokio::test]
async fn an_upgrade_and_what_takes_its_release_away_exclude_each_other() {
    let bench = bench().await;
    let store = bench.service.registry.store();
    let now = OffsetDateTime::now_utc();
    let release = |number: u32| {
        json!({"number": number, "version": number.to_string(), "commit": format!("{number}").repeat(64),
            "reference": "lab", "publishedAt": "2026-01-01T00:00:00Z"})
    };
    let channel =
        json!({"name": "stable", "profile": "lab", "architecture": "x86_64", "releases": [release(1), release(2)]});
    let channel: Channel = serde_json::from_value(channel).unwrap();
    store.save_channel(&channel, 0).await.unwrap();
    let upgrade = json!({"cluster": "rack7", "number": 1, "order": {"channel": "stable"}, "version": "1", "commit": "1".repeat(64),
        "fromKubernetes": "v1.20.2", "state": "running", "paused": false, "aborted": false, "retry": 0, "by": "test",
        "startedAt": "2026-01-01T00:00:00Z", "nodes": []});
    let upgrade: Upgrade = serde_json::from_value(upgrade).unwrap();
    let (mut clusters, commit) = (Vec::new(), "1".repeat(64));
    for name in ["rack7", "rack8"] {
        let cluster = json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": name},
            "spec": {"kubernetes": {"version": "v1.20.2"}, "pools": []}});
        let record = Record::new(Uuid::new_v4(), serde_json::from_value(cluster).unwrap(), now);
        store.save_cluster(&record, 0, &["applied".into()], "test", now).await.unwrap();
        clusters.push(record.id);
    }
    let rest = Channel { releases: channel.releases[1..].to_vec(), ..channel.clone() };
    let revision = async || store.channel("stable").await.unwrap().map_or(0, |(_, revision)| revision);
    let retire = async |revision| store.retire(&rest, revision, &[&commit], &[], now).await;
    let begin = async |cluster, revision| {
        let members = store.cluster(cluster).await.unwrap().map_or(0, |(_, revision)| revision);
        store.begin_upgrade((cluster, members), &upgrade, ("stable", revision), |_| true).await
    };

    let first = revision().await;
    begin(clusters[0], first).await.unwrap();
    assert!(matches!(retire(first).await, Err(StoreError::Stale)));
    let (there, holds) = (store.channel("stable").await, store.delete_channel(&channel, first, &[], now).await);
    assert_eq!(there.unwrap().unwrap(), (channel.clone(), first));
    let goes = Hold::Upgrade { cluster: "rack7".into(), number: 1, state: UpgradeState::Running };
    assert_eq!(holds.unwrap(), [goes]);
    assert_eq!(revision().await, first, "it is there still");
    let mut over = upgrade.clone();
    over.state = UpgradeState::Complete;
    store.save_upgrade(clusters[0], &over, 1).await.unwrap();
    retire(first).await.unwrap();
    let late = begin(clusters[1], first).await;
    assert!(matches!(late, Err(StoreError::Stale)), "{late:?}");

    // The whole channel; and one that was made anew is not the one that was looked at.
    let second = revision().await;
    let stale = store.delete_channel(&channel, first, &[], now).await;
    assert!(matches!(stale, Err(StoreError::Stale)), "{stale:?}");
    assert_eq!(store.delete_channel(&rest, second, &[], now).await.unwrap(), []);
    let late = begin(clusters[1], second).await;
    assert!(matches!(late, Err(StoreError::Stale)), "{late:?}");
    store.save_channel(&channel, 0).await.unwrap();
    for old in [first, second] {
        let late = begin(clusters[1], old).await;
        assert!(matches!(late, Err(StoreError::Stale)), "{late:?}");
    }
    let (mut record, members) = store.cluster(clusters[1]).await.unwrap().unwrap();
    record.destroying = true;
    store.save_cluster(&record, members, &[], "test", now).await.unwrap();
    let late = store.begin_upgrade((clusters[1], members), &upgrade, ("stable", revision().await), |_| true).await;
    assert!(matches!(late, Err(StoreError::Stale)), "{late:?}");
    assert_eq!(store.newest_upgrade(clusters[1]).await.unwrap(), None);
    begin(clusters[1], revision().await).await.unwrap();
}

/// However they meet: a node of a cluster restarts by a lease of the lock or by an upgrade of its cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_and_an_upgrade_of_its_cluster_exclude_each_other() {
    let bench = bench().await;
    let (store, now) = (bench.service.registry.store(), OffsetDateTime::now_utc());
    let cluster = json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "rack7"},
        "spec": {"kubernetes": {"version": "v1.20.2"}, "pools": [{"name": "cp", "role": "control-plane",
            "machines": [{"mac": "52:54:00:aa:09:02", "hostname": "cp1", "ip": "192.0.2.11/24"}]}]}});
    let record = Record::new(Uuid::new_v4(), serde_json::from_value(cluster).unwrap(), now);
    store.save_cluster(&record, 0, &[], "test", now).await.unwrap();
    let channel = json!({"name": "stable", "profile": "lab", "architecture": "x86_64", "releases": []});
    store.save_channel(&serde_json::from_value(channel).unwrap(), 0).await.unwrap();
    let (_, revision) = store.channel("stable").await.unwrap().unwrap();
    let nodes = reboots::nodes(store, &bench.service.channels, &record).await.unwrap();
    let asker = Asker { group: "rack", id: "0a0b", address: "192.0.2.11".parse().unwrap() };

    let mut won = [0, 0];
    for number in 1..=40_u32 {
        let upgrade = json!({"cluster": "rack7", "number": number, "order": {}, "version": "1",
            "fromKubernetes": "v1.20.2", "state": "preparing", "paused": false, "aborted": false, "retry": 0,
            "by": "test", "startedAt": "2026-01-01T00:00:00Z", "nodes": []});
        let mut upgrade: Upgrade = serde_json::from_value(upgrade).unwrap();
        let begin = async || {
            let free = |locks: &Locks| lock::held(&nodes, locks, now).is_empty();
            store.begin_upgrade((record.id, 1), &upgrade, ("stable", revision), free).await
        };
        let ask = async || bench.service.reboots.lock(&asker, &bench.service.channels, now).await.unwrap();
        let (leased, begun) = match number % 3 {
            0 => {
                let leased = ask().await;
                (leased, begin().await)
            }
            1 => {
                let begun = begin().await;
                (ask().await, begun)
            }
            _ => tokio::join!(ask(), begin()),
        };
        match (leased, begun) {
            (Ok(_), Err(StoreError::Stale)) => {
                won[0] += 1;
                assert!(bench.service.reboots.unlock("rack", "0a0b").await.unwrap());
            }
            (Err(why @ Refused::Rollout { .. }), Ok(())) => {
                won[1] += 1;
                assert!(why.to_string().contains(&format!("whose upgrade {number} is preparing")), "{why}");
                upgrade.state = UpgradeState::Complete;
                store.save_upgrade(record.id, &upgrade, 1).await.unwrap();
            }
            both => panic!("{number}: {both:?}"),
        }
    }
    assert!(won[0] > 12 && won[1] > 12, "both came first: {won:?}");

    // What was decided before the other had begun is not written after that.
    let upgrade = json!({"cluster": "rack7", "number": 99, "order": {}, "version": "1", "fromKubernetes": "v1.20.2",
        "state": "paused", "paused": true, "aborted": false, "retry": 0, "by": "test",
        "startedAt": "2026-01-01T00:00:00Z", "nodes": []});
    let upgrade: Upgrade = serde_json::from_value(upgrade).unwrap();
    let mut locks = store.locks().await.unwrap();
    let rules = Rules { slots: 1, groups_of_one: 32, lease: Duration::HOUR };
    locks.lock(&asker, Clusters { rollouts: &[], planes: &[] }, &rules, now).unwrap();
    let taken = store.begin_upgrade((record.id, 1), &upgrade, ("stable", revision), |_| false).await;
    assert!(matches!(taken, Err(StoreError::Stale)), "{taken:?}");
    store.begin_upgrade((record.id, 1), &upgrade, ("stable", revision), |_| true).await.unwrap();
    let late = store.save_locks(&locks, Some(&[])).await;
    assert!(matches!(late, Err(StoreError::Stale)), "{late:?}");
    assert_eq!(store.locks().await.unwrap().lasting(now).count(), 0);
}

/// Two that begin at once get one number, and one of them is refused; while its cluster cannot be asked, the reason is said.
#[tokio::test]
async fn an_upgrade_is_begun_once_and_a_cluster_that_cannot_be_asked_is_told() {
    let bench = bench().await;
    let store = bench.service.registry.store();
    let now = OffsetDateTime::now_utc();
    let cluster = json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "rack7"},
        "spec": {"kubernetes": {"version": "v1.20.2"}, "pools": []}});
    let record = Record::new(Uuid::new_v4(), serde_json::from_value(cluster).unwrap(), now);
    store.save_cluster(&record, 0, &["applied".into()], "test", now).await.unwrap();
    let upgrade = json!({"cluster": "rack7", "number": 1, "order": {}, "version": "2", "fromKubernetes": "v1.20.2",
        "state": "running", "paused": false, "aborted": false, "retry": 0, "by": "test",
        "startedAt": "2026-01-01T00:00:00Z", "nodes": []});
    let upgrade: Upgrade = serde_json::from_value(upgrade).unwrap();
    harness::begin(store, record.id, &upgrade).await.unwrap();
    let second = harness::begin(store, record.id, &upgrade).await;
    assert!(matches!(second, Err(StoreError::Conflict(_))), "{second:?}");

    let stop = CancellationToken::new();
    let follower = tokio::spawn(follow::run(Arc::clone(&bench.service), stop.clone()));
    bench.service.upgrades.notify_one();
    let told = harness::eventually("it is told", async || {
        let (told, _) = store.newest_upgrade(record.id).await.unwrap().unwrap();
        (!told.detail.is_empty()).then_some(told)
    })
    .await;
    stop.cancel();
    follower.await.unwrap();
    assert!(told.detail.contains("it cannot be looked at now: the PKI of this cluster"), "{told:?}");
    assert_eq!((told.state, told.ended_at), (UpgradeState::Running, None));
}
