//! Users and the audit trail.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use nkd_api::ErrorBody;
use nkd_api::user::{AuditEntry, CreatedUser, NewUser, Role, User};
use serde::Deserialize;
use time::OffsetDateTime;

use super::ApiError;
use super::auth::Caller;
use super::extract::{Json, Path, Query};
use crate::fleet::secret;
use crate::machine::lifecycle::{NAME_RULE, valid_name};
use crate::service::Service;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

/// All users.
#[utoipa::path(get, path = "/api/v1/users", tag = "users", responses((status = 200, body = Vec<User>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(State(service): App, caller: Caller) -> Result<Json<Vec<User>>> {
    caller.require(Role::Admin)?;
    Ok(Json(service.registry.store().users().await?))
}

/// Makes a user. The token stands in the answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/users", tag = "users", request_body = NewUser, responses((status = 201, body = CreatedUser), (status = "4XX", body = ErrorBody)))]
pub(super) async fn create(
    State(service): App,
    caller: Caller,
    Json(new): Json<NewUser>,
) -> Result<(StatusCode, Json<CreatedUser>)> {
    caller.require(Role::Admin)?;
    if !valid_name(&new.name) {
        return Err(ApiError::invalid(format!("name: {NAME_RULE}")));
    }
    let token = secret::new_token().map_err(|e| ApiError::unavailable(e.to_string()))?;
    caller.audit(&service, "user.create", &new.name, &new.role.to_string()).await?;
    let user = User { name: new.name, role: new.role, created_at: OffsetDateTime::now_utc() };
    service.registry.store().create_user(&user, &secret::digest(&token)).await?;
    Ok((StatusCode::CREATED, Json(CreatedUser { user, token })))
}

/// Removes a user; its token is worthless at once.
#[utoipa::path(delete, path = "/api/v1/users/{user}", tag = "users", responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(State(service): App, caller: Caller, Path(name): Path<String>) -> Result<StatusCode> {
    caller.require(Role::Admin)?;
    if name == caller.0.name {
        return Err(ApiError::conflict("nobody removes the user that they are"));
    }
    caller.audit(&service, "user.remove", &name, "").await?;
    if service.registry.store().remove_user(&name).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found(format!("there is no user `{name}`")))
    }
}

/// Gives a user a new token; the old one is worthless at once. Everybody may do this for themselves.
#[utoipa::path(post, path = "/api/v1/users/{user}/token", tag = "users", responses((status = 200, body = CreatedUser), (status = "4XX", body = ErrorBody)))]
pub(super) async fn rotate(State(service): App, caller: Caller, Path(name): Path<String>) -> Result<Json<CreatedUser>> {
    if name != caller.0.name {
        caller.require(Role::Admin)?;
    }
    let token = secret::new_token().map_err(|e| ApiError::unavailable(e.to_string()))?;
    caller.audit(&service, "user.token", &name, "").await?;
    let user = service.registry.store().users().await?.into_iter().find(|u| u.name == name);
    let user = user.ok_or_else(|| ApiError::not_found(format!("there is no user `{name}`")))?;
    service.registry.store().replace_user_token(&name, &secret::digest(&token)).await?;
    Ok(Json(CreatedUser { user, token }))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// The newest so many.
    limit: Option<u32>,
}

/// The audit trail, oldest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "users", params(AuditQuery), responses((status = 200, body = Vec<AuditEntry>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn audit(
    State(service): App,
    caller: Caller,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Vec<AuditEntry>>> {
    caller.require(Role::Admin)?;
    Ok(Json(service.registry.store().audit_trail(query.limit.unwrap_or(200).min(1000)).await?))
}
