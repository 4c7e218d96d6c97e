//! The operator's image: its static program and nothing else, as an archive that `ctr images import`, docker and podman
//! take. No registry and no runtime has a part in it; the same program makes the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::cache::Cache;
use super::inputs::Inputs;
use crate::dist;
use crate::metadata::Metadata;

/// The name that `operator/deploy/housekeeper.yaml` has; the version of the workspace is its tag.
const NAME: &str = "nkd.io/housekeeper";
const PROGRAM: &str = "housekeeper";
const BLOCK: usize = 512;
/// No time of the day it was made on is in it.
const EPOCH: &str = "1970-01-01T00:00:00Z";
/// Raise it when this file makes another archive of the same program.
const FORM: &str = "1";

/// The archive. `program`: without it the workspace's own is built.
pub fn image(program: Option<&Path>) -> Result<PathBuf> {
    let program = match program {
        Some(program) => dist::checked_static(program.to_owned())?,
        None => dist::housekeeper_binary()?,
    };
    let metadata = Metadata::read()?;
    let member = metadata.members().find(|member| member.name == "nkd-operator").context("no crate nkd-operator")?;
    let name = format!("{NAME}:{}", member.version);
    let key = Inputs::default().text("form", FORM).text("name", &name).file("program", &program)?.key();
    let cache = Cache::of_user()?;
    let lock = cache.lock()?;
    let folder = cache.entry(&lock, "housekeeper-image", &key, |out| {
        let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        Ok(fs::write(out.join("housekeeper.tar"), archive(&name, &bytes))?)
    })?;
    Ok(folder.join("housekeeper.tar"))
}

/// An image of one program, in docker's form of archives.
fn archive(name: &str, program: &[u8]) -> Vec<u8> {
    let layer = tar(&[Entry { name: PROGRAM, mode: 0o755, bytes: program }]);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": {"Entrypoint": [format!("/{PROGRAM}")], "User": "65532:65532", "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
        "history": [{"created": EPOCH, "created_by": "cargo xtask image housekeeper"}],
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    let mut entries = [
        Entry { name: &config_name, mode: 0o644, bytes: config.as_bytes() },
        Entry { name: "layer.tar", mode: 0o644, bytes: &layer },
        Entry { name: "manifest.json", mode: 0o644, bytes: manifest.as_bytes() },
    ];
    entries.sort_by_key(|entry| entry.name);
    tar(&entries)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    bytes: &'a [u8],
}

/// A POSIX archive of plain files that belong to root.
fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend(header(entry));
        out.extend(entry.bytes);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

fn header(entry: &Entry<'_>) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, entry.name);
    put(100, &format!("{:07o}", entry.mode));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", entry.bytes.len()));
    put(136, "00000000000");
    // The checksum is that of a header with spaces in its place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use serde_json::Value;

    use super::*;
    use crate::build;

    fn unpack(archive: &Path, into: &Path) {
        fs::create_dir(into).unwrap();
        let words = ["-x", "-p", "--numeric-owner", "-f"].map(Into::into);
        build::output_in(into, "tar", &[&words[..], &[archive.into()]].concat()).unwrap();
    }

    #[test]
    fn the_archive_holds_the_program_and_its_digests() {
        let program: Vec<u8> = (0..70_001u32).map(|n| (n % 251) as u8).collect();
        let bytes = archive("nkd.io/housekeeper:9", &program);
        assert_eq!(bytes, archive("nkd.io/housekeeper:9", &program), "the same program makes the same bytes");

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image.tar");
        fs::write(&file, &bytes).unwrap();
        let image = folder.path().join("image");
        unpack(&file, &image);
        let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(image.join(name)).unwrap()).unwrap() };
        let manifest = read("manifest.json");
        assert_eq!(manifest[0]["RepoTags"], json!(["nkd.io/housekeeper:9"]));
        let config_name = manifest[0]["Config"].as_str().unwrap();
        let config_bytes = fs::read(image.join(config_name)).unwrap();
        assert_eq!(config_name, format!("{}.json", digest(&config_bytes)));
        let config = read(config_name);
        let layer = fs::read(image.join(manifest[0]["Layers"][0].as_str().unwrap())).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", digest(&layer))]));

        let root = folder.path().join("root");
        unpack(&image.join("layer.tar"), &root);
        let entrypoint = config["config"]["Entrypoint"][0].as_str().unwrap().trim_start_matches('/');
        assert_eq!(fs::read(root.join(entrypoint)).unwrap(), program);
        let metadata = fs::metadata(root.join(entrypoint)).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.mtime()), (0o755, 0));
    }
}
