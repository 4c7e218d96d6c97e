//! What the packages hold, and where it goes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::package::{Entry, Package, Release};
use super::programs;
use crate::metadata::Metadata;
use crate::{build, repository};

/// Everything that is made before the packages are.
pub struct Built {
    pub release: Release,
    nkd: Vec<u8>,
    agent: Vec<u8>,
    glibc: String,
    /// Path and text of each shell's completion script.
    completions: Vec<Entry>,
    metadata: Metadata,
}

const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "/usr/share/bash-completion/completions/nkd"),
    ("zsh", "/usr/share/zsh/vendor-completions/_nkd"),
    ("fish", "/usr/share/fish/vendor_completions.d/nkd.fish"),
];

impl Built {
    pub fn gather(nkd: &Path, agent: &Path) -> Result<Self> {
        let mut completions = Vec::new();
        for (shell, path) in COMPLETIONS {
            let script = build::output(nkd, &["completion".into(), shell.into()])?;
            completions.push(Entry::data(path, script));
        }
        Ok(Self { completions, ..Self::without_completions(nkd, agent)? })
    }

    fn without_completions(nkd: &Path, agent: &Path) -> Result<Self> {
        let release = Release { version: env!("CARGO_PKG_VERSION").to_owned(), time: release_time() };
        let (glibc, metadata) = (programs::glibc_version(nkd)?, Metadata::read()?);
        Ok(Self { release, nkd: read(nkd)?, agent: read(agent)?, glibc, completions: Vec::new(), metadata })
    }
}

/// Service and command line.
pub fn nkd(built: &Built) -> Result<Package> {
    let dist = repository().join("server/dist");
    let mut files = vec![
        Entry::program("/usr/bin/nkd", built.nkd.clone()),
        Entry::data("/usr/lib/systemd/system/nkd.service", read(&dist.join("nkd.service"))?),
        Entry::data("/usr/lib/sysusers.d/nkd.conf", read(&dist.join("nkd.sysusers"))?),
        Entry::data("/etc/nkd/nkd.toml", read(&dist.join("nkd.toml"))?),
    ];
    files.extend(built.completions.iter().map(|entry| Entry::data(entry.path.clone(), entry.content.clone())));
    let templates = repository().join("ignition-templates");
    let shown = files_below(&templates)?.into_iter().filter(|path| path.extension().is_none_or(|e| e != "ign"));
    for path in shown {
        let name = path.strip_prefix(&templates).context("it is below its folder")?;
        files.push(Entry::data(format!("/usr/share/doc/nkd/ignition-templates/{}", name.display()), read(&path)?));
    }
    files.extend(documents(built, "nkd", "nkd-server")?);
    Ok(Package {
        name: "nkd",
        summary: "network boot and image-based nodes, from bare machines to clusters",
        description: &[
            "One service with DHCP or proxy DHCP, TFTP, HTTP boot, Ignition configurations,",
            "an image store and the lifecycle of machines, and the command line for it.",
        ],
        relations: vec![
            (
                "Depends",
                format!("libc6 (>= {}), libgcc-s1, init-system-helpers, ipxe, systemd | systemd-sysusers", built.glibc),
            ),
            ("Recommends", "ca-certificates, gnupg, gpgv, ostree".to_owned()),
            ("Suggests", "nkd-agent".to_owned()),
        ],
        files,
        folders: vec!["/etc/nkd/nkd.d"],
        scripts: repository().join("xtask/debian/nkd"),
    })
}

/// The node agent.
pub fn agent(built: &Built) -> Result<Package> {
    let dist = repository().join("agent/dist");
    let mut files = vec![
        Entry::program("/usr/bin/nkd-agent", built.agent.clone()),
        Entry::data("/usr/lib/systemd/system/nkd-agent.service", read(&dist.join("nkd-agent.service"))?),
        Entry::data("/usr/lib/systemd/system/nkd-balancer.service", read(&dist.join("nkd-balancer.service"))?),
        Entry::data("/usr/lib/systemd/system/nkd-updater.service", read(&dist.join("nkd-updater.service"))?),
        Entry::data(
            "/usr/lib/systemd/system/nkd-boot-deadline.service",
            read(&dist.join("nkd-boot-deadline.service"))?,
        ),
        Entry::data("/usr/lib/systemd/system-preset/90-nkd-agent.preset", read(&dist.join("90-nkd-agent.preset"))?),
        Entry::data("/usr/share/doc/nkd-agent/README.md", read(&dist.join("README.md"))?),
    ];
    files.extend(documents(built, "nkd-agent", "nkd-agent")?);
    Ok(Package {
        name: "nkd-agent",
        summary: "node agent of nkd: enrolls, installs, reports",
        description: &[
            "A static program for node images. It enrolls the machine with its nkd service,",
            "writes the node image to the disk, and reports hardware and state.",
        ],
        relations: vec![("Depends", "init-system-helpers".to_owned()), ("Recommends", "systemd".to_owned())],
        files,
        folders: Vec::new(),
        scripts: repository().join("xtask/debian/nkd-agent"),
    })
}

/// Copyright, changelog, and the licences of the crates that are linked into the program.
fn documents(built: &Built, package: &str, crate_name: &str) -> Result<Vec<Entry>> {
    let folder = format!("/usr/share/doc/{package}");
    let copyright = format!(
        "{package} is copyright the nkd authors, under the Apache License, version 2.0.\n\
         On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n\
         The program holds crates of other authors: see third-party.gz beside this file.\n"
    );
    let date = build::output("date", &["-u".into(), "-R".into(), format!("-d@{}", built.release.time).into()])?;
    let changelog = format!(
        "{package} ({}) unstable; urgency=medium\n\n  * Release {0}.\n\n -- nkd maintainers <maintainers@nkd.invalid>  {date}",
        built.release.version
    );
    Ok(vec![
        Entry::data(format!("{folder}/copyright"), copyright),
        Entry::data(format!("{folder}/changelog.gz"), gzip(changelog.as_bytes())?),
        Entry::data(format!("{folder}/third-party.gz"), gzip(third_party(&built.metadata, crate_name)?.as_bytes())?),
    ])
}

/// Name, licence and licence texts of every crate that `program` links.
fn third_party(metadata: &Metadata, program: &str) -> Result<String> {
    let mut text = String::new();
    for linked in metadata.linked(program)? {
        text += &format!("{} {}: {}\n", linked.name, linked.version, linked.licence.as_deref().unwrap_or("?"));
    }
    for linked in metadata.linked(program)? {
        for path in files_of(&linked.folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            if ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|start| name.starts_with(start)) {
                text += &format!("\n==== {} {}: {name}\n", linked.name, linked.version);
                text += &String::from_utf8_lossy(&read(&path)?);
            }
        }
    }
    Ok(text)
}

/// The time of the release: that of the commit, so that the same source makes the same package.
fn release_time() -> u64 {
    let of_commit = || build::output_in(&repository(), "git", &["log".into(), "-1".into(), "--format=%ct".into()]).ok();
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().or_else(of_commit);
    given.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    fs::write(file.path(), content).context("cannot write a temporary file")?;
    build::output_bytes("gzip", &["-9nc".into(), file.path().into()])
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    Ok(paths)
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = files_of(folder)?;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
