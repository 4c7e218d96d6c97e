//! The OpenPGP key that the service signs commits and summaries with.
//!
//! At rest it lies sealed in the store. For the moments of a signature it is in a folder of its own, in memory where the
//! system has such a folder.
#![expect(clippy::disallowed_methods, reason = "reads the public half")]

use std::ffi::OsString;
use std::path::Path;

use tempfile::TempDir;

use super::ChannelError;
use super::program::{ProgramError, run};

/// Folders in memory that are there on usual systems.
const IN_MEMORY: [&str; 2] = ["/dev/shm", "/run/shm"];
/// Of the key: people see it when they look at a signature.
const OWNER: &str = "nkd channels";

/// The public half, as it lies beside the repositories.
pub(super) fn public_key(path: &Path) -> Result<String, ChannelError> {
    std::fs::read_to_string(path).map_err(|source| ChannelError::Io { action: "read", path: path.into(), source })
}

/// A key that is ready to sign.
pub(super) struct Signer {
    home: TempDir,
    fingerprint: String,
}

impl Signer {
    /// A new key.
    pub fn generate(state_dir: &Path) -> Result<Self, ChannelError> {
        let home = folder(state_dir)?;
        gpg(&home, &["--passphrase", "", "--quick-gen-key", OWNER, "rsa3072", "sign", "never"], b"")?;
        Self::of(home)
    }

    /// The key that [`Self::secret`] gave.
    pub fn restore(state_dir: &Path, secret: &[u8]) -> Result<Self, ChannelError> {
        let home = folder(state_dir)?;
        gpg(&home, &["--import"], secret)?;
        Self::of(home)
    }

    fn of(home: TempDir) -> Result<Self, ChannelError> {
        let list = gpg(&home, &["--with-colons", "--list-secret-keys"], b"")?;
        let list = String::from_utf8_lossy(&list).into_owned();
        let fingerprint = list.lines().find_map(|line| line.strip_prefix("fpr:")?.split(':').nth(8));
        let fingerprint = fingerprint.ok_or(ChannelError::Key)?.to_owned();
        Ok(Self { home, fingerprint })
    }

    /// Everything of the key: for the seal.
    pub fn secret(&self) -> Result<Vec<u8>, ChannelError> {
        Ok(gpg(&self.home, &["--passphrase", "", "--export-secret-keys", &self.fingerprint], b"")?)
    }

    /// What everybody may have of it, armored.
    pub fn public(&self) -> Result<Vec<u8>, ChannelError> {
        Ok(gpg(&self.home, &["--armor", "--export", &self.fingerprint], b"")?)
    }

    /// Which key, in hex.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Where gpg finds it.
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        // gpg leaves an agent behind, which ends with its folder too, a little later.
        let words = [OsString::from("--homedir"), self.home.path().into(), "--kill".into(), "gpg-agent".into()];
        let _ = run("gpgconf", "gnupg", &words, b"");
    }
}

fn gpg(home: &TempDir, words: &[&str], input: &[u8]) -> Result<Vec<u8>, ProgramError> {
    let mut all: Vec<OsString> = vec!["--homedir".into(), home.path().into()];
    all.extend(["--batch", "--quiet", "--pinentry-mode", "loopback"].map(OsString::from));
    all.extend(words.iter().map(OsString::from));
    run("gpg", "gnupg", &all, input).map_err(|error| match error {
        ProgramError::Refused { program, said, .. } => {
            let verb = words.iter().rfind(|word| word.starts_with("--")).map_or("", |word| word).to_owned();
            ProgramError::Refused { program, verb, said }
        }
        other => other,
    })
}

/// A folder for nobody else: tempfile makes it with mode 0700.
fn folder(state_dir: &Path) -> Result<TempDir, ChannelError> {
    let make = |parent: &Path| tempfile::Builder::new().prefix("nkd-key-").tempdir_in(parent);
    let in_memory = IN_MEMORY.iter().find_map(|parent| make(Path::new(parent)).ok());
    let made = in_memory.map_or_else(|| make(state_dir), Ok);
    made.map_err(|source| ChannelError::Io { action: "make a folder in", path: state_dir.into(), source })
}
