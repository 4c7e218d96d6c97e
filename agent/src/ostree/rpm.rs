//! rpm-ostree: NestOS, Fedora CoreOS. Commits come from the service's repository, images from where their name says.
#![expect(clippy::disallowed_methods, reason = "looks for rpm-ostree's stamps")]

use std::path::{Path, PathBuf};

use nkd_api::update::OsRelease;
use serde::Deserialize;

use super::plain::write_remote;
use super::program::{STATUS, ask, ask_within, tell};
use super::{Backend, BootCounter, Source, again, boot, count, difference, disarm, is_staged, lock, never, unlock};
use crate::update::state::{Deployment, Failure, id_of};

/// Goes past an update driver, zincati, which keeps everybody else from a rebase while its unit is active. Of the verbs that
/// are used here only `rebase` asks for it and knows it; rpm-ostree of before 2021 has neither drivers nor this.
const BYPASS: &str = "--bypass-driver";

/// `rpm-ostree`.
pub struct Rpm {
    root: PathBuf,
    counter: Option<BootCounter>,
    /// Its name, and ostree's; tests put a stand-in there.
    program: String,
    ostree: String,
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
        Self { root: root.to_owned(), counter, program: "rpm-ostree".to_owned(), ostree: "ostree".to_owned() }
    }

    fn list(&self) -> Result<Vec<Listed>, String> {
        listed(&ask_within(STATUS, &self.program, &["status", "--json"])?)
    }

    fn tell(&self, words: &[&str]) -> Result<(), Failure> {
        tell(&self.program, words).map_err(again)
    }

    /// Lays a release out, locked: no restart makes it the next system.
    fn rebase(&self, target: &str) -> Result<(), Failure> {
        let knows = ask(&self.program, &["rebase", "--help"]).is_ok_and(|help| help.contains(BYPASS));
        let bypass = if knows { &[BYPASS][..] } else { &[] };
        self.tell(&[&["rebase", "--lock-finalization", "--skip-purge"][..], bypass, &[target]].concat())
    }

    fn tree(&self, listed: &Listed) -> PathBuf {
        let name = format!("{}.{}", listed.checksum, listed.serial);
        self.root.join("sysroot/ostree/deploy").join(&listed.osname).join("deploy").join(name)
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
        let list = self.list().map_err(again)?;
        let find = |is: fn(&Listed) -> bool| list.iter().find(|listed| listed.deployment().id == id && is(listed));
        if let Some(booted) = find(|listed| listed.booted) {
            return Ok(self.tree(booted));
        }
        if let Some(staged) = find(|listed| listed.staged) {
            lock(&self.root)?;
            disarm(self.counter.as_ref())?;
            return Ok(self.tree(staged));
        }
        // One that was given up before, and may boot next still, goes while the boot loader counts.
        self.discard(id)?;
        match (&os.commit, &os.image) {
            (Some(commit), _) => {
                let source = source.map_err(Failure::clone)?;
                write_remote(&self.root, source).map_err(again)?;
                // rpm-ostree fetches what a ref names, and since 2021 nothing for a commit: that has to be there.
                difference::pull(&self.ostree, &self.root, source, commit).map_err(again)?;
                // By the commit, whatever ref the system follows.
                self.rebase(&format!("nkd:{commit}"))?;
            }
            (None, Some(image)) if image.contains('@') => {
                self.rebase(&format!("ostree-unverified-registry:{image}"))?;
            }
            _ => return Err(never("the image is named without its digest (name@sha256:...)".to_owned())),
        }
        // ostree takes that lock away when something was staged before.
        lock(&self.root)?;
        let list = self.list().map_err(again)?;
        let staged = list.iter().find(|listed| listed.deployment().id == id && listed.staged);
        staged.map(|listed| self.tree(listed)).ok_or_else(|| again("rpm-ostree has staged nothing".to_owned()))
    }

    fn takes_differences(&self) -> bool {
        true
    }

    fn caution(&self) -> Option<&'static str> {
        boot::caution(self.counter.as_ref())
    }

    fn arm(&self, id: &str) -> Result<(), Failure> {
        let list: Vec<_> = self.list().map_err(again)?.iter().map(Listed::deployment).collect();
        is_staged(list.iter(), id)?;
        count(self.counter.as_ref())?;
        // What `finalize-deployment` does before it restarts the machine by itself; we restart it.
        unlock(&self.root, &self.ostree)
    }

    fn confirm(&self) -> Result<(), Failure> {
        disarm(self.counter.as_ref())
    }

    fn revert(&self, from: &str) -> Result<(), Failure> {
        let list = self.list().map_err(again)?;
        if list.first().is_some_and(|first| first.deployment().id != from) {
            if !list.iter().any(|listed| listed.deployment().id == from) {
                return Err(never(format!("the deployment {from} is not there any more")));
            }
            count(self.counter.as_ref()).unwrap_or_else(|failure| tracing::warn!("{}", failure.reason));
            self.tell(&["rollback"])?;
        }
        disarm(self.counter.as_ref())
    }

    fn discard(&self, id: &str) -> Result<(), Failure> {
        let list = self.list().map_err(again)?;
        let other = list.iter().position(|listed| listed.deployment().id == id && !listed.booted);
        let booted = list.iter().position(|listed| listed.booted);
        match (other, booted) {
            (Some(other), Some(booted)) if other < booted => {
                // Made, and given up by the boot loader: what runs is to boot next, before the other goes.
                if !list[other].staged {
                    count(self.counter.as_ref())?;
                    self.tell(&["rollback"])?;
                    // What runs is first now, and a counter that nobody unsets would take it away again.
                    disarm(self.counter.as_ref())?;
                    self.tell(&["cleanup", "--rollback"])?;
                } else {
                    self.tell(&["cleanup", "--pending"])?;
                }
            }
            (Some(_), _) => self.tell(&["cleanup", "--rollback"])?,
            (None, _) => {}
        }
        disarm(self.counter.as_ref())
    }
}

#[cfg(test)]
#[path = "rpm_tests.rs"]
mod tests;
