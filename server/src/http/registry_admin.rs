//! The registry as its operators see it: what is in it, and what may go. Container tools speak to `/v2/` instead.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use nkd_api::ErrorBody;
use nkd_api::registry::{Deleted, RegistryGarbage, Repository, Tag};
use nkd_api::user::Role;
use serde::Deserialize;
use time::{Duration, OffsetDateTime};

use super::ApiError;
use super::auth::Caller;
use super::error::chain;
use super::extract::{Json, Query};
use crate::content::image::catalog::CatalogError;
use crate::content::registry::spec::Reference;
use crate::content::registry::{GRACE, GarbageOrder, OciError, UPLOADS};
use crate::service::Service;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

/// All repositories.
#[utoipa::path(get, path = "/api/v1/registry", tag = "registry", responses((status = 200, body = Vec<Repository>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(State(service): App, caller: Caller) -> Result<Json<Vec<Repository>>> {
    caller.require(Role::Viewer)?;
    Ok(Json(service.oci.repositories().await?))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Name of the repository; it may have slashes.
    repository: String,
    /// A tag, or a digest.
    reference: Option<String>,
}

/// The tags of a repository.
#[utoipa::path(get, path = "/api/v1/registry/tags", tag = "registry", params(Which), responses((status = 200, body = Vec<Tag>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn tags(State(service): App, caller: Caller, Query(which): Query<Which>) -> Result<Json<Vec<Tag>>> {
    caller.require(Role::Viewer)?;
    Ok(Json(service.oci.tags(&which.repository).await?))
}

/// Deletes a tag, a manifest with its tags, or, without a reference, a repository. Blobs go with the next collection of
/// garbage.
#[utoipa::path(delete, path = "/api/v1/registry", tag = "registry", params(Which), responses((status = 200, body = Deleted), (status = "4XX", body = ErrorBody)))]
pub(super) async fn delete(State(service): App, caller: Caller, Query(which): Query<Which>) -> Result<Json<Deleted>> {
    caller.require(Role::Operator)?;
    let invalid = |error: &dyn std::error::Error| ApiError::invalid(error.to_string());
    let repository = which.repository.parse().map_err(|error| invalid(&error))?;
    let reference = which.reference.as_deref().map(str::parse::<Reference>).transpose().map_err(|e| invalid(&e))?;
    let target = match &reference {
        None => which.repository.clone(),
        Some(Reference::Tag(tag)) => format!("{repository}:{tag}"),
        Some(digest @ Reference::Digest(_)) => format!("{repository}@{digest}"),
    };
    caller.audit(&service, "registry.delete", &target, "").await?;
    Ok(Json(service.oci.delete(&repository, reference.as_ref(), OffsetDateTime::now_utc()).await?))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase")]
pub(super) struct GarbageQuery {
    /// Only say what would be removed.
    #[serde(default)]
    dry_run: bool,
    /// Manifests that no tag, no index and no subject leads to, too.
    #[serde(default)]
    untagged: bool,
    /// What was pushed within so many minutes stays; 60 when it is not said, and a day for uploads that broke off. A push under way may have to be repeated
    /// when it is shorter than that push.
    grace_minutes: Option<u32>,
}

/// Removes blobs that no manifest refers to.
#[utoipa::path(post, path = "/api/v1/registry/garbage", tag = "registry", params(GarbageQuery), responses((status = 200, body = RegistryGarbage), (status = "4XX", body = ErrorBody)))]
pub(super) async fn collect_garbage(
    State(service): App,
    caller: Caller,
    Query(query): Query<GarbageQuery>,
) -> Result<Json<RegistryGarbage>> {
    caller.require(Role::Operator)?;
    let GarbageQuery { dry_run, untagged, grace_minutes } = query;
    let grace = grace_minutes.map_or(GRACE, |minutes| Duration::minutes(minutes.into()));
    if !dry_run {
        let detail = format!("untagged: {untagged}, grace: {} minutes", grace.whole_minutes());
        caller.audit(&service, "registry.gc", "-", &detail).await?;
    }
    // Who says a time means what broke off, too.
    let uploads = grace_minutes.map_or(UPLOADS, |_| grace);
    let order = GarbageOrder { dry_run, untagged, grace, uploads, now: OffsetDateTime::now_utc(), at: Instant::now() };
    Ok(Json(service.oci.collect_garbage(&service.images, order).await?))
}

impl From<OciError> for ApiError {
    fn from(error: OciError) -> Self {
        match error {
            OciError::Store(store) => store.into(),
            OciError::RepositoryUnknown(_) | OciError::ManifestUnknown(_) => Self::not_found(error.to_string()),
            OciError::PartOf(_) | OciError::Images(CatalogError::ImportUnderWay) => Self::conflict(error.to_string()),
            other => {
                tracing::error!(error = &other as &dyn std::error::Error, "the registry failed");
                Self::unavailable(chain(&other))
            }
        }
    }
}
