//! How the last run of kubeadm went: written by the run, read by the agent, kept over a power cut.

use std::path::{Path, PathBuf};

use nkd_api::agent::KubeadmState;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files::{self, FileError};

/// A run, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Which run.
    pub operation: Uuid,
    /// How far it is.
    pub state: KubeadmState,
    /// kubeadm itself was started: what it left has to be removed before it runs again.
    pub touched: bool,
}

/// The journal's file.
#[derive(Debug, Clone)]
pub struct Journal(PathBuf);

impl Journal {
    /// In the agent's state directory.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self(state.join("kubeadm.json"))
    }

    /// The last run. None: there was none.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn read(&self) -> Result<Option<Entry>, FileError> {
        files::read_json(&self.0)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, entry: &Entry) -> Result<(), FileError> {
        files::write_json(&self.0, entry)
    }
}
