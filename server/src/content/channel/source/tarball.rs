//! A tar of a repository, at its top or one folder down, or of an OCI layout.
#![expect(clippy::disallowed_methods, reason = "reads and writes files")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use super::member::{Kind, Member, broken, each};
use super::objects::{Object, copy};
use super::packing::unpacked;
use super::{Failed, Held, Limits, open_file, room};

/// What a tar has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Repository,
    Image,
}

/// Unpacks a tar: objects and refs into the repository, an OCI layout into `layout`.
pub(super) fn unpack(path: &Path, repository: &Path, layout: &Path, limits: Limits) -> Result<Holds, Failed> {
    let (file, _) = open_file(path)?;
    let reader = unpacked(BufReader::with_capacity(1 << 18, file), limits.bytes).map_err(broken)?;
    let mut seen = Seen::default();
    each(reader, limits, |member, body| seen.take(member, body, repository, layout))?;
    seen.finish(repository)
}

#[derive(Default)]
struct Seen {
    /// Folder of the repository within the tar.
    top: Option<Vec<String>>,
    /// By folder, because this may come before it is known which one has the objects.
    configs: BTreeMap<Vec<String>, Vec<u8>>,
    refs: Vec<(Vec<String>, Vec<String>, Vec<u8>)>,
    is_image: bool,
    held: Held,
}

impl Seen {
    fn take(&mut self, member: &Member, body: &mut dyn Read, repository: &Path, layout: &Path) -> Result<(), Failed> {
        let path: Vec<&str> = member.path.iter().map(String::as_str).collect();
        let wanted = match path.as_slice() {
            ["oci-layout" | "index.json"] => Some(layout.join(path[0])),
            ["blobs", "sha256", name] if is_digest(name) => Some(layout.join("blobs/sha256").join(name)),
            _ => None,
        };
        if let Some(to) = wanted {
            self.is_image |= path[0] == "oci-layout";
            return write_blob(member, body, &to);
        }
        for down in 0..=1 {
            let Some((top, within)) = path.split_at_checked(down) else { continue };
            let top: Vec<String> = top.iter().map(|part| (*part).to_owned()).collect();
            match within {
                ["objects", first, rest] => {
                    if let Some(object) = Object::named(first, rest) {
                        return self.object(member, body, top, &object, repository);
                    }
                }
                ["config"] if member.kind == Kind::File => {
                    let bytes = member.small(body)?;
                    self.held.add(&member.path, bytes.len())?;
                    self.configs.insert(top, bytes);
                    return Ok(());
                }
                ["refs", "heads", name @ ..] if member.kind == Kind::File && !name.is_empty() => {
                    let name = name.iter().map(|part| (*part).to_owned()).collect();
                    let bytes = member.small(body)?;
                    self.held.add(&member.path, bytes.len())?;
                    self.refs.push((top, name, bytes));
                    return Ok(());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn object(
        &mut self,
        member: &Member,
        body: &mut dyn Read,
        top: Vec<String>,
        object: &Object,
        repository: &Path,
    ) -> Result<(), Failed> {
        let name = member.name();
        if *self.top.get_or_insert_with(|| top.clone()) != top {
            return Failed::refused("it holds two repositories: pack one alone");
        }
        match (member.kind, object.kind.as_str()) {
            (_, "file") => Failed::refused(other_mode("one that keeps files as they are")),
            (Kind::File, "filez") => object.write(member, body, repository),
            (Kind::File, _) if object.is_metadata() => object.write(member, body, repository),
            (_, "filez") => Failed::refused(format!("{name} is no file: an object is never a link")),
            (_, _) if object.is_metadata() => Failed::refused(format!("{name} is no file: an object is never a link")),
            // Tombstones, and what a repository remembers for itself.
            _ => Ok(()),
        }
    }

    fn finish(self, repository: &Path) -> Result<Holds, Failed> {
        let top = match (self.top, self.is_image) {
            (None, true) => return Ok(Holds::Image),
            (Some(_), true) => return Failed::refused("it holds a repository and an OCI image: pack one alone"),
            (None, false) => {
                let what = "it holds neither an ostree repository (`objects` and `config`, at its top or one folder \
                            down) nor an OCI image (`oci-layout`)";
                return Failed::refused(what);
            }
            (Some(top), false) => top,
        };
        let config = self.configs.get(&top).ok_or_else(|| Failed::Refused("its repository has no `config`".into()))?;
        let config = String::from_utf8_lossy(config);
        let mode = config.lines().find_map(|line| line.trim().strip_prefix("mode")?.trim_start().strip_prefix('='));
        let mode = mode.map_or("bare", str::trim);
        if !["archive", "archive-z2"].contains(&mode) {
            return Failed::refused(other_mode(mode));
        }
        for (_, name, commit) in self.refs.into_iter().filter(|(of, ..)| *of == top) {
            let path = repository.join("refs/heads").join(name.join("/"));
            let folder = path.parent().unwrap_or(repository);
            fs::create_dir_all(folder).map_err(Failed::io("make", folder))?;
            fs::write(&path, commit).map_err(Failed::io("write", &path))?;
        }
        Ok(Holds::Repository)
    }
}

fn other_mode(mode: &str) -> String {
    format!(
        "its repository is of the mode `{mode}`, whose files lose owners and attributes in a tar: pack one of the mode \
         archive (ostree init --repo=NEW --mode=archive; ostree pull-local --repo=NEW OLD)"
    )
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A part of an OCI layout. Its digest is looked at when it is used.
fn write_blob(member: &Member, body: &mut dyn Read, to: &Path) -> Result<(), Failed> {
    if member.kind != Kind::File {
        return Failed::refused(format!("{} is no file: a part of an image is never a link", member.name()));
    }
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder).map_err(Failed::io("make", folder))?;
    room(folder)?;
    let mut file = File::create_new(to).map_err(Failed::io("write", to))?;
    let length = copy(body, &mut file, to)?;
    member.whole(length)
}
