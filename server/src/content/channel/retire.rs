//! Old releases leave their channel; later, when nobody reads them any more, their objects leave the repository.
//!
//! Three moments, each found again after a `kill -9`: the list without the release, its commit among the retired ones and
//! the audit trail are one write; refs and summary follow, as at every start; a retired commit is forgotten when ostree
//! has removed it and the summary was written.
//!
//! How long a commit has been retired, and how long nobody has read of it, counts from when this run of the service saw it, by
//! the steady clock: a date that is set in the meantime, or was wrong when it was written down, neither takes objects from a
//! reader nor leaves them for ever.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nkd_api::channel::{Channel, KeptRelease, PruneOrder, Pruned, Release};
use nkd_api::user::AuditEntry;
use time::OffsetDateTime;

use super::polled::NEEDED_FOR;
use super::prune::{Users, plan};
use super::{ChannelError, Channels, Repository, blocking, settle, wrong};
use crate::http::chain;
use crate::store::StoreError;

/// The longest time between two looks.
const TICK: Duration = Duration::from_secs(60);
/// The same after looks that failed.
const LONGEST: Duration = Duration::from_secs(3600);

/// A commit that no release is any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Retired {
    /// Whose repository has it.
    pub profile: String,
    /// Which.
    pub commit: String,
    /// Since when. It tells this time from another one that it was retired; no wait counts by it.
    pub at: OffsetDateTime,
}

impl Channels {
    /// Retires releases that are older than the newest ones and that nobody needs.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing has changed then.
    pub async fn prune(
        &self,
        name: &str,
        order: PruneOrder,
        by: &str,
        (now, at): (OffsetDateTime, Instant),
    ) -> Result<Pruned, ChannelError> {
        if order.keep == 0 {
            return Err(wrong("keep", "at least the newest release stays: say 1 or more"));
        }
        let _writing = self.turn().await?;
        let (channel, revision) =
            self.store.channel(name).await?.ok_or_else(|| ChannelError::NoChannel(name.to_owned()))?;
        let (all, mut users) = (self.store.channels().await?, self.users().await?);
        users.polled = self.store.polled(name, now - NEEDED_FOR).await?;
        users.polled.extend(self.polled.lock().unwrap_or_else(PoisonError::into_inner).needed(name, at));
        let mut pruned = Pruned { dry_run: order.dry_run, retired: Vec::new(), kept: Vec::new() };
        for (release, needed) in plan(&channel, order.keep, &all, &users) {
            match needed {
                None => pruned.retired.push(release.clone()),
                Some(reason) => pruned.kept.push(KeptRelease {
                    release: release.number,
                    version: release.version.clone(),
                    reason: reason.to_string(),
                }),
            }
        }
        if order.dry_run || pruned.retired.is_empty() {
            return Ok(pruned);
        }
        let goes = |release: &Release| pruned.retired.iter().any(|gone| gone.number == release.number);
        let rest = channel.releases.iter().filter(|release| !goes(release)).cloned().collect();
        let rest = Channel { releases: rest, ..channel.clone() };
        let trail: Vec<AuditEntry> = pruned.retired.iter().map(|release| taken_off(name, release, by, now)).collect();
        let commits: Vec<&str> = pruned.retired.iter().map(|release| release.commit.as_str()).collect();
        self.store.retire(&rest, revision, &commits, &trail, now).await?;
        for commit in &commits {
            self.polled.lock().unwrap_or_else(PoisonError::into_inner).forget(name, commit);
        }
        tracing::info!(channel = name, releases = commits.len(), "releases are retired");
        // They are off the list whatever comes of that.
        self.note_settled(&channel.profile, self.settle_profile(&channel.profile).await);
        Ok(pruned)
    }

    /// Removes the objects of commits that have been retired for long enough and that nobody has read for as long.
    ///
    /// # Errors
    /// [`ChannelError`]; what is left goes the next time.
    pub async fn sweep(&self, date: OffsetDateTime, now: Instant) -> Result<(), ChannelError> {
        let grace = self.grace;
        let all = self.store.retired().await?;
        let due = self.waits.lock().unwrap_or_else(PoisonError::into_inner).due(all, grace, now);
        let mut going: BTreeMap<String, Vec<Retired>> = BTreeMap::new();
        for retired in due {
            if self.is_quiet(&retired, now) {
                going.entry(retired.profile.clone()).or_default().push(retired);
            }
        }
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).forget(grace, now);
        // One that cannot be swept leaves the others their turn of this round.
        let mut first = Ok(());
        for (profile, retired) in going {
            let swept = self.sweep_profile(&profile, retired, now).await;
            if let (Err(_), Err(error)) = (&first, &swept) {
                tracing::warn!(profile, error = error as &dyn std::error::Error, "retired releases are not removed");
            }
            first = first.and(swept);
        }
        // A date that lies ahead is of a clock that was set back since. It is one of now when the clock has had the time to be put
        // right, for which the steady one stands: of this run all is known by then.
        let begun = *self.begun.get_or_init(|| now);
        if now.saturating_duration_since(begun) < NEEDED_FOR {
            return first;
        }
        first.and(self.store.set_polled_back(date).await.map_err(ChannelError::from))
    }

    /// Takes the commits of a profile, whose time has come, out of its repository, unless somebody uses them again.
    async fn sweep_profile(&self, profile: &str, retired: Vec<Retired>, now: Instant) -> Result<(), ChannelError> {
        let _writing = self.turn().await?;
        let (channels, users) = (self.store.channels().await?, self.users().await?);
        // A release may have come to be this commit again.
        let of_profile = || channels.iter().filter(|channel| channel.profile == *profile);
        let holds = |retired: &Retired| {
            of_profile().any(|channel| channel.releases.iter().any(|release| release.commit == retired.commit))
        };
        let (held, loose): (Vec<_>, Vec<_>) = retired.into_iter().partition(holds);
        let unused = |retired: &Retired| !users.has(&retired.commit) && self.is_quiet(retired, now);
        let loose: Vec<Retired> = loose.into_iter().filter(unused).collect();
        if !loose.is_empty() {
            let repository = Repository::at(&self.folder().join(profile));
            let commits: Vec<String> = loose.iter().map(|retired| retired.commit.clone()).collect();
            // After a backup was restored, there may be no repository.
            if let Ok(repository) = repository {
                blocking(move || commits.iter().try_for_each(|commit| repository.remove(commit))).await?;
                self.settle_profile(profile).await?;
            }
            tracing::info!(profile, commits = loose.len(), "objects of retired releases are removed");
        }
        self.store.forget_retired(&[held, loose].concat()).await?;
        Ok(())
    }

    fn is_quiet(&self, retired: &Retired, now: Instant) -> bool {
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        reads.is_quiet(&retired.profile, &retired.commit, self.grace, now)
    }

    /// Who uses releases now.
    async fn users(&self) -> Result<Users, StoreError> {
        let machines = self.store.machines().await?;
        let runs = machines.into_iter().filter_map(|machine| Some((machine.name, machine.facts?.booted_deployment?)));
        let upgrades = self.store.upgrades_under_way().await?;
        let goes = upgrades.into_iter().filter_map(|upgrade| Some((upgrade.cluster, upgrade.commit?)));
        Ok(Users { machines: runs.collect(), upgrades: goes.collect(), polled: Vec::new() })
    }

    /// Refs and summary of a repository, as the list of releases has them.
    pub(super) async fn settle_profile(&self, profile: &str) -> Result<(), ChannelError> {
        let (channels, signer) = (self.store.channels().await?, self.signer().await?);
        self.look_for(&channels, profile).await;
        let (folder, profile) = (self.folder().join(profile), profile.to_owned());
        blocking(move || match Repository::at(&folder) {
            // Somebody took it away, and nobody misses it.
            Err(_) if !channels.iter().any(|channel| channel.profile == profile) => Ok(()),
            repository => settle(&repository?, &channels, &profile, &signer),
        })
        .await
    }
}

impl Repository {
    /// Removes a commit to which no ref leads, what is only in it, and the differences from and to it.
    fn remove(&self, commit: &str) -> Result<(), ChannelError> {
        for (from, to) in self.deltas()?.iter().filter(|(from, to)| from == commit || to == commit) {
            self.ostree("static-delta", &["delete", &format!("{from}-{to}")])?;
        }
        match self.object(commit, "commit").is_file() {
            true => self.ostree("prune", &[format!("--delete-commit={commit}")]).map(drop),
            // Killed in the middle of it: the commit goes first, what was in it next.
            false => self.ostree::<&str>("prune", &[]).map(drop),
        }
    }
}

/// Removes what nobody reads any more, until the service stops.
pub async fn run(channels: Arc<Channels>) {
    let tick = (channels.grace / 4).clamp(Duration::from_millis(250), TICK);
    let mut trouble = Trouble::default();
    loop {
        tokio::select! {
            () = channels.stop.cancelled() => return,
            () = tokio::time::sleep(trouble.rest(tick)) => {}
        }
        // A disk that loses something, or an fsck that marks it, tells nobody.
        let looked = channels.look_for_commits().await.map_err(ChannelError::from);
        let settled = looked.and(channels.settle_again().await);
        match settled.and(channels.sweep(OffsetDateTime::now_utc(), Instant::now()).await) {
            Ok(()) if trouble.is_over() => tracing::info!("retired releases are removed again"),
            Ok(()) | Err(ChannelError::Stopped) => {}
            Err(error) => {
                if trouble.is_news(&chain(&error)) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "retired releases are not removed, or a summary is not written: tried again");
                }
            }
        }
    }
}

/// What goes wrong again and again.
#[derive(Debug, Default)]
struct Trouble {
    times: u32,
    said: String,
}

impl Trouble {
    /// It has gone wrong once more. Whether that was in another way than the last time.
    fn is_news(&mut self, said: &str) -> bool {
        self.times = self.times.saturating_add(1);
        // Files that a program was about to write are called otherwise each time.
        let said = said.split(' ').filter(|word| !word.contains("tmp")).collect::<Vec<_>>().join(" ");
        let is_news = self.said != said;
        self.said = said;
        is_news
    }

    /// It has gone well. Whether it had not before.
    fn is_over(&mut self) -> bool {
        std::mem::take(self).times > 0
    }

    /// Until the next time: each failure doubles it.
    fn rest(&self, tick: Duration) -> Duration {
        tick.saturating_mul(1 << self.times.min(20)).min(LONGEST.max(tick))
    }
}

/// What the audit trail keeps of a release that is taken off its channel.
pub(super) fn taken_off(channel: &str, release: &Release, by: &str, at: OffsetDateTime) -> AuditEntry {
    AuditEntry {
        at,
        who: by.to_owned(),
        action: "channel.retire".into(),
        target: format!("{channel} {}", release.number),
        // Nowhere else is it known any more.
        detail: serde_json::to_string(release).unwrap_or_default(),
    }
}

#[cfg(test)]
#[path = "retire_tests.rs"]
mod tests;
