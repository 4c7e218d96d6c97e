//! Kubernetes' half of an update: kubeadm out of the release's tree, and the way back for the kubelet.
#![expect(clippy::disallowed_methods, reason = "keeps and restores the kubelet's configuration")]

use std::path::{Path, PathBuf};

use nkd_api::update::Desired;

use super::state::{Failure, Retry};
use crate::kubeadm;
use crate::ostree::{STATUS, ask, ask_within, tell};

/// A program of the release that is run with the release's tree as its argument when that is laid out, ahead of the node's
/// turn, and again before its kubeadm; the image may bring its container images so.
const BEFORE: &str = "usr/libexec/nkd/before-upgrade";
/// What kubeadm writes for the kubelet, and an older kubelet may not understand.
const CONFIGURATION: [&str; 2] = ["config.yaml", "kubeadm-flags.env"];

/// Where it works.
#[derive(Debug, Clone)]
pub struct Place {
    /// `/`
    pub root: PathBuf,
    /// State directory of the agent.
    pub state: PathBuf,
    /// `systemctl`; tests put a stand-in there.
    pub systemctl: String,
}

/// The version of the kubelet in a tree.
#[must_use]
pub fn kubelet_version(tree: &Path) -> Option<String> {
    let program = tree.join("usr/bin/kubelet");
    let program = if program.exists() { program.display().to_string() } else { "kubelet".to_owned() };
    // "Kubernetes v1.21.0"
    ask_within(STATUS, &program, &["--version"]).ok()?.split_whitespace().last().map(str::to_owned)
}

/// The tree has kubeadm of the version that is asked for.
///
/// # Errors
/// It has not.
pub fn fits(tree: &Path, desired: &Desired) -> Result<(), Failure> {
    let Some(wanted) = &desired.kubernetes else { return Ok(()) };
    let is = ask(&program(tree), &["version", "-o", "short"]);
    match is.map(|text| text.trim().to_owned()) {
        Ok(is) if is == *wanted => Ok(()),
        Ok(is) => {
            let reason = match desired.os {
                Some(_) => format!("the release says Kubernetes {wanted}, and its kubeadm is {is}"),
                None => format!("the node's kubeadm is {is}: install kubeadm and kubelet of {wanted} first"),
            };
            Err(Failure { retry: Retry::Never, reason })
        }
        Err(reason) => Err(Failure { retry: Retry::Never, reason: format!("the release has no kubeadm: {reason}") }),
    }
}

/// Without kubeadm, a release may not bring the kubelet of another minor version: it would run ahead of its API servers, or too far
/// behind them. `runs`: the kubelet that is there.
///
/// # Errors
/// It does.
pub fn stays(tree: &Path, desired: &Desired, runs: Option<&str>) -> Result<(), Failure> {
    // `v1.21` of `v1.21.0-rc.1`
    let minor = |version: &str| version.splitn(3, '.').take(2).map(str::to_owned).collect::<Vec<_>>();
    let (Some(brings), Some(runs), None) = (kubelet_version(tree), runs, &desired.kubernetes) else { return Ok(()) };
    if minor(&brings) == minor(runs) {
        return Ok(());
    }
    let reason = format!(
        "the release brings the kubelet {brings}, the node runs {runs}, and nobody asks for Kubernetes as well"
    );
    Err(Failure { retry: Retry::Never, reason })
}

/// Lets the release prepare its upgrade; what it has done before costs nothing.
///
/// # Errors
/// What its program said.
pub fn prepare(tree: &Path) -> Result<(), Failure> {
    let before = tree.join(BEFORE);
    if !before.exists() {
        return Ok(());
    }
    let tree = tree.display().to_string();
    let told = tell(&before.display().to_string(), &[&tree]);
    told.map_err(|error| Failure { retry: Retry::Few, reason: error.into() })
}

fn program(tree: &Path) -> String {
    let program = tree.join("usr/bin/kubeadm");
    if program.exists() { program.display().to_string() } else { "kubeadm".to_owned() }
}

impl Place {
    /// One attempt is kept at a time: a folder in this one.
    fn keeping(&self) -> PathBuf {
        self.state.join("kubelet-before")
    }

    /// Where what was before this attempt is kept.
    pub(super) fn kept(&self, desired: &Desired) -> PathBuf {
        let sane = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let uid: String = desired.uid.chars().map(sane).collect();
        self.keeping().join(format!("{uid}-{}", desired.attempt))
    }

    fn kubelet(&self) -> PathBuf {
        self.root.join("var/lib/kubelet")
    }

    /// Runs kubeadm of the release. `restart`: the machine will not be restarted, so the kubelet has to be.
    ///
    /// # Errors
    /// With a word on whether another try may fare better.
    pub fn upgrade(&self, tree: &Path, desired: &Desired, restart: bool) -> Result<(), Failure> {
        let Some(version) = &desired.kubernetes else { return Ok(()) };
        let again = |reason: String| Failure { retry: Retry::Few, reason };
        self.keep(desired).map_err(again)?;
        // A kubeadm that was cut off may have left too little for this one.
        self.put_back_moved_out(desired).map_err(again)?;
        prepare(tree)?;
        let ignore = format!("--ignore-preflight-errors={}", desired.ignore_preflight_errors.join(","));
        let mut words = match desired.first {
            true => vec!["upgrade", "apply", version.as_str(), "--yes"],
            false => vec!["upgrade", "node"],
        };
        if !desired.ignore_preflight_errors.is_empty() {
            words.push(&ignore);
        }
        kubeadm::shout("kubeadm", &program(tree), &words).map_err(again)?;
        if restart {
            tell(&self.systemctl, &["restart", "kubelet.service"]).map_err(String::from).map_err(again)?;
        }
        Ok(())
    }

    /// Keeps the kubelet's configuration and a control plane's manifests, if they are not kept already: a second try must not keep
    /// what the first one made.
    pub(super) fn keep(&self, desired: &Desired) -> Result<(), String> {
        let kept = self.kept(desired);
        if kept.exists() {
            return Ok(());
        }
        self.forget()?;
        let half = self.state.join("kubelet-before.new");
        let said = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        std::fs::remove_dir_all(&half).or_else(absent).map_err(|error| said(&half, error))?;
        std::fs::create_dir_all(&half).map_err(|error| said(&half, error))?;
        for name in CONFIGURATION {
            let from = self.kubelet().join(name);
            match std::fs::read(&from) {
                Ok(text) => {
                    crate::files::write_private(&half.join(name), &text).map_err(|e| crate::client::chain(&e))?
                }
                Err(error) => absent(error).map_err(|error| said(&from, error))?,
            }
        }
        self.keep_manifests(&half)?;
        std::fs::create_dir_all(self.keeping()).map_err(|error| said(&kept, error))?;
        std::fs::rename(&half, &kept).map_err(|error| said(&kept, error))?;
        // What is named so is whole, also after a power cut: kubeadm is about to write over what was copied.
        for folder in [&self.keeping(), &self.state] {
            let flush = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
            flush.map_err(|error| said(folder, error))?;
        }
        Ok(())
    }

    /// The kubelet's configuration is again what it was before, if it was kept.
    ///
    /// # Errors
    /// In one sentence.
    pub fn restore(&self, desired: &Desired) -> Result<(), String> {
        let kept = self.kept(desired);
        for name in CONFIGURATION {
            let (from, to) = (kept.join(name), self.kubelet().join(name));
            let said = |error: std::io::Error| format!("{}: {error}", to.display());
            if from.exists() {
                let text = std::fs::read(&from).map_err(said)?;
                crate::files::write_public(&to, &text).map_err(|error| crate::client::chain(&error))?;
            }
        }
        self.forget()
    }

    /// What was kept is of no use any more.
    ///
    /// # Errors
    /// In one sentence.
    pub fn forget(&self) -> Result<(), String> {
        let kept = self.keeping();
        std::fs::remove_dir_all(&kept).or_else(absent).map_err(|error| format!("{}: {error}", kept.display()))
    }
}

/// What is not there is no error.
pub(super) fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn desired(attempt: u32) -> Desired {
        Desired {
            update: "u".into(),
            uid: "../1".into(),
            attempt,
            os: None,
            kubernetes: None,
            retry: None,
            first: false,
            go: true,
            ignore_preflight_errors: Vec::new(),
        }
    }

    #[test]
    fn a_system_alone_brings_no_kubelet_of_another_minor_version() {
        let tree = tempfile::tempdir().unwrap();
        let program = tree.path().join("usr/bin/kubelet");
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        std::fs::write(tree.path().join("text"), "#!/bin/sh\necho Kubernetes v1.21.4\n").unwrap();
        let [text, to] = [tree.path().join("text"), program].map(|path| path.display().to_string());
        tell("install", &["-m", "755", &text, &to]).unwrap();
        let both = Desired {
            update: "u".into(),
            uid: "u1".into(),
            attempt: 1,
            retry: None,
            os: None,
            kubernetes: Some("v1.21.4".into()),
            first: false,
            go: false,
            ignore_preflight_errors: Vec::new(),
        };
        let alone = Desired { kubernetes: None, ..both.clone() };
        for (runs, wanted, fits) in [
            (Some("v1.21.0"), &alone, true),
            (Some("v1.21.0-rc.1"), &alone, true),
            (Some("v1.20.9"), &alone, false),
            (Some("v1.22.0"), &alone, false),
            (None, &alone, true),
            (Some("v1.20.9"), &both, true),
        ] {
            assert_eq!(stays(tree.path(), wanted, runs).is_ok(), fits, "{runs:?}");
        }
    }

    #[test]
    fn the_kubelet_gets_back_what_it_had_before_the_first_try() {
        let dir = tempfile::tempdir().unwrap();
        let [root, state] = ["root", "state"].map(|name| dir.path().join(name));
        let place = Place { root, state, systemctl: "false".into() };
        std::fs::create_dir_all(place.kubelet()).unwrap();
        std::fs::create_dir_all(&place.state).unwrap();
        let config = place.kubelet().join("config.yaml");
        std::fs::write(&config, "old").unwrap();
        place.keep(&desired(1)).unwrap();
        std::fs::write(&config, "half new").unwrap();
        place.keep(&desired(1)).unwrap();
        std::fs::write(&config, "new").unwrap();
        place.restore(&desired(1)).unwrap();
        assert_eq!(std::fs::read_to_string(&config).unwrap(), "old");
        // What another attempt kept is none of this one's.
        place.keep(&desired(2)).unwrap();
        std::fs::write(&config, "newest").unwrap();
        place.restore(&desired(1)).unwrap();
        assert_eq!(std::fs::read_to_string(&config).unwrap(), "newest");
        // Nothing is kept: nothing changes.
        std::fs::write(&config, "newer").unwrap();
        place.restore(&desired(1)).unwrap();
        assert_eq!(std::fs::read_to_string(&config).unwrap(), "newer");
        assert!(!place.kubelet().join("kubeadm-flags.env").exists());
    }
}
