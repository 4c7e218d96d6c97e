//! Looks at a repository that somebody else keeps, before ostree reads it.
//!
//! ostree opens what has the name of an object, whatever it is: at a FIFO it waits for ever. So everything that it reads there
//! has to be a file. Links are none, but for those that ostree makes itself: the objects of links in the modes that keep them as
//! such, which it does not follow, and names of refs that stand for another ref.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::super::ChannelError;
use super::super::repository::small_file;
use super::Failed;

/// So many repositories stand behind one another at most (`parent` of ostree's configuration).
const PARENTS: usize = 8;
/// What ostree reads, beside objects and refs, when it takes a commit.
const FOLDERS: [&str; 3] = ["state", "deltas", "delta-indexes"];
const FILES: [&str; 3] = ["summary", "summary.sig", ".lock"];

/// Refuses a repository in which something is no file that has to be one.
pub(super) fn look(repository: &Path) -> Result<(), ChannelError> {
    let mut next = Some(repository.to_path_buf());
    for _ in 0..=PARENTS {
        let Some(path) = next else { return Ok(()) };
        let config = Config::read(&path)?;
        look_at(&path, &config).map_err(|failed| failed.of(&path))?;
        next = config.parent;
    }
    Err(Failed::Refused(format!("more than {PARENTS} repositories stand behind it as parents")).of(repository).into())
}

/// What a repository says of itself.
struct Config {
    keeps_links: bool,
    parent: Option<PathBuf>,
}

impl Config {
    fn read(repository: &Path) -> Result<Self, ChannelError> {
        let text = small_file(&repository.join("config"))?;
        let value = |key: &str| {
            let of =
                |line: &str| Some(line.split_once('=').filter(|(name, _)| name.trim() == key)?.1.trim().to_owned());
            text.lines().find_map(of).filter(|value| !value.is_empty())
        };
        let mode = value("mode").unwrap_or_default();
        let keeps_links = mode.starts_with("bare") && mode != "bare-user";
        Ok(Self { keeps_links, parent: value("parent").map(PathBuf::from) })
    }
}

fn look_at(repository: &Path, config: &Config) -> Result<(), Failed> {
    for name in FILES {
        match fs::metadata(repository.join(name)) {
            Ok(about) if !about.is_file() => return no_file(Path::new(name), about.file_type()),
            _ => {}
        }
    }
    let keeps = |path: &Path| config.keeps_links && path.extension().is_some_and(|kind| kind == "file");
    walk(repository, "objects", &|path| Ok(keeps(path)))?;
    let refs = fs::canonicalize(repository.join("refs"));
    walk(repository, "refs", &|path| {
        let Ok(refs) = &refs else { return Ok(false) };
        let target = fs::canonicalize(path).map_err(Failed::io("follow", path))?;
        Ok(target.starts_with(refs) && target.is_file())
    })?;
    FOLDERS.iter().try_for_each(|name| walk(repository, name, &|_| Ok(false)))
}

/// Everything in a folder and below. `takes` says which links are fine.
fn walk(repository: &Path, name: &str, takes: &impl Fn(&Path) -> Result<bool, Failed>) -> Result<(), Failed> {
    let mut folders = vec![PathBuf::from(name)];
    while let Some(folder) = folders.pop() {
        let path = repository.join(&folder);
        let entries = match fs::read_dir(&path) {
            // There are no differences, or somebody has removed it since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(Failed::io("read", &path))?,
        };
        for entry in entries {
            let entry = entry.map_err(Failed::io("read", &path))?;
            let kind = entry.file_type().map_err(Failed::io("read", &path))?;
            let name = folder.join(entry.file_name());
            let is_fine = kind.is_file() || kind.is_symlink() && takes(&repository.join(&name))?;
            if kind.is_dir() {
                folders.push(name);
            } else if !is_fine {
                return no_file(&name, kind);
            }
        }
    }
    Ok(())
}

fn no_file(name: &Path, kind: FileType) -> Result<(), Failed> {
    let kind = match kind {
        kind if kind.is_dir() => "folder",
        kind if kind.is_symlink() => "link",
        kind if kind.is_fifo() => "FIFO",
        kind if kind.is_socket() => "socket",
        _ => "device",
    };
    Failed::refused(format!("`{}` in it is a {kind}, where ostree keeps files: remove it", name.display()))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write files")]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    const NAME: &str = "objects/ab/cdef";

    fn repository(config: &str) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for folder in ["objects/ab", "refs/heads/lab", "state", "tmp"] {
            fs::create_dir_all(place.path().join(folder)).unwrap();
        }
        fs::write(place.path().join("config"), format!("[core]\nrepo_version=1\n{config}\n")).unwrap();
        fs::write(place.path().join(NAME).with_extension("commit"), "").unwrap();
        fs::write(place.path().join("refs/heads/lab/stable"), "").unwrap();
        place
    }

    fn refused(repository: &Path) -> String {
        look(repository).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_file_is_named_wherever_ostree_would_open_it() {
        for name in ["objects/ab/cdef.filez", "refs/heads/lab/other", "state/ab.commitpartial", "summary.sig", ".lock"]
        {
            let place = repository("mode=archive-z2");
            look(place.path()).unwrap();
            let _listener = UnixListener::bind(place.path().join(name)).unwrap();
            let said = refused(place.path());
            assert!(said.contains(&format!("`{name}` in it is a socket")) && said.contains("is not taken"), "{said}");
            let child = repository(&format!("mode=archive\nparent={}", place.path().display()));
            assert!(
                refused(child.path()).contains(&format!("`{name}` in it is a socket")),
                "one that stands behind it"
            );
        }
        let round = repository("mode=archive");
        fs::write(round.path().join("config"), format!("[core]\nparent={}\n", round.path().display())).unwrap();
        assert!(refused(round.path()).contains("as parents"));
    }

    #[test]
    fn links_are_those_that_ostree_makes() {
        for (mode, name, is_taken) in [
            ("bare", "objects/ab/cdef.file", true),
            ("bare-user-only", "objects/ab/cdef.file", true),
            ("bare-user", "objects/ab/cdef.file", false),
            ("archive-z2", "objects/ab/cdef.filez", false),
            ("bare", "objects/ab/cdef.dirtree", false),
            ("bare", "objects/cd", false),
            ("bare", "state/ab.commitpartial", false),
        ] {
            let place = repository(&format!("mode={mode}"));
            symlink("/dev/zero", place.path().join(name)).unwrap();
            let taken = look(place.path());
            assert_eq!(taken.is_ok(), is_taken, "{mode} {name}: {taken:?}");
            assert!(is_taken || refused(place.path()).contains(&format!("`{name}` in it is a link")));
        }
        let place = repository("mode=archive");
        let alias = place.path().join("refs/heads/alias");
        symlink("lab/stable", &alias).unwrap();
        look(place.path()).unwrap();
        for elsewhere in ["lab", "../../config", "/dev/zero"] {
            fs::remove_file(&alias).unwrap();
            symlink(elsewhere, &alias).unwrap();
            assert!(refused(place.path()).contains("`refs/heads/alias` in it is a link"), "{elsewhere}");
        }
    }
}
