//! The taints of a node that are ours, beside those that Kubernetes itself puts there (pure).
//!
//! A taint is written as in the file, `key=value:NoSchedule`, or `key:NoSchedule` without a value. Which of them are ours
//! stands on the node; where nothing stands, the node has what kubeadm gave it.

use std::collections::BTreeSet;

use nkd_api::cluster::Role;
use serde::Serialize;

use super::kubeadm::KubeadmError;

/// Control planes have `node-role.kubernetes.io/master` until this minor version.
const LAST_MASTER: u32 = 24;
/// And `node-role.kubernetes.io/control-plane` from this one on.
const FIRST_CONTROL_PLANE: u32 = 24;

/// What kubeadm labels a control plane with that runs this minor version.
#[must_use]
pub fn role_labels(minor: u32) -> &'static [&'static str] {
    const MASTER: &str = "node-role.kubernetes.io/master";
    const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
    const NO_BALANCER: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
    match minor {
        ..20 => &[MASTER],
        20 => &[MASTER, CONTROL_PLANE],
        21..24 => &[MASTER, CONTROL_PLANE, NO_BALANCER],
        24.. => &[CONTROL_PLANE, NO_BALANCER],
    }
}

/// The parts of a taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Taint<'a> {
    /// Key.
    pub key: &'a str,
    /// Value; may be empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub value: &'a str,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: &'a str,
}

/// Takes a taint apart.
///
/// # Errors
/// [`KubeadmError::Taint`] for what is none.
pub fn parse(text: &str) -> Result<Taint<'_>, KubeadmError> {
    let parsed = text.rsplit_once(':').and_then(|(rest, effect)| {
        let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect);
        (known && !key.is_empty()).then_some(Taint { key, value, effect })
    });
    parsed.ok_or_else(|| KubeadmError::Taint(text.to_owned()))
}

impl Taint<'_> {
    /// The one way in which we write it.
    #[must_use]
    pub fn written(&self) -> String {
        let Self { key, value, effect } = self;
        if value.is_empty() { format!("{key}:{effect}") } else { format!("{key}={value}:{effect}") }
    }
}

/// What is to be done to the taints of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// All that it is to carry from us.
    pub set: BTreeSet<String>,
    /// Those that it carries from us and is to lose.
    pub remove: BTreeSet<String>,
}

/// What is to be done so that a node has what the file asks for. `wanted` is none where the file leaves them to kubeadm,
/// `ours` is none where nothing stands on the node.
#[must_use]
pub fn change(
    wanted: Option<&[String]>,
    role: Role,
    minor: u32,
    there: &BTreeSet<String>,
    ours: Option<&BTreeSet<String>>,
) -> Option<Change> {
    let set = match (wanted, ours) {
        (Some(wanted), _) => wanted.iter().filter_map(|text| Some(parse(text).ok()?.written())).collect(),
        (None, Some(_)) => of_kubeadm(role, minor),
        // Whatever an administrator has made of it stays.
        (None, None) => return None,
    };
    if set.is_subset(there) && ours == Some(&set) {
        return None;
    }
    let before = ours.cloned().unwrap_or_else(|| of_kubeadm(role, minor));
    Some(Change { remove: &before - &set, set })
}

/// What kubeadm gives a node when it is told nothing.
fn of_kubeadm(role: Role, minor: u32) -> BTreeSet<String> {
    let keys = [("master", minor <= LAST_MASTER), ("control-plane", minor >= FIRST_CONTROL_PLANE)];
    let has = |(_, there): &(&str, bool)| *there && role == Role::ControlPlane;
    keys.into_iter().filter(has).map(|(key, _)| format!("node-role.kubernetes.io/{key}:NoSchedule")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MASTER: &str = "node-role.kubernetes.io/master:NoSchedule";
    const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane:NoSchedule";

    fn all(texts: &[&str]) -> BTreeSet<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn what_an_administrator_did_stays_until_the_file_says_something() {
        let there = all(&["own=1:NoExecute"]);
        assert_eq!(change(None, Role::ControlPlane, 20, &there, None), None);
        let none = change(Some(&[]), Role::ControlPlane, 20, &all(&[MASTER, "own=1:NoExecute"]), None).unwrap();
        assert_eq!(none, Change { set: all(&[]), remove: all(&[MASTER]) });
    }

    #[test]
    fn left_to_kubeadm_again_a_control_plane_has_kubeadms() {
        let ours = all(&["gpu:NoSchedule"]);
        let wanted = [(20, all(&[MASTER])), (24, all(&[MASTER, CONTROL_PLANE])), (25, all(&[CONTROL_PLANE]))];
        for (minor, set) in wanted {
            let there = change(None, Role::ControlPlane, minor, &ours, Some(&ours)).unwrap();
            assert_eq!(there, Change { set, remove: ours.clone() });
        }
        let worker = change(None, Role::Worker, 25, &ours, Some(&ours)).unwrap();
        assert_eq!(worker, Change { set: all(&[]), remove: ours });
    }

    #[test]
    fn an_empty_value_and_none_are_the_same_taint() {
        let there = all(&["gpu:NoSchedule"]);
        assert_eq!(change(Some(&["gpu=:NoSchedule".into()]), Role::Worker, 20, &there, Some(&there)), None);
    }

    proptest! {
        /// Done once, there is nothing left to do; what is not ours is never touched.
        #[test]
        fn a_change_is_done_in_one_step(
            wanted in proptest::option::of(proptest::collection::vec("[a-c](=[x-y])?:No(Schedule|Execute)", 0..4)),
            there in proptest::collection::btree_set("[a-e](=[x-y])?:No(Schedule|Execute)", 0..6),
            ours in proptest::option::of(proptest::collection::btree_set("[a-c](=[x-y])?:No(Schedule|Execute)", 0..4)),
            is_worker: bool,
            minor in 18u32..32,
        ) {
            let role = if is_worker { Role::Worker } else { Role::ControlPlane };
            if let Some(Change { set, remove }) = change(wanted.as_deref(), role, minor, &there, ours.as_ref()) {
                let mine = ours.unwrap_or_else(|| of_kubeadm(role, minor));
                prop_assert!(remove.is_subset(&mine) && remove.is_disjoint(&set));
                let after: BTreeSet<String> = &(&there - &remove) | &set;
                prop_assert_eq!(change(wanted.as_deref(), role, minor, &after, Some(&set)), None);
            }
        }
    }
}
