//! What a user asked for and did not get stands in the audit trail too, after the line of what was begun.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use nkd_api::user::AuditEntry;
use time::OffsetDateTime;

use super::auth::token;
use crate::fleet::secret;
use crate::service::Service;
use crate::store::StoreError;

/// Why an answer is not a success; beside the answer, for the audit trail.
#[derive(Clone)]
pub(super) struct Because(pub String);

/// Writes down refused and failed requests of users that would have changed something or given something out.
pub(super) async fn written_down(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let token = token(&parts).map(|token| secret::digest(&token));
    let target = format!("{} {}", parts.method, parts.uri.path());
    let response = next.run(Request::from_parts(parts, body)).await;
    let status = response.status();
    if let (true, Some(token)) = (status.is_client_error() || status.is_server_error(), token) {
        let because = response.extensions().get().map(|Because(text)| text.clone()).unwrap_or_default();
        let detail = format!("{}: {because}", status.as_u16());
        if let Err(error) = write(&service, &token, target, detail).await {
            tracing::error!(error = &error as &dyn std::error::Error, "a refusal is not in the audit trail");
        }
    }
    response
}

/// Strangers are left out: they could fill the trail.
async fn write(service: &Service, token: &[u8; 32], target: String, detail: String) -> Result<(), StoreError> {
    let store = service.registry.store();
    let Some(user) = store.user_by_token(token).await? else { return Ok(()) };
    let at = OffsetDateTime::now_utc();
    store.audit(&AuditEntry { at, who: user.name, action: "refused".into(), target, detail }).await
}
