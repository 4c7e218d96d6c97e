//! The whole operator against a stand-in for an API server on a real socket: pods that do not leave, and API servers that do not
//! answer for them, hold up neither the other pods, nor the other nodes, nor what is told; nor does a node that nobody may write on.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test, which listens on a socket and writes a file"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use nkd_operator::cluster::Cluster;
use nkd_operator::lease::{Election, Tenure};
use nkd_operator::lookups::Lookups;
use nkd_operator::registry::Registries;
use nkd_operator::run::{Operator, Own};
use nkd_operator::serve::Metrics;
use nkd_operator::watch::Watched;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct Api {
    nodes: Vec<Value>,
    version: u64,
    /// Pods that were asked to leave, in order.
    asked: Vec<String>,
    /// Nodes whose writes are never answered, as often as one was written.
    late: Vec<String>,
    /// How many there were when the pods of another node were asked to leave first.
    late_before: Option<usize>,
    /// What was told of the update last.
    told: Value,
}

type Shared = Arc<Mutex<Api>>;

fn says(code: u16, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code});
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}

/// A list, or a watch in which nothing ever happens.
fn list(query: Option<String>, kind: &str, api_version: &str, items: Vec<Value>) -> Response {
    if query.is_some_and(|query| query.contains("watch=")) {
        let nothing = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        return Body::from_stream(nothing).into_response();
    }
    let metadata = json!({"resourceVersion": "1"});
    Json(json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items})).into_response()
}

/// A merge patch.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
            value => merge(&mut into[key.as_str()], value),
        }
    }
}

async fn nodes(State(api): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let nodes = api.lock().unwrap().nodes.clone();
    list(query, "NodeList", "v1", nodes)
}

async fn write(State(api): State<Shared>, Path(name): Path<String>, Json(change): Json<Value>) -> Response {
    if name.starts_with("late") {
        api.lock().unwrap().late.push(name);
        return std::future::pending().await;
    }
    let mut api = api.lock().unwrap();
    if name == "once" && !api.late.contains(&name) {
        api.late.push(name);
        return says(500, "a leader is elected");
    }
    if name == "w0" {
        return says(500, "the webhook `strict` could not be reached");
    }
    api.version += 1;
    let version = api.version.to_string();
    let node = api.nodes.iter_mut().find(|node| node["metadata"]["name"] == name.as_str()).unwrap();
    merge(node, &change);
    node["metadata"]["resourceVersion"] = json!(version);
    Json(node.clone()).into_response()
}

async fn evict(State(api): State<Shared>, Path(pod): Path<String>) -> Response {
    let again = {
        let mut api = api.lock().unwrap();
        let again = api.asked.contains(&pod);
        let late = api.late.len();
        api.late_before.get_or_insert(late);
        api.asked.push(pod.clone());
        again
    };
    match pod.as_str() {
        "1-slow" if !again => std::future::pending().await,
        "2-held" => says(429, "Cannot evict pod as it would violate the pod's disruption budget."),
        "3-broken" => says(504, "a webhook did not answer"),
        _ => Json(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})).into_response(),
    }
}

async fn tell(State(api): State<Shared>, Json(change): Json<Value>) -> Response {
    api.lock().unwrap().told = change["status"].clone();
    Json(update()).into_response()
}

fn update() -> Value {
    json!({
        "apiVersion": "nkd.io/v1alpha1", "kind": "Update",
        "metadata": {"name": "to-2", "uid": "u", "generation": 1, "resourceVersion": "1", "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"release": {"name": "2", "kubernetes": "v1.21.0"}, "maxUnavailable": 3},
    })
}

fn node(name: &str, annotations: &Value, closed: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "annotations": annotations},
        "spec": if closed { json!({"unschedulable": true}) } else { json!({}) },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod(name: &str) -> Value {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "x", "controller": true}]);
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "ownerReferences": owner},
        "spec": {"nodeName": "w1", "containers": []}, "status": {"phase": "Running"},
    })
}

fn router(api: Shared) -> Router {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "housekeeper", "resourceVersion": "1"},
        "spec": {"holderIdentity": "me", "leaseDurationSeconds": 30},
    });
    let renewed = lease.clone();
    let eviction = json!({"name": "pods/eviction", "singularName": "", "namespaced": true, "kind": "Eviction", "version": "v1", "verbs": []});
    let resources = json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [eviction]});
    let pods = ["1-slow", "2-held", "3-broken", "4-free"].map(pod).to_vec();
    Router::new()
        .route("/api/v1", get(move || async move { Json(resources) }))
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/nodes/{name}", patch(write))
        .route("/api/v1/pods", get(move |RawQuery(query)| async move { list(query, "PodList", "v1", pods) }))
        .route("/api/v1/namespaces/shop/pods/{pod}/eviction", post(evict))
        .route("/api/v1/namespaces/default/events", post(|Json(event): Json<Value>| async { Json(event) }))
        .route(
            "/apis/policy/v1/poddisruptionbudgets",
            get(|RawQuery(query)| async { list(query, "PodDisruptionBudgetList", "policy/v1", vec![]) }),
        )
        .route(
            "/apis/nkd.io/v1alpha1/updates",
            get(|RawQuery(query)| async { list(query, "UpdateList", "nkd.io/v1alpha1", vec![update()]) }),
        )
        .route("/apis/nkd.io/v1alpha1/updates/to-2/status", patch(tell))
        .route(
            "/apis/coordination.k8s.io/v1/namespaces/nkd-system/leases/housekeeper",
            get(move || async move { Json(lease) }).put(move || async move { Json(renewed) }),
        )
        .with_state(api)
}

/// `w1` is on its way, and its pods leave; `w2` is new; `w0`, too, and nobody may write on it; of those that are late nobody
/// hears when they are written.
fn shared() -> Shared {
    let release = json!({"name": "2", "kubernetes": "v1.21.0"});
    let desired = json!({"update": "to-2", "uid": "u", "attempt": 1, "retry": 0, "os": null, "kubernetes": release["kubernetes"],
        "first": false, "go": false});
    let note =
        json!({"uid": "u", "attempt": 1, "state": "begun", "since": "2999-01-02T03:04:05Z", "retry": 0, "reason": ""});
    let w1 = json!({"nkd.io/cordoned-by": "u", "nkd.io/desired": desired.to_string(), "nkd.io/update-note": note.to_string()});
    let new = |name: &str| node(name, &json!({}), false);
    let nodes = vec![node("w1", &w1, true), new("w2"), new("w0"), new("late1"), new("late2"), new("once")];
    Arc::new(Mutex::new(Api { nodes, version: 1, ..Api::default() }))
}

/// Waits until it is so; what it looks like otherwise.
async fn until(api: &Shared, changed: &Notify, what: &str, fits: impl Fn(&Api) -> bool) {
    for _ in 0..600 {
        if fits(&api.lock().unwrap()) {
            return;
        }
        changed.notify_one();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let api = api.lock().unwrap();
    panic!("{what}: asked {:?}, told {:#}", api.asked, api.told);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_do_not_leave_hold_up_nothing_else() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let api = shared();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = router(Arc::clone(&api));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let kubeconfig = format!(
        "clusters: [{{name: a, cluster: {{server: 'http://{address}'}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
         users: [{{name: a, user: {{}}}}]\ncurrent-context: a\n"
    );
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("held-{}.yaml", std::process::id()));
    std::fs::write(&path, kubeconfig).unwrap();
    let cluster = Cluster::connect(Some(&path)).await.unwrap();
    std::fs::remove_file(&path).unwrap();

    let (stop, stopped, tenure) = (CancellationToken::new(), CancellationToken::new(), Tenure::default());
    let changed = Arc::new(Notify::new());
    let watched = Watched::begin(&cluster, &changed, &stop);
    let election = Election::new(&cluster, "nkd-system", "me".into(), Duration::from_secs(30), tenure.clone());
    tokio::spawn(election.run(stop.clone(), stopped.clone()));
    let own = Own { namespace: "nkd-system".into(), pod: "me".into(), node: None };
    let lookups = Lookups::new(Registries::default(), Arc::clone(&changed));
    let operator = Operator::new(cluster, watched, tenure, own, Metrics::default(), lookups, stop.clone());
    let operator = tokio::spawn(operator.run(Arc::clone(&changed)));

    let staged = |api: &Api| api.nodes[1]["metadata"]["annotations"]["nkd.io/desired"].is_string();
    until(&api, &changed, "another node waits for the pods of this one", staged).await;
    let state = |api: &Api, name: &str, field: &str| {
        let nodes = api.told["nodes"].as_array().cloned().unwrap_or_default();
        let node = nodes.into_iter().find(|node| node["name"] == name).unwrap_or_default();
        node[field].as_str().unwrap_or_default().to_owned()
    };
    until(&api, &changed, "nothing is told", |api| state(api, "w1", "state") == "Draining").await;
    until(&api, &changed, "a pod that may go was not asked", |api| api.asked.iter().any(|pod| pod == "4-free")).await;
    let said = |api: &Api| state(api, "w1", "reason");
    let all = ["disruption budget", "3-broken", "a webhook did not answer"];
    until(&api, &changed, "nobody says why", |api| all.iter().all(|word| said(api).contains(word))).await;
    let strict = |api: &Api| state(api, "w0", "reason").contains("the webhook `strict`");
    until(&api, &changed, "nobody says what cannot be written", strict).await;
    assert_eq!(api.lock().unwrap().late_before, Some(1), "pods do not wait for every node that is not answered for");
    let is_late = |api: &Api| ["late1", "late2"].iter().all(|name| !state(api, name, "reason").is_empty());
    until(&api, &changed, "nobody says what is not answered", is_late).await;
    let written = |api: &Api| {
        let node = api.nodes.iter().find(|node| node["metadata"]["name"] == "once").unwrap();
        node["metadata"]["annotations"]["nkd.io/desired"].is_string()
    };
    until(&api, &changed, "one that is not answered for holds up what was refused once", written).await;
    let asked = api.lock().unwrap().asked.clone();
    let of = |name: &str| asked.iter().filter(|pod| *pod == name).count();
    assert!(of("2-held") <= of("4-free") + 1, "once a look, and by nobody else: {asked:?}");
    let place = |name: &str| asked.iter().position(|pod| pod == name);
    assert_eq!(
        (place("1-slow"), asked.get(1).map(String::as_str)),
        (Some(0), Some("2-held")),
        "the slow one again: {asked:?}"
    );

    stop.cancel();
    operator.await.unwrap();
    stopped.cancel();
}
