//! Images and profiles.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nkd_api::ErrorBody;
use nkd_api::image::{CollectedGarbage, Image, ImportOrder, ImportUpdate};
use nkd_api::profile::Profile;
use nkd_api::user::Role;
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::ApiError;
use super::auth::Caller;
use super::error::chain;
use super::extract::{Json, Path, Query, lines_of};
use crate::content::image::catalog::CatalogError;
use crate::content::image::progress::Progress;
use crate::content::image::source::Source;
use crate::content::image::{GarbageRequest, ImportRequest, profile};
use crate::service::Service;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

/// All images.
#[utoipa::path(get, path = "/api/v1/images", tag = "images", responses((status = 200, body = Vec<Image>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(State(service): App, _: Caller) -> Result<Json<Vec<Image>>> {
    Ok(Json(service.images.list().map_err(refused)?.iter().map(|i| (**i).clone()).collect()))
}

/// One image.
#[utoipa::path(get, path = "/api/v1/images/{image}", tag = "images", responses((status = 200, body = Image), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(State(service): App, _: Caller, Path(name): Path<String>) -> Result<Json<Image>> {
    let image = service.images.image(&name).map_err(refused)?;
    image.map(|i| Json((*i).clone())).ok_or_else(|| ApiError::not_found(format!("there is no image `{name}`")))
}

/// Imports an image. The answer is a stream of JSON lines (ImportUpdate); the last one is `done` or `failed`. The import
/// goes on when the caller goes away.
#[utoipa::path(post, path = "/api/v1/images", tag = "images", request_body = ImportOrder, responses((status = 200, body = ImportUpdate, content_type = "application/x-ndjson"), (status = "4XX", body = ErrorBody)))]
pub(super) async fn import(State(service): App, caller: Caller, Json(order): Json<ImportOrder>) -> Result<Response> {
    caller.require(Role::Operator)?;
    let is_dir = std::path::Path::new(&order.source).is_dir();
    let source = Source::parse(&order.source, is_dir).map_err(|e| ApiError::invalid(chain(&e)))?;
    let named = order.name.clone().unwrap_or_else(|| "-".to_owned());
    caller.audit(&service, "image.import", &named, &source.to_string()).await?;
    let request = ImportRequest {
        name: order.name,
        profile: order.profile,
        version: order.version,
        architecture: order.architecture,
        key: order.key.map(PathBuf::from),
        authorities: order.source_ca.map(PathBuf::from),
        replace: order.replace,
        kubernetes: order.kubernetes,
        ..ImportRequest::new(source)
    };
    let (lines, stream) = mpsc::channel(64);
    tokio::spawn(async move {
        let teller = Arc::new(Teller { lines: lines.clone(), done: AtomicU64::new(0), told: AtomicU64::new(0) });
        let last = match service.images.import(request, teller, OffsetDateTime::now_utc()).await {
            Ok(image) => ImportUpdate::Done { image: (*image).clone() },
            Err(error) => {
                let message = chain(&error);
                caller.audit_failure(&service, "image.import", &named, &message).await;
                ImportUpdate::Failed { message }
            }
        };
        // The caller may have gone away; the image is there all the same.
        let _ = lines.send(last).await;
    });
    Ok(lines_of(stream))
}

/// Bytes between two lines of progress.
const PROGRESS_STEP: u64 = 4 << 20;

struct Teller {
    lines: mpsc::Sender<ImportUpdate>,
    done: AtomicU64,
    told: AtomicU64,
}

impl Teller {
    /// Progress is worth less than the import: a full channel loses it.
    fn tell(&self, update: ImportUpdate) {
        let _ = self.lines.try_send(update);
    }
}

impl Progress for Teller {
    fn stage(&self, name: &str, total: Option<u64>) {
        self.done.store(0, Ordering::Relaxed);
        self.told.store(0, Ordering::Relaxed);
        self.tell(ImportUpdate::Stage { name: name.to_owned(), total });
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if done - self.told.load(Ordering::Relaxed).min(done) >= PROGRESS_STEP {
            self.told.store(done, Ordering::Relaxed);
            self.tell(ImportUpdate::Progress { bytes: done });
        }
    }

    fn warn(&self, message: &str) {
        tracing::warn!(message, "image import");
        self.tell(ImportUpdate::Warning { message: message.to_owned() });
    }
}

/// Removes an image that no machine is assigned to. Its files go with the next collection of garbage.
#[utoipa::path(delete, path = "/api/v1/images/{image}", tag = "images", responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(State(service): App, caller: Caller, Path(name): Path<String>) -> Result<StatusCode> {
    caller.require(Role::Operator)?;
    let mut in_use: BTreeSet<String> =
        service.registry.store().machines().await?.into_iter().filter_map(|m| m.assignment).map(|a| a.image).collect();
    in_use.extend(service.discovery_image.clone());
    for rule in service.registry.store().accept_rules().await? {
        in_use.extend(rule.assignment.map(|a| a.image));
    }
    caller.audit(&service, "image.remove", &name, "").await?;
    service.images.remove(&name, &in_use).map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase")]
pub(super) struct GarbageQuery {
    /// Only say what would be removed.
    #[serde(default)]
    dry_run: bool,
    /// Parts of broken downloads too, whatever their age; the next try begins anew.
    #[serde(default)]
    partial: bool,
}

/// Removes files that no image uses.
#[utoipa::path(post, path = "/api/v1/garbage", tag = "images", params(GarbageQuery), responses((status = 200, body = CollectedGarbage), (status = "4XX", body = ErrorBody)))]
pub(super) async fn collect_garbage(
    State(service): App,
    caller: Caller,
    Query(query): Query<GarbageQuery>,
) -> Result<Json<CollectedGarbage>> {
    caller.require(Role::Operator)?;
    let request = GarbageRequest::new(query.dry_run, query.partial, OffsetDateTime::now_utc());
    let images = Arc::clone(&service.images);
    // The registry keeps its blobs in the same store; none comes while garbage is being collected.
    let quiet = service.oci.quiet().await;
    let held = service.oci.store().registry_digests().await?;
    let collected = tokio::task::spawn_blocking(move || {
        let _quiet = quiet;
        images.collect_garbage(request, &held)
    })
    .await;
    let garbage = collected.map_err(|e| ApiError::unavailable(e.to_string()))?.map_err(refused)?;
    Ok(Json(CollectedGarbage {
        dry_run: query.dry_run,
        blobs: garbage.blobs,
        files: garbage.files.iter().map(|p| p.display().to_string()).collect(),
        bytes: garbage.bytes,
        kept: garbage.kept,
    }))
}

/// The profiles that the service knows.
#[utoipa::path(get, path = "/api/v1/profiles", tag = "images", responses((status = 200, body = Vec<Profile>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn profiles(_: Caller) -> Json<Vec<Profile>> {
    Json(profile::builtin())
}

fn refused(error: CatalogError) -> ApiError {
    match error {
        CatalogError::NotFound { .. } => ApiError::not_found(error.to_string()),
        CatalogError::InUse { .. } | CatalogError::ImportUnderWay => ApiError::conflict(error.to_string()),
        other => {
            tracing::error!(error = &other as &dyn std::error::Error, "the image store failed");
            ApiError::unavailable(chain(&other))
        }
    }
}
