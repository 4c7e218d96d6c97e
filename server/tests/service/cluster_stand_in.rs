//! Stand-ins for what a control plane of a cluster answers: an API server that holds nodes and Updates, and the gateway of its
//! etcd. They show certificates of the cluster's own authorities, want one of the service, and know nothing else of a cluster: what
//! its operator says, a test says. The real ones meet the service in `etcd_answers.rs`, `vm-tests/tests/updates.rs`,
//! `vm-tests/tests/update_faults` and `vm-tests/tests/whole_upgrade.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use nkd_api::cluster::API_PORT;
use nkd_api::update::UpdateStatus;
use nkd_server::cluster::etcd::CLIENT_PORT;
use nkd_server::cluster::pki::ClusterPki;
use nkd_server::http::TlsServer;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the API server has.
#[derive(Default)]
struct Has {
    updates: BTreeMap<String, Value>,
    /// The spec of each as it was applied last: what its manager owns.
    applied: BTreeMap<String, Value>,
    metrics: String,
    /// How often somebody has asked for an Update.
    looks: usize,
    /// Its operator has not run for a long time.
    operator_is_away: bool,
    /// Why it tells nobody of an Update.
    forbids: Option<String>,
    /// What somebody adds to the spec of an Update as soon as it is written.
    adds: Option<(String, Value)>,
}

type Shared = Arc<Mutex<Has>>;

/// Both of them, until this is dropped.
pub struct StandIn {
    has: Shared,
    running: Option<DropGuard>,
}

impl StandIn {
    /// Serves at an address, on the ports that a control plane has.
    pub async fn start(pki: &ClusterPki, ip: IpAddr) -> Self {
        let (has, stop) = (Shared::default(), CancellationToken::new());
        for (folder, port, router) in [
            ("", API_PORT, api_server(Arc::clone(&has))),
            ("etcd/", CLIENT_PORT, gateway(SocketAddr::new(ip, CLIENT_PORT))),
        ] {
            let config = server_config(pki, folder, ip);
            let server = TlsServer::bind(SocketAddr::new(ip, port), config, router).await.unwrap();
            tokio::spawn(server.run(stop.clone()));
        }
        Self { has, running: Some(stop.drop_guard()) }
    }

    fn has(&self) -> MutexGuard<'_, Has> {
        self.has.lock().unwrap()
    }

    /// Nothing answers there any more.
    pub fn dies(&mut self) {
        self.running = None;
    }

    /// An Update as it is now.
    pub fn update(&self, name: &str) -> Option<Value> {
        self.has().updates.get(name).cloned()
    }

    /// Somebody edits its spec.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut has = self.has();
        let update = has.updates.get_mut(name).unwrap();
        change(&mut update["spec"]);
        newer(update, true);
    }

    /// What the operator says of it as it is now.
    pub fn say(&self, name: &str, status: UpdateStatus) {
        let mut has = self.has();
        let update = has.updates.get_mut(name).unwrap();
        let observed_generation = update["metadata"]["generation"].as_i64().unwrap();
        update["status"] = serde_json::to_value(UpdateStatus { observed_generation, ..status }).unwrap();
        newer(update, false);
    }

    /// How often somebody has asked for an Update.
    pub fn looks(&self) -> usize {
        self.has().looks
    }

    /// Its operator does not run, or does again.
    pub fn operator_is_away(&self, away: bool) {
        self.has().operator_is_away = away;
    }

    /// It refuses to tell of Updates, or tells of them again.
    pub fn forbids(&self, why: Option<&str>) {
        self.has().forbids = why.map(str::to_owned);
    }

    /// Somebody adds this to every Update that is written, or nothing any more.
    pub fn adds(&self, field: Option<(&str, Value)>) {
        self.has().adds = field.map(|(name, value)| (name.to_owned(), value));
    }

    /// What its `/metrics` say.
    pub fn measures(&self, metrics: &str) {
        metrics.clone_into(&mut self.has().metrics);
    }
}

/// As an API server counts: every change has a version, one of the spec a generation too.
fn newer(update: &mut Value, spec: bool) {
    let metadata = &mut update["metadata"];
    let version: u64 = metadata["resourceVersion"].as_str().map_or(0, |text| text.parse().unwrap());
    metadata["resourceVersion"] = (version + 1).to_string().into();
    if spec {
        metadata["generation"] = (metadata["generation"].as_i64().unwrap_or_default() + 1).into();
    }
}

fn server_config(pki: &ClusterPki, folder: &str, ip: IpAddr) -> ServerConfig {
    let files = pki.control_plane_files();
    let file = |name: &str| {
        let path = format!("/etc/kubernetes/pki/{folder}{name}");
        files.iter().find(|file| file.path == path).unwrap().contents.clone()
    };
    let authority = file("ca.crt");
    let issuer = Issuer::from_ca_cert_pem(&authority, KeyPair::from_pem(&file("ca.key")).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![ip.to_string()]).unwrap().signed_by(&key, &issuer).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder().with_client_cert_verifier(clients);
    config.with_single_cert(vec![certificate.der().clone()], key.into()).unwrap()
}

fn list(version: &str, kind: &str, items: &[Value]) -> Json<Value> {
    Json(json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items}))
}

fn refused(code: StatusCode, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": reason, "code": code.as_u16()});
    (code, Json(status)).into_response()
}

fn api_server(has: Shared) -> Router {
    async fn nodes() -> Json<Value> {
        let node = |name: &str| {
            json!({"metadata": {"name": name}, "status": {"nodeInfo": {"kubeletVersion": "v1.20.2"},
                "conditions": [{"type": "Ready", "status": "True"}]}})
        };
        list("v1", "NodeList", &[node("cp1"), node("w1")])
    }
    async fn operator(State(has): State<Shared>) -> Json<Value> {
        let status = if has.lock().unwrap().operator_is_away { "False" } else { "True" };
        let available = json!({"type": "Available", "status": status, "lastTransitionTime": "2020-01-01T00:00:00Z"});
        Json(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "housekeeper"},
            "status": {"conditions": [available]}}))
    }
    async fn version() -> Json<Value> {
        Json(json!({"major": "1", "minor": "20", "gitVersion": "v1.20.2"}))
    }
    async fn metrics(State(has): State<Shared>) -> String {
        has.lock().unwrap().metrics.clone()
    }
    Router::new()
        .route("/api/v1/nodes", get(nodes))
        .route("/api/v1/pods", get(async || list("v1", "PodList", &[])))
        .route("/apis/policy/v1/poddisruptionbudgets", get(async || list("policy/v1", "PodDisruptionBudgetList", &[])))
        .route("/apis/apps/v1/namespaces/nkd-system/deployments/housekeeper", get(operator))
        .route("/metrics", get(metrics))
        .route("/readyz", get(async || "ok"))
        .route("/version", get(version))
        .route("/apis/nkd.io/v1alpha1/updates/{name}", get(shown).patch(applied).put(replaced))
        .with_state(has)
}

async fn shown(State(has): State<Shared>, Path(name): Path<String>) -> Response {
    let mut has = has.lock().unwrap();
    has.looks += 1;
    if let Some(why) = &has.forbids {
        return refused(StatusCode::FORBIDDEN, why);
    }
    match has.updates.get(&name) {
        Some(update) => Json(update).into_response(),
        None => refused(StatusCode::NOT_FOUND, "NotFound"),
    }
}

/// A server-side apply: what its manager has left out goes, what somebody else has added stays.
async fn applied(
    State(has): State<Shared>,
    Path(name): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if headers[header::CONTENT_TYPE] != "application/apply-patch+yaml" {
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType");
    }
    if query.get("fieldManager").map(String::as_str) != Some("nkd") || query.get("force").is_none_or(|v| v != "true") {
        return refused(StatusCode::CONFLICT, "Conflict");
    }
    let given: Value = serde_json::from_slice(&body).unwrap();
    let mut has = has.lock().unwrap();
    let owned = has.applied.insert(name.clone(), given["spec"].clone()).unwrap_or_default();
    let mut spec = has.updates.get(&name).map(|update| update["spec"].clone()).unwrap_or_default();
    merge(&mut spec, &owned, &given["spec"]);
    let made =
        json!({"apiVersion": given["apiVersion"], "kind": given["kind"], "metadata": given["metadata"], "spec": null});
    write(&mut has, &name, made, spec)
}

/// Gives `spec` what is `given`, and takes what was `owned` and is given no more.
fn merge(spec: &mut Value, owned: &Value, given: &Value) {
    match given {
        Value::Object(fields) => {
            if !spec.is_object() {
                *spec = json!({});
            }
            let into = spec.as_object_mut().unwrap();
            into.retain(|name, _| owned.get(name).is_none() || fields.contains_key(name));
            for (name, value) in fields {
                merge(into.entry(name).or_insert(Value::Null), &owned[name], value);
            }
        }
        value => *spec = value.clone(),
    }
}

/// A whole Update in the place of the one that was read; its status is left alone.
async fn replaced(State(has): State<Shared>, Path(name): Path<String>, body: Bytes) -> Response {
    let given: Value = serde_json::from_slice(&body).unwrap();
    let mut has = has.lock().unwrap();
    let Some(there) = has.updates.get(&name) else { return refused(StatusCode::NOT_FOUND, "NotFound") };
    if there["metadata"]["resourceVersion"] != given["metadata"]["resourceVersion"] {
        return refused(StatusCode::CONFLICT, "Conflict");
    }
    write(&mut has, &name, Value::Null, given["spec"].clone())
}

fn write(has: &mut Has, name: &str, made: Value, mut spec: Value) -> Response {
    if let Some((field, value)) = &has.adds {
        spec[field] = value.clone();
    }
    let update = has.updates.entry(name.to_owned()).or_insert(made);
    if update["spec"] != spec {
        update["spec"] = spec;
        newer(update, true);
    }
    Json(update.clone()).into_response()
}

/// One member, which leads and is well.
fn gateway(own: SocketAddr) -> Router {
    let member = json!({"ID": "1", "name": "cp1", "peerURLs": [format!("https://{}:2380", own.ip())],
        "clientURLs": [format!("https://{own}")]});
    let members = json!({"header": {"member_id": "1"}, "members": [member]});
    Router::new()
        .route("/v3/cluster/member/list", post(async move || Json(members)))
        .route("/v3/maintenance/status", post(async || Json(json!({"header": {"member_id": "1"}, "leader": "1"}))))
}
