//! Blobs: pulled whole or in ranges, pushed whole or in chunks.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nkd_api::Sha256Digest;
use time::OffsetDateTime;
use tower::ServiceExt as _;
use tower_http::services::ServeFile;
use uuid::Uuid;

use super::refusal::Refusal;
use super::{CONTENT_DIGEST, Result};
use crate::content::registry::spec::{Repository, chunk as chunk_range, digest, digest_text};
use crate::content::registry::{OciError, Upload};
use crate::http::ranges::keep_one_range;
use crate::service::Service;

/// What a digest names never changes.
const FOR_EVER: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// The name of an upload, for clients that look for it here.
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// A blob, or a range of it. `pushes`: the caller may be about to push a manifest that is made of it.
pub(super) async fn get(
    service: &Arc<Service>,
    name: &Repository,
    digest: &Sha256Digest,
    parts: Parts,
    pushes: Option<OffsetDateTime>,
) -> Result<Response> {
    let blob = match pushes {
        Some(now) => service.oci.blob_in_use(name, digest, now).await?,
        None => service.oci.blob(name, digest).await?,
    };
    let tag = text(format!("\"{}\"", digest_text(digest)));
    if parts.headers.get(header::IF_NONE_MATCH) == Some(&tag) {
        let same = [(header::ETAG, tag), (header::CACHE_CONTROL, FOR_EVER)];
        return Ok((StatusCode::NOT_MODIFIED, same).into_response());
    }
    let mut request = Request::from_parts(parts, Body::empty());
    keep_one_range(request.headers_mut());
    // Blobs never change: the digest says it better than a time does.
    request.headers_mut().remove(header::IF_MODIFIED_SINCE);
    let Ok(answer) = ServeFile::new(&blob.path).oneshot(request).await;
    let mut answer = answer.map(Body::new);
    match answer.status() {
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let message = format!("the blob has {} bytes: ask for a range within them", blob.size);
            let whole = HeaderValue::try_from(format!("bytes */{}", blob.size));
            let whole = whole.unwrap_or(HeaderValue::from_static("bytes */*"));
            let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", message);
            return Err(refusal.with(header::CONTENT_RANGE, whole));
        }
        // It was collected a moment ago.
        StatusCode::NOT_FOUND => return Err(OciError::BlobUnknown(*digest).into()),
        _ => {}
    }
    let headers = answer.headers_mut();
    headers.insert(CONTENT_DIGEST, text(digest_text(digest)));
    headers.insert(header::ETAG, tag);
    headers.insert(header::CACHE_CONTROL, FOR_EVER);
    headers.remove(header::LAST_MODIFIED);
    Ok(answer)
}

/// Begins an upload; does all of it when the request brings the bytes, or when another repository has them.
pub(super) async fn begin(
    service: &Arc<Service>,
    name: &Repository,
    parts: &Parts,
    body: Body,
    now: OffsetDateTime,
) -> Result<Response> {
    let query = query(parts);
    if let Some(wanted) = value(&query, "mount") {
        let wanted = digest(wanted)?;
        let from = value(&query, "from").map(str::parse::<Repository>).transpose()?;
        if service.oci.mount(name, from.as_ref(), &wanted, now).await? {
            return Ok(created(name, &wanted));
        }
    }
    let said = value(&query, "digest").map(digest).transpose()?;
    let upload = service.oci.begin(name).await?;
    match said {
        Some(said) => {
            let id = upload.id();
            let received = service.oci.receive(upload, body, None, length(parts)).await;
            if let Err(OciError::BrokeOff) = received {
                // Nobody knows its address.
                service.oci.cancel(name, id).await?;
            }
            whole(service, name, received?, said).await?;
            Ok(created(name, &said))
        }
        None => {
            let id = upload.id();
            let length = service.oci.pause(upload).await?;
            Ok(going_on(StatusCode::ACCEPTED, name, id, length))
        }
    }
}

/// Takes a chunk, or everything in one.
pub(super) async fn chunk(
    service: &Arc<Service>,
    name: &Repository,
    id: Uuid,
    parts: &Parts,
    body: Body,
) -> Result<Response> {
    let upload = received(service, name, id, parts, body).await?;
    let length = service.oci.pause(upload).await?;
    Ok(going_on(StatusCode::ACCEPTED, name, id, length))
}

/// Takes the last chunk, if there is one, and makes a blob of the upload.
pub(super) async fn finish(
    service: &Arc<Service>,
    name: &Repository,
    id: Uuid,
    parts: &Parts,
    body: Body,
) -> Result<Response> {
    let query = query(parts);
    let said = value(&query, "digest").ok_or_else(|| {
        Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "say the digest: PUT ...?digest=sha256:...")
    })?;
    let said = digest(said)?;
    let upload = received(service, name, id, parts, body).await?;
    whole(service, name, upload, said).await?;
    Ok(created(name, &said))
}

/// Makes a blob of an upload, which is used from now on, however long it has been on its way.
#[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
async fn whole(service: &Arc<Service>, name: &Repository, upload: Upload, said: Sha256Digest) -> Result<()> {
    Ok(service.oci.finish(name, upload, said, OffsetDateTime::now_utc()).await?)
}

/// Where an upload stands.
pub(super) async fn status(service: &Arc<Service>, name: &Repository, id: Uuid) -> Result<Response> {
    let length = service.oci.length(name, id).await?;
    Ok(going_on(StatusCode::NO_CONTENT, name, id, length))
}

async fn received(service: &Arc<Service>, name: &Repository, id: Uuid, parts: &Parts, body: Body) -> Result<Upload> {
    let range = parts.headers.get(header::CONTENT_RANGE).map(|text| text.to_str().ok().and_then(chunk_range));
    let range = range.map(|range| range.ok_or(OciError::Range)).transpose()?;
    let upload = service.oci.resume(name, id).await?;
    match service.oci.receive(upload, body, range, length(parts)).await {
        Err(error @ OciError::OutOfOrder { length }) => {
            let mut refusal = Refusal::from(error);
            for header in [header::LOCATION, header::RANGE] {
                let value = going_on(StatusCode::ACCEPTED, name, id, length).headers()[&header].clone();
                refusal = refusal.with(header, value);
            }
            Err(refusal)
        }
        other => Ok(other?),
    }
}

fn going_on(status: StatusCode, name: &Repository, id: Uuid, length: u64) -> Response {
    let headers = [
        (header::LOCATION, text(format!("/v2/{name}/blobs/uploads/{id}"))),
        (header::RANGE, text(format!("0-{}", length.saturating_sub(1)))),
        (UPLOAD_ID, text(id.to_string())),
    ];
    (status, headers).into_response()
}

fn created(name: &Repository, digest: &Sha256Digest) -> Response {
    let digest = digest_text(digest);
    let location = text(format!("/v2/{name}/blobs/{digest}"));
    (StatusCode::CREATED, [(header::LOCATION, location), (CONTENT_DIGEST, text(digest))]).into_response()
}

fn length(parts: &Parts) -> Option<u64> {
    parts.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Names and values of a query.
pub(super) fn query(parts: &Parts) -> Vec<(String, String)> {
    let query = parts.uri.query().unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// A value of a query.
pub(super) fn value<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// Digests, names and numbers are always fit for a header.
pub(super) fn text(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}
