//! Who may restart: the FleetLock protocol for nodes, as zincati speaks it, and the list of leases for people.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use nkd_api::ErrorBody;
use nkd_api::lock::Lease;
use nkd_api::user::Role;
use serde::Deserialize;
use time::OffsetDateTime;

use super::auth::Caller;
use super::error::kind_and_value;
use super::extract::{Json, Path};
use super::{ApiError, Connection};
use crate::fleet::lock::{Asker, LONGEST, Refused};
use crate::service::Service;
use crate::store::StoreError;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

/// What a node sent, or why it could not be read.
type Sent = std::result::Result<Bytes, BytesRejection>;

/// Every request of the protocol has it.
const HEADER: &str = "fleet-lock-protocol";
/// Largest body.
pub(super) const LIMIT: usize = 16 << 10;

#[derive(Deserialize)]
struct Ask {
    client_params: Client,
}

#[derive(Deserialize)]
struct Client {
    id: String,
    group: String,
}

/// A node wants to restart. 200: it may. It asks again until it has restarted, and holds what it has.
/// A node of a cluster that is being upgraded may not, if it is known for one.
pub(super) async fn pre_reboot(
    State(service): App,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    body: Sent,
) -> Response {
    let Client { id, group } = match asked(&headers, body) {
        Ok(client) => client,
        Err(refused) => return *refused,
    };
    let asker = Asker { group: &group, id: &id, address: connection.peer.ip() };
    match service.reboots.lock(&asker, &service.channels, OffsetDateTime::now_utc()).await {
        Ok(Ok(lease)) => {
            tracing::info!(group, node = id, fencing = lease.fencing, "may restart");
            axum::Json(lease).into_response()
        }
        Ok(Err(refused)) => {
            let (status, kind) = match refused {
                Refused::Taken { .. } | Refused::Rollout { .. } | Refused::Plane { .. } => {
                    (StatusCode::CONFLICT, "failed_lock")
                }
                Refused::Share { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_leases"),
                Refused::Full => (StatusCode::SERVICE_UNAVAILABLE, "too_many_leases"),
            };
            kind_and_value(status, kind, refused.to_string())
        }
        Err(error) => broken(error),
    }
}

/// A node runs as it should. 200: it holds nothing now, whether it did or not.
pub(super) async fn steady_state(State(service): App, headers: HeaderMap, body: Sent) -> Response {
    let Client { id, group } = match asked(&headers, body) {
        Ok(client) => client,
        Err(refused) => return *refused,
    };
    match service.reboots.unlock(&group, &id).await {
        Ok(held) => {
            if held {
                tracing::info!(group, node = id, "has restarted");
            }
            StatusCode::OK.into_response()
        }
        Err(error) => broken(error),
    }
}

/// Clients send no type of content: whatever comes is read as JSON.
fn asked(headers: &HeaderMap, body: Sent) -> std::result::Result<Client, Box<Response>> {
    let wrong = |kind, value: String| Err(Box::new(kind_and_value(StatusCode::BAD_REQUEST, kind, value)));
    let body =
        body.map_err(|error| Box::new(kind_and_value(error.status(), "invalid_client_params", error.body_text())))?;
    if headers.get(HEADER).is_none_or(|value| value.as_bytes() != b"true") {
        return wrong("missing_fleet_lock_header", format!("the header `{HEADER}: true` is needed"));
    }
    let client = match serde_json::from_slice::<Ask>(&body) {
        Ok(ask) => ask.client_params,
        Err(error) => return wrong("invalid_client_params", error.to_string()),
    };
    let plain = |text: &str, more: &[char]| {
        let fits = |c: char| c.is_ascii_alphanumeric() || more.contains(&c);
        (1..=LONGEST).contains(&text.len()) && text.chars().all(fits)
    };
    if !plain(&client.group, &['.', '-']) {
        return wrong("invalid_client_params", format!("group: 1 to {LONGEST} of a-z, A-Z, 0-9, `.` and `-`"));
    }
    if !plain(&client.id, &['.', '-', '_', ':']) {
        return wrong("invalid_client_params", format!("id: 1 to {LONGEST} of a-z, A-Z, 0-9, `.`, `-`, `_` and `:`"));
    }
    Ok(client)
}

/// The answer of the rest of the service, in the protocol's form.
fn broken(error: StoreError) -> Response {
    let (status, value) = ApiError::from(error).into_parts();
    kind_and_value(status, "internal", value)
}

/// The leases that last.
#[utoipa::path(get, path = "/api/v1/locks", tag = "locks", responses((status = 200, body = Vec<Lease>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(State(service): App, caller: Caller) -> Result<Json<Vec<Lease>>> {
    caller.require(Role::Viewer)?;
    Ok(Json(service.reboots.list(OffsetDateTime::now_utc()).await?))
}

/// Takes a lease away: its node never comes back, say.
#[utoipa::path(delete, path = "/api/v1/locks/{group}/{id}", tag = "locks", responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn release(
    State(service): App,
    caller: Caller,
    Path((group, id)): Path<(String, String)>,
) -> Result<StatusCode> {
    caller.require(Role::Operator)?;
    caller.audit(&service, "lock.release", &format!("{group} {id}"), "").await?;
    match service.reboots.unlock(&group, &id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::not_found(format!("`{id}` holds nothing in the group `{group}`"))
            .hint("`nkd lock list` shows who holds what")),
    }
}
