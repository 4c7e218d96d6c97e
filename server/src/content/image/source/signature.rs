//! Detached OpenPGP signatures, checked by the external `gpgv` with a keyring that holds the given key and no other.

#![expect(clippy::disallowed_methods, reason = "runs gpgv and writes its throw-away keyring")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

/// The largest key file and signature that is read.
pub const MAX_SIGNATURE: u64 = 1 << 20;

/// Why a signature was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The key file holds no key.
    #[error("{} holds no OpenPGP public key; export one with `gpg --export --armor`", path.display())]
    NoKey {
        /// The key file.
        path: PathBuf,
    },
    /// gpgv could not be started.
    #[error("cannot run gpgv: install it on the service's host (package gpgv, or gnupg2 on NestOS and openEuler)")]
    Start(#[source] io::Error),
    /// gpgv refused.
    #[error("gpgv did not accept it: {0}")]
    Refused(String),
}

/// The keys that signatures are checked by.
#[derive(Debug)]
pub struct Keyring {
    home: TempDir,
}

impl Keyring {
    /// Makes a keyring of a file of public keys, binary or armored.
    ///
    /// # Errors
    /// [`SignatureError::Io`] or [`SignatureError::NoKey`].
    pub fn from_file(path: &Path) -> Result<Self, SignatureError> {
        let io = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| SignatureError::Io { action, path, source }
        };
        let size = fs::metadata(path).map_err(io("examine", path))?.len();
        let bytes = if size <= MAX_SIGNATURE { fs::read(path).map_err(io("read", path))? } else { Vec::new() };
        let keys = dearmor(bytes);
        // The first packet is a public key: tag 6, in the old or the new format.
        let tag = keys.first().map(|b| if b & 0x40 == 0 { (b >> 2) & 0x0f } else { b & 0x3f });
        if tag != Some(6) || keys[0] & 0x80 == 0 {
            return Err(SignatureError::NoKey { path: path.to_path_buf() });
        }
        let home = TempDir::with_prefix("nkd-keys-").map_err(io("create a folder in", &std::env::temp_dir()))?;
        let ring = home.path().join("keys.gpg");
        fs::write(&ring, keys).map_err(io("write", &ring))?;
        Ok(Self { home })
    }

    /// Checks a detached signature, binary or armored. Who signed: fingerprint and, when the key has one, name.
    ///
    /// # Errors
    /// [`SignatureError::Refused`] with what gpgv said; [`SignatureError::Start`] when it is not installed.
    pub fn verify(&self, file: &Path, signature: &[u8]) -> Result<String, SignatureError> {
        let sig = tempfile::Builder::new().prefix("sig-").tempfile_in(self.home.path());
        let sig = sig.and_then(|f| fs::write(f.path(), signature).map(|()| f)).map_err(|source| {
            SignatureError::Io { action: "write a signature in", path: self.home.path().to_path_buf(), source }
        })?;
        let output = Command::new("gpgv")
            .env_clear()
            .envs(std::env::var_os("PATH").map(|p| ("PATH", p)))
            .args(["--quiet", "--status-fd", "1", "--homedir"])
            .arg(self.home.path())
            .arg("--keyring")
            .arg(self.home.path().join("keys.gpg"))
            .arg(sig.path())
            .arg(file)
            .stdin(Stdio::null())
            .output()
            .map_err(SignatureError::Start)?;
        let status = String::from_utf8_lossy(&output.stdout);
        match accepted(&status) {
            Some(signer) if output.status.success() => Ok(signer),
            _ => Err(SignatureError::Refused(refusal(&status, &String::from_utf8_lossy(&output.stderr)))),
        }
    }
}

/// The signer, when gpgv's status lines tell of good signatures only, by a key that is neither expired nor revoked.
fn accepted(status: &str) -> Option<String> {
    let lines = || status.lines().filter_map(|l| l.strip_prefix("[GNUPG:] ")).map(|l| l.splitn(3, ' '));
    let bad = ["BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NODATA"];
    if lines().any(|mut l| l.next().is_some_and(|word| bad.contains(&word))) {
        return None;
    }
    let find = |word: &str| lines().find_map(|mut l| (l.next()? == word).then(|| (l.next(), l.next())));
    let (fingerprint, _) = find("VALIDSIG")?;
    let (_, name) = find("GOODSIG")?;
    Some(match name {
        Some(name) => format!("{} {name}", fingerprint?),
        None => fingerprint?.to_owned(),
    })
}

fn refusal(status: &str, stderr: &str) -> String {
    let words = ["NO_PUBKEY", "BADSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "ERRSIG"];
    let lines = || status.lines().filter_map(|l| l.strip_prefix("[GNUPG:] "));
    let fact = words.iter().find_map(|word| lines().find(|l| l.split(' ').next() == Some(word)));
    let said: Vec<&str> = stderr.lines().map(str::trim).filter(|l| !l.is_empty()).take(8).collect();
    match fact {
        Some(fact) => format!("{fact} ({})", said.join(" | ")),
        None => said.join(" | "),
    }
}

/// Takes the armor off (RFC 9580, 6.2); what has none is returned as it is. Several blocks are joined.
fn dearmor(bytes: Vec<u8>) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(&bytes) else { return bytes };
    if !text.contains("-----BEGIN PGP PUBLIC KEY BLOCK-----") {
        return bytes;
    }
    let mut keys = Vec::new();
    for block in text.split("-----BEGIN PGP PUBLIC KEY BLOCK-----").skip(1) {
        let body = block.split("-----END").next().unwrap_or_default();
        // Headers end at the first empty line; the checksum line begins with `=`.
        let data: String =
            body.lines().skip(1).map(str::trim).filter(|l| !l.contains(':') && !l.starts_with('=')).collect();
        keys.extend(STANDARD.decode(data).unwrap_or_default());
    }
    keys
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
