//! What the operator can do (pure data).

use nkd_api::update::{Desired, Note, UpdateStatus};

use crate::budget::PodSeen;
use crate::seen::NodeSeen;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Look at the pods of a node, and decide again.
    Inspect {
        /// The node.
        node: String,
    },
    /// Write on a node.
    Write {
        /// The node.
        node: String,
        /// What.
        change: Box<Change>,
        /// Why, in a word.
        reason: &'static str,
        /// Why, in a sentence.
        message: String,
    },
    /// Ask pods to leave.
    Evict {
        /// Their node.
        node: String,
        /// The pods.
        pods: Vec<PodSeen>,
    },
    /// Delete pods that did not leave.
    Delete {
        /// Their node.
        node: String,
        /// The pods.
        pods: Vec<PodSeen>,
        /// Without their time to end: their node does not answer.
        at_once: bool,
    },
    /// Ask a registry what an image is that is named by its tag.
    LookUp {
        /// The image, in full.
        image: String,
    },
    /// Tell how far it is.
    Tell(Box<UpdateStatus>),
}

/// What is written on a node, all of it at once. Nothing: it stays. Nothing inside of something: it is taken away.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    /// Closed to new pods, or open.
    pub cordon: Option<bool>,
    /// Who has closed it.
    pub cordoned_by: Option<Option<String>>,
    /// What it is to become.
    pub desired: Option<Option<Desired>>,
    /// What is known of it.
    pub note: Option<Option<Note>>,
}

/// The code of what somebody between the operator and the Nodes does not let through.
pub(crate) const REFUSED: &str = "Refused";

/// Why no further node begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub text: String,
}

impl Change {
    pub(crate) fn uncordon(&mut self) {
        (self.cordon, self.cordoned_by) = (Some(false), Some(None));
    }
}

pub(crate) fn write(node: &NodeSeen, change: Change, reason: &'static str, message: String) -> Step {
    Step::Write { node: node.name.clone(), change: Box::new(change), reason, message }
}
