//! Channels: named sequences of releases, each an ostree commit in a repository that this service keeps and signs.
//!
//! One repository a profile, `<state>/ostree/<profile>`. A release is published when the list of releases says so, which
//! happens after its commit is whole, verified, signed and on the disk; refs and summary follow, and are made right
//! again at every start. The ref `nkd/<channel>/<number>` stands for each release; the ref that it came from stands for
//! the newest one.

mod detached;
mod ed25519;
pub mod metrics;
mod program;
mod repository;
mod signer;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nkd_api::agent::ReleaseSource;
use nkd_api::channel::{Channel, MarkOrder, PublishOrder, Release};
use time::OffsetDateTime;
use tokio::sync::Mutex;

use self::metrics::Metrics;
pub use self::program::ProgramError;
use self::repository::Keys;
pub use self::repository::Repository;
use self::signer::Signer;
use super::image::profile;
use crate::machine::lifecycle::{NAME_RULE, valid_name};
use crate::store::{Store, StoreError};

/// Name of the sealed OpenPGP key.
const SIGNING_KEY: &str = "channel/signing-key";
/// Name of the sealed ed25519 key.
const ED25519_KEY: &str = "channel/ed25519-key";
/// The public halves, beside the repositories.
const KEY_FILE: &str = "key.asc";
const ED25519_KEY_FILE: &str = "key.ed25519";

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The order is wrong.
    #[error("{what}: {reason}")]
    Order {
        /// Which part of it.
        what: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// There is no repository.
    #[error("{} is no ostree repository: it has no `objects` and `config`; name the folder that has them, on the service's host", .0.display())]
    NoRepository(PathBuf),
    /// The ref is not there.
    #[error("`{reference}` is no ref or commit there; the repository has: {known}")]
    NoRef {
        /// What was asked for.
        reference: String,
        /// What there is.
        known: String,
    },
    /// There is no such release.
    #[error("there is no release {number} in the channel `{channel}`: `nkd channel show` lists those there are")]
    Missing {
        /// Of which channel.
        channel: String,
        /// Which.
        number: u32,
    },
    /// A key was given, and the commit is not signed by it.
    #[error("commit {commit} is not taken, because it is not signed with a key of the given file")]
    NotSigned {
        /// Which.
        commit: String,
        /// What ostree said.
        #[source]
        source: Box<Self>,
    },
    /// The file of keys cannot be used.
    #[error("{}: no OpenPGP keys could be read from it", path.display())]
    KeyFile {
        /// Which.
        path: PathBuf,
        /// What ostree said.
        #[source]
        source: Box<Self>,
    },
    /// Keys were given, and the commit bears no ed25519 signature by one of them.
    #[error("commit {commit} is not taken, because none of its {count} ed25519 signatures is by a key of {}", path.display())]
    NotSignedEd25519 {
        /// Which.
        commit: String,
        /// So many it bears.
        count: usize,
        /// The file of keys.
        path: PathBuf,
    },
    /// The file of ed25519 keys cannot be used.
    #[error(
        "{}: {}; write public keys in base64 (32 bytes each), one a line",
        path.display(),
        if *line == 0 { "there is no key".to_owned() } else { format!("line {line} is no ed25519 key") }
    )]
    Ed25519KeyFile {
        /// Which.
        path: PathBuf,
        /// The line that is none; 0: there is no key at all.
        line: usize,
    },
    /// A file of signatures does not read.
    #[error("{}: the signatures do not read; sign it again with `ostree`, or remove the file", path.display())]
    Detached {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: zgvariant::Error,
    },
    /// An object was changed.
    #[error("{} is not what its name says: somebody changed it, or the disk is ill", .0.display())]
    Damaged(PathBuf),
    /// The signing key is damaged.
    #[error("the signing key of the channels does not read: restore a backup")]
    Key,
    /// No key could be made.
    #[error("the operating system gives no random numbers")]
    Random,
    /// A program failed.
    #[error(transparent)]
    Program(ProgramError),
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The service stops.
    #[error("the service is stopping: try again")]
    Stopped,
}

/// The channels and their repositories.
#[derive(Debug)]
pub struct Channels {
    store: Store,
    state_dir: PathBuf,
    /// One at a time writes.
    writing: Mutex<()>,
    metrics: Metrics,
}

impl Channels {
    /// Of a service.
    #[must_use]
    pub fn new(store: Store, state_dir: &Path) -> Self {
        Self { store, state_dir: state_dir.into(), writing: Mutex::new(()), metrics: Metrics::default() }
    }

    /// Counts in these metrics from now on.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// The channel that a client asks the graph of, which runs this commit: counted, and said when it is not one of ours.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn asked(&self, name: &str, architecture: &str, commit: &str) -> Result<Option<Channel>, StoreError> {
        let channel = self.store.channel(name).await?.map(|(channel, _)| channel);
        let channel = channel.filter(|channel| channel.architecture == architecture);
        let known = channel.as_ref().is_some_and(|c| c.releases.iter().any(|release| release.commit == commit));
        // A name that no channel has is whatever somebody sent.
        let label = channel.as_ref().map_or("", |channel| &channel.name);
        if self.metrics.asked(label, known) && !known {
            let commit: String = commit.chars().filter(char::is_ascii_hexdigit).take(64).collect();
            tracing::warn!(
                channel = label,
                commit,
                "a system asks for updates from a release that the channel does not have"
            );
        }
        Ok(channel)
    }

    /// Folder of the repositories.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.state_dir.join("ostree")
    }

    /// The OpenPGP key that everything here is signed with, as everybody may have it. It is there once something was
    /// published.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.folder().join(KEY_FILE)
    }

    /// The ed25519 key, likewise.
    #[must_use]
    pub fn ed25519_key_file(&self) -> PathBuf {
        self.folder().join(ED25519_KEY_FILE)
    }

    /// Where a node finds this commit. None: no release is this commit.
    ///
    /// # Errors
    /// The store, or the key that everything is signed with cannot be read.
    pub async fn source(&self, commit: &str) -> Result<Option<ReleaseSource>, ChannelError> {
        let channels = self.store.channels().await?;
        let has = |channel: &&Channel| channel.releases.iter().any(|release| release.commit == commit);
        let Some(channel) = channels.iter().find(has) else { return Ok(None) };
        let (openpgp, ed25519) = (self.key_file(), self.ed25519_key_file());
        let keys = move || Ok((signer::public_key(&openpgp)?, signer::public_key_if_any(&ed25519)?));
        let (key, ed25519) = blocking(keys).await?;
        let ed25519_key = ed25519.map(|key| key.trim().to_owned());
        Ok(Some(ReleaseSource { repository: format!("/ostree/{}", channel.profile), key, ed25519_key }))
    }

    /// Makes refs and summaries say what the list of releases says: a service that was killed may not have come so far.
    ///
    /// # Errors
    /// [`ChannelError`]; nodes that pull by commit are served all the same.
    pub async fn settle(&self) -> Result<(), ChannelError> {
        let _writing = self.writing.lock().await;
        let channels = self.store.channels().await?;
        let profiles: BTreeSet<&str> = channels.iter().map(|c| c.profile.as_str()).collect();
        for profile in profiles {
            let signer = self.signer().await?;
            let (repository, channels) = (self.folder().join(profile), channels.clone());
            let profile = profile.to_owned();
            blocking(move || settle(&Repository::open(&repository)?, &channels, &profile, &signer)).await?;
        }
        Ok(())
    }

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
        if !valid_name(name) {
            return Err(wrong("channel", NAME_RULE));
        }
        let version_fits = |version: &String| crate::cluster::file::syntax::version(version).is_some();
        if order.kubernetes.as_ref().is_some_and(|version| !version_fits(version)) {
            return Err(wrong("kubernetes", "write it like v1.31.4"));
        }
        let _writing = self.writing.lock().await;
        step("looking at the repository");
        let (found, wanted) = (order.ostree.clone(), order.reference.clone());
        let found = blocking(move || Found::look(Path::new(&found), wanted.as_deref())).await?;
        let (mut channel, revision) = match self.store.channel(name).await? {
            Some((channel, revision)) => (channel, revision),
            None => (found.new_channel(name, &order)?, 0),
        };
        fits(&channel, &order)?;
        let version = order.version.clone().or_else(|| found.version.clone());
        let version = version.ok_or_else(|| wrong("version", "the commit does not tell it: say it with --version"))?;
        let same = |r: &&Release| r.commit == found.commit && r.kubernetes == order.kubernetes && r.version == version;
        let there = channel.newest().filter(same).cloned();
        let folder = self.folder().join(&channel.profile);
        // After a backup was restored, the list names commits that are not here.
        let here = |release: &Release| Repository::at(&folder).is_ok_and(|ours| ours.has(&release.commit));
        if let Some(there) = there.clone().filter(here) {
            return Ok(there);
        }

        step("taking the commit, and verifying it");
        let signer = Arc::new(self.signer().await?);
        let (openpgp, ed25519) = (order.key.clone(), order.ed25519_key.clone());
        let keys = Keys { openpgp: openpgp.map(PathBuf::from), ed25519: ed25519.map(PathBuf::from) };
        let (from, commit) = (found.repository.clone(), found.commit.clone());
        let (repository, signed_by) = blocking(move || {
            let repository = Repository::open(&folder)?;
            let signed_by = repository.take(&from, &commit, &keys)?;
            Ok((repository, signed_by))
        })
        .await?;

        step("signing it");
        let next = channel.newest().map_or(1, |release| release.number + 1);
        let number = there.as_ref().map_or(next, |release| release.number);
        let (own, commit) = (format!("nkd/{name}/{number}"), found.commit.clone());
        let (ours, by) = (repository.clone(), Arc::clone(&signer));
        blocking(move || {
            ours.sign(&commit, &by)?;
            ours.point(&own, &commit)
        })
        .await?;
        let before = channel.releases.iter().rfind(|release| release.number < number).map(|r| r.commit.clone());
        if let Some(before) = before.filter(|before| *before != found.commit && repository.has(before)) {
            step("making the difference to the release before");
            let (ours, commit) = (repository.clone(), found.commit.clone());
            blocking(move || ours.delta(&before, &commit)).await?;
        }

        let release = there.clone().unwrap_or(Release {
            number,
            version,
            commit: found.commit,
            reference: found.reference,
            kubernetes: order.kubernetes,
            notes: order.notes,
            published_at: now,
            signed_by,
            barrier: order.barrier,
            dead_end: None,
            rollout_minutes: order.rollout_minutes,
        });
        if there.is_none() {
            channel.releases.push(release.clone());
            self.store.save_channel(&channel, revision).await?;
        }
        step("writing the summary");
        let (channels, profile) = (self.store.channels().await?, channel.profile);
        let settled = blocking(move || settle(&repository, &channels, &profile, &signer)).await;
        if let Err(error) = settled {
            // It is published: nodes pull by commit. The next start, or the next release, writes the summary.
            tracing::error!(error = &error as &dyn std::error::Error, channel = name, "the summary is not written");
        }
        tracing::info!(channel = name, release = number, commit = release.commit, "published");
        Ok(release)
    }

    /// Changes what is known of a release.
    ///
    /// # Errors
    /// [`ChannelError::Missing`], and those of the store.
    pub async fn mark(&self, name: &str, number: u32, order: MarkOrder) -> Result<Release, ChannelError> {
        let _writing = self.writing.lock().await;
        let missing = || ChannelError::Missing { channel: name.into(), number };
        let (mut channel, revision) = self.store.channel(name).await?.ok_or_else(missing)?;
        let release = channel.releases.iter_mut().find(|release| release.number == number).ok_or_else(missing)?;
        release.barrier = order.barrier.unwrap_or(release.barrier);
        release.rollout_minutes = order.rollout_minutes.unwrap_or(release.rollout_minutes);
        if let Some(reason) = order.dead_end {
            release.dead_end = Some(reason).filter(|reason| !reason.trim().is_empty());
        }
        let release = release.clone();
        self.store.save_channel(&channel, revision).await?;
        Ok(release)
    }

    /// The keys, made when they are first needed. Their public halves lie beside the repositories.
    async fn signer(&self) -> Result<Signer, ChannelError> {
        let sealed = self.store.secret(SIGNING_KEY).await?;
        let sealed_seed = self.store.secret(ED25519_KEY).await?;
        let is_new = sealed.is_none() || sealed_seed.is_none();
        let state_dir = self.state_dir.clone();
        let made = blocking(move || {
            let seed = sealed_seed.map_or_else(signer::new_seed, Ok)?;
            let signer = match sealed {
                Some(secret) => Signer::restore(&state_dir, &secret, &seed)?,
                None => Signer::generate(&state_dir, &seed)?,
            };
            let secret = signer.secret()?;
            Ok((signer, secret, seed))
        });
        let (signer, secret, seed) = made.await?;
        if is_new {
            self.store.save_secrets(&[(SIGNING_KEY, &secret), (ED25519_KEY, &seed)]).await?;
        }
        // Nobody is told to trust a key that a kill could lose.
        let (folder, files) = (self.folder(), [self.key_file(), self.ed25519_key_file()]);
        blocking(move || {
            let ed25519 = format!("{}\n", signer.ed25519().public());
            std::fs::create_dir_all(&folder).map_err(repository::io("make", &folder))?;
            for (path, public) in files.iter().zip([signer.public()?, ed25519.into_bytes()]) {
                write(&folder, path, &public).map_err(repository::io("write", path))?;
            }
            Ok(signer)
        })
        .await
    }
}

/// What an order found in its repository.
struct Found {
    repository: Repository,
    reference: String,
    commit: String,
    version: Option<String>,
}

impl Found {
    fn look(path: &Path, wanted: Option<&str>) -> Result<Self, ChannelError> {
        let repository = Repository::at(path)?;
        let refs = repository.refs()?;
        let reference = match (wanted, refs.as_slice()) {
            (Some(wanted), _) => wanted.to_owned(),
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
        let version = repository.version(&commit)?;
        // A commit was named: the ref that stands for it, if one does.
        let named = |name: &&String| repository.commit(name).is_ok_and(|of| of == commit);
        let is_ref = refs.contains(&reference);
        let reference = if is_ref { Some(reference) } else { refs.iter().find(named).cloned() };
        Ok(Self { repository, reference: reference.unwrap_or_default(), commit, version })
    }

    /// A ref is often `<profile>/<architecture>/...`.
    fn new_channel(&self, name: &str, order: &PublishOrder) -> Result<Channel, ChannelError> {
        let mut parts = self.reference.split('/');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let profile = order.profile.clone().unwrap_or_else(|| first.to_owned());
        let architecture = order.architecture.clone().unwrap_or_else(|| second.to_owned());
        if profile::by_name(&profile).is_none() {
            return Err(wrong("profile", "say it with --profile: nestos, fedora-coreos or lab"));
        }
        if !["x86_64", "aarch64"].contains(&architecture.as_str()) {
            return Err(wrong("architecture", "say it with --architecture: x86_64 or aarch64"));
        }
        Ok(Channel { name: name.into(), profile, architecture, releases: Vec::new() })
    }
}

/// A channel keeps its profile and architecture.
fn fits(channel: &Channel, order: &PublishOrder) -> Result<(), ChannelError> {
    let differs = |what, said: &Option<String>, is: &str| match said {
        Some(said) if said != is => {
            Err(wrong(what, &format!("the channel `{}` is of {is}: publish to another channel", channel.name)))
        }
        _ => Ok(()),
    };
    differs("profile", &order.profile, &channel.profile)?;
    differs("architecture", &order.architecture, &channel.architecture)
}

fn settle(repository: &Repository, channels: &[Channel], profile: &str, signer: &Signer) -> Result<(), ChannelError> {
    let mut newest: BTreeMap<&str, &Release> = BTreeMap::new();
    let mut commits = Vec::new();
    for channel in channels.iter().filter(|channel| channel.profile == profile) {
        for release in &channel.releases {
            if !repository.has(&release.commit) {
                let (channel, number) = (&channel.name, release.number);
                tracing::warn!(channel, number, "the commit of a release is not here: publish it again");
                continue;
            }
            // Published before the service had its ed25519 key, or taken once more by a service that was killed then.
            match repository.sign_if_not(&release.commit, signer) {
                Ok(()) => commits.push(release.commit.as_str()),
                Err(error @ (ChannelError::Damaged(_) | ChannelError::Detached { .. })) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, channel = channel.name, number = release.number, "a release is not signed");
                }
                Err(error) => return Err(error),
            }
            repository.point(&format!("nkd/{}/{}", channel.name, release.number), &release.commit)?;
            let held = newest.entry(&release.reference).or_insert(release);
            if held.published_at < release.published_at {
                *held = release;
            }
        }
    }
    for (reference, release) in newest.into_iter().filter(|(reference, _)| !reference.is_empty()) {
        repository.point(reference, &release.commit)?;
    }
    repository.renew_deltas(&commits, signer.ed25519())?;
    repository.summarize(signer)
}

fn wrong(what: &'static str, reason: &str) -> ChannelError {
    ChannelError::Order { what, reason: reason.to_owned() }
}

/// In one step, for everybody to read.
fn write(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::with_prefix_in(".key-", folder)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, ChannelError> + Send + 'static,
) -> Result<T, ChannelError> {
    match tokio::task::spawn_blocking(job).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ChannelError::Stopped),
    }
}
