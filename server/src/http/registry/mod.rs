//! The registry of container images: the OCI distribution protocol below `/v2/`.
//!
//! Names of repositories have slashes, so one route takes every address and `spec::Target` reads it.

mod access;
mod blobs;
mod lists;
mod manifests;
mod refusal;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use time::OffsetDateTime;

use self::access::Visitor;
use self::refusal::Refusal;
use crate::content::registry::spec::{NameError, Target, TargetError};
use crate::service::Service;

type Result<T> = std::result::Result<T, Refusal>;

/// Digest of what an answer holds.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// What older clients know a registry by.
const API_VERSION: (&str, &str) = ("docker-distribution-api-version", "registry/2.0");

/// Every address of the registry.
pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new().route("/v2", any(base)).route("/v2/", any(base)).route("/v2/{*path}", any(everything))
}

/// Where clients ask whether this is a registry, and how to log in. Docker and podman send their password only to a
/// registry that says 401 here, so strangers hear it even when they may pull.
async fn base(State(service): State<Arc<Service>>, request: Request) -> Response {
    let (mut parts, _) = request.into_parts();
    let answer = match Visitor::of(&service, &mut parts).await {
        Ok(Visitor::Stranger) => Err(Refusal::unauthenticated()),
        Ok(_) if matches!(parts.method, Method::GET | Method::HEAD) => Ok(axum::Json(serde_json::json!({}))),
        Ok(_) => Err(Refusal::no_method()),
        Err(refusal) => Err(refusal),
    };
    finished(answer.into_response())
}

async fn everything(
    State(service): State<Arc<Service>>,
    path: std::result::Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    // What is no text is no address either.
    let path = path.map(|Path(path)| path).unwrap_or_default();
    finished(answer(&service, &path, request).await.unwrap_or_else(IntoResponse::into_response))
}

fn finished(mut response: Response) -> Response {
    response.headers_mut().insert(API_VERSION.0, HeaderValue::from_static(API_VERSION.1));
    response
}

#[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
async fn answer(service: &Arc<Service>, path: &str, request: Request) -> Result<Response> {
    let (mut parts, body) = request.into_parts();
    let visitor = Visitor::of(service, &mut parts).await?;
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    let target = Target::parse(path).map_err(|error| wrong_target(error, reads || parts.method == Method::DELETE));
    // Strangers do not hear what is wrong with their names before they have said who they are.
    let is_upload = matches!(target, Ok(Target::Uploads(_) | Target::Upload(..)));
    let pusher = match reads && !is_upload {
        true => {
            visitor.may_pull(service).await?;
            None
        }
        false => Some(visitor.pusher()?),
    };
    let now = OffsetDateTime::now_utc();
    match (&parts.method, target?, &pusher) {
        (&Method::GET, Target::Catalog, _) => lists::catalog(service, &parts.uri).await,
        (&Method::GET, Target::Tags(name), _) => lists::tags(service, &name, &parts.uri).await,
        (&Method::GET, Target::Referrers(name, digest), _) => {
            lists::referrers(service, &name, &digest, &parts.uri).await
        }
        (&Method::GET | &Method::HEAD, Target::Manifest(name, reference), _) => {
            manifests::get(service, &name, &reference, &parts).await
        }
        (&Method::PUT, Target::Manifest(name, reference), Some(caller)) => {
            manifests::put(service, caller, &name, &reference, &parts, body, now).await
        }
        (&Method::DELETE, Target::Manifest(name, reference), Some(caller)) => {
            manifests::delete(service, caller, &name, &reference, now).await
        }
        (&Method::GET | &Method::HEAD, Target::Blob(name, digest), _) => {
            let pushes = visitor.pusher().is_ok();
            blobs::get(service, &name, &digest, parts, pushes.then_some(now)).await
        }
        (&Method::POST, Target::Uploads(name), Some(_)) => blobs::begin(service, &name, &parts, body, now).await,
        (&Method::PATCH, Target::Upload(name, id), Some(_)) => blobs::chunk(service, &name, id, &parts, body).await,
        (&Method::PUT, Target::Upload(name, id), Some(_)) => blobs::finish(service, &name, id, &parts, body).await,
        (&Method::GET, Target::Upload(name, id), Some(_)) => blobs::status(service, &name, id).await,
        (&Method::DELETE, Target::Upload(name, id), Some(_)) => {
            service.oci.cancel(&name, id).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(Refusal::no_method()),
    }
}

fn wrong_target(error: TargetError, asks: bool) -> Refusal {
    let message = error.to_string();
    let (status, code) = match &error {
        TargetError::Nothing => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        TargetError::Upload => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
        TargetError::Name(NameError::Repository(_)) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
        TargetError::Name(NameError::Digest(_)) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        // Nothing can have such a tag, so nothing is there.
        TargetError::Name(NameError::Tag(_)) if asks => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        TargetError::Name(NameError::Tag(_)) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
    };
    Refusal::new(status, code, message)
}
