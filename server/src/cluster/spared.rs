//! Whether the machine of a cluster's node can be spared, so that it may be installed again (pure).
//!
//! Its disk is gone afterwards, and it joins anew. A worker's pods are made elsewhere; of control planes only one may be away at
//! a time, and etcd has to have its majority without it, before anybody has taken its member out. While an upgrade goes on, the operator in the cluster decides alone
//! which node is away.

use nkd_api::cluster::Role;
use nkd_api::upgrade::Upgrade;

use super::leave;
use super::record::{Record, is_in};
use super::upgrade::beside;

/// Why a machine has to stay as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// An upgrade of its cluster has not ended.
    #[error(
        "{node} is a node of {cluster}, whose upgrade {number} is {state}: until that has ended, housekeeper alone says which node is away"
    )]
    Upgrade {
        /// Its name there.
        node: String,
        /// The cluster.
        cluster: String,
        /// The upgrade's number.
        number: u32,
        /// How far that is.
        state: &'static str,
    },
    /// etcd is on no other disk.
    #[error("{node} is the only control plane of {cluster}: all that the cluster knows is on its disk")]
    Only {
        /// Its name there.
        node: String,
        /// The cluster.
        cluster: String,
    },
    /// Another control plane is away, or soon will be.
    #[error("{node} is a control plane of {cluster}, and {other}")]
    Other {
        /// Its name there.
        node: String,
        /// The cluster.
        cluster: String,
        /// What goes on.
        other: String,
    },
    /// The rest of etcd could not go on, or nobody knows whether it could.
    #[error("{node} is a control plane of {cluster}: {why}")]
    Etcd {
        /// Its name there.
        node: String,
        /// The cluster.
        cluster: String,
        /// What etcd says.
        why: String,
    },
}

impl Why {
    /// What to do about it.
    #[must_use]
    pub fn next(&self) -> String {
        match self {
            Self::Upgrade { cluster, .. } => {
                format!("`nkd upgrade status {cluster}` shows how far it is, `nkd upgrade abort {cluster}` ends it")
            }
            Self::Only { cluster, .. } => format!(
                "join another control plane first, or end it with `nkd cluster destroy {cluster}`; `nkd cluster snapshot take {cluster}` keeps what it knows"
            ),
            Self::Other { cluster, .. } => format!("`nkd cluster status {cluster}` shows when that is over"),
            Self::Etcd { node, cluster, .. } => {
                format!("`nkd cluster remove {cluster} {node}` takes it out of etcd first, as soon as that can be")
            }
        }
    }
}

/// True when etcd has to be asked: for a control plane that it may count on.
#[must_use]
pub fn asks_etcd(record: &Record, index: usize) -> bool {
    let member = &record.members[index];
    member.role == Role::ControlPlane && stays(record, index)
}

/// A member that is to stay in the cluster.
fn stays(record: &Record, index: usize) -> bool {
    let member = &record.members[index];
    let begun = is_in(member.state) || member.run.is_some_and(|run| run.ended_at.is_none());
    begun && member.leaving.is_none() && !record.destroying
}

/// Whether this member's machine may lose its disk now. `etcd`: why its member of etcd has to stay, if that was asked.
///
/// # Errors
/// The reason why not.
pub fn may_go(record: &Record, index: usize, upgrade: Option<&Upgrade>, etcd: Option<&str>) -> Result<(), Why> {
    if !stays(record, index) {
        return Ok(());
    }
    let (node, cluster) = (record.members[index].hostname.clone(), record.name().to_owned());
    if let Some(upgrade) = upgrade.filter(|upgrade| !upgrade.state.is_end()) {
        return Err(Why::Upgrade { node, cluster, number: upgrade.number, state: upgrade.state.as_str() });
    }
    if !asks_etcd(record, index) {
        return Ok(());
    }
    let mut others = record.clone();
    others.members.remove(index);
    if !others.members.iter().any(leave::carries) {
        return Err(Why::Only { node, cluster });
    }
    if let Some(other) = beside::waits(&others) {
        return Err(Why::Other { node, cluster, other });
    }
    etcd.map_or(Ok(()), |why| Err(Why::Etcd { node, cluster, why: why.to_owned() }))
}

#[cfg(test)]
mod tests {
    use nkd_api::cluster::MemberState;
    use proptest::prelude::*;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::cluster::plan::tests::cluster;
    use crate::cluster::record::{Leaving, Then};
    use crate::cluster::upgrade::beside::tests::upgrade;

    const NOW: time::OffsetDateTime = datetime!(2026-11-30 12:00 UTC);

    /// So many control planes that are in, and one worker.
    fn record(planes: u8) -> Record {
        let mut record = Record::new(Uuid::from_u128(1), cluster(planes, 1), NOW);
        for member in &mut record.members {
            (member.state, member.generation) = (MemberState::Ready, Some(1));
        }
        record
    }

    fn of(record: &Record, role: Role) -> usize {
        record.members.iter().position(|m| m.role == role).unwrap()
    }

    #[test]
    fn a_worker_may_go_and_the_only_control_plane_may_not() {
        let record = record(1);
        assert_eq!(may_go(&record, of(&record, Role::Worker), None, None), Ok(()));
        assert!(!asks_etcd(&record, of(&record, Role::Worker)));
        let why = may_go(&record, of(&record, Role::ControlPlane), None, None).unwrap_err();
        assert!(matches!(why, Why::Only { .. }) && why.next().contains("destroy"), "{why:?}");
    }

    #[test]
    fn nobody_goes_while_an_upgrade_has_not_ended() {
        let record = record(3);
        for role in [Role::Worker, Role::ControlPlane] {
            let index = of(&record, role);
            for state in ["preparing", "running", "paused", "halted", "aborting"] {
                let goes_on = upgrade(state, &[]);
                let why = may_go(&record, index, Some(&goes_on), None).unwrap_err();
                assert!(why.to_string().contains(state) && why.next().contains("abort"), "{why}");
            }
            for state in ["complete", "aborted"] {
                assert_eq!(may_go(&record, index, Some(&upgrade(state, &[])), None), Ok(()), "{state}");
            }
        }
    }

    #[test]
    fn one_that_leaves_or_never_joined_is_nobodys() {
        let goes_on = upgrade("running", &[]);
        for change in [
            (|r| r.members[0].leaving = Some(Leaving::new(NOW, true, Then::SameMachine))) as fn(&mut Record),
            |r| (r.members[0].state, r.members[0].generation) = (MemberState::Enrolled, None),
            |r| r.destroying = true,
        ] {
            let mut record = record(1);
            change(&mut record);
            assert_eq!(may_go(&record, 0, Some(&goes_on), Some("no majority")), Ok(()));
        }
    }

    proptest! {
        #[test]
        fn a_control_plane_goes_only_alone_and_when_etcd_lets_it(
            states in proptest::collection::vec(0..4_u8, 1..5),
            which in 0..5_usize,
            etcd in proptest::option::of("[a-z ]{1,20}"),
        ) {
            let mut record = record(u8::try_from(states.len()).unwrap());
            for (member, state) in record.members.iter_mut().zip(&states) {
                match state {
                    0 | 1 => {}
                    2 => member.state = MemberState::Joining,
                    _ => member.leaving = Some(Leaving::new(NOW, false, Then::SameMachine)),
                }
            }
            let index = which % states.len();
            let may = may_go(&record, index, None, etcd.as_deref()).is_ok();
            let own_is_in = states[index] < 2;
            let others: Vec<u8> = states.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, s)| *s).collect();
            if own_is_in {
                let alone = !others.is_empty() && others.iter().all(|state| *state < 2);
                prop_assert_eq!(may, alone && etcd.is_none(), "{:?} {}", states, index);
            }
        }
    }
}
