//! The cluster's API server, as far as the operator talks to it. Every request has a limit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node, ObjectReference, Pod};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    Preconditions,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nkd_api::update::{CORDONED_BY, DESIRED, GROUP, KIND, NOTE, PLURAL, UPSTREAM_GROUP, UpdateStatus, VERSION};
use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::budget::{BudgetSeen, PodSeen};
use crate::step::Change;
use crate::wish::{Source, Wish};

/// How long one request may take. The lease counts on it: see [`crate::lease::Tenure`].
pub const LIMIT: Duration = Duration::from_secs(8);
/// Who owns the fields that we write.
const MANAGER: &str = "housekeeper";
/// Versions of the group `policy`, the newer first. Which of them there are changes under the operator: control planes
/// upgrade, and until they all have, each request may come to an API server of either version.
const POLICY: [&str; 2] = ["v1", "v1beta1"];

/// The API server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The client could not be made.
    #[error("the client for the cluster's API cannot be made: run inside of a cluster, or give --kubeconfig")]
    Config(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request failed.
    #[error("{what}: the API server says no, or nothing")]
    Request {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer came.
    #[error("{0}: no answer from the API server within {limit} s", limit = LIMIT.as_secs())]
    Late(String),
    /// What was to be sent has no form.
    #[error("{0}: it cannot be written as JSON")]
    Form(String, #[source] serde_json::Error),
}

impl ClusterError {
    /// Somebody else has written in between: look again.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// No answer came in time.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(self, Self::Late(_))
    }

    /// It says something of what was asked, and nothing of the API server as a whole: a refusal, a fault behind it (an admission
    /// webhook that is slow or broken, say), or no answer to this one request.
    #[must_use]
    pub fn is_of_this_request(&self) -> bool {
        let code = self.code();
        self.is_late() || code.is_some_and(|code| (400..600).contains(&code) && !matches!(code, 401 | 409))
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Request { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    fn said(&self) -> Option<String> {
        match self {
            Self::Request { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.message.clone()),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A client.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// Place in [`POLICY`] of the version that evictions were taken in last.
    evictions: Arc<AtomicUsize>,
}

/// Waits for an answer, no longer than the limit.
///
/// # Errors
/// The API server says no, or nothing.
pub async fn ask<T>(
    what: impl Into<String>,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    let what = what.into();
    match tokio::time::timeout(LIMIT, request).await {
        Ok(answer) => answer.map_err(|source| ClusterError::Request { what, source: Box::new(source) }),
        Err(_) => Err(ClusterError::Late(what)),
    }
}

/// An error with all its causes, for the log.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The resource that updates of this source are.
#[must_use]
pub fn resource(source: Source) -> ApiResource {
    let group = match source {
        Source::Ours => GROUP,
        Source::Upstream => UPSTREAM_GROUP,
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, VERSION, KIND), PLURAL)
}

/// A client as the operator wants one.
fn client(mut config: Config) -> Result<Client, ClusterError> {
    config.connect_timeout = Some(LIMIT);
    config.proxy_url = None;
    // A disruption budget answers 429, and is asked again at the next look. The client's own tries would take longer than the
    // limit, and nobody would hear what it said.
    config.default_retry = false;
    Client::try_from(config).map_err(|e| ClusterError::Config(e.into()))
}

impl Cluster {
    /// A client by a kubeconfig, or as a pod of the cluster.
    ///
    /// # Errors
    /// There is none, or the API server does not answer.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ClusterError> {
        let config = match kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|e| ClusterError::Config(e.into()))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(|e| ClusterError::Config(e.into()))?
            }
            None => Config::incluster().map_err(|e| ClusterError::Config(e.into()))?,
        };
        let client = client(config)?;
        let core = ask("list the resources of the API", client.list_core_api_resources("v1")).await?;
        let eviction = core.resources.iter().find(|resource| resource.name == "pods/eviction");
        let has_v1 = eviction.and_then(|resource| resource.version.as_deref()) == Some(POLICY[0]);
        let cluster = Self::of(client);
        cluster.evictions.store(usize::from(!has_v1), Ordering::Relaxed);
        Ok(cluster)
    }

    fn of(client: Client) -> Self {
        Self { client, evictions: Arc::default() }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// All nodes, as they are now.
    ///
    /// # Errors
    /// The API server says no, or nothing.
    pub async fn nodes(&self) -> Result<Vec<Node>, ClusterError> {
        let nodes: Api<Node> = Api::all(self.client());
        Ok(ask("list nodes", nodes.list(&ListParams::default())).await?.items)
    }

    /// The pods of a node.
    ///
    /// # Errors
    /// The API server says no, or nothing.
    pub async fn pods(&self, node: &str) -> Result<Vec<Pod>, ClusterError> {
        let pods: Api<Pod> = Api::all(self.client());
        let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
        Ok(ask(format!("list the pods of {node}"), pods.list(&here)).await?.items)
    }

    /// The static pods of control planes that kubeadm makes, etcd and the API server.
    ///
    /// # Errors
    /// The API server says no, or nothing.
    pub async fn plane_pods(&self) -> Result<Vec<Pod>, ClusterError> {
        let pods: Api<Pod> = Api::namespaced(self.client(), "kube-system");
        let of = ListParams::default().labels("tier=control-plane,component in (etcd,kube-apiserver)");
        Ok(ask("list the pods of the control planes", pods.list(&of)).await?.items)
    }

    /// All disruption budgets.
    ///
    /// # Errors
    /// The API server says no, or nothing.
    pub async fn budgets(&self) -> Result<Vec<BudgetSeen>, ClusterError> {
        let [newer, older] = POLICY;
        match self.budgets_of(newer).await {
            Err(error) if error.code() == Some(404) => self.budgets_of(older).await,
            found => found,
        }
    }

    async fn budgets_of(&self, version: &str) -> Result<Vec<BudgetSeen>, ClusterError> {
        let kind = GroupVersionKind::gvk("policy", version, "PodDisruptionBudget");
        let resource = ApiResource::from_gvk_with_plural(&kind, "poddisruptionbudgets");
        let budgets: Api<DynamicObject> = Api::all_with(self.client(), &resource);
        let list = ask("list disruption budgets", budgets.list(&ListParams::default())).await?;
        let read = |object: DynamicObject| {
            let value = serde_json::to_value(&object).ok()?;
            BudgetSeen::read(&value, version == POLICY[0])
        };
        Ok(list.items.into_iter().filter_map(read).collect())
    }

    /// Writes on a node, if nobody has since it was seen.
    ///
    /// # Errors
    /// Somebody has, or the API server says no, or nothing.
    pub async fn write(&self, node: &str, version: &str, change: &Change) -> Result<Node, ClusterError> {
        let what = format!("write on the node {node}");
        let patch = patch(version, change).map_err(|e| ClusterError::Form(what.clone(), e))?;
        let nodes: Api<Node> = Api::all(self.client());
        ask(
            what,
            nodes.patch(
                node,
                &PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() },
                &Patch::Merge(&patch),
            ),
        )
        .await
    }

    /// Asks a pod to leave. What holds it, if something does: a disruption budget.
    ///
    /// # Errors
    /// The API server says no for another reason, or nothing.
    pub async fn evict(&self, pod: &PodSeen) -> Result<Option<String>, ClusterError> {
        let is_bad = |answer: &Result<_, ClusterError>| answer.as_ref().is_err_and(|error| error.code() == Some(400));
        let usual = self.evictions.load(Ordering::Relaxed) % POLICY.len();
        let answer = self.evict_as(POLICY[usual], pod).await;
        if !is_bad(&answer) {
            return answer;
        }
        // This API server may know the other version only.
        let other = (usual + 1) % POLICY.len();
        let again = self.evict_as(POLICY[other], pod).await;
        if is_bad(&again) {
            return answer;
        }
        self.evictions.store(other, Ordering::Relaxed);
        again
    }

    async fn evict_as(&self, version: &str, pod: &PodSeen) -> Result<Option<String>, ClusterError> {
        let what = format!("evict {}/{}", pod.namespace, pod.name);
        let form = |e| ClusterError::Form(what.clone(), e);
        let body = json!({
            "apiVersion": format!("policy/{version}"),
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        });
        let path = format!("/api/v1/namespaces/{}/pods/{}/eviction", pod.namespace, pod.name);
        let request = http::Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(&body).map_err(form)?)
            .map_err(|e| ClusterError::Config(e.into()))?;
        match ask(what, self.client.request_text(request)).await {
            Ok(_) => Ok(None),
            // It is gone, or another one has its name.
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(None),
            // A budget says not now, or two budgets confuse the API server.
            Err(error) if matches!(error.code(), Some(429 | 500)) => Ok(error.said()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a pod.
    ///
    /// # Errors
    /// The API server says no, or nothing.
    pub async fn delete(&self, pod: &PodSeen, at_once: bool) -> Result<(), ClusterError> {
        let pods: Api<Pod> = Api::namespaced(self.client(), &pod.namespace);
        let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
        let grace_period_seconds = at_once.then_some(0);
        let params =
            DeleteParams { preconditions: Some(preconditions), grace_period_seconds, ..DeleteParams::default() };
        match ask(format!("delete {}/{}", pod.namespace, pod.name), pods.delete(&pod.name, &params)).await {
            Err(error) if !matches!(error.code(), Some(404 | 409)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes an event, of core/v1: API servers of 1.20 refuse those of events.k8s.io about what has no namespace unless they
    /// are in another namespace than later API servers want.
    ///
    /// # Errors
    /// The API server says no, or nothing.
    pub async fn event(
        &self,
        about: &ObjectReference,
        reason: &str,
        message: &str,
        bad: bool,
        now: OffsetDateTime,
    ) -> Result<(), ClusterError> {
        let what = "write an event";
        let namespace = about.namespace.as_deref().unwrap_or("default");
        let seconds = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339);
        let seconds = seconds.map_err(|e| ClusterError::Config(e.into()))?;
        let name = about.name.as_deref().unwrap_or_default();
        let event = json!({
            "metadata": {"name": format!("{name}.{:x}", now.unix_timestamp_nanos()), "namespace": namespace},
            "involvedObject": about,
            "reason": reason,
            "message": message.chars().take(1000).collect::<String>(),
            "type": if bad { "Warning" } else { "Normal" },
            "source": {"component": MANAGER},
            "firstTimestamp": seconds,
            "lastTimestamp": seconds,
            "count": 1,
        });
        let event: Event = serde_json::from_value(event).map_err(|e| ClusterError::Form(what.into(), e))?;
        let events: Api<Event> = Api::namespaced(self.client(), namespace);
        ask(what, events.create(&PostParams::default(), &event)).await.map(drop)
    }

    /// All updates, as they are now.
    ///
    /// # Errors
    /// The API server says no, or nothing. The resource of upstream may be missing.
    pub async fn updates(&self) -> Result<Vec<(Source, DynamicObject)>, ClusterError> {
        let mut all = Vec::new();
        for source in [Source::Ours, Source::Upstream] {
            let updates: Api<DynamicObject> = Api::all_with(self.client(), &resource(source));
            match ask("list updates", updates.list(&ListParams::default())).await {
                Err(error) if source == Source::Upstream && error.code() == Some(404) => {}
                list => all.extend(list?.items.into_iter().map(|object| (source, object))),
            }
        }
        Ok(all)
    }

    /// Writes the status of an update, if nobody has written to it since it was seen: what an image was found to be is never
    /// replaced by who has not seen that. The update as it is then; one that is gone is no error.
    ///
    /// # Errors
    /// Somebody has, or the API server says no, or nothing.
    pub async fn tell(&self, wish: &Wish, status: &UpdateStatus) -> Result<Option<DynamicObject>, ClusterError> {
        let resource = resource(wish.source);
        let updates: Api<DynamicObject> = match &wish.namespace {
            Some(namespace) => Api::namespaced_with(self.client(), namespace, &resource),
            None => Api::all_with(self.client(), &resource),
        };
        let what = format!("tell the status of {}", wish.full_name());
        let status = told(status).map_err(|e| ClusterError::Form(what.clone(), e))?;
        let patch = json!({"metadata": {"uid": wish.uid, "resourceVersion": wish.version}, "status": status});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match ask(what, updates.patch_status(&wish.name, &params, &Patch::Merge(&patch))).await {
            Err(error) if error.code() == Some(404) => Ok(None),
            told => told.map(Some),
        }
    }
}

/// A status for a merge: what is not in it any more has to be named.
fn told(status: &UpdateStatus) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(status)?;
    if let Value::Object(value) = &mut value {
        value.entry("image").or_insert(Value::Null);
    }
    if let Some(release) = value.get_mut("release").and_then(Value::as_object_mut) {
        release.entry("name").or_insert(Value::Null);
        release.entry("kubernetes").or_insert(Value::Null);
        if let Value::Object(os) = release.entry("os").or_insert(Value::Null) {
            for key in ["commit", "image", "version"] {
                os.entry(key).or_insert(Value::Null);
            }
        }
    }
    Ok(value)
}

fn patch(version: &str, change: &Change) -> Result<Value, serde_json::Error> {
    fn text<T: Serialize>(value: Option<&T>) -> Result<Value, serde_json::Error> {
        Ok(value.map(serde_json::to_string).transpose()?.map_or(Value::Null, Value::String))
    }
    let mut annotations = Map::new();
    if let Some(by) = &change.cordoned_by {
        annotations.insert(CORDONED_BY.into(), json!(by));
    }
    if let Some(desired) = &change.desired {
        annotations.insert(DESIRED.into(), text(desired.as_ref())?);
    }
    if let Some(note) = &change.note {
        annotations.insert(NOTE.into(), text(note.as_ref())?);
    }
    let mut patch = json!({"metadata": {"resourceVersion": version, "annotations": annotations}});
    if let Some(cordon) = change.cordon {
        patch["spec"] = json!({"unschedulable": cordon.then_some(true)});
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::extract::{Path as In, State};
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use axum::routing::{get, patch as patch_route, post};
    use axum::{Json, Router};
    use nkd_api::update::{OsRelease, Release};

    use super::*;

    type Has = Arc<Mutex<Vec<&'static str>>>;

    fn says(code: StatusCode) -> Response {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "No",
            "code": code.as_u16()});
        (code, Json(status)).into_response()
    }

    /// A stand-in for an API server, as far as the group `policy` goes: these are the versions of it that it has. What it
    /// answers to others is what real ones answer: 404 to a path, 400 to a body.
    fn stand_in(has: Has) -> Cluster {
        async fn budgets(State(has): State<Has>, In(version): In<String>) -> Response {
            if !has.lock().unwrap().contains(&version.as_str()) {
                return says(StatusCode::NOT_FOUND);
            }
            let budget = json!({"apiVersion": format!("policy/{version}"), "kind": "PodDisruptionBudget",
                "metadata": {"name": version, "namespace": "shop"}, "spec": {"selector": {}}});
            let metadata = json!({"resourceVersion": "1"});
            let list = json!({"apiVersion": format!("policy/{version}"), "kind": "PodDisruptionBudgetList",
                "metadata": metadata, "items": [budget]});
            Json(list).into_response()
        }
        async fn evict(State(has): State<Has>, Json(body): Json<Value>) -> Response {
            let version = body["apiVersion"].as_str().and_then(|text| text.strip_prefix("policy/")).unwrap().to_owned();
            let known = has.lock().unwrap().contains(&version.as_str());
            if known { Json(json!({"kind": "Status"})).into_response() } else { says(StatusCode::BAD_REQUEST) }
        }
        let router = Router::new()
            .route("/apis/policy/{version}/poddisruptionbudgets", get(budgets))
            .route("/api/v1/namespaces/shop/pods/web-1/eviction", post(evict))
            .with_state(has);
        Cluster::of(Client::new(router, "default"))
    }

    #[tokio::test]
    async fn budgets_and_evictions_go_on_when_the_api_server_gets_other_versions() {
        let has = Has::default();
        let cluster = stand_in(Arc::clone(&has));
        let (name, namespace, uid) = ("web-1".into(), "shop".into(), "u".into());
        let pod = PodSeen { namespace, name, uid, ..PodSeen::default() };
        // 1.20; 1.21 to 1.24; 1.25; and back, to an API server that has not been upgraded yet.
        for (versions, takes) in [
            (&["v1beta1"][..], "v1beta1"),
            (&["v1", "v1beta1"], "v1"),
            (&["v1"], "v1"),
            (&["v1beta1"], "v1beta1"),
            (&["v1"], "v1"),
        ] {
            *has.lock().unwrap() = versions.to_vec();
            let names: Vec<String> = cluster.budgets().await.unwrap().into_iter().map(|budget| budget.name).collect();
            assert_eq!(names, [takes], "{versions:?}");
            assert_eq!(cluster.evict(&pod).await.unwrap(), None, "{versions:?}");
        }
        // What no version helps against is said as it was.
        has.lock().unwrap().clear();
        assert_eq!(cluster.evict(&pod).await.unwrap_err().code(), Some(400));
        assert_eq!(cluster.budgets().await.unwrap_err().code(), Some(404));
    }

    /// An update that somebody else has written to since it was seen.
    #[tokio::test]
    async fn a_status_is_written_over_the_version_that_was_seen_and_no_other() {
        async fn status(In(name): In<String>, Json(body): Json<Value>) -> Response {
            let metadata = json!({"name": name, "uid": "u", "resourceVersion": "8"});
            match (name.as_str(), body["metadata"]["resourceVersion"].as_str()) {
                ("gone", _) => says(StatusCode::NOT_FOUND),
                (_, Some("7")) => {
                    let object = json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Update", "metadata": metadata});
                    Json(object).into_response()
                }
                _ => says(StatusCode::CONFLICT),
            }
        }
        let router = Router::new().route("/apis/nkd.io/v1alpha1/updates/{name}/status", patch_route(status));
        let cluster = Cluster::of(Client::new(router, "default"));
        let wish = |name: &str, version: &str| {
            let object = json!({
                "apiVersion": "nkd.io/v1alpha1", "kind": "Update", "spec": {"release": {"kubernetes": "v1.21.0"}},
                "metadata": {"name": name, "uid": "u", "resourceVersion": version, "creationTimestamp": "2026-01-02T03:04:05Z"},
            });
            Wish::read(Source::Ours, &serde_json::from_value(object).unwrap()).unwrap()
        };
        let told = cluster.tell(&wish("a", "7"), &UpdateStatus::default()).await.unwrap().unwrap();
        assert_eq!(told.metadata.resource_version.as_deref(), Some("8"));
        assert!(cluster.tell(&wish("a", "6"), &UpdateStatus::default()).await.unwrap_err().is_conflict());
        assert!(cluster.tell(&wish("gone", "7"), &UpdateStatus::default()).await.unwrap().is_none());
    }

    #[test]
    fn a_change_writes_what_it_names_and_nothing_else() {
        let change = Change { cordon: Some(false), cordoned_by: Some(None), ..Change::default() };
        let expected = json!({
            "metadata": {"resourceVersion": "7", "annotations": {"nkd.io/cordoned-by": null}},
            "spec": {"unschedulable": null},
        });
        assert_eq!(patch("7", &change).unwrap(), expected);
        let change = Change { note: Some(None), ..Change::default() };
        let expected = json!({"metadata": {"resourceVersion": "7", "annotations": {"nkd.io/update-note": null}}});
        assert_eq!(patch("7", &change).unwrap(), expected);
    }

    #[test]
    fn what_a_release_no_longer_has_is_taken_out_of_the_status() {
        let os = Some(OsRelease { commit: Some("a".into()), ..OsRelease::default() });
        let release = Some(Release { name: "1".into(), os, kubernetes: None });
        let status = told(&UpdateStatus { release, ..UpdateStatus::default() }).unwrap();
        let expected = json!({"name": "1", "kubernetes": null, "os": {"commit": "a", "image": null, "version": null}});
        assert_eq!(status["release"], expected);
        assert_eq!(status.get("image"), Some(&Value::Null), "what was found for a name that it has no more");
    }
}
