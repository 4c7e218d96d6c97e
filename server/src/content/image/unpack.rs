//! Checks the digest of an unpacked disk image without storing it.

#![expect(clippy::disallowed_methods, reason = "reads a stored file")]

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use nkd_api::Sha256Digest;

use super::source::name::Packing;
use crate::content::blob::{CHUNK, hash_reader};

/// Unpacks a file, at most `limit` bytes, and compares the digest of the result.
///
/// # Errors
/// What is wrong, in words.
pub fn check_unpacked(path: &Path, packing: Packing, expected: Sha256Digest, limit: u64) -> Result<(), String> {
    let file = BufReader::with_capacity(CHUNK, File::open(path).map_err(|e| e.to_string())?);
    let reader: Box<dyn Read> = match packing {
        Packing::Raw => Box::new(file),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Packing::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(file)),
        Packing::Zstd => Box::new(zstd::Decoder::with_buffer(file).map_err(|e| e.to_string())?),
    };
    let (actual, len) = hash_reader(&mut reader.take(limit.saturating_add(1)), |_| {}).map_err(|e| e.to_string())?;
    if len > limit {
        return Err(format!("it unpacks to more than {limit} bytes"));
    }
    if actual != expected {
        return Err(format!("the unpacked image has the SHA-256 digest {actual}, and {expected} was stated"));
    }
    Ok(())
}
