//! How the registry says no: in the specification's own form, with its codes.

use axum::Json;
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::content::blob::BlobError;
use crate::content::registry::OciError;
use crate::content::registry::spec::NameError;
use crate::http::ApiError;
use crate::http::error::chain;
use crate::http::refusals::Because;
use crate::store::StoreError;

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    /// 401, with what clients need to send a password.
    pub fn unauthenticated() -> Self {
        let message = "log in with any name and an nkd token as the password: podman login, skopeo login";
        let challenge = HeaderValue::from_static("Basic realm=\"nkd\"");
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message).with(header::WWW_AUTHENTICATE, challenge)
    }

    /// 403: known, but not allowed.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "DENIED", message)
    }

    /// 405.
    pub fn no_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this address does not take this method")
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn broken(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a request to the registry failed");
        let message = "the registry cannot do this now; the service's log says why";
        let again = HeaderValue::from_static("5");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message).with(header::RETRY_AFTER, again)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let because = Because(self.message.clone());
        let body = json!({"errors": [{"code": self.code, "message": self.message}]});
        let mut response = (self.status, Json(body)).into_response();
        response.extensions_mut().insert(because);
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<OciError> for Refusal {
    fn from(error: OciError) -> Self {
        let (status, code) = match &error {
            OciError::BlobUnknown(_) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            OciError::ManifestUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            OciError::RepositoryUnknown(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            OciError::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            OciError::Manifest(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            OciError::Lacks(_) => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            OciError::Differs { .. } | OciError::Length { .. } => (StatusCode::BAD_REQUEST, "SIZE_INVALID"),
            OciError::DigestDiffers { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            OciError::PartOf(_) => (StatusCode::CONFLICT, "DENIED"),
            OciError::OutOfOrder { .. } | OciError::Range => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            OciError::Busy => (StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID"),
            OciError::BrokeOff => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            OciError::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            OciError::Blob(BlobError::NoSpace { .. }) | OciError::Store(StoreError::Full(_)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the registry has no room");
                (StatusCode::INSUFFICIENT_STORAGE, "DENIED")
            }
            OciError::Blob(_) | OciError::Store(_) | OciError::Images(_) | OciError::Stopped => {
                return Self::broken(&error);
            }
        };
        Self::new(status, code, chain(&error))
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        OciError::from(error).into()
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        let code = match error {
            NameError::Repository(_) => "NAME_INVALID",
            NameError::Digest(_) => "DIGEST_INVALID",
            NameError::Tag(_) => "MANIFEST_INVALID",
        };
        Self::new(StatusCode::BAD_REQUEST, code, error.to_string())
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let (status, message) = error.into_parts();
        let code = if status == StatusCode::FORBIDDEN { "DENIED" } else { "UNAVAILABLE" };
        Self::new(status, code, message)
    }
}
