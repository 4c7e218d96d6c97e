//! The life of a machine: `step(machine, input, now) -> (machine, events)`. Pure.
//!
//! ```text
//! Discovered -> Assigned -> Booting -> Installing -> Installed -> FirstBoot -> Enrolled -> Joining -> Ready
//!      ^            ^           |            |            |            |                               |
//!      |            +-----------+------------+------------+------------+--- Reinstall (generation+1) --+
//!      +--- nothing assigned            Failed(step, reason) from each; a new boot tries again
//! ```
//! Invariants, each held by a property test: the generation only ever rises, and only by `Assign` (0 to 1), `Unassign`
//! and `Reinstall`; `installed_generation` never exceeds it; a report about another generation changes nothing.

use nkd_api::agent::{KubeadmState, Purpose, ReportEvent};
use nkd_api::machine::{Assignment, Identity, Machine, Phase, Step, StepState};
use std::collections::BTreeMap;
use std::net::IpAddr;
use time::OffsetDateTime;
use uuid::Uuid;

use super::identity;
use crate::store::NewEvent;

mod waiting;

pub use waiting::{SILENT_BOOT, SILENT_INSTALL, is_called_silent, is_news, is_silent};
use waiting::{is_its_word, running, served, silent};

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A packet or request came from it.
    Seen {
        /// What it showed of itself.
        identity: Identity,
        /// Where it spoke from, if it has an address.
        address: Option<IpAddr>,
        /// `dhcp`, `tftp`, `boot`.
        cause: &'static str,
        /// The packet came from an operating system, not from firmware.
        from_os: bool,
    },
    /// It was let in.
    Accept {
        /// New name.
        name: Option<String>,
        /// Labels to set.
        labels: BTreeMap<String, String>,
        /// User or rule.
        cause: String,
    },
    /// A rule let it in, and perhaps said what it is to become: one step, so that no boot falls between the two.
    LetIn {
        /// Labels to set.
        labels: BTreeMap<String, String>,
        /// What it is to become.
        assignment: Option<Assignment>,
        /// Rule.
        cause: String,
    },
    /// It was labelled, let in or not.
    Label {
        /// Labels to set.
        labels: BTreeMap<String, String>,
        /// User.
        cause: String,
    },
    /// It was told what to become.
    Assign {
        /// What.
        assignment: Assignment,
        /// User or rule.
        cause: String,
    },
    /// Install it again.
    Reinstall {
        /// Its running system wipes its disk and restarts, so that a machine that boots its disk first comes to the network.
        now: bool,
        /// User.
        cause: String,
    },
    /// It is nothing any more: back to the pool. A system that is on its disk is wiped.
    Unassign {
        /// User or cluster.
        cause: String,
    },
    /// Serve it again after an alarm.
    Release {
        /// User.
        cause: String,
    },
    /// It took a boot script.
    Booted(BootTaken),
    /// Ignition fetched the configuration of this boot.
    ConfigFetched {
        /// Purpose of the boot.
        purpose: Purpose,
        /// Its generation.
        generation: u32,
        /// The boot.
        boot: Uuid,
        /// Who took it.
        from: IpAddr,
    },
    /// Its agent bought a certificate.
    Enrolled {
        /// Purpose of the certificate.
        purpose: Purpose,
        /// Its generation.
        generation: u32,
        /// The network boot that it goes back to.
        boot: Uuid,
    },
    /// Its agent reported.
    Reported(ReportEvent),
    /// Its cluster waits for kubeadm to run on it.
    Joining {
        /// Cluster.
        cluster: String,
    },
    /// Its node is Ready in its cluster, or no longer so.
    NodeReady {
        /// Cluster.
        cluster: String,
        /// Whether.
        ready: bool,
    },
    /// It was refused something that it may have after another boot.
    Refused {
        /// What, and why.
        reason: String,
    },
    /// It asked for an address or something to boot, and there is none for it.
    NotServed {
        /// What there is not, why, and what to do: `no address: ...`, `nothing to boot: ...`.
        reason: String,
    },
    /// It was given what it asked DHCP for.
    Served,
    /// Nothing came from it; said when that is longer than the step that runs may be silent.
    Silent {
        /// Since when the service listens: what was said before, nobody may have heard.
        listening_since: OffsetDateTime,
    },
    /// Something that must not happen did. The machine gets nothing more until an operator releases it.
    Alarm {
        /// What.
        reason: String,
    },
}

/// Which boot script it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootTaken {
    /// The discovery image.
    Discovery,
    /// The live system that installs this generation.
    LiveInstall {
        /// Generation.
        generation: u32,
    },
    /// Its own disk.
    LocalDisk,
    /// Nothing; it will ask again.
    NotNow {
        /// Why.
        reason: String,
    },
}

/// The input does not fit where the machine stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not let in yet.
    #[error("the machine `{0}` is not accepted: run `nkd machine accept {0}` first")]
    NotAccepted(String),
    /// Nothing to install.
    #[error("nothing is assigned to the machine `{0}`: run `nkd machine assign {0} --image NAME` first")]
    NothingAssigned(String),
    /// A name that cannot be.
    #[error("`{}` cannot be a machine's name: {NAME_RULE}", .0.chars().take(80).collect::<String>())]
    BadName(String),
    /// A report or an enrollment about another generation than the wanted one.
    #[error("generation {got} of the machine `{name}` is over: it is at generation {wanted}")]
    OldGeneration {
        /// Machine.
        name: String,
        /// Generation in the message.
        got: u32,
        /// Generation of the record.
        wanted: u32,
    },
    /// A live boot of a generation that is on the disk already.
    #[error("generation {generation} of the machine `{name}` is installed already")]
    Installed {
        /// Machine.
        name: String,
        /// Generation.
        generation: u32,
    },
    /// Another boot than the one whose configuration was taken last.
    #[error("this boot of the machine `{0}` is over: start it again")]
    OtherBoot(String),
}

/// What a name may look like.
pub const NAME_RULE: &str =
    "a name has 1 to 63 of a-z, 0-9 and -, and starts and ends with a letter or digit (RFC 1123)";

/// True for a host name label of RFC 1123.
#[must_use]
pub fn valid_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| inner(b) || b == b'-')
        && name.bytes().next().is_some_and(inner)
        && name.bytes().last().is_some_and(inner)
}

/// The record of a machine that was never seen before.
#[must_use]
pub fn new_machine(id: Uuid, identity: Identity, now: OffsetDateTime) -> Machine {
    let key = identity.macs.first().map(|m| m.to_string().replace(':', ""));
    let name = format!("m-{}", key.unwrap_or_else(|| id.simple().to_string()[20..].to_owned()));
    Machine {
        id,
        name,
        labels: BTreeMap::new(),
        identity,
        address: None,
        accepted: false,
        assignment: None,
        generation: 0,
        installed_generation: None,
        wipe_generation: None,
        current_boot: None,
        phase: Phase::Discovered,
        phase_since: now,
        waiting: Some("not accepted yet".into()),
        stopped: None,
        steps: Vec::new(),
        facts: None,
        last_seen: now,
        created_at: now,
    }
}

/// One step of the life. An input that changes nothing worth keeping gives no events.
pub fn step(mut machine: Machine, input: Input, now: OffsetDateTime) -> Result<(Machine, Vec<NewEvent>), Refused> {
    let mut log = Log { events: Vec::new(), now };
    if let Input::Silent { listening_since } = input {
        silent(&mut machine, listening_since, &mut log);
        return Ok((machine, log.events));
    }
    machine.last_seen = now.max(machine.last_seen);
    if is_its_word(&input) && is_called_silent(&machine) {
        machine.waiting = None;
    }
    match input {
        Input::Seen { identity: sighting, address, cause, from_os } => {
            seen(&mut machine, &sighting, address, cause, from_os, &mut log);
        }
        Input::Accept { name, labels, cause } => accept(&mut machine, name, labels, &cause, &mut log)?,
        Input::LetIn { labels, assignment, cause } => {
            accept(&mut machine, None, labels, &cause, &mut log)?;
            if let Some(assignment) = assignment {
                assign(&mut machine, assignment, &cause, &mut log)?;
            }
        }
        Input::Label { labels, cause } => label(&mut machine, labels, &cause, &mut log),
        Input::Assign { assignment, cause } => assign(&mut machine, assignment, &cause, &mut log)?,
        Input::Reinstall { now: at_once, cause } => {
            if machine.assignment.is_none() {
                return Err(Refused::NothingAssigned(machine.name));
            }
            machine.wipe_generation = at_once.then_some(machine.generation);
            machine.generation += 1;
            machine.current_boot = None;
            machine.steps.clear();
            machine.waiting = Some("waits for a network boot".into());
            let message = format!("generation {} is to be installed at the next network boot", machine.generation);
            log.say("reinstall", message, &cause);
            log.phase(&mut machine, Phase::Assigned, &cause);
        }
        // Told twice, it counts once.
        Input::Unassign { .. } if machine.assignment.is_none() => {}
        Input::Unassign { cause } => {
            machine.assignment = None;
            machine.wipe_generation = machine.installed_generation;
            // Certificates and tokens of what it was are over.
            machine.generation += 1;
            machine.steps.clear();
            machine.waiting = Some(match machine.wipe_generation {
                Some(_) => "its disk is to be wiped, by its own system".into(),
                None => "nothing is assigned yet".into(),
            });
            log.say("unassigned", "back to the pool", &cause);
            log.phase(&mut machine, Phase::Discovered, &cause);
        }
        Input::Release { cause } => {
            if let Some(reason) = machine.stopped.take() {
                machine.waiting = None;
                log.say("released", format!("served again after: {reason}"), &cause);
                if machine.installed_generation != Some(machine.generation) {
                    // Nobody knows which of two parties holds the certificates of this boot: it is begun again.
                    machine.current_boot = None;
                }
            }
        }
        Input::Booted(taken) => {
            if let BootTaken::LiveInstall { generation } = taken {
                wanted_generation(&machine, generation)?;
            }
            booted(&mut machine, taken, &mut log);
        }
        Input::ConfigFetched { purpose, generation, boot, from } => {
            live_generation(&machine, purpose, generation)?;
            if purpose != Purpose::Discovery && machine.installed_generation == Some(generation) {
                return Err(Refused::Installed { name: machine.name, generation });
            }
            machine.current_boot = Some(boot);
            finish(&mut machine, "boot", now, "");
            begin(&mut machine, "live", now, "the live system starts");
            let message = format!("Ignition took the {} configuration, from {from}", purpose.as_str());
            log.say("config", message, "ignition");
        }
        Input::Enrolled { purpose, generation, boot } => {
            if machine.current_boot != Some(boot) {
                return Err(Refused::OtherBoot(machine.name));
            }
            enrolled(&mut machine, purpose, generation, &mut log)?;
        }
        Input::Reported(event) => reported(&mut machine, event, &mut log)?,
        Input::Joining { cluster } => {
            machine.waiting = None;
            begin(&mut machine, "kubeadm", now, "ordered");
            log.say("kubeadm", format!("kubeadm is to make it part of {cluster}"), "cluster");
            log.phase(&mut machine, Phase::Joining, "cluster");
        }
        Input::NodeReady { cluster, ready } => {
            let phase = if ready { Phase::Ready } else { Phase::Joining };
            if machine.phase != phase {
                let word = if ready { "is Ready" } else { "is not Ready any more" };
                log.say("node", format!("its node in {cluster} {word}"), "cluster");
            }
            log.phase(&mut machine, phase, "cluster");
        }
        Input::Refused { reason } => {
            if machine.waiting.as_deref() != Some(&reason) {
                log.say("refused", reason.clone(), "service");
                machine.waiting = Some(reason);
            }
        }
        // Asked for every few seconds: said once for each reason.
        Input::NotServed { reason } => {
            if machine.waiting.as_deref() != Some(&reason) {
                log.say("not-served", reason.clone(), "dhcp");
                machine.waiting = Some(reason);
            }
        }
        Input::Served => served(&mut machine),
        // Said once: whoever goes on trying must not fill the history.
        Input::Alarm { .. } if machine.stopped.is_some() => {}
        Input::Alarm { reason } => {
            machine.stopped = Some(reason.clone());
            machine.waiting =
                Some(format!("stopped: {reason}; run `nkd machine release {}` after looking into it", machine.name));
            log.say("alarm", reason, "service");
        }
        // Dealt with above: it is the one input that is no sign of life.
        Input::Silent { .. } => {}
    }
    Ok((machine, log.events))
}

struct Log {
    events: Vec<NewEvent>,
    now: OffsetDateTime,
}

impl Log {
    fn say(&mut self, kind: &'static str, message: impl Into<String>, cause: &str) {
        self.events.push(NewEvent { kind, message: message.into(), cause: cause.to_owned() });
    }

    fn phase(&mut self, machine: &mut Machine, phase: Phase, cause: &str) {
        if machine.phase != phase {
            self.say("phase", format!("{} -> {}", machine.phase.name(), phase.name()), cause);
            machine.phase = phase;
            machine.phase_since = self.now;
        }
    }
}

fn seen(
    machine: &mut Machine,
    sighting: &Identity,
    address: Option<IpAddr>,
    cause: &'static str,
    from_os: bool,
    log: &mut Log,
) {
    let knew = machine.identity.clone();
    if identity::learn(&mut machine.identity, sighting) {
        let mut news = Vec::new();
        let macs: Vec<String> =
            machine.identity.macs.iter().filter(|m| !knew.macs.contains(m)).map(ToString::to_string).collect();
        if !macs.is_empty() {
            news.push(format!("MAC {}", macs.join(", ")));
        }
        for (name, before, after) in [
            ("UUID", &knew.uuid, &machine.identity.uuid),
            ("serial", &knew.serial, &machine.identity.serial),
            ("vendor", &knew.vendor, &machine.identity.vendor),
            ("product", &knew.product, &machine.identity.product),
            ("architecture", &knew.architecture, &machine.identity.architecture),
        ] {
            if let (true, Some(value)) = (before != after, after) {
                news.push(format!("{name} {value}"));
            }
        }
        if knew.firmware != machine.identity.firmware {
            news.push(format!("firmware {:?}", machine.identity.firmware).to_lowercase());
        }
        log.say("identity", format!("learned {}", news.join(", ")), cause);
    }
    if address.is_some() && machine.address != address {
        machine.address = address;
        if let Some(address) = address {
            log.say("address", format!("speaks from {address}"), cause);
        }
    }
    if from_os && machine.waiting.as_deref().is_some_and(|waiting| waiting.starts_with("nothing to boot: ")) {
        served(machine);
    }
    if from_os && machine.phase == Phase::Installed {
        first_boot(machine, cause, log);
    }
}

fn accept(
    machine: &mut Machine,
    name: Option<String>,
    labels: BTreeMap<String, String>,
    cause: &str,
    log: &mut Log,
) -> Result<(), Refused> {
    if let Some(name) = name {
        if !valid_name(&name) {
            return Err(Refused::BadName(name));
        }
        if name != machine.name {
            log.say("named", format!("{} is now {name}", machine.name), cause);
            machine.name = name;
        }
    }
    label(machine, labels, cause, log);
    if !machine.accepted {
        machine.accepted = true;
        log.say("accepted", "let in", cause);
        if machine.assignment.is_none() {
            machine.waiting = Some("nothing is assigned yet".into());
        }
    }
    Ok(())
}

fn label(machine: &mut Machine, labels: BTreeMap<String, String>, cause: &str, log: &mut Log) {
    for (key, value) in labels {
        if machine.labels.get(&key) != Some(&value) {
            log.say("label", format!("{key}={value}"), cause);
            machine.labels.insert(key, value);
        }
    }
}

fn assign(machine: &mut Machine, assignment: Assignment, cause: &str, log: &mut Log) -> Result<(), Refused> {
    if !machine.accepted {
        return Err(Refused::NotAccepted(machine.name.clone()));
    }
    if machine.assignment.as_ref() == Some(&assignment) {
        return Ok(());
    }
    log.say("assigned", format!("image {}, template {}", assignment.image, assignment.template), cause);
    machine.assignment = Some(assignment);
    if machine.generation == 0 {
        machine.generation = 1;
    }
    if machine.installed_generation == Some(machine.generation) {
        machine.waiting =
            Some(format!("the new assignment takes effect with `nkd machine reinstall {}`", machine.name));
    } else {
        machine.steps.clear();
        machine.waiting = Some("waits for a network boot".into());
        log.phase(machine, Phase::Assigned, cause);
    }
    Ok(())
}

fn booted(machine: &mut Machine, taken: BootTaken, log: &mut Log) {
    let now = log.now;
    match taken {
        BootTaken::Discovery => {
            new_boot(machine, log);
            begin(machine, "boot", now, "took the discovery script");
            log.say("boot-script", "discovery image", "boot");
        }
        BootTaken::LiveInstall { generation } => {
            new_boot(machine, log);
            machine.waiting = None;
            begin(machine, "boot", now, "took the install script");
            log.say("boot-script", format!("live install of generation {generation}"), "boot");
            log.phase(machine, Phase::Booting, "boot");
        }
        BootTaken::LocalDisk => {
            // What kubeadm began before a restart goes on after it.
            let again = running(machine).is_some_and(|step| step.name == "first-boot");
            if again {
                break_off(machine, log);
            }
            if again || machine.phase == Phase::Installed {
                first_boot(machine, "boot", log);
            }
            log.say("boot-script", "local disk", "boot");
        }
        BootTaken::NotNow { reason } => {
            // A machine asks every few seconds: said once for each reason.
            if machine.waiting.as_deref() != Some(&reason) {
                log.say("boot-script", format!("not now: {reason}"), "boot");
                machine.waiting = Some(reason);
            }
        }
    }
}

/// A boot begins with no steps, but for the one that broke off.
fn new_boot(machine: &mut Machine, log: &mut Log) {
    break_off(machine, log);
    machine.steps.retain(is_broken_off);
}

/// The step that runs ended without a word: the machine asks for a boot script again. It is kept, in front, as failed; one
/// of them only.
fn break_off(machine: &mut Machine, log: &mut Log) {
    let Some(index) = machine.steps.iter().rposition(|step| step.state == StepState::Running) else { return };
    let mut step = machine.steps.remove(index);
    let said = match (step.name.as_str(), step.detail.as_str()) {
        (_, "") => String::new(),
        ("install", detail) => format!(" at {detail}"),
        (_, detail) => format!(": {detail}"),
    };
    // A discovery boot belongs to no generation.
    let generation = machine.assignment.as_ref().map(|_| format!(" (generation {})", machine.generation));
    step.detail = format!("{}{BROKE_OFF}{said}{}", step.name, generation.unwrap_or_default());
    step.state = StepState::Failed;
    step.ended_at = Some(log.now);
    log.say("broke-off", step.detail.clone(), "boot");
    // Firmware asks again at once when it cannot load what the script names: that hides nothing that went further.
    if step.name != "boot" || !machine.steps.iter().any(is_broken_off) {
        machine.steps.retain(|step| !is_broken_off(step));
        machine.steps.insert(0, step);
    }
}

/// What follows the name in the detail of a step that broke off.
const BROKE_OFF: &str = " broke off";

/// True for the step of an earlier boot that is kept.
fn is_broken_off(step: &Step) -> bool {
    step.state == StepState::Failed
        && step.detail.strip_prefix(&step.name).is_some_and(|rest| rest.starts_with(BROKE_OFF))
}

fn first_boot(machine: &mut Machine, cause: &str, log: &mut Log) {
    finish(machine, "restart", log.now, "");
    begin(machine, "first-boot", log.now, "starts from its disk");
    log.phase(machine, Phase::FirstBoot, cause);
}

fn enrolled(machine: &mut Machine, purpose: Purpose, generation: u32, log: &mut Log) -> Result<(), Refused> {
    let now = log.now;
    live_generation(machine, purpose, generation)?;
    match purpose {
        Purpose::Discovery => {
            finish(machine, "live", now, "");
            log.say("enrolled", "the live system waits and tells its facts", "agent");
        }
        Purpose::Install => {
            finish(machine, "live", now, "");
            begin(machine, "install", now, "the agent is ready");
            log.say("enrolled", "the live system may install", "agent");
        }
        Purpose::Node => {
            // The agent lets nothing boot from the disk but a verified image, and only the live system of the current boot
            // was given this token: power was cut before it could report the end.
            installed(machine, generation, log);
            finish(machine, "restart", now, "");
            finish(machine, "first-boot", now, "");
            begin(machine, "enroll", now, "");
            finish(machine, "enroll", now, "client certificate issued");
            machine.waiting = None;
            log.say("enrolled", format!("node of generation {generation}"), "agent");
            log.phase(machine, Phase::Enrolled, "agent");
        }
    }
    Ok(())
}

fn reported(machine: &mut Machine, event: ReportEvent, log: &mut Log) -> Result<(), Refused> {
    let now = log.now;
    match event {
        ReportEvent::Heartbeat { .. } => {}
        ReportEvent::Facts { facts } => {
            let sighting = identity::from_facts(&facts);
            identity::learn(&mut machine.identity, &sighting);
            let changed: bool = machine.facts.as_ref().is_none_or(|old| {
                (old.os_version.as_str(), &old.booted_deployment, old.memory_bytes, old.cpus, old.disks.len())
                    != (
                        facts.os_version.as_str(),
                        &facts.booted_deployment,
                        facts.memory_bytes,
                        facts.cpus,
                        facts.disks.len(),
                    )
            });
            if changed {
                let message = format!(
                    "{} cpus, {} MiB, {} disks, {} {}",
                    facts.cpus,
                    facts.memory_bytes >> 20,
                    facts.disks.len(),
                    facts.os,
                    facts.os_version
                );
                log.say("facts", message, "agent");
            }
            if let Some(address) = identity::address_of(&machine.identity, &facts, machine.address) {
                machine.address = Some(address);
                log.say("address", format!("has {address}"), "agent");
            }
            machine.facts = Some(*facts);
        }
        ReportEvent::InstallProgress { generation, step, percent } => {
            wanted_generation(machine, generation)?;
            if machine.installed_generation == Some(generation) {
                // It was overtaken by the report of the end.
                return Ok(());
            }
            let detail = format!("{step} {percent}%");
            if machine.phase != Phase::Installing {
                log.phase(machine, Phase::Installing, "agent");
            }
            begin(machine, "install", now, &detail);
        }
        ReportEvent::Wiped { generation } => {
            if machine.wipe_generation.is_some_and(|wipe| generation <= wipe) {
                (machine.wipe_generation, machine.installed_generation) = (None, None);
                machine.waiting = Some(match machine.assignment {
                    Some(_) => "waits for a network boot".into(),
                    None => "nothing is assigned yet".into(),
                });
                log.say("wiped", format!("the system of generation {generation} boots no more"), "agent");
            }
        }
        ReportEvent::Installed { generation } => {
            wanted_generation(machine, generation)?;
            installed(machine, generation, log);
        }
        ReportEvent::Kubeadm { progress, .. } => kubeadm(machine, progress, log),
        // Its cluster keeps them.
        ReportEvent::Certificates { .. } => {}
        ReportEvent::Failed { generation, mut step, mut reason, log_tail } => {
            wanted_generation(machine, generation)?;
            step.truncate(step.floor_char_boundary(REASON));
            reason.truncate(reason.floor_char_boundary(REASON));
            fail(machine, &step, now, &reason);
            let mut message = format!("{step} failed: {reason}");
            let tail = last_chars(log_tail.trim_end(), LOG_TAIL);
            if !tail.trim().is_empty() {
                message = format!("{message}\n{tail}");
            }
            log.say("failed", message, "agent");
            log.phase(machine, Phase::Failed { step, reason: reason.clone() }, "agent");
            machine.waiting = Some(reason);
        }
    }
    Ok(())
}

/// kubeadm's progress on this machine. What it means for the cluster is the cluster's business.
fn kubeadm(machine: &mut Machine, progress: KubeadmState, log: &mut Log) {
    match progress {
        KubeadmState::Running { mut step } => {
            step.truncate(step.floor_char_boundary(REASON));
            begin(machine, "kubeadm", log.now, &step);
        }
        KubeadmState::Done => {
            finish(machine, "kubeadm", log.now, "");
            machine.waiting = None;
            log.say("kubeadm", "kubeadm is done", "agent");
        }
        KubeadmState::Failed { step, mut reason, log_tail } => {
            reason.truncate(reason.floor_char_boundary(REASON));
            fail(machine, &step, log.now, &reason);
            let tail = last_chars(log_tail.trim_end(), LOG_TAIL);
            log.say("kubeadm", format!("kubeadm failed at {step}: {reason}\n{tail}"), "agent");
            machine.waiting = Some(reason);
        }
    }
}

fn installed(machine: &mut Machine, generation: u32, log: &mut Log) {
    if machine.installed_generation != Some(generation) {
        machine.installed_generation = Some(generation);
        machine.wipe_generation = None;
        finish(machine, "install", log.now, "digest verified");
        begin(machine, "restart", log.now, "restarts from its disk");
        log.say("installed", format!("generation {generation} is on the disk, digest verified"), "agent");
        log.phase(machine, Phase::Installed, "agent");
    }
}

/// Bytes of a log's end that are kept.
const LOG_TAIL: usize = 4096;
/// Bytes of a reason that are kept.
const REASON: usize = 512;

/// The last so many bytes of a text, in whole characters.
fn last_chars(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

fn wanted_generation(machine: &Machine, got: u32) -> Result<(), Refused> {
    if machine.generation == got {
        Ok(())
    } else {
        Err(Refused::OldGeneration { name: machine.name.clone(), got, wanted: machine.generation })
    }
}

/// A discovery boot belongs to no generation; every other one to the wanted one.
fn live_generation(machine: &Machine, purpose: Purpose, generation: u32) -> Result<(), Refused> {
    if purpose == Purpose::Discovery { Ok(()) } else { wanted_generation(machine, generation) }
}

fn begin(machine: &mut Machine, name: &str, now: OffsetDateTime, detail: &str) {
    match machine.steps.iter_mut().find(|s| s.name == name && !is_broken_off(s)) {
        Some(step) => {
            if step.state != StepState::Running {
                step.state = StepState::Running;
                step.started_at = now;
                step.ended_at = None;
            }
            step.detail = detail.to_owned();
        }
        None => machine.steps.push(Step {
            name: name.to_owned(),
            state: StepState::Running,
            started_at: now,
            ended_at: None,
            detail: detail.to_owned(),
        }),
    }
}

fn finish(machine: &mut Machine, name: &str, now: OffsetDateTime, detail: &str) {
    if let Some(step) = machine.steps.iter_mut().find(|s| s.name == name && s.state == StepState::Running) {
        step.state = StepState::Done;
        step.ended_at = Some(now);
        step.detail = detail.to_owned();
    }
}

fn fail(machine: &mut Machine, name: &str, now: OffsetDateTime, reason: &str) {
    let running = machine.steps.iter_mut().rev().find(|s| s.state == StepState::Running);
    match running {
        Some(step) => {
            step.state = StepState::Failed;
            step.ended_at = Some(now);
            step.detail = format!("{name}: {reason}");
        }
        None => machine.steps.push(Step {
            name: name.to_owned(),
            state: StepState::Failed,
            started_at: now,
            ended_at: Some(now),
            detail: reason.to_owned(),
        }),
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
