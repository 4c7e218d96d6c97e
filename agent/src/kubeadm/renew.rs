//! New certificates in place of those that kubeadm made on a control plane.
//!
//! kubeadm renews them all, and leaves it to the administrator to restart the static pods, which read theirs when they
//! start. So their manifests are moved out of the kubelet's sight until the old processes are gone, and in again, as
//! kubeadm's documentation has it. The run is done when every pod runs anew and is Ready, and the API server shows the
//! new certificate. Manifests that a power cut left outside are put back first. Nothing is ever reset here.
#![expect(clippy::disallowed_methods, reason = "moves manifests, looks at processes, waits")]

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use nkd_api::agent::{KubeadmOrder, NodeFile};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::local;
use super::run::{CONFIG, Diary, Failure, command, failure, write};

/// What kubeadm runs as static pods. Others in the same folder are somebody else's, and stay.
pub(crate) const COMPONENTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// How long the kubelet may take to end a pod: it looks every 20 s, and gives a pod 30 s.
const STOP: Duration = Duration::from_secs(180);
/// How long everything may take to come back.
const START: Duration = Duration::from_secs(420);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Where things are; tests have their own.
struct Node {
    kubernetes: PathBuf,
    proc: PathBuf,
}

/// A static pod of kubeadm's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Component {
    name: &'static str,
    /// Its arguments, as far as they are plain.
    arguments: Vec<String>,
}

pub(super) fn renew(order: &KubeadmOrder, diary: &mut Diary) -> Result<(), Failure> {
    let node = Node { kubernetes: "/etc/kubernetes".into(), proc: "/proc".into() };
    diary.step("restore")?;
    node.put_back().map_err(|reason| failure("restore", reason))?;
    diary.step("certs")?;
    let config = NodeFile { path: CONFIG.into(), mode: 0o600, contents: order.config.clone() };
    write(&config).map_err(|error| failure("certs", format!("{CONFIG}: {error}")))?;
    command("certs", "kubeadm", &["certs", "renew", "all", &format!("--config={CONFIG}")], |_| Ok(()))?;
    diary.step("restart")?;
    let components = node.components().map_err(|reason| failure("restart", reason))?;
    let since = node.restart(&components).map_err(|reason| failure("restart", reason))?;
    diary.step("verify")?;
    node.verify(&components, since).map_err(|reason| failure("verify", reason))
}

impl Node {
    fn manifests(&self) -> PathBuf {
        self.kubernetes.join("manifests")
    }

    fn aside(&self) -> PathBuf {
        self.kubernetes.join("nkd-renewal")
    }

    fn components(&self) -> Result<Vec<Component>, String> {
        let read = |name: &'static str| {
            let path = self.manifests().join(format!("{name}.yaml"));
            let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(Component { name, arguments: arguments(&text) })
        };
        COMPONENTS.into_iter().map(read).collect()
    }

    /// Moves the manifests out until the old processes are gone, and in again, whatever happens. When they came back.
    fn restart(&self, components: &[Component]) -> Result<SystemTime, String> {
        let of = |component: &Component| processes(&self.proc, component.name, &component.arguments);
        let old: Vec<u32> = components.iter().flat_map(of).map(|(pid, _)| pid).collect();
        let gone = self.move_out(components).and_then(|()| {
            wait(STOP, || match old.iter().filter(|pid| self.proc.join(pid.to_string()).exists()).count() {
                0 => Ok(()),
                left => Err(format!("{left} of its {} processes do not end: is the kubelet running?", old.len())),
            })
        });
        let since = SystemTime::now();
        self.put_back()?;
        gone.map(|()| since)
    }

    fn move_out(&self, components: &[Component]) -> Result<(), String> {
        let aside = self.aside();
        std::fs::create_dir_all(&aside).map_err(|error| format!("{}: {error}", aside.display()))?;
        for component in components {
            let name = format!("{}.yaml", component.name);
            rename(&self.manifests().join(&name), &aside.join(&name))?;
        }
        Ok(())
    }

    /// Puts back what is outside. A manifest that is in its place again is the newer one.
    fn put_back(&self) -> Result<(), String> {
        for name in COMPONENTS.map(|name| format!("{name}.yaml")) {
            let (outside, place) = (self.aside().join(&name), self.manifests().join(&name));
            match (outside.exists(), place.exists()) {
                (true, false) => rename(&outside, &place)?,
                (true, true) => std::fs::remove_file(&outside).map_err(|e| format!("{}: {e}", outside.display()))?,
                (false, _) => {}
            }
        }
        match std::fs::remove_dir(self.aside()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", self.aside().display()))
            }
            _ => Ok(()),
        }
    }

    /// Waits until every pod was started after `since` and is Ready, by the word of the API server here, which has to
    /// show the new certificate.
    fn verify(&self, components: &[Component], since: SystemTime) -> Result<(), String> {
        let argument = |name: &str, flag: &str| {
            let component = components.iter().find(|component| component.name == name)?;
            component.arguments.iter().find_map(|argument| argument.strip_prefix(flag)).map(str::to_owned)
        };
        let port = argument("kube-apiserver", "--secure-port=").and_then(|port| port.parse().ok()).unwrap_or(6443);
        let host = argument("etcd", "--name=").ok_or("the manifest of etcd does not name its node")?;
        let since = OffsetDateTime::from(since).replace_nanosecond(0).map_err(|error| error.to_string())?;
        wait(START, || {
            for name in COMPONENTS {
                let path = format!("/api/v1/namespaces/kube-system/pods/{name}-{host}");
                let pod = local::get(&self.kubernetes, port, &path)?;
                let pod: serde_json::Value =
                    serde_json::from_slice(&pod).map_err(|error| format!("{path}: {error}"))?;
                is_new(&pod, since).map_err(|reason| format!("the pod {name}-{host} {reason}"))?;
            }
            Ok(())
        })
    }
}

/// The manifest of the node's own API server, below its root.
pub(crate) const API_SERVER: &str = "etc/kubernetes/manifests/kube-apiserver.yaml";

/// The port of this node's own API server; none: it has none.
pub(crate) fn api_server_port(root: &Path) -> Option<u16> {
    std::fs::read_to_string(root.join(API_SERVER)).ok().map(|manifest| port_of(&manifest))
}

/// The port in the manifest of an API server.
pub(crate) fn port_of(manifest: &str) -> u16 {
    let port = arguments(manifest).iter().find_map(|word| word.strip_prefix("--secure-port=")?.parse().ok());
    port.unwrap_or(6443)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::rename(from, to).map_err(|error| format!("{} to {}: {error}", from.display(), to.display()))
}

/// Looks again and again; the last reason when the time is over.
pub(super) fn wait(limit: Duration, mut look: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Err(_) if Instant::now() < end => sleep(LOOK),
            Err(reason) => return Err(format!("{reason} (after {} s)", limit.as_secs())),
            Ok(()) => return Ok(()),
        }
    }
}

/// The plain arguments in a manifest: `    - --secure-port=6443`.
pub(super) fn arguments(manifest: &str) -> Vec<String> {
    let plain = |line: &str| line.trim().strip_prefix("- ").filter(|word| word.starts_with("--")).map(str::to_owned);
    manifest.lines().filter_map(plain).collect()
}

/// The processes of a static pod, by program and arguments, with their command lines.
pub(super) fn processes(proc: &Path, program: &str, arguments: &[String]) -> Vec<(u32, Vec<String>)> {
    let Ok(entries) = std::fs::read_dir(proc) else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let running = pids.filter_map(|pid: u32| {
        let line = std::fs::read(proc.join(pid.to_string()).join("cmdline")).unwrap_or_default();
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let name = words.first().and_then(|word| word.rsplit('/').next());
        let is_it = name == Some(program) && arguments.iter().all(|argument| words.contains(argument));
        is_it.then_some((pid, words))
    });
    running.collect()
}

/// The pod is Ready, and its container was started after `since`.
fn is_new(pod: &serde_json::Value, since: OffsetDateTime) -> Result<(), &'static str> {
    let status = &pod["status"];
    let started = status["containerStatuses"][0]["state"]["running"]["startedAt"].as_str();
    let started = started.and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    let ready = |c: &serde_json::Value| c["type"] == "Ready" && c["status"] == "True";
    let ready = status["conditions"].as_array().is_some_and(|all| all.iter().any(ready));
    match started {
        None => Err("does not run"),
        Some(at) if at < since => Err("still runs with its old certificates"),
        Some(_) if !ready => Err("is not Ready"),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - command:\n    - etcd\n    - --name=cp1\n    - --data-dir=/var/lib/etcd\n    - '--quoted=x'\n    image: e\n";

    fn node() -> (tempfile::TempDir, Node) {
        let dir = tempfile::tempdir().unwrap();
        let node = Node { kubernetes: dir.path().join("kubernetes"), proc: dir.path().join("proc") };
        std::fs::create_dir_all(node.manifests()).unwrap();
        for name in COMPONENTS.into_iter().chain(["balancer"]) {
            std::fs::write(
                node.manifests().join(format!("{name}.yaml")),
                MANIFEST.replace("etcd\n    - --name", &format!("{name}\n    - --name")),
            )
            .unwrap();
        }
        (dir, node)
    }

    fn process(node: &Node, pid: u32, words: &[&str]) {
        let folder = node.proc.join(pid.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cmdline"), words.iter().map(|word| format!("{word}\0")).collect::<String>())
            .unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn processes_are_told_by_name_and_arguments() {
        let (_dir, node) = node();
        process(&node, 7, &["/usr/local/bin/etcd", "--name=cp1", "--data-dir=/var/lib/etcd", "--quoted=x"]);
        process(&node, 8, &["etcd", "--name=somebodys", "--data-dir=/var/lib/etcd"]);
        process(&node, 9, &["sh", "-c", "etcd --name=cp1 --data-dir=/var/lib/etcd"]);
        let etcd = &node.components().unwrap()[0];
        assert_eq!(etcd.arguments, ["--name=cp1", "--data-dir=/var/lib/etcd"]);
        let found = processes(&node.proc, etcd.name, &etcd.arguments);
        assert_eq!(found.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), [7]);
        assert!(found[0].1.contains(&"--quoted=x".to_owned()));
    }

    #[test]
    fn manifests_go_out_until_the_processes_are_gone_and_come_back() {
        let (_dir, node) = node();
        let before = names(&node.manifests());
        process(&node, 7, &["etcd", "--name=cp1", "--data-dir=/var/lib/etcd"]);
        let (manifests, proc) = (node.manifests(), node.proc.join("7"));
        // The kubelet: it ends the process once the manifest is away.
        let kubelet = std::thread::spawn(move || {
            while manifests.join("etcd.yaml").exists() {
                std::thread::yield_now();
            }
            assert!(manifests.join("balancer.yaml").exists(), "somebody else's stays");
            std::fs::remove_dir_all(proc).unwrap();
        });
        let components = node.components().unwrap();
        node.restart(&components).unwrap();
        kubelet.join().unwrap();
        assert_eq!(names(&node.manifests()), before);
        assert!(!node.aside().exists());
    }

    #[test]
    fn what_a_power_cut_left_outside_is_put_back() {
        let (_dir, node) = node();
        let before = names(&node.manifests());
        node.move_out(&node.components().unwrap()).unwrap();
        assert_eq!(names(&node.manifests()), ["balancer.yaml"]);
        // One of them was written anew meanwhile: that one counts.
        std::fs::write(node.manifests().join("etcd.yaml"), "newer").unwrap();
        node.put_back().unwrap();
        assert_eq!(names(&node.manifests()), before);
        assert_eq!(std::fs::read_to_string(node.manifests().join("etcd.yaml")).unwrap(), "newer");
        assert!(!node.aside().exists());
        node.put_back().unwrap();
    }

    #[test]
    fn a_pod_counts_when_it_was_started_anew_and_is_ready() {
        let since = datetime!(2026-03-01 12:00:00 UTC);
        let pod = |started: &str, ready: &str| {
            json!({"status": {"conditions": [{"type": "Ready", "status": ready}],
                "containerStatuses": [{"state": {"running": {"startedAt": started}}}]}})
        };
        assert_eq!(is_new(&pod("2026-03-01T12:00:00Z", "True"), since), Ok(()));
        assert_eq!(is_new(&pod("2026-03-01T12:00:09Z", "False"), since), Err("is not Ready"));
        assert!(is_new(&pod("2026-03-01T11:59:59Z", "True"), since).unwrap_err().contains("old"));
        assert!(is_new(&json!({"status": {}}), since).is_err());
    }
}
