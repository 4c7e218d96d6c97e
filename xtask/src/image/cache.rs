//! Results of long work, kept by what they were made from: `~/.cache/nkd/<kind>/<key>`.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::root;

/// How many results of a kind stay: the one in use and the one before it.
const KEEP: usize = 2;

pub struct Cache {
    root: PathBuf,
}

/// Held while anything in the cache is made; two runs at once would make the same thing twice.
pub struct Lock {
    _file: File,
}

impl Cache {
    /// The cache of this user, `$XDG_CACHE_HOME/nkd`.
    pub fn of_user() -> Result<Self> {
        let base = match std::env::var_os("XDG_CACHE_HOME") {
            Some(base) if !base.is_empty() => PathBuf::from(base),
            _ => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
                .join(".cache"),
        };
        Ok(Self { root: base.join("nkd") })
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Go's own cache; it removes by itself what nobody has used for days.
    pub fn go_build(&self) -> PathBuf {
        self.root.join("go-build")
    }

    pub fn lock(&self) -> Result<Lock> {
        fs::create_dir_all(&self.root)?;
        let path = self.root.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("waiting for another run to finish ({})", path.display());
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context(format!("cannot lock {}", path.display()));
            }
        }
        Ok(Lock { _file: file })
    }

    /// What was made from `key` earlier.
    pub fn find(&self, kind: &str, key: &str) -> Option<PathBuf> {
        let entry = self.root.join(kind).join(key);
        // Its time is that of its last use, which is what pruning goes by.
        File::open(&entry).and_then(|directory| directory.set_modified(SystemTime::now())).ok().map(|()| entry)
    }

    /// What was made from `key`, by `make` into an empty directory if it has to be made now.
    pub fn entry(
        &self,
        _lock: &Lock,
        kind: &str,
        key: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        if let Some(entry) = self.find(kind, key) {
            return Ok(entry);
        }
        let directory = self.root.join(kind);
        fs::create_dir_all(&directory)?;
        // Of a run that was interrupted; nobody else is at work while the lock is held.
        for unfinished in names(&directory)?.into_iter().filter(|name| name.starts_with('.')) {
            remove(&directory.join(unfinished))?;
        }
        let unfinished = directory.join(format!(".{key}"));
        fs::create_dir(&unfinished)?;
        if let Err(error) = make(&unfinished) {
            remove(&unfinished)?;
            return Err(error);
        }
        let entry = directory.join(key);
        fs::rename(&unfinished, &entry)?;
        prune(&directory, key)?;
        Ok(entry)
    }
}

fn prune(directory: &Path, newest: &str) -> Result<()> {
    let mut others = Vec::new();
    for name in names(directory)?.into_iter().filter(|name| name != newest) {
        let path = directory.join(name);
        others.push((fs::metadata(&path)?.modified()?, path));
    }
    others.sort();
    others.truncate((others.len() + 1).saturating_sub(KEEP));
    others.iter().try_for_each(|(_, path)| remove(path))
}

/// The trees belong to root.
fn remove(path: &Path) -> Result<()> {
    let status = root::command::<&str>("rm", &[]).args(["-rf", "--one-file-system", "--"]).arg(path).status()?;
    anyhow::ensure!(status.success(), "cannot remove {}", path.display());
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<String>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache { root: directory.path().join("nkd") };
        (directory, cache)
    }

    #[test]
    fn a_result_is_made_once() {
        let (_directory, cache) = cache();
        let lock = cache.lock().unwrap();
        let first = cache.entry(&lock, "kind", "a", |out| Ok(fs::write(out.join("x"), "1")?)).unwrap();
        let second = cache.entry(&lock, "kind", "a", |_| panic!("made twice")).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(second.join("x")).unwrap(), "1");
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let (_directory, cache) = cache();
        let lock = cache.lock().unwrap();
        cache.entry(&lock, "kind", "a", |_| anyhow::bail!("no")).unwrap_err();
        assert!(cache.find("kind", "a").is_none());
        assert!(names(&cache.root.join("kind")).unwrap().is_empty());
    }

    #[test]
    fn the_oldest_results_go() {
        let (_directory, cache) = cache();
        let lock = cache.lock().unwrap();
        for key in ["a", "b"] {
            cache.entry(&lock, "kind", key, |_| Ok(())).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        cache.find("kind", "a").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        cache.entry(&lock, "kind", "c", |_| Ok(())).unwrap();
        let mut left = names(&cache.root.join("kind")).unwrap();
        left.sort();
        assert_eq!(left, ["a", "c"]);
    }
}
