//! What a look at an upstream means, and when the next one is (pure).

use std::time::Duration;

use nkd_api::channel::Channel;
use time::OffsetDateTime;

/// The first wait after a look that failed; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(60);

/// The commit that an upstream's ref stands for.
#[derive(Debug, Clone, Copy)]
pub struct Offered<'a> {
    /// Which.
    pub commit: &'a str,
    /// When it was made.
    pub made_at: OffsetDateTime,
}

/// What is to be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is a release to be.
    New,
    /// It is the newest release already.
    Same,
    /// The upstream went back; why that is so.
    Backwards(String),
}

/// Judges what an upstream offers. `newest_at`: when the commit of the channel's newest release was made.
#[must_use]
pub fn judge(channel: Option<&Channel>, newest_at: Option<OffsetDateTime>, offered: Offered<'_>) -> Verdict {
    let Some((channel, newest)) = channel.and_then(|channel| Some((channel, channel.newest()?))) else {
        return Verdict::New;
    };
    if newest.commit == offered.commit {
        return Verdict::Same;
    }
    let short: String = offered.commit.chars().take(12).collect();
    if let Some(release) = channel.releases.iter().rfind(|release| release.commit == offered.commit) {
        let number = release.number;
        return Verdict::Backwards(format!("the upstream went back to commit {short}, which is release {number}"));
    }
    match newest_at.filter(|newest_at| offered.made_at < *newest_at) {
        Some(newest_at) => Verdict::Backwards(format!(
            "the upstream went back to commit {short} of {}, which is older than release {} of {newest_at}",
            offered.made_at, newest.number,
        )),
        None => Verdict::New,
    }
}

/// How long to wait after so many failures without a break.
#[must_use]
pub fn pause(every: Duration, failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => every,
        Some(doublings) => FIRST.saturating_mul(1 << doublings.min(20)).min(every),
    }
}

/// Whether it is time. A clock that was put back must not keep a mirror from looking.
#[must_use]
pub fn is_due(next_look_at: OffsetDateTime, every: Duration, now: OffsetDateTime) -> bool {
    next_look_at <= now || next_look_at - now > every
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
