//! The agent protocol (see `nkd_api::agent`) and the configuration that Ignition fetches.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use nkd_api::agent::{
    EnrollRequest, EnrollResponse, KubeadmOrder, Purpose, ReleaseSource, RenewRequest, Report, ReportAnswer,
    ReportEvent, ServerTime, Task, TaskAnswer,
};
use nkd_api::image::Image;
use nkd_api::machine::Machine;
use nkd_api::profile::Profile;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::auth::{Node, bearer};
use super::extract::{Json, Query};
use super::{ApiError, Connection};
use crate::cluster::{certificates, order};
use crate::content::image::profile;
use crate::fleet::config;
use crate::fleet::pki::NodeIdentity;
use crate::fleet::task::Standing;
use crate::fleet::{enroll, secret, task};
use crate::machine::lifecycle::{Input, Refused};
use crate::machine::{RegistryError, Selector};
use crate::service::Service;
use crate::store::{RowEffects, Scope, Supersede, TokenUse};
use crate::trace::Trace;

/// Media type of a configuration.
const IGNITION: &str = "application/vnd.coreos.ignition+json";
/// The longest that a request for a task is held.
const MAX_WAIT: u64 = 60;

type Result<T> = std::result::Result<T, ApiError>;

pub(super) async fn time() -> Json<ServerTime> {
    Json(ServerTime { server_time: OffsetDateTime::now_utc() })
}

pub(super) async fn enroll(
    State(service): State<Arc<Service>>,
    Json(request): Json<EnrollRequest>,
) -> Result<Json<EnrollResponse>> {
    Ok(Json(enroll::enroll(&service.registry, &service.pki, request).await?))
}

pub(super) async fn renew(
    State(service): State<Arc<Service>>,
    Node(node): Node,
    Json(request): Json<RenewRequest>,
) -> Result<Json<EnrollResponse>> {
    Ok(Json(enroll::renew(&service.registry, &service.pki, node, &request.csr).await?))
}

#[derive(Deserialize)]
pub(super) struct ReleaseQuery {
    commit: String,
}

/// Where a node finds a release: which repository holds it, and the key that it is signed with.
pub(super) async fn release(
    State(service): State<Arc<Service>>,
    Node(node): Node,
    Query(query): Query<ReleaseQuery>,
) -> Result<Json<ReleaseSource>> {
    if node.purpose != Purpose::Node {
        return Err(ApiError::forbidden("releases are for installed systems"));
    }
    admitted(&service, node).await?;
    match service.channels.source(&query.commit).await {
        Ok(Some(source)) => Ok(Json(source)),
        Ok(None) => Err(ApiError::not_found(format!("no release of any channel is the commit {}", query.commit))
            .hint("publish it: `nkd channel publish`")),
        Err(error) => Err(ApiError::unavailable(super::chain(&error))),
    }
}

#[derive(Deserialize)]
pub(super) struct TaskQuery {
    seen: Option<String>,
    #[serde(default)]
    wait: u64,
}

pub(super) async fn task(
    State(service): State<Arc<Service>>,
    Extension(connection): Extension<Connection>,
    Node(node): Node,
    Query(query): Query<TaskQuery>,
) -> Result<Json<TaskAnswer>> {
    let deadline = tokio::time::sleep(Duration::from_secs(query.wait.min(MAX_WAIT)));
    tokio::pin!(deadline);
    let mut events = service.registry.subscribe();
    let mut clusters = service.orders.changes();
    // Only what comes now is a sign of life: a request that is held may be that of a machine whose power was cut.
    let mut machine = enroll::admit(&service.registry, node).await?;
    loop {
        let answer = current_task(&service, &machine, node, &connection)?;
        if query.seen.as_ref() != Some(&answer.revision) {
            return Ok(Json(answer));
        }
        // Any event of this machine, or missed ones, are a reason to look again; and so are API servers that change.
        loop {
            tokio::select! {
                () = &mut deadline => return Ok(Json(answer)),
                () = service.stopping.cancelled() => return Ok(Json(answer)),
                Ok(()) = clusters.changed() => break,
                event = events.recv() => match event {
                    Ok(event) if event.machine != node.machine => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(Json(answer)),
                    _ => break,
                }
            }
        }
        machine = service.registry.find(&Selector::Id(node.machine)).await?;
    }
}

fn current_task(
    service: &Service,
    machine: &Machine,
    node: NodeIdentity,
    connection: &Connection,
) -> Result<TaskAnswer> {
    let image = assigned_image(service, machine)?;
    let pair = image.as_ref().map(|(image, profile)| (&**image, profile));
    let task = match task::task(machine, node, pair, &service.addresses.boot_url(connection.local)) {
        Task::Run => service.orders.of(machine.id).map_or(Task::Run, Task::Kubeadm),
        task => task,
    };
    let api_servers = match node.purpose {
        Purpose::Node => service.orders.api_servers(machine.id),
        Purpose::Discovery | Purpose::Install => Vec::new(),
    };
    Ok(TaskAnswer { revision: revision(&task, &api_servers), task, api_servers })
}

/// The image of a machine's assignment with its profile, if it is in the store.
fn assigned_image(service: &Service, machine: &Machine) -> Result<Option<(Arc<Image>, Profile)>> {
    let Some(assignment) = &machine.assignment else { return Ok(None) };
    let image = service.images.image(&assignment.image).map_err(|e| ApiError::unavailable(e.to_string()))?;
    Ok(image.and_then(|image| profile::by_name(&image.profile).map(|profile| (image, profile))))
}

/// The machine that this node speaks for, unless it is stopped.
pub(super) async fn admitted(service: &Service, node: NodeIdentity) -> Result<Machine> {
    let machine = enroll::admit(&service.registry, node).await?;
    match &machine.stopped {
        Some(reason) => Err(ApiError::forbidden(format!("the machine is stopped: {reason}"))),
        None => Ok(machine),
    }
}

fn revision(task: &Task, api_servers: &[SocketAddr]) -> String {
    let text = serde_json::to_vec(&(task, api_servers)).unwrap_or_default();
    hex::encode(&Sha256::digest(text)[..8])
}

pub(super) async fn report(
    State(service): State<Arc<Service>>,
    Extension(connection): Extension<Connection>,
    Node(node): Node,
    Json(report): Json<Report>,
) -> Result<Json<ReportAnswer>> {
    if let Some(generation) = report.event.generation()
        && generation != node.generation
    {
        return Err(ApiError::forbidden(format!(
            "this certificate is of generation {}, and does not report about generation {generation}",
            node.generation
        )));
    }
    let effects = match &report.event {
        ReportEvent::Heartbeat { .. } => RowEffects::default(),
        ReportEvent::Wiped { .. } if node.purpose != Purpose::Node => {
            return Err(ApiError::forbidden("only an installed node is wiped"));
        }
        ReportEvent::InstallProgress { .. } | ReportEvent::Installed { .. } if node.purpose != Purpose::Install => {
            return Err(ApiError::forbidden("only a live system with an install certificate reports an installation"));
        }
        _ => RowEffects { report: Some(report.id), ..RowEffects::default() },
    };
    let kind = report.event.kind();
    let run = match &report.event {
        ReportEvent::Kubeadm { .. } | ReportEvent::Certificates { .. } if node.purpose != Purpose::Node => {
            return Err(ApiError::forbidden("only an installed node reports about Kubernetes"));
        }
        ReportEvent::Kubeadm { operation, progress } => Some((*operation, progress.clone())),
        _ => None,
    };
    let shown = match &report.event {
        ReportEvent::Certificates { certificates, unreadable } => Some((certificates.clone(), unreadable.clone())),
        _ => None,
    };
    let before = admitted(&service, node).await?;
    if task::standing(&before, node) != Standing::Current && node.generation == before.generation {
        return Err(ApiError::forbidden(format!("this boot of {} is over: start it again", before.name)));
    }
    if node.purpose == Purpose::Discovery && before.generation > 0 && before.assignment.is_some() {
        return Err(ApiError::forbidden(
            "this machine is assigned: what a discovery system says of it no longer counts",
        ));
    }
    let machine = match report.event {
        event @ ReportEvent::Heartbeat { .. } => service.registry.heard(before, event).await?,
        event => service.registry.apply(node.machine, Input::Reported(event), effects).await?,
    };
    tracing::debug!(trace = %Trace::of(&machine), machine = %machine.name, kind, "report");
    if let Some((operation, progress)) = run {
        order::reported(&service, machine.id, operation, &progress).await?;
    }
    if let Some((all, unreadable)) = shown {
        certificates::reported(&service, machine.id, all, unreadable).await?;
    }
    let revision = current_task(&service, &machine, node, &connection)?.revision;
    Ok(Json(ReportAnswer { revision, server_time: OffsetDateTime::now_utc() }))
}

#[derive(Deserialize)]
pub(super) struct OperationQuery {
    operation: uuid::Uuid,
}

/// What a node needs for its run of kubeadm.
pub(super) async fn kubeadm(
    State(service): State<Arc<Service>>,
    Node(node): Node,
    Extension(connection): Extension<Connection>,
    Query(query): Query<OperationQuery>,
) -> Result<Json<KubeadmOrder>> {
    if node.purpose != Purpose::Node {
        return Err(ApiError::forbidden("only an installed node gets this"));
    }
    let machine = admitted(&service, node).await?;
    if task::standing(&machine, node) != Standing::Current {
        return Err(ApiError::conflict(format!("this boot of {} is over: start it again", machine.name)));
    }
    Ok(Json(order::order(&service, node, query.operation, connection.local).await?))
}

#[derive(Deserialize)]
pub(super) struct GenerationQuery {
    generation: u32,
}

/// The configuration of the installed system, for the live system that installs it.
pub(super) async fn install_config(
    State(service): State<Arc<Service>>,
    Extension(connection): Extension<Connection>,
    Node(node): Node,
    Query(query): Query<GenerationQuery>,
) -> Result<Response> {
    if node.purpose != Purpose::Install {
        return Err(ApiError::forbidden("only a live system with an install certificate gets this"));
    }
    let machine = admitted(&service, node).await?;
    if machine.generation != query.generation || node.generation != query.generation {
        return Err(ApiError::conflict(format!(
            "generation {} is wanted, not {}",
            machine.generation, query.generation
        )));
    }
    if machine.installed_generation == Some(machine.generation) {
        return Err(ApiError::conflict(format!("generation {} is installed already", machine.generation)));
    }
    if task::standing(&machine, node) != Standing::Current {
        return Err(ApiError::conflict(format!("this boot of {} is over: start it again", machine.name)));
    }
    let image = assigned_image(&service, &machine)?;
    let (_, profile) = image.ok_or_else(|| ApiError::unavailable("the image of this machine is not in the store"))?;
    let (config, token) = config::node_config(&service, &machine, &profile, node.boot, connection.local)?;
    service.registry.store().issue_node_token(&token, OffsetDateTime::now_utc()).await?;
    Ok(([(http::header::CONTENT_TYPE, IGNITION)], config).into_response())
}

/// Refuses a configuration, and says so in the machine's history.
async fn refused(service: &Service, machine: uuid::Uuid, reason: &str) -> ApiError {
    let input = Input::Refused { reason: reason.to_owned() };
    match service.registry.apply(machine, input, RowEffects::default()).await {
        Ok(_) => ApiError::forbidden(reason),
        Err(error) => error.into(),
    }
}

/// The configuration behind a first stage. The token is used up before the answer. Ignition may ask again from the same
/// address, when the answer did not reach it, until the agent has enrolled.
pub(super) async fn ignition_config(
    State(service): State<Arc<Service>>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let token = bearer(&parts).ok_or_else(|| ApiError::forbidden("this takes the token of a first stage"))?;
    let hash = secret::digest(token);
    let peer = secret::digest(&connection.peer.ip().to_canonical().to_string());
    let store = service.registry.store();
    let token = match store.use_token(&hash, Scope::Config, Some(&peer), OffsetDateTime::now_utc()).await? {
        TokenUse::Granted(token) => token,
        TokenUse::Reused(token, at) => {
            let reason = format!(
                "its {} configuration was asked for twice, first at {at}, now from {}",
                token.purpose.as_str(),
                connection.peer.ip().to_canonical()
            );
            service.registry.apply(token.machine, Input::Alarm { reason }, RowEffects::default()).await?;
            return Err(ApiError::forbidden(
                "this token was used before; the machine is stopped until an operator looks into it",
            ));
        }
        TokenUse::Superseded { token, contested: true } => {
            let reason = format!(
                "two parties boot as this machine: {} asked for its configuration after another had taken its own",
                connection.peer.ip().to_canonical()
            );
            let input = Input::Alarm { reason: reason.clone() };
            service.registry.apply(token.machine, input, RowEffects::default()).await?;
            return Err(ApiError::forbidden(reason));
        }
        TokenUse::Superseded { token, contested: false } => {
            let reason = "another boot of this machine has replaced this token; start the machine again";
            return Err(refused(&service, token.machine, reason).await);
        }
        TokenUse::Expired(token) => {
            let reason = "it came with a token of its configuration whose time is over; start the machine again";
            return Err(refused(&service, token.machine, reason).await);
        }
        TokenUse::Unknown => return Err(ApiError::forbidden("nobody issued this token, or it was revoked")),
    };
    let machine = service.registry.find(&Selector::Id(token.machine)).await?;
    if let Some(reason) = machine.stopped {
        return Err(ApiError::forbidden(format!("the machine is stopped: {reason}")));
    }
    let boot = store.boot(token.boot).await?;
    let boot =
        boot.ok_or_else(|| ApiError::forbidden("the configuration of this boot is gone; start the machine again"))?;
    let input = Input::ConfigFetched {
        purpose: token.purpose,
        generation: token.generation,
        boot: boot.id,
        from: connection.peer.ip().to_canonical(),
    };
    let effects = RowEffects { supersede: Supersede::OtherBoots(boot.id), ..RowEffects::default() };
    match service.registry.apply(token.machine, input, effects).await {
        Err(RegistryError::Refused(refused @ Refused::Installed { .. })) => {
            let reason = format!("another live system boots as this machine: {refused}");
            service.registry.apply(token.machine, Input::Alarm { reason }, RowEffects::default()).await?;
            return Err(ApiError::forbidden(refused.to_string()));
        }
        other => other?,
    };
    Ok(([(http::header::CONTENT_TYPE, IGNITION)], boot.config).into_response())
}
