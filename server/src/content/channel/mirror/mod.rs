//! Mirrors: a channel follows a ref of an upstream repository, and each new commit there is its next release.
//!
//! What is followed, when the next look is due and how the last one went is in the store, so a service that was killed
//! goes on. A look that fails leaves the channel as it is; the next one comes after a pause that doubles.

pub mod decide;
mod upstream;

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use nkd_api::channel::{Mirror, MirrorOrder, PublishOrder};
use nkd_api::user::AuditEntry;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use self::decide::{Offered, Verdict, judge, pause};
use self::upstream::Upstream;
use super::detached::ed25519_keys;
use super::publish::{fits, is_version, new_channel};
use super::repository::no_room;
use super::{ChannelError, Channels, Repository, blocking, text, wrong};
use crate::http::chain;
use crate::machine::lifecycle::{NAME_RULE, valid_name};
use crate::store::StoreError;

/// How often it is looked whether a mirror is due.
const TICK: Duration = Duration::from_secs(15);
/// How often an upstream is looked at, when nothing else was said.
const EVERY_MINUTES: u32 = 6 * 60;

/// A mirror with what nobody needs to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The mirror.
    pub mirror: Mirror,
    /// OpenPGP keys, one of which the commits are signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// ed25519 keys, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ed25519_keys: Option<String>,
    /// Certificates that the upstream's has to come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

impl Record {
    /// Whether it is the same commits of the same upstream, taken for the same reason.
    fn is_same(&self, other: &Self) -> bool {
        let of = |record: &Self| {
            let Mirror { profile, architecture, from, reference, kubernetes, .. } = record.mirror.clone();
            let what = (profile, architecture, from, reference, kubernetes);
            (what, record.keys.clone(), record.ed25519_keys.clone(), record.ca.clone())
        };
        of(self) == of(other)
    }
}

/// A mirror, and what it does now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorNow {
    /// The mirror.
    #[serde(flatten)]
    pub mirror: Mirror,
    /// Since when the upstream is being looked at, and what is new fetched and published. None: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub looking_since: Option<OffsetDateTime>,
}

/// A look at an upstream that is under way.
struct Looking<'a> {
    channels: &'a Channels,
    channel: String,
}

impl<'a> Looking<'a> {
    fn begin(channels: &'a Channels, channel: &str, now: OffsetDateTime) -> Self {
        channels.looking.lock().unwrap_or_else(PoisonError::into_inner).insert(channel.to_owned(), now);
        Self { channels, channel: channel.to_owned() }
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.channels.looking.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.channel);
    }
}

impl Channels {
    /// Makes a channel follow an upstream, from now on.
    ///
    /// # Errors
    /// [`ChannelError`]; what was followed before is followed still then.
    pub async fn follow(&self, name: &str, order: MirrorOrder, now: OffsetDateTime) -> Result<Mirror, ChannelError> {
        if !valid_name(name) {
            return Err(wrong("channel", NAME_RULE));
        }
        let from = address(&order.from)?;
        if order.reference.is_empty() || order.reference.starts_with('-') || order.reference.contains([':', '@']) {
            return Err(wrong("ref", "name a ref of the upstream, like fedora/x86_64/coreos/stable"));
        }
        if (order.key.is_some() || order.ed25519_key.is_some()) == order.unsigned {
            let reason = "say whose signature its commits must bear with --key FILE or --ed25519-key FILE, or take them --insecure-unsigned";
            return Err(wrong("key", reason));
        }
        if order.kubernetes.as_ref().is_some_and(|version| !is_version(version)) {
            return Err(wrong("kubernetes", "write it like v1.31.4"));
        }
        let (profile, architecture) = (order.profile.as_deref(), order.architecture.as_deref());
        let channel = match self.store.channel(name).await? {
            Some((channel, _)) => {
                fits(&channel, &order.reference, profile, architecture)?;
                channel
            }
            None => new_channel(name, &order.reference, profile, architecture)?,
        };
        let every_minutes = order.every_minutes.unwrap_or(EVERY_MINUTES);
        if every_minutes == 0 {
            return Err(wrong("everyMinutes", "at most once a minute: say 1m or more"));
        }
        let mirror = Mirror {
            channel: name.into(),
            profile: channel.profile,
            architecture: channel.architecture,
            from: from.to_string(),
            reference: order.reference,
            key: order.key.clone(),
            ed25519_key: order.ed25519_key.clone(),
            ca: order.ca.clone(),
            kubernetes: order.kubernetes,
            every_minutes,
            next_look_at: now,
            looked_at: None,
            succeeded_at: None,
            failures: 0,
            problem: None,
        };
        let (key, ed25519_key, ca) = (order.key, order.ed25519_key, order.ca);
        let record = blocking(move || {
            let keys = key.map(|path| keys_of(Path::new(&path))).transpose()?;
            let ed25519_keys = ed25519_key.map(|path| ed25519_keys(Path::new(&path))).transpose()?;
            let ca = ca.map(|path| authority_of(Path::new(&path))).transpose()?;
            Ok(Record { mirror, keys, ed25519_keys, ca })
        });
        let mut record = record.await?;
        let following = self.following.lock().await;
        let before = self.store.mirror(name).await?;
        let revision = before.as_ref().map_or(0, |(_, revision)| *revision);
        // How it went is told still, when it is to be looked at more often, say.
        if let Some((before, _)) = before.filter(|(before, _)| before.is_same(&record)) {
            let Mirror { looked_at, succeeded_at, failures, problem, .. } = before.mirror;
            record.mirror = Mirror { looked_at, succeeded_at, failures, problem, ..record.mirror };
        }
        self.store.save_mirror(&record, revision).await?;
        drop(following);
        self.mirrors.send_replace(());
        Ok(record.mirror)
    }

    /// Whether its channel follows this upstream still.
    pub(super) async fn follows(&self, record: &Record) -> Result<bool, ChannelError> {
        let now = self.store.mirror(&record.mirror.channel).await?;
        Ok(now.is_some_and(|(now, _)| now.is_same(record)))
    }

    /// Ends when its channel follows another upstream, or none.
    async fn unfollowed(&self, record: &Record) {
        let mut changes = self.mirrors.subscribe();
        // What cannot be read now is read the next time.
        while !matches!(self.follows(record).await, Ok(false)) {
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// What a channel follows, and how that goes.
    ///
    /// # Errors
    /// [`ChannelError::NoMirror`], and those of the store.
    pub async fn mirror(&self, name: &str) -> Result<MirrorNow, ChannelError> {
        // In this order: a look that ends in between is told as under way, and never as one that was not begun.
        let looking_since = self.looking.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        Ok(MirrorNow { mirror: self.followed(name).await?.0.mirror, looking_since })
    }

    /// What all channels follow, and how that goes, by name.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn mirrors(&self) -> Result<Vec<MirrorNow>, ChannelError> {
        let looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = |(record, _): (Record, i64)| MirrorNow {
            looking_since: looking.get(&record.mirror.channel).copied(),
            mirror: record.mirror,
        };
        Ok(self.store.mirrors().await?.into_iter().map(now).collect())
    }

    /// Looks at the upstream as soon as may be.
    ///
    /// # Errors
    /// [`ChannelError::NoMirror`], and those of the store.
    pub async fn look_now(&self, name: &str, now: OffsetDateTime) -> Result<Mirror, ChannelError> {
        let (mut record, revision) = self.followed(name).await?;
        record.mirror.next_look_at = now;
        self.store.save_mirror(&record, revision).await?;
        self.mirrors.send_replace(());
        Ok(record.mirror)
    }

    /// Follows nothing any more. The releases stay; what came of the next one goes when nobody works with it.
    ///
    /// # Errors
    /// [`ChannelError::NoMirror`], and those of the store.
    pub async fn unfollow(&self, name: &str) -> Result<(), ChannelError> {
        self.followed(name).await?;
        let following = self.following.lock().await;
        self.store.remove_mirror(name).await?;
        drop(following);
        self.mirrors.send_replace(());
        Ok(())
    }

    async fn followed(&self, name: &str) -> Result<(Record, i64), ChannelError> {
        self.store.mirror(name).await?.ok_or_else(|| ChannelError::NoMirror(name.into()))
    }

    /// Looks at an upstream, and writes down how that went. For so long its channel is to be left alone then, although the
    /// store may say that it is due.
    #[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
    async fn look(&self, record: Record, revision: i64) -> Duration {
        let _looking = Looking::begin(self, &record.mirror.channel, OffsetDateTime::now_utc());
        let looked = self.look_at(&record).await;
        let now = OffsetDateTime::now_utc();
        let mut mirror = record.mirror.clone();
        let name = mirror.channel.clone();
        mirror.looked_at = Some(now);
        let result = match looked {
            Ok(Verdict::Backwards(reason)) => Err(backwards(&name, &reason)),
            Err(ChannelError::Downgrade { why, .. }) => {
                Err(backwards(&name, &format!("the upstream went back: {why}")))
            }
            Ok(verdict) => Ok(if verdict == Verdict::New { "published" } else { "same" }),
            // It goes on at the next start, or never.
            Err(ChannelError::Stopped | ChannelError::FollowsAnother(_)) => return Duration::ZERO,
            // What it had begun was ended with the service.
            Err(_) if self.stop.is_cancelled() => return Duration::ZERO,
            Err(error) => {
                Err(format!("{} at {}: {}", mirror.reference, mirror.from, chain(&by_name_given(error, &mirror))))
            }
        };
        self.metrics.looked(&name, result.as_ref().unwrap_or(&"failed"), now);
        match result {
            Ok(_) => (mirror.succeeded_at, mirror.failures, mirror.problem) = (Some(now), 0, None),
            Err(problem) => {
                mirror.failures = mirror.failures.saturating_add(1);
                tracing::warn!(
                    channel = name,
                    from = mirror.from,
                    failures = mirror.failures,
                    problem,
                    "a mirror stands still"
                );
                mirror.problem = Some(problem);
            }
        }
        let every = every(&mirror);
        mirror.next_look_at = now + pause(every, mirror.failures);
        match self.store.save_mirror(&Record { mirror, ..record }, revision).await {
            // It follows something else by now, or nothing, or is to look again.
            Ok(()) | Err(StoreError::Stale) => Duration::ZERO,
            Err(error) => {
                tracing::error!(
                    channel = name,
                    error = &error as &dyn std::error::Error,
                    "how a mirror went is not kept"
                );
                pause(every, 1)
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
    async fn look_at(&self, record: &Record) -> Result<Verdict, ChannelError> {
        let (mirror, ours) = (&record.mirror, self.folder());
        let upstream = Upstream::open(&ours, record).await?;
        let another = || ChannelError::FollowsAnother(mirror.channel.clone());
        let offered = tokio::select! {
            offered = upstream.look() => offered?,
            () = self.unfollowed(record) => return Err(another()),
            () = self.stop.cancelled() => return Err(ChannelError::Stopped),
        };
        let channel = self.store.channel(&mirror.channel).await?.map(|(channel, _)| channel);
        let known = ours.join(&mirror.profile);
        let newest = channel.as_ref().and_then(|channel| Some(channel.newest()?.commit.clone()));
        let place = known.clone();
        let (newest_at, is_lost) = blocking(move || {
            let Some((newest, ours)) = newest.zip(Repository::at(&place).ok()) else { return Ok((None, true)) };
            Ok((ours.made_at_if_told(&newest)?, !ours.has(&newest)))
        })
        .await?;
        let commit = offered.commit.as_str();
        let verdict = judge(channel.as_ref(), newest_at, Offered { commit, made_at: offered.made_at });
        // After a backup was restored, the newest release may have lost its commit: it takes its own place again.
        if verdict != Verdict::New && !(verdict == Verdict::Same && is_lost) {
            return Ok(verdict);
        }
        let pulled = tokio::select! {
            pulled = upstream.pull(commit, &known) => pulled,
            () = self.unfollowed(record) => return Err(another()),
            () = self.stop.cancelled() => return Err(ChannelError::Stopped),
        };
        match pulled.map_err(|error| no_room(error, commit)) {
            Ok(()) => {}
            // What has come of it is all that could be freed.
            Err(error @ ChannelError::NoRoom(_)) => {
                upstream.remove().await?;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        if self.stop.is_cancelled() {
            return Err(ChannelError::Stopped);
        }
        let order = PublishOrder {
            ostree: upstream.path().display().to_string(),
            reference: Some(mirror.reference.clone()),
            kubernetes: mirror.kubernetes.clone(),
            // A commit that has no version, or none that can be shown, is called by its name.
            version: (!offered.version.as_deref().is_some_and(text::is_version))
                .then(|| commit.chars().take(12).collect()),
            profile: Some(mirror.profile.clone()),
            architecture: Some(mirror.architecture.clone()),
            key: record.keys.as_ref().map(|_| upstream.keys().display().to_string()),
            ed25519_key: record.ed25519_keys.as_ref().map(|_| upstream.ed25519_keys().display().to_string()),
            ..PublishOrder::default()
        };
        let entry = AuditEntry {
            at: OffsetDateTime::now_utc(),
            who: "mirror".into(),
            action: "channel.publish".into(),
            target: mirror.channel.clone(),
            detail: format!("{} {} {commit}", mirror.from, mirror.reference),
        };
        self.store.audit(&entry).await?;
        self.publish_from(&mirror.channel, order, Some(record), OffsetDateTime::now_utc(), |_| {}).await?;
        upstream.remove().await?;
        self.make_deltas_to(&mirror.channel, OffsetDateTime::now_utc(), &|_: &str| {}).await;
        Ok(verdict)
    }
}

/// Looks at upstreams as they are due, until the service stops. What is being pulled then goes on at the next start; what
/// is being published comes to its end.
#[expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]
pub async fn run(channels: Arc<Channels>) {
    let mut changes = channels.mirrors.subscribe();
    let mut looks: JoinSet<String> = JoinSet::new();
    let mut busy = BTreeSet::new();
    loop {
        match channels.store.mirrors().await {
            Ok(mirrors) => {
                let followed = mirrors.iter().map(|(record, _)| record.mirror.channel.clone());
                upstream::tidy(&channels.folder(), followed.chain(busy.iter().cloned()).collect()).await;
                let now = OffsetDateTime::now_utc();
                for (record, revision) in mirrors {
                    let mirror = &record.mirror;
                    let is_due = decide::is_due(mirror.next_look_at, every(mirror), now);
                    if is_due && busy.insert(mirror.channel.clone()) {
                        let (channels, name, every) = (Arc::clone(&channels), mirror.channel.clone(), every(mirror));
                        looks.spawn(async move {
                            let rest = unbroken(channels.look(record, revision), &name, every).await;
                            tokio::select! {
                                () = tokio::time::sleep(rest) => {}
                                () = channels.stop.cancelled() => {}
                            }
                            name
                        });
                    }
                }
            }
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "mirrors cannot be read"),
        }
        tokio::select! {
            () = channels.stop.cancelled() => break,
            _ = changes.changed() => {}
            () = tokio::time::sleep(TICK) => {}
            Some(Ok(name)) = looks.join_next() => drop(busy.remove(&name)),
        }
    }
    while looks.join_next().await.is_some() {}
}

/// Keys are read once, and kept: the file that is told is the one that somebody named.
fn by_name_given(error: ChannelError, mirror: &Mirror) -> ChannelError {
    match (error, &mirror.ed25519_key) {
        (ChannelError::NotSignedEd25519 { commit, count, .. }, Some(named)) => {
            ChannelError::NotSignedEd25519 { commit, count, path: named.into() }
        }
        (error, _) => error,
    }
}

/// What somebody has to do who wants it all the same.
fn backwards(channel: &str, why: &str) -> String {
    format!("{why}; whoever wants that publishes it: `nkd channel publish {channel} --ostree PATH --allow-downgrade`")
}

/// A look, and for how long its channel is to be left alone then. One that breaks is a failure of this channel alone.
async fn unbroken(look: impl Future<Output = Duration>, channel: &str, every: Duration) -> Duration {
    AssertUnwindSafe(look).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(channel, "a look at an upstream broke");
        pause(every, 1)
    })
}

fn every(mirror: &Mirror) -> Duration {
    Duration::from_secs(u64::from(mirror.every_minutes) * 60)
}

/// The address of an upstream. What it holds is shown to everybody who may see the channel, and stands in the audit trail.
///
/// # Errors
/// [`ChannelError::Order`].
pub fn address(text: &str) -> Result<url::Url, ChannelError> {
    let like = "write the repository's address like https://upstream.example/repo, or http:// or file://";
    let url = url::Url::parse(text).map_err(|_| wrong("from", like))?;
    let has_host = url.scheme() == "file" || url.has_host();
    if !["file", "http", "https"].contains(&url.scheme()) || !has_host {
        return Err(wrong("from", like));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let reason = "the address holds a name or a password, which would be shown: leave them out, and let the upstream \
                      know this service by its address";
        return Err(wrong("from", reason));
    }
    Ok(url)
}

/// The text of a file of keys.
fn keys_of(path: &Path) -> Result<String, ChannelError> {
    let (text, mark) = (super::repository::small_file(path)?, "-----BEGIN PGP PUBLIC KEY BLOCK-----");
    match text.contains(mark) {
        true => Ok(text),
        false => Err(wrong("key", &format!("{} has no `{mark}`: name an armored file", path.display()))),
    }
}

/// The text of a file of authorities.
fn authority_of(path: &Path) -> Result<String, ChannelError> {
    let is_certificate = |der: &CertificateDer<'_>| X509Certificate::from_der(der).is_ok();
    let is_good = |text: &str| {
        let all = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
        all.is_ok_and(|all| !all.is_empty() && all.iter().all(is_certificate))
    };
    let why = match super::repository::small_file(path) {
        Ok(text) if is_good(&text) => return Ok(text),
        Ok(_) => "it holds no certificate that reads".to_owned(),
        Err(ChannelError::Io { source, .. }) => source.to_string(),
        Err(_) => "it is no file, or has more than 1 MiB".to_owned(),
    };
    let next = "name a PEM file, on the service's host, of the authorities that the upstream's certificate comes from";
    Err(wrong("upstream-ca", &format!("{} is no CA certificate: {why}; {next}", path.display())))
}

#[cfg(test)]
mod tests;
