//! ISO 9660 as far as taking files out needs it: the primary volume descriptor and directory records. Pure.
//!
//! The files of a live ISO have names of 8.3 form, so neither Rock Ridge nor Joliet is read; case and the version
//! suffix `;1` do not count.

/// Bytes of a sector.
pub const SECTOR: u64 = 2048;
/// Where the volume descriptors begin, in sectors.
pub const FIRST_DESCRIPTOR: u64 = 16;

/// What is wrong with an ISO.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsoFormatError {
    /// No ISO 9660 in there.
    #[error("there is no ISO 9660 volume descriptor: this is not an ISO image")]
    NotIso,
    /// Another sector size.
    #[error("logical blocks of {0} bytes are not supported, only of 2048")]
    BlockSize(u16),
    /// It points beyond its end.
    #[error("it is cut short: it points beyond its end; fetch it again")]
    Truncated,
    /// A record that contradicts itself.
    #[error("a directory record is damaged")]
    Record,
}

/// A run of bytes in the ISO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// One entry of a directory. Files of 4 GiB and more have several extents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Upper-case name without version.
    pub name: String,
    /// A directory.
    pub directory: bool,
    /// Its bytes, in order.
    pub extents: Vec<Extent>,
}

/// The primary volume descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Volume identifier.
    pub label: String,
    /// The root directory.
    pub root: Extent,
}

/// Reads one volume descriptor; `None` when it is valid but not the primary one.
///
/// # Errors
/// [`IsoFormatError`].
pub fn volume(sector: &[u8]) -> Result<Option<Volume>, IsoFormatError> {
    let header = sector.get(..190).ok_or(IsoFormatError::NotIso)?;
    if &header[1..6] != b"CD001" {
        return Err(IsoFormatError::NotIso);
    }
    match header[0] {
        1 => {}
        // The terminator: no primary descriptor came before it.
        255 => return Err(IsoFormatError::NotIso),
        _ => return Ok(None),
    }
    let block = u16::from_le_bytes([header[128], header[129]]);
    if u64::from(block) != SECTOR {
        return Err(IsoFormatError::BlockSize(block));
    }
    let label = String::from_utf8_lossy(&header[40..72]).trim_end().to_owned();
    Ok(Some(Volume { label, root: extent(&header[156..190]).ok_or(IsoFormatError::Record)? }))
}

/// Reads the records of a directory.
///
/// # Errors
/// [`IsoFormatError::Record`].
pub fn directory(bytes: &[u8]) -> Result<Vec<Entry>, IsoFormatError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut continues = false;
    // Records do not cross sectors; a length of zero ends the sector.
    for sector in bytes.chunks(SECTOR as usize) {
        let mut rest = sector;
        while let [length, ..] = *rest {
            if length == 0 {
                break;
            }
            let record = rest.get(..usize::from(length)).ok_or(IsoFormatError::Record)?;
            rest = &rest[usize::from(length)..];
            let (name, flags) = match (record.get(32), record.get(25)) {
                (Some(len), Some(flags)) => {
                    (record.get(33..33 + usize::from(*len)).ok_or(IsoFormatError::Record)?, *flags)
                }
                _ => return Err(IsoFormatError::Record),
            };
            let extent = extent(record).ok_or(IsoFormatError::Record)?;
            let name = plain_name(name);
            match entries.last_mut() {
                Some(last) if continues && last.name == name => last.extents.push(extent),
                _ => entries.push(Entry { name, directory: flags & 2 != 0, extents: vec![extent] }),
            }
            continues = flags & 0x80 != 0;
        }
    }
    Ok(entries)
}

fn extent(record: &[u8]) -> Option<Extent> {
    let number = |at: usize| record.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes).map(u64::from);
    Some(Extent { offset: number(2)? * SECTOR, len: number(10)? })
}

fn plain_name(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).to_uppercase();
    let name = text.split(';').next().unwrap_or_default();
    name.strip_suffix('.').unwrap_or(name).to_owned()
}

#[cfg(test)]
#[path = "iso9660_tests.rs"]
mod tests;
