//! The live artifacts of an ISO: `/images/pxeboot/{vmlinuz,initrd.img,rootfs.img}`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nkd_api::image::ArtifactKind;

use super::folder::open_payload;
use super::iso9660::{self, Entry, Extent, FIRST_DESCRIPTOR, IsoFormatError, SECTOR, Volume};
use super::name::{Build, FileName, parse_label};
use super::{Bytes, Choice, Item, Payload, Plan};
use crate::content::image::error::{ImportError, io_error};

const FOLDER: [&str; 2] = ["IMAGES", "PXEBOOT"];
const FILES: [(ArtifactKind, &str); 3] =
    [(ArtifactKind::Kernel, "VMLINUZ"), (ArtifactKind::Initramfs, "INITRD.IMG"), (ArtifactKind::Rootfs, "ROOTFS.IMG")];
/// Volume descriptors that are looked through.
const MAX_DESCRIPTORS: u64 = 32;
/// The largest directory that is read, bytes.
const MAX_DIRECTORY: u64 = 1 << 20;

/// Finds the build in a live ISO.
///
/// # Errors
/// [`ImportError`].
pub fn resolve_iso(path: &Path, choice: &Choice) -> Result<Plan, ImportError> {
    let (file, container) = open_payload(path)?;
    let iso = Iso { len: container.bytes.size().unwrap_or(0), file, path };
    let volume = iso.volume()?;
    let build = build(&container.file, &volume.label, choice)?;
    let mut directory = iso.directory(volume.root)?;
    for (depth, name) in FOLDER.iter().enumerate() {
        let found = directory.into_iter().find(|e| e.directory && e.name == *name);
        let extent = found.and_then(|e| e.extents.first().copied());
        directory = iso.directory(extent.ok_or_else(|| iso.lacks(&FOLDER[..=depth]))?)?;
    }
    let mut items = Vec::new();
    for (kind, name) in FILES {
        let found = directory.iter().find(|e| !e.directory && e.name == name);
        let entry = found.ok_or_else(|| iso.lacks(&[FOLDER[0], FOLDER[1], name]))?;
        items.push(Item { kind, payload: iso.payload(entry)?, unpacked: None });
    }
    let warnings = super::no_disk(&items, &path.display().to_string());
    Ok(Plan { build, items, container: Some(container), warnings })
}

/// Whose ISO it is: told by the request, by the file name, by the volume label, in this order.
fn build(file: &str, label: &str, choice: &Choice) -> Result<Build, ImportError> {
    let named = FileName::parse(file).map(|n| n.build);
    let labelled = parse_label(label);
    let unknown = |what| ImportError::Unknown { what, origin: format!("{file} (volume label `{label}`)") };
    let pick = |what, asked: &Option<String>, named: Option<&String>, labelled: Option<&String>| {
        asked.as_ref().or(named).or(labelled).cloned().ok_or_else(|| unknown(what))
    };
    Ok(Build {
        profile: pick("profile", &choice.profile, named.as_ref().map(|b| &b.profile), labelled.as_ref().map(|l| &l.0))?,
        version: pick("version", &choice.version, named.as_ref().map(|b| &b.version), labelled.as_ref().map(|l| &l.1))?,
        architecture: pick("architecture", &choice.architecture, named.as_ref().map(|b| &b.architecture), None)?,
    })
}

struct Iso<'a> {
    file: File,
    len: u64,
    path: &'a Path,
}

impl Iso<'_> {
    fn volume(&self) -> Result<Volume, ImportError> {
        for sector in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + MAX_DESCRIPTORS {
            if (sector + 1) * SECTOR > self.len {
                break;
            }
            let bytes = self.read(Extent { offset: sector * SECTOR, len: SECTOR })?;
            if let Some(volume) = iso9660::volume(&bytes).map_err(|e| self.format(e))? {
                return Ok(volume);
            }
        }
        Err(self.format(IsoFormatError::NotIso))
    }

    fn directory(&self, extent: Extent) -> Result<Vec<Entry>, ImportError> {
        if extent.len > MAX_DIRECTORY {
            return Err(self.format(IsoFormatError::Record));
        }
        iso9660::directory(&self.read(extent)?).map_err(|e| self.format(e))
    }

    fn payload(&self, entry: &Entry) -> Result<Payload, ImportError> {
        entry.extents.iter().try_for_each(|e| self.inside(*e))?;
        let bytes = Bytes::File {
            file: self.file.try_clone().map_err(io_error("open", self.path))?,
            path: self.path.to_path_buf(),
            extents: entry.extents.clone(),
        };
        Ok(Payload { file: entry.name.to_lowercase(), bytes, sha256: None, signature: None })
    }

    fn read(&self, extent: Extent) -> Result<Vec<u8>, ImportError> {
        self.inside(extent)?;
        let mut bytes = vec![0; usize::try_from(extent.len).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, extent.offset).map_err(io_error("read", self.path))?;
        Ok(bytes)
    }

    fn inside(&self, extent: Extent) -> Result<(), ImportError> {
        let end = extent.offset.saturating_add(extent.len);
        if end <= self.len { Ok(()) } else { Err(self.format(IsoFormatError::Truncated)) }
    }

    fn format(&self, source: IsoFormatError) -> ImportError {
        ImportError::IsoFormat { path: self.path.to_path_buf(), source }
    }

    fn lacks(&self, parts: &[&str]) -> ImportError {
        ImportError::IsoLacks { path: self.path.to_path_buf(), wanted: format!("/{}", parts.join("/").to_lowercase()) }
    }
}
