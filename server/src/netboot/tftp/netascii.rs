//! The netascii translation of RFC 1350 (RFC 764): LF becomes CR LF, CR becomes CR NUL. Pure.
//!
//! It changes the length, so a block's place in the file depends on every byte before it. Boot clients all use octet;
//! netascii is what a person's `tftp` starts in. So only short files are translated, in memory, and longer ones are
//! refused with a text that names the remedy.

/// The longest file that is translated, in bytes.
pub const MAX_TRANSLATED: u64 = 256 * 1024;

/// The bytes as netascii. A client that translates back gets the same bytes, whatever they were.
#[must_use]
pub fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 16);
    for byte in bytes {
        match byte {
            b'\n' => out.extend_from_slice(b"\r\n"),
            b'\r' => out.extend_from_slice(b"\r\0"),
            other => out.push(*other),
        }
    }
    out
}
