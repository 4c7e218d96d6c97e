//! The service itself.

use std::sync::Arc;

use axum::extract::State;
use nkd_api::ErrorBody;
use serde::Serialize;

use super::ApiError;
use super::auth::Caller;
use super::extract::Json;
use crate::service::Service;

/// What the service is.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    /// Version of the program.
    version: &'static str,
    /// Who is asking.
    user: String,
    /// Their role.
    role: nkd_api::user::Role,
    /// Machines by phase.
    machines: std::collections::BTreeMap<String, usize>,
    /// Names of the images.
    images: Vec<String>,
    /// Other DHCP servers heard on our segments in the last quarter of an hour. In server mode there must be none.
    other_dhcp_servers: Vec<String>,
}

/// What the service is, and who is asking.
#[utoipa::path(get, path = "/api/v1/status", tag = "system", responses((status = 200, body = Status), (status = "4XX", body = ErrorBody)))]
pub(super) async fn status(State(service): State<Arc<Service>>, caller: Caller) -> Result<Json<Status>, ApiError> {
    let mut machines = std::collections::BTreeMap::new();
    for machine in service.registry.store().machines().await? {
        *machines.entry(machine.phase.name().to_owned()).or_insert(0) += 1;
    }
    let images = service.images.list().map_err(|e| ApiError::unavailable(e.to_string()))?;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        user: caller.0.name,
        role: caller.0.role,
        machines,
        images: images.iter().map(|i| i.name.clone()).collect(),
        other_dhcp_servers: service
            .dhcp
            .get()
            .map(|d| d.other_servers().iter().map(describe).collect())
            .unwrap_or_default(),
    }))
}

fn describe(other: &crate::netboot::dhcp::OtherServer) -> String {
    format!("{} on {}", other.ip, other.interface)
}
