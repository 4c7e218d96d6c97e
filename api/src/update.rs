//! Updates of a cluster's nodes: the resource that asks for one, and what the operator and a node's agent say to each other
//! through annotations of the Node.
//!
//! The operator writes [`Desired`] on a Node, the agent answers with [`Reported`]. A report counts only when its uid and its
//! attempt are those of what was desired: what an agent said about an earlier update is never taken for this one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Group of our resource.
pub const GROUP: &str = "nkd.io";
/// Version of both resources.
pub const VERSION: &str = "v1alpha1";
/// Kind of both resources.
pub const KIND: &str = "Update";
/// Plural of both resources.
pub const PLURAL: &str = "updates";
/// Short name of our resource.
pub const SHORT_NAME: &str = "nkdupdate";
/// Group of the resource as NestOS' own deployer writes it.
pub const UPSTREAM_GROUP: &str = "housekeeper.io";

/// How the operator asks for another attempt, in what it says of an update. Who follows an update through the service must not
/// edit it, and reads the service's command in the place of these words; so with the next two.
pub const RAISE_RETRY: &str = "raise spec.retry";
/// The same of an update that begins no further node.
pub const IS_PAUSED: &str = "spec.paused is true";
/// The same of one that was called off.
pub const IS_CALLED_OFF: &str = "spec.abort is true";

/// On a Node: what it is to become, a [`Desired`]. Written by the operator.
pub const DESIRED: &str = "nkd.io/desired";
/// On a Node: how far it is, a [`Reported`]. Written by the agent.
pub const REPORTED: &str = "nkd.io/reported";
/// On a Node that the operator has cordoned: the uid of the update. A node without it was cordoned by somebody else.
pub const CORDONED_BY: &str = "nkd.io/cordoned-by";
/// On a Node: what the operator itself knows of it, a [`Note`].
pub const NOTE: &str = "nkd.io/update-note";

/// What an update is to do, and how carefully.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateSpec {
    /// Channel that the release is from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// What the nodes are to run.
    pub release: Release,
    /// Nodes that may be away at the same time: a number, or a share of the chosen nodes such as `10%`.
    pub max_unavailable: MaxUnavailable,
    /// When nodes may begin. Not given: at any time. A node that has begun comes to its end outside of it too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// How a node is treated.
    pub strategy: Strategy,
    /// No further node begins.
    pub paused: bool,
    /// No further node begins, what was only drained is given back, what is upgrading comes to its end.
    pub abort: bool,
    /// Raise it to try the nodes again that have failed.
    pub retry: u32,
    /// Only nodes with these labels. Not given: all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
}

/// A release. Each half may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Release {
    /// Its name, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<OsRelease>,
    /// The version of Kubernetes, `v1.21.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
}

/// An operating system: a commit, or an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct OsRelease {
    /// ostree commit, 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Image, `registry.example/os@sha256:...`. By a tag, `registry.example/os:24.03`, it is looked up once, before any node
    /// begins; nodes are told the digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its version, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// How many nodes may be away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CountOrText", into = "CountOrText")]
pub enum MaxUnavailable {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Percent(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum CountOrText {
    Count(u32),
    Text(String),
}

/// When nodes may begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// On which days it opens. None given: on every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// When it opens, `22:30`.
    pub start: String,
    /// How long it is open, `4h`, `90m` or `1h30m`; it may reach into the next day.
    pub length: String,
    /// `UTC`; no other is known.
    #[serde(default = "utc")]
    pub time_zone: String,
}

fn utc() -> String {
    "UTC".into()
}

/// The longest that a window is open, in minutes.
const LONGEST: i64 = 24 * 60;
/// The days as they are written in a line, `sat`.
const DAYS: [(&str, Day); 7] = [
    ("mon", Day::Mon),
    ("tue", Day::Tue),
    ("wed", Day::Wed),
    ("thu", Day::Thu),
    ("fri", Day::Fri),
    ("sat", Day::Sat),
    ("sun", Day::Sun),
];

impl Window {
    /// When it opens, in minutes from midnight, and for how many.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn minutes(&self) -> Result<(i64, i64), String> {
        if self.time_zone != "UTC" {
            return Err(format!("the time zone of the window is `{}`: only UTC is known", self.time_zone));
        }
        let start = self.start.split_once(':').and_then(|(hour, minute)| {
            let number = |text: &str| (text.len() == 2).then(|| text.parse::<i64>().ok()).flatten();
            let (hour, minute) = (number(hour)?, number(minute)?);
            ((0..24).contains(&hour) && (0..60).contains(&minute)).then_some(hour * 60 + minute)
        });
        let start = start.ok_or_else(|| format!("the window opens at `{}`: write it like 22:30", self.start))?;
        let length = minutes(&self.length).filter(|length| (1..=LONGEST).contains(length));
        let length = length.ok_or_else(|| {
            format!("the window is open for `{}`: write it like 4h or 1h30m, at most 24h", self.length)
        })?;
        Ok((start, length))
    }
}

/// `4h`, `90m`, `1h30m`.
fn minutes(text: &str) -> Option<i64> {
    let number = |digits: &str| digits.parse::<u16>().ok().map(i64::from);
    let (hours, rest) = match text.split_once('h') {
        Some((hours, rest)) => (number(hours)?, rest),
        None => (0, text),
    };
    let minutes = match rest.strip_suffix('m') {
        Some(minutes) => number(minutes)?,
        None if rest.is_empty() && text.contains('h') => 0,
        None => return None,
    };
    Some(hours * 60 + minutes)
}

/// `22:30+4h` or `sat,sun 22:30+4h`, in UTC.
impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (days, hours) = text.trim().rsplit_once(' ').unwrap_or(("", text.trim()));
        let (start, length) =
            hours.split_once('+').ok_or_else(|| format!("`{text}`: write it like 22:30+4h or sat,sun 22:30+4h"))?;
        let day = |word: &str| {
            let word = word.trim().to_lowercase();
            let known = DAYS.iter().find(|(name, _)| *name == word).map(|(_, day)| *day);
            known.ok_or_else(|| format!("`{word}` is no day: write them like sat,sun"))
        };
        let days = days.split(',').filter(|word| !word.trim().is_empty()).map(day).collect::<Result<_, _>>()?;
        let window = Self { days, start: start.to_owned(), length: length.to_owned(), time_zone: utc() };
        window.minutes().map(|_| window)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |day: &Day| DAYS.iter().find(|(_, known)| known == day).map_or("?", |(name, _)| name);
        let days: Vec<&str> = self.days.iter().map(named).collect();
        let space = if days.is_empty() { "" } else { " " };
        write!(f, "{}{space}{}+{}", days.join(","), self.start, self.length)
    }
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "they are days")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// How a node is treated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    /// How its pods leave it.
    pub drain: Drain,
    /// How long a node that is healthy again is watched before it takes pods and the next one begins.
    pub soak_seconds: u32,
    /// After so many failed nodes no further one begins.
    pub halt_after_failures: u32,
    /// The same after so many that went back from the release by themselves: the next one would hardly fare better.
    pub halt_after_rollbacks: u32,
    /// A node that was told to stage, and whose agent has not answered for so long, counts as failed; one that upgrades and is
    /// not heard of for three times as long, too. What it says later is taken. 0: it is waited for.
    pub silent_seconds: u32,
    /// What kubeadm's checks may find without ending the upgrade, `ImagePull`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignore_preflight_errors: Vec<String>,
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            drain: Drain::default(),
            soak_seconds: 0,
            halt_after_failures: 2,
            halt_after_rollbacks: 1,
            silent_seconds: 900,
            ignore_preflight_errors: Vec::new(),
        }
    }
}

/// How pods leave a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Drain {
    /// How long that may take.
    pub timeout_seconds: u32,
    /// What happens to pods that are still there then.
    pub policy: DrainPolicy,
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout_seconds: 600, policy: DrainPolicy::Evict }
    }
}

/// What happens to pods that no eviction moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DrainPolicy {
    /// They stay: the node has failed, and is given back.
    #[default]
    Evict,
    /// They are deleted.
    Force,
}

/// The resource as NestOS' own deployer writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct UpstreamSpec {
    /// Image of the operating system, by its digest or its tag.
    #[serde(rename = "osImageURL", skip_serializing_if = "Option::is_none")]
    pub os_image_url: Option<String>,
    /// The version of Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kube_version: Option<String>,
    /// Delete pods that no eviction moves.
    pub evict_pod_force: bool,
    /// Nodes that may be away at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<u32>,
}

/// How far an update is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateStatus {
    /// In one word.
    pub phase: Phase,
    /// Progressing, Degraded and Complete.
    pub conditions: Vec<Condition>,
    /// Every chosen node.
    pub nodes: Vec<NodeStatus>,
    /// How many nodes are how far.
    pub counts: Counts,
    /// The generation of the resource that this speaks of.
    pub observed_generation: i64,
    /// The release that this speaks of: a finished update begins again only for another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    /// What the image that the resource names by its tag was when it was looked up. All nodes get this one, also when the tag
    /// stands for another one by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<FoundImage>,
    /// Control planes that it has at work. No other node begins while the Node of one of them is not there: its machine may be
    /// anywhere on its way.
    pub planes_at_work: Vec<PlaneAtWork>,
}

/// A control plane between its cordon and its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PlaneAtWork {
    /// Its name.
    pub name: String,
    /// `spec.retry` when its Node was seen last: a higher one says that the others are to go on without it.
    pub retry: u32,
    /// It is the one that runs `kubeadm upgrade apply`.
    pub first: bool,
}

/// An image that was named by its tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FoundImage {
    /// Its full name, `registry.example/os:24.03`. For another name it is looked up again.
    pub asked: String,
    /// Its digest, `sha256:...`.
    pub digest: String,
    /// When it was looked up.
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub at: OffsetDateTime,
}

/// How far an update is, in one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Phase {
    /// Nothing has begun: it waits for another update, for its window, or for nodes that stage.
    #[default]
    Pending,
    /// Nodes are at work, or will be.
    Progressing,
    /// Told to begin no further node.
    Paused,
    /// Too many nodes have failed, or nothing is left but failed ones.
    Halted,
    /// Told to stop; nodes come to their end.
    Aborting,
    /// Stopped.
    Aborted,
    /// Every chosen node is healthy on the release.
    Complete,
    /// The resource asks for something that cannot be.
    Invalid,
}

/// One statement about an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Progressing`, `Degraded` or `Complete`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True` or `False`.
    pub status: String,
    /// A word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// The generation of the resource that this speaks of.
    pub observed_generation: i64,
    /// Since when the status is what it is.
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub last_transition_time: OffsetDateTime,
}

/// A node of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: NodeState,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub since: OffsetDateTime,
    /// Why it does not go on, or how it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Which try it is, from 1.
    pub attempt: u32,
}

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum NodeState {
    /// It has not been told.
    Waiting,
    /// It downloads.
    Staging,
    /// It has everything, and waits for its turn.
    Staged,
    /// Its turn has come, and something holds it.
    Blocked,
    /// It takes no new pods, and its pods leave.
    Draining,
    /// It upgrades.
    Upgrading,
    /// It restarts.
    Rebooting,
    /// It is healthy, and is watched before it takes pods again.
    Soaking,
    /// It is healthy on the release, and takes pods.
    Done,
    /// It could not, and says why.
    Failed,
}

/// How many nodes are how far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Chosen nodes.
    pub total: u32,
    /// Done.
    pub done: u32,
    /// Between cordon and uncordon.
    pub in_progress: u32,
    /// Failed.
    pub failed: u32,
    /// Chosen nodes that are away, for whatever reason.
    pub unavailable: u32,
}

/// What a node is to become. The annotation [`DESIRED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Desired {
    /// Name of the update.
    pub update: String,
    /// Its uid.
    pub uid: String,
    /// Which try, from 1. None comes twice in an update, also when it was called off and begins anew.
    pub attempt: u32,
    /// How often a person has asked for another attempt; nothing: an operator that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<u32>,
    /// The operating system; nothing: it stays.
    #[serde(default)]
    pub os: Option<OsRelease>,
    /// The version of Kubernetes; nothing: it stays.
    #[serde(default)]
    pub kubernetes: Option<String>,
    /// The one control plane that runs `kubeadm upgrade apply`; all other nodes run `kubeadm upgrade node`.
    pub first: bool,
    /// False: only download and stage. True: the node is drained, upgrade now.
    pub go: bool,
    /// What kubeadm's checks may find without ending the upgrade.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore_preflight_errors: Vec<String>,
}

/// How far a node is, in its agent's words. The annotation [`REPORTED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reported {
    /// uid of the update that this speaks of.
    pub uid: String,
    /// The try that this speaks of.
    pub attempt: u32,
    /// How far.
    pub state: ReportedState,
    /// What a person should know.
    #[serde(default)]
    pub detail: String,
    /// The commit that is booted.
    #[serde(default)]
    pub os: Option<String>,
    /// The version of Kubernetes that runs.
    #[serde(default)]
    pub kubernetes: Option<String>,
}

/// How far a node is, in its agent's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportedState {
    /// It downloads.
    Staging,
    /// It has everything.
    Staged,
    /// It upgrades.
    Upgrading,
    /// It restarts.
    Rebooting,
    /// It runs what was desired, and has passed its own checks.
    Healthy,
    /// It could not, and has not come back by itself.
    Failed,
    /// It could not, and runs what it ran before.
    RolledBack,
}

impl ReportedState {
    /// The word that it is written with.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Staged => "staged",
            Self::Upgrading => "upgrading",
            Self::Rebooting => "rebooting",
            Self::Healthy => "healthy",
            Self::Failed => "failed",
            Self::RolledBack => "rolled-back",
        }
    }

    /// True when the agent does nothing more in this try.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Healthy | Self::Failed | Self::RolledBack)
    }
}

/// What the operator itself knows of a node, so that another operator can go on. The annotation [`NOTE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// uid of the update.
    pub uid: String,
    /// Which try.
    pub attempt: u32,
    /// How far.
    pub state: NoteState,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Of a failed one: [`UpdateSpec::retry`] at that time. A higher one asks for another try.
    #[serde(default)]
    pub retry: u32,
    /// Why it has failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What its agent had said of this try by then: `since` counts from when it said something else. Nothing: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<ReportedState>,
}

/// How far a node is, in the operator's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteState {
    /// It was told to stage.
    Staging,
    /// Its pods are asked to leave, or it upgrades: its [`Desired`] says which.
    Begun,
    /// It was healthy, and is watched.
    Soaking,
    /// It is healthy and takes pods.
    Done,
    /// This try has failed.
    Failed,
    /// Its agent is not heard of: this try counts as failed until it says something.
    Silent,
}

impl Default for MaxUnavailable {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl MaxUnavailable {
    /// How many of so many nodes; a share is rounded down, and is at least one.
    #[must_use]
    pub fn of(self, nodes: usize) -> usize {
        match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) => (nodes * percent as usize / 100).max(1),
        }
    }
}

/// A text that is no number of nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("maxUnavailable is `{0}`: write a number such as 2, or a share such as 10%")]
pub struct NotACount(String);

impl TryFrom<CountOrText> for MaxUnavailable {
    type Error = NotACount;

    fn try_from(value: CountOrText) -> Result<Self, NotACount> {
        let text = match value {
            CountOrText::Count(count) => return Ok(Self::Count(count)),
            CountOrText::Text(text) => text,
        };
        let number = |digits: &str| digits.parse::<u32>().ok();
        let share = text.strip_suffix('%').and_then(number).filter(|percent| (1..=100).contains(percent));
        let count = || number(&text).map(Self::Count);
        share.map(Self::Percent).or_else(count).ok_or(NotACount(text))
    }
}

impl std::str::FromStr for MaxUnavailable {
    type Err = NotACount;

    fn from_str(text: &str) -> Result<Self, NotACount> {
        Self::try_from(CountOrText::Text(text.to_owned()))
    }
}

impl From<MaxUnavailable> for CountOrText {
    fn from(value: MaxUnavailable) -> Self {
        match value {
            MaxUnavailable::Count(count) => Self::Count(count),
            MaxUnavailable::Percent(percent) => Self::Text(format!("{percent}%")),
        }
    }
}

impl fmt::Display for MaxUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for MaxUnavailable {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
        let of = |kind| ObjectBuilder::new().schema_type(kind);
        let about = "How many nodes may be away: a number such as 2, or a share such as 10%.";
        OneOfBuilder::new().item(of(Type::Integer)).item(of(Type::String)).description(Some(about)).into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for MaxUnavailable {}

/// The schema of a [`MaxUnavailable`] in a cluster file, which is checked by its types and formats.
#[cfg(feature = "schema")]
pub(crate) fn count_or_share(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["integer", "string"], "format": "count-or-share", "minimum": 0})
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for MaxUnavailable {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MaxUnavailable".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"x-kubernetes-int-or-string": true})
    }
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
