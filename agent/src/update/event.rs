//! What the state machine of an update takes and gives (pure data).

use std::time::Duration;

use nkd_api::update::{Desired, OsRelease, Reported};
use time::OffsetDateTime;

use super::journal::{Job, Journal};
pub use super::plane::Plane;

/// Both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since the kernel started. Never goes back.
    pub uptime: Duration,
    /// The date, as the node has it; only ever shown.
    pub date: OffsetDateTime,
}

/// What does not change in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long a node may take to pass its gate.
    pub gate: Duration,
    /// How long it must pass without a break.
    pub steady: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { gate: Duration::from_secs(900), steady: Duration::from_secs(20) }
    }
}

/// A deployment on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// Its ostree commit, or the digest of its image.
    pub id: String,
    /// It runs.
    pub booted: bool,
    /// It is made one of the next when the system goes down, and not there yet.
    pub staged: bool,
}

/// What the node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// Kernel boot id.
    pub boot_id: String,
    /// Every deployment, the one that boots next first; none on a system that is not made of images.
    pub deployments: Vec<Deployment>,
    /// Why the staged deployment was not made when the system went down.
    pub finalize_failure: Option<String>,
    /// Version of the kubelet's program.
    pub kubernetes: Option<String>,
    /// What kubeadm has made of it; none: it is no control plane, or was not asked.
    pub plane: Option<Plane>,
    /// Units that have failed.
    pub failed_units: Vec<String>,
    /// What a person is to know before the node restarts into another release.
    pub caution: Option<&'static str>,
}

impl System {
    /// The deployment that runs.
    #[must_use]
    pub fn booted(&self) -> Option<&str> {
        self.deployments.iter().find(|deployment| deployment.booted).map(|deployment| deployment.id.as_str())
    }

    /// It waits to be made the next system when this one goes down.
    pub(super) fn is_staged(&self, id: Option<&str>) -> bool {
        self.deployments.iter().any(|deployment| deployment.staged && Some(deployment.id.as_str()) == id)
    }

    /// It is on the disk, and was not only staged.
    pub(super) fn has(&self, id: &str) -> bool {
        self.deployments.iter().any(|deployment| deployment.id == id && !deployment.staged)
    }
}

/// What an operating system is known by on the disk.
#[must_use]
pub fn id_of(os: &OsRelease) -> Option<&str> {
    let digest = |image: &String| image.rsplit_once('@').map_or(0, |(name, _)| name.len() + 1);
    os.commit.as_deref().or_else(|| os.image.as_ref().map(|image| &image[digest(image)..]))
}

/// What laying a release out has given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The machine has to restart to run it.
    pub restart: bool,
}

/// Whether an effect that has failed is worth another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// No further try will fare better.
    Never,
    /// A few.
    Few,
    /// As long as it takes: the effect did not begin, because somebody whom it needs is away, the service or the cluster's
    /// API. That is no failure of it; the cluster is told why the node waits.
    Patiently,
    /// The same, but who is away is this node's own API server, of which a kubeadm that was cut off has left half. It has as long
    /// as the gate to come up, and longer where that is short.
    ForAWhile,
}

/// An effect has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whether another try may fare better.
    pub retry: Retry,
    /// One sentence.
    pub reason: String,
}

/// What the gate holds against a node, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ill {
    /// It is not as it should be: the release is to blame.
    Node(String),
    /// Nobody can tell: the cluster's API, which runs on other nodes, does not answer. When that lasts, the node goes back to
    /// what was known to be well, and may try the release again.
    Unknown(String),
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// What the node is.
    Seen(Result<System, String>),
    /// What the cluster asks of this node, and what it says that the node has said.
    Desired(Option<Desired>, Option<Reported>),
    /// The report is in the cluster, or not.
    Told(Result<(), String>),
    /// An effect has ended.
    Ended(Result<Option<Tree>, Failure>),
    /// The gate has looked: the node as it is, or what is not as it should be.
    Checked(Result<System, Ill>),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Keep this; nothing of what follows may begin before it is on the disk.
    Remember(Box<Journal>),
    /// Look at the node: [`Event::Seen`].
    Look,
    /// Tell the cluster: [`Event::Told`].
    Tell(Reported),
    /// Lay the release out: [`Event::Ended`] with a tree.
    Stage(Box<Desired>),
    /// Run its kubeadm: [`Event::Ended`].
    Kubeadm(Box<Desired>),
    /// Make it, and nothing else that somebody may have staged, the next system: [`Event::Ended`].
    Arm(String),
    /// Restart the machine: [`Event::Ended`] only when that did not work.
    Restart,
    /// Look through the gate: [`Event::Checked`].
    Check(Box<Job>),
    /// Tell the boot loader that it is good: [`Event::Ended`].
    Confirm,
    /// Make the system before the next one: [`Event::Ended`].
    Revert,
    /// Put away what is left of the release: [`Event::Ended`].
    Settle,
    /// For the journal of the system.
    Say(String),
}
