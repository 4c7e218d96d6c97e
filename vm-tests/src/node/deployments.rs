//! A stand-in for deployments of an operating system on a node of namespaces, which has no boot loader: a program that the
//! updater is given in the place of ostree, and a unit that does at boot what a boot loader and an initramfs do.
//!
//! ```text
//! /var/lib/site-os/trees/<id>/usr/bin/{kubeadm,kubelet}    a release
//! /var/lib/site-os/{booted,default,before,staged,counter}  what a disk and a boot loader know
//! ```
//! The kubelet and the kubeadm of the tree that was chosen lie over those of the node. A tree with a file `no-boot` is
//! one whose kernel does not start.
//!
//! A test may hold a step: with a file `hold-arm`, say, the program says `held-arm` and waits until that file is gone. And
//! it may give the releases little room: what is staged goes into `room`, if there is such a folder.
#![expect(clippy::disallowed_methods, reason = "reads the programs of Kubernetes")]

use std::path::Path;
use std::time::Duration;

use super::Node;
use super::containerd::Images;
use super::spec::Kubernetes;
use crate::Error;

const FOLDER: &str = "/var/lib/site-os";
const PROGRAM: &str = r#"#!/bin/sh
# In the place of ostree: see `nkd-agent --help`.
set -eu
cd /var/lib/site-os
get() { cat "$1" 2>/dev/null || true; }
put() { echo "$2" >"$1.new"; sync "$1.new"; mv "$1.new" "$1"; }
tries=0
while [ -e "hold-$1" ] && [ $tries -lt 3000 ]; do
    : >"held-$1"
    sleep 0.1
    tries=$((tries + 1))
done
rm -f "held-$1"
case $1 in
status)
    booted=$(get booted)
    first=1
    printf '['
    list() {
        [ -n "$1" ] || return 0
        [ $first = 1 ] || printf ','
        first=0
        flag=false
        [ "$1" != "$booted" ] || [ "$2" = true ] || flag=true
        printf '{"id":"%s","booted":%s,"staged":%s}' "$1" $flag "$2"
    }
    list "$(get /run/site-os-staged)" true
    list "$(get default)" false
    [ "$(get before)" = "$(get default)" ] || list "$(get before)" false
    printf ']\n'
    ;;
stage)
    [ -d "trees/$2" ] || { echo "there is no release $2" >&2; exit 65; }
    [ ! -d room ] || cp "trees/$2/usr/bin/kubeadm" room/
    if [ "$(get booted)" != "$2" ]; then
        rm -f counter /run/site-os-armed
        put default "$(get booted)"
        put /run/site-os-staged "$2"
    fi
    echo "$PWD/trees/$2"
    ;;
arm)
    [ "$(get /run/site-os-staged)" = "$2" ] || { echo "$2 is not staged" >&2; exit 65; }
    put counter 3
    put /run/site-os-armed yes
    ;;
finalize)
    # When the system goes down in order.
    [ -e /run/site-os-armed ] || exit 0
    put before "$(get booted)"
    put default "$(get /run/site-os-staged)"
    ;;
confirm) rm -f counter ;;
revert)
    put before "$(get default)"
    put default "$2"
    rm -f counter
    ;;
discard)
    [ "$(get /run/site-os-staged)" != "$2" ] || rm -f /run/site-os-staged /run/site-os-armed
    put default "$(get booted)"
    put before "$(get booted)"
    rm -f counter
    ;;
boot)
    # The boot loader, and what comes before systemd.
    choice=$(get default)
    counter=$(get counter)
    if [ -n "$counter" ]; then
        if [ "$counter" = 0 ] || [ -e "trees/$choice/no-boot" ]; then
            counter=0
            choice=$(get before)
        else
            counter=$((counter - 1))
        fi
        put counter "$counter"
    fi
    put booted "$choice"
    for name in kubeadm kubelet; do
        mount --bind "trees/$choice/usr/bin/$name" "/usr/bin/$name"
    done
    ;;
esac
"#;
const UNIT: &str = "[Unit]
Description=Stand-in for a boot loader
DefaultDependencies=no
Conflicts=shutdown.target
After=local-fs.target
Before=shutdown.target containerd.service kubelet.service nkd-agent.service nkd-updater.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/etc/site-os boot
ExecStop=/etc/site-os finalize

[Install]
WantedBy=multi-user.target
";
/// In the way of the updater's `systemctl reboot`, which can be held as all else.
const SYSTEMCTL: &str = "#!/bin/sh\n[ \"$1\" != reboot ] || /etc/site-os restart\nexec /usr/bin/systemctl \"$@\"\n";
const DROP_IN: &str = "/etc/systemd/system/nkd-updater.service.d/site-os.conf";
/// How long a node may take to pass its gate, in seconds.
const GATE: u32 = 150;

impl Node {
    /// The next time that its updater wants this of the program (`stage`, `arm`, `confirm`, `revert`, `discard`) or
    /// restarts (`restart`), it waits.
    pub fn hold(&self, verb: &str) -> Result<(), Error> {
        self.shell(&format!("touch {FOLDER}/hold-{verb}"), Duration::from_secs(20)).map(drop)
    }

    /// It is on, and waits there.
    pub fn is_held(&self, verb: &str) -> bool {
        self.power.is_some() && self.on_disk(&format!("held-{verb}")).exists()
    }

    /// It goes on. It may be off.
    pub fn release(&mut self, verb: &str) -> Result<(), Error> {
        if self.is_on() {
            let line = format!("cd {FOLDER} && rm -f hold-{verb}");
            return self.shell(&line, Duration::from_secs(20)).map(drop);
        }
        for name in [format!("hold-{verb}"), format!("held-{verb}")] {
            let path = self.on_disk(&name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("removing {}", path.display()))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The journal of its updater as it is on the disk.
    pub fn update_journal(&self) -> Option<serde_json::Value> {
        let path = self.folder().join("disk/var/upper/lib/nkd-agent/update.json");
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// A file of the deployments, seen from outside.
    fn on_disk(&self, name: &str) -> std::path::PathBuf {
        self.folder().join("disk/var/upper/lib/site-os").join(name)
    }

    /// From now on it has deployments, and runs the one of this name, which it has: see [`Node::lay_out`].
    pub fn deploy(&self, id: &str) -> Result<(), Error> {
        self.write_file("/etc/site-os", 0o755, PROGRAM.as_bytes())?;
        self.write_file("/etc/site-bin/systemctl", 0o755, SYSTEMCTL.as_bytes())?;
        self.write_file("/etc/systemd/system/site-os.service", 0o644, UNIT.as_bytes())?;
        self.configure_updater("", GATE)?;
        let begin = format!(
            "cd {FOLDER} && echo {id} | tee booted default before >/dev/null && systemctl daemon-reload && \
             systemctl enable site-os && systemctl start site-os && systemctl restart nkd-updater"
        );
        self.shell(&begin, Duration::from_secs(60)).map(drop)
    }

    /// Its updater gives a release so many seconds to pass the gate, and has these further lines in its unit. It counts from
    /// the unit's next start.
    pub fn configure_updater(&self, lines: &str, gate: u32) -> Result<(), Error> {
        let path = "Environment=PATH=/etc/site-bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";
        let start = format!("{path}ExecStart=\nExecStart=/usr/bin/nkd-agent update --os /etc/site-os --gate {gate}\n");
        self.write_file(DROP_IN, 0o644, format!("[Service]\n{start}{lines}").as_bytes())?;
        self.shell("systemctl daemon-reload", Duration::from_secs(20)).map(drop)
    }

    /// Another release with the same programs.
    pub fn lay_out_again(&self, id: &str, like: &str) -> Result<(), Error> {
        let line = format!("cd {FOLDER}/trees && rm -rf {id} && cp -al {like} {id}");
        self.shell(&line, Duration::from_secs(20)).map(drop)
    }

    /// A release with this version of Kubernetes is where the updater finds it, and its images are in containerd.
    pub fn lay_out(&self, id: &str, kubernetes: &Path, version: &str, images: Images) -> Result<(), Error> {
        let kubernetes = self.lay_out_programs(id, kubernetes, version)?;
        self.import_images_of(&kubernetes, images, Duration::from_secs(180))
    }

    /// The same for nodes that pull their images.
    pub fn lay_out_without_images(&self, id: &str, kubernetes: &Path, version: &str) -> Result<(), Error> {
        self.lay_out_programs(id, kubernetes, version).map(drop)
    }

    fn lay_out_programs(&self, id: &str, kubernetes: &Path, version: &str) -> Result<Kubernetes, Error> {
        let kubernetes = Kubernetes { folder: kubernetes.to_owned(), version: version.to_owned() };
        for name in ["kubeadm", "kubelet"] {
            let from = kubernetes.version_folder().join(name);
            let bytes = std::fs::read(&from).map_err(Error::io(format!("reading {}", from.display())))?;
            self.write_file(&format!("{FOLDER}/trees/{id}/usr/bin/{name}"), 0o755, &bytes)?;
        }
        Ok(kubernetes)
    }
}
