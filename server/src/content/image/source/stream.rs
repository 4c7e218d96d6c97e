//! Stream documents in the shape of Fedora CoreOS and NestOS. Pure.
//!
//! What is read: `architectures.<arch>.artifacts.metal.{release, formats.pxe.{kernel,initramfs,rootfs},
//! formats."raw[.gz|.xz|.zst]".disk}`, each with `location`, `sha256`, and perhaps `signature` and
//! `uncompressed-sha256`. Other platforms are passed over.

use nkd_api::image::ArtifactKind;
use nkd_api::{Problem, Sha256Digest};
use serde_json::Value;
use url::Url;

use super::name::{Build, FileName, Packing, Role, is_version, same_version};

/// Where the document itself was found.
#[derive(Debug, Clone, Copy)]
pub enum Base<'a> {
    /// A folder: relative locations are files in it.
    Folder,
    /// An address: relative locations are below its last `/`.
    Url(&'a Url),
}

/// Where a file of the build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Below the document's folder; no `..`, no empty part.
    Relative(String),
    /// http or https.
    Url(Url),
}

impl Location {
    /// Last part of the path.
    #[must_use]
    pub fn file_name(&self) -> &str {
        let path = match self {
            Self::Relative(path) => path,
            Self::Url(url) => url.path(),
        };
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// One file of the build, as the document states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamArtifact {
    /// What it is.
    pub kind: ArtifactKind,
    /// Where it is.
    pub location: Location,
    /// Its digest; always there for files behind an address.
    pub sha256: Option<Sha256Digest>,
    /// Digest of the unpacked disk image.
    pub uncompressed_sha256: Option<Sha256Digest>,
    /// Where its detached signature is.
    pub signature: Option<Location>,
    /// How a disk image is packed.
    pub packing: Option<Packing>,
}

/// The build that a document describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamBuild {
    /// Whose files they are; the profile only when the file names tell it.
    pub profile: Option<String>,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
    /// Kernel, initramfs, rootfs, and a disk image when there is one.
    pub artifacts: Vec<StreamArtifact>,
}

/// Reads a stream document. With several architectures in it, one must be asked for.
///
/// # Errors
/// Every problem, each with its path in the document.
pub fn read(text: &str, base: Base<'_>, architecture: Option<&str>) -> Result<StreamBuild, Vec<Problem>> {
    let document: Value = serde_json::from_str(text).map_err(|e| vec![problem("", format!("is not JSON: {e}"))])?;
    let (architecture, metal) = choose_architecture(&document, architecture).map_err(|p| vec![p])?;
    let path = format!("architectures.{architecture}.artifacts.metal");
    let mut reader = Reader { base, problems: Vec::new() };
    let mut artifacts = Vec::new();
    for (kind, key) in
        [(ArtifactKind::Kernel, "kernel"), (ArtifactKind::Initramfs, "initramfs"), (ArtifactKind::Rootfs, "rootfs")]
    {
        let value = &metal["formats"]["pxe"][key];
        artifacts.extend(reader.artifact(kind, None, value, &format!("{path}.formats.pxe.{key}")));
    }
    if let Some(packing) = Packing::ALL.into_iter().find(|p| !metal["formats"][p.suffix()].is_null()) {
        let value = &metal["formats"][packing.suffix()]["disk"];
        let path = format!("{path}.formats.\"{}\".disk", packing.suffix());
        artifacts.extend(reader.artifact(ArtifactKind::Disk, Some(packing), value, &path));
    }
    let (profile, version) = reader.one_build(&architecture, &metal["release"], &path, &artifacts);
    let problems = reader.problems;
    match version {
        Some(version) if problems.is_empty() => Ok(StreamBuild { profile, version, architecture, artifacts }),
        _ => Err(problems),
    }
}

fn choose_architecture<'v>(document: &'v Value, wanted: Option<&str>) -> Result<(String, &'v Value), Problem> {
    let metal = |arch: &str| Some(&document["architectures"][arch]["artifacts"]["metal"]).filter(|m| m.is_object());
    let Some(all) = document["architectures"].as_object() else {
        return Err(problem("architectures", "is missing: this is not a stream document"));
    };
    let known: Vec<&String> = all.keys().filter(|a| metal(a).is_some()).collect();
    match (wanted, known.as_slice()) {
        (Some(arch), _) => match metal(arch) {
            Some(found) => Ok((arch.to_owned(), found)),
            None => Err(problem(
                &format!("architectures.{arch}.artifacts.metal"),
                format!("is missing; the document has metal images for: {}", list(&known)),
            )),
        },
        (None, [only]) => Ok(((*only).clone(), &document["architectures"][only.as_str()]["artifacts"]["metal"])),
        (None, []) => Err(problem("architectures", "holds no `artifacts.metal`")),
        (None, _) => Err(problem("architectures", format!("holds {}: choose one with --architecture", list(&known)))),
    }
}

struct Reader<'a> {
    base: Base<'a>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn artifact(
        &mut self,
        kind: ArtifactKind,
        packing: Option<Packing>,
        value: &Value,
        path: &str,
    ) -> Option<StreamArtifact> {
        if !value.is_object() {
            self.say(path, format!("is missing: the {} of the build", kind.as_str()));
            return None;
        }
        let Some(location) = value["location"].as_str() else {
            self.say(&format!("{path}.location"), "is missing: the address or relative path of the file");
            let _ = self.digest(value, "sha256", path);
            return None;
        };
        let location = self.location(location, &format!("{path}.location"));
        let sha256 = self.digest(value, "sha256", path);
        if sha256.is_none() && value["sha256"].is_null() && !matches!(location, Some(Location::Relative(_))) {
            self.say(&format!("{path}.sha256"), "is missing: a file behind an address needs its digest");
        }
        let uncompressed_sha256 = self.digest(value, "uncompressed-sha256", path);
        let signature = match &value["signature"] {
            Value::Null => None,
            // Builds without signatures leave it empty.
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => self.location(text, &format!("{path}.signature")),
            _ => {
                self.say(&format!("{path}.signature"), "is not a text");
                None
            }
        };
        Some(StreamArtifact { kind, location: location?, sha256, uncompressed_sha256, signature, packing })
    }

    fn digest(&mut self, value: &Value, key: &str, path: &str) -> Option<Sha256Digest> {
        match &value[key] {
            Value::Null => None,
            Value::String(text) => text.parse().map_err(|e| self.say(&format!("{path}.{key}"), format!("{e}"))).ok(),
            _ => {
                self.say(&format!("{path}.{key}"), "is not a text of 64 hex digits");
                None
            }
        }
    }

    fn location(&mut self, text: &str, path: &str) -> Option<Location> {
        parse_location(text, self.base).map_err(|message| self.say(path, message)).ok()
    }

    /// Kernel, initramfs, rootfs and disk must be of one build: the release of the document, and every file name that
    /// tells a build.
    fn one_build(
        &mut self,
        architecture: &str,
        release: &Value,
        path: &str,
        artifacts: &[StreamArtifact],
    ) -> (Option<String>, Option<String>) {
        let mut version = release.as_str().map(str::to_owned);
        if let Some(text) = release.as_str().filter(|r| !is_version(r)) {
            self.say(&format!("{path}.release"), format!("`{text}` cannot be used as a version"));
        }
        let mut first: Option<Build> = None;
        for artifact in artifacts {
            let Some(name) = FileName::parse(artifact.location.file_name()) else { continue };
            let at = format!("{path}.formats: {}", artifact.location.file_name());
            let version = version.get_or_insert_with(|| name.build.version.clone());
            if !same_version(version, &name.build.version) || name.build.architecture != architecture {
                self.say(&at, format!("is of build {}, not of {version} for {architecture}", name.build));
            } else if role_kind(name.role) != Some(artifact.kind) {
                self.say(&at, format!("is not a {}", artifact.kind.as_str()));
            }
            match &first {
                None => first = Some(name.build),
                Some(build) if build.profile != name.build.profile => {
                    self.say(&at, format!("is not of the same system as {build}"));
                }
                Some(_) => {}
            }
        }
        if version.is_none() {
            self.say(&format!("{path}.release"), "is missing, and no file name tells the version");
        }
        (first.map(|b| b.profile), version)
    }

    fn say(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(problem(path, message));
    }
}

/// Reads a location. Absolute paths, `..`, `file:` and anything but http and https are refused.
fn parse_location(text: &str, base: Base<'_>) -> Result<Location, String> {
    if text.contains("://") {
        let url = Url::parse(text).map_err(|e| format!("`{text}` is not an address: {e}"))?;
        return match url.scheme() {
            "http" | "https" if url.path().ends_with('/') => Err(format!("`{text}` names no file")),
            "http" | "https" => Ok(Location::Url(url)),
            other => Err(format!("`{text}`: {other} is refused; use http, https or a relative path")),
        };
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    let fine = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
    if text.len() > 1024 || !text.split('/').all(fine) {
        return Err(format!(
            "`{text}` is refused: a relative path stays below the document and has letters, digits and ._+~- only"
        ));
    }
    match base {
        Base::Folder => Ok(Location::Relative(text.to_owned())),
        Base::Url(url) => url.join(text).map(Location::Url).map_err(|e| format!("`{text}` is not an address: {e}")),
    }
}

/// The kind of artifact that a role stands for.
#[must_use]
pub fn role_kind(role: Role) -> Option<ArtifactKind> {
    match role {
        Role::Kernel => Some(ArtifactKind::Kernel),
        Role::Initramfs => Some(ArtifactKind::Initramfs),
        Role::Rootfs => Some(ArtifactKind::Rootfs),
        Role::Disk(_) => Some(ArtifactKind::Disk),
        Role::Disk4k(_) | Role::Iso => None,
    }
}

fn list(names: &[&String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ")
}

fn problem(path: &str, message: impl Into<String>) -> Problem {
    Problem { path: path.to_owned(), message: message.into() }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
