//! A new beginning for what failed in a cluster.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;

use axum::extract::State;
use nkd_api::ErrorBody;
use nkd_api::cluster::ClusterStatus;
use nkd_api::user::Role;
use serde::Deserialize;
use time::OffsetDateTime;
use utoipa::IntoParams;

use super::ApiError;
use super::auth::Caller;
use super::extract::{Json, Path, Query};
use crate::cluster::retry;
use crate::service::Service;
use crate::store::StoreError;

/// Tries when two writers meet.
const TRIES: usize = 16;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RetryQuery {
    /// Only this node; all that failed when not given.
    node: Option<String>,
}

/// Tries again now what failed, however often it has.
#[utoipa::path(post, path = "/api/v1/clusters/{cluster}/retry", tag = "clusters", params(RetryQuery), responses((status = 200, body = ClusterStatus), (status = "4XX", body = ErrorBody)))]
pub(super) async fn retry(
    State(service): State<Arc<Service>>,
    caller: Caller,
    Path(cluster): Path<String>,
    Query(query): Query<RetryQuery>,
) -> Result<Json<ClusterStatus>, ApiError> {
    caller.require(Role::Operator)?;
    caller.audit(&service, "cluster.retry", &cluster, query.node.as_deref().unwrap_or("all")).await?;
    let store = service.registry.store();
    for _ in 0..TRIES {
        let found = store.cluster_by_name(&cluster).await?;
        let (mut record, revision) = found
            .ok_or_else(|| ApiError::not_found(format!("no cluster `{cluster}`: `nkd cluster list` shows all")))?;
        let said = retry::retry(&mut record, query.node.as_deref()).map_err(|e| ApiError::not_found(e.to_string()))?;
        if said.is_empty() {
            return Err(ApiError::conflict(format!("nothing of {cluster} has failed: there is nothing to try again")));
        }
        match store.save_cluster(&record, revision, &said, &caller.0.name, OffsetDateTime::now_utc()).await {
            Ok(_) => {
                service.orders.wake();
                return Ok(Json(record.status()));
            }
            Err(StoreError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Stale.into())
}
