//! Differences between releases: which of them nodes need (pure), and the job that makes them.
//!
//! A node fetches one file from what it runs to where it goes, instead of every object that changed. They are made from
//! the commits that most machines run, and from the release before, which those that come new run. Systems that only ask
//! for the update graph come after every machine that is known: how many they are, and whether they are, nobody knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nkd_api::channel::Channel;
use nkd_api::machine::{Machine, MachineEvent};
use time::OffsetDateTime;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::polled::NEEDED_FOR;
use super::{ChannelError, Channels, Polled, Repository, blocking, settle};

/// From so many commits at most; the rest of the machines fetch objects.
const MOST: usize = 4;
/// How often it is looked without a reason.
const TICK: Duration = Duration::from_secs(600);
/// Machines that restart one after the other are waited for.
const GATHER: Duration = Duration::from_secs(3);

/// Where machines come from that go to the newest release: the commonest first, then the release before. Commits that
/// are not in the repository are for the caller to leave out.
#[must_use]
pub fn origins(channel: &Channel, machines: &[Machine], polled: &[Polled]) -> Vec<String> {
    let Some(newest) = channel.newest().filter(|newest| newest.dead_end.is_none()) else { return Vec::new() };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let facts = machines.iter().filter_map(|machine| machine.facts.as_ref());
    let ours = facts.filter(|facts| facts.architecture == channel.architecture);
    for commit in ours.filter_map(|facts| facts.booted_deployment.as_deref()) {
        *counts.entry(commit).or_default() += 1;
    }
    // Anybody may ask: they come after every machine that is known.
    for polled in polled {
        counts.entry(&polled.commit).or_default();
    }
    counts.remove(newest.commit.as_str());
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(commit, count)| (std::cmp::Reverse(*count), *commit));
    let mut origins: Vec<&str> = counts.into_iter().take(MOST).map(|(commit, _)| commit).collect();
    let before = channel.releases.iter().rev().map(|release| release.commit.as_str()).find(|c| *c != newest.commit);
    if let Some(before) = before.filter(|before| !origins.contains(before)) {
        origins.push(before);
    }
    origins.into_iter().map(str::to_owned).collect()
}

impl Channels {
    /// Makes the differences that are missing.
    ///
    /// # Errors
    /// [`ChannelError`]; nodes fetch objects then.
    pub async fn make_deltas(&self, now: OffsetDateTime) -> Result<(), ChannelError> {
        for channel in self.store.channels().await? {
            self.make_deltas_of(&channel, now, &|_: &str| {}).await?;
        }
        Ok(())
    }

    /// The same for a channel that has a new release, with the turn to write given up: large ones take minutes. What cannot be
    /// made now is tried again.
    pub(super) async fn make_deltas_to(&self, name: &str, now: OffsetDateTime, step: &(impl Fn(&str) + Send + Sync)) {
        let made = async {
            match self.store.channel(name).await? {
                Some((channel, _)) => self.make_deltas_of(&channel, now, step).await,
                None => Ok(()),
            }
        };
        match made.await {
            // The next start makes the others.
            Ok(()) | Err(ChannelError::Stopped) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, channel = name, "a difference between releases could not be made");
            }
        }
    }

    async fn make_deltas_of(
        &self,
        channel: &Channel,
        now: OffsetDateTime,
        step: &(impl Fn(&str) + Send + Sync),
    ) -> Result<(), ChannelError> {
        let Some(newest) = channel.newest().map(|newest| newest.commit.clone()) else { return Ok(()) };
        let machines = self.store.machines().await?;
        let polled = self.store.polled(&channel.name, now - NEEDED_FOR).await?;
        let (folder, origins) = (self.folder().join(&channel.profile), origins(channel, &machines, &polled));
        let to = newest.clone();
        let missing = blocking(move || match Repository::at(&folder) {
            Ok(repository) => repository.missing(origins, &to),
            // A backup was restored: there is nothing yet.
            Err(_) => Ok(Vec::new()),
        })
        .await?;
        for from in missing {
            let _writing = self.turn().await?;
            if self.stop.is_cancelled() {
                return Err(ChannelError::Stopped);
            }
            // A release may have come meanwhile, or one may have gone.
            let channels = self.store.channels().await?;
            let is_newest = |c: &Channel| c.name == channel.name && c.newest().is_some_and(|r| r.commit == newest);
            let (folder, to) = (self.folder().join(&channel.profile), newest.clone());
            if !channels.iter().any(is_newest) {
                break;
            }
            step(&format!("it is published; making the difference from {}", from.split_at(12).0));
            let (signer, profile) = (self.signer().await?, channel.profile.clone());
            tracing::info!(channel = channel.name, from, to, "a difference is made");
            let made = move || {
                let repository = Repository::at(&folder)?;
                if !repository.missing(vec![from.clone()], &to)?.is_empty() {
                    repository.delta(&from, &to)?;
                }
                settle(&repository, &channels, &profile, &signer)
            };
            match blocking(made).await {
                Err(ChannelError::Stopped) => return Err(ChannelError::Stopped),
                // Of one that is damaged, say: nobody else goes without for that.
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    channel = channel.name,
                    "a difference between releases could not be made"
                ),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

impl Repository {
    /// The origins that are here and from which there is no difference to a commit.
    pub(super) fn missing(&self, origins: Vec<String>, to: &str) -> Result<Vec<String>, ChannelError> {
        if !self.has(to) {
            return Ok(Vec::new());
        }
        let deltas = self.deltas()?;
        let is_there = |from: &String| deltas.iter().any(|(begin, end)| begin == from && end == to);
        let is_missing = |from: &String| self.has(from) && !is_there(from);
        Ok(origins.into_iter().filter(is_missing).collect())
    }
}

/// Makes differences when machines tell that they run something else, until the service stops.
#[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
pub async fn run(channels: Arc<Channels>, mut events: broadcast::Receiver<MachineEvent>) {
    loop {
        match channels.make_deltas(OffsetDateTime::now_utc()).await {
            Ok(()) | Err(ChannelError::Stopped) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a difference between releases could not be made");
            }
        }
        let told = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.kind != "facts" => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = channels.stop.cancelled() => return,
            () = told => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
