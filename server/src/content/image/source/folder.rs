//! Builds in a folder: by `stream.json`, or by the names of the files.
//!
//! The service may read files that the operator may not, and what is imported is served to everybody: so a file is
//! opened below its folder only, and neither symbolic nor hard links are followed.

#![expect(clippy::disallowed_methods, reason = "reads the files of an import")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nkd_api::Sha256Digest;
use nkd_api::image::ArtifactKind;

use super::iso9660::Extent;
use super::name::{Build, FileName, Packing, Role, is_version, same_version};
use super::stream::{Base, role_kind};
use super::{Bytes, Choice, Item, Payload, Plan, Signature, plan_stream, read_stream};
use crate::content::image::error::{ImportError, io_error};

/// The largest stream document, list of digests, or signature that is read.
pub const MAX_SMALL: u64 = 16 << 20;

/// The stream document of a folder.
const STREAM: &str = "stream.json";

/// Finds the build in a folder.
///
/// # Errors
/// [`ImportError`].
pub fn resolve_folder(path: &Path, choice: &Choice) -> Result<Plan, ImportError> {
    let folder = Folder::open(path)?;
    match folder.find(STREAM)? {
        Some(file) => resolve_document(&folder, STREAM, file, choice),
        None => resolve_names(&folder, choice),
    }
}

/// Finds the build of a stream document; its relative locations are below its folder.
///
/// # Errors
/// [`ImportError`].
pub fn resolve_stream_file(path: &Path, choice: &Choice) -> Result<Plan, ImportError> {
    let name = super::file_name(path);
    let folder = Folder::open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    let file = folder.open_file(&name)?;
    resolve_document(&folder, &name, file, choice)
}

fn resolve_document(folder: &Folder, name: &str, file: File, choice: &Choice) -> Result<Plan, ImportError> {
    let path = folder.path.join(name);
    let origin = path.display().to_string();
    let text = String::from_utf8_lossy(&read_small(whole(file, &path)?)?).into_owned();
    let build = read_stream(&text, Base::Folder, choice, &origin)?;
    plan_stream(build, choice, &origin, |relative| {
        let file = folder.open_file(relative)?;
        Ok((whole(file, &folder.path.join(relative))?, folder.small(&format!("{relative}.sig"))?))
    })
}

fn resolve_names(folder: &Folder, choice: &Choice) -> Result<Plan, ImportError> {
    let names: Vec<FileName> = folder.names()?.iter().filter_map(|n| FileName::parse(n)).collect();
    let (build, found) = choose_build(&folder.path, &names, choice)?;
    let sums = folder.sums()?;
    let mut items = Vec::new();
    for (kind, name) in found {
        let file_name = folder.spelling(&name)?;
        let file = folder.open_file(&file_name)?;
        let sha256 = match sums.get(&file_name) {
            Some(digest) => Some(*digest),
            None => folder.sum_beside(&file_name)?,
        };
        let signature = folder.small(&format!("{file_name}.sig"))?.map(Signature::Bytes);
        let bytes = whole(file, &folder.path.join(&file_name))?;
        items.push(Item { kind, payload: Payload { file: file_name, bytes, sha256, signature }, unpacked: None });
    }
    let mut warnings = super::no_disk(&items, &folder.path.display().to_string());
    if names.iter().any(|n| matches!(n.role, Role::Disk4k(_))) {
        warnings.push("disk images for sectors of 4096 bytes (metal4k) are passed over".to_owned());
    }
    let profile = choice.profile.clone().unwrap_or(build.profile);
    Ok(Plan { build: Build { profile, ..build }, items, container: None, warnings })
}

/// Chooses the one build of a folder, and its file for each kind; pure.
fn choose_build(
    path: &Path,
    names: &[FileName],
    choice: &Choice,
) -> Result<(Build, Vec<(ArtifactKind, FileName)>), ImportError> {
    let fits = |build: &Build| {
        choice.version.as_ref().is_none_or(|v| same_version(v, &build.version))
            && choice.architecture.as_ref().is_none_or(|a| *a == build.architecture)
    };
    let mut all: Vec<&Build> = Vec::new();
    for name in names.iter().filter(|n| role_kind(n.role).is_some()) {
        if !all.iter().any(|b| b.same(&name.build)) {
            all.push(&name.build);
        }
    }
    let mut builds: Vec<&Build> = all.iter().copied().filter(|b| fits(b)).collect();
    if builds.len() > 1 && builds.iter().any(|b| Some(&b.profile) == choice.profile.as_ref()) {
        builds.retain(|b| Some(&b.profile) == choice.profile.as_ref());
    }
    let parts = |build: &Build| {
        let disk = |p: &Packing| Role::Disk(*p);
        let wanted = |role: Role| names.iter().find(|n| n.role == role && n.build.same(build));
        let mut parts: Vec<(ArtifactKind, FileName)> = Vec::new();
        for role in [Role::Kernel, Role::Initramfs, Role::Rootfs].into_iter() {
            parts.extend(role_kind(role).zip(wanted(role).cloned()));
        }
        parts.extend(Packing::ALL.iter().map(disk).find_map(wanted).map(|n| (ArtifactKind::Disk, n.clone())));
        parts
    };
    let missing = |build: &Build| {
        let there = parts(build);
        let live = [ArtifactKind::Kernel, ArtifactKind::Initramfs, ArtifactKind::Rootfs];
        live.into_iter().filter(|k| !there.iter().any(|(kind, _)| kind == k)).collect::<Vec<_>>()
    };
    let names_of = |builds: &[&Build]| builds.iter().map(ToString::to_string).collect::<Vec<_>>();
    match builds.as_slice() {
        [] if all.is_empty() => Err(ImportError::NoBuild { path: path.to_path_buf(), wanted: "build".into() }),
        [] => Err(ImportError::NoBuild {
            path: path.to_path_buf(),
            wanted: format!(
                "build of the version and architecture that were asked for, only {}",
                names_of(&all).join(", ")
            ),
        }),
        [build] => match missing(build) {
            kinds if kinds.is_empty() => Ok(((*build).clone(), parts(build))),
            missing => {
                let elsewhere: Vec<&Build> = all.iter().copied().filter(|b| !b.same(build)).collect();
                Err(ImportError::Incomplete { build: build.to_string(), missing, elsewhere: names_of(&elsewhere) })
            }
        },
        several => {
            let mut builds = names_of(several);
            for (text, build) in builds.iter_mut().zip(several) {
                let lacks = missing(build);
                if !lacks.is_empty() {
                    let lacks: Vec<&str> = lacks.iter().map(|k| k.as_str()).collect();
                    *text = format!("{text} (without {})", lacks.join(", "));
                }
            }
            Err(ImportError::SeveralBuilds { path: path.to_path_buf(), builds })
        }
    }
}

/// A folder that files are opened below.
struct Folder {
    dir: File,
    path: PathBuf,
}

impl Folder {
    fn open(path: &Path) -> Result<Self, ImportError> {
        let dir = File::open(path).map_err(io_error("open", path))?;
        if !dir.metadata().map_err(io_error("examine", path))?.is_dir() {
            return Err(refused(path, "it is not a folder"));
        }
        Ok(Self { dir, path: path.to_path_buf() })
    }

    /// A file below the folder; `None` when there is none.
    fn find(&self, relative: &str) -> Result<Option<File>, ImportError> {
        let path = self.path.join(relative);
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        match openat2(self.dir.as_fd(), relative, how) {
            Ok(fd) => regular(File::from(fd), &path).map(Some),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP) => Err(refused(&path, LINK)),
            Err(Errno::EXDEV) => Err(refused(&path, "it is outside of its folder")),
            Err(e) => Err(io_error("open", &path)(e.into())),
        }
    }

    fn open_file(&self, relative: &str) -> Result<File, ImportError> {
        let missing = || io_error("open", &self.path.join(relative))(Errno::ENOENT.into());
        self.find(relative)?.ok_or_else(missing)
    }

    /// A small file's bytes; `None` when there is none.
    fn small(&self, relative: &str) -> Result<Option<Vec<u8>>, ImportError> {
        self.find(relative)?.map(|file| read_small(whole(file, &self.path.join(relative))?)).transpose()
    }

    fn names(&self) -> Result<Vec<String>, ImportError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io_error("list", &self.path))? {
            let name = entry.map_err(io_error("list", &self.path))?.file_name();
            names.extend(name.into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// The name as the folder spells it: some builds write a dot where others write a dash.
    fn spelling(&self, name: &FileName) -> Result<String, ImportError> {
        let names = self.names()?;
        Ok(names.into_iter().find(|n| FileName::parse(n).as_ref() == Some(name)).unwrap_or_else(|| name.to_string()))
    }

    /// Digests of `SHA256SUMS`.
    fn sums(&self) -> Result<HashMap<String, Sha256Digest>, ImportError> {
        let bytes = self.small("SHA256SUMS")?.unwrap_or_default();
        Ok(parse_sums(&String::from_utf8_lossy(&bytes)))
    }

    /// The digest in `<file>.sha256`.
    fn sum_beside(&self, file: &str) -> Result<Option<Sha256Digest>, ImportError> {
        let name = format!("{file}.sha256");
        let Some(bytes) = self.small(&name)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        match text.split_whitespace().next().map(str::parse) {
            Some(Ok(digest)) => Ok(Some(digest)),
            _ => Err(refused(&self.path.join(name), "it does not begin with a SHA-256 digest")),
        }
    }
}

/// Opens one file by its path, with what lies beside it: bytes, digest of `<file>.sha256`, signature of `<file>.sig`.
///
/// # Errors
/// [`ImportError`].
pub fn open_payload(path: &Path) -> Result<(File, Payload), ImportError> {
    let file =
        File::options().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path).map_err(
            |e| match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ELOOP) => refused(path, LINK),
                _ => io_error("open", path)(e),
            },
        )?;
    let file = regular(file, path)?;
    let name = super::file_name(path);
    let folder = Folder::open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    let sha256 = folder.sum_beside(&name)?;
    let signature = folder.small(&format!("{name}.sig"))?.map(Signature::Bytes);
    let copy = file.try_clone().map_err(io_error("open", path))?;
    Ok((file, Payload { file: name, bytes: whole(copy, path)?, sha256, signature }))
}

/// All the bytes of a small file.
///
/// # Errors
/// [`ImportError::Refused`] when it is too large.
pub fn read_small(bytes: Bytes) -> Result<Vec<u8>, ImportError> {
    let Bytes::File { file, path, .. } = bytes else { return Ok(Vec::new()) };
    let mut content = Vec::new();
    file.take(MAX_SMALL + 1).read_to_end(&mut content).map_err(io_error("read", &path))?;
    if content.len() as u64 > MAX_SMALL {
        return Err(refused(&path, "it is larger than 16 MiB"));
    }
    Ok(content)
}

const LINK: &str = "links are not followed; copy the file itself there";

fn regular(file: File, path: &Path) -> Result<File, ImportError> {
    let meta = file.metadata().map_err(io_error("examine", path))?;
    if !meta.is_file() {
        return Err(refused(path, "it is not a regular file"));
    }
    if meta.nlink() > 1 {
        return Err(refused(path, LINK));
    }
    Ok(file)
}

fn whole(file: File, path: &Path) -> Result<Bytes, ImportError> {
    let len = file.metadata().map_err(io_error("examine", path))?.len();
    Ok(Bytes::File { file, path: path.to_path_buf(), extents: vec![Extent { offset: 0, len }] })
}

fn refused(path: &Path, reason: &'static str) -> ImportError {
    ImportError::Refused { path: path.to_path_buf(), reason }
}

/// Reads `sha256sum` output: `<digest>  <file>`, or `<digest> *<file>`; other lines are passed over.
fn parse_sums(text: &str) -> HashMap<String, Sha256Digest> {
    text.lines()
        .filter_map(|line| {
            let (digest, name) = line.split_once(' ')?;
            let name = name.trim_start_matches([' ', '*']).trim_end();
            Some((name.strip_prefix("./").unwrap_or(name).to_owned(), digest.parse().ok()?))
        })
        .collect()
}

/// Refuses what cannot be a version or an architecture before anything is read.
///
/// # Errors
/// [`ImportError::Request`].
pub fn check_choice(choice: &Choice) -> Result<(), ImportError> {
    if let Some(version) = choice.version.as_ref().filter(|v| !is_version(v)) {
        return Err(ImportError::Request {
            what: "version",
            value: version.clone(),
            reason: "it takes letters, digits and ._+~-",
        });
    }
    if let Some(arch) = choice.architecture.as_ref().filter(|a| !super::name::is_architecture(a)) {
        return Err(ImportError::Request {
            what: "architecture",
            value: arch.clone(),
            reason: "nkd boots x86_64 and aarch64",
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
