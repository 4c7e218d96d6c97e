//! The tree that facts are read from: `/`, or a fixture.
#![expect(clippy::disallowed_methods, reason = "reads files")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A root directory. Whatever is missing or cannot be read is simply not there.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// The tree at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// A place in the tree; `path` as it is written inside, with or without the leading slash.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The bytes of a file.
    #[must_use]
    pub fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.path(path)).ok()
    }

    /// The text of a file, without space around it; none when it is empty.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.bytes(path)?).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// The number in a file.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Names in a directory, in order.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(path))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Where a link points, as it is written.
    #[must_use]
    pub fn link(&self, path: &str) -> Option<String> {
        fs::read_link(self.path(path)).ok()?.into_os_string().into_string().ok()
    }

    /// File system and inode of what is there, links followed: the same for two places that are one.
    #[must_use]
    pub fn identity(&self, path: &str) -> Option<(u64, u64)> {
        let metadata = fs::metadata(self.path(path)).ok()?;
        Some((metadata.dev(), metadata.ino()))
    }

    /// True when something is there.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }
}
