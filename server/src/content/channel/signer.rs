//! The keys that the service signs commits and summaries with: an OpenPGP key, which every ostree with gpgme knows, and an
//! ed25519 key.
//!
//! At rest they lie sealed in the store. For the moments of a signature the OpenPGP key is in a folder of its own
//! ([`KeyFolder`]).
#![expect(clippy::disallowed_methods, reason = "makes keys, and reads their public halves")]

use std::ffi::OsString;
use std::io;
use std::path::Path;

use super::ChannelError;
use super::ed25519::{KEY_LENGTH, Key};
use super::key_folder::KeyFolder;
use super::program::{GNUPG, ProgramError, run};

/// Of the key: people see it when they look at a signature.
const OWNER: &str = "nkd channels";

/// A public half, as it lies beside the repositories.
pub(super) fn public_key(path: &Path) -> Result<String, ChannelError> {
    std::fs::read_to_string(path).map_err(|source| ChannelError::Io { action: "read", path: path.into(), source })
}

/// The same of a key that may not have been made.
pub(super) fn public_key_if_any(path: &Path) -> Result<Option<String>, ChannelError> {
    match public_key(path) {
        Err(ChannelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// A new ed25519 key, for the seal.
pub(super) fn new_seed() -> Result<Vec<u8>, ChannelError> {
    let mut seed = [0; KEY_LENGTH];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| ChannelError::Random)?;
    Ok(seed.to_vec())
}

/// Keys that are ready to sign.
pub(super) struct Signer {
    home: KeyFolder,
    fingerprint: String,
    ed25519: Key,
}

impl Signer {
    /// With a new OpenPGP key.
    pub fn generate(state_dir: &Path, seed: &[u8]) -> Result<Self, ChannelError> {
        let home = folder(state_dir)?;
        gpg(&home, &["--passphrase", "", "--quick-gen-key", OWNER, "rsa3072", "sign", "never"], b"")?;
        Self::of(home, seed)
    }

    /// With the OpenPGP key that [`Self::secret`] gave.
    pub fn restore(state_dir: &Path, secret: &[u8], seed: &[u8]) -> Result<Self, ChannelError> {
        let home = folder(state_dir)?;
        gpg(&home, &["--import"], secret)?;
        Self::of(home, seed)
    }

    fn of(home: KeyFolder, seed: &[u8]) -> Result<Self, ChannelError> {
        let ed25519 = Key::from_seed(seed).ok_or(ChannelError::Key)?;
        let list = gpg(&home, &["--with-colons", "--list-secret-keys"], b"")?;
        let list = String::from_utf8_lossy(&list).into_owned();
        let fingerprint = list.lines().find_map(|line| line.strip_prefix("fpr:")?.split(':').nth(8));
        let fingerprint = fingerprint.ok_or(ChannelError::Key)?.to_owned();
        Ok(Self { home, fingerprint, ed25519 })
    }

    /// Everything of the OpenPGP key: for the seal.
    pub fn secret(&self) -> Result<Vec<u8>, ChannelError> {
        Ok(gpg(&self.home, &["--passphrase", "", "--export-secret-keys", &self.fingerprint], b"")?)
    }

    /// What everybody may have of it, armored.
    pub fn public(&self) -> Result<Vec<u8>, ChannelError> {
        Ok(gpg(&self.home, &["--armor", "--export", &self.fingerprint], b"")?)
    }

    /// The ed25519 key.
    pub fn ed25519(&self) -> &Key {
        &self.ed25519
    }

    /// Which OpenPGP key, in hex.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Where gpg finds it.
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}

fn folder(state_dir: &Path) -> Result<KeyFolder, ChannelError> {
    KeyFolder::make(state_dir).map_err(|error| match error.downcast::<ProgramError>() {
        Ok(program) => program.into(),
        Err(source) => ChannelError::Io { action: "make a folder in", path: state_dir.into(), source },
    })
}

fn gpg(home: &KeyFolder, words: &[&str], input: &[u8]) -> Result<Vec<u8>, ProgramError> {
    let mut all: Vec<OsString> = vec!["--homedir".into(), home.path().into()];
    all.extend(["--batch", "--quiet", "--pinentry-mode", "loopback"].map(OsString::from));
    all.extend(words.iter().map(OsString::from));
    run("gpg", GNUPG, &all, input).map_err(|error| match error {
        ProgramError::Refused { program, said, .. } => {
            let verb = words.iter().rfind(|word| word.starts_with("--")).map_or("", |word| word).to_owned();
            ProgramError::Refused { program, verb, said }
        }
        other => other,
    })
}
