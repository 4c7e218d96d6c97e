//! Manifests: which there are, and what they are made of.

use std::collections::BTreeMap;

use nkd_api::Sha256Digest;
use serde::Deserialize;

use super::name::digest;

/// Of one image.
const IMAGES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// Of several manifests.
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// A document that is no manifest, or none that is kept here.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the right form.
    #[error("the manifest does not read")]
    Syntax(#[source] serde_json::Error),
    /// Another kind of document.
    #[error(
        "`{0}` is not kept here: push an OCI image manifest or index, or a Docker manifest of schema 2 or manifest list"
    )]
    Kind(String),
    /// The document says of itself something else than its sender.
    #[error("the manifest was sent as `{sent}` and calls itself `{says}`")]
    Mixed {
        /// Content-Type.
        sent: String,
        /// `mediaType`.
        says: String,
    },
    /// A part of it is wrong.
    #[error("{0}")]
    Part(String),
}

/// Something that a manifest is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its digest.
    pub digest: Sha256Digest,
    /// Its bytes, as the manifest says.
    pub size: u64,
}

/// What the registry needs to know of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What it is.
    pub media_type: String,
    /// Blobs that must be there. Layers that are to be had elsewhere (`urls`) are not among them.
    pub blobs: Vec<Part>,
    /// Manifests that must be there.
    pub manifests: Vec<Part>,
    /// The manifest that it says something of, which may be there or not.
    pub subject: Option<Sha256Digest>,
    /// What kind of artifact it is.
    pub artifact_type: Option<String>,
}

impl Manifest {
    /// Reads a document that was sent with this Content-Type.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read(content_type: Option<&str>, body: &[u8]) -> Result<Self, ManifestError> {
        let document: Document = serde_json::from_slice(body).map_err(ManifestError::Syntax)?;
        let sent = content_type.and_then(|text| text.split(';').next()).map(str::trim).filter(|text| !text.is_empty());
        let media_type = match (sent, document.media_type.as_deref()) {
            (Some(sent), Some(says)) if sent != says => {
                return Err(ManifestError::Mixed { sent: shown(sent), says: shown(says) });
            }
            (Some(kind), _) | (None, Some(kind)) => kind.to_owned(),
            (None, None) => return Err(ManifestError::Kind(String::new())),
        };
        let is_index = INDEXES.contains(&media_type.as_str());
        if !is_index && !IMAGES.contains(&media_type.as_str()) {
            return Err(ManifestError::Kind(shown(&media_type)));
        }
        if document.schema_version != 2 {
            return Err(ManifestError::Part("schemaVersion must be 2".into()));
        }
        let subject = document.subject.as_ref().map(Descriptor::part).transpose()?.map(|part| part.digest);
        let mut manifest = Self {
            media_type,
            blobs: Vec::new(),
            manifests: Vec::new(),
            subject,
            artifact_type: document.artifact_type,
        };
        match (document.manifests, document.config, document.layers) {
            (Some(children), None, None) if is_index => {
                for child in &children {
                    // An index may name blobs too: caches of builders are such.
                    let list = if child.is_manifest() { &mut manifest.manifests } else { &mut manifest.blobs };
                    list.push(child.part()?);
                }
            }
            (None, Some(config), Some(layers)) if !is_index => {
                for descriptor in std::iter::once(&config).chain(&layers) {
                    let part = descriptor.part()?;
                    if descriptor.urls.as_ref().is_none_or(Vec::is_empty) {
                        manifest.blobs.push(part);
                    }
                }
                manifest.artifact_type = manifest.artifact_type.or(Some(config.media_type));
            }
            // Some clients would take such a document for an image, others for an index.
            _ => {
                let message = "an image has `config` and `layers` and an index has `manifests`, neither has both";
                return Err(ManifestError::Part(message.into()));
            }
        }
        Ok(manifest)
    }
}

/// What a list of referrers tells of a manifest, beside digest, size and kind.
#[derive(Debug, Default)]
pub struct Summary {
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// The summary of a manifest that [`Manifest::read`] has taken.
#[must_use]
pub fn summary(body: &[u8]) -> Summary {
    let annotations = serde_json::from_slice::<Document>(body).ok().and_then(|document| document.annotations);
    Summary { annotations: annotations.unwrap_or_default() }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    urls: Option<Vec<String>>,
}

impl Descriptor {
    fn part(&self) -> Result<Part, ManifestError> {
        let digest = digest(&self.digest).map_err(|error| ManifestError::Part(error.to_string()))?;
        // Sums of sizes shall fit.
        let size = Some(self.size).filter(|size| *size < 1 << 48);
        let size = size.ok_or_else(|| ManifestError::Part(format!("{} is no size of {}", self.size, self.digest)))?;
        Ok(Part { digest, size })
    }

    fn is_manifest(&self) -> bool {
        IMAGES.contains(&self.media_type.as_str()) || INDEXES.contains(&self.media_type.as_str())
    }
}

fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
