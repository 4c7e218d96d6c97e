//! The members of a tar, one after the other, with every length bounded.
//!
//! The extensions of GNU and POSIX that hold long names are read here, so that no name is longer than memory likes.

use std::io::{self, Read};

use super::packing::TOO_MUCH;
use super::{Failed, Limits};

/// Of an extension, or of anything else that is held in memory.
const SMALL: u64 = 1 << 20;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Symlink,
    /// Another name of a member.
    Link,
    Other,
}

/// A member, without its bytes.
#[derive(Debug)]
pub(super) struct Member {
    /// Parts of its name; none of them is `..`.
    pub path: Vec<String>,
    pub kind: Kind,
    /// Where a link leads, as it is written.
    pub target: Vec<u8>,
    pub size: u64,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

impl Member {
    pub fn name(&self) -> String {
        self.path.join("/")
    }

    /// The member that a hard link is another name of.
    pub fn linked(&self) -> Result<Vec<String>, Failed> {
        parts(&self.target).map_err(|why| Failed::Refused(format!("the link {} leads out of it: {why}", self.name())))
    }

    /// Its bytes, for one that is small.
    pub fn small(&self, body: &mut dyn Read) -> Result<Vec<u8>, Failed> {
        if self.size > SMALL {
            return Failed::refused(format!("{} has {} bytes", self.name(), self.size));
        }
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(broken)?;
        self.whole(bytes.len() as u64)?;
        Ok(bytes)
    }

    /// Whether everything of it has come.
    pub fn whole(&self, length: u64) -> Result<(), Failed> {
        match length == self.size {
            true => Ok(()),
            false => Failed::refused(format!("it breaks off within {}", self.name())),
        }
    }
}

/// Reading failed: what is read is broken, or the disk is.
pub(super) fn broken(error: io::Error) -> Failed {
    let text = error.to_string();
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failed::Refused("it breaks off".into()),
        _ if text.contains("failed to read entire block") => Failed::Refused("it breaks off".into()),
        _ if text.starts_with(TOO_MUCH) => Failed::Refused(format!("it does not read: {text}")),
        // What a reader of tars says quotes what it has read: of a file that who asks may not read himself, say.
        _ => Failed::Refused("it does not read: it is no tar, no OCI archive, or a damaged one".into()),
    }
}

/// Hands each member with its bytes to `take`.
pub(super) fn each(
    reader: impl Read,
    limits: Limits,
    mut take: impl FnMut(&Member, &mut dyn Read) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let mut archive = tar::Archive::new(reader);
    let (mut long_name, mut long_link) = (None, None);
    for (count, entry) in (1..).zip(archive.entries().map_err(broken)?.raw(true)) {
        let mut entry = entry.map_err(broken)?;
        if count > limits.members {
            return Failed::refused(format!("it has more than {} members", limits.members));
        }
        let kind = entry.header().entry_type();
        let size = entry.header().entry_size().map_err(broken)?;
        let is_extension = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if is_extension {
            if size > SMALL {
                return Failed::refused("a name in it is longer than any name");
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(broken)?;
            if kind.is_gnu_longname() {
                long_name = Some(without_zeros(bytes));
            } else if kind.is_gnu_longlink() {
                long_link = Some(without_zeros(bytes));
            } else if kind.is_pax_local_extensions() {
                for record in tar::PaxExtensions::new(&bytes) {
                    let record = record.map_err(broken)?;
                    match record.key_bytes() {
                        b"path" => long_name = Some(record.value_bytes().to_vec()),
                        b"linkpath" => long_link = Some(record.value_bytes().to_vec()),
                        b"size" => return Failed::refused("a member of it is larger than 8 GiB"),
                        _ => {}
                    }
                }
            }
            continue;
        }
        let header = entry.header();
        let name = long_name.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let target = long_link.take().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let shown = String::from_utf8_lossy(&name).into_owned();
        let path =
            parts(&name).map_err(|why| Failed::Refused(format!("the name {shown:?} in it leads out of it: {why}")))?;
        let kind = match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous => Kind::File,
            tar::EntryType::Directory => Kind::Folder,
            tar::EntryType::Symlink => Kind::Symlink,
            tar::EntryType::Link => Kind::Link,
            _ => Kind::Other,
        };
        let number = |value: io::Result<u64>| value.ok().and_then(|n| u32::try_from(n).ok());
        let ids = number(header.uid()).zip(number(header.gid()));
        let (uid, gid) = ids.ok_or_else(|| Failed::Refused(format!("the owner of {shown:?} is no number")))?;
        let mode = header.mode().map_err(broken)? & 0o7777;
        let member = Member { path, kind, target: target.unwrap_or_default(), size, uid, gid, mode };
        take(&member, &mut entry)?;
    }
    Ok(())
}

fn without_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// The parts of a name that stays where it is.
fn parts(name: &[u8]) -> Result<Vec<String>, &'static str> {
    let name = String::from_utf8_lossy(name);
    if name.starts_with('/') {
        return Err("it begins with /");
    }
    let parts: Vec<String> = name.split('/').filter(|part| !["", "."].contains(part)).map(str::to_owned).collect();
    if parts.iter().any(|part| part == "..") { Err("it has .. in it") } else { Ok(parts) }
}
