//! The layers of an image that was made of a commit: objects of a repository of the mode `bare-split-xattrs`.
//!
//! There a file is as it is on a disk, owner and mode and all, and its attributes are an object beside it. Such files
//! cannot be laid out by a service without rights, so each becomes the same object of an archive repository.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};
use std::path::Path;

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::filez::Head;
use super::member::{Kind, Member, each};
use super::objects::{Object, copy};
use super::{Failed, Held, Limits};

const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Which commit is meant.
pub(super) enum Commit<'a> {
    /// The image says it.
    Named(&'a str),
    /// The only one that there is.
    Only,
}

/// What was learned of the layers.
#[derive(Default)]
pub(super) struct Layers {
    commits: BTreeSet<String>,
    /// Attributes by the name of their member.
    xattrs: BTreeMap<Vec<String>, Vec<u8>>,
    /// By the checksum of a file, the member that has its attributes.
    links: BTreeMap<String, Vec<String>>,
    held: Held,
    /// Layers in which there is nothing of a repository.
    foreign: usize,
}

impl Layers {
    /// Takes in commits and attributes.
    pub fn learn(&mut self, reader: &mut dyn Read, limits: Limits) -> Result<(), Failed> {
        let (mut has_objects, mut has_folders, mut has_others) = (false, false, false);
        each(reader, limits, |member, body| {
            let is_within = within_repository(member).is_some();
            has_folders |= is_within;
            has_others |= !is_within && member.kind != Kind::Folder;
            let Some(object) = object_of(member)? else { return Ok(()) };
            has_objects = true;
            match (member.kind, &object) {
                (Kind::File, Kept::Object(object)) if object.kind == "commit" => {
                    self.held.add(&[], object.checksum.len())?;
                    self.commits.insert(object.checksum.clone());
                }
                (Kind::File, Kept::Xattrs | Kept::XattrsOf(_)) => {
                    let bytes = member.small(body)?;
                    self.held.add(&member.path, bytes.len())?;
                    self.xattrs.insert(member.path.clone(), bytes);
                    if let Kept::XattrsOf(file) = object {
                        self.links.insert(file, member.path.clone());
                    }
                }
                (Kind::Link, Kept::XattrsOf(file)) => {
                    let linked = member.linked()?;
                    self.held.add(&linked, file.len())?;
                    self.links.insert(file.clone(), linked);
                }
                (Kind::Symlink, Kept::Xattrs | Kept::XattrsOf(_)) => {
                    return Failed::refused(format!("{} is a symbolic link", member.name()));
                }
                _ => {}
            }
            Ok(())
        })?;
        // The last layer of coreos-assembler has folders only, and is left free for packages that come later.
        let is_ours = has_objects || (has_folders && !has_others);
        self.foreign += usize::from(!is_ours);
        Ok(())
    }

    /// The commit, when all layers were looked at.
    pub fn commit(&self, meant: Commit<'_>) -> Result<String, Failed> {
        let none = "it holds no ostree commit, only files: a commit made of them here would bear nobody's signature and \
                    lose their attributes. Make the commit where the system is built (ostree commit), and pack it with \
                    `ostree container encapsulate`, or publish the repository";
        let mut all = self.commits.iter();
        let commit = match (meant, all.next(), all.next()) {
            (_, None, _) => return Failed::refused(none),
            (Commit::Named(name), ..) => match self.commits.get(name) {
                Some(commit) => commit,
                None => return Failed::refused(format!("it was made of commit {name}, which is not in it")),
            },
            (Commit::Only, Some(only), None) => only,
            (Commit::Only, ..) => return Failed::refused("it holds several commits, and does not say which one it is"),
        };
        if self.foreign > 0 {
            let layers = self.foreign;
            return Failed::refused(format!(
                "{layers} of its layers hold nothing of its commit, and would be lost: make a commit of the whole system"
            ));
        }
        Ok(commit.clone())
    }

    /// Writes the objects.
    pub fn write(&self, reader: &mut dyn Read, repository: &Path, limits: Limits) -> Result<(), Failed> {
        each(reader, limits, |member, body| match object_of(member)? {
            Some(Kept::Object(object)) if object.is_metadata() && member.kind == Kind::File => {
                object.write(member, body, repository)
            }
            Some(Kept::Object(object)) if object.is_metadata() || object.kind == "file" => match member.kind {
                Kind::File | Kind::Symlink if object.kind == "file" => self.file(&object, member, body, repository),
                _ => Failed::refused(format!("{} is no file: an object is never a link", member.name())),
            },
            _ => Ok(()),
        })
    }

    fn file(&self, object: &Object, member: &Member, body: &mut dyn Read, repository: &Path) -> Result<(), Failed> {
        let Some((mut file, path)) = object.create(repository, "filez")? else { return Ok(()) };
        let xattrs = match self.links.get(&object.checksum) {
            None => &[][..],
            Some(name) => match self.xattrs.get(name) {
                Some(xattrs) => xattrs,
                None => return Failed::refused(format!("the attributes {} are missing", name.join("/"))),
            },
        };
        let is_link = member.kind == Kind::Symlink;
        let head = Head {
            size: if is_link { 0 } else { member.size },
            uid: member.uid,
            gid: member.gid,
            mode: member.mode | if is_link { SYMLINK } else { REGULAR },
            link: if is_link { &member.target } else { &[] },
            xattrs,
        };
        let write_error = |error| Failed::io("write", &path)(error);
        file.write_all(&head.bytes()).map_err(write_error)?;
        if !is_link {
            let mut packer = DeflateEncoder::new(file, Compression::fast());
            let length = copy(body, &mut packer, &path)?;
            member.whole(length)?;
            file = packer.finish().map_err(write_error)?;
        }
        file.flush().map_err(write_error)
    }
}

/// A member that is part of a repository.
enum Kept {
    Object(Object),
    /// Attributes, by their own name.
    Xattrs,
    /// Attributes of the file with this checksum.
    XattrsOf(String),
}

/// Where a member of a repository is in it.
fn within_repository(member: &Member) -> Option<Vec<&str>> {
    let path: Vec<&str> = member.path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["sysroot", "ostree", "repo", within @ ..] | ["ostree", "repo", within @ ..] => Some(within.to_vec()),
        _ => None,
    }
}

fn object_of(member: &Member) -> Result<Option<Kept>, Failed> {
    let Some(within) = within_repository(member) else { return Ok(None) };
    match within[..] {
        // The older form of such images.
        ["xattrs", _] => Ok(Some(Kept::Xattrs)),
        ["objects", first, rest] => match Object::named(first, rest) {
            None => Failed::refused(format!("{} is not the name of an object", member.name())),
            Some(object) => Ok(Some(match object.kind.as_str() {
                "file-xattrs" => Kept::Xattrs,
                "file-xattrs-link" | "file.xattrs" => Kept::XattrsOf(object.checksum),
                _ => Kept::Object(object),
            })),
        },
        _ => Ok(None),
    }
}
