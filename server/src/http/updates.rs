//! The update graph, as zincati asks for it, and what it means for a machine.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nkd_api::ErrorBody;
use nkd_api::channel::{Channel, Explained, ExplainedRelease};
use nkd_api::machine::Machine;
use nkd_api::user::Role;
use serde::Deserialize;
use time::OffsetDateTime;

use super::auth::Caller;
use super::error::kind_and_value;
use super::extract::{Path, Query};
use super::{ApiError, Connection};
use crate::content::channel::LastPoll;
use crate::content::channel::unknown::Who;
use crate::content::graph::{self, Asker};
use crate::machine::Selector;
use crate::service::Service;

type App = State<Arc<Service>>;

/// What zincati says of itself. Everything is a text there; what is not understood is left out.
#[derive(Deserialize)]
pub(super) struct Zincati {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    basearch: String,
    #[serde(default)]
    os_checksum: String,
    node_uuid: Option<String>,
    rollout_wariness: Option<f64>,
}

/// The graph of a channel (`stream`) for a system, as Cincinnati's clients ask for it. Errors are theirs too.
pub(super) async fn graph(
    State(service): App,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    query: Result<axum::extract::Query<Zincati>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("*/*");
    if !["application/json", "application/*", "*/*"].iter().any(|kind| accepts.contains(kind)) {
        return kind_and_value(
            StatusCode::NOT_ACCEPTABLE,
            "invalid_content_type",
            "the graph is application/json".into(),
        );
    }
    let asked = match query {
        Ok(query) => query.0,
        Err(error) => return kind_and_value(StatusCode::BAD_REQUEST, "invalid_params", error.body_text()),
    };
    if asked.stream.is_empty() || asked.basearch.is_empty() {
        let value = "the parameters stream (a channel) and basearch are needed".to_owned();
        return kind_and_value(StatusCode::BAD_REQUEST, "missing_params", value);
    }
    let (node, now) = (asked.node_uuid.as_deref(), OffsetDateTime::now_utc());
    let who = Who { node, address: connection.peer.ip() };
    match service.channels.asked(&asked.stream, &asked.basearch, &asked.os_checksum, who, (now, Instant::now())).await {
        Ok(Some(channel)) => {
            let poll = LastPoll {
                channel: channel.name.clone(),
                commit: asked.os_checksum.clone(),
                node: asked.node_uuid.clone(),
                wariness: asked.rollout_wariness,
                at: now,
            };
            service.channels.polled_from(connection.peer.ip(), poll);
            let asker = Asker { node, wariness: asked.rollout_wariness };
            let missing = service.channels.missing(&channel.profile);
            axum::Json(graph::graph(&channel, &missing, &asker, now)).into_response()
        }
        Ok(None) => {
            let value = format!("there is no channel {} for {}", asked.stream, asked.basearch);
            kind_and_value(StatusCode::NOT_FOUND, "no_graph", value)
        }
        Err(error) => {
            let (status, value) = ApiError::from(error).into_parts();
            kind_and_value(status, "internal", value)
        }
    }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExplainQuery {
    /// Channel.
    channel: String,
}

/// To which release of a channel a machine would be led, and why not to the others.
#[utoipa::path(get, path = "/api/v1/machines/{machine}/updates", tag = "channels", params(ExplainQuery), responses((status = 200, body = Explained), (status = "4XX", body = ErrorBody)))]
pub(super) async fn explain(
    State(service): App,
    caller: Caller,
    Path(machine): Path<String>,
    Query(query): Query<ExplainQuery>,
) -> Result<super::extract::Json<Explained>, ApiError> {
    caller.require(Role::Viewer)?;
    let Ok(selector) = machine.parse::<Selector>();
    let machine = service.registry.find(&selector).await?;
    let channel = service.registry.store().channel(&query.channel).await?;
    let missing = || ApiError::not_found(format!("there is no channel `{}`", query.channel));
    let (channel, _) = channel.ok_or_else(|| missing().hint("`nkd channel list` shows those there are"))?;
    let asks = Asks::of(&service, &machine);
    let missing = service.channels.missing(&channel.profile);
    Ok(super::extract::Json(explained(machine.name, &channel, &missing, &asks, OffsetDateTime::now_utc())))
}

/// How a machine asks for updates, as far as that is known.
pub(super) struct Asks {
    /// What it runs: what its agent has said, else what it has asked from.
    pub(super) commit: Option<String>,
    /// How it has asked for a graph itself, from the address that it has here.
    pub(super) poll: Option<LastPoll>,
    id: String,
}

impl Asks {
    pub(super) fn of(service: &Service, machine: &Machine) -> Self {
        let reported = machine.facts.as_ref().and_then(|facts| facts.booted_deployment.clone());
        let poll = machine.address.and_then(|address| service.channels.last_poll(address));
        // Who runs something else asks from behind the same address, or has not asked since it was updated.
        let poll = poll.filter(|poll| reported.as_ref().is_none_or(|commit| *commit == poll.commit));
        let asked = || poll.as_ref().map(|poll| poll.commit.clone()).filter(|commit| !commit.is_empty());
        Self { commit: reported.or_else(asked), poll, id: machine.id.to_string() }
    }

    /// A machine that does not ask is led by the identity that it has here.
    fn asker(&self) -> Asker<'_> {
        match &self.poll {
            Some(poll) => Asker { node: poll.node.as_deref(), wariness: poll.wariness },
            None => Asker { node: Some(&self.id), wariness: None },
        }
    }
}

pub(super) fn explained(
    machine: String,
    channel: &Channel,
    missing: &BTreeSet<String>,
    asks: &Asks,
    now: OffsetDateTime,
) -> Explained {
    let (commit, asker) = (asks.commit.clone(), &asks.asker());
    let release = |commit: &str| channel.releases.iter().rfind(|release| release.commit == commit);
    let running = commit.as_deref().and_then(release);
    let newer = commit.as_deref().and_then(|commit| graph::explain(channel, missing, commit, asker, now));
    let summary = match (&commit, running, &newer) {
        (None, ..) => "the machine has not said which deployment it runs".to_owned(),
        (Some(_), None, _) => format!("what it runs is no release of the channel `{}`", channel.name),
        (Some(_), Some(running), Some(newer)) => match newer.iter().find(|(_, closed)| closed.is_none()) {
            Some((to, _)) => format!("from release {} to release {}", running.number, to.number),
            None => {
                let stays = match newer.is_empty() {
                    true => format!("release {} is the newest", running.number),
                    false => format!("stays at release {}", running.number),
                };
                match &running.dead_end {
                    Some(reason) => format!("{stays}, and a dead end: {reason}"),
                    None => stays,
                }
            }
        },
        _ => String::new(),
    };
    let newer = newer.into_iter().flatten().map(|(release, closed)| ExplainedRelease {
        release: release.number,
        version: release.version.clone(),
        closed: closed.map(|closed| closed.to_string()),
    });
    let (running, newer) = (running.map(|release| release.number), newer.collect());
    Explained { machine, channel: channel.name.clone(), commit, release: running, summary, newer }
}
