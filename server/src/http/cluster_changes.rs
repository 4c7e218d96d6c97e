//! What changes a cluster: applying a file, scaling a pool, taking a node out, taking all apart.
#![expect(clippy::disallowed_methods, reason = "the edge where clock and random identities come in")]

use std::sync::Arc;

use axum::extract::State;
use nkd_api::ErrorBody;
use nkd_api::cluster::{Applied, Cluster, ClusterStatus, Scale};
use nkd_api::user::Role;
use serde::Deserialize;
use time::OffsetDateTime;
use utoipa::IntoParams;
use uuid::Uuid;

use super::ApiError;
use super::auth::Caller;
use super::extract::{Json, Path, Query};
use crate::cluster::change::{self, Changed};
use crate::cluster::file::{self, Paths};
use crate::cluster::order;
use crate::cluster::pki::ClusterPki;
use crate::cluster::precheck::{self, PrecheckError};
use crate::cluster::record::{Leaving, Record, Then};
use crate::service::Service;
use crate::store::StoreError;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

/// Tries when two writers meet.
const TRIES: usize = 16;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ApplyQuery {
    /// Nodes may leave by this: they are drained, taken out, and their disks wiped.
    #[serde(default)]
    removals: bool,
}

/// Says what a cluster is to be. Every problem of the document is reported; then nothing is changed.
#[utoipa::path(put, path = "/api/v1/clusters", tag = "clusters", params(ApplyQuery), request_body = Cluster, responses((status = 200, body = Applied), (status = "4XX", body = ErrorBody)))]
pub(super) async fn apply(
    State(service): App,
    caller: Caller,
    Query(query): Query<ApplyQuery>,
    Json(document): Json<serde_json::Value>,
) -> Result<Json<Applied>> {
    caller.require(Role::Operator)?;
    let cluster = checked(document)?;
    let name = cluster.metadata.name.clone();
    caller.audit(&service, "cluster.apply", &name, &cluster.spec.kubernetes.version).await?;
    let store = service.registry.store();
    for _ in 0..TRIES {
        let now = OffsetDateTime::now_utc();
        let found = store.cluster_by_name(&name).await?;
        let (mut applied, after) = preview(&service, found.as_ref().map(|(record, _)| record), &cluster, now).await?;
        if !(applied.leaving.is_empty() || query.removals) {
            let nodes = applied.leaving.join(", ");
            return Err(ApiError::conflict(format!(
                "by this file {nodes} would leave {name}, and their disks would be wiped: nothing was changed"
            ))
            .hint("`nkd cluster diff -f FILE` shows all; `nkd cluster apply -f FILE --allow-removal` does it"));
        }
        let (record, revision, said) = match (after, found) {
            (Some(after), Some((_, revision))) => {
                let count = |n: usize, what: &str| if n == 0 { String::new() } else { format!(", {n} {what}") };
                let moved = count(applied.joining.len(), "to join") + &count(applied.leaving.len(), "to leave");
                (after, revision, format!("applied: {} changes{moved}", applied.changes.len()))
            }
            _ => (create(&service, cluster.clone(), now).await?, 0, "applied".to_owned()),
        };
        if applied.created || !applied.changes.is_empty() {
            match store.save_cluster(&record, revision, &[said], &caller.0.name, now).await {
                Err(StoreError::Stale) => continue,
                other => drop(other?),
            }
        }
        service.orders.wake();
        applied.status = Some(record.status());
        return Ok(Json(applied));
    }
    Err(StoreError::Stale.into())
}

/// What applying a file would do. Changes nothing.
#[utoipa::path(post, path = "/api/v1/clusters/diff", tag = "clusters", request_body = Cluster, responses((status = 200, body = Applied), (status = "4XX", body = ErrorBody)))]
pub(super) async fn diff(
    State(service): App,
    _caller: Caller,
    Json(document): Json<serde_json::Value>,
) -> Result<Json<Applied>> {
    let cluster = checked(document)?;
    let found = service.registry.store().cluster_by_name(&cluster.metadata.name).await?;
    let record = found.as_ref().map(|(record, _)| record);
    Ok(Json(preview(&service, record, &cluster, OffsetDateTime::now_utc()).await?.0))
}

/// How many machines a pool is to have. Those that are too many leave, the last ones first.
#[utoipa::path(post, path = "/api/v1/clusters/{cluster}/scale", tag = "clusters", request_body = Scale, responses((status = 200, body = Applied), (status = "4XX", body = ErrorBody)))]
pub(super) async fn scale(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
    Json(scale): Json<Scale>,
) -> Result<Json<Applied>> {
    caller.require(Role::Operator)?;
    let record = super::clusters::find(&service, &cluster).await?;
    caller.audit(&service, "cluster.scale", &cluster, &format!("{} to {}", scale.pool, scale.count)).await?;
    let mut wanted = record.cluster.clone();
    let Some(pool) = wanted.spec.pools.iter_mut().find(|pool| pool.name == scale.pool) else {
        let pools: Vec<&str> = record.cluster.spec.pools.iter().map(|pool| pool.name.as_str()).collect();
        return Err(ApiError::not_found(format!(
            "{cluster} has no pool `{}`: it has {}",
            scale.pool,
            pools.join(", ")
        )));
    };
    let count = usize::try_from(scale.count).unwrap_or(usize::MAX);
    if count < pool.machines.len() {
        // Listed machines go from the end of the list.
        pool.machines.truncate(count);
    }
    pool.count = (count != pool.machines.len() || pool.count.is_some()).then_some(scale.count);
    let document = serde_json::to_value(&wanted).map_err(|e| ApiError::unavailable(e.to_string()))?;
    apply(State(service), caller, Query(ApplyQuery { removals: true }), Json(document)).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveQuery {
    /// Its machine is gone: nothing is asked of it.
    #[serde(default)]
    lost: bool,
}

/// Takes a node out. A machine that the file lists goes for good; of a counted pool, another machine takes its place.
#[utoipa::path(delete, path = "/api/v1/clusters/{cluster}/nodes/{node}", tag = "clusters", params(RemoveQuery), responses((status = 200, body = ClusterStatus), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(service): App,
    caller: Caller,
    Path((cluster, node)): Path<(String, String)>,
    Query(query): Query<RemoveQuery>,
) -> Result<Json<ClusterStatus>> {
    caller.require(Role::Operator)?;
    caller.audit(&service, "cluster.remove", &cluster, &node).await?;
    edit(&service, &caller, &cluster, |record, now| {
        let index = record.members.iter().position(|m| m.hostname == node && m.leaving.is_none_or(|l| !l.lost));
        let Some(index) = index else {
            return Err(ApiError::not_found(format!("{cluster} has no node `{node}`: `nkd cluster status {cluster}`")));
        };
        let member = &mut record.members[index];
        if let Some(leaving) = member.leaving.as_mut() {
            // It is on its way already, and now its machine is said to be gone.
            leaving.lost |= query.lost;
            return Ok(format!("{node}: its machine is gone"));
        }
        let pools = &mut record.cluster.spec.pools;
        let pool = pools.iter_mut().find(|pool| pool.name == member.pool);
        let listed = pool.as_ref().is_some_and(|pool| pool.machines.contains(&member.wanted));
        let then = if listed { Then::Gone } else { Then::OtherMachine };
        if let (true, Some(pool)) = (listed, pool) {
            pool.machines.retain(|machine| *machine != member.wanted);
            pool.count = pool.count.map(|count| count.saturating_sub(1));
        }
        change::leave(member, Leaving::new(now, query.lost, then));
        let document = serde_json::to_value(&record.cluster).map_err(|e| ApiError::unavailable(e.to_string()))?;
        let problems = file::check(document, Paths::Refused).problems;
        if !problems.is_empty() {
            return Err(ApiError::problems(format!("{cluster} cannot be without {node}"), problems));
        }
        Ok(format!("{node}: is to leave{}", if query.lost { ", its machine is gone" } else { "" }))
    })
    .await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DestroyQuery {
    /// The name of the cluster once more.
    confirm: String,
    /// Does not wait for machines that do not answer: what they hold is wiped when they come back.
    #[serde(default)]
    force: bool,
}

/// Takes a cluster apart: everything in it is lost, its machines are wiped and go back to the pool.
#[utoipa::path(delete, path = "/api/v1/clusters/{cluster}", tag = "clusters", params(DestroyQuery), responses((status = 200, body = ClusterStatus), (status = "4XX", body = ErrorBody)))]
pub(super) async fn destroy(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
    Query(query): Query<DestroyQuery>,
) -> Result<Json<ClusterStatus>> {
    caller.require(Role::Admin)?;
    super::clusters::find(&service, &cluster).await?;
    if query.confirm != cluster {
        return Err(ApiError::invalid(format!(
            "confirm: `{}` is not the name of the cluster `{cluster}`: nothing was changed",
            query.confirm
        )));
    }
    caller.audit(&service, "cluster.destroy", &cluster, if query.force { "by force" } else { "" }).await?;
    edit(&service, &caller, &cluster, |record, now| {
        change::destroy(record, query.force, now);
        Ok("is to be destroyed".to_owned())
    })
    .await
}

fn checked(document: serde_json::Value) -> Result<Cluster> {
    let checked = file::check(document, Paths::Refused);
    let problems = checked.problems;
    checked.cluster.ok_or_else(|| ApiError::problems("the cluster file is not valid, nothing was changed", problems))
}

/// What a file does to what is there, and the record after it.
async fn preview(
    service: &Service,
    record: Option<&Record>,
    cluster: &Cluster,
    now: OffsetDateTime,
) -> Result<(Applied, Option<Record>)> {
    let mut found = precheck::precheck(service, cluster).await.map_err(|error| match error {
        PrecheckError::Store(error) => error.into(),
        error @ PrecheckError::Images(_) => ApiError::unavailable(super::chain(&error)),
    })?;
    let changed = match record.map(|record| change::change(record, cluster.clone(), now)) {
        Some(Ok(changed)) => Some(changed),
        Some(Err(problems)) => {
            found.problems.extend(problems);
            None
        }
        None => None,
    };
    if !found.problems.is_empty() {
        return Err(ApiError::problems("the cluster file cannot be applied, nothing was changed", found.problems));
    }
    let mut applied = Applied {
        created: record.is_none(),
        changes: Vec::new(),
        joining: Vec::new(),
        leaving: Vec::new(),
        warnings: found.warnings,
        status: None,
    };
    let Some(Changed { record, changes, joining, leaving, warnings }) = changed else {
        applied.joining =
            Record::new(Uuid::nil(), cluster.clone(), now).status().members.into_iter().map(|m| m.hostname).collect();
        return Ok((applied, None));
    };
    (applied.changes, applied.joining, applied.leaving) = (changes, joining, leaving);
    applied.warnings.extend(warnings);
    Ok((applied, Some(record)))
}

/// A cluster that nobody knows yet, with its keys.
async fn create(service: &Service, cluster: Cluster, now: OffsetDateTime) -> Result<Record> {
    let record = Record::new(Uuid::now_v7(), cluster, now);
    let given = record.cluster.spec.certificates.clone();
    // Making keys takes a while.
    let pki = tokio::task::spawn_blocking(move || ClusterPki::create(&given, now));
    let pki =
        pki.await.map_err(|e| ApiError::unavailable(e.to_string()))?.map_err(|e| ApiError::invalid(e.to_string()))?;
    let document = pki.to_document().map_err(|e| ApiError::unavailable(e.to_string()))?;
    // The keys first: a cluster without them could not go on.
    service.registry.store().save_secrets(&[(&order::pki_name(record.id), &document)]).await?;
    Ok(record)
}

/// Reads, changes and writes a record, again when somebody else wrote first.
async fn edit(
    service: &Service,
    caller: &Caller,
    name: &str,
    change: impl Fn(&mut Record, OffsetDateTime) -> Result<String>,
) -> Result<Json<ClusterStatus>> {
    let store = service.registry.store();
    for _ in 0..TRIES {
        let now = OffsetDateTime::now_utc();
        let Some((mut record, revision)) = store.cluster_by_name(name).await? else { break };
        let said = change(&mut record, now)?;
        match store.save_cluster(&record, revision, &[said], &caller.0.name, now).await {
            Ok(_) => {
                service.orders.wake();
                return Ok(Json(record.status()));
            }
            Err(StoreError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    }
    super::clusters::find(service, name).await?;
    Err(StoreError::Stale.into())
}
