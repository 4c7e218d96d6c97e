//! The programs of this node's own etcd, run where it runs: in the root of its container, which may hold libraries that the
//! node does not, but with a folder of the node's as working directory.
//!
//! An etcd that only has to be asked gets a network of its own, with nothing in it, and listens on sockets in its folder.
//! Whatever is started here ends with us, also when we are killed.
#![expect(clippy::disallowed_methods, reason = "runs programs, looks at files")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::proof::{self, Content, KEYS, KUBE_SYSTEM, Saved};
use super::renew::{arguments, processes};
use super::run::PATH;

/// Folders of a container that programs lie in.
const FOLDERS: [&str; 5] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/"];
/// The file that is saved, in the working directory.
pub(super) const SNAPSHOT: &str = "snapshot.db";
/// Data of the etcd that is restored, there too.
const DATA: &str = "data";
/// Its sockets; etcd wants them to look like a host and a port.
const CLIENT: &str = "unix://client:1";
const PEER: &str = "unix://peer:1";
/// The peer that it would be for others, if there were any.
const NOBODY: &str = "http://127.0.0.1:1";
/// What etcd says of a revision that it has forgotten.
const COMPACTED: &str = "required revision has been compacted";
/// How long a question may take.
const ANSWER: Duration = Duration::from_secs(60);
/// How long saving or restoring may take.
const COPY: Duration = Duration::from_secs(20 * 60);
/// How long an etcd may take to start on what was restored.
const START: Duration = Duration::from_secs(300);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The programs of the etcd that runs.
pub(super) struct Programs {
    root: PathBuf,
    etcd: String,
    etcdctl: String,
    /// Which restores: `etcdutl` of etcd 3.5 and later, before that `etcdctl`.
    restores: String,
    /// How the one that runs is asked.
    live: Vec<String>,
    /// Where its data is, as it calls it.
    data: String,
}

impl Programs {
    /// Those of the etcd that kubeadm made. `kubernetes`: kubeadm's folder.
    pub(super) fn of_node(kubernetes: &Path, proc: &Path) -> Result<Self, String> {
        let path = kubernetes.join("manifests/etcd.yaml");
        let manifest = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let words = arguments(&manifest);
        let running = processes(proc, "etcd", &words);
        let (pid, _) = running.first().ok_or("etcd does not run on this node")?;
        Self::new(proc.join(pid.to_string()).join("root"), &words)
    }

    pub(super) fn new(root: PathBuf, arguments: &[String]) -> Result<Self, String> {
        let argument = |flag: &str| arguments.iter().find_map(|word| word.strip_prefix(flag).map(str::to_owned));
        let find = |name: &str| {
            let places = FOLDERS.iter().map(|folder| format!("{}/{name}", folder.trim_end_matches('/')));
            places.into_iter().find(|place| root.join(place.trim_start_matches('/')).is_file())
        };
        let missing = |name: &str| format!("{name} is not in the image of this node's etcd");
        let etcdctl = find("etcdctl").ok_or_else(|| missing("etcdctl"))?;
        let urls = argument("--listen-client-urls=").ok_or("the manifest of etcd does not say where it listens")?;
        let local = urls.split(',').find(|url| url.contains("//127.0.0.1:")).or(urls.split(',').next());
        let mut live = vec![format!("--endpoints={}", local.unwrap_or_default())];
        let keys = [("--trusted-ca-file=", "--cacert="), ("--cert-file=", "--cert="), ("--key-file=", "--key=")];
        live.extend(keys.iter().filter_map(|(flag, own)| Some(format!("{own}{}", argument(flag)?))));
        Ok(Self {
            etcd: find("etcd").ok_or_else(|| missing("etcd"))?,
            restores: find("etcdutl").unwrap_or_else(|| etcdctl.clone()),
            etcdctl,
            live,
            data: argument("--data-dir=").ok_or("the manifest of etcd does not say where its data is")?,
            root,
        })
    }

    /// Whether the one that runs answers.
    pub(super) fn answers(&self, folder: &Path) -> Result<(), String> {
        let live: Vec<&str> = self.live.iter().map(String::as_str).collect();
        self.range(folder, &live, &[KUBE_SYSTEM]).map(drop)
    }

    /// Bytes of its database.
    pub(super) fn size(&self) -> Result<u64, String> {
        let path = self.root.join(self.data.trim_start_matches('/')).join("member/snap/db");
        Ok(std::fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?.len())
    }

    /// Saves a snapshot as [`SNAPSHOT`] in the folder.
    pub(super) fn save(&self, folder: &Path) -> Result<Saved, String> {
        let words: Vec<&str> = self.live.iter().map(String::as_str).chain(["snapshot", "save", SNAPSHOT]).collect();
        self.run(folder, &self.etcdctl, &words, COPY)?;
        proof::saved(&self.run(folder, &self.restores, &["snapshot", "status", SNAPSHOT, "-w", "json"], COPY)?)
    }

    /// Restores it into a folder beside it, and starts an etcd there.
    pub(super) fn restore(&self, folder: &Path) -> Result<Restored<'_>, String> {
        let (data, peer) = (format!("--data-dir={DATA}"), format!("--initial-advertise-peer-urls={NOBODY}"));
        let cluster = format!("--initial-cluster=nkd={NOBODY}");
        let own = [data.as_str(), "--name=nkd", &cluster, &peer];
        self.run(folder, &self.restores, &[&["snapshot", "restore", SNAPSHOT], &own[..]].concat(), COPY)?;
        let listen = [
            format!("--listen-client-urls={CLIENT}"),
            format!("--advertise-client-urls={CLIENT}"),
            format!("--listen-peer-urls={PEER}"),
        ];
        let mut command = self.command(folder, true, &self.etcd);
        command.args(own).args(listen);
        let log = File::create(folder.join("etcd.log")).map_err(|error| format!("{}: {error}", folder.display()))?;
        let both = log.try_clone().map_err(|error| error.to_string())?;
        let child = command.stdout(both).stderr(log).spawn();
        let child = child.map_err(|error| format!("an etcd of what was restored could not be run: {error}"))?;
        Ok(Restored { programs: self, folder: folder.to_owned(), child })
    }

    /// What the running etcd held at a revision, or why it does not say so. It remembers a revision for some minutes.
    pub(super) fn content_at(&self, folder: &Path, revision: u64) -> Result<Content, String> {
        let live: Vec<&str> = self.live.iter().map(String::as_str).collect();
        self.content(folder, &live, revision).map_err(|reason| match reason.contains(COMPACTED) {
            true => format!("it has forgotten revision {revision} already"),
            false => reason,
        })
    }

    fn content(&self, folder: &Path, of: &[&str], revision: u64) -> Result<Content, String> {
        let at = format!("--rev={revision}");
        let (now, keys) = self.range(folder, of, &[KEYS, "--prefix", "--limit=1", &at])?;
        let words = [of, &["endpoint", "hashkv", &at, "-w", "json"]].concat();
        let hash = match self.run(folder, &self.etcdctl, &words, ANSWER) {
            Err(reason) if reason.contains(COMPACTED) => None,
            text => Some(proof::hash(&text?)?),
        };
        Ok(Content { revision: now, keys, hash })
    }

    fn range(&self, folder: &Path, of: &[&str], what: &[&str]) -> Result<(u64, u64), String> {
        let words = [of, &["get", "--keys-only", "-w", "json"], what].concat();
        proof::range(&self.run(folder, &self.etcdctl, &words, ANSWER)?)
    }

    fn command(&self, folder: &Path, apart: bool, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.env_clear().env("PATH", PATH).env("ETCDCTL_API", "3").stdin(Stdio::null());
        command.args(["--pdeathsig", "KILL"]);
        if apart {
            command.args(["unshare", "--net"]);
        }
        // Since util-linux 2.41 it enters no root alone, without a namespace: this one it is in already.
        command.args(["nsenter", OWN_NAMESPACE]).arg(format!("--root={}", self.root.display()));
        command.arg(format!("--wd={}", folder.display())).arg("--").arg(program);
        command
    }

    /// Runs a program to its end; what it wrote to its standard output.
    fn run(&self, folder: &Path, program: &str, words: &[&str], limit: Duration) -> Result<String, String> {
        // Files, so that neither of the two can fill up and keep it waiting.
        let said = |error: std::io::Error| format!("{}: {error}", folder.display());
        let [out, err] = ["out", "err"].map(|name| folder.join(name));
        let mut command = self.command(folder, false, program);
        command.args(words).stdout(File::create(&out).map_err(said)?).stderr(File::create(&err).map_err(said)?);
        let child = command.spawn().map_err(|error| format!("`{program}` could not be run: {error}"))?;
        let mut child = Ended(child);
        let end = Instant::now() + limit;
        let status = loop {
            match child.0.try_wait().map_err(|error| error.to_string())? {
                Some(status) => break status,
                None if Instant::now() < end => sleep(LOOK),
                None => return Err(format!("`{program}` did not end within {} s", limit.as_secs())),
            }
        };
        let text = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        match status.success() {
            true => Ok(text(&out)),
            false => Err(format!("`{program}` ended with {status}: {}", told(&text(&err)))),
        }
    }
}

/// A namespace that a program is in, for `nsenter`.
const OWN_NAMESPACE: &str = "--uts=/proc/self/ns/uts";

/// An etcd on what was restored. It ends when this is dropped.
pub(super) struct Restored<'a> {
    programs: &'a Programs,
    folder: PathBuf,
    child: Child,
}

impl Restored<'_> {
    /// Waits until it answers; its version.
    pub(super) fn version(&mut self) -> Result<String, String> {
        let end = Instant::now() + START;
        let words = [&format!("--endpoints={CLIENT}"), "endpoint", "status", "-w", "json"];
        loop {
            let answer = self.programs.run(&self.folder, &self.programs.etcdctl, &words, ANSWER);
            let reason = match answer.and_then(|text| proof::version(&text)) {
                Ok(version) => return Ok(version),
                Err(reason) => reason,
            };
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                let log = std::fs::read_to_string(self.folder.join("etcd.log")).unwrap_or_default();
                return Err(format!("the etcd of what was restored ended with {status}: {}", told(&log)));
            }
            if Instant::now() >= end {
                return Err(format!("the etcd of what was restored does not answer: {reason}"));
            }
            sleep(LOOK);
        }
    }

    /// What it holds at a revision, and whether `kube-system` is among it.
    pub(super) fn content(&self, revision: u64) -> Result<(Content, u64), String> {
        let of = format!("--endpoints={CLIENT}");
        let content = self.programs.content(&self.folder, &[&of], revision)?;
        let (_, kube_system) = self.programs.range(&self.folder, &[&of], &[KUBE_SYSTEM])?;
        Ok((content, kube_system))
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that does not outlive whoever waits for it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Most of the time it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why a program failed, as it says itself: its error, or the last line.
fn told(text: &str) -> String {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find_map(|line| line.strip_prefix("Error: ")).or_else(|| lines().next_back());
    let line = line.unwrap_or("it said nothing");
    line[..line.floor_char_boundary(600)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_the_root_of_the_container_and_asked_as_the_manifest_says() {
        let root = tempfile::tempdir().unwrap();
        let place = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        let words = |all: &[&str]| all.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let kubeadms = words(&[
            "--cert-file=/etc/kubernetes/pki/etcd/server.crt",
            "--data-dir=/var/lib/etcd",
            "--key-file=/etc/kubernetes/pki/etcd/server.key",
            "--listen-client-urls=https://192.0.2.11:2379,https://127.0.0.1:2379",
            "--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
        ]);
        let made = |words: &[String]| Programs::new(root.path().to_owned(), words);
        assert!(made(&kubeadms).err().unwrap().contains("etcdctl is not in the image"));
        ["usr/local/bin/etcd", "usr/local/bin/etcdctl"].into_iter().for_each(place);
        let programs = made(&kubeadms).ok().unwrap();
        assert_eq!(programs.restores, "/usr/local/bin/etcdctl");
        let wanted = [
            "--endpoints=https://127.0.0.1:2379",
            "--cacert=/etc/kubernetes/pki/etcd/ca.crt",
            "--cert=/etc/kubernetes/pki/etcd/server.crt",
            "--key=/etc/kubernetes/pki/etcd/server.key",
        ];
        assert_eq!(programs.live, wanted);
        place("usr/local/bin/etcdutl");
        assert_eq!(made(&kubeadms).ok().unwrap().restores, "/usr/local/bin/etcdutl");
        assert!(made(&words(&["--data-dir=/d"])).err().unwrap().contains("where it listens"));
    }

    #[test]
    fn the_reason_is_the_error_and_not_the_log() {
        assert_eq!(told("{\"level\":\"info\"}\nError: expected sha256 [1], got [2]\n"), "expected sha256 [1], got [2]");
        assert_eq!(told("a\nb\n\n"), "b");
        assert_eq!(told(""), "it said nothing");
    }
}
