//! Which commits are here: releases whose commit a backup did not hold, and what no release is.
//!
//! A publication that came to no end leaves something: objects of half a commit (ostree marks it, `state/<commit>.commitpartial`),
//! those of a transaction (`tmp/staging-*`), or a whole commit that was never put on the list. The first two go at once, the last
//! one as a release that was retired does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use nkd_api::channel::Channel;
use time::OffsetDateTime;

use super::repository::io;
use super::{ChannelError, Channels, Repository, blocking};
use crate::content::image::profile;
use crate::store::StoreError;

/// Commits of releases that are not here, by profile.
pub(super) type Missing = Mutex<BTreeMap<String, Arc<BTreeSet<String>>>>;

impl Channels {
    /// The commits of releases of a profile that its repository does not have.
    #[must_use]
    pub fn missing(&self, profile: &str) -> Arc<BTreeSet<String>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).get(profile).cloned().unwrap_or_default()
    }

    /// Looks which commits are here. To be called before anybody asks.
    ///
    /// # Errors
    /// The store.
    pub async fn look_for_commits(&self) -> Result<(), StoreError> {
        let channels = self.store.channels().await?;
        let profiles: BTreeSet<&str> = channels.iter().map(|channel| channel.profile.as_str()).collect();
        for profile in profiles {
            self.look_for(&channels, profile).await;
        }
        Ok(())
    }

    /// The same for one profile.
    pub(super) async fn look_for(&self, channels: &[Channel], profile: &str) {
        let commits = commits_of(channels, profile);
        let folder = self.folder().join(profile);
        let looked = blocking(move || {
            let repository = Repository::at(&folder);
            Ok(commits.into_iter().filter(|commit| !repository.as_ref().is_ok_and(|ours| ours.has(commit))).collect())
        });
        // It does not fail but by the end of the service.
        if let Ok(missing) = looked.await {
            let mut all = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(profile.to_owned(), Arc::new(missing));
        }
    }

    /// A backup of an earlier time knows fewer releases than were published: their refs are here still, and their numbers are
    /// not given to others.
    pub(super) async fn keep_numbers(&self, profile: &str) -> Result<(), ChannelError> {
        let Ok(repository) = Repository::at(&self.folder().join(profile)) else { return Ok(()) };
        for name in blocking(move || repository.refs()).await.unwrap_or_default() {
            let own = name.strip_prefix("nkd/").and_then(|own| own.split_once('/'));
            if let Some((channel, Ok(number))) = own.map(|(channel, number)| (channel, number.parse())) {
                self.store.keep_number(channel, number).await?;
            }
        }
        Ok(())
    }

    /// Frees what publications left that came to no end. The turn to write is the caller's.
    ///
    /// # Errors
    /// [`ChannelError`]; the next start goes on with it.
    pub(super) async fn clear(&self, profile: &str, now: OffsetDateTime) -> Result<(), ChannelError> {
        // After a backup was restored, there may be no repository.
        let Ok(repository) = Repository::at(&self.folder().join(profile)) else { return Ok(()) };
        if self.is_disturbed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (channels, retired) = (self.store.channels().await?, self.store.retired().await?);
        let releases = commits_of(&channels, profile);
        let (ours, listed) = (repository.clone(), releases.clone());
        if blocking(move || ours.clear(&listed)).await? {
            tracing::info!(profile, "removed what a publication left that came to no end");
        }
        let here = blocking(move || repository.commits()).await?;
        let is_retired = |commit: &String| retired.iter().any(|of| of.profile == profile && of.commit == *commit);
        let loose: Vec<&String> =
            here.iter().filter(|commit| !releases.contains(*commit) && !is_retired(commit)).collect();
        if loose.is_empty() {
            return Ok(());
        }
        self.store.retire_loose(profile, &loose, now).await?;
        tracing::info!(profile, commits = loose.len(), "commits that are no release go when nobody reads them");
        // A ref of theirs would keep them.
        self.settle_profile(profile).await
    }

    /// The same after an order that failed, which says why by itself.
    pub(super) async fn clear_after(&self, profile: &str, now: OffsetDateTime) {
        match self.clear(profile, now).await {
            Ok(()) | Err(ChannelError::Stopped) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, profile, "what a publication left is not removed: the next start does it");
            }
        }
    }
}

/// The commits of a profile's releases.
fn commits_of(channels: &[Channel], profile: &str) -> BTreeSet<String> {
    let of_profile = channels.iter().filter(|channel| channel.profile == profile);
    of_profile.flat_map(|channel| channel.releases.iter().map(|release| release.commit.clone())).collect()
}

impl Repository {
    /// Whether the whole commit is here: ostree marks one whose objects have not all come.
    pub(super) fn has(&self, commit: &str) -> bool {
        self.object(commit, "commit").is_file() && !self.marker(commit).exists()
    }

    fn marker(&self, commit: &str) -> PathBuf {
        self.path().join("state").join(format!("{commit}{PARTIAL}"))
    }

    /// Removes half commits, what was on its way, and what is in no commit. Of releases, a half stays: published again, it
    /// fetches what it lacks. True: there was something.
    fn clear(&self, releases: &BTreeSet<String>) -> Result<bool, ChannelError> {
        let state = self.path().join("state");
        let half = |name: String| Some(name.strip_suffix(PARTIAL)?.to_owned());
        let halves = names(&state)?.into_iter().filter_map(half).filter(|commit| !releases.contains(commit));
        let halves: Vec<String> = halves.collect();
        let tmp = self.path().join("tmp");
        let staged: Vec<PathBuf> =
            names(&tmp)?.iter().filter(|name| name.starts_with("staging-")).map(|name| tmp.join(name)).collect();
        if halves.is_empty() && staged.is_empty() {
            return Ok(false);
        }
        for path in staged {
            let is_folder = path.is_dir();
            if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(io("remove", &path))?;
        }
        for commit in halves {
            // Its mark goes last: killed in between, it is half a commit still.
            for path in [self.object(&commit, "commit"), self.object(&commit, "commitmeta"), self.marker(&commit)] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(io("remove", &path)(error));
                    }
                    _ => {}
                }
            }
        }
        self.ostree::<&str>("prune", &[])?;
        Ok(true)
    }

    /// The commits that are here.
    fn commits(&self) -> Result<Vec<String>, ChannelError> {
        let objects = self.path().join("objects");
        let mut commits = Vec::new();
        for first in names(&objects)?.into_iter().filter(|name| name.len() == 2) {
            let rest = names(&objects.join(&first))?;
            commits.extend(rest.iter().filter_map(|name| Some(format!("{first}{}", name.strip_suffix(".commit")?))));
        }
        Ok(commits)
    }
}

/// The profiles that have a repository in this folder.
pub(super) fn repositories(folder: &Path) -> Vec<String> {
    // Whoever cannot read it has none there.
    let all = names(folder).unwrap_or_default().into_iter();
    all.filter(|name| profile::by_name(name).is_some() && Repository::at(&folder.join(name)).is_ok()).collect()
}

/// Behind the checksum of a commit whose objects have not all come.
const PARTIAL: &str = ".commitpartial";

/// What is in a folder; nothing, if there is none.
fn names(folder: &Path) -> Result<Vec<String>, ChannelError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io("read", folder)(error)),
    };
    let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    Ok(entries.filter_map(Result::ok).filter_map(name).collect())
}
