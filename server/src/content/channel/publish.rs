//! Publishing: a commit, whole, verified and signed, becomes a channel's next release; or a release of one channel
//! becomes the next one of another.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nkd_api::channel::{Channel, PromoteOrder, Promoted, PublishOrder, Release};
use time::OffsetDateTime;

use super::downgrade::{self, Offered};
use super::mirror::Record;
use super::program::ProgramError;
use super::repository::Keys;
use super::signer::Signer;
use super::source::Source;
use super::{ChannelError, Channels, Repository, TRIES, blocking, put_away, settle, text, wrong};
use crate::content::image::profile;
use crate::machine::lifecycle::{NAME_RULE, valid_name};
use crate::store::StoreError;

/// Key of a commit's metadata: the version of Kubernetes that is in it.
const KUBERNETES: &str = "nkd.kubernetes";

impl Channels {
    /// Publishes a release, or finds that it is published. `step` hears what is done now.
    ///
    /// # Errors
    /// [`ChannelError`]; the channel is as before then.
    pub async fn publish(
        &self,
        name: &str,
        order: PublishOrder,
        now: OffsetDateTime,
        step: impl Fn(&str) + Send + Sync,
    ) -> Result<Release, ChannelError> {
        let release = self.publish_from(name, order, None, now, &step).await?;
        self.make_deltas_to(name, now, &step).await;
        Ok(release)
    }

    /// The same for a commit that came from an upstream, if the channel follows that one still.
    pub(super) async fn publish_from(
        &self,
        name: &str,
        order: PublishOrder,
        upstream: Option<&Record>,
        now: OffsetDateTime,
        step: impl Fn(&str) + Send + Sync,
    ) -> Result<Release, ChannelError> {
        if !valid_name(name) {
            return Err(wrong("channel", NAME_RULE));
        }
        if order.kubernetes.as_ref().is_some_and(|version| !is_version(version)) {
            return Err(wrong("kubernetes", "write it like v1.31.4"));
        }
        step("looking at the repository");
        let (path, wanted, folder) = (order.ostree.clone(), order.reference.clone(), self.folder());
        let look = move || Found::look(Source::open(Path::new(&path), wanted.as_deref(), &folder)?);
        let found = blocking(look).await?;
        let _writing = self.turn().await?;
        let (profile, architecture) = (order.profile.as_deref(), order.architecture.as_deref());
        let (channel, revision) = match self.store.channel(name).await? {
            Some((channel, revision)) => (channel, revision),
            None => (new_channel(name, &found.reference, profile, architecture)?, 0),
        };
        fits(&channel, &found.reference, profile, architecture)?;
        // What nobody says is not changed, whatever the commit says.
        let same = |r: &&Release| {
            let is = |said: &Option<String>, is: Option<&String>| said.is_none() || said.as_ref() == is;
            r.commit == found.commit
                && is(&order.kubernetes, r.kubernetes.as_ref())
                && is(&order.version, Some(&r.version))
        };
        let folder = self.folder().join(&channel.profile);
        // After a backup was restored, the list names commits that are not here: whichever comes again takes its own place.
        let is_here = Repository::at(&folder).is_ok_and(|ours| ours.has(&found.commit));
        let lost = || channel.releases.iter().rfind(same).filter(|_| !is_here);
        let there = channel.newest().filter(same).or_else(lost).cloned();
        let here = there.is_some() && is_here;
        // An upstream that has nothing new wants nothing.
        if let Some(there) = there.clone().filter(|_| here && upstream.is_some()) {
            return Ok(there);
        }

        // Published once more, it would be led to again.
        if let Some(last) = channel.releases.iter().rfind(|release| release.commit == found.commit) {
            open(name, last)?;
        }
        let keys = Keys {
            openpgp: order.key.clone().map(PathBuf::from),
            ed25519: order.ed25519_key.clone().map(PathBuf::from),
        };
        if let Some(there) = &there {
            keeps_its_way(name, there, &order)?;
        }
        if let Some(there) = there.clone().filter(|_| here) {
            return self.check(found, there, (channel, revision), keys, step).await;
        }
        let version = order.version.clone().or_else(|| found.version.clone());
        let version = version.filter(|version| !version.trim().is_empty());
        let version = version.ok_or_else(|| wrong("version", "the commit does not tell it: say it with --version"))?;
        if there.is_none() && !text::is_version(&version) {
            let reason = "what the commit says is too long, or has control characters: say another one with --version";
            return Err(wrong("version", reason));
        }
        let kubernetes = order.kubernetes.clone().or_else(|| found.kubernetes.clone());
        if there.is_none() && !order.allow_downgrade {
            let made_at = found.made_at;
            let offered =
                Offered { commit: &found.commit, version: &version, kubernetes: kubernetes.as_deref(), made_at };
            self.not_older(&channel, &offered, now).await?;
        }

        let number = self.store.next_release(name).await?;
        step("taking the commit, and verifying it");
        let (source, commit) = (found.source, found.commit.clone());
        let taken = blocking(move || {
            let repository = Repository::open(&folder)?;
            let signed_by = repository.take(&source.repository, &commit, &keys)?;
            Ok((repository, signed_by))
        });
        let profile = channel.profile.clone();
        let (repository, signed_by) = match taken.await {
            Ok(taken) => taken,
            Err(error) => {
                self.clear_after(&profile, now).await;
                return Err(error);
            }
        };
        let release = there.unwrap_or(Release {
            number,
            version,
            commit: found.commit,
            reference: found.reference,
            kubernetes,
            notes: order.notes,
            published_at: now,
            signed_by,
            promoted_from: None,
            barrier: order.barrier,
            dead_end: None,
            rollout_minutes: order.rollout_minutes,
        });
        let listed = self.list(repository, (channel, revision), release, upstream, step).await;
        if listed.is_err() {
            self.clear_after(&profile, now).await;
        }
        listed
    }

    /// Refuses what is older than the release that systems are led to now, and what makes all others older.
    async fn not_older(
        &self,
        channel: &Channel,
        offered: &Offered<'_>,
        now: OffsetDateTime,
    ) -> Result<(), ChannelError> {
        if let Some(why) = downgrade::ahead(offered, now) {
            return Err(wrong("ostree", &format!("{why}; say --allow-downgrade if that is meant")));
        }
        let Some(newest) = downgrade::newest(channel) else { return Ok(()) };
        let (folder, commit) = (self.folder().join(&channel.profile), newest.commit.clone());
        // One that is damaged is to be replaced.
        let made_at = blocking(move || Repository::at(&folder)?.made_at_if_told(&commit));
        match downgrade::older(newest, made_at.await.ok().flatten(), offered) {
            Some(why) => Err(ChannelError::Downgrade { channel: channel.name.clone(), why }),
            None => Ok(()),
        }
    }

    /// A release that is there. Who names a key wants to know whether the commit bears its signature: what is served stays as it
    /// is.
    async fn check(
        &self,
        found: Found,
        mut there: Release,
        (mut channel, revision): (Channel, i64),
        keys: Keys,
        step: impl Fn(&str) + Send + Sync,
    ) -> Result<Release, ChannelError> {
        if keys.openpgp.is_none() && keys.ed25519.is_none() {
            return Ok(there);
        }
        step("verifying the commit, which is there");
        let folder = self.folder();
        let signed_by = blocking(move || found.source.repository.signer(&found.commit, &keys, &folder)).await?;
        if there.signed_by != signed_by {
            there.signed_by = signed_by;
            for release in channel.releases.iter_mut().filter(|release| release.number == there.number) {
                release.clone_from(&there);
            }
            self.store.save_channel(&channel, revision).await?;
        }
        Ok(there)
    }

    /// Makes a release of a channel the next one of another channel, or finds that it is there.
    ///
    /// # Errors
    /// [`ChannelError`]; both channels are as before then.
    pub async fn promote(
        &self,
        name: &str,
        order: PromoteOrder,
        now: OffsetDateTime,
        step: impl Fn(&str) + Send + Sync,
    ) -> Result<Release, ChannelError> {
        let to = order.to.clone();
        let release = self.promote_alone(name, order, now, &step).await?;
        self.make_deltas_to(&to, now, &step).await;
        Ok(release)
    }

    async fn promote_alone(
        &self,
        name: &str,
        order: PromoteOrder,
        now: OffsetDateTime,
        step: impl Fn(&str) + Send + Sync,
    ) -> Result<Release, ChannelError> {
        if !valid_name(&order.to) {
            return Err(wrong("to", NAME_RULE));
        }
        if order.to == name {
            return Err(wrong("to", "that is the channel itself: name another one"));
        }
        let _writing = self.turn().await?;
        let (source, _) = self.store.channel(name).await?.ok_or_else(|| ChannelError::NoChannel(name.into()))?;
        let release = match order.release {
            Some(number) => {
                source.release(number).ok_or_else(|| ChannelError::Missing { channel: name.into(), number })?
            }
            None => source.newest().ok_or_else(|| wrong("release", "the channel has none yet"))?,
        };
        open(name, release)?;
        let (target, revision) = match self.store.channel(&order.to).await? {
            Some(there) => there,
            None => (Channel { name: order.to.clone(), releases: Vec::new(), ..source.clone() }, 0),
        };
        if (&target.profile, &target.architecture) != (&source.profile, &source.architecture) {
            let (profile, architecture) = (&target.profile, &target.architecture);
            let reason = format!("the channel `{}` is of {profile} for {architecture}: name another one", order.to);
            return Err(wrong("to", &reason));
        }
        let repository = Repository::at(&self.folder().join(&source.profile))?;
        if !repository.has(&release.commit) {
            return Err(ChannelError::Gone { channel: name.into(), number: release.number });
        }
        // Wherever it stands there: an order that comes twice takes no fleet back.
        let same = |r: &&Release| {
            (&r.commit, &r.version, &r.kubernetes) == (&release.commit, &release.version, &release.kubernetes)
        };
        if let Some(there) = target.releases.iter().rfind(same) {
            open(&order.to, there)?;
            return Ok(there.clone());
        }
        if !order.allow_downgrade {
            let (ours, commit) = (repository.clone(), release.commit.clone());
            let made_at = blocking(move || ours.made_at_if_told(&commit)).await?;
            let (commit, version, kubernetes) = (&release.commit, &release.version, release.kubernetes.as_deref());
            self.not_older(&target, &Offered { commit, version, kubernetes, made_at }, now).await?;
        }
        let release = Release {
            number: self.store.next_release(&order.to).await?,
            published_at: now,
            promoted_from: Some(Promoted { channel: name.into(), release: release.number }),
            barrier: order.barrier,
            dead_end: None,
            rollout_minutes: order.rollout_minutes,
            ..release.clone()
        };
        self.list(repository, (target, revision), release, None, step).await
    }

    /// The rest of a release's way, when its commit is here.
    async fn list(
        &self,
        repository: Repository,
        channel: (Channel, i64),
        release: Release,
        upstream: Option<&Record>,
        step: impl Fn(&str) + Send + Sync,
    ) -> Result<Release, ChannelError> {
        step("signing it");
        let signer = Arc::new(self.signer().await?);
        let listed = self.list_signed(repository, channel, release, upstream, (&signer, step)).await;
        put_away(signer).await;
        listed
    }

    /// Signature, ref; then the list says so.
    async fn list_signed(
        &self,
        repository: Repository,
        (mut channel, revision): (Channel, i64),
        release: Release,
        upstream: Option<&Record>,
        (signer, step): (&Arc<Signer>, impl Fn(&str) + Send + Sync),
    ) -> Result<Release, ChannelError> {
        let (name, number) = (channel.name.clone(), release.number);
        let (own, commit) = (format!("nkd/{name}/{number}"), release.commit.clone());
        let (ours, by) = (repository.clone(), Arc::clone(signer));
        blocking(move || {
            ours.sign(&commit, &by)?;
            ours.point(&own, &commit)
        })
        .await?;
        let is_new = channel.release(number).is_none();
        if is_new {
            channel.releases.push(release.clone());
        }
        if is_new {
            // Who was told that the channel follows another upstream, or none, gets nothing more of this one.
            let _following = self.following.lock().await;
            if let Some(upstream) = upstream
                && !self.follows(upstream).await?
            {
                return Err(ChannelError::FollowsAnother(name));
            }
            self.save_new((&mut channel, revision), &release).await?;
        }
        step("writing the summary");
        self.look_for(&self.store.channels().await?, &channel.profile).await;
        let (channels, profile, by) = (self.store.channels().await?, channel.profile.clone(), Arc::clone(signer));
        let settled = blocking(move || settle(&repository, &channels, &profile, &by)).await;
        // It is published whatever came of that: nodes pull by commit.
        self.note_settled(&channel.profile, settled);
        tracing::info!(channel = name, release = number, commit = release.commit, "published");
        Ok(release)
    }
}

impl Channels {
    /// Writes a channel with its new release. Marks of others may have come in the meantime; everything else waits for its turn.
    async fn save_new(
        &self,
        (channel, mut revision): (&mut Channel, i64),
        release: &Release,
    ) -> Result<(), ChannelError> {
        for _ in 0..TRIES {
            match self.store.save_channel(channel, revision).await {
                Err(StoreError::Stale) => {}
                other => return Ok(other?),
            }
            let now = self.store.channel(&channel.name).await?;
            (*channel, revision) = now.ok_or_else(|| ChannelError::NoChannel(channel.name.clone()))?;
            channel.releases.push(release.clone());
        }
        Err(StoreError::Stale.into())
    }
}

/// A dead end is nothing to lead to.
fn open(channel: &str, release: &Release) -> Result<(), ChannelError> {
    match &release.dead_end {
        Some(reason) => {
            Err(ChannelError::DeadEnd { channel: channel.to_owned(), number: release.number, reason: reason.clone() })
        }
        None => Ok(()),
    }
}

pub(super) fn is_version(text: &str) -> bool {
    crate::cluster::file::syntax::version(text).is_some()
}

/// What an order found in its repository.
struct Found {
    source: Source,
    reference: String,
    commit: String,
    version: Option<String>,
    kubernetes: Option<String>,
    made_at: Option<OffsetDateTime>,
}

impl Found {
    fn look(source: Source) -> Result<Self, ChannelError> {
        let repository = &source.repository;
        let refs = repository.refs()?;
        let reference = match (&source.wanted, refs.as_slice()) {
            (Some(wanted), _) => wanted.clone(),
            (None, [only]) => only.clone(),
            (None, []) => return Err(wrong("ostree", "the repository has no ref: say which commit with --ref")),
            (None, _) => return Err(wrong("ref", &format!("say which one with --ref: {}", refs.join(", ")))),
        };
        let no_ref = || ChannelError::NoRef { reference: reference.clone(), known: refs.join(", ") };
        if reference.starts_with('-') {
            return Err(no_ref());
        }
        let commit = repository.commit(&reference).map_err(|error| match error {
            ChannelError::Program(ProgramError::Refused { .. }) => no_ref(),
            other => other,
        })?;
        // ostree crashes by one that is damaged.
        repository.commit_bytes(&commit)?;
        let version = repository.metadata(&commit, "version")?;
        let kubernetes = repository.metadata(&commit, KUBERNETES)?;
        let made_at = repository.made_at_if_told(&commit)?;
        if let Some(said) = kubernetes.as_ref().filter(|said| !is_version(said)) {
            return Err(wrong("kubernetes", &format!("the commit says `{said}` ({KUBERNETES}): it is like v1.31.4")));
        }
        // A commit was named: the ref that stands for it, if one does.
        let named = |name: &&String| repository.commit(name).is_ok_and(|of| of == commit);
        let is_ref = refs.contains(&reference);
        let reference = if is_ref { Some(reference) } else { refs.iter().find(named).cloned() };
        // A ref that was fetched from a remote is called REMOTE:REF. Names of our own are no builder's.
        let reference = reference.map(|name| name.split_once(':').map_or(name.clone(), |(_, name)| name.to_owned()));
        let reference = reference.filter(|name| !name.starts_with("nkd/")).unwrap_or_default();
        Ok(Self { source, reference, commit, version, kubernetes, made_at })
    }
}

/// What a ref often says, profile and architecture: `<profile>/<architecture>/...`, or as the systems call their own,
/// `openEuler/<architecture>/nestos/<stream>` and `fedora/<architecture>/coreos/<stream>`.
fn parts(reference: &str) -> (&str, &str) {
    let mut parts = reference.split('/');
    let [first, second, third] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let profile = match (first, third) {
        ("openEuler", "nestos") => "nestos",
        ("fedora", "coreos") => "fedora-coreos",
        _ => first,
    };
    (profile, second)
}

const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// A new channel, by its order, or else by its ref.
pub(super) fn new_channel(
    name: &str,
    reference: &str,
    profile: Option<&str>,
    architecture: Option<&str>,
) -> Result<Channel, ChannelError> {
    let (first, second) = parts(reference);
    let (profile, architecture) = (profile.unwrap_or(first), architecture.unwrap_or(second));
    if profile::by_name(profile).is_none() {
        return Err(wrong("profile", "say it with --profile: nestos, fedora-coreos or lab"));
    }
    if !ARCHITECTURES.contains(&architecture) {
        return Err(wrong("architecture", "say it with --architecture: x86_64 or aarch64"));
    }
    let (name, releases) = (name.to_owned(), Vec::new());
    Ok(Channel { name, profile: profile.to_owned(), architecture: architecture.to_owned(), releases })
}

/// A channel keeps its profile and architecture. What an order does not say, its ref may.
pub(super) fn fits(
    channel: &Channel,
    reference: &str,
    profile: Option<&str>,
    architecture: Option<&str>,
) -> Result<(), ChannelError> {
    let (first, second) = parts(reference);
    let first = Some(first).filter(|name| profile::by_name(name).is_some());
    let second = Some(second).filter(|name| ARCHITECTURES.contains(name));
    let name = &channel.name;
    let differs = |what, said: Option<&str>, by_ref: Option<&str>, is: &str| match (said, by_ref) {
        (Some(said), _) if said != is => {
            Err(wrong(what, &format!("the channel `{name}` is of {is}: publish to another channel")))
        }
        (None, Some(said)) if said != is => {
            let next = format!("publish to another channel, or say --{what} {is} if it is of that");
            Err(wrong(what, &format!("`{reference}` is of {said}, and the channel `{name}` of {is}: {next}")))
        }
        _ => Ok(()),
    };
    differs("profile", profile, first, &channel.profile)?;
    differs("architecture", architecture, second, &channel.architecture)
}

/// A release that is there is led to as it was marked: an order that says otherwise would be lost.
fn keeps_its_way(channel: &str, there: &Release, order: &PublishOrder) -> Result<(), ChannelError> {
    let barrier = order.barrier && !there.barrier;
    let rollout = order.rollout_minutes > 0 && order.rollout_minutes != there.rollout_minutes;
    if barrier || rollout || !(order.notes.is_empty() || order.notes == there.notes) {
        let number = there.number;
        let next = format!("`nkd channel mark {channel} {number}` changes marks, notes stay as they are");
        return Err(wrong(
            "release",
            &format!("release {number} is this commit already, with other marks or notes: {next}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_say_profile_and_architecture_as_systems_call_their_own() {
        for (reference, profile) in [
            ("lab/x86_64/stable", "lab"),
            ("openEuler/x86_64/nestos/2403-LTS", "nestos"),
            ("fedora/x86_64/coreos/stable", "fedora-coreos"),
        ] {
            let made = new_channel("stable", reference, None, None).unwrap();
            assert_eq!((made.profile.as_str(), made.architecture.as_str()), (profile, "x86_64"));
            assert!(fits(&made, reference, None, None).is_ok());
        }
        assert!(new_channel("stable", "fedora/x86_64/iot", None, None).is_err());
    }
}
