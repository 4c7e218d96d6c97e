//! Whether what is to be a channel's next release is older than what it has (pure).
//!
//! Every system is led to the newest number. Whoever publishes an older build by mistake would take a fleet back: kubelets
//! below what the cluster allows, bugs that were mended. Stock zincati refuses a commit that was made before its own.

use std::cmp::Ordering;

use nkd_api::channel::{Channel, Release};
use time::OffsetDateTime;

use crate::cluster::file::syntax;

/// What is to be a release.
#[derive(Debug, Clone, Copy)]
pub struct Offered<'a> {
    /// Which commit.
    pub commit: &'a str,
    /// Its version.
    pub version: &'a str,
    /// Its Kubernetes, as far as it is said.
    pub kubernetes: Option<&'a str>,
    /// When its commit was made, if it tells so.
    pub made_at: Option<OffsetDateTime>,
}

/// The release that something leads to last: what is offered would come after it.
#[must_use]
pub fn newest(channel: &Channel) -> Option<&Release> {
    channel.releases.iter().rfind(|release| release.dead_end.is_none())
}

/// Why what is offered is older than a release. `made_at`: when the commit of that one was made, if it is known. None: it is
/// not older, or nobody can tell.
#[must_use]
pub fn older(than: &Release, made_at: Option<OffsetDateTime>, offered: &Offered<'_>) -> Option<String> {
    // Something is said otherwise of the same commit: nobody goes back.
    if than.commit == offered.commit {
        return None;
    }
    let number = than.number;
    if let (Some(is), Some(was)) = (offered.kubernetes, than.kubernetes.as_deref())
        && let (Some(of), Some(before)) = (syntax::version(is), syntax::version(was))
        && of < before
    {
        return Some(format!("it holds Kubernetes {is}, and release {number} holds {was}"));
    }
    if compare(offered.version, &than.version) == Some(Ordering::Less) {
        return Some(format!("its version {} is lower than {} of release {number}", offered.version, than.version));
    }
    let (is, was) = (offered.made_at?, made_at?);
    (is < was).then(|| format!("its commit was made at {is}, before that of release {number} ({was})"))
}

/// Clocks of builders may differ by this.
const DAY: time::Duration = time::Duration::days(1);

/// Why everything that comes after what is offered would be older than it. None: it would not.
#[must_use]
pub fn ahead(offered: &Offered<'_>, now: OffsetDateTime) -> Option<String> {
    let made_at = offered.made_at.filter(|made_at| *made_at > now + DAY)?;
    Some(format!("its commit was made at {made_at}, which is to come: whatever follows would be older"))
}

/// Versions of builds are numbers between dots (`39.20231101.3.0`). None: they differ in something else first.
fn compare(one: &str, other: &str) -> Option<Ordering> {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        let number = |part: &str| part.parse::<u64>().ok();
        match (one.next(), other.next()) {
            (None, None) => return Some(Ordering::Equal),
            // 1.2 comes before 1.2.1, and nobody knows of 1.2.rc1.
            (None, Some(part)) => return number(part).map(|_| Ordering::Less),
            (Some(part), None) => return number(part).map(|_| Ordering::Greater),
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => match number(a)?.cmp(&number(b)?) {
                Ordering::Equal => {}
                differs => return Some(differs),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::Duration;

    use super::*;

    fn at(minutes: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::minutes(minutes)
    }

    fn release(version: &str, kubernetes: Option<&str>) -> Release {
        Release {
            number: 3,
            version: version.into(),
            commit: "a".into(),
            reference: String::new(),
            kubernetes: kubernetes.map(str::to_owned),
            notes: String::new(),
            published_at: at(0),
            signed_by: None,
            promoted_from: None,
            barrier: false,
            dead_end: None,
            rollout_minutes: 0,
        }
    }

    fn offered<'a>(version: &'a str, kubernetes: Option<&'a str>) -> Offered<'a> {
        Offered { commit: "b", version, kubernetes, made_at: Some(at(9)) }
    }

    #[test]
    fn each_kind_of_older_is_told() {
        let there = release("39.20231101.3.0", Some("v1.21.0"));
        let said = |version, kubernetes, made_at| older(&there, made_at, &offered(version, kubernetes));
        assert_eq!(
            said("40.1", Some("v1.20.9"), None).unwrap(),
            "it holds Kubernetes v1.20.9, and release 3 holds v1.21.0"
        );
        assert_eq!(
            said("39.20231031.3.0", None, None).unwrap(),
            "its version 39.20231031.3.0 is lower than 39.20231101.3.0 of release 3"
        );
        assert!(said("dev", None, Some(at(10))).unwrap().starts_with("its commit was made at 1970-01-01 0:09"));
        for (version, kubernetes, made_at) in
            [("39.20231101.3.0", Some("v1.21.0"), Some(at(9))), ("40.1", Some("v1.100.0"), None), ("dev", None, None)]
        {
            assert_eq!(said(version, kubernetes, made_at), None, "{version}");
        }
        let again = Offered { commit: "a", ..offered("1", Some("v1.20.0")) };
        assert_eq!(older(&there, Some(at(10)), &again), None, "it is the same commit");
    }

    #[test]
    fn what_is_to_come_is_told() {
        let made = |minutes| ahead(&Offered { made_at: Some(at(minutes)), ..offered("1", None) }, at(0));
        assert!(made(24 * 60).is_none());
        assert!(made(24 * 60 + 1).unwrap().starts_with("its commit was made at 1970-01-02 0:01"));
    }

    #[test]
    fn what_leads_nowhere_is_not_what_one_goes_back_from() {
        let dead = Release { dead_end: Some("it eats disks".into()), number: 4, ..release("9", None) };
        let (name, profile, architecture) = ("stable".into(), "lab".into(), "x86_64".into());
        let channel = Channel { name, profile, architecture, releases: vec![release("3", None), dead] };
        assert_eq!(newest(&channel).map(|release| release.number), Some(3));
    }

    proptest! {
        #[test]
        fn versions_of_numbers_have_their_order(one in prop::collection::vec(0..30_u64, 1..5), other in prop::collection::vec(0..30_u64, 1..5)) {
            let text = |parts: &[u64]| parts.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
            prop_assert_eq!(compare(&text(&one), &text(&other)), Some(one.cmp(&other)));
        }

        #[test]
        fn nothing_is_lower_both_ways(one in "[0-9a-c.]{0,6}", other in "[0-9a-c.]{0,6}") {
            prop_assert_eq!(compare(&one, &other), compare(&other, &one).map(Ordering::reverse));
        }
    }
}
