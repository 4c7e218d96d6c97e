//! Channels of releases, and the repositories that nodes pull them from.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use nkd_api::ErrorBody;
use nkd_api::channel::{
    Channel, DeletedChannel, MarkOrder, PromoteOrder, PruneOrder, Pruned, PublishOrder, PublishUpdate, Release,
    ShownChannel, UnknownRelease,
};
use nkd_api::user::Role;
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tower_http::services::{ServeDir, ServeFile};
use utoipa::IntoParams;

use super::auth::Caller;
use super::error::chain;
use super::extract::{Json, Path, Query, lines_of};
use super::page_cache::PageCache;
use super::ranges::keep_one_range;
use super::{ApiError, Connection};
use crate::content::channel::{ChannelError, Order, PublishLine, joined, summary, text};
use crate::content::image::profile;
use crate::service::Service;

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

/// How often one of a list was left out, to make room for another.
pub(crate) const LEFT_OUT: &str = "nkd-left-out";
/// Before the paths of repositories.
const FILES: &str = "/ostree/";
/// A piece of a body is one frame of HTTP/2 as it is, whose head of nine bytes goes with it into one record of TLS, which holds
/// 16 KiB: a longer one takes a second record for its end.
const PIECE: usize = 16 * 1024 - 9;

/// Whether a path is that of a file, for the sending of which nothing but the file is needed.
pub(super) fn is_file(path: &str) -> bool {
    path.starts_with(FILES)
}

/// What of a repository is for everybody.
const SERVED: [&str; 7] = ["config", "delta-indexes", "deltas", "objects", "refs", "summary", "summary.sig"];

/// All channels.
#[utoipa::path(get, path = "/api/v1/channels", tag = "channels", responses((status = 200, body = Vec<ShownChannel>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(State(service): App, caller: Caller) -> Result<Json<Vec<ShownChannel>>> {
    caller.require(Role::Viewer)?;
    let channels = service.registry.store().channels().await?;
    Ok(Json(channels.into_iter().map(|channel| shown(&service, channel)).collect()))
}

/// A channel.
#[utoipa::path(get, path = "/api/v1/channels/{channel}", tag = "channels", responses((status = 200, body = ShownChannel), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(State(service): App, caller: Caller, Path(name): Path<String>) -> Result<Json<ShownChannel>> {
    caller.require(Role::Viewer)?;
    Ok(Json(shown(&service, known(&service, &name).await?)))
}

fn shown(service: &Service, channel: Channel) -> ShownChannel {
    let gone = service.channels.missing(&channel.profile);
    let missing = channel.releases.iter().filter(|release| gone.contains(&release.commit));
    ShownChannel { missing: missing.map(|release| release.number).collect(), channel }
}

/// The channel of this name.
async fn known(service: &Service, name: &str) -> Result<Channel> {
    let missing = || {
        ApiError::not_found(format!("there is no channel `{name}`")).hint("`nkd channel list` shows those there are")
    };
    Ok(service.registry.store().channel(name).await?.ok_or_else(missing)?.0)
}

/// Systems that ask for updates from a release that the channel does not have, since the service started.
#[utoipa::path(get, path = "/api/v1/channels/{channel}/unknown", tag = "channels", responses((status = 200, body = Vec<UnknownRelease>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn unknown(State(service): App, caller: Caller, Path(name): Path<String>) -> Result<Response> {
    caller.require(Role::Viewer)?;
    known(&service, &name).await?;
    let (unknown, left_out) = service.channels.unknown(&name);
    Ok(([(LEFT_OUT, left_out.to_string())], Json(unknown)).into_response())
}

/// Publishes a release. Answers with one [`PublishLine`] a line while it goes on; once it has begun, it goes on if the caller leaves.
#[utoipa::path(post, path = "/api/v1/channels/{channel}/releases", tag = "channels", request_body = PublishOrder, responses((status = 200, body = PublishLine, content_type = "application/x-ndjson"), (status = "4XX", body = ErrorBody)))]
pub(super) async fn publish(
    State(service): App,
    caller: Caller,
    Path(name): Path<String>,
    Json(order): Json<PublishOrder>,
) -> Result<Response> {
    caller.require(Role::Operator)?;
    // Before the audit trail has them.
    text::of_publication(&order).map_err(|error| ApiError::invalid(error.to_string()))?;
    caller.audit(&service, "channel.publish", &name, &order.ostree).await?;
    let channels = Arc::clone(&service.channels);
    Ok(told(caller, service, "channel.publish", (name.clone(), name.clone()), |step| async move {
        channels.publish(&name, order, OffsetDateTime::now_utc(), step).await
    }))
}

/// Makes a release of this channel the next one of another. Answers with one [`PublishLine`] a line, as publishing does.
#[utoipa::path(post, path = "/api/v1/channels/{channel}/promotions", tag = "channels", request_body = PromoteOrder, responses((status = 200, body = PublishLine, content_type = "application/x-ndjson"), (status = "4XX", body = ErrorBody)))]
pub(super) async fn promote(
    State(service): App,
    caller: Caller,
    Path(name): Path<String>,
    Json(order): Json<PromoteOrder>,
) -> Result<Response> {
    caller.require(Role::Operator)?;
    let detail = serde_json::to_string(&order).unwrap_or_default();
    caller.audit(&service, "channel.promote", &name, &detail).await?;
    let channels = Arc::clone(&service.channels);
    Ok(told(caller, service, "channel.promote", (name.clone(), order.to.clone()), |step| async move {
        channels.promote(&name, order, OffsetDateTime::now_utc(), step).await
    }))
}

/// Hears what is done now.
type Step = Box<dyn Fn(&str) + Send + Sync>;

/// The answer to an order that takes its time: a line for each step, and the release last, which is one of the channel `to`. Once
/// it has begun, it goes on if the caller leaves.
fn told<F>(
    caller: Caller,
    service: Arc<Service>,
    action: &'static str,
    (name, to): (String, String),
    work: impl FnOnce(Step) -> F,
) -> Response
where
    F: Future<Output = std::result::Result<Release, ChannelError>> + Send + 'static,
{
    let (lines, stream) = mpsc::channel(64);
    let steps = lines.clone();
    // What is done now is worth less than doing it: a full channel loses it.
    let line = |update, summary_problem| PublishLine { update, summary_problem };
    let step = move || -> Step {
        let steps = steps.clone();
        Box::new(move |name| drop(steps.try_send(line(PublishUpdate::Step { name: name.to_owned() }, None))))
    };
    let working = work(step());
    let channels = Arc::clone(&service.channels);
    let gone = CancellationToken::new();
    let order = Order { what: format!("{action} of `{name}`"), step: step(), gone: gone.clone() };
    channels.carry_out_in_turn(order, async move {
        let leaving = async {
            lines.closed().await;
            gone.cancel();
            std::future::pending::<Infallible>().await
        };
        let worked = tokio::select! {
            worked = working => worked,
            never = leaving => match never {},
        };
        let last = match worked {
            Ok(release) => {
                // What cannot be read is no problem of the summary.
                let problem = service.channels.summary_problem(&to).await.ok().flatten();
                line(PublishUpdate::Done { release: Box::new(release) }, problem)
            }
            Err(error) => {
                tracing::warn!(
                    channel = name,
                    error = &error as &dyn std::error::Error,
                    "{action}: nothing was published"
                );
                let message = chain(&error);
                caller.audit_failure(&service, action, &name, &message).await;
                line(PublishUpdate::Failed { message }, None)
            }
        };
        // The caller may have gone away; the release is there all the same.
        let _ = lines.send(last).await;
    });
    lines_of(stream)
}

/// Changes what is known of a release: barrier, dead end, rollout.
#[utoipa::path(patch, path = "/api/v1/channels/{channel}/releases/{release}", tag = "channels", request_body = MarkOrder, responses((status = 200, body = Release), (status = "4XX", body = ErrorBody)))]
pub(super) async fn mark(
    State(service): App,
    caller: Caller,
    Path((name, number)): Path<(String, u32)>,
    Json(order): Json<MarkOrder>,
) -> Result<Json<Release>> {
    caller.require(Role::Operator)?;
    text::of_mark(&order).map_err(|error| ApiError::invalid(error.to_string()))?;
    let detail = serde_json::to_string(&order).unwrap_or_default();
    caller.audit(&service, "channel.mark", &format!("{name} {number}"), &detail).await?;
    match service.channels.mark(&name, number, order).await {
        Ok(release) => Ok(Json(release)),
        Err(ChannelError::Store(error)) => Err(error.into()),
        Err(error @ ChannelError::Again { .. }) => Err(ApiError::conflict(chain(&error))),
        Err(error) => Err(ApiError::not_found(chain(&error))),
    }
}

/// Retires old releases that nobody needs. Their objects go later, when nobody reads them any more.
#[utoipa::path(post, path = "/api/v1/channels/{channel}/prune", tag = "channels", request_body = PruneOrder, responses((status = 200, body = Pruned), (status = "4XX", body = ErrorBody)))]
pub(super) async fn prune(
    State(service): App,
    caller: Caller,
    Path(name): Path<String>,
    Json(order): Json<PruneOrder>,
) -> Result<Json<Pruned>> {
    caller.require(Role::Operator)?;
    if !order.dry_run {
        caller.audit(&service, "channel.prune", &name, &format!("keep {}", order.keep)).await?;
    }
    let channels = Arc::clone(&service.channels);
    let pruning = ordered(caller, service, "channel.prune", name.clone(), |by| async move {
        channels.prune(&name, order, &by, (OffsetDateTime::now_utc(), Instant::now())).await
    });
    match pruning.await {
        Ok(pruned) => Ok(Json(pruned)),
        Err(ChannelError::Store(error)) => Err(error.into()),
        Err(error @ ChannelError::NoChannel(_)) => Err(ApiError::not_found(error.to_string())),
        Err(error @ ChannelError::Stopped) => Err(ApiError::unavailable(error.to_string())),
        Err(error) => Err(ApiError::invalid(chain(&error))),
    }
}

/// Carries an order out in its turn; `work` is told whose it is. Once it has begun, it goes on if the caller leaves.
async fn ordered<T, F>(
    caller: Caller,
    service: Arc<Service>,
    action: &'static str,
    name: String,
    work: impl FnOnce(String) -> F,
) -> std::result::Result<T, ChannelError>
where
    T: Send + 'static,
    F: Future<Output = std::result::Result<T, ChannelError>> + Send + 'static,
{
    let gone = CancellationToken::new();
    // This goes when the caller leaves.
    let _here = gone.clone().drop_guard();
    let order = Order { what: format!("{action} of `{name}`"), step: Box::new(|_| {}), gone };
    let (working, channels) = (work(caller.0.name.clone()), Arc::clone(&service.channels));
    let carried_out = channels.carry_out_in_turn(order, async move {
        let done = working.await;
        // Nobody is told but the audit trail, which has the order.
        if let Err(error @ ChannelError::Left) = &done {
            tracing::warn!(channel = name, "{action}: {error}");
            caller.audit_failure(&service, action, &name, &error.to_string()).await;
        }
        done
    });
    joined(carried_out).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteQuery {
    /// The name of the channel once more.
    confirm: String,
}

/// Deletes a channel with all its releases, unless somebody needs it. Their objects go later, when nobody reads them any more.
#[utoipa::path(delete, path = "/api/v1/channels/{channel}", tag = "channels", params(DeleteQuery), responses((status = 200, body = DeletedChannel), (status = "4XX", body = ErrorBody)))]
pub(super) async fn delete(
    State(service): App,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<Json<DeletedChannel>> {
    caller.require(Role::Operator)?;
    if query.confirm != name {
        return Err(ApiError::invalid(format!(
            "confirm: `{}` is not the name of the channel `{name}`: nothing was changed",
            query.confirm
        )));
    }
    caller.audit(&service, "channel.delete", &name, "").await?;
    let channels = Arc::clone(&service.channels);
    let deleting = ordered(caller, service, "channel.delete", name.clone(), |by| async move {
        channels.delete(&name, &by, OffsetDateTime::now_utc()).await
    });
    match deleting.await {
        Ok(deleted) => Ok(Json(deleted)),
        Err(ChannelError::Store(error)) => Err(error.into()),
        Err(error @ ChannelError::NoChannel(_)) => Err(ApiError::not_found(error.to_string())),
        Err(error @ ChannelError::Held { .. }) => Err(ApiError::conflict(error.to_string())),
        Err(error) => Err(ApiError::unavailable(chain(&error))),
    }
}

/// The OpenPGP key that commits and summaries are signed with.
pub(super) async fn key(State(service): App, request: Request) -> Response {
    file(ServeFile::new(service.channels.key_file()).oneshot(request).await, "no-cache")
}

/// The ed25519 key that they are signed with, as a file of keys.
pub(super) async fn ed25519_key(State(service): App, request: Request) -> Response {
    file(ServeFile::new(service.channels.ed25519_key_file()).oneshot(request).await, "no-cache")
}

/// A file of a repository, for nodes: what is there is signed, and no secret.
pub(super) async fn repository(
    State(service): App,
    connection: Option<Extension<Connection>>,
    Path((profile, path)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response> {
    let nothing = || ApiError::not_found("there is no such file in the repository");
    let first = path.split('/').next().unwrap_or_default();
    if profile::by_name(&profile).is_none() || !SERVED.contains(&first) {
        return Err(nothing());
    }
    *request.uri_mut() = Uri::try_from(format!("/{path}")).map_err(|_| nothing())?;
    keep_one_range(request.headers_mut());
    // Objects are named by their content, except for the signatures beside a commit, to which one may be added. Deltas are
    // named by their ends, and carry those signatures.
    let is_fixed = first == "objects" && !path.ends_with(".commitmeta");
    let cache = if is_fixed { "public, max-age=31536000, immutable" } else { "no-cache" };
    let folder = service.channels.folder().join(&profile);
    // What a client reads is not removed under its hands.
    let reading = connection.map(|Extension(connection)| {
        let client = service.channels.reading(&profile, connection.peer.ip(), &path, Instant::now());
        Reading { service: Arc::clone(&service), profile, client }
    });
    let files = ServeDir::with_backend(folder, PageCache::default())
        .append_index_html_on_directories(false)
        .with_buf_chunk_size(PIECE);
    let opening = summary::opening(&path).await;
    let answer = file(files.oneshot(request).await, cache);
    drop(opening);
    Ok(answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _until_it_is_sent = &reading;
            frame
        }))
    }))
}

/// An answer that is being sent to a client.
struct Reading {
    service: Arc<Service>,
    profile: String,
    client: IpAddr,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.service.channels.read(&self.profile, self.client, Instant::now());
    }
}

fn file<B>(answer: std::result::Result<axum::http::Response<B>, Infallible>, cache: &'static str) -> Response
where
    B: axum::body::HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let Ok(answer) = answer;
    let mut answer = answer.map(Body::new);
    if answer.status() == StatusCode::NOT_FOUND {
        return ApiError::not_found("there is no such file in the repository").into_response();
    }
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    answer
}
