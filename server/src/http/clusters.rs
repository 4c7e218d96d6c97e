//! Clusters.
#![expect(clippy::disallowed_methods, reason = "the edge where clock and random identities come in")]

use std::sync::Arc;

use axum::extract::State;
use nkd_api::ErrorBody;
use nkd_api::cluster::{Cluster, ClusterEvent, ClusterStatus};
use nkd_api::user::Role;
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use utoipa::IntoParams;
use uuid::Uuid;

use super::ApiError;
use super::auth::Caller;
use super::extract::{Json, Path, Query};
use crate::cluster::file::{self, Paths};
use crate::cluster::order;
use crate::cluster::pki::{Access, ClusterPki};
use crate::cluster::record::Record;
use crate::service::Service;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

const MAX_EVENTS: u32 = 1000;
/// Life of a kubeconfig, unless the caller asks for less or more.
const ACCESS_HOURS: i64 = 24;
/// The longest life of a kubeconfig.
const MOST_HOURS: i64 = 24 * 366;

/// All clusters, by name.
#[utoipa::path(get, path = "/api/v1/clusters", tag = "clusters", responses((status = 200, body = Vec<ClusterStatus>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(State(service): App, _caller: Caller) -> Result<Json<Vec<ClusterStatus>>> {
    let clusters = service.registry.store().clusters().await?;
    Ok(Json(clusters.iter().map(|(record, _)| record.status()).collect()))
}

/// Says what a cluster is to be. Every problem of the document is reported; then nothing is changed.
#[utoipa::path(put, path = "/api/v1/clusters", tag = "clusters", request_body = Cluster, responses((status = 200, body = ClusterStatus), (status = "4XX", body = ErrorBody)))]
pub(super) async fn apply(
    State(service): App,
    caller: Caller,
    Json(document): Json<serde_json::Value>,
) -> Result<Json<ClusterStatus>> {
    caller.require(Role::Operator)?;
    let checked = file::check(document, Paths::Refused);
    let Some(cluster) = checked.cluster else {
        return Err(ApiError::problems("the cluster file is not valid", checked.problems));
    };
    let name = cluster.metadata.name.clone();
    caller.audit(&service, "cluster.apply", &name, &cluster.spec.kubernetes.version).await?;
    let (store, now) = (service.registry.store(), OffsetDateTime::now_utc());
    if let Some((record, _)) = store.cluster_by_name(&name).await? {
        if record.cluster == cluster {
            return Ok(Json(record.status()));
        }
        return Err(ApiError::conflict(format!(
            "the cluster `{name}` is there, and another file is applied to it: only the same one can be applied again so far"
        )));
    }
    let record = Record::new(Uuid::now_v7(), cluster, now);
    let given = record.cluster.spec.certificates.clone();
    // Making keys takes a while.
    let pki = tokio::task::spawn_blocking(move || ClusterPki::create(&given, now));
    let pki =
        pki.await.map_err(|e| ApiError::unavailable(e.to_string()))?.map_err(|e| ApiError::invalid(e.to_string()))?;
    let document = pki.to_document().map_err(|e| ApiError::unavailable(e.to_string()))?;
    // The keys first: a cluster without them could not go on.
    store.save_secrets(&[(&order::pki_name(record.id), &document)]).await?;
    store.save_cluster(&record, 0, &["applied".to_owned()], &caller.0.name, now).await?;
    service.orders.wake();
    Ok(Json(record.status()))
}

/// One cluster.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}", tag = "clusters", responses((status = 200, body = ClusterStatus), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(service): App,
    _caller: Caller,
    Path(cluster): Path<String>,
) -> Result<Json<ClusterStatus>> {
    Ok(Json(find(&service, &cluster).await?.status()))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// The newest so many, at most 1000.
    limit: Option<u32>,
}

/// What happened to a cluster, oldest first.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}/events", tag = "clusters", params(EventsQuery), responses((status = 200, body = Vec<ClusterEvent>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn events(
    State(service): App,
    _caller: Caller,
    Path(cluster): Path<String>,
    Query(query): Query<EventsQuery>,
) -> Result<Json<Vec<ClusterEvent>>> {
    let record = find(&service, &cluster).await?;
    let limit = query.limit.unwrap_or(100).min(MAX_EVENTS);
    Ok(Json(service.registry.store().cluster_events(record.id, limit).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AccessQuery {
    /// User name in the certificate; the caller's when not given.
    user: Option<String>,
    /// Group in the certificate; `system:masters` when not given.
    group: Option<String>,
    /// Life in hours; 24 when not given.
    hours: Option<i64>,
}

/// Access to a cluster: a kubeconfig with a certificate made for this request. For administrators; in the audit trail.
#[utoipa::path(post, path = "/api/v1/clusters/{cluster}/kubeconfig", tag = "clusters", params(AccessQuery), responses((status = 200, body = String), (status = "4XX", body = ErrorBody)))]
pub(super) async fn kubeconfig(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
    Query(query): Query<AccessQuery>,
) -> Result<String> {
    caller.require(Role::Admin)?;
    let record = find(&service, &cluster).await?;
    let hours = query.hours.unwrap_or(ACCESS_HOURS);
    if !(1..=MOST_HOURS).contains(&hours) {
        return Err(ApiError::invalid(format!("hours: {hours} is not from 1 to {MOST_HOURS}")));
    }
    let user = query.user.unwrap_or_else(|| caller.0.name.clone());
    let group = query.group.unwrap_or_else(|| "system:masters".into());
    for (name, text) in [("user", &user), ("group", &group)] {
        if text.is_empty() || text.len() > 64 || text.chars().any(|c| c.is_control() || c == ',') {
            return Err(ApiError::invalid(format!(
                "{name}: {text:?} cannot stand in a certificate: 1 to 64 characters, no comma"
            )));
        }
    }
    let endpoint = record.endpoint().ok_or_else(|| {
        ApiError::conflict(format!(
            "the address of {cluster} is not known yet: its first control plane has not come up"
        ))
    })?;
    caller.audit(&service, "cluster.kubeconfig", &cluster, &format!("{user} ({group}) for {hours} h")).await?;
    let pki = order::pki(&service, &record).await?;
    let access = Access {
        cluster: record.name(),
        server: &format!("https://{endpoint}"),
        user: &user,
        group: &group,
        lifetime: Duration::hours(hours),
    };
    pki.kubeconfig(&access, OffsetDateTime::now_utc()).map_err(|e| ApiError::unavailable(e.to_string()))
}

async fn find(service: &Service, name: &str) -> Result<Record> {
    let found = service.registry.store().cluster_by_name(name).await?;
    found
        .map(|(record, _)| record)
        .ok_or_else(|| ApiError::not_found(format!("no cluster `{name}`: `nkd cluster list` shows all")))
}
