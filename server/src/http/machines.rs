//! Machines and accept rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use nkd_api::machine::{
    AcceptRequest, AcceptRule, Assignment, DeclareRequest, Explanation, Identity, Machine, MachineEvent, Phase,
};
use nkd_api::user::Role;
use nkd_api::{ErrorBody, MacAddr, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::Caller;
use super::error::chain;
use super::extract::{Json, Path, Query};
use super::{ApiError, Connection};
use crate::cluster::part;
use crate::content::image::profile;
use crate::fleet::config;
use crate::machine::identity::{usable_text, usable_uuid};
use crate::machine::lifecycle::{Input, new_machine};
use crate::machine::{Selector, assignment, rules as matching};
use crate::netboot::plane;
use crate::service::Service;
use crate::store::{RowEffects, Supersede};

type Result<T> = std::result::Result<T, ApiError>;
type App = State<Arc<Service>>;

const MAX_EVENTS: u32 = 1000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Labels that a machine must carry: `rack=7,row=2`.
    #[serde(default)]
    label: String,
    /// Only machines in this phase.
    phase: Option<String>,
}

/// All machines, by name. To viewers, snippets are hidden.
#[utoipa::path(get, path = "/api/v1/machines", tag = "machines", params(ListQuery), responses((status = 200, body = Vec<Machine>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(service): App,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<Machine>>> {
    let labels = labels(&query.label)?;
    let mut machines = service.registry.store().machines().await?;
    machines.retain(|m| labels.iter().all(|(k, v)| m.labels.get(k) == Some(v)));
    if let Some(phase) = &query.phase {
        if !Phase::NAMES.iter().any(|name| name.eq_ignore_ascii_case(phase)) {
            let message = format!("phase: there is no `{phase}`: a machine is one of {}", Phase::NAMES.join(", "));
            return Err(ApiError::invalid(message));
        }
        machines.retain(|m| m.phase.name().eq_ignore_ascii_case(phase));
    }
    hide_secrets(&caller, machines.iter_mut().filter_map(|machine| machine.assignment.as_mut()));
    Ok(Json(machines))
}

fn labels(text: &str) -> Result<BTreeMap<String, String>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) =
                part.split_once('=').ok_or_else(|| ApiError::invalid(format!("label: `{part}` is not KEY=VALUE")))?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Declares a machine before its first packet.
#[utoipa::path(post, path = "/api/v1/machines", tag = "machines", request_body = DeclareRequest, responses((status = 201, body = Machine), (status = "4XX", body = ErrorBody)))]
pub(super) async fn declare(
    State(service): App,
    caller: Caller,
    Json(request): Json<DeclareRequest>,
) -> Result<(StatusCode, Json<Machine>)> {
    caller.require(Role::Operator)?;
    let identity = &request.identity;
    if identity.macs.is_empty() && identity.uuid.is_none() && identity.serial.is_none() {
        return Err(ApiError::problems(
            "the machine has no key",
            vec![Problem { path: "identity".into(), message: "give a MAC address, a UUID or a serial number".into() }],
        ));
    }
    if let Some(mac) = identity.macs.iter().find(|m| !m.is_usable()) {
        return Err(ApiError::invalid(format!("identity.macs: {mac} cannot name one machine")));
    }
    check_labels(&request.labels)?;
    let identity = Identity {
        uuid: usable("identity.uuid", request.identity.uuid.as_deref(), usable_uuid)?,
        serial: usable("identity.serial", request.identity.serial.as_deref(), usable_text)?,
        vendor: usable("identity.vendor", request.identity.vendor.as_deref(), usable_text)?,
        product: usable("identity.product", request.identity.product.as_deref(), usable_text)?,
        architecture: usable("identity.architecture", request.identity.architecture.as_deref(), usable_text)?,
        ..request.identity
    };
    if let Some(assignment) = &request.assignment {
        check_assignment(&service, &stranger(request.name.as_deref(), &identity), assignment)?;
    }
    let who = caller.0.name.clone();
    caller.audit(&service, "machine.declare", request.name.as_deref().unwrap_or("-"), "").await?;
    let machine = service.registry.declare(request.name, identity, &who).await?;
    let accept = Input::Accept { name: None, labels: request.labels, cause: who.clone() };
    let mut machine = service.registry.apply(machine.id, accept, RowEffects::default()).await?;
    if let Some(assignment) = request.assignment {
        machine =
            service.registry.apply(machine.id, Input::Assign { assignment, cause: who }, RowEffects::default()).await?;
    }
    Ok((StatusCode::CREATED, Json(machine)))
}

/// One machine, by name, MAC, UUID, serial or identity. To viewers, snippets are hidden.
#[utoipa::path(get, path = "/api/v1/machines/{machine}", tag = "machines", responses((status = 200, body = Machine), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(State(service): App, caller: Caller, Path(machine): Path<String>) -> Result<Json<Machine>> {
    let mut machine = find(&service, &machine).await?;
    hide_secrets(&caller, &mut machine.assignment);
    Ok(Json(machine))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ForgetQuery {
    /// Forget a machine whose disk holds its system, too.
    #[serde(default)]
    force: bool,
}

/// Forgets a machine with its history. Its next packet makes a new record.
#[utoipa::path(delete, path = "/api/v1/machines/{machine}", tag = "machines", params(ForgetQuery), responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn forget(
    State(service): App,
    caller: Caller,
    Path(machine): Path<String>,
    Query(query): Query<ForgetQuery>,
) -> Result<StatusCode> {
    caller.require(Role::Operator)?;
    let machine = find(&service, &machine).await?;
    if machine.installed_generation.is_some() && !query.force {
        let why = format!("{} is installed: once forgotten, a rule may let it in and install it again", machine.name);
        return Err(ApiError::conflict(why)
            .hint(format!("if that is what you want: nkd machine forget --force {}", machine.name)));
    }
    caller.audit(&service, "machine.forget", &machine.name, &machine.id.to_string()).await?;
    service.registry.forget(&machine).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// The first events with a higher number; without it the newest ones.
    after: Option<i64>,
    /// At most so many.
    limit: Option<u32>,
    /// Seconds to wait for one when there is none yet, at most 60.
    #[serde(default)]
    wait: u64,
}

/// Events of all machines, oldest first.
#[utoipa::path(get, path = "/api/v1/events", tag = "machines", params(EventsQuery), responses((status = 200, body = Vec<MachineEvent>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn events(
    State(service): App,
    _: Caller,
    Query(query): Query<EventsQuery>,
) -> Result<Json<Vec<MachineEvent>>> {
    Ok(Json(wait_for_events(&service, None, &query).await?))
}

/// Events of one machine, oldest first.
#[utoipa::path(get, path = "/api/v1/machines/{machine}/events", tag = "machines", params(EventsQuery), responses((status = 200, body = Vec<MachineEvent>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn machine_events(
    State(service): App,
    _: Caller,
    Path(machine): Path<String>,
    Query(query): Query<EventsQuery>,
) -> Result<Json<Vec<MachineEvent>>> {
    let machine = find(&service, &machine).await?;
    Ok(Json(wait_for_events(&service, Some(machine.id), &query).await?))
}

async fn wait_for_events(
    service: &Service,
    machine: Option<uuid::Uuid>,
    query: &EventsQuery,
) -> Result<Vec<MachineEvent>> {
    let limit = query.limit.unwrap_or(200).min(MAX_EVENTS);
    let mut news = service.registry.subscribe();
    let deadline = tokio::time::sleep(Duration::from_secs(query.wait.min(60)));
    tokio::pin!(deadline);
    loop {
        let events = service.registry.store().events(machine, query.after, limit).await?;
        if !events.is_empty() || query.wait == 0 {
            return Ok(events);
        }
        loop {
            tokio::select! {
                () = &mut deadline => return Ok(Vec::new()),
                () = service.stopping.cancelled() => return Ok(Vec::new()),
                event = news.recv() => match event {
                    Ok(event) if machine.is_some_and(|m| m != event.machine) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(Vec::new()),
                    _ => break,
                }
            }
        }
    }
}

/// What the next network boot of a MAC would be told, and why. Works for machines that were never seen, too.
#[utoipa::path(get, path = "/api/v1/machines/{machine}/explain", tag = "machines", responses((status = 200, body = Explanation), (status = "4XX", body = ErrorBody)))]
pub(super) async fn explain(
    State(service): App,
    Extension(connection): Extension<Connection>,
    _: Caller,
    Path(machine): Path<String>,
) -> Result<Json<Explanation>> {
    let mac = match machine.parse::<MacAddr>() {
        Ok(mac) => mac,
        Err(_) => {
            let machine = find(&service, &machine).await?;
            let first = machine.identity.macs.first().copied();
            first.ok_or_else(|| {
                ApiError::conflict(format!("{} has no MAC address yet: nothing can be said of its boot", machine.name))
            })?
        }
    };
    Ok(Json(plane::explain(&service, mac, connection.local).await?))
}

/// Lets a machine in; names it, labels it and assigns it, when asked to.
#[utoipa::path(post, path = "/api/v1/machines/{machine}/accept", tag = "machines", request_body = AcceptRequest, responses((status = 200, body = Machine), (status = "4XX", body = ErrorBody)))]
pub(super) async fn accept(
    State(service): App,
    caller: Caller,
    Path(machine): Path<String>,
    Json(request): Json<AcceptRequest>,
) -> Result<Json<Machine>> {
    caller.require(Role::Operator)?;
    let machine = find(&service, &machine).await?;
    check_labels(&request.labels)?;
    if let Some(assignment) = &request.assignment {
        check_assignment(&service, &machine, assignment)?;
    }
    caller.audit(&service, "machine.accept", &machine.name, "").await?;
    let who = caller.0.name.clone();
    let accept = Input::Accept { name: request.name, labels: request.labels, cause: who.clone() };
    let mut machine = service.registry.apply(machine.id, accept, RowEffects::default()).await?;
    if let Some(assignment) = request.assignment {
        machine =
            service.registry.apply(machine.id, Input::Assign { assignment, cause: who }, RowEffects::default()).await?;
    }
    Ok(Json(machine))
}

/// Says what a machine is to become. Everything that follows from it is rendered and checked before.
#[utoipa::path(post, path = "/api/v1/machines/{machine}/assign", tag = "machines", request_body = Assignment, responses((status = 200, body = Machine), (status = "4XX", body = ErrorBody)))]
pub(super) async fn assign(
    State(service): App,
    caller: Caller,
    Path(machine): Path<String>,
    Json(assignment): Json<Assignment>,
) -> Result<Json<Machine>> {
    caller.require(Role::Operator)?;
    let machine = find(&service, &machine).await?;
    caller.audit(&service, "machine.assign", &machine.name, &assignment.image).await?;
    check_assignment(&service, &machine, &assignment)?;
    let input = Input::Assign { assignment, cause: caller.0.name.clone() };
    Ok(Json(service.registry.apply(machine.id, input, RowEffects::default()).await?))
}

fn check_image(service: &Service, assignment: &Assignment) -> Result<nkd_api::profile::Profile> {
    let image = service.images.image(&assignment.image).map_err(|e| ApiError::unavailable(e.to_string()))?;
    let image = image.ok_or_else(|| {
        ApiError::problems(
            "the assignment is not valid",
            vec![Problem {
                path: "image".into(),
                message: format!("there is no image `{}`: `nkd image list` shows what there is", assignment.image),
            }],
        )
    })?;
    profile::by_name(&image.profile)
        .ok_or_else(|| ApiError::conflict(format!("the image has the unknown profile `{}`", image.profile)))
}

/// A machine that is not there yet, for a trial.
fn stranger(name: Option<&str>, identity: &Identity) -> Machine {
    let mut machine = new_machine(uuid::Uuid::nil(), identity.clone(), time::OffsetDateTime::UNIX_EPOCH);
    machine.name = name.map_or(machine.name, str::to_owned);
    machine
}

/// A key of a machine as a machine itself would show it, or a word on why it cannot be one.
fn usable(path: &str, text: Option<&str>, read: impl Fn(&str) -> Option<String>) -> Result<Option<String>> {
    let Some(text) = text else { return Ok(None) };
    let value = read(text).ok_or_else(|| {
        let message = "this is malformed, or a placeholder that many boards share".into();
        ApiError::problems("the identity is not valid", vec![Problem { path: path.into(), message }])
    })?;
    Ok(Some(value))
}

/// Longest key and longest value of a label.
const LABEL_LIMIT: usize = 128;

fn check_labels(labels: &BTreeMap<String, String>) -> Result<()> {
    let bad = |text: &str| text.len() > LABEL_LIMIT || text.contains(|c: char| c.is_control() || c == ',');
    match labels.iter().find(|(key, value)| key.is_empty() || key.contains('=') || bad(key) || bad(value)) {
        None => Ok(()),
        Some((key, _)) => Err(ApiError::problems(
            "a label is not valid",
            vec![Problem {
                path: format!("labels.{}", key.chars().take(LABEL_LIMIT).collect::<String>()),
                message: format!(
                    "a label has a key without `=`, and at most {LABEL_LIMIT} bytes on each side without `,`"
                ),
            }],
        )),
    }
}

/// Everything that can be wrong with an assignment, before anything is written down.
fn check_assignment(service: &Service, machine: &Machine, assignment: &Assignment) -> Result<()> {
    let image_profile = check_image(service, assignment)?;
    let mut problems = Vec::new();
    if !service.templates.contains(&assignment.template) {
        let known = service.templates.names().collect::<Vec<_>>().join(", ");
        problems.push(Problem {
            path: "template".into(),
            message: format!("there is no template `{}`: known are {known}", assignment.template),
        });
    }
    if let Some(hostname) = &assignment.hostname
        && !hostname.split('.').all(crate::machine::lifecycle::valid_name)
    {
        problems
            .push(Problem { path: "hostname".into(), message: format!("`{hostname}` is not a host name (RFC 1123)") });
    }
    if let Some(disk) = &assignment.install_disk
        && !profile::names_a_disk(disk)
    {
        let disk: String = disk.chars().take(80).collect();
        problems.push(Problem {
            path: "installDisk".into(),
            message: format!(
                "{disk:?} is not the path of a disk: /dev/sda or /dev/disk/by-id/NAME, without `..`, empty parts or white space"
            ),
        });
    }
    for (i, key) in assignment.ssh_authorized_keys.iter().enumerate() {
        if !(key.starts_with("ssh-") || key.starts_with("ecdsa-") || key.starts_with("sk-")) || key.contains('\n') {
            problems.push(Problem {
                path: format!("sshAuthorizedKeys[{i}]"),
                message: "this is not a public key line of OpenSSH".into(),
            });
        }
    }
    for (i, argument) in assignment.kernel_args.iter().enumerate() {
        if argument.is_empty() || argument.contains(|c: char| c.is_whitespace() || c.is_control()) {
            problems
                .push(Problem { path: format!("kernelArgs[{i}]"), message: "one argument without white space".into() });
        }
    }
    for (i, snippet) in assignment.snippets.iter().enumerate() {
        if let Err(error) =
            crate::ignition::check_snippet(snippet, &format!("snippets[{i}]"), &image_profile.ignition_spec)
        {
            problems.push(Problem { path: format!("snippets[{i}]"), message: chain(&error) });
        }
    }
    if !problems.is_empty() {
        return Err(ApiError::problems("the assignment is not valid", problems));
    }
    let mut trial = machine.clone();
    trial.assignment = Some(assignment.clone());
    Ok(config::check_assignment(service, &trial, &image_profile)?)
}

/// Labels a machine, accepted or not. A rule that asks for such a label lets it in.
#[utoipa::path(post, path = "/api/v1/machines/{machine}/labels", tag = "machines", request_body = BTreeMap<String, String>, responses((status = 200, body = Machine), (status = "4XX", body = ErrorBody)))]
pub(super) async fn label(
    State(service): App,
    caller: Caller,
    Path(machine): Path<String>,
    Json(labels): Json<BTreeMap<String, String>>,
) -> Result<Json<Machine>> {
    caller.require(Role::Operator)?;
    let machine = find(&service, &machine).await?;
    let words: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    caller.audit(&service, "machine.label", &machine.name, &words.join(",")).await?;
    let input = Input::Label { labels, cause: caller.0.name.clone() };
    let machine = service.registry.apply(machine.id, input, RowEffects::default()).await?;
    Ok(Json(service.registry.apply_rules(machine).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReinstallQuery {
    /// The running system wipes its disk and restarts at once; otherwise the next network boot is waited for.
    #[serde(default)]
    now: bool,
    /// Also when its cluster cannot spare it.
    #[serde(default)]
    force: bool,
}

/// Raises the install generation: the next network boot installs the machine again. Nothing else does. 409: its cluster cannot
/// spare it: an upgrade goes on, or etcd would lose its majority.
#[utoipa::path(post, path = "/api/v1/machines/{machine}/reinstall", tag = "machines", params(ReinstallQuery), responses((status = 200, body = Machine), (status = "4XX", body = ErrorBody)))]
pub(super) async fn reinstall(
    State(service): App,
    caller: Caller,
    Path(machine): Path<String>,
    Query(query): Query<ReinstallQuery>,
) -> Result<Json<Machine>> {
    caller.require(Role::Operator)?;
    let machine = find(&service, &machine).await?;
    if !query.force
        && let Some(why) = part::may_be_spared(&service, machine.id).await?
    {
        let hint = format!("{}; `--force` installs it again whatever is lost", why.next());
        return Err(ApiError::conflict(why.to_string()).hint(hint));
    }
    let when = match (query.now, query.force) {
        (true, false) => "now",
        (false, false) => "at its next network boot",
        (true, true) => "now, by force",
        (false, true) => "at its next network boot, by force",
    };
    caller.audit(&service, "machine.reinstall", &machine.name, when).await?;
    let input = Input::Reinstall { now: query.now, cause: caller.0.name.clone() };
    Ok(Json(
        service
            .registry
            .apply(machine.id, input, RowEffects { supersede: Supersede::All, ..RowEffects::default() })
            .await?,
    ))
}

/// Serves a machine again that an alarm has stopped.
#[utoipa::path(post, path = "/api/v1/machines/{machine}/release", tag = "machines", responses((status = 200, body = Machine), (status = "4XX", body = ErrorBody)))]
pub(super) async fn release(State(service): App, caller: Caller, Path(machine): Path<String>) -> Result<Json<Machine>> {
    caller.require(Role::Operator)?;
    let machine = find(&service, &machine).await?;
    caller.audit(&service, "machine.release", &machine.name, machine.stopped.as_deref().unwrap_or("")).await?;
    let input = Input::Release { cause: caller.0.name.clone() };
    // What was given out is worthless, but for the token on a disk that holds its system.
    let supersede = match machine.current_boot {
        Some(boot) if machine.installed_generation == Some(machine.generation) => Supersede::AllBut(boot),
        _ => Supersede::All,
    };
    Ok(Json(service.registry.apply(machine.id, input, RowEffects { supersede, ..RowEffects::default() }).await?))
}

/// The rules that accept machines. To viewers, snippets are hidden.
#[utoipa::path(get, path = "/api/v1/rules", tag = "machines", responses((status = 200, body = Vec<AcceptRule>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn rules(State(service): App, caller: Caller) -> Result<Json<Vec<AcceptRule>>> {
    let mut rules = service.registry.store().accept_rules().await?;
    hide_secrets(&caller, rules.iter_mut().filter_map(|rule| rule.assignment.as_mut()));
    Ok(Json(rules))
}

/// Writes a rule, and lets in every waiting machine that fits. Answers with the names of those.
#[utoipa::path(put, path = "/api/v1/rules", tag = "machines", request_body = AcceptRule, responses((status = 200, body = Vec<String>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn save_rule(
    State(service): App,
    caller: Caller,
    Json(rule): Json<AcceptRule>,
) -> Result<Json<Vec<String>>> {
    caller.require(Role::Operator)?;
    let problems = matching::problems(&rule);
    if !problems.is_empty() {
        return Err(ApiError::problems("the rule is not valid", problems));
    }
    check_labels(&rule.labels)?;
    if let Some(assignment) = &rule.assignment {
        check_assignment(&service, &stranger(None, &Identity::default()), assignment)?;
    }
    caller.audit(&service, "rule.save", &rule.name, "").await?;
    service.registry.store().save_rule(&rule).await?;
    Ok(Json(service.registry.rescan_rules().await?))
}

/// Removes a rule. Machines that it let in stay.
#[utoipa::path(delete, path = "/api/v1/rules/{rule}", tag = "machines", responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove_rule(State(service): App, caller: Caller, Path(rule): Path<String>) -> Result<StatusCode> {
    caller.require(Role::Operator)?;
    caller.audit(&service, "rule.remove", &rule, "").await?;
    if service.registry.store().remove_rule(&rule).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found(format!("there is no rule `{rule}`")))
    }
}

/// What a caller below operator may not read is taken out. Every answer that viewers get passes here.
fn hide_secrets<'a>(caller: &Caller, assignments: impl IntoIterator<Item = &'a mut Assignment>) {
    if caller.0.role < Role::Operator {
        assignments.into_iter().for_each(assignment::hide_secrets);
    }
}

async fn find(service: &Service, text: &str) -> Result<Machine> {
    let Ok(selector) = text.parse::<Selector>();
    Ok(service.registry.find(&selector).await?)
}
