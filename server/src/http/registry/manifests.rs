//! Manifests and tags.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use nkd_api::Sha256Digest;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::blobs::text;
use super::refusal::Refusal;
use super::{CONTENT_DIGEST, Result};
use crate::content::registry::spec::{Reference, Repository, digest_text};
use crate::http::auth::Caller;
use crate::service::Service;

/// The largest manifest, as the specification has it.
const LARGEST: usize = 4 << 20;
/// The longest that one may take to come.
const LIMIT: Duration = Duration::from_secs(60);
/// What a client sees that its subject was understood by.
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

pub(super) async fn get(
    service: &Arc<Service>,
    name: &Repository,
    reference: &Reference,
    parts: &Parts,
) -> Result<Response> {
    let manifest = service.oci.manifest(name, reference).await?;
    let digest = digest_text(&manifest.digest);
    let tag = text(format!("\"{digest}\""));
    let media_type = HeaderValue::try_from(manifest.media_type).unwrap_or(HeaderValue::from_static(""));
    let headers = [(CONTENT_DIGEST, text(digest)), (header::ETAG, tag.clone()), (header::CONTENT_TYPE, media_type)];
    if parts.headers.get(header::IF_NONE_MATCH) == Some(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let length = (header::CONTENT_LENGTH, HeaderValue::from(manifest.body.len()));
    let body = if parts.method == Method::HEAD { Body::empty() } else { Body::from(manifest.body) };
    Ok((headers, [length], body).into_response())
}

pub(super) async fn put(
    service: &Arc<Service>,
    caller: &Caller,
    name: &Repository,
    reference: &Reference,
    parts: &Parts,
    body: Body,
    now: OffsetDateTime,
) -> Result<Response> {
    let body = whole(body).await?;
    let target = full_name(name, reference);
    caller.audit(service, "registry.push", &target, &digest_text(&Sha256Digest(Sha256::digest(&body).into()))).await?;
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let (digest, subject) = service.oci.keep(name, reference, kind, body, now).await?;
    let digest = digest_text(&digest);
    tracing::info!(repository = %name, %reference, digest, by = caller.0.name, "pushed");
    let location = text(format!("/v2/{name}/manifests/{digest}"));
    let headers = [(header::LOCATION, location), (CONTENT_DIGEST, text(digest))];
    let mut response = (StatusCode::CREATED, headers).into_response();
    if let Some(subject) = subject {
        response.headers_mut().insert(SUBJECT, text(digest_text(&subject)));
    }
    Ok(response)
}

pub(super) async fn delete(
    service: &Arc<Service>,
    caller: &Caller,
    name: &Repository,
    reference: &Reference,
    now: OffsetDateTime,
) -> Result<Response> {
    caller.audit(service, "registry.delete", &full_name(name, reference), "").await?;
    service.oci.delete(name, Some(reference), now).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

/// As people write it.
fn full_name(name: &Repository, reference: &Reference) -> String {
    let sign = if matches!(reference, Reference::Tag(_)) { ':' } else { '@' };
    format!("{name}{sign}{reference}")
}

async fn whole(body: Body) -> Result<Vec<u8>> {
    let invalid = |status, message: &str| Refusal::new(status, "MANIFEST_INVALID", message);
    match tokio::time::timeout(LIMIT, Limited::new(body, LARGEST).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(invalid(StatusCode::PAYLOAD_TOO_LARGE, "the manifest is too large: 4 MiB at most"))
        }
        Ok(Err(_)) => Err(invalid(StatusCode::BAD_REQUEST, "the manifest broke off: send it again")),
        Err(_) => Err(invalid(StatusCode::REQUEST_TIMEOUT, "the manifest did not come in time: send it again")),
    }
}
