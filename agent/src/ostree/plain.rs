//! ostree without rpm-ostree.
#![expect(clippy::disallowed_methods, reason = "writes the remote's files")]

use std::path::{Path, PathBuf};

use nkd_api::update::OsRelease;

use super::program::{STATUS, ask, ask_within, tell};
use super::remote::{self, Checks};
use super::{Backend, BootCounter, Source, again, boot, count, difference, disarm, is_staged, lock, never, unlock};
use crate::files;
use crate::update::state::{Deployment, Failure};

/// `ostree admin`.
pub struct Plain {
    root: PathBuf,
    counter: Option<BootCounter>,
}

/// A line of `ostree admin status`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    stateroot: String,
    /// `<commit>.<serial>`
    name: String,
    deployment: Deployment,
}

impl Plain {
    /// Of the system at `root`.
    #[must_use]
    pub fn new(root: &Path, counter: Option<BootCounter>) -> Self {
        Self { root: root.to_owned(), counter }
    }

    fn list(&self) -> Result<Vec<Listed>, String> {
        Ok(listed(&ask_within(STATUS, "ostree", &["admin", "status", "--skip-signatures"])?))
    }

    fn tree(&self, listed: &Listed) -> PathBuf {
        self.root.join("sysroot/ostree/deploy").join(&listed.stateroot).join("deploy").join(&listed.name)
    }

    /// The remote as the service has it now.
    fn remote(&self, source: &Source) -> Result<(), String> {
        write_remote(&self.root, source)
    }
}

/// Writes the remote with the files that it names: its authority, and the OpenPGP key.
pub(super) fn write_remote(root: &Path, source: &Source) -> Result<(), String> {
    let checks = Checks::of(&ask("ostree", &["--version"])?);
    let place = root.join("etc/nkd");
    let (ca, key) = (place.join("service-ca.pem"), place.join("channel-key.asc"));
    let text = remote::text(source, checks, &ca, &key)?;
    let folder = root.join("etc/ostree/remotes.d");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let write = |path: &Path, text: &str| files::write_public(path, text.as_bytes());
    write(&ca, &source.ca)
        .and_then(|()| write(&key, &source.key))
        .and_then(|()| write(&folder.join(format!("{}.conf", remote::NAME)), &text))
        .map_err(|error| crate::client::chain(&error))
}

impl Backend for Plain {
    fn deployments(&self) -> Result<Vec<Deployment>, String> {
        Ok(self.list()?.into_iter().map(|listed| listed.deployment).collect())
    }

    fn finalize_failure(&self) -> Option<String> {
        let stamp = std::fs::read_to_string(self.root.join("boot/ostree/finalize-failure.stamp")).ok()?;
        Some(format!("the deployment was not made when the system went down: {}", stamp.trim()))
    }

    fn stage(&self, os: &OsRelease, source: Result<&Source, &Failure>) -> Result<PathBuf, Failure> {
        let Some(commit) = &os.commit else {
            return Err(never("this system takes ostree commits, and the release is an image".to_owned()));
        };
        // Nothing that was armed before counts, unless it is what runs.
        let before = self.list().map_err(again)?;
        let there: Vec<_> = before.iter().filter(|listed| listed.deployment.id == *commit).collect();
        if let Some(booted) = there.iter().find(|listed| listed.deployment.booted) {
            return Ok(self.tree(booted));
        }
        if let Some(staged) = there.iter().find(|listed| listed.deployment.staged) {
            lock(&self.root)?;
            disarm(self.counter.as_ref())?;
            return Ok(self.tree(staged));
        }
        if !there.is_empty() {
            // It was given up before: laid out anew, it has a configuration made anew.
            self.discard(commit)?;
        }
        disarm(self.counter.as_ref())?;
        let source = source.map_err(Failure::clone)?;
        self.remote(source).map_err(again)?;
        difference::pull("ostree", &self.root, source, commit).map_err(again)?;
        tell("ostree", &["admin", "deploy", "--stage", "--lock-finalization", commit]).map_err(again)?;
        let after = self.list().map_err(again)?;
        let staged = after.iter().find(|listed| listed.deployment.id == *commit && listed.deployment.staged);
        staged.map(|staged| self.tree(staged)).ok_or_else(|| again("ostree has staged nothing".to_owned()))
    }

    fn takes_differences(&self) -> bool {
        true
    }

    fn caution(&self) -> Option<&'static str> {
        boot::caution(self.counter.as_ref())
    }

    fn arm(&self, id: &str) -> Result<(), Failure> {
        is_staged(self.list().map_err(again)?.iter().map(|listed| &listed.deployment), id)?;
        count(self.counter.as_ref())?;
        unlock(&self.root, "ostree")
    }

    fn confirm(&self) -> Result<(), Failure> {
        disarm(self.counter.as_ref())
    }

    fn revert(&self, from: &str) -> Result<(), Failure> {
        let list = self.list().map_err(again)?;
        let place = list.iter().position(|listed| listed.deployment.id == from);
        let place = place.ok_or_else(|| never(format!("the deployment {from} is not there any more")))?;
        if place > 0 {
            count(self.counter.as_ref()).unwrap_or_else(|failure| tracing::warn!("{}", failure.reason));
            tell("ostree", &["admin", "set-default", &place.to_string()]).map_err(again)?;
        }
        disarm(self.counter.as_ref())
    }

    fn discard(&self, id: &str) -> Result<(), Failure> {
        let list = self.list().map_err(again)?;
        let place = list.iter().position(|listed| listed.deployment.id == id && !listed.deployment.booted);
        if let Some(place) = place {
            if !list[place].deployment.staged && list[place..].iter().any(|listed| listed.deployment.booted) {
                count(self.counter.as_ref())?;
            }
            tell("ostree", &["admin", "undeploy", &place.to_string()]).map_err(again)?;
        }
        disarm(self.counter.as_ref())
    }
}

/// `* lab <commit>.0 (staged)`, further lines of each deployment begin with four spaces.
fn listed(text: &str) -> Vec<Listed> {
    let one = |line: &str| {
        let booted = line.starts_with('*');
        let mut words = line.trim_start_matches(['*', '!', ' ']).split_whitespace();
        let (stateroot, name) = (words.next()?.to_owned(), words.next()?.to_owned());
        let id = name.split_once('.').filter(|(id, _)| id.len() == 64)?.0.to_owned();
        // A staged one that is locked is called by its lock alone.
        let staged = words.any(|word| ["(staged", "(finalization"].iter().any(|begin| word.starts_with(begin)));
        Some(Listed { stateroot, name, deployment: Deployment { id, booted, staged } })
    };
    text.lines().filter(|line| !line.starts_with("    ")).filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_ostree_reads() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let text = format!(
            "  lab {a}.1 (finalization locked)\n    Version: 2\n    origin: <unknown origin type>\n* lab {b}.0\n    \
             Version: 1\n    origin refspec: lab:x\n  lab {a}.0 (rollback)\n    Version: 2\n"
        );
        let found: Vec<_> =
            listed(&text).into_iter().map(|l| (l.name, l.deployment.booted, l.deployment.staged)).collect();
        let expected =
            [(format!("{a}.1"), false, true), (format!("{b}.0"), true, false), (format!("{a}.0"), false, false)];
        assert_eq!(found, expected);
        let unlocked = listed(&text.replace("finalization locked", "staged"));
        assert!(unlocked[0].deployment.staged && !unlocked[1].deployment.staged);
        assert!(listed("No deployments.\n").is_empty());
    }
}
