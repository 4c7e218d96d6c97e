//! What the operator sees of a cluster when it decides (pure).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use nkd_api::update::{CORDONED_BY, DESIRED, Desired, NOTE, Note, NoteState, REPORTED, Reported, ReportedState};
use serde::de::DeserializeOwned;
use time::Duration;

use crate::budget::PodSeen;
use crate::image::Looked;

const ROLES: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// Everything that a decision goes by, beside the update itself.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// All nodes.
    pub nodes: Vec<NodeSeen>,
    /// The node that the operator itself runs on.
    pub own_node: Option<String>,
    /// An update that comes before the one in question.
    pub ahead: Option<String>,
    /// How far the look-up of its image is.
    pub looked: Option<Looked>,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeSeen {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// It is a control plane.
    pub control_plane: bool,
    /// Its kubelet says so, and the cluster believes it.
    pub ready: bool,
    /// Why its etcd or its API server cannot be counted on, as far as somebody has looked.
    pub ill: Option<String>,
    /// It is a control plane by what is remembered of it: its Node does not say so.
    pub unlabelled: bool,
    /// It takes no new pods.
    pub unschedulable: bool,
    /// Its kubelet's version.
    pub kubelet: String,
    /// The uid of the update that has cordoned it.
    pub cordoned_by: Option<String>,
    /// What it is to become.
    pub desired: Option<Desired>,
    /// What its agent says.
    pub reported: Option<Reported>,
    /// What the operator knows of it.
    pub note: Option<Note>,
    /// How long that has been so.
    pub waited: Duration,
    /// Its pods; nothing: nobody has looked.
    pub pods: Option<PodsSeen>,
    /// What was said last by what holds its pods. It is shown, and decides nothing.
    pub said: String,
    /// What was said when it could not be written last. The same.
    pub refused: String,
}

/// The pods of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodsSeen {
    /// Those that have to leave.
    pub leaving: Vec<PodSeen>,
    /// Why some could never leave.
    pub obstacles: Vec<String>,
}

impl NodeSeen {
    /// Reads a node. An annotation that does not read is none.
    #[must_use]
    pub fn read(node: &Node) -> Self {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let annotations = node.metadata.annotations.clone().unwrap_or_default();
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let kubelet = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            control_plane: ROLES.iter().any(|role| labels.contains_key(*role)),
            labels,
            ready: conditions.clone().any(|one| one.type_ == "Ready" && one.status == "True"),
            ill: None,
            unlabelled: false,
            unschedulable: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default(),
            kubelet: kubelet.map(|info| info.kubelet_version.clone()).unwrap_or_default(),
            cordoned_by: annotations.get(CORDONED_BY).cloned(),
            desired: json(&annotations, DESIRED),
            reported: json(&annotations, REPORTED),
            note: json(&annotations, NOTE),
            waited: Duration::ZERO,
            pods: None,
            said: String::new(),
            refused: String::new(),
        }
    }

    /// What its agent says about what is desired now.
    #[must_use]
    pub fn report(&self) -> Option<&Reported> {
        let desired = self.desired.as_ref()?;
        self.reported.as_ref().filter(|said| said.uid == desired.uid && said.attempt == desired.attempt)
    }

    /// It says nothing of any update, as a Node does that has just registered.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.desired.is_none() && self.reported.is_none() && self.note.is_none() && self.cordoned_by.is_none()
    }

    /// It is between cordon and uncordon of some update.
    #[must_use]
    pub fn busy_for(&self) -> Option<&str> {
        if let Some(note) = &self.note
            && matches!(note.state, NoteState::Begun | NoteState::Soaking)
        {
            return Some(&note.uid);
        }
        if self.is_back() {
            return self.note.as_ref().map(|note| note.uid.as_str());
        }
        let desired = self.desired.as_ref().filter(|desired| desired.go)?;
        let known = self.note.as_ref().is_some_and(|note| note.uid == desired.uid);
        let ended = self.report().is_some_and(|said| said.state.is_end());
        (!known && !ended).then_some(&desired.uid)
    }

    /// It is away by the operator's doing.
    #[must_use]
    pub fn held(&self) -> bool {
        self.cordoned_by.is_some() || self.busy_for().is_some() || self.is_lost() || self.is_at_earlier()
    }

    /// Its agent is at work on another attempt than the one that is desired, or on one of the same number that it was told to begin
    /// before its node was deleted and registered again, and has not come to its end.
    fn is_at_earlier(&self) -> bool {
        let (Some(desired), Some(said)) = (&self.desired, &self.reported) else { return false };
        let earlier = said.uid == desired.uid && (said.attempt != desired.attempt || !desired.go);
        earlier && said.state > ReportedState::Staged && !said.state.is_end()
    }

    /// Its agent has said nothing new since it was given up.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        let note = self.note.as_ref().filter(|note| note.state == NoteState::Silent);
        note.is_some_and(|note| self.report().map(|said| said.state) == note.heard)
    }

    /// It was told to go by the update that has given it up.
    fn was_given_up_going(&self) -> bool {
        let note = self.note.as_ref().filter(|note| note.state == NoteState::Silent);
        note.is_some_and(|note| self.desired.as_ref().is_some_and(|desired| desired.go && desired.uid == note.uid))
    }

    /// It was told to go, and its agent is not heard of: nobody knows what it runs.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.was_given_up_going() && self.is_silent()
    }

    /// It was lost, and its agent has said something since.
    #[must_use]
    pub fn is_back(&self) -> bool {
        self.was_given_up_going() && !self.is_silent()
    }

    /// Its agent may be at work on something that it was told, also when that counts as failed.
    #[must_use]
    pub fn may_move(&self) -> bool {
        let unheard = self.held() && self.desired.is_some() && self.report().is_none();
        self.busy_for().is_some() || self.is_lost() || self.is_at_earlier() || unheard
    }

    /// uids of the updates that have left something on it.
    #[must_use]
    pub fn owners(&self) -> BTreeSet<&str> {
        let desired = self.desired.as_ref().map(|desired| desired.uid.as_str());
        let note = self.note.as_ref().map(|note| note.uid.as_str());
        [self.cordoned_by.as_deref(), desired, note].into_iter().flatten().collect()
    }
}

fn json<T: DeserializeOwned>(annotations: &BTreeMap<String, String>, key: &str) -> Option<T> {
    serde_json::from_str(annotations.get(key)?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_read_from_what_is_written_on_it() {
        let node = json!({
            "metadata": {
                "name": "cp1", "labels": {"node-role.kubernetes.io/master": ""},
                "annotations": {
                    "nkd.io/cordoned-by": "u",
                    "nkd.io/desired": r#"{"update":"a","uid":"u","attempt":2,"os":null,"kubernetes":"v1.21.0","first":true,"go":true}"#,
                    "nkd.io/reported": r#"{"uid":"u","attempt":1,"state":"healthy","detail":"","os":null,"kubernetes":null}"#,
                    "nkd.io/update-note": "not JSON",
                },
            },
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {
                    "kubeletVersion": "v1.20.2", "architecture": "", "bootID": "", "containerRuntimeVersion": "",
                    "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                    "systemUUID": "",
                },
            },
        });
        let node = NodeSeen::read(&serde_json::from_value(node).unwrap());
        assert!(node.control_plane && node.ready && node.unschedulable && node.held());
        assert_eq!(node.kubelet, "v1.20.2");
        assert!(node.report().is_none(), "it speaks of an earlier try");
        assert_eq!(node.busy_for(), Some("u"), "told to go, and no end is known");
        assert_eq!(node.note, None);
    }
}
