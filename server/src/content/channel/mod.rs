//! Channels: named sequences of releases, each an ostree commit in a repository that this service keeps and signs.
//!
//! One repository a profile, `<state>/ostree/<profile>`. A release is published when the list of releases says so, which
//! happens after its commit is whole, verified, signed and on the disk; refs and summary follow, and are made right
//! again at every start. The ref `nkd/<channel>/<number>` stands for each release; the ref that it came from stands for
//! the newest one that was published from there.

mod delete;
pub mod delta;
mod detached;
mod downgrade;
mod ed25519;
mod gpg_agent;
mod here;
pub mod hold;
mod key_folder;
mod left;
pub mod metrics;
pub mod mirror;
mod polled;
mod program;
pub mod prune;
mod publish;
mod reads;
mod repository;
pub mod retire;
mod signer;
mod source;
pub mod summary;
pub mod text;
mod turn;
pub mod unknown;
mod unsettled;
mod waits;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nkd_api::agent::ReleaseSource;
use nkd_api::channel::{Channel, MarkOrder, Release, UnknownRelease};
use time::OffsetDateTime;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::here::Missing;
use self::hold::Hold;
use self::metrics::Metrics;
use self::polled::Noted;
pub use self::polled::{LastPoll, Polled};
pub use self::program::{ProgramError, end_programs};
use self::reads::Reads;
pub use self::repository::Repository;
use self::signer::Signer;
pub use self::source::SourceError;
pub use self::turn::Order;
use self::turn::Turns;
use self::unknown::{Unknown, Who};
pub use self::unsettled::PublishLine;
use self::waits::Waits;
use crate::store::{Store, StoreError};

/// Name of the sealed OpenPGP key.
const SIGNING_KEY: &str = "channel/signing-key";
/// Name of the sealed ed25519 key.
const ED25519_KEY: &str = "channel/ed25519-key";
/// The public halves, beside the repositories.
const KEY_FILE: &str = "key.asc";
const ED25519_KEY_FILE: &str = "key.ed25519";
/// How often what was changed in the meantime is read again.
const TRIES: usize = 16;
/// Of retired commits.
const GRACE: Duration = Duration::from_secs(3600);

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
    #[error("{} is no ostree repository: it has no `objects` and `config`; name the folder that has them, a tar of it, or an OCI archive, on the service's host", .0.display())]
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
    /// There is no such channel.
    #[error("there is no channel `{0}`: `nkd channel list` shows those there are")]
    NoChannel(String),
    /// Somebody needs it.
    #[error("the channel `{channel}` is not deleted: {}", .holds.iter().map(Hold::to_string).collect::<Vec<_>>().join("; "))]
    Held {
        /// The channel.
        channel: String,
        /// Who.
        holds: Vec<Hold>,
    },
    /// The channel follows nothing.
    #[error(
        "the channel `{0}` follows no upstream: `nkd channel mirror {0} --from ADDRESS --ref REF` makes it follow one"
    )]
    NoMirror(String),
    /// Something else was ordered while a look was under way.
    #[error("the channel `{0}` follows another upstream by now, or none")]
    FollowsAnother(String),
    /// ostree shows a commit in another way than it did.
    #[error("it cannot be told when commit {0} was made")]
    NoDate(String),
    /// A release that nothing leads to is not given to another channel.
    #[error(
        "release {number} of the channel `{channel}` is a dead end: {reason}; `nkd channel mark {channel} {number} --dead-end ''` takes that back"
    )]
    DeadEnd {
        /// Of which channel.
        channel: String,
        /// Which.
        number: u32,
        /// Why.
        reason: String,
    },
    /// Everybody would be led back.
    #[error("every system of the channel `{channel}` would be led back: {why}; say --allow-downgrade if that is meant")]
    Downgrade {
        /// Which channel.
        channel: String,
        /// What is older.
        why: String,
    },
    /// The same commit is a later release, which is what counts.
    #[error(
        "release {number} of the channel `{channel}` is the same commit as release {counts}, which is what counts: mark that one"
    )]
    Again {
        /// Of which channel.
        channel: String,
        /// Which was to be marked.
        number: u32,
        /// The one that counts.
        counts: u32,
    },
    /// The list names a commit that a backup did not hold.
    #[error("the commit of release {number} in the channel `{channel}` is not here: publish it again first")]
    Gone {
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
    /// There is no room.
    #[error(
        "there is no room for commit {0} on the disk of the state folder: make some, or set another `state_dir`, and try again"
    )]
    NoRoom(String),
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
    /// What it is to be published from is not taken.
    #[error(transparent)]
    Source(#[from] SourceError),
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
    /// Nobody waits for it any more, and it has not begun.
    #[error("its client went away before its turn came: nothing was done")]
    Left,
    /// The service stops.
    #[error("the service is stopping: try again")]
    Stopped,
}

/// The channels and their repositories.
#[derive(Debug)]
pub struct Channels {
    store: Store,
    state_dir: PathBuf,
    turns: Turns,
    metrics: Metrics,
    /// A mirror is to look, or to follow something else, or nothing.
    mirrors: watch::Sender<()>,
    /// What channels follow changes, or a release of an upstream is published.
    following: Mutex<()>,
    /// Since when upstreams are being looked at, by channel.
    looking: std::sync::Mutex<BTreeMap<String, OffsetDateTime>>,
    /// Repositories whose summary could not be written, by profile, and why.
    unsettled: std::sync::Mutex<BTreeMap<String, String>>,
    /// What clients read of the repositories.
    reads: std::sync::Mutex<Reads>,
    /// How long commits have been retired.
    waits: std::sync::Mutex<Waits>,
    unknown: std::sync::Mutex<Unknown>,
    missing: Missing,
    /// Somebody else may be writing to the repositories.
    is_disturbed: AtomicBool,
    /// Releases that systems of other people run.
    polled: std::sync::Mutex<Noted>,
    /// When retired commits were looked at first, by the steady clock.
    begun: OnceLock<Instant>,
    /// How long a retired commit stays, and how long after somebody has read of it.
    grace: Duration,
    /// The service stops: what is under way comes to its end, and nothing more begins.
    stop: CancellationToken,
    orders: TaskTracker,
}

impl Channels {
    /// Of a service.
    #[must_use]
    pub fn new(store: Store, state_dir: &Path) -> Self {
        let (turns, following) = (Turns::default(), Mutex::new(()));
        let (metrics, mirrors) = (Metrics::default(), watch::Sender::new(()));
        let (reads, unknown, polled) =
            (std::sync::Mutex::default(), std::sync::Mutex::default(), std::sync::Mutex::default());
        Self {
            store,
            state_dir: state_dir.into(),
            turns,
            metrics,
            mirrors,
            following,
            looking: std::sync::Mutex::default(),
            unsettled: std::sync::Mutex::default(),
            reads,
            waits: std::sync::Mutex::default(),
            unknown,
            missing: Missing::default(),
            is_disturbed: AtomicBool::new(false),
            polled,
            begun: OnceLock::new(),
            grace: GRACE,
            stop: CancellationToken::new(),
            orders: TaskTracker::new(),
        }
    }

    /// Begins nothing more when this is cancelled.
    #[must_use]
    pub fn with_stop(self, stop: CancellationToken) -> Self {
        Self { stop, ..self }
    }

    /// Carries an order out, whether somebody waits for it or not: [`Self::ended`] does.
    pub fn carry_out<F>(&self, order: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.orders.spawn(order)
    }

    /// Every order that was given has come to its end. To be called when no more are given.
    pub async fn ended(&self) {
        self.orders.close();
        self.orders.wait().await;
    }

    /// Keeps retired commits for so long.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// A client begins to read a file of a repository. [`Self::read`] is to follow, with the address that this gives.
    #[must_use]
    pub fn reading(&self, profile: &str, client: IpAddr, path: &str, now: Instant) -> IpAddr {
        let repository = self.folder().join(profile);
        let has = |commit: &str| {
            commit.split_at_checked(2).is_some_and(|(first, rest)| {
                repository.join("objects").join(first).join(format!("{rest}.commit")).is_file()
            })
        };
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).begin(profile, client, path, now, has)
    }

    /// It has read it, or gone away.
    pub fn read(&self, profile: &str, client: IpAddr, now: Instant) {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).end(profile, client, now);
    }

    /// Counts in these metrics from now on.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Systems whose release the channel does not have, who asked last first; and how often one was left out of this.
    #[must_use]
    pub fn unknown(&self, channel: &str) -> (Vec<UnknownRelease>, u64) {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner).of(channel)
    }

    /// The channel that a client asks the graph of, which runs this commit: counted, and shown when it is not one of ours.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn asked(
        &self,
        name: &str,
        architecture: &str,
        commit: &str,
        who: Who<'_>,
        (now, at): (OffsetDateTime, Instant),
    ) -> Result<Option<Channel>, StoreError> {
        let channel = self.store.channel(name).await?.map(|(channel, _)| channel);
        let channel = channel.filter(|channel| channel.architecture == architecture);
        let known = channel.as_ref().is_some_and(|c| c.releases.iter().any(|release| release.commit == commit));
        // A name that no channel has is whatever somebody sent.
        let label = channel.as_ref().map_or("", |channel| &channel.name);
        if known {
            self.note(label, commit, who.node, (now, at)).await;
        }
        // One that says nothing of itself is no system.
        let is_system = !commit.is_empty();
        if channel.is_some() && !known && is_system {
            self.unknown.lock().unwrap_or_else(PoisonError::into_inner).asked(label, commit, who, now);
        }
        // Each kind by itself: what says nothing takes no turn of the warning from systems.
        let payload = match (known, is_system) {
            (true, _) => "known",
            (false, true) => "unknown",
            (false, false) => "none",
        };
        if self.metrics.asked(label, payload) && payload == "unknown" {
            // A digest, or whatever somebody sent.
            let payload: String = commit.chars().filter(char::is_ascii_graphic).take(128).collect();
            tracing::warn!(
                channel = label,
                payload,
                "a system asks for updates from a release that the channel does not have"
            );
        }
        Ok(channel)
    }

    /// Writes down that a release is run by somebody. It is told in the log when it cannot be; once an hour an answer waits for the disk.
    async fn note(&self, channel: &str, commit: &str, node: Option<&str>, now: (OffsetDateTime, Instant)) {
        let noted = || self.polled.lock().unwrap_or_else(PoisonError::into_inner);
        let due = noted().asked(channel, commit, node, now);
        let Some(polled) = due else { return };
        if let Err(error) = self.store.save_polled(channel, &polled).await {
            noted().forget(channel, commit);
            tracing::warn!(error = &error as &dyn std::error::Error, channel, "who runs a release is not written down");
        }
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

    /// Removes what orders of a service that was killed left. To be called before there are orders.
    pub async fn tidy(&self) {
        let (folder, state_dir) = (self.folder(), self.state_dir.clone());
        // It is told in the log.
        let tidied = blocking(move || {
            match left::end(&state_dir) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => tracing::warn!(%error, "it cannot be seen what a service that was killed left running"),
            }
            source::tidy(&folder);
            key_folder::tidy(&state_dir);
            Ok(true)
        });
        if matches!(tidied.await, Ok(false)) {
            tracing::error!(
                "a program that a killed service left running does not end: what is half done is left alone"
            );
            self.is_disturbed.store(true, Ordering::Relaxed);
        }
    }

    /// Makes refs and summaries say what the list of releases says: a service that was killed may not have come so far. So in a
    /// repository of which only retired commits are left: its last channel was deleted.
    ///
    /// # Errors
    /// [`ChannelError`]; nodes that pull by commit are served all the same.
    pub async fn settle(&self, now: OffsetDateTime) -> Result<(), ChannelError> {
        let _writing = self.turn().await?;
        self.look_for_commits().await?;
        let channels = self.store.channels().await?;
        let served: BTreeSet<String> = channels.into_iter().map(|channel| channel.profile).collect();
        for profile in &served {
            let folder = self.folder().join(profile);
            if let Err(error) = blocking(move || Repository::open(&folder).map(drop)).await {
                self.note_settled(profile, Err(error));
            }
        }
        // After a backup was restored, there may be no repository of what was retired.
        let here: Vec<String> = here::repositories(&self.folder());
        for profile in here.iter().chain(&served).collect::<BTreeSet<_>>() {
            self.keep_numbers(profile).await?;
            self.clear_after(profile, now).await;
            match self.settle_profile(profile).await {
                Err(ChannelError::Stopped) => return Err(ChannelError::Stopped),
                // Another one is not held up by it.
                settled => self.note_settled(profile, settled),
            }
        }
        Ok(())
    }

    /// Changes what is known of a release.
    ///
    /// # Errors
    /// [`ChannelError::Missing`], and those of the store.
    pub async fn mark(&self, name: &str, number: u32, order: MarkOrder) -> Result<Release, ChannelError> {
        // It does not wait for its turn: a publication may take minutes, and a dead end has no time.
        for _ in 0..TRIES {
            let none = || ChannelError::NoChannel(name.to_owned());
            let (mut channel, revision) = self.store.channel(name).await?.ok_or_else(none)?;
            let release = marked(&mut channel, number, &order)?;
            match self.store.save_channel(&channel, revision).await {
                Ok(()) => return Ok(release),
                Err(StoreError::Stale) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Stale.into())
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
        if is_new && let Err(error) = self.store.save_secrets(&[(SIGNING_KEY, &secret), (ED25519_KEY, &seed)]).await {
            put_away(signer).await;
            return Err(error.into());
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

/// Changes what is known of a release of a channel.
fn marked(channel: &mut Channel, number: u32, order: &MarkOrder) -> Result<Release, ChannelError> {
    let missing = ChannelError::Missing { channel: channel.name.clone(), number };
    let Some(commit) = channel.release(number).map(|release| release.commit.clone()) else { return Err(missing) };
    // A commit that was published twice is what its last release says.
    let counts = channel.releases.iter_mut().rfind(|release| release.commit == commit);
    let Some(release) = counts else { return Err(missing) };
    if release.number != number {
        return Err(ChannelError::Again { channel: channel.name.clone(), number, counts: release.number });
    }
    release.barrier = order.barrier.unwrap_or(release.barrier);
    release.rollout_minutes = order.rollout_minutes.unwrap_or(release.rollout_minutes);
    if let Some(reason) = &order.dead_end {
        release.dead_end = Some(reason.clone()).filter(|reason| !reason.trim().is_empty());
    }
    Ok(release.clone())
}

/// Makes refs and summary what the list of releases says.
fn settle(repository: &Repository, channels: &[Channel], profile: &str, signer: &Signer) -> Result<(), ChannelError> {
    let (mut newest, mut refs, mut commits) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let mut signed = Vec::new();
    for channel in channels.iter().filter(|channel| channel.profile == profile) {
        for release in &channel.releases {
            let own = format!("nkd/{}/{}", channel.name, release.number);
            commits.insert(release.commit.clone());
            if !repository.has(&release.commit) {
                let (channel, number) = (&channel.name, release.number);
                tracing::warn!(channel, number, "the commit of a release is not here: publish it again");
                // By half, it keeps its ref. One that leads to nothing would be in the way of the summary.
                if repository.object(&release.commit, "commit").is_file() {
                    refs.insert(own, None);
                }
                continue;
            }
            // Published before the service had its ed25519 key, or taken once more by a service that was killed then.
            match repository.sign_if_not(&release.commit, signer) {
                Ok(()) => signed.push(release.commit.as_str()),
                Err(error @ (ChannelError::Damaged(_) | ChannelError::Detached { .. })) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, channel = channel.name, number = release.number, "a release is not signed");
                }
                Err(error) => return Err(error),
            }
            refs.insert(own, Some(release.commit.as_str()));
            // The ref that a promoted commit came from goes on with its own builds.
            if release.promoted_from.is_none() && !release.reference.is_empty() {
                let held = newest.entry(release.reference.as_str()).or_insert(release);
                if held.published_at < release.published_at {
                    *held = release;
                }
            }
        }
    }
    let mut builders: Vec<(&str, &Release)> = newest.into_iter().collect();
    builders.sort_by_key(|(_, release)| std::cmp::Reverse(release.published_at));
    for (name, release) in builders {
        match within(name, "nkd") || refs.keys().any(|other| within(name, other) || within(other, name)) {
            // Refs are files: one cannot be the folder of another. Nodes pull by commit, and the newest keeps its name.
            true => tracing::warn!(name, "a builder's ref is left out: another one is in its way"),
            false => drop(refs.insert(name.to_owned(), Some(release.commit.as_str()))),
        }
    }
    for name in repository.refs()?.iter().filter(|name| !refs.contains_key(*name)) {
        // Of releases that are retired, or that were never acknowledged.
        let in_the_way = refs.keys().any(|other| within(name, other) || within(other, name));
        let stale = || repository.commit(name).is_ok_and(|commit| !commits.contains(&commit));
        if name.starts_with("nkd/") || in_the_way || stale() {
            repository.forget(name)?;
        }
    }
    for (name, commit) in refs.iter().filter_map(|(name, commit)| Some((name, (*commit)?))) {
        repository.point(name, commit)?;
    }
    repository.renew_deltas(&signed, signer.ed25519())?;
    repository.summarize(signer)
}

/// Whether a ref is another one, or would lie in a folder of its name.
fn within(name: &str, other: &str) -> bool {
    name.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
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

/// The folder of the unpacked key goes, which takes its time: on a thread for that.
async fn put_away(signer: impl Send + 'static) {
    // It does not fail: what is left goes at the next start.
    let _ = blocking(move || {
        drop(signer);
        Ok(())
    })
    .await;
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, ChannelError> + Send + 'static,
) -> Result<T, ChannelError> {
    joined(tokio::task::spawn_blocking(job)).await
}

/// What came of a task.
///
/// # Errors
/// Its own, and [`ChannelError::Stopped`].
pub async fn joined<T>(task: JoinHandle<Result<T, ChannelError>>) -> Result<T, ChannelError> {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ChannelError::Stopped),
    }
}
