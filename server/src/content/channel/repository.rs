//! An ostree archive repository, kept by the `ostree` program.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ChannelError;
use super::program::{ProgramError, run, run_within};
use super::signer::Signer;

/// Files of keys; a commit must be signed by one of each file that is given.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// OpenPGP.
    pub openpgp: Option<PathBuf>,
    /// ed25519, base64, one a line.
    pub ed25519: Option<PathBuf>,
}

/// Of a file of keys or certificates.
const LARGEST_KEYS: u64 = 1 << 20;

/// Large files are in the difference too. ostree would leave them out, and a node takes a difference that is whole, or none.
const WHOLE: [&str; 2] = ["--min-fallback-size=0", MOST_BSDIFF];
/// Larger files go as parts of the old one and new ones, like rsync has them: bsdiff takes a second and 8 MB for a megabyte.
const MOST_BSDIFF: &str = "--max-bsdiff-size=8";

/// Before the names of repositories in which a signature is verified.
pub(super) const VERIFY: &str = ".verify-";

/// A repository in a folder.
#[derive(Debug, Clone)]
pub struct Repository {
    path: PathBuf,
}

impl Repository {
    /// One that somebody else keeps; nothing is changed in it.
    pub(super) fn at(path: &Path) -> Result<Self, ChannelError> {
        if !path.join("objects").is_dir() || !path.join("config").is_file() {
            return Err(ChannelError::NoRepository(path.into()));
        }
        Ok(Self { path: path.into() })
    }

    /// Ours: made when it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, ChannelError> {
        std::fs::create_dir_all(path).map_err(io("make", path))?;
        let repository = Self { path: path.into() };
        repository.ostree("init", &["--mode=archive"])?;
        Ok(repository)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its refs.
    pub(super) fn refs(&self) -> Result<Vec<String>, ChannelError> {
        Ok(self.ostree::<&str>("refs", &[])?.lines().map(str::to_owned).collect())
    }

    /// The commit that a ref or a beginning of a checksum stands for.
    pub(super) fn commit(&self, reference: &str) -> Result<String, ChannelError> {
        let commit = self.ostree("rev-parse", &["--", reference])?.trim().to_owned();
        if commit.len() == 64 && commit.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(commit)
        } else {
            Err(ChannelError::NoRef { reference: reference.into(), known: self.refs()?.join(", ") })
        }
    }

    /// Where an object of this kind is, if it is there.
    pub(super) fn object(&self, checksum: &str, kind: &str) -> PathBuf {
        let (first, rest) = checksum.split_at_checked(2).unwrap_or((checksum, ""));
        self.path.join("objects").join(first).join(format!("{rest}.{kind}"))
    }

    /// A text in a commit's metadata.
    pub(super) fn metadata(&self, commit: &str, key: &str) -> Result<Option<String>, ChannelError> {
        match self.ostree("show", &[&format!("--print-metadata-key={key}"), commit]) {
            Ok(text) => Ok(Some(text.trim().trim_matches(['\'', '"']).to_owned())),
            Err(ChannelError::Program(error)) if error.says("No such metadata key") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The ref that a commit says it was made for.
    pub(super) fn bound_to(&self, commit: &str) -> Result<Option<String>, ChannelError> {
        let list = self.metadata(commit, "ostree.ref-binding")?.unwrap_or_default();
        Ok(list.split('\'').nth(1).map(str::to_owned))
    }

    /// Takes a commit with everything in it, every checksum computed anew. With keys, the commit must be signed by one of
    /// each kind; whose signatures they were.
    pub(super) fn take(&self, from: &Self, commit: &str, keys: &Keys) -> Result<Option<String>, ChannelError> {
        // What was signed is what its checksum says, so it may be looked at where it comes from.
        keys.openpgp.as_deref().map(is_key_file).transpose()?;
        let ed25519 = keys.ed25519.as_deref().map(|file| from.signer_ed25519(commit, file)).transpose()?;
        let openpgp = self.take_openpgp(from, commit, keys.openpgp.as_deref())?;
        let signers: Vec<String> = openpgp.into_iter().chain(ed25519).collect();
        Ok((!signers.is_empty()).then(|| signers.join(", ")))
    }

    fn take_openpgp(&self, from: &Self, commit: &str, key: Option<&Path>) -> Result<Option<String>, ChannelError> {
        let pull = |place: &Path| {
            let words = [OsStr::new("--untrusted"), place.as_os_str(), OsStr::new(commit)];
            self.ostree("pull-local", &words).map(drop).map_err(|error| no_room(error, commit))
        };
        let Some(key) = key else { return pull(&from.path).map(|()| None) };
        // Only what was verified comes here.
        let parent = self.path.parent().unwrap_or(&self.path);
        let (place, signer) = from.verified(commit, key, parent)?;
        pull(place.path())?;
        Ok(Some(signer))
    }

    /// Whose signatures a commit of this repository bears, of those that are asked for. `folder`: where there is room for it.
    pub(super) fn signer(&self, commit: &str, keys: &Keys, folder: &Path) -> Result<Option<String>, ChannelError> {
        keys.openpgp.as_deref().map(is_key_file).transpose()?;
        let ed25519 = keys.ed25519.as_deref().map(|file| self.signer_ed25519(commit, file)).transpose()?;
        let openpgp = keys.openpgp.as_deref().map(|key| self.verified(commit, key, folder)).transpose()?;
        let signers: Vec<String> = openpgp.map(|(_, signer)| signer).into_iter().chain(ed25519).collect();
        Ok((!signers.is_empty()).then(|| signers.join(", ")))
    }

    /// A commit in a repository of its own, and whose OpenPGP signature it bears: ostree checks signatures when it pulls from a
    /// remote.
    fn verified(&self, commit: &str, key: &Path, folder: &Path) -> Result<(tempfile::TempDir, String), ChannelError> {
        let place = tempfile::Builder::new().prefix(VERIFY).tempdir_in(folder).map_err(io("make", folder))?;
        let checked = Self::open(place.path())?;
        let mut url = OsString::from("file://");
        url.push(&self.path);
        let mut import = OsString::from("--gpg-import=");
        import.push(key);
        let remote = ["add".into(), "source".into(), url, import, "--set=gpg-verify=true".into()];
        checked.ostree::<OsString>("remote", &remote).map_err(|error| match error {
            ChannelError::Program(program) if program.is_missing() => program.into(),
            error => ChannelError::KeyFile { path: key.into(), source: Box::new(error) },
        })?;
        checked.ostree("pull", &["source", commit]).map_err(|error| match no_room(error, commit) {
            other @ (ChannelError::NoRoom(_) | ChannelError::Program(ProgramError::Stalled { .. })) => other,
            error => ChannelError::NotSigned { commit: commit.into(), source: Box::new(error) },
        })?;
        let said = checked.ostree("show", &["--gpg-verify-remote=source", commit])?;
        let signer = said.lines().find_map(|line| line.trim().strip_prefix("Good signature from "));
        let signer = signer.map_or("an unnamed key", |name| name.trim_matches('"').trim_end_matches(" <>"));
        Ok((place, signer.to_owned()))
    }

    /// Makes a ref stand for a commit.
    pub(super) fn point(&self, reference: &str, commit: &str) -> Result<(), ChannelError> {
        self.ostree("refs", &["--force", &format!("--create={reference}"), commit]).map(drop)
    }

    /// Takes a ref away, and the folders that it was alone in: another one may have the name of one.
    pub(super) fn forget(&self, reference: &str) -> Result<(), ChannelError> {
        self.ostree("refs", &["--delete", reference])?;
        let heads = self.path.join("refs/heads");
        let folders = Path::new(reference).ancestors().skip(1).take_while(|folder| !folder.as_os_str().is_empty());
        // One that holds something stays, and so do those that it lies in.
        let _ = folders.map(|folder| std::fs::remove_dir(heads.join(folder))).take_while(Result::is_ok).count();
        Ok(())
    }

    /// Signs a commit, beside the signatures that it has.
    pub(super) fn sign(&self, commit: &str, signer: &Signer) -> Result<(), ChannelError> {
        let words = [homedir(signer), commit.into(), signer.fingerprint().into()];
        match self.ostree::<OsString>("gpg-sign", &words) {
            Err(ChannelError::Program(error)) if error.says("already signed") => {}
            other => drop(other?),
        }
        // The last one: who sees it knows that the other is there.
        self.sign_ed25519(commit, signer.ed25519())
    }

    /// The same for a commit that may be signed by both keys already.
    pub(super) fn sign_if_not(&self, commit: &str, signer: &Signer) -> Result<(), ChannelError> {
        if self.bears(commit, signer.ed25519())? { Ok(()) } else { self.sign(commit, signer) }
    }

    /// Makes what a node that runs `from` needs for `to`, in one file, if it is not there.
    pub(super) fn delta(&self, from: &str, to: &str) -> Result<(), ChannelError> {
        let words =
            ["generate", "--if-not-exists", WHOLE[0], WHOLE[1], &format!("--from={from}"), &format!("--to={to}")];
        self.ostree("static-delta", &words).map(drop)
    }

    /// Makes it anew.
    pub(super) fn replace_delta(&self, from: &str, to: &str) -> Result<(), ChannelError> {
        let words = ["generate", WHOLE[0], WHOLE[1], &format!("--from={from}"), &format!("--to={to}")];
        self.ostree("static-delta", &words).map(drop)
    }

    /// What there is of that: from which commit, and to which.
    pub(super) fn deltas(&self) -> Result<Vec<(String, String)>, ChannelError> {
        let list = self.ostree("static-delta", &["list"])?;
        let pair = |line: &str| line.trim().split_once('-').map(|(from, to)| (from.to_owned(), to.to_owned()));
        Ok(list.lines().filter_map(pair).collect())
    }

    pub(super) fn ostree<S: AsRef<OsStr>>(&self, verb: &str, words: &[S]) -> Result<String, ChannelError> {
        let output = run("ostree", "ostree", &self.words(verb, words), b"").map_err(ChannelError::from)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// The same for what depends on others; it ends with whoever waits for it.
    pub(super) async fn ostree_within<S: AsRef<OsStr>>(
        &self,
        verb: &str,
        words: &[S],
        limit: Duration,
    ) -> Result<(), ChannelError> {
        Ok(run_within("ostree", "ostree", &self.words(verb, words), limit).await?)
    }

    fn words<S: AsRef<OsStr>>(&self, verb: &str, words: &[S]) -> Vec<OsString> {
        let mut repo = OsString::from("--repo=");
        repo.push(&self.path);
        let mut all = vec![OsString::from(verb), repo];
        all.extend(words.iter().map(|word| word.as_ref().to_owned()));
        all
    }
}

pub(super) fn homedir(signer: &Signer) -> OsString {
    let mut word = OsString::from("--gpg-homedir=");
    word.push(signer.home());
    word
}

/// The text of a file of keys or certificates that an order names.
#[expect(clippy::disallowed_methods, reason = "reads it")]
pub(super) fn small_file(path: &Path) -> Result<String, ChannelError> {
    is_key_file(path)?;
    std::fs::read_to_string(path).map_err(io("read", path))
}

/// Whether it can be one: devices have no end, and some files none that memory holds.
fn is_key_file(path: &Path) -> Result<(), ChannelError> {
    let wrong = |reason: &str| super::wrong("file", &format!("{} {reason}: name a file of keys", path.display()));
    let about = std::fs::metadata(path).map_err(io("read", path))?;
    if !about.is_file() {
        return Err(wrong("is no file"));
    }
    if about.len() > LARGEST_KEYS {
        return Err(wrong("has more than 1 MiB"));
    }
    Ok(())
}

pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ChannelError {
    let path = path.to_path_buf();
    move |source| ChannelError::Io { action, path, source }
}

impl From<ProgramError> for ChannelError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

/// What ostree says when the disk is full is no word about the commit.
pub(super) fn no_room(error: ChannelError, commit: &str) -> ChannelError {
    match error {
        ChannelError::Program(error) if error.says("No space left on device") || error.says("min-free-space") => {
            ChannelError::NoRoom(commit.to_owned())
        }
        other => other,
    }
}
