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

/// So many random characters of a-z and 0-9.
pub fn new_word(length: usize) -> Result<String, NoRandomness> {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut word = String::with_capacity(length);
    while word.len() < length {
        let mut bytes = [0u8; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        // 252 is the largest multiple of 36 in a byte: what is above would favour some letters.
        let fair = bytes.iter().filter(|byte| **byte < 252).map(|byte| char::from(LETTERS[usize::from(byte % 36)]));
        word.extend(fair.take(length - word.len()));
    }
    Ok(word)
}

/// What is kept of a token. A token has 256 random bits, so a plain digest is enough.
#[must_use]
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
