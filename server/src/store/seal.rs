//! Secrets at rest: AES-256-GCM with a key from a file (NIST SP 800-38D).
//!
//! A sealed value is `version(1) || nonce(12) || ciphertext || tag(16)`; the name of the value is bound to it as
//! associated data, so that a sealed value cannot be moved to another place.
#![expect(clippy::disallowed_methods, reason = "reads the key file and the system's randomness")]

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

const VERSION: u8 = 1;

/// The key could not be had, or a value could not be opened with it.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Reading or making the key file failed.
    #[error("cannot use the key file {path}: {reason}", path = path.display())]
    KeyFile {
        /// File.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
        /// Cause.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The value was sealed with another key, or is damaged.
    #[error("the sealed value `{0}` does not open: is this the key file that belongs to this state?")]
    Open(String),
    /// The system has no randomness.
    #[error("the system gives no random numbers")]
    Random,
}

/// Seals and opens values.
#[derive(Clone)]
pub struct Seal(Arc<LessSafeKey>);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(..)")
    }
}

impl Seal {
    /// Takes the key from `path`; makes a new one there (mode 0600) if there is no file and `may_create`.
    pub fn from_key_file(path: &Path, may_create: bool) -> Result<Self, SealError> {
        let fail = |reason: &str, source| SealError::KeyFile { path: path.into(), reason: reason.to_owned(), source };
        let mut key = [0u8; 32];
        match std::fs::OpenOptions::new().read(true).open(path) {
            Ok(mut file) => {
                let mode = file.metadata().map_err(|e| fail("it has no metadata", Some(e)))?.permissions().mode();
                if mode & 0o077 != 0 {
                    return Err(fail("others may read it: chmod 600", None));
                }
                file.read_exact(&mut key).map_err(|e| fail("it must hold 32 bytes", Some(e)))?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && may_create => {
                aws_lc_rs::rand::fill(&mut key).map_err(|_| SealError::Random)?;
                let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let mut file = tempfile::Builder::new()
                    .permissions(std::fs::Permissions::from_mode(0o600))
                    .tempfile_in(dir)
                    .map_err(|e| fail("its folder is not writable", Some(e)))?;
                file.write_all(&key).map_err(|e| fail("writing it failed", Some(e)))?;
                file.as_file().sync_all().map_err(|e| fail("writing it failed", Some(e)))?;
                file.persist_noclobber(path).map_err(|e| fail("it appeared meanwhile", Some(e.error)))?;
                std::fs::OpenOptions::new()
                    .read(true)
                    .custom_flags(nix::libc::O_DIRECTORY)
                    .open(dir)
                    .and_then(|d| d.sync_all())
                    .map_err(|e| fail("its folder cannot be synced", Some(e)))?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(fail("it is missing; without it the secrets of this state cannot be read", Some(e)));
            }
            Err(e) => return Err(fail("it cannot be read", Some(e))),
        }
        Self::from_key(&key)
    }

    /// Takes a key as it is.
    pub fn from_key(key: &[u8; 32]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Random)?;
        Ok(Self(Arc::new(LessSafeKey::new(key))))
    }

    /// Seals `plain` under `name`.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0u8; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut sealed = plain.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name.as_bytes()), &mut sealed)
            .map_err(|_| SealError::Random)?;
        Ok([&[VERSION][..], &nonce, &sealed].concat())
    }

    /// Opens what was sealed under `name`.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let bad = || SealError::Open(name.to_owned());
        let (&[version], rest) = sealed.split_first_chunk::<1>().ok_or_else(bad)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(bad)?;
        if version != VERSION {
            return Err(bad());
        }
        let mut text = rest.to_vec();
        let plain = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(name.as_bytes()), &mut text)
            .map_err(|_| bad())?;
        Ok(plain.to_vec())
    }
}
