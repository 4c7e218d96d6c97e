//! Objects of a repository as they are named, and where they are written.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};

use super::member::{Member, broken};
use super::{Failed, room};

/// What ostree itself reads of commits and folders at most.
const METADATA: u64 = 128 << 20;

/// An object's name, `ab/cdef....filez` taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub checksum: String,
    /// `commit`, `dirtree`, `file-xattrs`...
    pub kind: String,
}

impl Object {
    /// Of the two last parts of a path.
    pub fn named(first: &str, rest: &str) -> Option<Self> {
        let (name, kind) = rest.split_once('.')?;
        let checksum = format!("{first}{name}");
        let is_hex = checksum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (first.len() == 2 && checksum.len() == 64 && is_hex).then(|| Self { checksum, kind: kind.to_owned() })
    }

    /// Commits and folders, which every kind of repository holds in the same form.
    pub fn is_metadata(&self) -> bool {
        ["commit", "commitmeta", "dirtree", "dirmeta"].contains(&self.kind.as_str())
    }

    /// Makes its file, to be written. None: it is there.
    pub fn create(&self, repository: &Path, kind: &str) -> Result<Option<(BufWriter<File>, PathBuf)>, Failed> {
        let (first, rest) = self.checksum.split_at(2);
        let folder = repository.join("objects").join(first);
        fs::create_dir_all(&folder).map_err(Failed::io("make", &folder))?;
        room(&folder)?;
        let path = folder.join(format!("{rest}.{kind}"));
        match File::create_new(&path) {
            Ok(file) => Ok(Some((BufWriter::with_capacity(1 << 16, file), path))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(Failed::io("write", &path)(error)),
        }
    }

    /// Writes it as it comes.
    pub fn write(&self, member: &Member, body: &mut dyn Read, repository: &Path) -> Result<(), Failed> {
        if self.is_metadata() && member.size > METADATA {
            return Failed::refused(format!("{} has {} bytes", member.name(), member.size));
        }
        let Some((mut file, path)) = self.create(repository, &self.kind)? else { return Ok(()) };
        let length = copy(body, &mut file, &path)?;
        file.flush().map_err(Failed::io("write", &path))?;
        member.whole(length)
    }
}

/// After so many bytes it is looked again whether there is room for more.
const LOOK: u64 = 32 << 20;

/// Copies everything; what cannot be read is another matter than what cannot be written.
pub(super) fn copy(from: &mut dyn Read, to: &mut dyn io::Write, path: &Path) -> Result<u64, Failed> {
    let mut buffer = vec![0; 1 << 16];
    let (mut length, mut looked) = (0, 0);
    loop {
        let got = match from.read(&mut buffer) {
            Ok(0) => return Ok(length),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(error)),
        };
        to.write_all(&buffer[..got]).map_err(Failed::io("write", path))?;
        length += got as u64;
        if length - looked >= LOOK {
            looked = length;
            room(path.parent().unwrap_or(path))?;
        }
    }
}
