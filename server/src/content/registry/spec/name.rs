//! Names of repositories, tags and digests.

use std::fmt;
use std::str::FromStr;

use nkd_api::Sha256Digest;

/// The longest name of a repository. Clients allow 255 bytes with the registry's host.
const LONGEST_NAME: usize = 255;
/// The longest tag.
const LONGEST_TAG: usize = 128;
/// What a digest of ours begins with.
const SHA256: &str = "sha256:";

/// A name that the specification does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Repository.
    #[error(
        "`{0}` is not the name of a repository: parts of a-z and 0-9 with single . _ or - between them, joined by /, \
         255 bytes at most"
    )]
    Repository(String),
    /// Tag.
    #[error("`{0}` is not a tag: it takes 1 to 128 of a-z A-Z 0-9 _ . -, the first one neither . nor -")]
    Tag(String),
    /// Digest.
    #[error("`{0}` is not a digest: this registry takes sha256: and 64 hex digits in lower case")]
    Digest(String),
}

/// The name of a repository, `library/busybox`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(String);

impl Repository {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() <= LONGEST_NAME && text.split('/').all(is_part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Repository(shown(text)))
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_part(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separators = part.split(plain).filter(|between| !between.is_empty());
    let joins = |s: &str| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    part.starts_with(plain) && part.ends_with(plain) && separators.all(joins)
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A tag, which may come to stand for another manifest.
    Tag(String),
    /// The digest of the manifest itself.
    Digest(Sha256Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => f.write_str(&digest_text(digest)),
        }
    }
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') {
            return digest(text).map(Self::Digest);
        }
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let first = text.bytes().next().is_some_and(word);
        if first && text.len() <= LONGEST_TAG && text.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
            Ok(Self::Tag(text.to_owned()))
        } else {
            Err(NameError::Tag(shown(text)))
        }
    }
}

/// Reads `sha256:<64 hex>`.
///
/// # Errors
/// [`NameError::Digest`]; also for other algorithms.
pub fn digest(text: &str) -> Result<Sha256Digest, NameError> {
    let hex = text.strip_prefix(SHA256).filter(|hex| !hex.bytes().any(|b| b.is_ascii_uppercase()));
    hex.and_then(|hex| hex.parse().ok()).ok_or_else(|| NameError::Digest(shown(text)))
}

/// A digest as the protocol writes it.
#[must_use]
pub fn digest_text(digest: &Sha256Digest) -> String {
    format!("{SHA256}{digest}")
}

/// So much of a wrong text that a message stays readable.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[path = "name_tests.rs"]
mod tests;
