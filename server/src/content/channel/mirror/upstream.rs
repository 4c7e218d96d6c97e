//! A ref of somebody else's repository, read by the real ostree into a repository of its own.
//!
//! That repository stays until its commit is published, so that a pull that broke off goes on where it was.
#![expect(clippy::disallowed_methods, reason = "keeps files for ostree")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use time::OffsetDateTime;
use time::macros::format_description;

use super::super::program::ProgramError;
use super::super::repository::io;
use super::super::{ChannelError, Repository, blocking};
use super::Record;

/// Before the names of the folders.
const PREFIX: &str = ".mirror-";
/// The name that the upstream has there.
const REMOTE: &str = "upstream";
/// How long a look at the ref may take.
const LOOK: Duration = Duration::from_secs(300);
/// How long the commit may take to come.
const PULL: Duration = Duration::from_secs(12 * 3600);

pub(super) struct Upstream {
    folder: PathBuf,
    repository: Repository,
    reference: String,
    /// File of those that commits have to be signed with.
    ed25519_keys: Option<PathBuf>,
}

/// The commit of the ref.
pub(super) struct Commit {
    pub commit: String,
    pub made_at: OffsetDateTime,
    pub version: Option<String>,
}

impl Upstream {
    /// `ours` is the folder of our repositories.
    pub async fn open(ours: &Path, record: &Record) -> Result<Self, ChannelError> {
        let folder = ours.join(format!("{PREFIX}{}", record.mirror.channel));
        let (from, reference) = (record.mirror.from.clone(), record.mirror.reference.clone());
        let (keys, ed25519_keys, ca) = (record.keys.clone(), record.ed25519_keys.clone(), record.ca.clone());
        blocking(move || {
            fs::create_dir_all(&folder).map_err(io("make", &folder))?;
            let write = |name: &str, text: &str| {
                let path = folder.join(name);
                fs::write(&path, text).map_err(io("write", &path)).map(|()| path)
            };
            let repository = Repository::open(&folder.join("repo"))?;
            let ed25519_keys = ed25519_keys.map(|keys| write(ED25519_KEYS, &keys)).transpose()?;
            repository.ostree("remote", &["delete", "--if-exists", REMOTE])?;
            let mut words: Vec<OsString> = vec!["add".into(), REMOTE.into(), from.into()];
            match keys {
                Some(keys) => {
                    let mut import = OsString::from("--gpg-import=");
                    import.push(write(KEYS, &keys)?);
                    words.extend([import, "--set=gpg-verify=true".into()]);
                }
                None => words.push("--no-gpg-verify".into()),
            }
            if let Some(ca) = ca {
                let mut set = OsString::from("--set=tls-ca-path=");
                set.push(write("ca.pem", &ca)?);
                words.push(set);
            }
            repository.ostree("remote", &words)?;
            Ok(Self { folder, repository, reference, ed25519_keys })
        })
        .await
    }

    /// What the ref stands for now: its commit alone, with its signatures verified.
    pub async fn look(&self) -> Result<Commit, ChannelError> {
        let words = ["--commit-metadata-only", REMOTE, &self.reference];
        self.repository.ostree_within("pull", &words, LOOK).await?;
        let (repository, reference) = (self.repository.clone(), self.reference.clone());
        let ed25519_keys = self.ed25519_keys.clone();
        blocking(move || {
            let commit = repository.commit(&format!("{REMOTE}:{reference}"))?;
            if let Some(keys) = ed25519_keys {
                repository.signer_ed25519(&commit, &keys)?;
            }
            let (made_at, version) = (repository.made_at(&commit)?, repository.metadata(&commit, "version")?);
            Ok(Commit { commit, made_at, version })
        })
        .await
    }

    /// Fetches everything of a commit that `known`, a repository of ours, does not have.
    pub async fn pull(&self, commit: &str, known: &Path) -> Result<(), ChannelError> {
        let mut words: Vec<OsString> = Vec::new();
        if known.join("config").is_file() {
            let mut cache = OsString::from("--localcache-repo=");
            cache.push(known);
            words.push(cache);
        }
        words.extend([REMOTE.into(), commit.into()]);
        self.repository.ostree_within("pull", &words, PULL).await?;
        let (repository, reference, commit) = (self.repository.clone(), self.reference.clone(), commit.to_owned());
        blocking(move || repository.point(&reference, &commit)).await
    }

    /// Where it came to.
    pub fn path(&self) -> &Path {
        self.repository.path()
    }

    /// The file of the keys that it has to be signed with.
    pub fn keys(&self) -> PathBuf {
        self.folder.join(KEYS)
    }

    /// The same for ed25519.
    pub fn ed25519_keys(&self) -> PathBuf {
        self.folder.join(ED25519_KEYS)
    }

    /// Frees the space.
    pub async fn remove(self) -> Result<(), ChannelError> {
        let folder = self.folder;
        blocking(move || remove(&folder).map_err(io("remove", &folder))).await
    }
}

const KEYS: &str = "keys.asc";
const ED25519_KEYS: &str = "keys.ed25519";

/// Removes what came of upstreams that no channel follows any more. The folders of these channels stay.
pub(super) async fn tidy(ours: &Path, needed: BTreeSet<String>) {
    let ours = ours.to_path_buf();
    let tidied = blocking(move || {
        for entry in fs::read_dir(&ours).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(channel) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            if !needed.contains(channel) {
                match remove(&entry.path()) {
                    Ok(()) => tracing::info!(channel, "removed what came of an upstream that is followed no more"),
                    // The ostree that was told to end may be at its last file.
                    Err(error) => tracing::warn!(
                        channel,
                        %error,
                        "what came of an upstream that is followed no more is not removed yet"
                    ),
                }
            }
        }
        Ok(())
    });
    // It is told in the log.
    let _ = tidied.await;
}

/// Somebody may have been faster.
fn remove(folder: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Repository {
    /// When a commit was made, if it is whole and tells so.
    pub(in super::super) fn made_at_if_told(&self, commit: &str) -> Result<Option<OffsetDateTime>, ChannelError> {
        match self.made_at(commit) {
            Err(ChannelError::Program(ProgramError::Stopped)) => Err(ChannelError::Stopped),
            made_at => Ok(made_at.ok().filter(|_| self.has(commit))),
        }
    }

    /// When a commit was made.
    pub(in super::super) fn made_at(&self, commit: &str) -> Result<OffsetDateTime, ChannelError> {
        let shown = self.ostree("show", &[commit])?;
        let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000");
        let date = shown.lines().find_map(|line| line.strip_prefix("Date:"));
        let date = date.and_then(|date| time::PrimitiveDateTime::parse(date.trim(), format).ok());
        Ok(date.ok_or_else(|| ChannelError::NoDate(commit.into()))?.assume_utc())
    }
}
