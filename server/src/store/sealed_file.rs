//! Files at rest that are too large for memory: sealed piece by piece with AES-256-GCM, each file under a key of its own.
//!
//! ```text
//! NKDSEAL1 | length (2) | the file's key, sealed under its name with the store's key | pieces of 1 MiB and a tag, the last shorter
//! ```
//! The nonce of a piece is its number and whether it is the last one, so that pieces cannot be left out, added, or change
//! places (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár). A nonce is never used twice with a key,
//! because no other file has that key.
#![expect(clippy::disallowed_methods, reason = "takes the system's randomness for a key")]

use std::io::{ErrorKind, Read, Write};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::{Seal, SealError};

const MAGIC: &[u8; 8] = b"NKDSEAL1";
/// Bytes of a piece in the clear.
const PIECE: usize = 1 << 20;
const TAG: usize = 16;

/// A sealed file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SealedFileError {
    /// The file.
    #[error("the sealed file cannot be read or written")]
    Io(#[from] std::io::Error),
    /// The key does not fit, or the file is damaged or cut off.
    #[error(transparent)]
    Seal(#[from] SealError),
}

fn nonce(number: u64, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes[NONCE_LEN - 1] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

/// Writes a sealed file.
pub struct SealedWriter<W> {
    out: W,
    key: LessSafeKey,
    name: String,
    number: u64,
    piece: Vec<u8>,
}

impl<W: Write> SealedWriter<W> {
    /// Begins a file under this name.
    pub fn begin(seal: &Seal, name: &str, mut out: W) -> Result<Self, SealedFileError> {
        let mut key = [0u8; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| SealError::Random)?;
        let sealed = seal.seal(name, &key)?;
        out.write_all(MAGIC)?;
        out.write_all(&u16::try_from(sealed.len()).unwrap_or(u16::MAX).to_be_bytes())?;
        out.write_all(&sealed)?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).map_err(|_| SealError::Random)?);
        Ok(Self { out, key, name: name.to_owned(), number: 0, piece: Vec::with_capacity(PIECE + TAG) })
    }

    /// Appends bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), SealedFileError> {
        while !bytes.is_empty() {
            // A full piece goes when it is known not to be the last.
            if self.piece.len() == PIECE {
                self.put(false)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<W, SealedFileError> {
        self.put(true)?;
        Ok(self.out)
    }

    fn put(&mut self, last: bool) -> Result<(), SealedFileError> {
        let aad = Aad::from(self.name.as_bytes());
        self.key
            .seal_in_place_append_tag(nonce(self.number, last), aad, &mut self.piece)
            .map_err(|_| SealError::Random)?;
        self.out.write_all(&self.piece)?;
        self.piece.clear();
        self.number += 1;
        Ok(())
    }
}

/// Reads a sealed file piece by piece.
pub struct SealedReader<R> {
    from: R,
    key: LessSafeKey,
    name: String,
    number: u64,
    /// Read, and not yet opened: whether it is the last is known when there is another one.
    next: Vec<u8>,
}

impl<R: Read> SealedReader<R> {
    /// Opens a file that was sealed under this name.
    pub fn open(seal: &Seal, name: &str, mut from: R) -> Result<Self, SealedFileError> {
        let bad = || SealError::Open(name.to_owned());
        let (mut magic, mut length) = ([0; 8], [0; 2]);
        let cut = |error: std::io::Error| match error.kind() {
            ErrorKind::UnexpectedEof => SealedFileError::Seal(SealError::Open(name.to_owned())),
            _ => error.into(),
        };
        from.read_exact(&mut magic).and_then(|()| from.read_exact(&mut length)).map_err(cut)?;
        if magic != *MAGIC {
            return Err(bad().into());
        }
        let mut sealed = vec![0; usize::from(u16::from_be_bytes(length))];
        from.read_exact(&mut sealed).map_err(cut)?;
        let key = UnboundKey::new(&AES_256_GCM, &seal.open(name, &sealed)?).map_err(|_| bad())?;
        let mut reader = Self { from, key: LessSafeKey::new(key), name: name.to_owned(), number: 0, next: Vec::new() };
        reader.next = reader.fetch()?;
        if reader.next.is_empty() {
            return Err(bad().into());
        }
        Ok(reader)
    }

    fn fetch(&mut self) -> Result<Vec<u8>, std::io::Error> {
        let mut piece = Vec::with_capacity(PIECE + TAG);
        self.from.by_ref().take((PIECE + TAG) as u64).read_to_end(&mut piece)?;
        Ok(piece)
    }

    /// The next bytes; none after the last, which was there.
    pub fn read(&mut self) -> Result<Option<Vec<u8>>, SealedFileError> {
        if self.next.is_empty() {
            return Ok(None);
        }
        let following = self.fetch()?;
        let mut piece = std::mem::replace(&mut self.next, following);
        let aad = Aad::from(self.name.as_bytes());
        let opened = self.key.open_in_place(nonce(self.number, self.next.is_empty()), aad, &mut piece);
        let length = opened.map_err(|_| SealError::Open(self.name.clone()))?.len();
        piece.truncate(length);
        self.number += 1;
        Ok(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal() -> Seal {
        Seal::from_key(&[7; 32]).unwrap()
    }

    fn sealed(bytes: &[u8], step: usize) -> Vec<u8> {
        let mut writer = SealedWriter::begin(&seal(), "a", Vec::new()).unwrap();
        bytes.chunks(step).for_each(|part| writer.write(part).unwrap());
        writer.finish().unwrap()
    }

    fn opened(seal: &Seal, name: &str, bytes: &[u8]) -> Result<Vec<u8>, SealedFileError> {
        let mut reader = SealedReader::open(seal, name, bytes)?;
        let mut all = Vec::new();
        while let Some(piece) = reader.read()? {
            all.extend(piece);
        }
        Ok(all)
    }

    #[test]
    fn a_file_of_any_length_comes_back() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 5] {
            let plain: Vec<u8> = (0..=250u8).cycle().take(length).collect();
            let file = sealed(&plain, 70_001);
            assert!(opened(&seal(), "a", &file).unwrap() == plain, "{length}");
            assert!(length < 20 || !file.windows(20).any(|part| part == &plain[..20]), "it stands in the open");
        }
    }

    #[test]
    fn what_was_changed_cut_off_or_moved_does_not_open() {
        let plain = vec![1; 2 * PIECE + 9];
        let file = sealed(&plain, PIECE);
        let head = file.len() - plain.len() - 3 * TAG;
        let piece = PIECE + TAG;
        let refused = |file: &[u8], what: &str| assert!(opened(&seal(), "a", file).is_err(), "{what}");
        for at in [0, 9, head - 1, head, head + piece, file.len() - 1] {
            let mut changed = file.clone();
            changed[at] ^= 1;
            refused(&changed, &format!("byte {at} is another"));
        }
        refused(&file[..head], "no piece is there");
        refused(&file[..head + 2 * piece], "the last piece is gone");
        refused(&file[..file.len() - 1], "its last byte is gone");
        refused(&[&file[..], &[0]].concat(), "a byte more");
        refused(&[&file[..head], &file[head + piece..]].concat(), "the first piece is gone");
        let (one, two) = (&file[head..head + piece], &file[head + piece..head + 2 * piece]);
        refused(&[&file[..head], two, one, &file[head + 2 * piece..]].concat(), "two have changed places");
        assert!(opened(&seal(), "b", &file).is_err(), "another name");
        assert!(opened(&Seal::from_key(&[8; 32]).unwrap(), "a", &file).is_err(), "another key");
    }
}
