//! Machines: the records that operators see and change.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::MacAddr;
use crate::facts::{Facts, Firmware};

/// Where a machine stands between power-on and work.
///
/// `Discovered -> Assigned -> Booting -> Installing -> Installed -> FirstBoot -> Enrolled -> Joining -> Ready`,
/// with `Failed` from each and `Updating` from `Ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "name", rename_all = "camelCase")]
pub enum Phase {
    /// Its first packet came; nobody has said what it is for.
    Discovered,
    /// It has a profile and an image; it was not yet seen booting for this generation.
    Assigned,
    /// It took its boot script.
    Booting,
    /// The agent in the live system writes the disk.
    Installing,
    /// The disk holds the verified image; the machine restarts.
    Installed,
    /// It started from its disk for the first time and has not enrolled yet.
    FirstBoot,
    /// Its agent holds a client certificate.
    Enrolled,
    /// It joins a cluster.
    Joining,
    /// It is a Ready node of its cluster.
    Ready,
    /// It applies an update.
    Updating,
    /// It stopped; only an operator or a new boot moves it on.
    Failed {
        /// The step that failed.
        step: String,
        /// Why.
        reason: String,
    },
}

impl Phase {
    /// The names of all phases.
    pub const NAMES: [&str; 11] = [
        "Discovered",
        "Assigned",
        "Booting",
        "Installing",
        "Installed",
        "FirstBoot",
        "Enrolled",
        "Joining",
        "Ready",
        "Updating",
        "Failed",
    ];

    /// The name as shown in tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Discovered => "Discovered",
            Self::Assigned => "Assigned",
            Self::Booting => "Booting",
            Self::Installing => "Installing",
            Self::Installed => "Installed",
            Self::FirstBoot => "FirstBoot",
            Self::Enrolled => "Enrolled",
            Self::Joining => "Joining",
            Self::Ready => "Ready",
            Self::Updating => "Updating",
            Self::Failed { .. } => "Failed",
        }
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Stable identity, given by the service.
    pub id: Uuid,
    /// Unique name; `m-<mac>` until an operator gives another.
    pub name: String,
    /// Free labels, for selectors and rules.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it was recognised by.
    pub identity: Identity,
    /// Address that it last spoke from.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address: Option<IpAddr>,
    /// An operator, a label or a rule let it in.
    pub accepted: bool,
    /// What it is to become.
    #[serde(default)]
    pub assignment: Option<Assignment>,
    /// Install generation that is wanted; 0 until something was assigned. Raised by `reinstall` and by leaving a cluster.
    pub generation: u32,
    /// Install generation that its disk is known to hold.
    #[serde(default)]
    pub installed_generation: Option<u32>,
    /// Systems of this install generation and older ones wipe the disk that they run from, and restart: the machine has left
    /// its cluster, or is to be installed again at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wipe_generation: Option<u32>,
    /// The network boot whose configuration was taken last. Certificates of any other boot are worthless.
    #[serde(default)]
    pub current_boot: Option<Uuid>,
    /// Where it stands.
    pub phase: Phase,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub phase_since: OffsetDateTime,
    /// Why it does not go on, when it waits.
    #[serde(default)]
    pub waiting: Option<String>,
    /// It is refused every configuration until an operator says otherwise, and why.
    #[serde(default)]
    pub stopped: Option<String>,
    /// The steps of the current generation.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Facts from its agent.
    #[serde(default)]
    pub facts: Option<Facts>,
    /// Last packet, request or heartbeat.
    #[serde(with = "time::serde::rfc3339")]
    pub last_seen: OffsetDateTime,
    /// When it was first seen or declared.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// The keys and the plate of a machine, as far as seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, rename_all = "camelCase")]
pub struct Identity {
    /// Hardware addresses, the one it boots from first.
    pub macs: Vec<MacAddr>,
    /// SMBIOS UUID, lower case; never one of the known placeholders.
    pub uuid: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Manufacturer.
    pub vendor: Option<String>,
    /// Product name.
    pub product: Option<String>,
    /// Boot firmware.
    pub firmware: Firmware,
    /// `x86_64` or `aarch64`.
    pub architecture: Option<String>,
}

/// What a machine is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assignment {
    /// Name of the image, which knows its profile.
    pub image: String,
    /// Ignition template, a folder of `ignition-templates/`.
    #[serde(default = "default_template")]
    pub template: String,
    /// Disk to install to, `/dev/disk/by-id/...`; chosen by the agent when not given: the only disk, or else an error.
    #[serde(default)]
    pub install_disk: Option<String>,
    /// Host name; the machine's name when not given.
    #[serde(default)]
    pub hostname: Option<String>,
    /// SSH keys of the default user.
    #[serde(default)]
    pub ssh_authorized_keys: Vec<String>,
    /// Further kernel arguments of the installed system.
    #[serde(default)]
    pub kernel_args: Vec<String>,
    /// Operator's own Butane-shaped snippets, merged over the template in this order. They may hold secrets: whoever is
    /// below operator sees that there is one, not what it says.
    #[serde(default)]
    pub snippets: Vec<String>,
    /// How this machine's firmware is sent on to its disk.
    #[serde(default)]
    pub local_boot: LocalBoot,
}

fn default_template() -> String {
    "node".to_owned()
}

/// How "boot your disk" is said to a machine; `exit` does not reach the disk on every firmware.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum LocalBoot {
    /// iPXE's `exit`: back to the firmware, which tries its next entry.
    #[default]
    Exit,
    /// iPXE's `sanboot` of the first disk (BIOS) or of the removable-media loader (UEFI).
    Sanboot,
    /// No script at all: 404.
    NotFound,
}

/// One step on the way, with its times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// `boot`, `live`, `config`, `install`, `restart`, `first-boot`, `enroll`.
    pub name: String,
    /// How it goes.
    pub state: StepState,
    /// Start.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// End.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Progress, or why it waits or failed.
    #[serde(default)]
    pub detail: String,
}

/// State of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Under way.
    Running,
    /// Ended well.
    Done,
    /// Ended badly.
    Failed,
}

/// One entry of a machine's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineEvent {
    /// Rising number within the service.
    pub id: i64,
    /// Machine.
    pub machine: Uuid,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Kind: `seen`, `accepted`, `boot-script`, `phase`, `progress`, `alarm`, ...
    pub kind: String,
    /// Phase after it.
    pub phase: String,
    /// What happened.
    pub message: String,
    /// Who or what caused it: a user, `agent`, `dhcp`, `boot`, a rule.
    pub cause: String,
}

/// Order to accept a machine, or to declare one that was never seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptRequest {
    /// New name.
    pub name: Option<String>,
    /// Labels to set.
    pub labels: BTreeMap<String, String>,
    /// What to assign at once.
    pub assignment: Option<Assignment>,
}

/// Order to declare a machine before its first packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeclareRequest {
    /// Name.
    pub name: Option<String>,
    /// At least one key: MAC, UUID or serial.
    pub identity: Identity,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Assignment.
    #[serde(default)]
    pub assignment: Option<Assignment>,
}

/// A rule that accepts machines as they appear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptRule {
    /// Unique name.
    pub name: String,
    /// What a machine must be like; every given field must fit, and at least one is given.
    pub matches: MatchFields,
    /// Labels that it gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it is assigned; the host name is its own name.
    #[serde(default)]
    pub assignment: Option<Assignment>,
}

/// Fields of a machine that a rule looks at. Text may end in `*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct MatchFields {
    /// MAC address or its beginning, `52:54:00:*`.
    pub mac: Option<String>,
    /// UUID.
    pub uuid: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Manufacturer.
    pub vendor: Option<String>,
    /// Product.
    pub product: Option<String>,
    /// Labels, all of which it must carry.
    pub labels: BTreeMap<String, String>,
}

/// What the next network boot of a machine would be told, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The machine asked about, by MAC.
    pub mac: MacAddr,
    /// Its name, if there is a record.
    pub machine: Option<String>,
    /// `discovery`, `live-install`, `local-disk` or `not-now`.
    pub answer: String,
    /// Why.
    pub reason: String,
    /// The boot script as it would be sent, tokens left out.
    pub script: String,
    /// The last step of the machine.
    pub last_step: Option<Step>,
}
