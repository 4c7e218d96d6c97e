//! Lists: repositories, tags, referrers. Long ones come in pages, each with a link to the next.

use std::sync::Arc;

use axum::Json;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use nkd_api::Sha256Digest;
use serde_json::{Map, Value, json};

use super::Result;
use super::blobs::{text, value};
use super::refusal::Refusal;
use crate::content::registry::OciError;
use crate::content::registry::spec::{Repository, digest_text, summary};
use crate::service::Service;

/// So many names in a page, when nobody asks for fewer.
const PAGE: u32 = 1000;
/// So many referrers: their annotations come with them.
const REFERRERS: u32 = 100;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(super) async fn catalog(service: &Arc<Service>, uri: &Uri) -> Result<Response> {
    let page = Page::of(uri)?;
    let names = service.oci.store().registry_names(&page.last, page.limit + 1).await?;
    Ok(page.answer("/v2/_catalog", names, |names| json!({ "repositories": names })))
}

pub(super) async fn tags(service: &Arc<Service>, name: &Repository, uri: &Uri) -> Result<Response> {
    let page = Page::of(uri)?;
    let store = service.oci.store();
    if !store.is_registry_repository(name.as_str()).await? {
        return Err(OciError::RepositoryUnknown(name.to_string()).into());
    }
    let tags = store.registry_tag_names(name.as_str(), &page.last, page.limit + 1).await?;
    let path = format!("/v2/{name}/tags/list");
    Ok(page.answer(&path, tags, |tags| json!({ "name": name.as_str(), "tags": tags })))
}

/// Manifests that say something of this one, as an index.
pub(super) async fn referrers(
    service: &Arc<Service>,
    name: &Repository,
    subject: &Sha256Digest,
    uri: &Uri,
) -> Result<Response> {
    let query = query(uri);
    let kind = value(&query, "artifactType").filter(|kind| !kind.is_empty());
    let last = value(&query, "last").unwrap_or_default();
    let store = service.oci.store();
    let mut found = store.registry_referrers(name.as_str(), subject, kind, last, REFERRERS + 1).await?;
    let more = found.len() > REFERRERS as usize;
    found.truncate(REFERRERS as usize);
    let next = found.last().filter(|_| more).map(|manifest| manifest.digest.to_string());
    let manifests: Vec<Value> = found
        .into_iter()
        .map(|manifest| {
            let mut descriptor = Map::new();
            descriptor.insert("mediaType".into(), manifest.media_type.into());
            descriptor.insert("digest".into(), digest_text(&manifest.digest).into());
            descriptor.insert("size".into(), manifest.body.len().into());
            if let Some(kind) = manifest.artifact_type {
                descriptor.insert("artifactType".into(), kind.into());
            }
            let annotations = summary(&manifest.body).annotations;
            if !annotations.is_empty() {
                descriptor.insert("annotations".into(), json!(annotations));
            }
            Value::Object(descriptor)
        })
        .collect();
    let body = Json(json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}));
    let mut response = ([(header::CONTENT_TYPE, INDEX)], body).into_response();
    if kind.is_some() {
        response.headers_mut().insert("oci-filters-applied", text("artifactType".into()));
    }
    if let Some(next) = next {
        let mut more = url::form_urlencoded::Serializer::new(String::new());
        more.append_pair("last", &next);
        if let Some(kind) = kind {
            more.append_pair("artifactType", kind);
        }
        let path = format!("/v2/{name}/referrers/{}", digest_text(subject));
        response.headers_mut().insert(header::LINK, link(&path, &more.finish()));
    }
    Ok(response)
}

/// Which part of a list is asked for.
struct Page {
    last: String,
    limit: u32,
}

impl Page {
    fn of(uri: &Uri) -> Result<Self> {
        let query = query(uri);
        let limit = match value(&query, "n") {
            None => PAGE,
            Some(text) => text.parse::<u32>().map_err(|_| {
                let message = format!("n={text} is no number of names");
                Refusal::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", message)
            })?,
        };
        Ok(Self { last: value(&query, "last").unwrap_or_default().to_owned(), limit: limit.min(PAGE) })
    }

    /// `names` holds one more than was asked for when there is a next page.
    fn answer(self, path: &str, mut names: Vec<String>, body: impl FnOnce(&[String]) -> Value) -> Response {
        let more = names.len() > self.limit as usize;
        names.truncate(self.limit as usize);
        let mut response = Json(body(&names)).into_response();
        if let Some(last) = names.last().filter(|_| more) {
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("n", &self.limit.to_string())
                .append_pair("last", last)
                .finish();
            response.headers_mut().insert(header::LINK, link(path, &query));
        }
        response
    }
}

fn link(path: &str, query: &str) -> axum::http::HeaderValue {
    text(format!("<{path}?{query}>; rel=\"next\""))
}

fn query(uri: &Uri) -> Vec<(String, String)> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect()
}
