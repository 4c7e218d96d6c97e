//! `nkd upgrade ...` against an upgrade that goes on: the real command line and the real routes and follower of the service, before a
//! stand-in for the cluster (`cluster_stand_in.rs`), whose operator says what the test says.

use std::io::{BufRead, Read};
use std::net::IpAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nkd_api::agent::KubeadmState;
use nkd_api::channel::Channel;
use nkd_api::cluster::{Certificates, Health, MemberState};
use nkd_api::update::{Condition, NodeState, NodeStatus, Phase, UpdateStatus};
use nkd_api::upgrade::{Upgrade, UpgradeState};
use nkd_api::user::{Role, User};
use nkd_server::cluster::order::pki_name;
use nkd_server::cluster::pki::ClusterPki;
use nkd_server::cluster::record::Record;
use nkd_server::cluster::renewal::{self, Turn};
use nkd_server::cluster::upgrade::follow;
use nkd_server::fleet::secret;
use nkd_server::http::{TlsServer, router};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::cluster_stand_in::StandIn;
use super::harness::{API, Place, Running, begin, ended, eventually, text};
use super::in_process::{Bench, bench};

const TOKEN: &str = "token-of-ada";

/// A service with a healthy cluster of a worker and one or two control planes, and a channel of three releases.
struct Scene {
    place: Place,
    bench: Bench,
    cluster: StandIn,
    second: Option<StandIn>,
    record: Record,
    _stop: DropGuard,
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Scene {
    async fn new(two: bool) -> Self {
        let (place, bench, now) = (Place::new(), bench().await, OffsetDateTime::now_utc());
        let (store, ip) = (bench.service.registry.store(), place.ip.parse::<IpAddr>().unwrap());
        let pki = ClusterPki::create(&Certificates::default(), now).unwrap();
        let other: IpAddr = Place::new().ip.parse().unwrap();
        let machine = |mac: u8, name: &str, ip: IpAddr| json!({"mac": format!("52:54:00:aa:09:0{mac}"), "hostname": name, "ip": format!("{ip}/8")});
        let mut planes = vec![machine(1, "cp1", ip)];
        planes.extend(two.then(|| machine(2, "cp2", other)));
        let spec = json!({
        "os": {"profile": "lab", "channel": "stable"}, "kubernetes": {"version": "v1.20.2"},
        "housekeeper": {"enabled": true, "maxUnavailable": 1},
        "pools": [
            {"name": "cp", "role": "control-plane", "machines": planes},
            {"name": "w", "role": "worker", "machines": [machine(3, "w1", ip)]},
        ]});
        let cluster =
            json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "rack7"}, "spec": spec});
        let mut record = Record::new(Uuid::new_v4(), serde_json::from_value(cluster).unwrap(), now);
        record.health = Health::Healthy;
        for member in &mut record.members {
            let own = if member.hostname == "cp2" { other } else { ip };
            (member.state, member.address) = (MemberState::Ready, Some(own));
        }
        store.save_cluster(&record, 0, &[], "test", now).await.unwrap();
        store.save_secrets(&[(&pki_name(record.id), &pki.to_document().unwrap())]).await.unwrap();
        let release = |number: u32, kubernetes: &str| {
            json!({"number": number, "version": format!("{number}.0"), "commit": number.to_string().repeat(64),
                "reference": "lab", "publishedAt": "2026-01-01T00:00:00Z", "kubernetes": kubernetes})
        };
        let releases = [release(1, "v1.20.2"), release(2, "v1.21.0"), release(3, "v1.21.1")];
        let channel = json!({"name": "stable", "profile": "lab", "architecture": "x86_64", "releases": releases});
        let channel: Channel = serde_json::from_value(channel).unwrap();
        store.save_channel(&channel, 0).await.unwrap();
        let ada = User { name: "ada".into(), role: Role::Operator, created_at: now };
        store.create_user(&ada, &secret::digest(TOKEN)).await.unwrap();

        let cluster = StandIn::start(&pki, ip).await;
        let second = if two { Some(StandIn::start(&pki, other).await) } else { None };
        let stop = CancellationToken::new();
        let tls = bench.service.pki.server_config(store, &[], &[ip], now).await.unwrap();
        let server = TlsServer::bind((ip, API).into(), tls, router(Arc::clone(&bench.service))).await.unwrap();
        tokio::spawn(server.run(stop.clone()));
        tokio::spawn(follow::run(Arc::clone(&bench.service), stop.clone()));
        std::fs::create_dir_all(place.state()).unwrap();
        std::fs::write(place.state().join("ca.pem"), bench.service.pki.ca_pem()).unwrap();
        Self { place, bench, cluster, second, record, _stop: stop.drop_guard() }
    }

    fn nkd(&self, verb: &str, more: &[&str]) -> Said {
        let out = self.place.cli_as(TOKEN, &[&["upgrade", verb, "rack7"][..], more].concat());
        Said { code: out.status.code(), out: text(&out.stdout), err: text(&out.stderr) }
    }

    /// A command that goes well.
    fn ok(&self, verb: &str, more: &[&str]) -> String {
        let said = self.nkd(verb, more);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{verb} {more:?}: {}", said.out);
        said.out
    }

    /// One that is refused: its reason.
    fn refused(&self, verb: &str, more: &[&str]) -> String {
        let said = self.nkd(verb, more);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{verb} {more:?}: {}", said.err);
        said.err
    }

    /// What the service has written into an Update, once it is as wanted.
    async fn spec(&self, name: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || {
            self.bench.service.upgrades.notify_one();
            Some(self.cluster.update(name)?["spec"].clone()).filter(|spec| fits(spec))
        })
        .await
    }

    /// The newest upgrade, once it is so far.
    async fn upgrade(&self, what: &str, fits: impl Fn(&Upgrade) -> bool) -> Upgrade {
        eventually(what, async || {
            self.bench.service.upgrades.notify_one();
            let newest = self.bench.service.registry.store().newest_upgrade(self.record.id).await.unwrap();
            newest.map(|(upgrade, _)| upgrade).filter(|upgrade| fits(upgrade))
        })
        .await
    }

    async fn until(&self, state: UpgradeState) -> Upgrade {
        self.upgrade(state.as_str(), |upgrade| upgrade.state == state).await
    }
}

/// What the operator says.
fn status(phase: Phase, said: &str, nodes: &[(&str, NodeState, &str)]) -> UpdateStatus {
    let since = OffsetDateTime::UNIX_EPOCH;
    let (kind, is) = if phase == Phase::Halted { ("Degraded", "True") } else { ("Progressing", "False") };
    let condition = Condition {
        kind: kind.into(),
        status: is.into(),
        reason: format!("{phase:?}"),
        message: said.into(),
        observed_generation: 1,
        last_transition_time: since,
    };
    let node = |(name, state, reason): &(&str, NodeState, &str)| NodeStatus {
        name: (*name).into(),
        state: *state,
        since,
        reason: (*reason).into(),
        attempt: 1,
    };
    let nodes = nodes.iter().map(node).collect();
    UpdateStatus { phase, conditions: vec![condition], nodes, ..UpdateStatus::default() }
}

const ORDER: [&str; 3] = ["--release", "2", "--skip-snapshot"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rehearsal_says_the_plan_and_what_stands_in_its_way_and_begins_nothing() {
    let mut scene = Scene::new(true).await;
    let rehearsal = [&ORDER[..], &["--dry-run"]].concat();
    let told = scene.ok("start", &rehearsal);
    for line in [
        "upgrade 1 of rack7 to stable 2 (2.0): system 2.0 (222222222222), Kubernetes v1.20.2 to v1.21.0\n",
        "\nnodes, at most 1 away at a time: cp1, cp2, w1\n",
        "\nknow: no snapshot of etcd is taken before (--skip-snapshot): have one of your own\n",
        "\nnothing was begun (--dry-run)\n",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(!told.contains("in the way"), "{told}");

    // Each API server counts what it was asked itself.
    scene.second.as_ref().unwrap().measures(
        "apiserver_requested_deprecated_apis{group=\"batch\",removed_release=\"1.21\",resource=\"cronjobs\",subresource=\"\",version=\"v2alpha1\"} 1\n",
    );
    let said = scene.nkd("start", &rehearsal);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.out.contains("\nin the way: batch/v2alpha1 cronjobs is in use"), "{}", said.out);
    assert!(said.err.contains("an upgrade of rack7 would not be begun"), "{}", said.err);
    let why = scene.refused("start", &ORDER);
    assert!(why.contains("was not begun: batch/v2alpha1") && why.contains("--ignore-removed-apis"), "{why}");
    let told = scene.ok("start", &[&rehearsal[..], &["--ignore-removed-apis"]].concat());
    assert!(told.contains("\nknow: batch/v2alpha1 cronjobs is in use"), "{told}");
    let half = scene.ok("start", &["--release", "2", "--kubernetes-only", "--ignore-removed-apis", "--dry-run"]);
    assert!(half.contains("to stable 2 (2.0): Kubernetes v1.20.2 to v1.21.0\n"), "{half}");
    assert!(half.contains("\nfirst a snapshot of etcd, proven by a restore on its node\n"), "{half}");

    scene.second.take();
    let told = scene.ok("start", &rehearsal);
    assert!(told.contains("\nknow: whether removed APIs are in use is not known of the API servers of cp2"), "{told}");
    assert_eq!(scene.ok("history", &[]).trim(), "Nothing found.");
    assert_eq!(scene.cluster.update("nkd-1"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rehearsal_before_a_cluster_that_does_not_answer_says_what_is_known_all_the_same() {
    let mut scene = Scene::new(false).await;
    scene.cluster.dies();
    let said = scene.nkd("start", &[&ORDER[..], &["--dry-run"]].concat());
    assert_eq!(said.code, Some(1), "{}", said.err);
    for line in [
        "upgrade 1 of rack7 to stable 2 (2.0): system 2.0 (222222222222), Kubernetes v1.20.2 to v1.21.0\n",
        "\nnodes, at most 1 away at a time: cp1, w1\n",
        "\nin the way: the API of rack7 does not answer: ",
        "\nin the way: etcd: ",
        "\nknow: no snapshot of etcd is taken before (--skip-snapshot): have one of your own\n",
        "\nnothing was begun (--dry-run)\n",
    ] {
        assert!(said.out.contains(line), "{line}: {}", said.out);
    }
    assert!(!said.out.contains("housekeeper does not run"), "nobody knows: {}", said.out);
    let why = "error: an upgrade of rack7 would not be begun: the API of rack7 does not answer: ";
    assert!(said.err.starts_with(why) && said.err.contains("(and 1 more)"), "{}", said.err);
    // In earnest it is not begun, for the same reason.
    let why = scene.refused("start", &ORDER);
    assert!(why.contains("`nkd cluster status` says how its API servers are"), "{why}");
    assert_eq!(scene.ok("history", &[]).trim(), "Nothing found.");
}

/// As zincati does, from this address.
async fn ask(scene: &Scene, verb: &str, id: &str, from: IpAddr) -> (u16, Value) {
    let client = scene.place.https().local_address(from).build().unwrap();
    let body = json!({"client_params": {"id": id, "group": "rack"}}).to_string();
    let request = client.post(scene.place.api_url(&format!("/v1/{verb}"))).header("fleet-lock-protocol", "true");
    let answer = request.body(body).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restarts_by_the_lock_or_by_an_upgrade() {
    let scene = Scene::new(false).await;
    let (node, stranger) = (scene.record.members[0].address.unwrap(), IpAddr::from([127, 0, 0, 1]));
    assert_eq!(ask(&scene, "pre-reboot", "0a0b", node).await.0, 200);
    let why = scene.refused("start", &ORDER);
    assert!(why.contains("was not begun: cp1 may restart by a lease of the group `rack` until "), "{why}");
    assert!(why.contains("`nkd lock release rack 0a0b`"), "{why}");
    let said = scene.nkd("start", &[&ORDER[..], &["--dry-run"]].concat());
    assert!(said.out.contains("\nin the way: cp1 may restart by a lease"), "{}", said.out);
    let released = scene.place.cli_as(TOKEN, &["lock", "release", "rack", "0a0b"]);
    assert!(released.status.success(), "{}", text(&released.stderr));

    scene.ok("start", &ORDER);
    scene.until(UpgradeState::Running).await;
    let (code, told) = ask(&scene, "pre-reboot", "0a0b", node).await;
    assert_eq!((code, &told["kind"]), (409, &json!("failed_lock")), "{told}");
    let value = told["value"].as_str().unwrap();
    assert!(value.starts_with("cp1 is a node of rack7, whose upgrade 1 is running: "), "{value}");
    assert!(value.contains("`nkd upgrade status rack7`") && value.contains("`nkd upgrade abort rack7`"), "{value}");
    assert_eq!(ask(&scene, "steady-state", "0a0b", node).await.0, 200);
    // Who is no node of the cluster, as far as can be told, restarts as before, and goes on to.
    for _ in 0..2 {
        assert_eq!(ask(&scene, "pre-reboot", "0a0b", stranger).await.0, 200);
    }
    assert_eq!(ask(&scene, "steady-state", "0a0b", stranger).await.0, 200);

    scene.spec("nkd-1", "the cluster is told", |_| true).await;
    let done = [("cp1", NodeState::Done, ""), ("w1", NodeState::Done, "")];
    scene.cluster.say("nkd-1", status(Phase::Complete, "2 of 2 nodes are done, 0 at work", &done));
    scene.until(UpgradeState::Complete).await;
    assert_eq!(ask(&scene, "pre-reboot", "0a0b", node).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_is_begun_paused_resumed_and_tried_again() {
    let scene = Scene::new(false).await;
    let told = scene.ok("start", &[&ORDER[..], &["--max-unavailable", "2", "--soak", "5m"]].concat());
    assert!(told.contains("\nbegun: `nkd upgrade status rack7 --watch`"), "{told}");
    let spec = scene.spec("nkd-1", "the cluster is told", |_| true).await;
    let release =
        json!({"name": "2 (2.0)", "kubernetes": "v1.21.0", "os": {"commit": "2".repeat(64), "version": "2.0"}});
    assert_eq!((&spec["release"], &spec["maxUnavailable"], &spec["channel"]), (&release, &json!(2), &json!("stable")));
    assert_eq!((&spec["strategy"]["soakSeconds"], &spec["retry"]), (&json!(300), &json!(0)));
    assert_eq!((&spec["paused"], &spec["abort"]), (&json!(false), &json!(false)));
    scene.until(UpgradeState::Running).await;
    let why = scene.refused("start", &ORDER);
    assert!(why.contains("upgrade 1 of rack7 is running: wait for its end, or `nkd upgrade abort rack7`"), "{why}");
    assert!(scene.ok("status", &[]).contains("the operator in the cluster has not said anything yet"));

    let working = [("cp1", NodeState::Upgrading, "kubeadm"), ("w1", NodeState::Staged, "waits for its turn")];
    scene.cluster.say("nkd-1", status(Phase::Progressing, "0 of 2 nodes are done, 1 at work", &working));
    scene.upgrade("its nodes are told", |upgrade| upgrade.nodes.len() == 2).await;
    let told = scene.ok("status", &[]);
    assert!(told.starts_with("upgrade 1 of rack7 to stable 2 (2.0) is running: 0 of 2 nodes are done"), "{told}");
    assert!(told.contains("\netcd: no snapshot was taken before\n") && !told.contains("next:"), "{told}");
    let line = |name: &str| told.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("cp1").contains("Upgrading") && line("w1").ends_with("waits for its turn"), "{told}");
    let why = scene.refused("retry", &[]);
    assert!(why.contains("no node of rack7 has failed in its upgrade, which is running"), "{why}");

    assert!(scene.refused("resume", &[]).contains("upgrade 1 of rack7 is not paused, it is running"));
    assert_eq!(scene.ok("pause", &[]).trim(), "upgrade 1 of rack7 begins no further node");
    scene.spec("nkd-1", "it is paused", |spec| spec["paused"] == true).await;
    scene
        .cluster
        .say("nkd-1", status(Phase::Paused, "0 of 2 nodes are done, 0 at work; spec.paused is true", &working));
    scene.until(UpgradeState::Paused).await;
    let told = scene.ok("status", &[]);
    assert!(told.contains("\nnext: `nkd upgrade resume rack7`") && !told.contains("spec."), "{told}");
    assert_eq!(scene.ok("resume", &[]).trim(), "upgrade 1 of rack7 goes on");
    scene.spec("nkd-1", "it goes on", |spec| spec["paused"] == false).await;
    // Whoever edits it is overruled, also where nothing stood before, and where it does not read any more.
    let asked = scene.cluster.update("nkd-1").unwrap()["spec"].clone();
    let edits: [fn(&mut Value); 3] = [
        |spec| spec["retry"] = 7.into(),
        |spec| {
            spec["nodeSelector"] = json!({"a": "b"});
            spec["release"]["os"]["image"] = "10.0.0.1:8443/os@sha256:0".into();
        },
        |spec| spec["maxUnavailable"] = "lots".into(),
    ];
    for edit in edits {
        scene.cluster.edit("nkd-1", edit);
        assert_ne!(scene.cluster.update("nkd-1").unwrap()["spec"], asked);
        scene.spec("nkd-1", "the edit is undone", |spec| *spec == asked).await;
    }

    let why = "rolled back: not healthy after 900 s";
    let waits = "the control plane cp1 has failed: put it right, then raise spec.retry";
    let failed = [("cp1", NodeState::Failed, why), ("w1", NodeState::Staged, waits)];
    scene.cluster.say("nkd-1", status(Phase::Halted, &format!("cp1: {why}"), &failed));
    scene.until(UpgradeState::Halted).await;
    let next = "put it right and run `nkd upgrade retry rack7`";
    let told = scene.ok("status", &[]);
    assert!(told.contains(&format!(" is halted: cp1: {why}\n")) && told.contains(&format!("\nnext: {next}")), "{told}");
    assert!(told.contains("put it right, then run `nkd upgrade retry rack7`") && !told.contains("spec."), "{told}");
    let watched = scene.nkd("status", &["--watch"]);
    assert_eq!((watched.code, watched.out.as_str()), (Some(1), told.as_str()), "{}", watched.err);
    assert!(watched.err.contains("has halted: cp1: rolled back") && watched.err.contains(next), "{}", watched.err);

    assert_eq!(scene.ok("retry", &[]).trim(), "upgrade 1 of rack7 tries what failed again");
    let spec = scene.spec("nkd-1", "it is tried again", |spec| spec["retry"] == 1).await;
    assert_eq!((&spec["release"], &spec["paused"]), (&release, &json!(false)));
    // What was said of it before is not said of this.
    let again = scene.upgrade("the old word counts no more", |upgrade| upgrade.detail.is_empty()).await;
    assert_eq!(again.state, UpgradeState::Running);
    let done = [("cp1", NodeState::Done, ""), ("w1", NodeState::Done, "")];
    scene.cluster.say("nkd-1", status(Phase::Complete, "2 of 2 nodes are done, 0 at work", &done));
    let told = scene.ok("status", &["--watch"]);
    assert!(told.contains(" is complete: 2 of 2 nodes are done"), "{told}");
    let store = scene.bench.service.registry.store();
    eventually("nodes that join later get its version", async || {
        let (record, _) = store.cluster_by_name("rack7").await.unwrap().unwrap();
        (record.cluster.spec.kubernetes.version == "v1.21.0").then_some(())
    })
    .await;
    for verb in ["pause", "resume", "abort", "retry"] {
        let why = scene.refused(verb, &[]);
        let over = "upgrade 1 of rack7 is over: complete; `nkd upgrade start rack7` begins another one";
        assert!(why.contains(over), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_installed_again_while_its_cluster_is_upgraded_and_the_only_control_plane_never() {
    let scene = Scene::new(false).await;
    let store = scene.bench.service.registry.store();
    let (mut record, revision) = store.cluster_by_name("rack7").await.unwrap().unwrap();
    let nkd = |words: &[&str]| scene.place.cli_as(TOKEN, words);
    for (number, member) in record.members.iter_mut().enumerate() {
        let mac = format!("52:54:00:aa:0a:0{number}");
        let said = nkd(&["machine", "declare", &member.hostname, "--mac", &mac, "-o", "json"]);
        let machine: Value = serde_json::from_slice(&said.stdout).unwrap();
        member.machine = machine["id"].as_str().map(|id| id.parse().unwrap());
    }
    store.save_cluster(&record, revision, &[], "test", OffsetDateTime::now_utc()).await.unwrap();
    let again = |words: &[&str]| {
        let out = nkd(&[&["machine", "reinstall"][..], words].concat());
        (out.status.code(), text(&out.stderr))
    };
    let refused = |node: &str, why: &str| {
        let (code, said) = again(&[node]);
        assert!(code == Some(1) && said.contains(why) && said.contains("--force"), "{node}: {said}");
    };
    // Nothing is assigned to them here: the first thing that is said once their cluster says nothing.
    let left_alone = |words: &[&str]| assert!(again(words).1.contains("nothing is assigned"), "{:?}", again(words));
    left_alone(&["w1"]);
    refused("cp1", "cp1 is the only control plane of rack7: all that the cluster knows is on its disk");
    left_alone(&["cp1", "--force"]);
    scene.ok("start", &ORDER);
    scene.until(UpgradeState::Running).await;
    for node in ["cp1", "w1"] {
        refused(node, &format!("{node} is a node of rack7, whose upgrade 1 is running"));
    }
    left_alone(&["w1", "--force", "--now"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_not_told_of_an_upgrade_while_certificates_are_renewed() {
    let scene = Scene::new(false).await;
    let store = scene.bench.service.registry.store();
    let change = async |change: &dyn Fn(&mut Record)| {
        let (mut record, revision) = store.cluster_by_name("rack7").await.unwrap().unwrap();
        change(&mut record);
        store.save_cluster(&record, revision, &[], "test", OffsetDateTime::now_utc()).await.unwrap();
    };
    let now = OffsetDateTime::now_utc();
    change(&|record| drop(renewal::take(record, &Turn::Order { member: 0 }, Uuid::from_u128(7), now))).await;
    scene.ok("start", &ORDER);
    let waits = scene.upgrade("it says what it waits for", |upgrade| !upgrade.detail.is_empty()).await;
    assert_eq!(waits.state, UpgradeState::Preparing);
    assert_eq!(waits.detail, "waits: the certificates of cp1 are renewed");
    assert!(scene.ok("status", &[]).contains("is preparing: waits: the certificates of cp1 are renewed"));
    scene.ok("pause", &[]);
    assert!(scene.ok("status", &[]).contains("is preparing, and is to pause: waits"));
    scene.ok("resume", &[]);
    let again = scene.nkd("start", &[&ORDER[..], &["--dry-run"]].concat());
    assert_eq!(again.code, Some(1));
    assert!(again.out.contains("in the way: upgrade 1 of rack7 is preparing"), "{}", again.out);
    assert_eq!(scene.cluster.update("nkd-1"), None);
    let failed = KubeadmState::Failed { step: "x".into(), reason: "y".into(), log_tail: String::new() };
    change(&|record| drop(renewal::heard(&mut record.members[0], &failed, now))).await;
    scene.spec("nkd-1", "the cluster is told", |_| true).await;
    let told = scene.until(UpgradeState::Running).await;
    assert_eq!(told.detail, "");
}

/// The lines of an upgrade that is watched.
struct Lines(reqwest::Response, Vec<u8>);

impl Lines {
    async fn of(scene: &Scene) -> Self {
        let url = scene.place.api_url("/api/v1/clusters/rack7/upgrade?watch=true");
        let answer = scene
            .place
            .https()
            .build()
            .unwrap()
            .get(url)
            .bearer_auth(TOKEN)
            .timeout(Duration::from_secs(300))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
        Self(answer, Vec::new())
    }

    /// The next one. It comes before the same would be told again, which is after 30 seconds; none: there are no more.
    async fn next(&mut self) -> Option<Upgrade> {
        let next = async {
            loop {
                if let Some(end) = self.1.iter().position(|&byte| byte == b'\n') {
                    return Some(serde_json::from_slice(&self.1.drain(..=end).collect::<Vec<_>>()).unwrap());
                }
                self.1.extend_from_slice(&self.0.chunk().await.unwrap()?);
            }
        };
        tokio::time::timeout(Duration::from_secs(25), next).await.expect("a change is told when it happens")
    }

    async fn until(&mut self, fits: impl Fn(&Upgrade) -> bool) -> Upgrade {
        loop {
            let upgrade = self.next().await.expect("it is told before the end");
            if fits(&upgrade) {
                return upgrade;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_is_told_line_by_line_as_it_changes() {
    let scene = Scene::new(false).await;
    scene.ok("start", &ORDER);
    scene.spec("nkd-1", "the cluster is told", |_| true).await;
    scene.until(UpgradeState::Running).await;
    let mut lines = Lines::of(&scene).await;
    assert_eq!(lines.next().await.map(|upgrade| upgrade.state), Some(UpgradeState::Running), "as it is now");
    scene.ok("pause", &[]);
    lines.until(|upgrade| upgrade.paused).await;
    let mut others = Lines::of(&scene).await;
    scene.ok("resume", &[]);
    for lines in [&mut lines, &mut others] {
        lines.until(|upgrade| !upgrade.paused).await;
    }
    scene.spec("nkd-1", "it goes on", |spec| spec["paused"] == false).await;
    let working = [("cp1", NodeState::Upgrading, ""), ("w1", NodeState::Staged, "waits for its turn")];
    scene.cluster.say("nkd-1", status(Phase::Progressing, "0 of 2 nodes are done, 1 at work", &working));
    lines.until(|upgrade| upgrade.nodes.len() == 2).await;

    // A service that stops lets go; whoever watches asks again.
    let mut watcher = scene.place.client(TOKEN);
    watcher.args(["upgrade", "status", "rack7", "--watch"]).stdout(Stdio::piped());
    let mut watcher = Running { child: watcher.spawn().unwrap() };
    let mut out = std::io::BufReader::new(watcher.child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert!(first.contains(" is running: 0 of 2 nodes are done"), "{first}");
    scene.bench.service.stopping.cancel();
    while lines.next().await.is_some() {}
    let done = [("cp1", NodeState::Done, ""), ("w1", NodeState::Done, "")];
    scene.cluster.say("nkd-1", status(Phase::Complete, "2 of 2 nodes are done, 0 at work", &done));
    assert_eq!(ended(&mut watcher.child).code(), Some(0));
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(" is complete: 2 of 2 nodes are done"), "{rest}");
    let mut lines = Lines::of(&scene).await;
    assert_eq!(lines.next().await.map(|upgrade| upgrade.state), Some(UpgradeState::Complete));
    assert_eq!(lines.next().await, None, "nothing more is to come");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_that_is_watched_and_called_off_ends_badly_and_stands_in_the_history() {
    let scene = Scene::new(false).await;
    let mut command = scene.place.client(TOKEN);
    command.args(["upgrade", "start", "rack7", "--kubernetes-only", "--release", "2", "--skip-snapshot", "--watch"]);
    let mut watcher = Running { child: command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap() };
    let spec = scene.spec("nkd-1", "the cluster is told", |_| true).await;
    assert_eq!(spec["release"], json!({"name": "2 (2.0)", "kubernetes": "v1.21.0"}), "the system stays");
    scene.until(UpgradeState::Running).await;
    let told = scene.ok("abort", &[]);
    assert_eq!(told.trim(), "upgrade 1 of rack7 is to stop when nodes that have begun are done");
    let spec = scene.spec("nkd-1", "it is called off", |spec| spec["abort"] == true).await;
    assert_eq!(spec["release"]["kubernetes"], "v1.21.0");
    scene.until(UpgradeState::Aborting).await;
    for verb in ["pause", "resume", "retry"] {
        let why = scene.refused(verb, &[]);
        assert!(why.contains("upgrade 1 of rack7 was called off, and goes on no more"), "{verb}: {why}");
    }
    // Nobody is there who would end it.
    scene.cluster.operator_is_away(true);
    let away = "the housekeeper does not run, and nothing is upgraded";
    let told = scene.upgrade("that is told", |upgrade| upgrade.detail.contains(away)).await;
    assert_eq!(told.state, UpgradeState::Aborting);
    scene.cluster.operator_is_away(false);
    assert!(watcher.child.try_wait().unwrap().is_none(), "nodes that have begun are not done yet");
    scene.cluster.say("nkd-1", status(Phase::Aborted, "0 of 2 nodes are done, 0 at work; spec.abort is true", &[]));
    assert_eq!(ended(&mut watcher.child).code(), Some(1));
    let (mut out, mut err) = (String::new(), String::new());
    watcher.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    watcher.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(out.contains(" is aborted: ") && out.contains("it was called off") && !out.contains("spec."), "{out}");
    assert!(err.contains("upgrade 1 of rack7 was stopped"), "{err}");
    let why = scene.refused("retry", &[]);
    assert!(why.contains("is over: aborted; `nkd upgrade start rack7` begins another one"), "{why}");

    scene.ok("start", &[&ORDER[..], &["--window", "sat,sun 22:30+4h"]].concat());
    let spec = scene.spec("nkd-2", "the cluster is told of the next one", |_| true).await;
    let window = json!({"days": ["Sat", "Sun"], "start": "22:30", "length": "4h", "timeZone": "UTC"});
    assert_eq!(spec["window"], window);
    scene.until(UpgradeState::Running).await;
    let history = scene.ok("history", &[]);
    let lines: Vec<Vec<&str>> = history.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 3, "{history}");
    let row = |line: &[&str]| [0, 1, 2, 3, 4, 5].map(|column| line[column].to_owned());
    assert_eq!(row(&lines[1]), ["2", "stable", "2", "(2.0)", "v1.21.0", "running"]);
    assert_eq!(row(&lines[2]), ["1", "stable", "2", "(2.0)", "v1.21.0", "aborted"]);
    assert!(lines[1].ends_with(&["-", "ada"]) && lines[2].ends_with(&["ada"]), "{history}");
    let all: Vec<Upgrade> = serde_json::from_str(&scene.ok("history", &["-o", "json"])).unwrap();
    assert_eq!((all.len(), all[1].aborted, all[1].commit.clone()), (2, true, None));
    assert!(all[1].ended_at.is_some() && all[0].ended_at.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_somebody_changes_again_and_again_and_answers_that_say_no_are_told() {
    let scene = Scene::new(false).await;
    scene.ok("start", &ORDER);
    scene.until(UpgradeState::Running).await;
    scene.cluster.adds(Some(("nodeSelector", json!({"a": "b"}))));
    scene.ok("pause", &[]);
    let quarrel =
        "somebody else changes the update nkd-1 as often as it is put right (other than asked for: spec.nodeSelector)";
    scene.upgrade("the quarrel is told", |upgrade| upgrade.detail.contains(quarrel)).await;
    scene.cluster.adds(None);
    scene.upgrade("it is over", |upgrade| upgrade.detail.is_empty()).await;

    // It answers, and says why not.
    scene.cluster.forbids(Some("nkd may not look at updates"));
    let why = "it cannot be looked at now: look at the update nkd-1: the API server says no (403 nkd may not look at updates)";
    scene.upgrade("what it says is told", |upgrade| upgrade.detail.contains(why)).await;
    scene.cluster.forbids(None);
    scene.upgrade("it can be looked at again", |upgrade| upgrade.detail.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_is_complete_when_every_member_of_its_cluster_is_done() {
    let scene = Scene::new(false).await;
    scene.ok("start", &ORDER);
    scene.until(UpgradeState::Running).await;
    // Somebody has deleted the Node of w1: the operator speaks of those that are there.
    scene.cluster.say("nkd-1", status(Phase::Complete, "1 of 1 nodes are done", &[("cp1", NodeState::Done, "")]));
    let halted = scene.until(UpgradeState::Halted).await;
    assert!(halted.detail.contains("w1 was not there") && halted.ended_at.is_none(), "{halted:?}");
    let told = scene.ok("status", &[]);
    for words in [
        "`systemctl restart kubelet`",
        "`nkd cluster remove rack7 w1`",
        "\nnext: put it right and run `nkd upgrade retry",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let (record, _) = scene.bench.service.registry.store().cluster_by_name("rack7").await.unwrap().unwrap();
    assert_eq!(record.cluster.spec.kubernetes.version, "v1.20.2", "w1 does not run the other");
    scene.ok("retry", &[]);
    scene.spec("nkd-1", "the operator looks again", |spec| spec["retry"] == 1).await;
    let done = [("cp1", NodeState::Done, ""), ("w1", NodeState::Done, "")];
    scene.cluster.say("nkd-1", status(Phase::Complete, "2 of 2 nodes are done", &done));
    scene.until(UpgradeState::Complete).await;
}

/// An upgrade as it stands in the store before its cluster was told.
fn kept(number: u32, state: &str) -> Upgrade {
    let upgrade = json!({"cluster": "rack7", "number": number, "order": {"channel": "stable", "release": 2, "skipSnapshot": true},
        "version": "2.0", "commit": "2".repeat(64), "kubernetes": "v1.21.0", "fromKubernetes": "v1.20.2", "state": state,
        "paused": state == "paused", "aborted": false, "retry": 0, "by": "ada", "startedAt": "2026-01-01T00:00:00Z",
        "nodes": []});
    serde_json::from_value(upgrade).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_in_the_way_since_an_upgrade_was_asked_for_keeps_it_from_its_cluster() {
    let scene = Scene::new(false).await;
    let store = scene.bench.service.registry.store();
    scene.cluster.operator_is_away(true);
    begin(store, scene.record.id, &kept(1, "preparing")).await.unwrap();
    let why = "its cluster is not told yet: housekeeper does not run in rack7";
    let told = scene.upgrade("it says why it waits", |upgrade| upgrade.detail.contains(why)).await;
    assert_eq!(told.state, UpgradeState::Preparing);
    let looks = scene.cluster.looks();
    scene.upgrade("it is looked at again", |_| scene.cluster.looks() > looks + 2).await;
    assert_eq!(scene.cluster.update("nkd-1"), None);
    scene.ok("abort", &[]);
    let over = scene.until(UpgradeState::Aborted).await;
    assert!(over.detail.contains("before its cluster was told: nothing has changed"), "{over:?}");
    assert_eq!(scene.cluster.update("nkd-1"), None);

    scene.cluster.operator_is_away(false);
    scene.bench.service.upgrades.notify_one();
    begin(store, scene.record.id, &kept(2, "preparing")).await.unwrap();
    scene.spec("nkd-2", "the next one has nothing in its way", |_| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_out_of_a_backup_is_held_until_somebody_resumes_it() {
    let scene = Scene::new(false).await;
    let store = scene.bench.service.registry.store();
    let restored = Upgrade { restored: true, ..kept(1, "paused") };
    begin(store, scene.record.id, &restored).await.unwrap();
    for verb in ["pause", "retry"] {
        let why = scene.refused(verb, &[]);
        assert!(why.contains("was restored from a backup: first `nkd upgrade resume rack7`"), "{why}");
    }
    for _ in 0..3 {
        scene.bench.service.upgrades.notify_one();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(scene.upgrade("it stays as it is", |_| true).await, restored);
    assert_eq!((scene.cluster.looks(), scene.cluster.update("nkd-1")), (0, None));
    scene.ok("resume", &[]);
    let spec = scene.spec("nkd-1", "it goes on", |_| true).await;
    assert_eq!(spec["paused"], false);
    assert!(!scene.until(UpgradeState::Running).await.restored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_does_not_answer_holds_up_no_other() {
    let scene = Scene::new(false).await;
    let store = scene.bench.service.registry.store();
    scene.ok("start", &ORDER);
    scene.until(UpgradeState::Running).await;
    // Its API server takes connections, and says nothing.
    let silent: IpAddr = Place::new().ip.parse().unwrap();
    let listener = tokio::net::TcpListener::bind((silent, nkd_api::cluster::API_PORT)).await.unwrap();
    let mut record = Record { id: Uuid::new_v4(), ..scene.record.clone() };
    record.cluster.metadata.name = "rack8".into();
    record.members.iter_mut().for_each(|member| member.address = Some(silent));
    store.save_cluster(&record, 0, &[], "test", OffsetDateTime::now_utc()).await.unwrap();
    let pki = ClusterPki::create(&Certificates::default(), OffsetDateTime::now_utc()).unwrap();
    store.save_secrets(&[(&pki_name(record.id), &pki.to_document().unwrap())]).await.unwrap();
    begin(store, record.id, &Upgrade { cluster: "rack8".into(), ..kept(1, "running") }).await.unwrap();
    scene.bench.service.upgrades.notify_one();
    let _asks = listener.accept().await.unwrap();

    let looks = scene.cluster.looks();
    scene.upgrade("the other one is looked at again and again", |_| scene.cluster.looks() > looks + 2).await;
    // The look at this one has not come to its end in all that time.
    assert_eq!(store.newest_upgrade(record.id).await.unwrap().unwrap().0.detail, "");
}
