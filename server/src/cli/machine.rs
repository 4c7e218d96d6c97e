//! `nkd machine ...`
#![expect(clippy::disallowed_methods, reason = "the edge where clock and files come in")]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use nkd_api::MacAddr;
use nkd_api::machine::{
    AcceptRequest, Assignment, DeclareRequest, Explanation, Identity, LocalBoot, Machine, MachineEvent, StepState,
};
use reqwest::Method;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::CliError;
use super::client::{Client, segment};
use super::context::ContextArgs;
use super::output::{OutputArgs, age, bytes, clock, say, table};
use crate::trace::Trace;

#[derive(Debug, Subcommand)]
pub(super) enum MachineCommand {
    /// List machines
    List {
        /// Only machines with these labels: rack=7,row=2
        #[arg(short = 'l', long, value_name = "LABELS", default_value = "")]
        label: String,
        /// Only machines in this phase
        #[arg(long)]
        phase: Option<String>,
        /// Go on showing changes until interrupted
        #[arg(short, long)]
        watch: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one machine with its steps
    Show {
        /// Name, MAC, UUID or serial
        machine: String,
        /// Go on showing changes until interrupted
        #[arg(short, long)]
        watch: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show what happened to a machine, or to all
    Events {
        /// Name, MAC, UUID or serial [default: all machines]
        machine: Option<String>,
        /// The newest so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Go on showing events until interrupted
        #[arg(short, long)]
        watch: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say what the next network boot of a machine would be told, and why
    Explain {
        /// MAC (of any machine, known or not), or name, UUID, serial
        machine: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Write a machine down before its first packet
    Declare {
        /// Name
        name: String,
        /// MAC address; may be repeated
        #[arg(long)]
        mac: Vec<MacAddr>,
        /// SMBIOS UUID
        #[arg(long)]
        uuid: Option<String>,
        /// Serial number
        #[arg(long)]
        serial: Option<String>,
        /// Label KEY=VALUE; may be repeated
        #[arg(long = "set-label", value_name = "KEY=VALUE", value_parser = super::name_value)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        assign: AssignArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Let machines in: one, or all that carry a label
    Accept {
        /// Name, MAC, UUID or serial
        #[arg(required_unless_present = "label")]
        machine: Option<String>,
        /// All machines with these labels
        #[arg(short = 'l', long, value_name = "LABELS", conflicts_with_all = ["machine", "name"])]
        label: Option<String>,
        /// New name
        #[arg(long)]
        name: Option<String>,
        /// Label KEY=VALUE to set; may be repeated
        #[arg(long = "set-label", value_name = "KEY=VALUE", value_parser = super::name_value)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        assign: AssignArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say what a machine is to become
    Assign {
        /// Name, MAC, UUID or serial
        machine: String,
        #[command(flatten)]
        assign: AssignArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Install a machine again at its next network boot; its disk is overwritten
    Reinstall {
        /// Name, MAC, UUID or serial
        machine: String,
        /// Its running system wipes its disk and restarts at once, so that a machine that boots its disk first comes too
        #[arg(long)]
        now: bool,
        /// Also when its cluster cannot spare it: an upgrade goes on, or etcd would lose its majority
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Serve a machine again that an alarm has stopped
    Release {
        /// Name, MAC, UUID or serial
        machine: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Forget a machine and its history; its next packet makes a new record
    Forget {
        /// Name, MAC, UUID or serial
        #[arg(required_unless_present = "unaccepted", conflicts_with = "unaccepted")]
        machine: Option<String>,
        /// All machines that nobody has accepted or labelled
        #[arg(long, conflicts_with = "force")]
        unaccepted: bool,
        /// Also when its disk holds its system
        #[arg(long)]
        force: bool,
    },
    /// Label a machine, accepted or not; a rule that asks for the label lets it in
    Label {
        /// Name, MAC, UUID or serial
        machine: String,
        /// KEY=VALUE
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = super::name_value)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// An assignment in flags, or in a file.
#[derive(Debug, Clone, Args)]
pub(super) struct AssignArgs {
    /// Image to install
    #[arg(long)]
    image: Option<String>,
    /// Ignition template [default: node]
    #[arg(long, requires = "image")]
    template: Option<String>,
    /// Disk to install to, /dev/vda [default: the only one]
    #[arg(long, requires = "image")]
    disk: Option<String>,
    /// Host name [default: the machine's name]
    #[arg(long, requires = "image")]
    hostname: Option<String>,
    /// File of SSH public keys for the default user
    #[arg(long, requires = "image", value_name = "FILE")]
    ssh_keys: Option<PathBuf>,
    /// Kernel argument of the installed system; may be repeated
    #[arg(long = "karg", requires = "image")]
    kernel_args: Vec<String>,
    /// Butane-shaped file merged over the template; may be repeated
    #[arg(long = "snippet", requires = "image", value_name = "FILE")]
    snippets: Vec<PathBuf>,
    /// How this firmware is sent to its disk: exit, sanboot or notfound
    #[arg(long, requires = "image", value_name = "HOW", value_parser = local_boot)]
    local_boot: Option<LocalBoot>,
    /// YAML or JSON file with the whole assignment
    #[arg(long, conflicts_with = "image", value_name = "FILE")]
    assignment: Option<PathBuf>,
}

fn local_boot(text: &str) -> Result<LocalBoot, String> {
    match text {
        "exit" => Ok(LocalBoot::Exit),
        "sanboot" => Ok(LocalBoot::Sanboot),
        "notfound" => Ok(LocalBoot::NotFound),
        other => Err(format!("`{other}` is not exit, sanboot or notfound")),
    }
}

impl AssignArgs {
    pub(super) fn assignment(&self) -> Result<Option<Assignment>, CliError> {
        if let Some(path) = &self.assignment {
            return Ok(Some(read_document(path)?));
        }
        let Some(image) = self.image.clone() else { return Ok(None) };
        let keys = match &self.ssh_keys {
            Some(path) => read(path)?
                .lines()
                .map(str::trim)
                .filter(|l| !l.is_empty() && !l.starts_with('#'))
                .map(str::to_owned)
                .collect(),
            None => Vec::new(),
        };
        Ok(Some(Assignment {
            image,
            template: self.template.clone().unwrap_or_else(|| "node".into()),
            install_disk: self.disk.clone(),
            hostname: self.hostname.clone(),
            ssh_authorized_keys: keys,
            kernel_args: self.kernel_args.clone(),
            snippets: self.snippets.iter().map(|p| read(p)).collect::<Result<_, _>>()?,
            local_boot: self.local_boot.unwrap_or_default(),
        }))
    }
}

fn read(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|source| CliError::File { path: path.into(), source })
}

/// Reads a YAML or JSON document.
pub(super) fn read_document<T: DeserializeOwned>(path: &Path) -> Result<T, CliError> {
    serde_saphyr::from_str(&read(path)?).map_err(|e| CliError::Input(format!("{}: {e}", path.display())))
}

pub(super) async fn run(command: MachineCommand, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let of = |machine: &str, verb: &str| format!("/api/v1/machines/{}{verb}", segment(machine));
    match command {
        MachineCommand::List { label, phase, watch, output } => {
            let mut path = format!("/api/v1/machines?label={}", segment(&label));
            if let Some(phase) = phase {
                path = format!("{path}&phase={}", segment(&phase));
            }
            watched(&client, &path, watch, output, |m: &Vec<Machine>| machine_table(m)).await?;
        }
        MachineCommand::Show { machine, watch, output } => {
            watched(&client, &of(&machine, ""), watch, output, machine_text).await?;
        }
        MachineCommand::Events { machine, limit, watch, output } => {
            events(&client, machine, limit, watch, output).await?
        }
        MachineCommand::Explain { machine, output } => {
            let explanation: Explanation = client.get(&of(&machine, "/explain")).await?;
            output.print(&explanation, |e| {
                let name = e.machine.as_deref().unwrap_or("nobody knows it");
                let step = e
                    .last_step
                    .as_ref()
                    .map_or(String::new(), |s| format!("Last step: {} ({}) {}\n", s.name, state(s.state), s.detail));
                format!(
                    "Machine:   {} ({name})\nAnswer:    {}\nBecause:   {}\n{step}\n{}",
                    e.mac, e.answer, e.reason, e.script
                )
            });
        }
        MachineCommand::Declare { name, mac, uuid, serial, labels, assign, output } => {
            let request = DeclareRequest {
                name: Some(name),
                identity: Identity { macs: mac, uuid, serial, ..Identity::default() },
                labels: labels.into_iter().collect(),
                assignment: assign.assignment()?,
            };
            let machine: Machine = client.call(Method::POST, "/api/v1/machines", Some(&request)).await?;
            output.print(&machine, |m| format!("declared {}", m.name));
        }
        MachineCommand::Accept { machine, label, name, labels, assign, output } => {
            let request =
                AcceptRequest { name, labels: labels.into_iter().collect(), assignment: assign.assignment()? };
            let names = match (machine, label) {
                (Some(machine), _) => vec![machine],
                (None, label) => {
                    let label = label.filter(|l| l.contains('=')).ok_or_else(|| {
                        CliError::Words(
                            "machine accept: --label takes KEY=VALUE; without one it would let everybody in".into(),
                        )
                    })?;
                    let path = format!("/api/v1/machines?label={}", segment(&label));
                    let machines: Vec<Machine> = client.get(&path).await?;
                    machines
                        .into_iter()
                        .filter(|m| !m.accepted || request.assignment.is_some())
                        .map(|m| m.name)
                        .collect()
                }
            };
            let mut accepted = Vec::new();
            for name in names {
                let machine: Machine = client.call(Method::POST, &of(&name, "/accept"), Some(&request)).await?;
                accepted.push(machine);
            }
            output.print(&accepted, |machines| match machines.len() {
                0 => "No machine waits.".into(),
                _ => machines.iter().map(|m| format!("accepted {}\n", m.name)).collect(),
            });
        }
        MachineCommand::Assign { machine, assign, output } => {
            let assignment = assign
                .assignment()?
                .ok_or_else(|| CliError::Words("machine assign: give --image or --assignment".into()))?;
            let machine: Machine = client.call(Method::POST, &of(&machine, "/assign"), Some(&assignment)).await?;
            output.print(&machine, |m| format!("{}: {}", m.name, m.waiting.as_deref().unwrap_or("assigned")));
        }
        MachineCommand::Reinstall { machine, now, force, output } => {
            let path = of(&machine, &format!("/reinstall?now={now}&force={force}"));
            let machine: Machine = client.call(Method::POST, &path, None::<&()>).await?;
            let when = if now { "now: its system wipes the disk and restarts" } else { "at the next network boot" };
            output.print(&machine, |m| format!("{}: generation {} {when}", m.name, m.generation));
        }
        MachineCommand::Release { machine, output } => {
            let machine: Machine = client.call(Method::POST, &of(&machine, "/release"), None::<&()>).await?;
            output.print(&machine, |m| format!("{} is served again", m.name));
        }
        MachineCommand::Label { machine, labels, output } => {
            let labels: std::collections::BTreeMap<String, String> = labels.into_iter().collect();
            let machine: Machine = client.call(Method::POST, &of(&machine, "/labels"), Some(&labels)).await?;
            output.print(&machine, |m| format!("{}: {}", m.name, if m.accepted { "accepted" } else { "not accepted" }));
        }
        MachineCommand::Forget { machine: Some(machine), force, .. } => {
            client.delete(&of(&machine, &format!("?force={force}"))).await?;
            say(&format!("forgot {machine}\n"));
        }
        MachineCommand::Forget { .. } => {
            let all: Vec<Machine> = client.get("/api/v1/machines").await?;
            let strangers: Vec<&Machine> = all.iter().filter(|m| !m.accepted && m.labels.is_empty()).collect();
            for machine in &strangers {
                client.delete(&of(&machine.id.to_string(), "")).await?;
            }
            say(&format!("forgot {} machines that nobody has accepted\n", strangers.len()));
        }
    }
    Ok(())
}

/// Prints something, and again whenever an event may have changed it.
async fn watched<T: DeserializeOwned + serde::Serialize + PartialEq>(
    client: &Client,
    path: &str,
    watch: bool,
    output: OutputArgs,
    text: impl Fn(&T) -> String,
) -> Result<(), CliError> {
    let mut after = if watch { newest(client).await? } else { 0 };
    let mut last: Option<T> = None;
    loop {
        let value: T = if last.is_none() { client.get(path).await? } else { client.poll(path).await? };
        if last.as_ref() != Some(&value) {
            if watch && output.is_table() && std::io::stdout().is_terminal() {
                say("\x1b[2J\x1b[H");
            }
            output.print(&value, &text);
            last = Some(value);
        }
        if !watch {
            return Ok(());
        }
        let events: Vec<MachineEvent> = client.poll(&format!("/api/v1/events?after={after}&wait=30")).await?;
        after = events.last().map_or(after, |e| e.id);
    }
}

async fn newest(client: &Client) -> Result<i64, CliError> {
    let events: Vec<MachineEvent> = client.get("/api/v1/events?limit=1").await?;
    Ok(events.last().map_or(0, |e| e.id))
}

async fn events(
    client: &Client,
    machine: Option<String>,
    limit: u32,
    watch: bool,
    output: OutputArgs,
) -> Result<(), CliError> {
    let base = match &machine {
        Some(machine) => format!("/api/v1/machines/{}/events", segment(machine)),
        None => "/api/v1/events".to_owned(),
    };
    let names: std::collections::HashMap<_, _> =
        client.get::<Vec<Machine>>("/api/v1/machines").await?.into_iter().map(|m| (m.id, m.name)).collect();
    let rows = |events: &Vec<MachineEvent>| {
        events
            .iter()
            .map(|e| {
                let name = names.get(&e.machine).cloned().unwrap_or_else(|| e.machine.to_string());
                vec![
                    clock(e.at),
                    name,
                    e.phase.clone(),
                    e.kind.clone(),
                    e.cause.clone(),
                    e.message.replace('\n', "\n    "),
                ]
            })
            .collect::<Vec<_>>()
    };
    let mut events: Vec<MachineEvent> = client.get(&format!("{base}?limit={limit}")).await?;
    output.print(&events, |e| table(&["TIME", "MACHINE", "PHASE", "KIND", "CAUSE", "MESSAGE"], rows(e)));
    let mut after = events.last().map_or(0, |e| e.id);
    if !watch {
        return Ok(());
    }
    loop {
        events = client.poll(&format!("{base}?after={after}&wait=30")).await?;
        after = events.last().map_or(after, |e| e.id);
        if !events.is_empty() {
            output.print(&events, |e| rows(e).into_iter().map(|row| row.join("  ") + "\n").collect());
        }
    }
}

fn machine_table(machines: &[Machine]) -> String {
    let now = OffsetDateTime::now_utc();
    table(
        &["NAME", "PHASE", "SINCE", "GEN", "MAC", "ADDRESS", "VENDOR", "PRODUCT", "SERIAL", "IMAGE", "STEP"],
        machines.iter().map(|m| {
            let dash = |text: Option<&String>| text.cloned().unwrap_or_else(|| "-".into());
            let generation = match m.installed_generation {
                Some(installed) if installed == m.generation => m.generation.to_string(),
                Some(installed) => format!("{installed}->{}", m.generation),
                None => format!("-/{}", m.generation),
            };
            let step = match (&m.stopped, &m.waiting, m.steps.last()) {
                (Some(reason), ..) => format!("STOPPED: {reason}"),
                (_, Some(waiting), _) => waiting.clone(),
                (_, _, Some(step)) => format!("{} {} {}", step.name, state(step.state), step.detail),
                _ => "-".into(),
            };
            vec![
                m.name.clone(),
                m.phase.name().into(),
                age(m.phase_since, now),
                generation,
                m.identity.macs.first().map_or("-".into(), ToString::to_string),
                m.address.map_or("-".into(), |a| a.to_string()),
                dash(m.identity.vendor.as_ref()),
                dash(m.identity.product.as_ref()),
                dash(m.identity.serial.as_ref()),
                m.assignment.as_ref().map_or("-".into(), |a| a.image.clone()),
                shortened(&step),
            ]
        }),
    )
}

/// As much of a text as a table has room for.
fn shortened(text: &str) -> String {
    const ROOM: usize = 60;
    if text.chars().count() <= ROOM {
        return text.to_owned();
    }
    text.chars().take(ROOM - 1).chain(['…']).collect()
}

fn state(state: StepState) -> &'static str {
    match state {
        StepState::Running => "running",
        StepState::Done => "done",
        StepState::Failed => "FAILED",
    }
}

fn machine_text(m: &Machine) -> String {
    let now = OffsetDateTime::now_utc();
    let or = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let macs: Vec<String> = m.identity.macs.iter().map(ToString::to_string).collect();
    let labels: Vec<String> = m.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut rows = vec![
        ("Name", m.name.clone()),
        ("Id", m.id.to_string()),
        ("Trace", Trace::of(m).to_string()),
        ("Phase", format!("{} for {}", m.phase.name(), age(m.phase_since, now))),
        (
            "Generation",
            format!(
                "{} wanted, {} on the disk",
                m.generation,
                m.installed_generation.map_or("none".into(), |g| g.to_string())
            ),
        ),
        ("MAC", macs.join(", ")),
        ("UUID", or(m.identity.uuid.clone())),
        ("Serial", or(m.identity.serial.clone())),
        ("Vendor", or(m.identity.vendor.clone())),
        ("Product", or(m.identity.product.clone())),
        ("Firmware", format!("{:?}", m.identity.firmware).to_lowercase()),
        ("Address", or(m.address.map(|a| a.to_string()))),
        ("Labels", labels.join(", ")),
        ("Accepted", if m.accepted { "yes".into() } else { "no".into() }),
        ("Last seen", format!("{} ago", age(m.last_seen, now))),
    ];
    if let Some(a) = &m.assignment {
        rows.push(("Image", a.image.clone()));
        rows.push(("Template", a.template.clone()));
        rows.push(("Disk", a.install_disk.clone().unwrap_or_else(|| "the only one".into())));
    }
    if let Some(f) = &m.facts {
        rows.push(("System", format!("{} {}, kernel {}", f.os, f.os_version, f.kernel)));
        rows.push((
            "Hardware",
            format!(
                "{} cpus, {} memory, disks {}",
                f.cpus,
                bytes(f.memory_bytes),
                f.disks.iter().map(|d| format!("{} {}", d.device, bytes(d.size_bytes))).collect::<Vec<_>>().join(", ")
            ),
        ));
        rows.push(("Deployment", or(f.booted_deployment.clone())));
        rows.push(("Agent", f.agent_version.clone()));
    }
    if let Some(reason) = &m.stopped {
        rows.push(("STOPPED", reason.clone()));
    } else if let Some(waiting) = &m.waiting {
        rows.push(("Waiting", waiting.clone()));
    }
    let head: String = rows.iter().map(|(k, v)| format!("{:<12}{v}\n", format!("{k}:"))).collect();
    let steps = table(
        &["STEP", "STATE", "START", "END", "TOOK", "DETAIL"],
        m.steps.iter().map(|s| {
            vec![
                s.name.clone(),
                state(s.state).into(),
                clock(s.started_at),
                s.ended_at.map_or("-".into(), clock),
                age(s.started_at, s.ended_at.unwrap_or(now)),
                s.detail.clone(),
            ]
        }),
    );
    format!("{head}\n{steps}")
}
