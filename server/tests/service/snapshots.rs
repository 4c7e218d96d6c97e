//! Snapshots of etcd at the service: who may bring one, who gets it back, and what an upgrade does without one.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use nkd_api::agent::{KubeadmAction, KubeadmState, Purpose, ReportEvent};
use nkd_api::cluster::{Certificates, MemberState};
use nkd_api::facts::{ETCD_SNAPSHOT, Facts};
use nkd_api::snapshot::{EtcdSnapshot, SnapshotState};
use nkd_api::upgrade::{Upgrade, UpgradeState, UpgradeVerb};
use nkd_api::user::{Role, User};
use nkd_server::cluster::etcd::CLIENT_PORT;
use nkd_server::cluster::order::{self, pki_name};
use nkd_server::cluster::pki::ClusterPki;
use nkd_server::cluster::record::{Record, Run};
use nkd_server::cluster::snapshot::take::{self, TakeError};
use nkd_server::cluster::snapshot::turn::Nobody;
use nkd_server::cluster::upgrade::follow;
use nkd_server::fleet::pki::NodeIdentity;
use nkd_server::fleet::secret;
use nkd_server::http::{Connection, router};
use nkd_server::machine::lifecycle::Input;
use nkd_server::store::RowEffects;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use super::cluster_stand_in::StandIn;
use super::harness::{self, Place, eventually};
use super::in_process::{Bench, bench};

const OPERATION: Uuid = Uuid::from_u128(7);

/// A cluster of one control plane, on the bench's machine.
async fn cluster(bench: &Bench, run: Option<Run>) -> Record {
    let now = OffsetDateTime::now_utc();
    let machine = json!({"mac": "52:54:00:aa:09:01", "hostname": "cp1", "ip": "127.0.9.1/8"});
    let cluster = json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "rack7"},
        "spec": {"kubernetes": {"version": "v1.20.2"},
            "pools": [{"name": "cp", "role": "control-plane", "machines": [machine]}]}});
    let mut record = Record::new(Uuid::new_v4(), serde_json::from_value(cluster).unwrap(), now);
    let member = &mut record.members[0];
    (member.state, member.machine, member.run) = (MemberState::Ready, Some(bench.machine), run);
    bench.service.registry.store().save_cluster(&record, 0, &[], "test", now).await.unwrap();
    record
}

fn ordered(ended_at: Option<OffsetDateTime>) -> Run {
    let ordered_at = OffsetDateTime::now_utc();
    Run { operation: OPERATION, action: KubeadmAction::Snapshot, ordered_at, ended_at }
}

fn row(id: Uuid, state: SnapshotState) -> EtcdSnapshot {
    EtcdSnapshot {
        id,
        cluster: "rack7".into(),
        upgrade: Some(1),
        round: 0,
        node: "cp1".into(),
        by: "ada".into(),
        state,
        detail: String::new(),
        ordered_at: OffsetDateTime::now_utc(),
        heard_at: None,
        proof: None,
    }
}

/// An upgrade that waits for its snapshot.
fn preparing() -> Upgrade {
    let upgrade = json!({"cluster": "rack7", "number": 1, "order": {}, "version": "2", "fromKubernetes": "v1.20.2",
        "state": "preparing", "paused": false, "aborted": false, "retry": 0, "by": "ada",
        "startedAt": "2026-01-01T00:00:00Z", "nodes": [], "snapshot": {"since": "2026-01-01T00:00:00Z"}});
    serde_json::from_value(upgrade).unwrap()
}

impl Bench {
    /// Its machine runs the boot that its requests speak of.
    async fn boots(&self) {
        let (purpose, from) = (Purpose::Discovery, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let fetched = Input::ConfigFetched { purpose, generation: 0, boot: self.boot, from };
        self.service.registry.apply(self.machine, fetched, RowEffects::default()).await.unwrap();
    }

    async fn put(&self, operation: Uuid, told: &[u8], body: Body) -> StatusCode {
        let digest = hex::encode(Sha256::digest(told));
        let proof = "revision=60&keys=200&etcdVersion=3.4.23&takenAt=2026-11-28T12%3A00%3A00Z&notCompared=by%20its%20%0Akeys%20alone";
        let uri = format!("/agent/v1/etcd-snapshot/{operation}?size={}&sha256={digest}&{proof}", told.len());
        let node = NodeIdentity { machine: self.machine, purpose: Purpose::Node, generation: 0, boot: self.boot };
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let connection = Connection { peer: (ip, 1).into(), local: ip, node: Some(node) };
        let request = Request::put(uri).extension(connection).body(body).unwrap();
        router(Arc::clone(&self.service)).oneshot(request).await.unwrap().status()
    }

    async fn get(&self, token: &str, path: &str) -> (StatusCode, Vec<u8>) {
        let request = Request::get(path).header("Authorization", format!("Bearer {token}"));
        let answer = self.send(request, Body::empty()).await;
        let status = answer.status();
        (status, answer.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    async fn rows(&self, record: &Record) -> Vec<EtcdSnapshot> {
        self.service.registry.store().snapshots(record.id).await.unwrap()
    }

    async fn user(&self, name: &str, role: Role) -> String {
        let user = User { name: name.into(), role, created_at: OffsetDateTime::now_utc() };
        let token = format!("token-of-{name}");
        self.service.registry.store().create_user(&user, &secret::digest(&token)).await.unwrap();
        token
    }
}

#[tokio::test]
async fn a_node_brings_what_was_ordered_of_it_and_an_administrator_gets_it_back() {
    let bench = bench().await;
    let record = cluster(&bench, Some(ordered(None))).await;
    let store = bench.service.registry.store();
    store.add_snapshot(record.id, &row(OPERATION, SnapshotState::Taking)).await.unwrap();
    bench.boots().await;
    let content: Vec<u8> = b"the secrets of rack7, ".iter().copied().cycle().take(2_500_000).collect();

    assert_eq!(bench.put(Uuid::from_u128(8), &content, content.clone().into()).await, StatusCode::CONFLICT);
    // The connection breaks in the middle, and what comes next is not what was told.
    let (sender, pieces) = tokio::sync::mpsc::channel(1);
    let broken = futures_util::stream::unfold(pieces, |mut pieces: tokio::sync::mpsc::Receiver<_>| async {
        Some((pieces.recv().await?, pieces))
    });
    let half = content[..1_000_000].to_vec();
    let feeder = tokio::spawn(async move {
        sender.send(Ok(bytes::Bytes::from(half))).await.unwrap();
        sender.send(Err(std::io::Error::other("the power went"))).await.unwrap();
    });
    assert_eq!(bench.put(OPERATION, &content, Body::from_stream(broken)).await, StatusCode::SERVICE_UNAVAILABLE);
    feeder.await.unwrap();
    let other = vec![1; content.len()];
    assert_eq!(bench.put(OPERATION, &content, other.into()).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(bench.rows(&record).await[0].state, SnapshotState::Taking);
    let folder = bench.dir.path().join("etcd-snapshots").join(record.id.to_string());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "what broke off leaves nothing");

    assert_eq!(bench.put(OPERATION, &content, content.clone().into()).await, StatusCode::OK);
    let rows = bench.rows(&record).await;
    let proof = rows[0].proof.as_ref().unwrap();
    assert_eq!((rows[0].state, proof.revision, proof.keys), (SnapshotState::Verified, 60, 200));
    assert_eq!(proof.not_compared.as_deref(), Some("by its keys alone"));
    let sealed = std::fs::read(folder.join(format!("{OPERATION}.sealed"))).unwrap();
    assert!(!sealed.windows(11).any(|part| part == b"the secrets"));
    // The answer was lost: it comes once more, and the node's end changes nothing.
    assert_eq!(bench.put(OPERATION, &content, content.clone().into()).await, StatusCode::OK);
    order::reported(&bench.service, bench.machine, OPERATION, &KubeadmState::Done).await.unwrap();
    assert_eq!(bench.rows(&record).await, rows);
    assert_eq!(bench.put(OPERATION, &content, content.clone().into()).await, StatusCode::CONFLICT, "its run is over");

    let path = format!("/api/v1/clusters/rack7/snapshots/{OPERATION}/data");
    let (operator, admin) = (bench.user("olga", Role::Operator).await, bench.user("ada", Role::Admin).await);
    assert_eq!(bench.get("nobody", &path).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(bench.get(&operator, &path).await.0, StatusCode::FORBIDDEN);
    let (status, data) = bench.get(&admin, &path).await;
    assert!(status == StatusCode::OK && data == content);
    let audit = store.audit_trail(10).await.unwrap();
    assert!(audit.iter().any(|entry| entry.action == "cluster.snapshot.get" && entry.who == "ada"), "{audit:?}");
    let (_, list) = bench.get(&operator, "/api/v1/clusters/rack7/snapshots").await;
    let list: Value = serde_json::from_slice(&list).unwrap();
    assert_eq!((&list[0]["state"], &list[0]["proof"]["etcdVersion"]), (&json!("verified"), &json!("3.4.23")));
}

#[tokio::test]
async fn what_just_came_and_what_an_upgrade_rests_on_stay_whatever_the_clock_said_before() {
    let bench = bench().await;
    let record = cluster(&bench, Some(ordered(None))).await;
    let store = bench.service.registry.store();
    let (rests_on, tomorrow) = (Uuid::from_u128(1), OffsetDateTime::now_utc() + time::Duration::DAY);
    let upgrade = Upgrade { state: UpgradeState::Paused, paused: true, ..preparing() };
    harness::begin(store, record.id, &upgrade).await.unwrap();
    store.add_snapshot(record.id, &row(rests_on, SnapshotState::Verified)).await.unwrap();
    let by_hand = |id: Uuid, state| EtcdSnapshot { upgrade: None, ..row(id, state) };
    for number in 20..26 {
        let ahead = by_hand(Uuid::from_u128(number), SnapshotState::Verified);
        store.add_snapshot(record.id, &EtcdSnapshot { ordered_at: tomorrow, ..ahead }).await.unwrap();
    }
    store.add_snapshot(record.id, &by_hand(OPERATION, SnapshotState::Taking)).await.unwrap();
    bench.boots().await;
    assert_eq!(bench.put(OPERATION, b"a snapshot", "a snapshot".into()).await, StatusCode::OK);
    let there = async || bench.rows(&record).await.iter().map(|row| row.id.as_u128()).collect::<Vec<_>>();
    assert_eq!(there().await, [7, 25, 24, 23, 22, 1]);
    let folder = bench.dir.path().join("etcd-snapshots").join(record.id.to_string());
    assert!(folder.join(format!("{OPERATION}.sealed")).exists());
    // The upgrade is over: its snapshot is one of many.
    let (newest, revision) = store.newest_upgrade(record.id).await.unwrap().unwrap();
    store.save_upgrade(record.id, &Upgrade { state: UpgradeState::Complete, ..newest }, revision).await.unwrap();
    assert_eq!(bench.put(OPERATION, b"a snapshot", "a snapshot".into()).await, StatusCode::OK);
    assert_eq!(there().await, [7, 25, 24, 23, 22]);
}

#[tokio::test]
async fn a_snapshot_whose_run_is_over_has_failed_and_one_that_fails_says_why() {
    let bench = bench().await;
    let record = cluster(&bench, Some(ordered(None))).await;
    let store = bench.service.registry.store();
    let left = Uuid::from_u128(9);
    store.add_snapshot(record.id, &row(left, SnapshotState::Taking)).await.unwrap();
    store.add_snapshot(record.id, &row(OPERATION, SnapshotState::Taking)).await.unwrap();
    take::look(&bench.service).await.unwrap();
    let state = async |id| bench.rows(&record).await.into_iter().find(|row| row.id == id).unwrap();
    let given_up = state(left).await;
    assert!(given_up.state == SnapshotState::Failed && given_up.detail.contains("given up"), "{given_up:?}");
    let running = KubeadmState::Running { step: "prove".into() };
    order::reported(&bench.service, bench.machine, OPERATION, &running).await.unwrap();
    let seen = state(OPERATION).await;
    assert_eq!((seen.state, seen.detail.as_str()), (SnapshotState::Taking, "prove"));
    let failed = KubeadmState::Failed { step: "prove".into(), reason: "no keys".into(), log_tail: String::new() };
    order::reported(&bench.service, bench.machine, OPERATION, &failed).await.unwrap();
    let seen = state(OPERATION).await;
    assert_eq!((seen.state, seen.detail.as_str()), (SnapshotState::Failed, "prove: no keys"));
    let (now, _) = store.cluster(record.id).await.unwrap().unwrap();
    assert_eq!(now.members[0].state, MemberState::Ready, "the node stays what it is");
}

/// Follows upgrades until this is dropped.
fn follow(bench: &Bench) -> tokio_util::sync::DropGuard {
    let stop = CancellationToken::new();
    tokio::spawn(follow::run(Arc::clone(&bench.service), stop.clone()));
    stop.drop_guard()
}

#[tokio::test]
async fn an_upgrade_without_its_snapshot_waits_is_tried_again_and_can_be_called_off() {
    let bench = bench().await;
    let record = cluster(&bench, Some(ordered(Some(OffsetDateTime::now_utc())))).await;
    let store = bench.service.registry.store();
    let mut upgrade = preparing();
    harness::begin(store, record.id, &upgrade).await.unwrap();
    let _follower = follow(&bench);
    let newest = async |what: &str, fits: fn(&Upgrade) -> bool| {
        eventually(what, async || {
            bench.service.upgrades.notify_one();
            store.newest_upgrade(record.id).await.unwrap().map(|(upgrade, _)| upgrade).filter(fits)
        })
        .await
    };
    // Nobody can take one: the cluster's keys are not here.
    let told = newest("it says why it waits", |upgrade| upgrade.detail.contains("(try 1 of 5")).await;
    assert!(told.state == UpgradeState::Preparing && told.detail.contains("PKI"), "{told:?}");
    assert_eq!(bench.rows(&record).await.len(), 1);
    follow::change(&bench.service, &record, UpgradeVerb::Retry).await.unwrap();
    newest("it is tried again at once", |upgrade| upgrade.detail.contains("(try 1 of 5")).await;
    assert_eq!(bench.rows(&record).await.len(), 2);
    follow::change(&bench.service, &record, UpgradeVerb::Abort).await.unwrap();
    let over = newest("it is called off", |upgrade| upgrade.state.is_end()).await;
    assert!(over.state == UpgradeState::Aborted && over.detail.contains("nothing has changed"), "{over:?}");
    assert!(over.ended_at.is_some());

    // The next one tries in vain five times, and halts until somebody asks; then one is there, and it goes on.
    upgrade.number = 2;
    for minute in 0..5 {
        let at = upgrade.started_at + time::Duration::minutes(minute);
        let mut failed = row(Uuid::new_v4(), SnapshotState::Failed);
        (failed.upgrade, failed.ordered_at, failed.detail) = (Some(2), at, "save: the disk is full".into());
        store.add_snapshot(record.id, &failed).await.unwrap();
    }
    harness::begin(store, record.id, &upgrade).await.unwrap();
    let halted = newest("it halts", |upgrade| upgrade.state == UpgradeState::Halted).await;
    assert!(halted.detail.contains("tried 5 times") && halted.detail.contains("the disk is full"), "{halted:?}");
    follow::change(&bench.service, &record, UpgradeVerb::Retry).await.unwrap();
    let mut verified = row(Uuid::new_v4(), SnapshotState::Verified);
    (verified.upgrade, verified.round) = (Some(2), 1);
    store.add_snapshot(record.id, &verified).await.unwrap();
    let goes_on = |upgrade: &Upgrade| upgrade.detail.contains("it cannot be looked at now: the PKI");
    let told = newest("it goes on to its cluster", goes_on).await;
    assert!(told.snapshot.unwrap().is_taken());
}

/// An etcd that takes connections and never answers.
async fn silent_etcd(bench: &Bench, record: &mut Record) -> TcpListener {
    let ip: IpAddr = Place::new().ip.parse().unwrap();
    let (store, now) = (bench.service.registry.store(), OffsetDateTime::now_utc());
    let pki = ClusterPki::create(&Certificates::default(), now).unwrap();
    store.save_secrets(&[(&pki_name(record.id), &pki.to_document().unwrap())]).await.unwrap();
    record.members[0].address = Some(ip);
    let (_, revision) = store.cluster(record.id).await.unwrap().unwrap();
    store.save_cluster(record, revision, &[], "test", now).await.unwrap();
    TcpListener::bind((ip, CLIENT_PORT)).await.unwrap()
}

#[tokio::test]
async fn an_etcd_that_does_not_answer_holds_up_nothing_of_other_clusters() {
    let bench = bench().await;
    let mut record = cluster(&bench, None).await;
    let etcd = silent_etcd(&bench, &mut record).await;
    let asked = tokio::spawn({
        let service = Arc::clone(&bench.service);
        async move { take::order(&service, record.id, None, "ada").await }
    });
    let _connection = etcd.accept().await.unwrap();
    let others = async {
        take::look(&bench.service).await.unwrap();
        take::order(&bench.service, Uuid::from_u128(1), None, "ada").await.unwrap_err()
    };
    let soon = tokio::time::timeout(std::time::Duration::from_secs(3), others).await;
    assert!(matches!(soon, Ok(TakeError::Cluster(_))), "there is no such cluster: {soon:?}");
    assert!(!asked.is_finished());
    asked.abort();
}

#[tokio::test]
async fn of_two_that_order_a_snapshot_at_once_one_gets_it() {
    let bench = bench().await;
    let mut record = cluster(&bench, None).await;
    let etcd = silent_etcd(&bench, &mut record).await;
    let ip = etcd.local_addr().unwrap().ip();
    drop(etcd);
    let store = bench.service.registry.store();
    let pki = ClusterPki::from_document(&store.secret(&pki_name(record.id)).await.unwrap().unwrap()).unwrap();
    let _cluster = StandIn::start(&pki, ip).await;
    bench.boots().await;
    let facts = Box::new(Facts { can: vec![ETCD_SNAPSHOT.into()], ..Facts::default() });
    let told = Input::Reported(ReportEvent::Facts { facts });
    bench.service.registry.apply(bench.machine, told, RowEffects::default()).await.unwrap();

    let order = || take::order(&bench.service, record.id, None, "ada");
    let (first, second) = tokio::join!(order(), order());
    let (row, refused) = match (first, second) {
        (Ok(row), Err(refused)) | (Err(refused), Ok(row)) => (row, refused),
        both => panic!("{both:?}"),
    };
    assert!(matches!(refused, TakeError::Nobody(Nobody::Now(_))), "{refused:?}");
    let rows = bench.rows(&record).await;
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [row.id]);
    let (now, _) = store.cluster(record.id).await.unwrap().unwrap();
    assert_eq!(now.members[0].run.map(|run| run.operation), Some(row.id));
}
