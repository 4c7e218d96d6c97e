//! The list of images: one JSON document each, `<state>/images/<name>.json`.
//!
//! A document is published (temporary file, flush, rename, flush of the folder) after all blobs of its image are
//! durable. The list is kept in memory; a change of the folder, by this process or another, is seen by its time of
//! change. A folder that changed within the last seconds is read again each time, since its clock may be coarse.

#![expect(clippy::disallowed_methods, reason = "the list of images is files")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use nkd_api::Sha256Digest;
use nkd_api::image::Image;
use tempfile::NamedTempFile;

use crate::content::blob::{BlobError, sync_dir, write_error};

/// A folder that is at rest for this long is known by its time of change.
const SETTLED: Duration = Duration::from_secs(2);

/// Why the list of images could not do it.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The folder could not be read or written.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A document cannot be read.
    #[error("{} is damaged: {reason}; remove it with `nkd image remove` and import the image again", path.display())]
    Damaged {
        /// The document.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The name cannot be used.
    #[error(
        "`{0}` cannot be the name of an image: it takes 1 to 128 letters, digits and . _ + - ~, the first a letter or digit"
    )]
    Name(String),
    /// Another image has this name.
    #[error("there is another image `{0}` already: give this one a --name, or replace it with --replace")]
    Taken(String),
    /// No image has this name.
    #[error("there is no image `{0}`; `nkd image list` shows those there are")]
    NotFound(String),
    /// Machines use the image.
    #[error("image `{0}` is in use: assign its machines to another image first")]
    InUse(String),
    /// Blobs cannot be collected while an import may be about to use them.
    #[error("an import is under way: collect garbage when it is done")]
    ImportUnderWay,
}

#[derive(Debug, Default)]
struct Snapshot {
    stamp: Option<Stamp>,
    images: BTreeMap<String, Arc<Image>>,
    damaged: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Stamp {
    modified: (i64, i64),
    inode: u64,
}

/// The list of images.
#[derive(Debug)]
pub struct Catalog {
    dir: PathBuf,
    snapshot: ArcSwap<Snapshot>,
}

impl Catalog {
    /// Opens the list under a state folder and makes its folder.
    ///
    /// # Errors
    /// [`CatalogError::Io`].
    pub fn open(state_dir: &Path) -> Result<Self, CatalogError> {
        let dir = state_dir.join("images");
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        sync_dir(state_dir)?;
        let catalog = Self { dir, snapshot: ArcSwap::default() };
        catalog.reload()?;
        Ok(catalog)
    }

    /// All readable images by name.
    ///
    /// # Errors
    /// [`CatalogError::Io`] when the folder cannot be read: not the same as no images.
    pub fn list(&self) -> Result<Vec<Arc<Image>>, CatalogError> {
        Ok(self.current()?.images.values().cloned().collect())
    }

    /// The image of this name.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`] when its document cannot be read, [`CatalogError::Io`] when the folder cannot.
    pub fn image(&self, name: &str) -> Result<Option<Arc<Image>>, CatalogError> {
        let snapshot = self.current()?;
        match snapshot.damaged.get(name) {
            Some(reason) => Err(CatalogError::Damaged { path: self.path(name), reason: reason.clone() }),
            None => Ok(snapshot.images.get(name).cloned()),
        }
    }

    /// Digests that any image uses.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`] when a document cannot be read, since what it uses is unknown then.
    pub fn referenced(&self) -> Result<BTreeSet<Sha256Digest>, CatalogError> {
        let snapshot = self.reload()?;
        if let Some((name, reason)) = snapshot.damaged.iter().next() {
            return Err(CatalogError::Damaged { path: self.path(name), reason: reason.clone() });
        }
        Ok(snapshot.images.values().flat_map(|i| i.artifacts.iter().map(|a| a.sha256)).collect())
    }

    /// Publishes an image, whose blobs must be durable by now. The same artifacts under the same name are no conflict.
    ///
    /// # Errors
    /// [`CatalogError::Name`], [`CatalogError::Taken`] unless `replace`, and those of the folder.
    pub fn publish(&self, image: &Image, replace: bool) -> Result<(), CatalogError> {
        check_name(&image.name)?;
        let _lock = self.lock()?;
        self.reload()?;
        if !replace {
            self.check_free(image)?;
        }
        let mut text = serde_json::to_vec_pretty(image)
            .map_err(|e| CatalogError::Damaged { path: self.path(&image.name), reason: e.to_string() })?;
        text.push(b'\n');
        let target = self.path(&image.name);
        let needed = text.len() as u64;
        let write = || -> io::Result<()> {
            let mut temp = NamedTempFile::with_prefix_in(".image-", &self.dir)?;
            temp.write_all(&text)?;
            temp.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
            temp.as_file().sync_all()?;
            temp.persist(&target).map_err(|e| e.error)?;
            Ok(())
        };
        write().map_err(|e| write_error(e, needed, &target))?;
        sync_dir(&self.dir)?;
        self.reload()?;
        Ok(())
    }

    /// Refuses a name that another build has.
    ///
    /// # Errors
    /// [`CatalogError::Taken`] and those of [`Self::image`].
    pub fn check_free(&self, image: &Image) -> Result<(), CatalogError> {
        match self.image(&image.name)? {
            Some(there) if there.artifacts != image.artifacts => Err(CatalogError::Taken(image.name.clone())),
            _ => Ok(()),
        }
    }

    /// Removes an image from the list; its blobs stay until garbage is collected.
    ///
    /// # Errors
    /// [`CatalogError::InUse`] when `in_use` names it, [`CatalogError::NotFound`], and those of the folder.
    pub fn remove(&self, name: &str, in_use: &BTreeSet<String>) -> Result<(), CatalogError> {
        check_name(name)?;
        if in_use.contains(name) {
            return Err(CatalogError::InUse(name.to_owned()));
        }
        let _lock = self.lock()?;
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(CatalogError::NotFound(name.to_owned())),
            Err(e) => return Err(io_error("remove", &path)(e)),
        }
        sync_dir(&self.dir)?;
        self.reload()?;
        Ok(())
    }

    fn current(&self) -> Result<Arc<Snapshot>, CatalogError> {
        let snapshot = self.snapshot.load_full();
        if snapshot.stamp.is_some() && snapshot.stamp == self.stamp()? { Ok(snapshot) } else { self.reload() }
    }

    /// What the folder is known by; `None` while it may change without showing it.
    fn stamp(&self) -> Result<Option<Stamp>, CatalogError> {
        let meta = fs::metadata(&self.dir).map_err(io_error("examine", &self.dir))?;
        let modified = meta.modified().map_err(io_error("examine", &self.dir))?;
        let settled = SystemTime::now().duration_since(modified).is_ok_and(|age| age > SETTLED);
        Ok(settled.then(|| Stamp { modified: (meta.mtime(), meta.mtime_nsec()), inode: meta.ino() }))
    }

    fn reload(&self) -> Result<Arc<Snapshot>, CatalogError> {
        let mut snapshot = Snapshot { stamp: self.stamp()?, ..Snapshot::default() };
        let before = self.snapshot.load();
        for entry in fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let path = entry.map_err(io_error("list", &self.dir))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json")) else {
                continue;
            };
            if check_name(name).is_err() {
                continue;
            }
            match read_image(&path, name) {
                Ok(Some(image)) => drop(snapshot.images.insert(name.to_owned(), Arc::new(image))),
                Ok(None) => {}
                Err(reason) => {
                    if before.damaged.get(name) != Some(&reason) {
                        tracing::error!(path = %path.display(), reason, "an image document cannot be read");
                    }
                    snapshot.damaged.insert(name.to_owned(), reason);
                }
            }
        }
        let snapshot = Arc::new(snapshot);
        self.snapshot.store(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// Keeps other processes from changing the list; short-lived.
    fn lock(&self) -> Result<File, CatalogError> {
        let path = self.dir.join(".lock");
        let open = || -> io::Result<File> {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(io_error("lock", &path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }
}

/// `Ok(None)` when it was removed meanwhile.
fn read_image(path: &Path, name: &str) -> Result<Option<Image>, String> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let image: Image = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if image.name == name { Ok(Some(image)) } else { Err(format!("it describes the image `{}`", image.name)) }
}

/// A name that is a file name and a part of an address as it stands.
///
/// # Errors
/// [`CatalogError::Name`].
pub fn check_name(name: &str) -> Result<(), CatalogError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if first && name.len() <= 128 && name.chars().all(plain) {
        Ok(())
    } else {
        Err(CatalogError::Name(name.to_owned()))
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CatalogError {
    let path = path.to_path_buf();
    move |source| CatalogError::Io { action, path, source }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
