//! What a look means, for any upstream.

use nkd_api::channel::Release;
use proptest::prelude::*;

use super::*;

fn at(minutes: u32) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::minutes(minutes.into())
}

fn channel(commits: &[u32]) -> Channel {
    let release = |(number, commit): (u32, &u32)| Release {
        number,
        version: commit.to_string(),
        commit: format!("{commit:064x}"),
        reference: "lab/x86_64/stable".into(),
        kubernetes: None,
        notes: String::new(),
        published_at: at(number),
        signed_by: None,
        promoted_from: None,
        barrier: false,
        dead_end: None,
        rollout_minutes: 0,
    };
    let releases = (1..).zip(commits).map(release).collect();
    Channel { name: "stable".into(), profile: "lab".into(), architecture: "x86_64".into(), releases }
}

proptest! {
    #[test]
    fn only_what_is_newer_and_not_known_becomes_a_release(
        commits in prop::collection::vec(0..9_u32, 0..6), offered in 0..12_u32, made in 0..9_u32, newest_made in 0..9_u32,
    ) {
        let channel = channel(&commits);
        let commit = format!("{offered:064x}");
        let newest_at = channel.newest().map(|_| at(newest_made));
        let verdict = judge(Some(&channel), newest_at, Offered { commit: &commit, made_at: at(made) });
        let expected_new = !commits.contains(&offered) && (commits.is_empty() || made >= newest_made);
        prop_assert_eq!(verdict == Verdict::New, expected_new);
        prop_assert_eq!(verdict == Verdict::Same, commits.last() == Some(&offered));
    }

    #[test]
    fn pauses_grow_and_stay_below_what_was_asked(every in 60..1_000_000_u64, failures in 0..100_u32) {
        let every = Duration::from_secs(every);
        prop_assert!(pause(every, failures) <= every);
        prop_assert!(failures == 0 || pause(every, failures) <= pause(every, failures + 1));
        prop_assert_eq!(pause(every, 0), every);
    }

    #[test]
    fn a_mirror_looks_again_whatever_the_clock_does(every in 1..10_000_u32, wait in 0..10_000_u32, back in 0..100_000_u32) {
        let every_time = Duration::from_secs(u64::from(every) * 60);
        let (now, next) = (at(200_000), at(200_000 + wait.min(every)));
        prop_assert!(is_due(next, every_time, next), "when its time has come");
        let put_back = at(200_000 - back);
        let longest = at(200_000 - back + every);
        prop_assert!(is_due(next, every_time, put_back) || next <= longest);
        prop_assert_eq!(is_due(next, every_time, now), wait == 0);
    }
}
