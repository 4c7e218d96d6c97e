//! Why a machine waits though nobody keeps it waiting: it went silent on its way, or DHCP has nothing for it. Pure.

use nkd_api::machine::{Machine, Phase, Step, StepState};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::{Input, Log};

/// How long a machine may be silent while it installs: it tells its progress, and that it is alive, all the time.
pub const SILENT_INSTALL: Duration = Duration::minutes(2);
/// The same for firmware, the start of the live system, the restart and the first boot: nothing on it speaks to us then.
pub const SILENT_BOOT: Duration = Duration::minutes(10);
/// How the reason of a machine that went silent begins.
const NOT_HEARD: &str = "not heard from since ";

/// True when the machine itself speaks, and not an operator or a cluster about it.
pub(super) fn is_its_word(input: &Input) -> bool {
    matches!(
        input,
        Input::Seen { .. }
            | Input::Booted(_)
            | Input::ConfigFetched { .. }
            | Input::Enrolled { .. }
            | Input::Reported(_)
            | Input::Refused { .. }
            | Input::NotServed { .. }
            | Input::Served
            | Input::Alarm { .. }
    )
}

/// True while the machine is shown as one that went silent.
#[must_use]
pub fn is_called_silent(machine: &Machine) -> bool {
    machine.waiting.as_deref().is_some_and(|waiting| waiting.starts_with(NOT_HEARD))
}

/// True when an answer of DHCP changes the record.
#[must_use]
pub fn is_news(machine: &Machine, answer: &Input) -> bool {
    match answer {
        Input::NotServed { reason } => machine.waiting.as_deref() != Some(reason),
        Input::Served => is_not_served(machine),
        _ => true,
    }
}

fn is_not_served(machine: &Machine) -> bool {
    let begins = |waiting: &str| waiting.starts_with("no address: ") || waiting.starts_with("nothing to boot: ");
    machine.waiting.as_deref().is_some_and(begins)
}

/// It waits again for what it waited for before, if anything.
pub(super) fn served(machine: &mut Machine) {
    if is_not_served(machine) {
        machine.waiting = match (machine.accepted, &machine.assignment, &machine.phase) {
            (false, ..) => Some("not accepted yet".into()),
            (true, None, _) => Some("nothing is assigned yet".into()),
            (true, Some(_), Phase::Assigned) => Some("waits for a network boot".into()),
            (true, Some(_), _) => None,
        };
    }
}

pub(super) fn running(machine: &Machine) -> Option<&Step> {
    machine.steps.iter().rev().find(|step| step.state == StepState::Running)
}

/// True when a machine on its way has said nothing for longer than its step allows, and that was not told yet.
#[must_use]
pub fn is_silent(machine: &Machine, listening_since: OffsetDateTime, now: OffsetDateTime) -> bool {
    let on_its_way = matches!(machine.phase, Phase::Booting | Phase::Installing | Phase::Installed | Phase::FirstBoot);
    if !on_its_way || machine.stopped.is_some() || is_called_silent(machine) {
        return false;
    }
    let limit = match running(machine) {
        Some(step) if step.name == "install" => SILENT_INSTALL,
        _ => SILENT_BOOT,
    };
    now - machine.last_seen.max(listening_since) > limit
}

/// It says so and does nothing: the machine may be at work, and only its console knows.
pub(super) fn silent(machine: &mut Machine, listening_since: OffsetDateTime, log: &mut Log) {
    if !is_silent(machine, listening_since, log.now) {
        return;
    }
    let at = machine.last_seen.to_offset(time::UtcOffset::UTC);
    let at = at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default();
    let reason = format!("{NOT_HEARD}{at}: is it on? its console says more");
    let message = match running(machine) {
        Some(step) => format!("{reason}; the last of it was {}: {}", step.name, step.detail),
        None => reason.clone(),
    };
    log.say("silent", message, "service");
    machine.waiting = Some(reason);
}
