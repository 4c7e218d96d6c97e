//! Random tokens and their digests.
#![expect(clippy::disallowed_methods, reason = "the system's randomness")]

use base64::Engine;
use sha2::{Digest, Sha256};

/// The system gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

/// A token of 256 random bits in URL-safe base64.
pub fn new_token() -> Result<String, NoRandomness> {
    let mut bytes = [0u8; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

/// What is kept of a token. A token has 256 random bits, so a plain digest is enough.
#[must_use]
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
