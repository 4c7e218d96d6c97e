//! Whether a member of etcd may go without the others losing their majority (pure).
//!
//! etcd goes on as long as more than half of its voting members do; learners do not vote. A removal is itself a vote of
//! the members of before, so that a majority of those must be there as well.

/// A member of etcd as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberHealth {
    /// Identity.
    pub id: u64,
    /// Name; empty before its first start.
    pub name: String,
    /// It answers, and follows a leader.
    pub healthy: bool,
    /// It does not vote yet.
    pub learner: bool,
}

/// Why a member has to stay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// There is no such member.
    #[error("etcd has no member {0:x}: it may be gone already")]
    Unknown(u64),
    /// Without it there is no etcd.
    #[error("{0} is the last member of etcd: its data would be lost; join another control plane first")]
    Last(String),
    /// Nothing can be changed now.
    #[error(
        "{healthy} of {voters} members of etcd are healthy, and {needed} are needed to change anything: bring one back first"
    )]
    NoQuorum {
        /// Healthy voters.
        healthy: usize,
        /// All voters.
        voters: usize,
        /// Majority of them.
        needed: usize,
    },
    /// The rest could not go on.
    #[error(
        "without {name}, {healthy} of {voters} members of etcd would be healthy, and {needed} are needed: bring one back first"
    )]
    WouldLose {
        /// The one that was to go.
        name: String,
        /// Healthy voters that would be left.
        healthy: usize,
        /// All voters that would be left.
        voters: usize,
        /// Majority of those.
        needed: usize,
    },
}

/// How many of so many voters are a majority.
#[must_use]
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// How many more healthy voters can be lost before nothing goes on. None: too many are lost already.
#[must_use]
pub fn spare(members: &[MemberHealth]) -> Option<usize> {
    let (healthy, voters) = count(members.iter());
    healthy.checked_sub(majority(voters)).filter(|_| voters > 0)
}

/// Whether the member with this identity may be removed.
///
/// # Errors
/// The reason why not.
pub fn may_remove(members: &[MemberHealth], which: u64) -> Result<(), Why> {
    let member = members.iter().find(|m| m.id == which).ok_or(Why::Unknown(which))?;
    let (healthy, voters) = count(members.iter());
    let (healthy_left, voters_left) = count(members.iter().filter(|m| m.id != which));
    if voters_left == 0 {
        return Err(Why::Last(name(member)));
    }
    if healthy < majority(voters) {
        return Err(Why::NoQuorum { healthy, voters, needed: majority(voters) });
    }
    let needed = majority(voters_left);
    if healthy_left < needed {
        return Err(Why::WouldLose { name: name(member), healthy: healthy_left, voters: voters_left, needed });
    }
    Ok(())
}

/// Whether the disk of the member with this identity may be lost before it is taken out: taking it out needs a majority of all
/// members, itself counted.
///
/// # Errors
/// The reason why not.
pub fn may_be_lost(members: &[MemberHealth], which: u64) -> Result<(), Why> {
    may_remove(members, which)?;
    let member = members.iter().find(|m| m.id == which).ok_or(Why::Unknown(which))?;
    let (_, voters) = count(members.iter());
    let (healthy, _) = count(members.iter().filter(|m| m.id != which));
    let needed = majority(voters);
    if healthy < needed {
        return Err(Why::WouldLose { name: name(member), healthy, voters, needed });
    }
    Ok(())
}

/// Healthy voters and all voters.
fn count<'a>(members: impl Iterator<Item = &'a MemberHealth>) -> (usize, usize) {
    members.filter(|m| !m.learner).fold((0, 0), |(healthy, all), m| (healthy + usize::from(m.healthy), all + 1))
}

fn name(member: &MemberHealth) -> String {
    if member.name.is_empty() { format!("member {:x}", member.id) } else { member.name.clone() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `h`: healthy, `d`: down, `l`: a healthy learner.
    fn members(text: &str) -> Vec<MemberHealth> {
        let member = |(id, kind): (usize, char)| MemberHealth {
            id: id as u64,
            name: format!("cp{id}"),
            healthy: kind != 'd',
            learner: kind == 'l',
        };
        text.chars().enumerate().map(member).collect()
    }

    #[test]
    fn whose_disk_may_be_lost() {
        let may = |text: &str, which| may_be_lost(&members(text), which).is_ok();
        for (text, which) in [("hhh", 1), ("dhh", 0), ("hhhh", 0), ("hhhd", 3), ("ddhhh", 0), ("hhl", 2)] {
            assert!(may(text, which), "{text} {which}");
        }
        for (text, which) in [("h", 0), ("hh", 0), ("dhh", 1), ("hhhd", 0), ("ddhhh", 2), ("dh", 0), ("hhh", 7)] {
            assert!(!may(text, which), "{text} {which}");
        }
        let lost = Why::WouldLose { name: "cp0".into(), healthy: 1, voters: 2, needed: 2 };
        assert_eq!(may_be_lost(&members("hh"), 0), Err(lost));
    }

    #[test]
    fn what_may_go_and_what_has_to_stay() {
        let fine = |text: &str, which| assert_eq!(may_remove(&members(text), which), Ok(()), "{text} {which}");
        for (text, which) in [("hh", 0), ("hhh", 1), ("dhh", 0), ("hhhd", 3), ("hhhd", 0), ("hl", 1), ("ddhhh", 0)] {
            fine(text, which);
        }
        let last = Err(Why::Last("cp0".into()));
        assert_eq!(may_remove(&members("h"), 0), last);
        assert_eq!(may_remove(&members("hl"), 0), last, "a learner has no vote");
        assert_eq!(may_remove(&members("dh"), 0), Err(Why::NoQuorum { healthy: 1, voters: 2, needed: 2 }));
        let lost = Why::WouldLose { name: "cp1".into(), healthy: 1, voters: 2, needed: 2 };
        assert_eq!(may_remove(&members("dhh"), 1), Err(lost));
        assert_eq!(may_remove(&members("hhh"), 7), Err(Why::Unknown(7)));
        assert_eq!(may_remove(&[], 0), Err(Why::Unknown(0)));
    }

    #[test]
    fn what_can_be_lost() {
        for (text, want) in
            [("", None), ("h", Some(0)), ("hh", Some(0)), ("hhh", Some(1)), ("dhh", Some(0)), ("ddh", None)]
        {
            assert_eq!(spare(&members(text)), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_removal_never_costs_the_majority(text in "[hdl]{0,9}", which in 0..10u64) {
            let before = members(&text);
            let after: Vec<_> = before.iter().filter(|m| m.id != which).cloned().collect();
            let known = before.len() != after.len();
            let goes_on = |members: &[MemberHealth]| {
                let voters: Vec<_> = members.iter().filter(|m| !m.learner).collect();
                voters.iter().filter(|m| m.healthy).count() * 2 > voters.len()
            };
            let may = may_remove(&before, which).is_ok();
            prop_assert_eq!(may, known && goes_on(&before) && goes_on(&after));
            if may {
                prop_assert!(spare(&after).is_some());
            }
        }

        #[test]
        fn one_that_is_down_never_has_to_stay_for_the_majority_afterwards(text in "[hd]{2,9}", which in 0..9u64) {
            let members = members(&text);
            let down = members.iter().any(|m| m.id == which && !m.healthy);
            if down && spare(&members).is_some() {
                prop_assert_eq!(may_remove(&members, which), Ok(()));
            }
        }
    }
}
