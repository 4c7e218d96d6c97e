//! Channels that follow an upstream repository.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use nkd_api::ErrorBody;
use nkd_api::channel::{Mirror, MirrorOrder};
use nkd_api::user::Role;
use time::OffsetDateTime;

use super::ApiError;
use super::auth::Caller;
use super::error::chain;
use super::extract::{Json, Path};
use crate::content::channel::mirror::{MirrorNow, address};
use crate::content::channel::{ChannelError, text};
use crate::service::Service;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

/// What all channels follow, and how that goes, by the channels' names.
#[utoipa::path(get, path = "/api/v1/mirrors", tag = "channels", responses((status = 200, body = [MirrorNow]), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(State(service): App, caller: Caller) -> Result<Json<Vec<MirrorNow>>> {
    caller.require(Role::Viewer)?;
    Ok(Json(service.channels.mirrors().await.map_err(told)?))
}

/// What a channel follows, and how that goes.
#[utoipa::path(get, path = "/api/v1/channels/{channel}/mirror", tag = "channels", responses((status = 200, body = MirrorNow), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(State(service): App, caller: Caller, Path(name): Path<String>) -> Result<Json<MirrorNow>> {
    caller.require(Role::Viewer)?;
    Ok(Json(service.channels.mirror(&name).await.map_err(told)?))
}

/// Makes a channel follow a ref of an upstream repository; each new commit there is its next release.
#[utoipa::path(put, path = "/api/v1/channels/{channel}/mirror", tag = "channels", request_body = MirrorOrder, responses((status = 200, body = Mirror), (status = "4XX", body = ErrorBody)))]
pub(super) async fn follow(
    State(service): App,
    caller: Caller,
    Path(name): Path<String>,
    Json(order): Json<MirrorOrder>,
) -> Result<Json<Mirror>> {
    caller.require(Role::Operator)?;
    // Before the audit trail has it: a password in the address would be there for ever.
    text::of_mirror(&order).map_err(told)?;
    address(&order.from).map_err(told)?;
    let detail = serde_json::to_string(&order).unwrap_or_default();
    caller.audit(&service, "channel.mirror", &name, &detail).await?;
    Ok(Json(service.channels.follow(&name, order, OffsetDateTime::now_utc()).await.map_err(told)?))
}

/// Ends it. The releases stay.
#[utoipa::path(delete, path = "/api/v1/channels/{channel}/mirror", tag = "channels", responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn unfollow(State(service): App, caller: Caller, Path(name): Path<String>) -> Result<StatusCode> {
    caller.require(Role::Operator)?;
    caller.audit(&service, "channel.mirror", &name, "off").await?;
    service.channels.unfollow(&name).await.map_err(told)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Looks at the upstream as soon as may be, and answers at once.
#[utoipa::path(post, path = "/api/v1/channels/{channel}/mirror/look", tag = "channels", responses((status = 200, body = Mirror), (status = "4XX", body = ErrorBody)))]
pub(super) async fn look(State(service): App, caller: Caller, Path(name): Path<String>) -> Result<Json<Mirror>> {
    caller.require(Role::Operator)?;
    caller.audit(&service, "channel.mirror", &name, "now").await?;
    Ok(Json(service.channels.look_now(&name, OffsetDateTime::now_utc()).await.map_err(told)?))
}

fn told(error: ChannelError) -> ApiError {
    match error {
        ChannelError::Store(error) => error.into(),
        ChannelError::NoMirror(_) => ApiError::not_found(error.to_string()),
        error => ApiError::invalid(chain(&error)),
    }
}
