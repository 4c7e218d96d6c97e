//! Whatever a file is packed with, told by its first bytes; and no more comes out of it than it may.

use std::io::{self, BufRead, Read};

/// How the word for what unpacks to too much begins.
pub(super) const TOO_MUCH: &str = "it unpacks to more than";
/// Memory that a packer may ask for.
const XZ_MEMORY: u64 = 256 << 20;

/// Unpacks what begins like gzip, xz or zstd; everything else is as it is.
pub(super) fn unpacked<'a>(mut reader: impl BufRead + 'a, limit: u64) -> io::Result<Box<dyn Read + 'a>> {
    let magic = reader.fill_buf()?;
    let plain: Box<dyn Read + 'a> = if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if magic.starts_with(b"\xfd7zXZ\0") {
        let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
        Box::new(liblzma::bufread::XzDecoder::new_stream(reader, stream))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    };
    Ok(Box::new(Bounded { plain, left: limit, limit }))
}

/// A reader that ends with an error where it would go on too long.
struct Bounded<R> {
    plain: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.plain.read(buffer)?;
        self.left = self
            .left
            .checked_sub(got as u64)
            .ok_or_else(|| io::Error::other(format!("{TOO_MUCH} {} bytes", self.limit)))?;
        Ok(got)
    }
}
