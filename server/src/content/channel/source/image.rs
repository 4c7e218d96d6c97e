//! An OCI image that holds a commit, as `ostree container encapsulate` and coreos-assembler ship it.
//!
//! Index, manifest, configuration, layers: each has the digest that the one before says, or it is not used.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use nkd_api::Sha256Digest;
use serde::Deserialize;

use super::layer::{Commit, Layers};
use super::member::broken;
use super::packing::unpacked;
use super::{Failed, Limits, open_file};
use crate::content::blob::finish_hash;
use crate::content::registry::spec::{Manifest, Part, digest};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Of a document.
const DOCUMENT: u64 = 4 << 20;
/// The name that an index gives to an image.
const NAME: &str = "org.opencontainers.image.ref.name";
/// The commit that an image was made of.
const COMMIT: &str = "ostree.commit";
/// The last layer that was made of the commit.
const LAST: &str = "ostree.final-diffid";

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Run,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
struct Run {
    #[serde(default, rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// What was unpacked.
pub(super) struct Unpacked {
    pub commit: String,
    /// The image was one of several, and named.
    pub was_named: bool,
}

/// Unpacks the objects of the image's commit into a repository.
pub(super) fn unpack(
    layout: &Path,
    wanted: Option<&str>,
    repository: &Path,
    limits: Limits,
) -> Result<Unpacked, Failed> {
    let index = layout.join("index.json");
    let (file, length) = open_file(&index)?;
    let index: Index = document(&read(file, length.min(DOCUMENT + 1), "index.json")?, "index.json")?;
    let was_named = index.manifests.len() > 1;
    let blobs = Blobs { folder: layout.join("blobs/sha256") };
    let mut descriptor = chosen(index, wanted)?;
    if descriptor.media_type.as_deref() == Some(INDEX) {
        let inner: Index = document(&blobs.document(&part(&descriptor)?)?, "its index")?;
        descriptor = chosen(inner, wanted)?;
    }
    let manifest = blobs.document(&part(&descriptor)?)?;
    let manifest = Manifest::read(Some(descriptor.media_type.as_deref().unwrap_or(IMAGE)), &manifest)
        .map_err(|error| Failed::Refused(error.to_string()))?;
    let Some((configuration, layers)) = manifest.blobs.split_first().filter(|_| manifest.manifests.is_empty()) else {
        return Failed::refused("it is an index of indexes: name one image");
    };
    let configuration: Configuration = document(&blobs.document(configuration)?, "its configuration")?;
    let labels = configuration.config.labels.unwrap_or_default();
    let last = labels.get(LAST).and_then(|last| configuration.rootfs.diff_ids.iter().position(|id| id == last));
    let layers = match last {
        Some(last) if last + 1 < layers.len() => {
            let above = layers.len() - last - 1;
            return Failed::refused(format!(
                "{above} of its layers were put above its commit, and would be lost: make a commit of the whole system"
            ));
        }
        _ => layers,
    };
    let commit = match labels.get(COMMIT) {
        Some(commit) => Commit::Named(commit),
        None => Commit::Only,
    };
    let mut content = Layers::default();
    // Twice: attributes may stand behind the files that have them.
    for layer in layers {
        blobs.layer(layer, limits, |reader| content.learn(reader, limits))?;
    }
    let commit = content.commit(commit)?;
    for layer in layers {
        blobs.layer(layer, limits, |reader| content.write(reader, repository, limits))?;
    }
    Ok(Unpacked { commit, was_named })
}

/// The image of an index that is meant.
fn chosen(index: Index, wanted: Option<&str>) -> Result<Descriptor, Failed> {
    let mut all = index.manifests;
    if all.len() > 1 {
        let names: Vec<&str> = all.iter().filter_map(|one| Some(one.annotations.get(NAME)?.as_str())).collect();
        let names = names.join(", ");
        all.retain(|one| wanted.is_some() && one.annotations.get(NAME).map(String::as_str) == wanted);
        if all.len() != 1 {
            return Failed::refused(format!("it holds several images: name one of them with --ref: {names}"));
        }
    }
    all.pop().ok_or_else(|| Failed::Refused("it holds no image".into()))
}

fn part(descriptor: &Descriptor) -> Result<Part, Failed> {
    let bad = |_| Failed::Refused("a digest in it is not of the kind sha256".into());
    Ok(Part { digest: digest(&descriptor.digest).map_err(bad)?, size: descriptor.size })
}

fn document<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, Failed> {
    serde_json::from_slice(bytes).map_err(|error| Failed::Refused(format!("{what} does not read: {error}")))
}

fn read(reader: impl Read, length: u64, what: &str) -> Result<Vec<u8>, Failed> {
    if length > DOCUMENT {
        return Failed::refused(format!("{what} has more than {DOCUMENT} bytes"));
    }
    let mut bytes = Vec::new();
    reader.take(length).read_to_end(&mut bytes).map_err(broken)?;
    Ok(bytes)
}

struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    /// Opens a blob; its digest is to be looked at when it was read.
    fn open(&self, part: &Part) -> Result<Hashed<std::fs::File>, Failed> {
        let path = self.folder.join(part.digest.to_string());
        if !path.exists() {
            return Failed::refused(format!("the part {} of it is missing", part.digest));
        }
        let (file, length) = open_file(&path)?;
        if length != part.size {
            return Failed::refused(format!(
                "its part {} has {length} bytes, and {} were stated",
                part.digest, part.size
            ));
        }
        Ok(Hashed { inner: file, hash: Context::new(&SHA256) })
    }

    fn document(&self, part: &Part) -> Result<Vec<u8>, Failed> {
        let mut blob = self.open(part)?;
        let bytes = read(&mut blob, part.size, "a document of it")?;
        blob.is(part.digest)?;
        Ok(bytes)
    }

    /// Reads a layer to its end.
    fn layer(
        &self,
        part: &Part,
        limits: Limits,
        take: impl FnOnce(&mut dyn Read) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let mut blob = self.open(part)?;
        let mut buffered = BufReader::with_capacity(1 << 18, &mut blob);
        let mut reader = unpacked(&mut buffered, limits.bytes).map_err(broken)?;
        let taken = take(&mut reader);
        drop(reader);
        // What stands behind the end of the tar belongs to the digest too. A wrong one is the better answer.
        std::io::copy(&mut buffered, &mut std::io::sink()).map_err(broken)?;
        blob.is(part.digest)?;
        taken
    }
}

struct Hashed<R> {
    inner: R,
    hash: Context,
}

impl<R> Hashed<R> {
    fn is(self, expected: Sha256Digest) -> Result<(), Failed> {
        let actual = finish_hash(self.hash);
        match actual == expected {
            true => Ok(()),
            false => Failed::refused(format!("its part {expected} has the SHA-256 digest {actual}: it is damaged")),
        }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.hash.update(&buffer[..got]);
        Ok(got)
    }
}
