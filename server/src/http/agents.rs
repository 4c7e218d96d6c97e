//! The agent protocol (see `nkd_api::agent`) and the configuration that Ignition fetches.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use nkd_api::agent::{
    EnrollRequest, EnrollResponse, Purpose, RenewRequest, Report, ReportAnswer, ReportEvent, ServerTime, Task,
    TaskAnswer,
};
use nkd_api::machine::Machine;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::auth::{Node, bearer};
use super::extract::{Json, Query};
use super::{ApiError, Connection};
use crate::content::image::profile;
use crate::fleet::config;
use crate::fleet::pki::NodeIdentity;
use crate::fleet::{enroll, secret, task};
use crate::machine::Selector;
use crate::machine::lifecycle::Input;
use crate::service::Service;
use crate::store::{RowEffects, Scope, Supersede, TokenUse};
use crate::trace::Trace;

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
    loop {
        let machine = service.registry.find(&Selector::Id(node.machine)).await?;
        let answer = current_task(&service, &machine, node, &connection)?;
        if query.seen.as_ref() != Some(&answer.revision) {
            return Ok(Json(answer));
        }
        // Any event of this machine, or missed ones, are a reason to look again.
        loop {
            tokio::select! {
                () = &mut deadline => return Ok(Json(answer)),
                () = service.stopping.cancelled() => return Ok(Json(answer)),
                event = events.recv() => match event {
                    Ok(event) if event.machine != node.machine => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(Json(answer)),
                    _ => break,
                }
            }
        }
    }
}

fn current_task(
    service: &Service,
    machine: &Machine,
    node: NodeIdentity,
    connection: &Connection,
) -> Result<TaskAnswer> {
    let image = match &machine.assignment {
        Some(assignment) => {
            service.images.image(&assignment.image).map_err(|e| ApiError::unavailable(e.to_string()))?
        }
        None => None,
    };
    let profile = image.as_ref().and_then(|i| profile::by_name(&i.profile));
    let pair = image.as_deref().zip(profile.as_ref());
    let task = task::task(machine, node, pair, &service.addresses.boot_url(connection.local));
    Ok(TaskAnswer { revision: revision(&task), task })
}

fn revision(task: &Task) -> String {
    let text = serde_json::to_vec(task).unwrap_or_default();
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
        ReportEvent::InstallProgress { .. } | ReportEvent::Installed { .. } if node.purpose != Purpose::Install => {
            return Err(ApiError::forbidden("only a live system with an install certificate reports an installation"));
        }
        _ => RowEffects { report: Some(report.id), ..RowEffects::default() },
    };
    let kind = report.event.kind();
    let before = service.registry.find(&Selector::Id(node.machine)).await?;
    if let Some(reason) = before.stopped {
        return Err(ApiError::forbidden(format!("the machine is stopped: {reason}")));
    }
    if node.purpose == Purpose::Discovery && before.generation > 0 {
        return Err(ApiError::forbidden(
            "this machine is assigned: what a discovery system says of it no longer counts",
        ));
    }
    let machine = service.registry.apply(node.machine, Input::Reported(report.event), effects).await?;
    tracing::debug!(trace = %Trace::of(&machine), machine = %machine.name, kind, "report");
    let revision = current_task(&service, &machine, node, &connection)?.revision;
    Ok(Json(ReportAnswer { revision, server_time: OffsetDateTime::now_utc() }))
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
    let machine = service.registry.find(&Selector::Id(node.machine)).await?;
    if let Some(reason) = machine.stopped {
        return Err(ApiError::forbidden(format!("the machine is stopped: {reason}")));
    }
    if machine.generation != query.generation || node.generation != query.generation {
        return Err(ApiError::conflict(format!(
            "generation {} is wanted, not {}",
            machine.generation, query.generation
        )));
    }
    if machine.installed_generation == Some(machine.generation) {
        return Err(ApiError::conflict(format!("generation {} is installed already", machine.generation)));
    }
    let image = match &machine.assignment {
        Some(a) => service.images.image(&a.image).map_err(|e| ApiError::unavailable(e.to_string()))?,
        None => None,
    };
    let profile = image.as_ref().and_then(|i| profile::by_name(&i.profile));
    let profile = profile.ok_or_else(|| ApiError::unavailable("the image of this machine is not in the store"))?;
    let (config, token) = config::node_config(&service, &machine, &profile, connection.local)?;
    service.registry.store().issue_token(&token).await?;
    Ok(([(http::header::CONTENT_TYPE, "application/vnd.coreos.ignition+json")], config).into_response())
}

/// The configuration behind a first stage. The token is used up before the answer; when the answer does not reach the
/// caller as a whole, the token is given back.
pub(super) async fn ignition_config(State(service): State<Arc<Service>>, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let token = bearer(&parts).ok_or_else(|| ApiError::forbidden("this takes the token of a first stage"))?;
    let hash = secret::digest(token);
    let store = service.registry.store();
    let token = match store.use_token(&hash, Scope::Config, None, OffsetDateTime::now_utc()).await? {
        TokenUse::Granted(token) => token,
        TokenUse::Reused(token, at) => {
            let reason = format!("its {} configuration was asked for twice, first at {at}", token.purpose.as_str());
            service.registry.apply(token.machine, Input::Alarm { reason }, RowEffects::default()).await?;
            return Err(ApiError::forbidden(
                "this token was used before; the machine is stopped until an operator looks into it",
            ));
        }
        TokenUse::Superseded { token, contested } => {
            if contested {
                let reason =
                    "two parties boot as this machine: one asked for its configuration after another had taken its own";
                service
                    .registry
                    .apply(token.machine, Input::Alarm { reason: reason.into() }, RowEffects::default())
                    .await?;
            }
            return Err(ApiError::forbidden(
                "another boot of this machine has replaced this token; start the machine again",
            ));
        }
        TokenUse::Expired(_) => return Err(ApiError::forbidden("this token's time is over; start the machine again")),
        TokenUse::Unknown => return Err(ApiError::forbidden("nobody issued this token, or it was revoked")),
    };
    // From here on, whatever goes wrong gives the token back: Ignition asks again with the same one.
    let mut delivery = Delivery { bytes: None, undelivered: Some((Arc::clone(&service), hash)) };
    let machine = service.registry.find(&Selector::Id(token.machine)).await?;
    if let Some(reason) = machine.stopped {
        return Err(ApiError::forbidden(format!("the machine is stopped: {reason}")));
    }
    let boot = match token.boot {
        Some(id) => store.boot(id).await?,
        None => None,
    };
    let boot =
        boot.ok_or_else(|| ApiError::forbidden("the configuration of this boot is gone; start the machine again"))?;
    let input = Input::ConfigFetched { purpose: token.purpose, generation: token.generation };
    let effects = RowEffects { supersede: Supersede::OtherBoots(boot.id), ..RowEffects::default() };
    service.registry.apply(token.machine, input, effects).await?;
    delivery.bytes = Some(boot.config.into());
    let body = axum::body::Body::new(delivery);
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/vnd.coreos.ignition+json"));
    Ok(response)
}

/// A body that gives its token back when it is dropped before it was handed to the connection.
///
/// Once handed over, the token stays used even if the connection breaks: who reads the configuration and then cuts the
/// connection must not be able to do so unseen.
struct Delivery {
    bytes: Option<bytes::Bytes>,
    undelivered: Option<(Arc<Service>, [u8; 32])>,
}

impl http_body::Body for Delivery {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::result::Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        let frame = self.bytes.take();
        self.undelivered = None;
        std::task::Poll::Ready(frame.map(|bytes| Ok(http_body::Frame::data(bytes))))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.bytes.as_ref().map_or(0, |b| b.len() as u64))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some((service, hash)) = self.undelivered.take() {
            tokio::spawn(async move {
                if let Err(error) = service.registry.store().release_token(&hash).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a token could not be given back");
                }
            });
        }
    }
}
