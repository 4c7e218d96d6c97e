//! What an update keeps over restarts (pure data).

use nkd_api::update::Desired;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Where an update stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The release is fetched and laid out beside the system that runs.
    Stage,
    /// It waits for its turn.
    Staged,
    /// kubeadm of the release runs.
    Kubeadm,
    /// The release is made the next system, and the boot loader counts.
    Arm,
    /// The machine restarts.
    Restart,
    /// The gate looks.
    Check,
    /// The boot loader is told to stay.
    Confirm,
    /// The system before is made the next one.
    Revert,
    /// The machine restarts into the system before.
    RevertRestart,
    /// What is left of the release is put away.
    Settle,
    /// The same, before anything was touched: the operator has called it off.
    CalledOff,
    /// The end: it runs, and was verified.
    Healthy,
    /// The end: it runs what it ran before.
    RolledBack,
    /// The end: it needs a person.
    Failed,
}

impl Stage {
    /// Nothing more happens in this attempt.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Healthy | Self::RolledBack | Self::Failed)
    }

    /// The release is laid out, or waits laid out.
    pub(super) fn is_before_turn(self) -> bool {
        matches!(self, Self::Stage | Self::Staged)
    }
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// What was asked for.
    pub desired: Desired,
    /// Where it stands.
    pub stage: Stage,
    /// The boot in which it came there.
    pub boot_id: String,
    /// What the node ran before: commit or digest.
    pub from: Option<String>,
    /// Units that had failed before it could be to blame: the gate does not look at them.
    pub failed_before: Vec<String>,
    /// kubeadm of the release was begun, and may have run: written with the stage in which it runs, and kept however it ends.
    #[serde(default)]
    pub kubeadm_began: bool,
    /// How often it, or what arms the boot loader, was cut off, by an end of the agent or of the node's power.
    #[serde(default, alias = "kubeadmCuts")]
    pub cuts: u32,
    /// kubeadm of the release has ended well. Journals of older agents say this alone.
    pub kubeadm: bool,
    /// How often it was staged and then did not become the next system without having been tried.
    pub restaged: u32,
    /// Why it failed, or goes back.
    pub reason: String,
    /// The release was tried and did not come up: it is not to be tried again.
    pub condemned: bool,
    /// The static pods that a kubeadm left which was cut off are to be those of before again.
    #[serde(default)]
    pub put_back: bool,
}

impl Job {
    /// kubeadm of the release has run on the system that was there before, or may have.
    pub(super) fn has_touched(&self) -> bool {
        self.kubeadm_began || self.kubeadm
    }

    /// kubeadm has begun, and not come to its end.
    pub(super) fn is_half_done(&self) -> bool {
        self.kubeadm_began && !self.kubeadm
    }

    /// It has touched nothing that the node runs: it may still be called off. One whose kubeadm was cut off is laid out again,
    /// and is not.
    pub(super) fn is_harmless(&self) -> bool {
        self.stage.is_before_turn() && !self.has_touched()
    }
}

/// A release that did not come up here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// Commit or digest.
    pub id: String,
    /// Why.
    pub reason: String,
    /// Name of the update that it was tried for; empty: an agent of before wrote it.
    #[serde(default)]
    pub update: String,
    /// Its uid, which is another one when somebody has deleted the object, and the service has made it anew.
    #[serde(default)]
    pub uid: String,
    /// How often a person had asked that update for another attempt.
    #[serde(default)]
    pub retry: u32,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl Denied {
    /// It was tried for this update, perhaps for another object of it.
    pub(super) fn is_of(&self, desired: &Desired) -> bool {
        self.uid == desired.uid || (!self.update.is_empty() && self.update == desired.update)
    }
}

/// What is kept over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Journal {
    /// The attempt that goes on, or the last one.
    pub job: Option<Job>,
    /// Releases that did not come up here, the newest last.
    pub denied: Vec<Denied>,
}
