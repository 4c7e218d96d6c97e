//! containerd in a node: its configuration, its images, and the simplest network of pods.

#![expect(clippy::disallowed_methods, reason = "opens images, runs ctr on several threads, reads the environment")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::Node;
use super::spec::Kubernetes;
use crate::Error;

/// AppArmor is not there, nor the right to lower a process' chance of being killed for its memory.
pub(super) const CONFIG: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "k8s.gcr.io/pause:3.2"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#;

/// Where containerd looks for the network of pods.
pub(crate) const NETWORK: &str = "/etc/cni/net.d";
/// Where the same lies once more: before a second try, all of the first is removed from the other folder. The program of
/// a real network would put it there again.
pub(crate) const KEPT_NETWORK: &str = "/etc/nkd-vm";

/// How many images are unpacked at once.
const AT_ONCE: usize = 3;

/// The folder that `cargo xtask image kubernetes` makes, from `NKD_KUBERNETES`:
///
/// ```text
/// versions/<version>/{kubeadm,kubelet,kubectl}
/// versions/<version>/images/*.tar      containers of this version
/// images/*.tar                         containers of all versions
/// sys/usr/                             containerd, runc, CNI plugins, iptables and what they need, to lie over /usr
/// ```
pub fn kubernetes_folder() -> Result<PathBuf, Error> {
    let remedy = "run `cargo xtask image kubernetes` and set it to the folder that it makes";
    let folder =
        std::env::var_os("NKD_KUBERNETES").map(PathBuf::from).filter(|folder| folder.join("versions").is_dir());
    folder.ok_or(Error::NotBuilt { variable: "NKD_KUBERNETES", remedy })
}

/// Which images a node wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// All that there are.
    ControlPlane,
    /// Without those that only the control plane runs.
    Worker,
}

/// What only the control plane runs.
const CONTROL_PLANE: &[&str] = &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

impl Images {
    fn wants(self, archive: &Path) -> bool {
        let name = archive.file_stem().and_then(|name| name.to_str());
        let tar = archive.extension().is_some_and(|extension| extension == "tar");
        tar && (self == Self::ControlPlane || name.is_some_and(|name| !CONTROL_PLANE.contains(&name)))
    }
}

impl Kubernetes {
    pub(super) fn version_folder(&self) -> PathBuf {
        self.folder.join("versions").join(&self.version)
    }

    /// The archives of images for a node of this version.
    fn images(&self, which: Images) -> Result<Vec<PathBuf>, Error> {
        let mut images = Vec::new();
        for folder in [self.folder.join("images"), self.version_folder().join("images")] {
            let listing = || Error::io(format!("listing {}", folder.display()));
            for entry in std::fs::read_dir(&folder).map_err(listing())? {
                let path = entry.map_err(listing())?.path();
                if which.wants(&path) {
                    images.push(path);
                }
            }
        }
        match images.is_empty() {
            true => Err(Error::Argument(format!("there is no image in {}", self.folder.display()))),
            false => Ok(images),
        }
    }
}

impl Node {
    /// Brings the images of its version to containerd, some at a time, as if they had been pulled.
    pub fn import_images(&self, which: Images, limit: Duration) -> Result<(), Error> {
        let kubernetes = self.spec.kubernetes.as_ref();
        let kubernetes =
            kubernetes.ok_or_else(|| Error::Argument(format!("{} is no node of Kubernetes", self.name())))?;
        self.import_images_of(kubernetes, which, limit)
    }

    /// The same with those of any version.
    pub(super) fn import_images_of(
        &self,
        kubernetes: &Kubernetes,
        which: Images,
        limit: Duration,
    ) -> Result<(), Error> {
        // The largest last, so that they are taken first.
        let mut images = kubernetes.images(which)?;
        images.sort_by_key(|image| image.metadata().map_or(0, |data| data.len()));
        let waiting = Mutex::new(images);
        let next = || waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
        let work = || {
            while let Some(image) = next() {
                self.import_image(&image, limit)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            let mut ends = workers.into_iter().map(|worker| match worker.join() {
                Ok(end) => end,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            ends.try_for_each(|end| end)
        })
    }

    /// Brings one image to containerd, an archive of this computer.
    pub fn import_image(&self, archive: &Path, limit: Duration) -> Result<(), Error> {
        let file = File::open(archive).map_err(Error::io(format!("opening {}", archive.display())))?;
        let mut command = Command::new("ctr");
        command.args(["-n", "k8s.io", "images", "import", "-"]);
        self.run_on(Stdio::from(file), command, limit)?.success().map(|_| ())
    }
}

/// Gives the pods of these nodes a network without any program that manages one: the n-th node, from 0, has a bridge for
/// the pods of `10.244.<n>.0/24`, and routes to those of the others. Nodes join a cluster in this order, so that what
/// Kubernetes thinks of their addresses is true.
pub fn bridge_pods(nodes: &mut [&mut Node]) -> Result<(), Error> {
    bridge_pods_in("10.244", nodes)
}

/// The same for pods of `<start>.0.0/16`: a second cluster has others than the first.
pub fn bridge_pods_in(start: &str, nodes: &mut [&mut Node]) -> Result<(), Error> {
    let subnets: Vec<_> =
        nodes.iter().enumerate().map(|(n, node)| (format!("{start}.{n}.0/24"), node.address())).collect();
    for (own, node) in nodes.iter_mut().enumerate() {
        let config = serde_json::json!({"cniVersion": "0.4.0", "name": "bridge", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": {
                "type": "host-local", "ranges": [[{"subnet": subnets[own].0}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "loopback"},
        ]});
        for folder in [NETWORK, KEPT_NETWORK] {
            node.write_file(&format!("{folder}/10-bridge.conflist"), 0o644, config.to_string().as_bytes())?;
        }
        for (subnet, address) in subnets.iter().enumerate().filter(|(n, _)| *n != own).map(|(_, other)| other) {
            node.route(subnet, *address)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_needs_no_control_plane() {
        let wants = |which: Images, name: &str| which.wants(Path::new("/k").join(name).as_path());
        for name in ["etcd.tar", "kube-apiserver.tar", "kube-proxy.tar", "pause.tar"] {
            assert!(wants(Images::ControlPlane, name), "{name}");
        }
        assert!(wants(Images::Worker, "kube-proxy.tar") && !wants(Images::Worker, "kube-apiserver.tar"));
        assert!(!wants(Images::ControlPlane, "manifest.json"));
    }
}
