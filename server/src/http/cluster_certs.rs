//! Certificates of clusters.

use std::sync::Arc;

use axum::extract::State;
use nkd_api::ErrorBody;
use nkd_api::cluster::ClusterCertificates;
use nkd_api::user::Role;
use serde::Deserialize;
use utoipa::IntoParams;

use super::ApiError;
use super::auth::Caller;
use super::extract::{Json, Path, Query};
use crate::cluster::certificates::{self, RenewError};
use crate::cluster::record::Record;
use crate::cluster::renewal::Refused;
use crate::service::Service;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

/// The certificates of a cluster: the service's authorities, and what the nodes have told of theirs.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}/certificates", tag = "clusters", responses((status = 200, body = ClusterCertificates), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(service): App,
    _caller: Caller,
    Path(cluster): Path<String>,
) -> Result<Json<ClusterCertificates>> {
    let found = service.registry.store().cluster_by_name(&cluster).await?;
    let (record, _) = found.ok_or_else(|| no_cluster(&cluster))?;
    shown(&service, &record).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RenewQuery {
    /// Only on this control plane; on all of them, one after the other, when not given.
    node: Option<String>,
}

/// Asks for new certificates in place of those that kubeadm made on the control planes.
#[utoipa::path(post, path = "/api/v1/clusters/{cluster}/certificates/renew", tag = "clusters", params(RenewQuery), responses((status = 200, body = ClusterCertificates), (status = "4XX", body = ErrorBody)))]
pub(super) async fn renew(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
    Query(query): Query<RenewQuery>,
) -> Result<Json<ClusterCertificates>> {
    caller.require(Role::Operator)?;
    let node = query.node.as_deref();
    caller.audit(&service, "cluster.certs.renew", &cluster, node.unwrap_or("all control planes")).await?;
    let record = certificates::renew(&service, &cluster, node, &caller.0.name).await;
    let record = record.map_err(|error| match error {
        RenewError::Gone => no_cluster(&cluster),
        RenewError::Refused(Refused::Unknown(_)) => ApiError::not_found(format!("{cluster}: {error}")),
        RenewError::Refused(_) => ApiError::conflict(format!("{cluster}: {error}")),
        RenewError::Store(error) => error.into(),
    })?;
    shown(&service, &record).await
}

async fn shown(service: &Service, record: &Record) -> Result<Json<ClusterCertificates>> {
    let view = certificates::view(service, record).await;
    Ok(Json(view.map_err(|error| ApiError::unavailable(super::chain(&error)))?))
}

fn no_cluster(name: &str) -> ApiError {
    ApiError::not_found(format!("no cluster `{name}`: `nkd cluster list` shows all"))
}
