//! The lab image: a Debian tree and the installer are made once, each image of a version from them and the agent.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::cache::{Cache, Lock};
use super::inputs::Inputs;
use super::{Arguments, kubernetes};
use crate::{apt, dist, repository, root, stage};

const INSTALLER_VERSION: &str = "0.27.0";
const DEBIAN_SUITE: &str = "trixie";
/// Date of the packages' files that Debian's own scripts write.
const SOURCE_DATE_EPOCH: &str = "1735689600";

const TREE_PACKAGES: [&str; 1] = ["mmdebstrap"];
const INSTALLER_PACKAGES: [&str; 5] = ["gcc", "libssl-dev", "liblzma-dev", "libzstd-dev", "pkg-config"];
const COMPOSE_PACKAGES: [&str; 7] = ["cpio", "mtools", "openssl", "squashfs-tools", "util-linux", "xz-utils", "zstd"];

struct Recipe {
    directory: PathBuf,
    tree_key: String,
    installer_key: String,
}

/// The directory of the image's artifacts.
pub fn image(arguments: &Arguments) -> Result<PathBuf> {
    let cache = Cache::of_user()?;
    let agent = match &arguments.agent {
        Some(agent) => agent.clone(),
        None => dist::agent_binary()?,
    };
    let units = arguments.agent_units.clone().unwrap_or_else(|| repository().join("agent/dist"));
    let recipe = Recipe::read()?;
    // A debugging image is another image.
    let password = std::env::var("LAB_ROOT_PASSWORD").unwrap_or_default();
    let layer = arguments.kubernetes.as_deref().map(Layer::of).transpose()?;
    let inputs = Inputs::default()
        .text("tree", &recipe.tree_key)
        .text("installer", &recipe.installer_key)
        .file("compose", &recipe.directory.join("compose.sh"))?
        .directory("stages", &recipe.directory.join("stages"))?
        .directory("overlay", &recipe.directory.join("overlay"))?
        .file("agent", &agent)?
        .directory("units", &units)?
        .text("version", &arguments.version)
        .text("password", &password);
    let (kind, key) = match &layer {
        Some(layer) => ("lab-kubernetes-image", layer.add_to(inputs)?.key()),
        None => ("lab-image", inputs.key()),
    };
    if let Some(image) = cache.find(kind, &key) {
        return Ok(image);
    }

    let lock = cache.lock()?;
    let tree = recipe.tree(&cache, &lock)?;
    let installer = recipe.installer(&cache, &lock)?;
    apt::ensure(&COMPOSE_PACKAGES, &cache.logs())?;
    cache.entry(&lock, kind, &key, |out| {
        let mut compose = root::command(
            recipe.directory.join("compose.sh"),
            &[("LAB_INPUT_HASH", key.as_str()), ("LAB_ROOT_PASSWORD", password.as_str())],
        );
        compose.arg("--tree").arg(&tree).arg("--installer").arg(installer.join("bin/coreos-installer"));
        compose.arg("--agent").arg(&agent).arg("--agent-units").arg(&units);
        compose.args(["--version", &arguments.version]).arg("--out").arg(out);
        if let Some(layer) = &layer {
            compose.arg("--kubernetes").arg(&layer.folder).args(["--kubernetes-version", &layer.version]);
        }
        stage::run(&kind.replace('-', " "), &cache.logs().join(format!("{kind}.log")), compose)
    })
}

/// Kubernetes in a lab image.
struct Layer {
    version: String,
    /// What the programs and container images are taken from; its name is the digest of what it was made from.
    folder: PathBuf,
}

impl Layer {
    fn of(version: &str) -> Result<Self> {
        let known = kubernetes::VERSIONS;
        ensure!(known.contains(&version), "there is no Kubernetes {version:?} here: {}", known.join(" or "));
        Ok(Self { version: version.to_owned(), folder: kubernetes::image()? })
    }

    fn add_to(&self, inputs: Inputs) -> Result<Inputs> {
        let images = repository().join("images");
        let programs = self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        inputs
            .text("kubernetes version", &self.version)
            .text("kubernetes", &programs)
            .directory("kubernetes units", &images.join("lab/kubernetes"))?
            .directory("nestos files", &images.join("nestos/files"))
    }
}

/// The installer that the image carries.
pub fn installer() -> Result<PathBuf> {
    let cache = Cache::of_user()?;
    let lock = cache.lock()?;
    Ok(Recipe::read()?.installer(&cache, &lock)?.join("bin/coreos-installer"))
}

impl Recipe {
    fn read() -> Result<Self> {
        let directory = repository().join("images/lab");
        let tree_key = Inputs::default()
            .text("suite", DEBIAN_SUITE)
            .file("script", &directory.join("tree.sh"))?
            .file("packages", &directory.join("packages.list"))?
            .key();
        let installer_key = Inputs::default().text("version", INSTALLER_VERSION).key();
        Ok(Self { directory, tree_key, installer_key })
    }

    fn tree(&self, cache: &Cache, lock: &Lock) -> Result<PathBuf> {
        if let Some(tree) = cache.find("lab-tree", &self.tree_key) {
            return Ok(tree);
        }
        apt::ensure(&TREE_PACKAGES, &cache.logs())?;
        let mirror = apt::mirror()?;
        cache.entry(lock, "lab-tree", &self.tree_key, |out| {
            let mut bootstrap = root::command(
                self.directory.join("tree.sh"),
                &[("MIRROR", mirror.as_str()), ("SUITE", DEBIAN_SUITE), ("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)],
            );
            bootstrap.arg(out);
            stage::run("Debian tree", &cache.logs().join("lab-tree.log"), bootstrap)
        })
    }

    fn installer(&self, cache: &Cache, lock: &Lock) -> Result<PathBuf> {
        if let Some(installer) = cache.find("coreos-installer", &self.installer_key) {
            return Ok(installer);
        }
        apt::ensure(&INSTALLER_PACKAGES, &cache.logs())?;
        cache.entry(lock, "coreos-installer", &self.installer_key, |out| {
            let mut install = cargo();
            install
                .args(["install", "coreos-installer", "--version", INSTALLER_VERSION, "--locked", "--root"])
                .arg(out);
            install.arg("--target-dir").arg(out.join("target"));
            stage::run("coreos-installer", &cache.logs().join("coreos-installer.log"), install)?;
            Ok(std::fs::remove_dir_all(out.join("target"))?)
        })
    }
}

/// The toolchain that runs this program; without what `cargo run` told it about this crate.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| Path::new("cargo").into()));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    command
}
