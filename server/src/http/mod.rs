//! The HTTPS side of the service (port 8443): one list of routes.
//!
//! People and programs come with a bearer token, nodes with a client certificate, Ignition with a single-use token.

mod agents;
mod auth;
mod channels;
mod cluster_certs;
mod cluster_changes;
mod cluster_retry;
mod clusters;
mod error;
mod extract;
mod first_token;
mod gathered;
mod images;
mod locks;
mod machines;
mod mirrors;
mod page_cache;
mod ranges;
mod read_to_end;
mod refusals;
mod registry;
mod registry_admin;
mod snapshots;
mod system;
mod tls;
mod updates;
mod upgrades;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use auth::bootstrap_admin;
pub(crate) use channels::LEFT_OUT;
pub use error::ApiError;
pub(crate) use error::chain;
pub use first_token::FirstToken;
pub use tls::{BindError, Connection, TlsServer};

use crate::service::Service;

/// Largest body that the API reads.
const BODY_LIMIT: usize = 1 << 20;

#[derive(OpenApi)]
#[openapi(
    info(title = "nkd", description = "Provisioning of bare machines. Bearer tokens; errors are ErrorBody."),
    tags(
        (name = "machines", description = "Machines and the rules that let them in"),
        (name = "images", description = "Node images"),
        (name = "clusters", description = "Clusters, from their files to their certificates"),
        (name = "upgrades", description = "Clusters on their way to a release"),
        (name = "channels", description = "Releases that nodes are updated to"),
        (name = "locks", description = "Nodes that may restart now, by the FleetLock protocol"),
        (name = "registry", description = "Container images; tools push and pull below /v2/"),
        (name = "snapshots", description = "Snapshots of the etcd of clusters"),
        (name = "users", description = "Users, roles, audit trail"),
        (name = "system", description = "The service itself"),
    )
)]
struct Document;

/// Every route of the REST API, with its part of the OpenAPI document.
fn api() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(machines::list, machines::declare))
        .routes(routes!(machines::show, machines::forget))
        .routes(routes!(machines::events))
        .routes(routes!(machines::machine_events))
        .routes(routes!(machines::explain))
        .routes(routes!(machines::accept))
        .routes(routes!(machines::assign))
        .routes(routes!(machines::label))
        .routes(routes!(machines::reinstall))
        .routes(routes!(machines::release))
        .routes(routes!(machines::rules, machines::save_rule))
        .routes(routes!(machines::remove_rule))
        .routes(routes!(images::list, images::import))
        .routes(routes!(images::show, images::remove))
        .routes(routes!(images::collect_garbage))
        .routes(routes!(images::profiles))
        .routes(routes!(channels::list))
        .routes(routes!(channels::show, channels::delete))
        .routes(routes!(channels::unknown))
        .routes(routes!(channels::publish))
        .routes(routes!(channels::promote))
        .routes(routes!(channels::prune))
        .routes(routes!(mirrors::list))
        .routes(routes!(mirrors::show, mirrors::follow, mirrors::unfollow))
        .routes(routes!(mirrors::look))
        .routes(routes!(channels::mark))
        .routes(routes!(registry_admin::list, registry_admin::delete))
        .routes(routes!(registry_admin::tags))
        .routes(routes!(registry_admin::collect_garbage))
        .routes(routes!(updates::explain))
        .routes(routes!(locks::list))
        .routes(routes!(locks::release))
        .routes(routes!(upgrades::start, upgrades::list))
        .routes(routes!(upgrades::show, upgrades::change))
        .routes(routes!(upgrades::explain))
        .routes(routes!(snapshots::list, snapshots::take))
        .routes(routes!(snapshots::show))
        .routes(routes!(snapshots::data))
        .routes(routes!(clusters::list, cluster_changes::apply))
        .routes(routes!(clusters::show, cluster_changes::destroy))
        .routes(routes!(cluster_changes::diff))
        .routes(routes!(cluster_changes::scale))
        .routes(routes!(cluster_changes::remove))
        .routes(routes!(clusters::events))
        .routes(routes!(clusters::kubeconfig))
        .routes(routes!(cluster_certs::list))
        .routes(routes!(cluster_certs::renew))
        .routes(routes!(cluster_retry::retry))
        .routes(routes!(users::list, users::create))
        .routes(routes!(users::remove))
        .routes(routes!(users::rotate))
        .routes(routes!(users::audit))
        .routes(routes!(system::status))
}

/// The OpenAPI document of the REST API, as committed in `api/openapi.json`.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    api().into_openapi()
}

/// All routes.
pub fn router(service: Arc<Service>) -> Router {
    let (api, document) = api().split_for_parts();
    let document = Arc::new(document.to_json().unwrap_or_default());
    let written_down = axum::middleware::from_fn_with_state(Arc::clone(&service), refusals::written_down);
    api.merge(registry::routes())
        .layer(written_down)
        .route("/agent/v1/time", get(agents::time))
        .route("/agent/v1/enroll", post(agents::enroll))
        .route("/agent/v1/renew", post(agents::renew))
        .route("/agent/v1/task", get(agents::task))
        .route("/agent/v1/report", post(agents::report))
        .route("/agent/v1/kubeadm", get(agents::kubeadm))
        .route("/agent/v1/etcd-snapshot/{operation}", put(snapshots::receive).layer(DefaultBodyLimit::disable()))
        .route("/agent/v1/install-config", get(agents::install_config))
        .route("/agent/v1/release", get(agents::release))
        .route("/ignition/v1/config", get(agents::ignition_config))
        .route("/v1/graph", get(updates::graph))
        .route("/v1/pre-reboot", post(locks::pre_reboot).layer(DefaultBodyLimit::max(locks::LIMIT)))
        .route("/v1/steady-state", post(locks::steady_state).layer(DefaultBodyLimit::max(locks::LIMIT)))
        .route("/ostree/key.asc", get(channels::key))
        .route("/ostree/key.ed25519", get(channels::ed25519_key))
        .route("/ostree/{profile}/{*path}", get(channels::repository))
        .route(
            "/openapi.json",
            get(move || {
                let document = Arc::clone(&document);
                async move { ([(http::header::CONTENT_TYPE, "application/json")], document.to_string()) }
            }),
        )
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(error::panicked))
        .with_state(service)
}
