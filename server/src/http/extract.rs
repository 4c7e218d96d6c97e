//! What handlers take and give: axum's extractors, refusing in our words and as [`ApiError`].

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::ApiError;

/// The longest that a request may take to send its body.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Of a body that is too long, so many bytes are taken in before the answer.
const DRAIN_LIMIT: usize = 16 << 20;

/// A JSON body, in and out.
pub(super) struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.split(';').next().map(str::trim) != Some("application/json") {
            return Err(ApiError::invalid("the body must be JSON: send it with Content-Type: application/json"));
        }
        let read = tokio::time::timeout(BODY_TIME, whole(request.into_body())).await;
        let bytes = read.map_err(|_| ApiError::timed_out("the body of the request did not come in time"))??;
        Ok(Self(axum::Json::from_bytes(&bytes)?.0))
    }
}

/// The body, if it is not too long. Most of one that is too long is read all the same: a client that is still sending
/// would not see the answer.
async fn whole(mut body: axum::body::Body) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut seen) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::invalid("the body of the request broke off"))?;
        let Some(data) = frame.data_ref() else { continue };
        seen += data.len();
        if seen <= super::BODY_LIMIT {
            bytes.extend_from_slice(data);
        }
        if seen > DRAIN_LIMIT {
            break;
        }
    }
    if seen > super::BODY_LIMIT {
        let message = format!("the body is too long: at most {} bytes are read", super::BODY_LIMIT);
        return Err(ApiError::too_large(message));
    }
    Ok(bytes)
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// An answer that grows: each update as a line of JSON, until the sender is gone.
pub(super) fn lines_of<T: Serialize + Send + 'static>(updates: mpsc::Receiver<T>) -> Response {
    let body = futures_util::stream::unfold(updates, |mut updates| async {
        let mut line = serde_json::to_vec(&updates.recv().await?).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), updates))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response()
}

/// The query of a request.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(super) struct Query<T>(pub T);

/// The parts of a path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
pub(super) struct Path<T>(pub T);

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}
