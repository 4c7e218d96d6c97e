//! Who is calling: users by bearer token, nodes by client certificate.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use base64::Engine as _;
use nkd_api::user::{AuditEntry, Role, User};
use time::OffsetDateTime;

use super::{ApiError, Connection};
use crate::fleet::pki::NodeIdentity;
use crate::fleet::secret;
use crate::service::Service;
use crate::store::{Store, StoreError};

/// An authenticated user.
pub(super) struct Caller(pub User);

impl Caller {
    /// Refuses callers below a role.
    pub fn require(&self, role: Role) -> Result<(), ApiError> {
        if self.0.role >= role {
            Ok(())
        } else {
            Err(ApiError::forbidden(format!("this takes the role {role}; {} is {}", self.0.name, self.0.role)))
        }
    }

    /// Puts what this caller is about to do into the audit trail, before it is done.
    pub async fn audit(&self, service: &Service, action: &str, target: &str, detail: &str) -> Result<(), ApiError> {
        let entry = AuditEntry {
            at: OffsetDateTime::now_utc(),
            who: self.0.name.clone(),
            action: action.into(),
            target: target.into(),
            detail: detail.into(),
        };
        Ok(service.registry.store().audit(&entry).await?)
    }

    /// Puts into the audit trail that what was begun did not succeed.
    pub async fn audit_failure(&self, service: &Service, action: &str, target: &str, why: &str) {
        let detail = format!("{action} failed: {why}");
        if let Err(error) = self.audit(service, "refused", target, &detail).await {
            tracing::error!(?error, "a failure is not in the audit trail");
        }
    }
}

impl FromRequestParts<Arc<Service>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, ApiError> {
        let token = bearer(parts).ok_or_else(ApiError::unauthenticated)?;
        user_of(service, token).await?.map(Self).ok_or_else(ApiError::unauthenticated)
    }
}

/// A node with a client certificate that TLS has verified.
pub(super) struct Node(pub NodeIdentity);

impl FromRequestParts<Arc<Service>> for Node {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Service>) -> Result<Self, ApiError> {
        let node = parts.extensions.get::<Connection>().and_then(|c| c.node);
        node.map(Self).ok_or_else(|| ApiError::forbidden("this takes the client certificate of a node"))
    }
}

/// The bearer token of a request.
pub(super) fn bearer(parts: &Parts) -> Option<&str> {
    parts.headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

/// The user with this token.
pub(super) async fn user_of(service: &Service, token: &str) -> Result<Option<User>, StoreError> {
    let hash = secret::digest(token);
    let user = service.registry.store().user_by_token(&hash).await?;
    if user.is_some() {
        service.first_token.used(&hash).await;
    }
    Ok(user)
}

/// The token of a request, as bearer or as the password of whatever name: container tools know no other way. An empty
/// password is what podman sends for a user who has not logged in.
pub(super) fn token(parts: &Parts) -> Option<String> {
    if let Some(token) = bearer(parts) {
        return Some(token.to_owned());
    }
    let basic = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?.trim();
    let decoded = base64::engine::general_purpose::STANDARD.decode(basic).ok();
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    // What does not read is a wrong token, and not none.
    let password = text.split_once(':').map_or("?", |(_, password)| password);
    (!password.is_empty()).then(|| password.to_owned())
}

/// Makes the first user, `admin`, when there is none; gives its token, which is known nowhere else.
pub async fn bootstrap_admin(store: &Store, token: &str) -> Result<bool, StoreError> {
    if !store.users().await?.is_empty() {
        return Ok(false);
    }
    let user = User { name: "admin".into(), role: Role::Admin, created_at: OffsetDateTime::now_utc() };
    store.create_user(&user, &secret::digest(token)).await?;
    Ok(true)
}
