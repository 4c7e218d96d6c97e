//! The identity of a result: a digest over everything it is made from.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Collects inputs, each under a name, so that no two lists of inputs look the same.
#[derive(Default)]
pub struct Inputs {
    hasher: Sha256,
}

impl Inputs {
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.add(name, value.as_bytes());
        self
    }

    /// A file's content and whether it may be executed; its name is not an input.
    pub fn file(mut self, name: &str, path: &Path) -> Result<Self> {
        self.add_file(name, path)?;
        Ok(self)
    }

    /// All files below a directory, which may be missing.
    pub fn directory(mut self, name: &str, directory: &Path) -> Result<Self> {
        for path in files_below(directory)? {
            let relative = path.strip_prefix(directory).expect("it is below the directory");
            self.add_file(&format!("{name}/{}", relative.display()), &path)?;
        }
        Ok(self)
    }

    /// Short enough for a directory's name, long enough never to clash.
    pub fn key(self) -> String {
        self.hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    fn add_file(&mut self, name: &str, path: &Path) -> Result<()> {
        let read = || -> std::io::Result<(Vec<u8>, bool)> {
            Ok((fs::read(path)?, fs::metadata(path)?.permissions().mode() & 0o100 != 0))
        };
        let (content, executable) = read().with_context(|| format!("cannot read {}", path.display()))?;
        self.add(&format!("{name} {}", if executable { "x" } else { "-" }), &content);
        Ok(())
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.hasher.update((part.len() as u64).to_le_bytes());
            self.hasher.update(part);
        }
    }
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if directory.is_dir() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_values_and_modes_count() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("a/script");
        fs::create_dir(directory.path().join("a")).unwrap();
        fs::write(&script, "x").unwrap();
        let key = || Inputs::default().directory("d", directory.path()).unwrap().key();

        let plain = key();
        assert_eq!(plain, key());
        assert_eq!(plain.len(), 32);
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let executable = key();
        assert_ne!(plain, executable);
        fs::rename(&script, directory.path().join("a/other")).unwrap();
        assert_ne!(executable, key());
        assert_ne!(Inputs::default().text("a", "bc").key(), Inputs::default().text("ab", "c").key());
    }

    #[test]
    fn a_missing_directory_is_an_empty_one() {
        let inputs = Inputs::default().directory("d", Path::new("/nonexistent/x")).unwrap();
        assert_eq!(inputs.key(), Inputs::default().key());
    }
}
