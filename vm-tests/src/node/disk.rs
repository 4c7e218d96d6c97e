//! The disk of a node: a folder with the layers that lie over this computer's own files.
//!
//! ```text
//! disk/root/                  where the node's files are put together
//! disk/{usr,etc,var,opt}/     upper: what the node wrote, work: the kernel's
//! disk/state/                 /var/lib/{containerd,kubelet,etcd}, which cannot be layers
//! disk/systemd/               /etc/systemd, all of it
//! disk/bin/bin/               programs of this node, a layer of /usr below the others
//! log/                        /var/log; it stays when the node is dropped
//! ```

#![expect(clippy::disallowed_methods, reason = "makes folders and files")]

use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::containerd;
use super::spec::{Kubernetes, NodeSpec};
use super::units::{self, Entry};
use crate::{Error, folder};

const GENERATORS: &str = "/lib/systemd/system-generators";
const PROGRAMS: &[&str] = &["kubeadm", "kubelet", "kubectl"];

/// Where the parts of a disk lie.
#[derive(Debug)]
pub(super) struct Disk {
    /// The layers.
    pub folder: PathBuf,
    /// `/var/log`.
    pub log: PathBuf,
}

impl Disk {
    /// The disk of the node whose folder this is.
    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.join("disk"), log: folder.join("log") }
    }

    /// An empty disk, with the name and the machine-id of the node and what it is to have before its first boot.
    pub(super) fn make(&self, spec: &NodeSpec, machine_id: &str) -> Result<(), Error> {
        folder::fresh(&self.folder)?;
        folder::fresh(&self.log)?;
        for layer in ["usr", "etc", "var", "opt"] {
            self.folder_in(&format!("{layer}/upper"))?;
            self.folder_in(&format!("{layer}/work"))?;
        }
        for state in ["containerd", "kubelet", "etcd"] {
            self.folder_in(&format!("state/{state}"))?;
        }
        for place in ["usr", "etc", "var", "opt", "proc", "sys", "dev", "run", "tmp", "root", "home", "srv", "mnt"] {
            self.folder_in(&format!("root/{place}"))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            self.link(&format!("root/{name}"), &format!("usr/{name}"))?;
        }
        let text = |path: &str, text: &str| self.file(path, 0o644, text.as_bytes());
        text("etc/upper/hostname", &format!("{}\n", spec.name))?;
        text("etc/upper/machine-id", &format!("{machine_id}\n"))?;
        // Nobody answers questions of names; the hosts of the network are in /etc/hosts.
        text("etc/upper/resolv.conf", "")?;
        text("etc/upper/hosts", "")?;
        text("etc/upper/fstab", "")?;
        self.units(spec)?;
        if let Some(kubernetes) = &spec.kubernetes {
            text("etc/upper/containerd/config.toml", containerd::CONFIG)?;
            self.folder_in("etc/upper/cni/net.d")?;
            for name in PROGRAMS {
                self.program(&kubernetes.version_folder().join(name), name)?;
            }
        }
        if let Some(agent) = &spec.agent {
            self.program(agent, "nkd-agent")?;
            text("usr/upper/lib/systemd/system/nkd-agent.service", units::AGENT)?;
            text("usr/upper/lib/systemd/system/nkd-balancer.service", units::BALANCER)?;
            text("usr/upper/lib/systemd/system/nkd-updater.service", units::UPDATER)?;
        }
        for (program, name) in &spec.programs {
            self.program(program, name)?;
        }
        for file in &spec.files {
            let (layer, path) = file.place()?;
            self.file(&format!("{layer}/upper/{path}"), file.mode, &file.bytes)?;
        }
        Ok(())
    }

    /// The lower layers of the node's `/usr`, the topmost first.
    pub(super) fn lower_usr(&self, kubernetes: Option<&Kubernetes>) -> Result<String, Error> {
        let mut layers = Vec::new();
        if self.folder.join("bin").exists() {
            layers.push(self.folder.join("bin"));
        }
        layers.extend(kubernetes.map(|kubernetes| kubernetes.folder.join("sys/usr")));
        layers.push(PathBuf::from("/usr"));
        let layers: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
        // What mount would take for the end of a word.
        match layers.iter().find(|layer| layer.contains([':', ',', '\\', ' '])) {
            None => Ok(layers.join(":")),
            Some(bad) => Err(Error::Argument(format!("{bad}: a node cannot lie in a folder of such a name"))),
        }
    }

    /// Removes all but the logs.
    pub(super) fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }

    fn units(&self, spec: &NodeSpec) -> Result<(), Error> {
        let listing = || Error::io(format!("listing {GENERATORS}"));
        let mut generators = Vec::new();
        for entry in std::fs::read_dir(GENERATORS).map_err(listing())? {
            generators.push(entry.map_err(listing())?.file_name().to_string_lossy().into_owned());
        }
        for entry in units::entries(spec.kubernetes.is_some(), spec.agent.is_some(), &generators) {
            match entry {
                Entry::File { path, text } => self.file(&format!("systemd/{path}"), 0o644, text.as_bytes())?,
                Entry::Link { path, target } => self.link(&format!("systemd/{path}"), &target)?,
            }
        }
        Ok(())
    }

    /// Puts a program into `/usr/bin`, without a copy if it lies on the same file system: nobody writes to a lower layer.
    fn program(&self, from: &Path, name: &str) -> Result<(), Error> {
        let to = self.folder_in("bin/bin")?.join(name);
        let from = from.canonicalize().map_err(Error::io(format!("finding {}", from.display())))?;
        match std::fs::hard_link(&from, &to) {
            Err(_) => std::fs::copy(&from, &to).map(|_| ()),
            linked => linked,
        }
        .map_err(Error::io(format!("copying {} to {}", from.display(), to.display())))
    }

    fn folder_in(&self, path: &str) -> Result<PathBuf, Error> {
        let folder = self.folder.join(path);
        std::fs::create_dir_all(&folder).map_err(Error::io(format!("making {}", folder.display())))?;
        Ok(folder)
    }

    fn file(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), Error> {
        let place = self.place(path)?;
        let written = std::fs::write(&place, bytes)
            .and_then(|()| std::fs::set_permissions(&place, PermissionsExt::from_mode(mode)));
        written.map_err(Error::io(format!("writing {}", place.display())))
    }

    fn link(&self, path: &str, target: &str) -> Result<(), Error> {
        let place = self.place(path)?;
        match symlink(target, &place) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
        .map_err(Error::io(format!("linking {}", place.display())))
    }

    fn place(&self, path: &str) -> Result<PathBuf, Error> {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder_in(folder)?;
        }
        Ok(self.folder.join(path))
    }
}
