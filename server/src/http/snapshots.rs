//! Snapshots of etcd: operators order and fetch them, nodes bring them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;
use nkd_api::ErrorBody;
use nkd_api::agent::Purpose;
use nkd_api::snapshot::{EtcdSnapshot, SnapshotProof, SnapshotState};
use nkd_api::user::Role;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::agents::admitted;
use super::auth::{Caller, Node};
use super::error::chain;
use super::extract::{Json, Path, Query};
use super::{ApiError, clusters};
use crate::cluster::snapshot::take::{self, TakeError};
use crate::cluster::snapshot::vault::VaultError;
use crate::fleet::task::{self, Standing};
use crate::service::Service;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

/// How long the next piece of a snapshot may take.
const PIECE: Duration = Duration::from_secs(60);
/// The largest that is taken. etcd itself should not hold more than half of it.
const LARGEST: u64 = 16 << 30;

/// Characters that are kept of what a node could not compare.
const LONGEST: usize = 1000;

impl From<TakeError> for ApiError {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::Nobody(_) | TakeError::NotOrdered => Self::conflict(error.to_string()),
            TakeError::Cluster(cluster) => cluster.into(),
            TakeError::Store(store) => store.into(),
            TakeError::Vault(vault) => vault.into(),
        }
    }
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Missing => Self::not_found(error.to_string()),
            // The node may try again: something may have been lost on the way.
            _ => Self::unavailable(chain(&error)),
        }
    }
}

/// Takes a snapshot of the etcd of a cluster, on one of its control planes.
#[utoipa::path(post, path = "/api/v1/clusters/{cluster}/snapshots", tag = "snapshots", responses((status = 200, body = EtcdSnapshot), (status = "4XX", body = ErrorBody)))]
pub(super) async fn take(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
) -> Result<Json<EtcdSnapshot>> {
    caller.require(Role::Operator)?;
    let record = clusters::find(&service, &cluster).await?;
    caller.audit(&service, "cluster.snapshot.take", &cluster, "").await?;
    Ok(Json(take::order(&service, record.id, None, &caller.0.name).await?))
}

/// The snapshots of a cluster, the newest first.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}/snapshots", tag = "snapshots", responses((status = 200, body = Vec<EtcdSnapshot>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(service): App,
    caller: Caller,
    Path(cluster): Path<String>,
) -> Result<Json<Vec<EtcdSnapshot>>> {
    caller.require(Role::Viewer)?;
    let record = clusters::find(&service, &cluster).await?;
    Ok(Json(service.registry.store().snapshots(record.id).await?))
}

/// A snapshot.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}/snapshots/{id}", tag = "snapshots", responses((status = 200, body = EtcdSnapshot), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(service): App,
    caller: Caller,
    Path((cluster, id)): Path<(String, Uuid)>,
) -> Result<Json<EtcdSnapshot>> {
    caller.require(Role::Viewer)?;
    Ok(Json(find(&service, &cluster, id).await?.1))
}

/// The snapshot itself, as `etcdctl snapshot save` wrote it. It holds every secret of the cluster.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster}/snapshots/{id}/data", tag = "snapshots", responses((status = 200, body = String, content_type = "application/octet-stream"), (status = "4XX", body = ErrorBody)))]
pub(super) async fn data(
    State(service): App,
    caller: Caller,
    Path((cluster, id)): Path<(String, Uuid)>,
) -> Result<Response> {
    caller.require(Role::Admin)?;
    let (cluster_id, snapshot) = find(&service, &cluster, id).await?;
    let Some(proof) = snapshot.proof.filter(|_| snapshot.state == SnapshotState::Verified) else {
        return Err(ApiError::conflict(format!("there is nothing to fetch: it is {}", snapshot.state.as_str())));
    };
    caller.audit(&service, "cluster.snapshot.get", &cluster, &id.to_string()).await?;
    let pieces = service.snapshots.vault.read(cluster_id, id).await?;
    let stream = futures_util::stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
    let head = [(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_LENGTH, proof.size.to_string())];
    Ok((head, Body::from_stream(stream)).into_response())
}

async fn find(service: &Service, cluster: &str, id: Uuid) -> Result<(Uuid, EtcdSnapshot)> {
    let record = clusters::find(service, cluster).await?;
    let found = service.registry.store().snapshots(record.id).await?.into_iter().find(|snapshot| snapshot.id == id);
    let none = || {
        ApiError::not_found(format!("{cluster} has no snapshot {id}"))
            .hint(format!("`nkd cluster snapshot list {cluster}` shows those there are"))
    };
    Ok((record.id, found.ok_or_else(none)?))
}

/// A node brings the snapshot that was ordered of it. It is kept when this is answered.
pub(super) async fn receive(
    State(service): App,
    Node(node): Node,
    Path(operation): Path<Uuid>,
    Query(mut proof): Query<SnapshotProof>,
    body: Body,
) -> Result<Json<EtcdSnapshot>> {
    if node.purpose != Purpose::Node {
        return Err(ApiError::forbidden("only an installed node brings snapshots"));
    }
    let machine = admitted(&service, node).await?;
    if task::standing(&machine, node) != Standing::Current {
        return Err(ApiError::conflict(format!("this boot of {} is over: start it again", machine.name)));
    }
    if proof.size > LARGEST {
        return Err(ApiError::too_large(format!("a snapshot has at most {LARGEST} bytes")));
    }
    if proof.etcd_version.len() > 64 || proof.etcd_version.chars().any(char::is_control) {
        return Err(ApiError::invalid("etcdVersion: this is no version"));
    }
    // It may be what a program has said.
    proof.not_compared = proof.not_compared.map(|why| why.chars().filter(|c| !c.is_control()).take(LONGEST).collect());
    let (cluster, row) = take::expected(&service, machine.id, operation).await?;
    let (sender, pieces) = mpsc::channel(2);
    let vault = service.snapshots.vault.clone();
    let told = proof.clone();
    let kept = tokio::spawn(async move { vault.receive(cluster, operation, told, pieces).await });
    let came = pass_on(body, sender).await;
    let kept = kept.await.unwrap_or(Err(VaultError::Broken));
    came?;
    kept?;
    take::came(&service, cluster, &row, proof).await?;
    tracing::info!(machine = %machine.name, snapshot = %operation, "a snapshot of etcd is kept");
    Ok(Json(row))
}

/// Gives the pieces of a body to whoever writes them; that one may end first.
async fn pass_on(mut body: Body, sender: mpsc::Sender<bytes::Bytes>) -> Result<()> {
    loop {
        let frame = tokio::time::timeout(PIECE, body.frame()).await;
        let frame = frame.map_err(|_| ApiError::unavailable("the next piece of the snapshot did not come in time"))?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|_| ApiError::unavailable("the snapshot broke off"))?;
        if let Ok(piece) = frame.into_data()
            && sender.send(piece).await.is_err()
        {
            return Ok(());
        }
    }
}
