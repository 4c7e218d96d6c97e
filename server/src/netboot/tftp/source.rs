//! The bytes of one transfer: from memory, or read ahead from a file into one small buffer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Content, netascii};

/// The least that is read from a file at once, in bytes. A thousand transfers hold this much each.
const READ_AHEAD: usize = 16 * 1024;

/// Bytes by their place.
#[derive(Debug)]
pub(super) enum Source {
    /// From memory.
    Memory(Bytes),
    /// From a file.
    File {
        /// Read with `pread`.
        file: Arc<File>,
        /// Bytes to serve.
        len: u64,
        /// Where `buffer` lies in the file.
        start: u64,
        /// What was read last.
        buffer: Vec<u8>,
    },
}

impl Source {
    pub(super) fn new(content: Content) -> Self {
        match content {
            Content::Bytes(bytes) => Self::Memory(bytes),
            Content::File { file, len } => Self::File { file, len, start: 0, buffer: Vec::new() },
        }
    }

    /// The same bytes as netascii, or `None` if they are too many to translate.
    pub(super) fn translated(mut self) -> io::Result<Option<Self>> {
        let len = self.len();
        if len > netascii::MAX_TRANSLATED {
            return Ok(None);
        }
        // At most MAX_TRANSLATED: it fits.
        let bytes = self.read(0, len as usize)?;
        Ok(Some(Self::Memory(netascii::encode(bytes).into())))
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// The bytes from `offset` on; the caller asks only for what is there by [`Source::len`].
    pub(super) fn read(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was served");
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).map_err(|_| gone())?;
                bytes.get(start..start.saturating_add(length)).ok_or_else(gone)
            }
            Self::File { file, len, start, buffer } => {
                let inside = offset.checked_sub(*start).and_then(|skip| usize::try_from(skip).ok());
                let inside = inside.filter(|skip| skip.saturating_add(length) <= buffer.len());
                let skip = match inside {
                    Some(skip) => skip,
                    None => {
                        let left = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX);
                        // Whole blocks, so that none straddles two reads.
                        let ahead = READ_AHEAD.checked_div(length).map_or(0, |blocks| blocks * length);
                        buffer.resize(ahead.max(length).min(left), 0);
                        *start = offset;
                        if let Err(error) = file.read_exact_at(buffer, offset) {
                            buffer.clear();
                            return Err(if error.kind() == io::ErrorKind::UnexpectedEof { gone() } else { error });
                        }
                        0
                    }
                };
                buffer.get(skip..skip.saturating_add(length)).ok_or_else(gone)
            }
        }
    }
}
