//! What cargo says of the workspace and of every crate that it uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::repository;

pub struct Metadata {
    packages: BTreeMap<String, Package>,
}

pub struct Package {
    pub name: String,
    pub version: String,
    /// SPDX expression.
    pub licence: Option<String>,
    /// Where it came from; nothing for a member of the workspace.
    pub source: Option<String>,
    pub folder: PathBuf,
    /// Everything it is built, tested or run with.
    dependencies: BTreeSet<String>,
    /// What ends up in a program with it.
    linked: BTreeSet<String>,
}

impl Metadata {
    /// Asks cargo, for the system that the programs are built for.
    pub fn read() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"])
            .current_dir(repository())
            .output()
            .context("cargo cannot be run")?;
        ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
        Self::parse(&serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?)
    }

    fn parse(document: &Value) -> Result<Self> {
        let mut packages = BTreeMap::new();
        for package in list(&document["packages"]) {
            let manifest = PathBuf::from(text(&package["manifest_path"])?);
            let read = Package {
                name: text(&package["name"])?,
                version: text(&package["version"])?,
                licence: package["license"].as_str().map(str::to_owned),
                source: package["source"].as_str().map(str::to_owned),
                folder: manifest.parent().context("a manifest is in a folder")?.to_owned(),
                dependencies: BTreeSet::new(),
                linked: BTreeSet::new(),
            };
            packages.insert(text(&package["id"])?, read);
        }
        for node in list(&document["resolve"]["nodes"]) {
            let package = packages.get_mut(&text(&node["id"])?).context("a crate without a package")?;
            for dependency in list(&node["deps"]) {
                let id = text(&dependency["pkg"])?;
                if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                    package.linked.insert(id.clone());
                }
                package.dependencies.insert(id);
            }
        }
        Ok(Self { packages })
    }

    pub fn packages(&self) -> impl Iterator<Item = &Package> {
        self.packages.values()
    }

    /// Members of the workspace.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages().filter(|package| package.source.is_none())
    }

    /// Names of the members that `package` cannot be built or tested without, near and far.
    pub fn members_below<'a>(&'a self, package: &'a Package) -> BTreeSet<&'a str> {
        let below = self.closure(package, |package| &package.dependencies);
        below.into_iter().filter(|package| package.source.is_none()).map(|package| package.name.as_str()).collect()
    }

    /// Names of the crates that name `name` as a dependency themselves.
    pub fn users_of(&self, name: &str) -> BTreeSet<&str> {
        let uses = |package: &&Package| package.dependencies.iter().any(|id| self.packages[id].name == name);
        self.packages().filter(uses).map(|package| package.name.as_str()).collect()
    }

    /// Crates of others that are linked into the program of the member `name`, by name.
    pub fn linked(&self, name: &str) -> Result<Vec<&Package>> {
        let member = self.members().find(|member| member.name == name).with_context(|| format!("no crate {name}"))?;
        let mut found = self.closure(member, |package| &package.linked);
        found.retain(|package| package.source.is_some());
        found.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        Ok(found)
    }

    fn closure<'a>(&'a self, from: &'a Package, edges: fn(&Package) -> &BTreeSet<String>) -> Vec<&'a Package> {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&String> = edges(from).iter().collect();
        while let Some(id) = next.pop() {
            if seen.insert(id) {
                next.extend(edges(&self.packages[id]));
            }
        }
        seen.into_iter().map(|id| &self.packages[id]).collect()
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().context("cargo metadata has another form than expected")?.to_owned())
}
