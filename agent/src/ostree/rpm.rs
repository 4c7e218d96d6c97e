//! rpm-ostree: NestOS, Fedora CoreOS. Commits come from the service's repository, images from where their name says.
#![expect(clippy::disallowed_methods, reason = "looks for rpm-ostree's stamps")]

use std::path::{Path, PathBuf};

use nkd_api::update::OsRelease;
use serde::Deserialize;

use super::plain::write_remote;
use super::program::{ask, tell};
use super::{Backend, BootCounter, Source, again, difference, is_staged, never};
use crate::update::state::{Deployment, Failure, id_of};

/// `rpm-ostree`.
pub struct Rpm {
    root: PathBuf,
    counter: Option<BootCounter>,
}

/// What `rpm-ostree status --json` says, as far as it matters.
#[derive(Deserialize)]
struct Status {
    deployments: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    osname: String,
    checksum: String,
    #[serde(default)]
    serial: u32,
    /// The commit below layered packages.
    base_checksum: Option<String>,
    container_image_reference_digest: Option<String>,
    #[serde(default)]
    booted: bool,
    #[serde(default)]
    staged: bool,
}

impl Listed {
    fn deployment(&self) -> Deployment {
        let commit = self.base_checksum.as_ref().unwrap_or(&self.checksum);
        let id = self.container_image_reference_digest.as_ref().unwrap_or(commit).clone();
        Deployment { id, booted: self.booted, staged: self.staged }
    }
}

fn listed(json: &str) -> Result<Vec<Listed>, String> {
    let status: Status =
        serde_json::from_str(json).map_err(|error| format!("what rpm-ostree says does not read: {error}"))?;
    Ok(status.deployments)
}

impl Rpm {
    /// Of the system at `root`.
    #[must_use]
    pub fn new(root: &Path, counter: Option<BootCounter>) -> Self {
        Self { root: root.to_owned(), counter }
    }

    fn list(&self) -> Result<Vec<Listed>, String> {
        listed(&ask("rpm-ostree", &["status", "--json"])?)
    }

    fn tree(&self, listed: &Listed) -> PathBuf {
        let name = format!("{}.{}", listed.checksum, listed.serial);
        self.root.join("sysroot/ostree/deploy").join(&listed.osname).join("deploy").join(name)
    }

    fn disarm(&self) -> Result<(), Failure> {
        self.counter.as_ref().map_or(Ok(()), BootCounter::disarm).map_err(again)
    }
}

impl Backend for Rpm {
    fn deployments(&self) -> Result<Vec<Deployment>, String> {
        Ok(self.list()?.iter().map(Listed::deployment).collect())
    }

    fn finalize_failure(&self) -> Option<String> {
        let stamp = std::fs::read_to_string(self.root.join("boot/ostree/finalize-failure.stamp")).ok()?;
        Some(format!("the deployment was not made when the system went down: {}", stamp.trim()))
    }

    fn stage(&self, os: &OsRelease, source: Result<&Source, &Failure>) -> Result<PathBuf, Failure> {
        let Some(id) = id_of(os) else { return Err(never("the release names neither commit nor image".to_owned())) };
        let find = |staged: bool| -> Result<Option<PathBuf>, Failure> {
            let list = self.list().map_err(again)?;
            let is = |listed: &&Listed| listed.deployment().id == id && (listed.staged || (!staged && listed.booted));
            Ok(list.iter().find(is).map(|listed| self.tree(listed)))
        };
        if let Some(tree) = find(false)? {
            return Ok(tree);
        }
        self.disarm()?;
        match (&os.commit, &os.image) {
            (Some(commit), _) => {
                let source = source.map_err(Failure::clone)?;
                write_remote(&self.root, source).map_err(again)?;
                if source.difference.is_some() {
                    difference::pull(&self.root, source, commit).map_err(again)?;
                }
                // By the commit, whatever ref the system follows.
                let target = format!("nkd:{commit}");
                tell("rpm-ostree", &["rebase", "--lock-finalization", "--skip-purge", &target]).map_err(again)?;
            }
            (None, Some(image)) if image.contains('@') => {
                let target = format!("ostree-unverified-registry:{image}");
                tell("rpm-ostree", &["rebase", "--lock-finalization", "--skip-purge", &target]).map_err(again)?;
            }
            _ => return Err(never("the image is named without its digest (name@sha256:...)".to_owned())),
        }
        find(true)?.ok_or_else(|| again("rpm-ostree has staged nothing".to_owned()))
    }

    fn takes_differences(&self) -> bool {
        true
    }

    fn arm(&self, id: &str) -> Result<(), Failure> {
        let list: Vec<_> = self.list().map_err(again)?.iter().map(Listed::deployment).collect();
        is_staged(list.iter(), id)?;
        if let Some(counter) = &self.counter {
            counter.arm().map_err(again)?;
        }
        // What `finalize-deployment` does before it restarts the machine by itself; we restart it.
        let locked = self.root.join("run/ostree/staged-deployment-locked");
        crate::files::remove(&locked).map_err(|error| again(crate::client::chain(&error)))
    }

    fn confirm(&self) -> Result<(), Failure> {
        self.disarm()
    }

    fn revert(&self, from: &str) -> Result<(), Failure> {
        let list = self.list().map_err(again)?;
        if list.first().is_some_and(|first| first.deployment().id != from) {
            if !list.iter().any(|listed| listed.deployment().id == from) {
                return Err(never(format!("the deployment {from} is not there any more")));
            }
            tell("rpm-ostree", &["rollback"]).map_err(again)?;
        }
        self.disarm()
    }

    fn discard(&self, id: &str) -> Result<(), Failure> {
        let list = self.list().map_err(again)?;
        let other = list.iter().position(|listed| listed.deployment().id == id && !listed.booted);
        let booted = list.iter().position(|listed| listed.booted);
        match (other, booted) {
            (Some(other), Some(booted)) if other < booted => {
                // Made, and given up by the boot loader: what runs is to boot next, before the other goes.
                if !list[other].staged {
                    tell("rpm-ostree", &["rollback"]).map_err(again)?;
                    tell("rpm-ostree", &["cleanup", "--rollback"]).map_err(again)?;
                } else {
                    tell("rpm-ostree", &["cleanup", "--pending"]).map_err(again)?;
                }
            }
            (Some(_), _) => tell("rpm-ostree", &["cleanup", "--rollback"]).map_err(again)?,
            (None, _) => {}
        }
        self.disarm()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rpm_ostree_says_reads() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let text = format!(
            r#"{{"transaction":null,"deployments":[
            {{"osname":"nestos","checksum":"{a}","serial":1,"staged":true,"booted":false,"finalization-locked":true,
              "container-image-reference":"ostree-unverified-registry:r.example/os@sha256:1","container-image-reference-digest":"sha256:1"}},
            {{"osname":"nestos","checksum":"{b}","serial":0,"base-checksum":"{a}","staged":false,"booted":true}}]}}"#
        );
        let list = listed(&text).unwrap();
        let found: Vec<_> = list.iter().map(Listed::deployment).collect();
        let expected = [
            Deployment { id: "sha256:1".into(), booted: false, staged: true },
            Deployment { id: a.clone(), booted: true, staged: false },
        ];
        assert_eq!(found, expected);
        let rpm = Rpm::new(Path::new("/"), None);
        assert_eq!(rpm.tree(&list[0]), PathBuf::from(format!("/sysroot/ostree/deploy/nestos/deploy/{a}.1")));
        assert!(listed("{}").is_err());
    }
}
