//! Real Kubernetes for the tests: programs, container images and runtime tools of a node, from Debian's source and packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::cache::{Cache, Lock};
use super::inputs::Inputs;
use crate::{apt, repository, stage};

const DEBIAN_SUITE: &str = "bookworm";
/// What the source is, and what it is called a second time, for tests that upgrade.
pub const VERSIONS: [&str; 2] = ["v1.20.2", "v1.21.0"];
const PROGRAMS: [&str; 3] = ["kubeadm", "kubelet", "kubectl"];
/// kubeadm names it and Debian has no source for it.
const MISSING_IMAGE: &str = "k8s.gcr.io/coredns";

const BUILD_PACKAGES: [&str; 3] = ["binutils", "gcc", "libc6-dev"];

struct Recipe {
    directory: PathBuf,
    packages_key: String,
    key: String,
}

/// The directory with `versions`, `images`, `sys` and `manifest.json`.
pub fn image() -> Result<PathBuf> {
    let cache = Cache::of_user()?;
    let recipe = Recipe::read(&repository().join("images/kubernetes"))?;
    if let Some(result) = cache.find("kubernetes", &recipe.key) {
        return Ok(result);
    }
    let lock = cache.lock()?;
    apt::ensure(&BUILD_PACKAGES, &cache.logs())?;
    let packages = recipe.packages(&cache, &lock)?;
    cache.entry(&lock, "kubernetes", &recipe.key, |out| {
        let mut build = Command::new(recipe.directory.join("build.sh"));
        build.arg("--packages").arg(&packages).arg("--go-cache").arg(cache.go_build());
        build.arg("--out").arg(out).args(VERSIONS);
        stage::run("Kubernetes", &cache.logs().join("kubernetes.log"), build)?;
        describe(out, &recipe.key, |version| images_of_kubeadm(out, version))
    })
}

impl Recipe {
    fn read(directory: &Path) -> Result<Self> {
        let packages_key = Inputs::default()
            .text("suite", DEBIAN_SUITE)
            .file("script", &directory.join("fetch.sh"))?
            .file("packages", &directory.join("packages.list"))?
            .key();
        let key = Inputs::default()
            .text("packages", &packages_key)
            .file("build", &directory.join("build.sh"))?
            .file("archive", &directory.join("archive.sh"))?
            .file("crictl", &directory.join("crictl"))?
            .directory("stages", &directory.join("stages"))?
            .text("versions", &VERSIONS.join(" "))
            .key();
        Ok(Self { directory: directory.to_owned(), packages_key, key })
    }

    fn packages(&self, cache: &Cache, lock: &Lock) -> Result<PathBuf> {
        if let Some(packages) = cache.find("kubernetes-packages", &self.packages_key) {
            return Ok(packages);
        }
        let mirror = apt::mirror()?;
        cache.entry(lock, "kubernetes-packages", &self.packages_key, |out| {
            let mut fetch = Command::new(self.directory.join("fetch.sh"));
            fetch.env("MIRROR", &mirror).env("SUITE", DEBIAN_SUITE).arg(out);
            stage::run("Kubernetes' packages", &cache.logs().join("kubernetes-packages.log"), fetch)
        })
    }
}

/// Puts `manifest.json` in the place of the lists that the build left, if everything is there that kubeadm will ask for.
/// `wanted` gives kubeadm's images of a version, one a line.
fn describe(out: &Path, key: &str, wanted: impl Fn(&str) -> Result<String>) -> Result<()> {
    let lists = ["images.txt", "packages.txt"].map(|name| out.join(name));
    let [images, packages] = lists.each_ref().map(fs::read_to_string);
    let manifest = manifest(key, &images?, &packages?)?;
    complete(out, &manifest, wanted)?;
    fs::write(out.join("manifest.json"), format!("{manifest:#}\n"))?;
    lists.iter().try_for_each(|list| Ok(fs::remove_file(list)?))
}

/// `images` has lines of a file and a name, `packages` of a name and a version. Files are relative to the manifest.
fn manifest(key: &str, images: &str, packages: &str) -> Result<Value> {
    let packages = pairs(packages)?;
    let source = packages.iter().find(|(name, _)| *name == "kubernetes").context("no source went in")?.1;
    let images: Vec<(&str, &str)> = pairs(images)?.into_iter().map(|(file, name)| (name, file)).collect();
    let below = |directory: &str| object(images.iter().copied().filter(|(_, file)| file.starts_with(directory)));
    let versions = VERSIONS.map(|version| {
        let programs = PROGRAMS.map(|program| (program, format!("versions/{version}/{program}")));
        let images = below(&format!("versions/{version}/"));
        (
            version.to_owned(),
            json!({"programs": Map::from_iter(programs.map(|(p, f)| (p.to_owned(), f.into()))), "images": images}),
        )
    });
    Ok(json!({
        "input": key,
        "source": source,
        "versions": Map::from_iter(versions),
        "images": below("images/"),
        "sys": "sys",
        "packages": object(packages.into_iter()),
    }))
}

fn pairs(text: &str) -> Result<Vec<(&str, &str)>> {
    text.lines().map(|line| line.split_once(' ').with_context(|| format!("not two words: `{line}`"))).collect()
}

fn object<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    Value::Object(pairs.map(|(name, value)| (name.to_owned(), value.into())).collect())
}

/// Fails unless each file of the manifest is there, and an image for each name that kubeadm gives.
fn complete(out: &Path, manifest: &Value, wanted: impl Fn(&str) -> Result<String>) -> Result<()> {
    for version in VERSIONS {
        let listed = &manifest["versions"][version];
        let groups = [&manifest["images"], &listed["images"], &listed["programs"]];
        let [shared, own, programs] = groups.map(|group| group.as_object().expect("manifest() makes objects"));
        for file in [shared, own, programs].into_iter().flat_map(Map::values) {
            let path = out.join(file.as_str().expect("manifest() makes texts"));
            ensure!(path.is_file(), "{} was not made", path.display());
        }
        let wanted = wanted(version)?;
        let here = |name: &str| shared.contains_key(name) || own.contains_key(name);
        let missing: Vec<&str> =
            wanted.lines().filter(|name| !name.starts_with(MISSING_IMAGE) && !here(name)).collect();
        ensure!(missing.is_empty(), "kubeadm {version} wants images that were not made: {missing:?}");
    }
    Ok(())
}

fn images_of_kubeadm(out: &Path, version: &str) -> Result<String> {
    let kubeadm = out.join("versions").join(version).join("kubeadm");
    let output = Command::new(&kubeadm)
        .args(["config", "images", "list", "--kubernetes-version", version])
        .output()
        .with_context(|| format!("cannot run {}", kubeadm.display()))?;
    let text = String::from_utf8(output.stdout).context("kubeadm's list is not text")?;
    ensure!(output.status.success() && !text.is_empty(), "{} names no images", kubeadm.display());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGES: &str = "images/pause.tar k8s.gcr.io/pause:3.2\n\
        versions/v1.20.2/images/kube-proxy.tar k8s.gcr.io/kube-proxy:v1.20.2\n\
        versions/v1.21.0/images/kube-proxy.tar k8s.gcr.io/kube-proxy:v1.21.0\n";

    fn made() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let write = |path: String, content: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
        };
        for (file, _) in pairs(IMAGES).unwrap() {
            write(file.to_owned(), "");
        }
        for version in VERSIONS {
            for program in PROGRAMS {
                write(format!("versions/{version}/{program}"), "");
            }
        }
        write("images.txt".to_owned(), IMAGES);
        write("packages.txt".to_owned(), "containerd 1.6.20~ds1-1\nkubernetes 1.20.5+really1.20.2-1.1\n");
        directory
    }

    fn wanted(version: &str) -> Result<String> {
        Ok(format!("k8s.gcr.io/kube-proxy:{version}\nk8s.gcr.io/pause:3.2\nk8s.gcr.io/coredns:1.7.0\n"))
    }

    #[test]
    fn the_manifest_says_which_file_holds_an_image() {
        let out = made();
        describe(out.path(), "key", wanted).unwrap();
        let text = fs::read_to_string(out.path().join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(manifest["images"], json!({"k8s.gcr.io/pause:3.2": "images/pause.tar"}));
        let newer = &manifest["versions"]["v1.21.0"];
        assert_eq!(newer["programs"]["kubelet"], "versions/v1.21.0/kubelet");
        assert_eq!(newer["images"], json!({"k8s.gcr.io/kube-proxy:v1.21.0": "versions/v1.21.0/images/kube-proxy.tar"}));
        assert_eq!(manifest["packages"]["containerd"], "1.6.20~ds1-1");
        assert_eq!(manifest["source"], "1.20.5+really1.20.2-1.1");
        assert!(!out.path().join("images.txt").exists());
    }

    #[test]
    fn what_kubeadm_will_not_find_fails_the_build() {
        let out = made();
        fs::remove_file(out.path().join("versions/v1.21.0/kubelet")).unwrap();
        assert!(describe(out.path(), "key", wanted).unwrap_err().to_string().contains("kubelet"));

        let out = made();
        let more = |version: &str| Ok(wanted(version)? + "k8s.gcr.io/etcd:3.5.0-0\n");
        assert!(describe(out.path(), "key", more).unwrap_err().to_string().contains("etcd:3.5.0-0"));
        assert!(!out.path().join("manifest.json").exists());
    }

    #[test]
    fn every_file_of_the_recipe_is_an_input() {
        let directory = tempfile::tempdir().unwrap();
        let recipe = repository().join("images/kubernetes");
        let copied = Command::new("cp").arg("-r").arg(recipe.join(".")).arg(directory.path()).status().unwrap();
        assert!(copied.success());
        let keys = || {
            let recipe = Recipe::read(directory.path()).unwrap();
            (recipe.packages_key, recipe.key)
        };
        let before = keys();
        let below = |directory: PathBuf| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let files = below(directory.path().join("stages")).chain(below(directory.path().to_owned()));
        for path in files.filter(|path| path.is_file() && !path.ends_with("README.md")) {
            let content = fs::read_to_string(&path).unwrap();
            fs::write(&path, format!("{content}#\n")).unwrap();
            let changed = keys();
            assert_ne!(changed.1, before.1, "{}", path.display());
            // What is downloaded stays when only the build changes.
            let fetches = path.ends_with("fetch.sh") || path.ends_with("packages.list");
            assert_eq!(changed.0 != before.0, fetches, "{}", path.display());
            fs::write(&path, content).unwrap();
        }
        assert_eq!(keys(), before);
    }
}
