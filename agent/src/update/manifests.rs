//! The way back for a control plane's static pods, where kubeadm was cut off while it replaced them.
//!
//! kubeadm puts their manifests back itself when a new one does not come up. One that was killed, or lost its power, does not. The
//! API of an only control plane then never answers again, and without it kubeadm cannot be begun once more.
#![expect(clippy::disallowed_methods, reason = "keeps and restores manifests")]

use std::path::{Path, PathBuf};

use nkd_api::update::Desired;

use super::kubernetes::{Place, absent};
use super::state::{Failure, Retry};
use crate::client::chain;
use crate::files;
use crate::kubeadm::{self, COMPONENTS, Etcd};

/// kubeadm's folder, below the node's root.
const KUBERNETES: &str = "etc/kubernetes";

const HALF: &str = "the static pods of this node, which kubeadm was replacing, do not come up";

/// What a kubeadm that was cut off has left of a control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Nothing that is not well.
    Nothing,
    /// Static pods of this node that do not come up.
    Half,
    /// An API server that is not ready, and others may be to blame.
    Others,
}

fn said(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

impl Place {
    fn manifest(&self, name: &str) -> PathBuf {
        self.root.join(KUBERNETES).join("manifests").join(file(name))
    }

    /// Copies the manifests of a control plane into the folder of what is kept.
    pub(super) fn keep_manifests(&self, folder: &Path) -> Result<(), String> {
        for name in COMPONENTS {
            let from = self.manifest(name);
            match std::fs::read(&from) {
                Ok(text) => files::write_private(&folder.join(file(name)), &text).map_err(|error| chain(&error))?,
                Err(error) => absent(error).map_err(|error| said(&from, error))?,
            }
        }
        Ok(())
    }

    /// Why this node cannot go on, `reason`, is waited for as long as it takes, unless it is this node's own doing.
    pub fn away(&self, desired: &Desired, reason: &str) -> Failure {
        match self.left(desired) {
            Left::Nothing | Left::Others => Failure { retry: Retry::Patiently, reason: reason.to_owned() },
            Left::Half => Failure { retry: Retry::ForAWhile, reason: format!("{reason}; and {HALF}") },
        }
    }

    /// Whether what was kept may be given up: a kubeadm was cut off, and its release goes. What does not come up by itself has to
    /// be put back first.
    ///
    /// # Errors
    /// What is waited for until then.
    pub fn may_forget(&self, desired: &Desired) -> Result<(), Failure> {
        match self.left(desired) {
            Left::Nothing => Ok(()),
            Left::Half => Err(Failure { retry: Retry::ForAWhile, reason: HALF.to_owned() }),
            Left::Others => Err(Failure {
                retry: Retry::Patiently,
                reason: "kubeadm was cut off, and the API server of this node is not ready; its etcd waits for others, or is \
                         elsewhere"
                    .to_owned(),
            }),
        }
    }

    fn left(&self, desired: &Desired) -> Left {
        let ready = |port| kubeadm::ask_api_server(&self.root, port, "/readyz").is_ok();
        self.left_by(desired, ready, |manifest| kubeadm::own_etcd(&self.root, manifest))
    }

    /// It is this node's own doing that its API server is not ready when kubeadm has changed the manifest of who is to blame: of
    /// etcd, if that says nothing, else of the API server. An etcd without its majority waits for other nodes; one that is
    /// elsewhere says nothing either way.
    fn left_by(&self, desired: &Desired, ready: impl Fn(u16) -> bool, etcd: impl Fn(&str) -> Etcd) -> Left {
        let kept = |name: &str| std::fs::read_to_string(self.kept(desired).join(file(name))).ok();
        // The manifest of before says where it listens: kubeadm moves it out before it moves the new one in.
        let Some(server) = kept("kube-apiserver") else { return Left::Nothing };
        let changed = |name: &str| kept(name).is_some_and(|text| !self.is_in_place(name, text.as_bytes()));
        let port = kubeadm::api_server_port(&self.root).unwrap_or_else(|| kubeadm::port_of(&server));
        if !COMPONENTS.into_iter().any(changed) || ready(port) {
            return Left::Nothing;
        }
        let Some(member) = kept("etcd") else { return Left::Others };
        let own = match etcd(&member) {
            Etcd::Silent => changed("etcd"),
            Etcd::HasLeader => changed("kube-apiserver"),
            Etcd::NoMajority => false,
        };
        if own { Left::Half } else { Left::Others }
    }

    /// kubeadm was cut off between moving this manifest out and the new one in.
    fn was_moved_out(&self, desired: &Desired, name: &str) -> bool {
        self.kept(desired).join(file(name)).exists() && !self.manifest(name).exists()
    }

    /// What kubeadm has moved out, and nothing in, is there again: neither a cluster without it, nor the next kubeadm comes far.
    ///
    /// # Errors
    /// In one sentence.
    pub fn put_back_moved_out(&self, desired: &Desired) -> Result<(), String> {
        self.put_these_back(desired, |name| self.was_moved_out(desired, name))
    }

    fn is_in_place(&self, name: &str, text: &[u8]) -> bool {
        std::fs::read(self.manifest(name)).is_ok_and(|is| is == text)
    }

    /// The manifests are again what they were before, if they were kept.
    ///
    /// # Errors
    /// In one sentence.
    pub fn put_back(&self, desired: &Desired) -> Result<(), String> {
        let manifest = std::fs::read_to_string(self.kept(desired).join(file("etcd")));
        let etcd = manifest.map_or(Etcd::Silent, |manifest| kubeadm::own_etcd(&self.root, &manifest));
        self.put_back_beside(etcd, desired)
    }

    /// An etcd that came up stays: older API servers know it, and an older etcd may not read what it has written.
    fn put_back_beside(&self, etcd: Etcd, desired: &Desired) -> Result<(), String> {
        let goes = |name: &str| name != "etcd" || etcd == Etcd::Silent || self.was_moved_out(desired, name);
        self.put_these_back(desired, goes)
    }

    /// The kubelet reads every file in the folder of its manifests, so nothing is written there but by renaming.
    fn put_these_back(&self, desired: &Desired, these: impl Fn(&str) -> bool) -> Result<(), String> {
        let aside = self.root.join(KUBERNETES).join("nkd-before-upgrade");
        for name in COMPONENTS.into_iter().filter(|name| these(name)) {
            let kept = self.kept(desired).join(file(name));
            let text = match std::fs::read(&kept) {
                Ok(text) => text,
                Err(error) => {
                    absent(error).map_err(|error| said(&kept, error))?;
                    continue;
                }
            };
            if self.is_in_place(name, &text) {
                continue;
            }
            let (new, place) = (aside.join(file(name)), self.manifest(name));
            files::make_private_dir(&aside).map_err(|error| chain(&error))?;
            files::write_private(&new, &text).map_err(|error| chain(&error))?;
            std::fs::rename(&new, &place).map_err(|error| said(&place, error))?;
            let folder = place.parent().unwrap_or(&place);
            let flush = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
            flush.map_err(|error| said(folder, error))?;
        }
        std::fs::remove_dir_all(&aside).or_else(absent).map_err(|error| said(&aside, error))
    }
}

fn file(name: &str) -> String {
    format!("{name}.yaml")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::kubernetes::tests::desired;
    use super::*;

    /// A control plane whose manifests are kept, and then these are written anew.
    fn cut_off(new: &[&str]) -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().unwrap();
        let [root, state] = ["root", "state"].map(|name| dir.path().join(name));
        let place = Place { root, state, systemctl: "false".into() };
        std::fs::create_dir_all(place.manifest("etcd").parent().unwrap()).unwrap();
        std::fs::create_dir_all(&place.state).unwrap();
        for name in COMPONENTS {
            std::fs::write(place.manifest(name), format!("- --secure-port=7\nold {name}")).unwrap();
        }
        std::fs::write(place.manifest("somebodys"), "theirs").unwrap();
        place.keep(&desired(1)).unwrap();
        for name in new {
            std::fs::write(place.manifest(name), "- --secure-port=7\nnew").unwrap();
        }
        // A second try keeps what was there before the first.
        place.keep(&desired(1)).unwrap();
        (dir, place)
    }

    #[test]
    fn manifests_that_kubeadm_left_are_put_back_and_nobody_elses() {
        let (_dir, place) = cut_off(&["etcd", "somebodys"]);
        let mode = std::fs::metadata(place.kept(&desired(1)).join("etcd.yaml")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Cut off between moving the old one out and the new one in.
        std::fs::remove_file(place.manifest("kube-apiserver")).unwrap();
        for _ in 0..2 {
            place.put_back(&desired(1)).unwrap();
            for name in COMPONENTS {
                let text = std::fs::read_to_string(place.manifest(name)).unwrap();
                assert!(text.ends_with(&format!("old {name}")), "{name}: {text}");
            }
        }
        assert!(std::fs::read_to_string(place.manifest("somebodys")).unwrap().ends_with("new"));
        let kubernetes = place.root.join(KUBERNETES);
        assert_eq!(std::fs::read_dir(&kubernetes).unwrap().count(), 1, "something is left beside the manifests");
        assert_eq!(std::fs::read_dir(kubernetes.join("manifests")).unwrap().count(), COMPONENTS.len() + 1);
        // Once they were given up, or of another attempt: nothing changes.
        std::fs::write(place.manifest("etcd"), "newer").unwrap();
        place.put_back(&desired(2)).unwrap();
        place.restore(&desired(1)).unwrap();
        place.put_back(&desired(1)).unwrap();
        assert_eq!(std::fs::read_to_string(place.manifest("etcd")).unwrap(), "newer");
    }

    #[test]
    fn an_etcd_that_came_up_stays() {
        let (_dir, place) = cut_off(&[]);
        std::fs::remove_file(place.manifest("etcd")).unwrap();
        place.put_back_beside(Etcd::HasLeader, &desired(1)).unwrap();
        assert!(place.manifest("etcd").exists(), "the one that answers is about to go");
        for (etcd, stays) in [(Etcd::Silent, false), (Etcd::HasLeader, true), (Etcd::NoMajority, true)] {
            let (_dir, place) = cut_off(&["etcd", "kube-apiserver"]);
            place.put_back_beside(etcd, &desired(1)).unwrap();
            let is_new = |name: &str| std::fs::read_to_string(place.manifest(name)).unwrap().ends_with("new");
            assert_eq!((is_new("etcd"), is_new("kube-apiserver")), (stays, false));
        }
    }

    #[test]
    fn an_api_that_is_away_is_this_nodes_own_doing_only_when_nobody_else_may_be_to_blame() {
        let left = |place: &Place, ready: bool, etcd: Etcd| {
            let port = |port| {
                assert_eq!(port, 7);
                ready
            };
            place.left_by(&desired(1), port, |_| etcd)
        };
        let (_dir, untouched) = cut_off(&[]);
        let (_dir, other) = cut_off(&["kube-scheduler"]);
        let (_dir, etcd) = cut_off(&["etcd"]);
        let (_dir, server) = cut_off(&["kube-apiserver"]);
        for (place, stands, expected) in [
            (&untouched, Etcd::Silent, Left::Nothing),
            (&untouched, Etcd::HasLeader, Left::Nothing),
            (&other, Etcd::Silent, Left::Others),
            (&other, Etcd::HasLeader, Left::Others),
            (&etcd, Etcd::Silent, Left::Half),
            (&etcd, Etcd::HasLeader, Left::Others),
            (&etcd, Etcd::NoMajority, Left::Others),
            (&server, Etcd::Silent, Left::Others),
            (&server, Etcd::HasLeader, Left::Half),
            (&server, Etcd::NoMajority, Left::Others),
        ] {
            assert_eq!(left(place, false, stands), expected, "{stands:?}");
            assert_eq!(left(place, true, stands), Left::Nothing, "its API server is ready");
        }
        assert_eq!(
            etcd.left_by(&desired(2), |_| false, |_| Etcd::Silent),
            Left::Nothing,
            "nothing is kept of that attempt"
        );
        // Cut off between moving the old one out and the new one in.
        for (place, name, waits) in [(&server, "kube-apiserver", Left::Half), (&other, "kube-scheduler", Left::Others)]
        {
            std::fs::remove_file(place.manifest(name)).unwrap();
            assert_eq!(left(place, false, Etcd::HasLeader), waits);
            place.put_back_moved_out(&desired(1)).unwrap();
            let text = std::fs::read_to_string(place.manifest(name)).unwrap();
            assert!(text.ends_with(&format!("old {name}")), "{text}");
            assert_eq!(left(place, false, Etcd::HasLeader), Left::Nothing);
            std::fs::write(place.manifest(name), "newer").unwrap();
            place.put_back_moved_out(&desired(1)).unwrap();
            assert_eq!(std::fs::read_to_string(place.manifest(name)).unwrap(), "newer", "what is there stays");
        }
        // Nobody listens here at all.
        assert_eq!(etcd.away(&desired(1), "away").retry, Retry::ForAWhile);
        assert_eq!(untouched.away(&desired(1), "away").retry, Retry::Patiently);
        assert_eq!(untouched.may_forget(&desired(1)), Ok(()));
        assert_eq!(etcd.may_forget(&desired(1)).unwrap_err().retry, Retry::ForAWhile);
        assert_eq!(other.may_forget(&desired(1)).unwrap_err().retry, Retry::Patiently);
        // An etcd that is elsewhere may be to blame.
        std::fs::remove_file(etcd.kept(&desired(1)).join("etcd.yaml")).unwrap();
        assert_eq!(left(&etcd, false, Etcd::Silent), Left::Nothing, "nothing of this node was changed");
    }
}
