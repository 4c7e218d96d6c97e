//! A binary Debian package: files with their modes, control data, maintainer scripts; built by dpkg-deb.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build;

pub const ARCHITECTURE: &str = "amd64";
const MAINTAINER: &str = "nkd maintainers <maintainers@nkd.invalid>";

/// What every package of one release has in common.
pub struct Release {
    pub version: String,
    /// Seconds since 1970: the time that the packages' files get.
    pub time: u64,
}

pub struct Package {
    pub name: &'static str,
    pub summary: &'static str,
    /// Lines of the long description.
    pub description: &'static [&'static str],
    /// Control fields such as `Depends`, in order.
    pub relations: Vec<(&'static str, String)>,
    pub files: Vec<Entry>,
    /// Folders that are there and empty.
    pub folders: Vec<&'static str>,
    /// Folder of `postinst`, `prerm` and `postrm`.
    pub scripts: PathBuf,
}

pub struct Entry {
    /// Absolute path on the system.
    pub path: String,
    pub mode: u32,
    pub content: Vec<u8>,
}

impl Entry {
    pub fn data(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), mode: 0o644, content: content.into() }
    }

    pub fn program(path: impl Into<String>, content: Vec<u8>) -> Self {
        Self { mode: 0o755, ..Self::data(path, content) }
    }
}

impl Package {
    /// Writes `NAME_VERSION_ARCHITECTURE.deb` into `out`.
    pub fn build(&self, release: &Release, out: &Path) -> Result<PathBuf> {
        let staging = tempfile::tempdir().context("cannot make a folder for the package")?;
        let tree = staging.path().join("tree");
        self.stage(release, &tree).with_context(|| format!("cannot lay out the package {}", self.name))?;
        let deb = out.join(format!("{}_{}_{ARCHITECTURE}.deb", self.name, release.version));
        let words = ["--root-owner-group".into(), "--build".into(), tree.into(), deb.clone().into()];
        build::output_with("dpkg-deb", &words, &[("SOURCE_DATE_EPOCH", &release.time.to_string())])?;
        Ok(deb)
    }

    fn stage(&self, release: &Release, tree: &Path) -> Result<()> {
        folder(tree)?;
        for path in &self.folders {
            folder(&below(tree, path))?;
        }
        for entry in &self.files {
            let path = below(tree, &entry.path);
            put(&path, &entry.content, entry.mode)?;
        }
        let names: Vec<_> = self.files.iter().map(|entry| entry.path.trim_start_matches('/').into()).collect();
        let sums = build::output_in(tree, "md5sum", &names)?;
        let control = tree.join("DEBIAN");
        put(&control.join("md5sums"), sums.as_bytes(), 0o644)?;
        put(&control.join("control"), self.control(release).as_bytes(), 0o644)?;
        let conffiles: String = self.conffiles().map(|path| format!("{path}\n")).collect();
        if !conffiles.is_empty() {
            put(&control.join("conffiles"), conffiles.as_bytes(), 0o644)?;
        }
        for script in ["postinst", "prerm", "postrm"] {
            let from = self.scripts.join(script);
            let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            put(&control.join(script), &text, 0o755)?;
        }
        Ok(())
    }

    /// What the operator edits stays as it is on an upgrade.
    fn conffiles(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|entry| entry.path.as_str()).filter(|path| path.starts_with("/etc/"))
    }

    fn control(&self, release: &Release) -> String {
        let kib: usize = self.files.iter().map(|entry| entry.content.len().div_ceil(1024)).sum();
        let mut text = format!(
            "Package: {}\nVersion: {}\nArchitecture: {ARCHITECTURE}\nMaintainer: {MAINTAINER}\nSection: admin\n\
             Priority: optional\nInstalled-Size: {kib}\n",
            self.name, release.version
        );
        for (field, value) in &self.relations {
            let _ = writeln!(text, "{field}: {value}");
        }
        let _ = writeln!(text, "Description: {}", self.summary);
        for line in self.description {
            let _ = writeln!(text, " {line}");
        }
        text
    }
}

fn below(tree: &Path, path: &str) -> PathBuf {
    tree.join(path.trim_start_matches('/'))
}

/// Makes a folder and those above it, whatever the umask says.
fn folder(path: &Path) -> Result<()> {
    if !path.is_dir() {
        if let Some(parent) = path.parent() {
            folder(parent)?;
        }
        fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn put(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    if let Some(parent) = path.parent() {
        folder(parent)?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}
