//! An etcd without its majority, brought back: it goes on alone, with its data.
//!
//! ```text
//! check ─▶ stop ─▶ copy ─▶ alone: starts with --force-new-cluster ─▶ settle: starts without ─▶ one member, healthy
//! ```
//! Only when etcd itself says that it has no leader (or answers no client, because it has none), and that the other one of its two members has never started: such a
//! member has no data, and nothing is lost without it. The flag would throw out whoever has joined whenever etcd starts
//! with it: it is taken away again at every end, good or bad. What a power cut leaves is put right by the next try: a
//! manifest outside its folder is put back, and what is left to do is told by what etcd answers. The kubelet reads every
//! file in the folder of its manifests, so nothing is written there but by renaming.
#![expect(clippy::disallowed_methods, reason = "moves manifests, copies data, looks at processes")]

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nkd_api::agent::{KubeadmOrder, NodeFile};
use serde::Deserialize;
use uuid::Uuid;

use super::renew::{arguments, processes, rename, wait};
use super::run::{Diary, Failure, failure, write};
use super::{fit, local};

const FLAG: &str = "--force-new-cluster";
const MANIFEST: &str = "etcd.yaml";
/// Beginning of the names of copies of the data.
const COPY: &str = "etcd-before-recover-";
/// What is to stay free beside a copy, in MiB.
const SPARE: u64 = 256;
/// How long the kubelet may take to end the pod: it looks every 20 s, and gives a pod 30 s.
const STOP: Duration = Duration::from_secs(180);
/// How long etcd may take to answer: the kubelet waits up to five minutes before it starts a pod again that ended.
const ANSWER: Duration = Duration::from_secs(420);

/// Where things are; tests have their own.
struct Node {
    kubernetes: PathBuf,
    proc: PathBuf,
    state: PathBuf,
}

/// What etcd answers its clients.
#[derive(Debug, Deserialize)]
struct Status {
    #[serde(default)]
    leader: String,
    #[serde(default)]
    errors: Vec<String>,
}

impl Status {
    fn has_leader(&self) -> bool {
        !matches!(self.leader.as_str(), "" | "0")
    }
}

/// A member of etcd, as it tells its peers.
#[derive(Debug, Deserialize)]
struct Member {
    id: u64,
    #[serde(default)]
    name: String,
}

/// How etcd is.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It has no other member.
    Alone {
        /// It leads, and has no alarm.
        healthy: bool,
    },
    /// It waits for one that never started.
    Waits,
}

pub(super) fn recover(order: &KubeadmOrder, state: &Path, diary: &mut Diary) -> Result<(), Failure> {
    let node = Node { kubernetes: "/etc/kubernetes".into(), proc: "/proc".into(), state: state.to_owned() };
    let ended = bring_back(&node, order.operation, diary);
    // Whatever has happened: never an etcd that throws others out.
    let tidy = node.put_back().and_then(|()| node.unflag()).map_err(|reason| failure("settle", reason));
    ended.and(tidy)
}

fn bring_back(node: &Node, operation: Uuid, diary: &mut Diary) -> Result<(), Failure> {
    let at = |step: &'static str| move |reason: String| failure(step, reason);
    diary.step("check")?;
    node.put_back().map_err(at("check"))?;
    let manifest = node.manifest().map_err(at("check"))?;
    let standing = node.first_answer().map_err(at("check"))?;
    if standing == Standing::Waits {
        if !is_flagged(&manifest) {
            let flagged = with_flag(&manifest).map_err(at("check"))?;
            diary.step("stop")?;
            node.stop(&manifest).map_err(at("stop"))?;
            diary.step("copy")?;
            node.copy(&manifest, operation).map_err(at("copy"))?;
            node.place(&flagged).map_err(at("alone"))?;
        }
        diary.step("alone")?;
        node.wait_until(|node| match node.standing()? {
            Standing::Alone { .. } => Ok(()),
            Standing::Waits => Err("etcd still waits for the member that never started".to_owned()),
        })
        .map_err(at("alone"))?;
    }
    diary.step("settle")?;
    node.unflag().map_err(at("settle"))?;
    node.wait_until(Node::is_settled).map_err(at("settle"))
}

impl Node {
    fn place_of_manifest(&self) -> PathBuf {
        self.kubernetes.join("manifests").join(MANIFEST)
    }

    fn aside(&self) -> PathBuf {
        self.kubernetes.join("nkd-recover")
    }

    fn manifest(&self) -> Result<String, String> {
        let path = self.place_of_manifest();
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Puts the manifest back that a run before has moved out; one that is in its place is the newer one.
    fn put_back(&self) -> Result<(), String> {
        let (outside, place) = (self.aside().join(MANIFEST), self.place_of_manifest());
        if outside.exists() && !place.exists() {
            rename(&outside, &place)?;
            sync(&place)?;
        }
        match std::fs::remove_dir_all(self.aside()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("{}: {error}", self.aside().display())),
            _ => Ok(()),
        }
    }

    /// Puts a manifest into its place, whole or not at all.
    fn place(&self, manifest: &str) -> Result<(), String> {
        let new = self.aside().join("new.yaml");
        let file = NodeFile { path: new.display().to_string(), mode: 0o600, contents: manifest.to_owned() };
        write(&file).map_err(|error| format!("{}: {error}", new.display()))?;
        rename(&new, &self.place_of_manifest())?;
        sync(&self.place_of_manifest())?;
        self.put_back()
    }

    /// Takes the flag away, if it is there.
    fn unflag(&self) -> Result<(), String> {
        let manifest = self.manifest()?;
        if is_flagged(&manifest) { self.place(&without_flag(&manifest)) } else { Ok(()) }
    }

    /// Moves the manifest out, until the process is gone.
    fn stop(&self, manifest: &str) -> Result<(), String> {
        let old = self.processes(manifest);
        let aside = self.aside();
        std::fs::create_dir_all(&aside).map_err(|error| format!("{}: {error}", aside.display()))?;
        rename(&self.place_of_manifest(), &aside.join(MANIFEST))?;
        wait(STOP, || match old.iter().any(|(pid, _)| self.proc.join(pid.to_string()).exists()) {
            true => Err("etcd does not end: is the kubelet running?".to_owned()),
            false => Ok(()),
        })
    }

    fn processes(&self, manifest: &str) -> Vec<(u32, Vec<String>)> {
        processes(&self.proc, "etcd", &arguments(&without_flag(manifest)))
    }

    /// Keeps the data as it was, if there is room for it. A copy of this run is from before its first try.
    fn copy(&self, manifest: &str, operation: Uuid) -> Result<(), String> {
        let said = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        let data = argument(manifest, "--data-dir=").ok_or("the manifest of etcd does not say where its data is")?;
        let data = Path::new(&data);
        let name = format!("{COPY}{operation}");
        let (copy, part) = (self.state.join(&name), self.state.join(format!("{name}.part")));
        if copy.exists() {
            return Ok(());
        }
        for old in std::fs::read_dir(&self.state).map_err(|error| said(&self.state, error))?.flatten() {
            if old.file_name().to_string_lossy().starts_with(COPY) && old.path().extension().is_some() {
                std::fs::remove_dir_all(old.path()).map_err(|error| said(&old.path(), error))?;
            }
        }
        let wanted = (size(data).map_err(|error| said(data, error))? >> 20) + SPARE;
        if let Err(reason) = fit::free(&self.state, wanted) {
            println!("the data of etcd is not copied before: {reason}");
            return Ok(());
        }
        copy_folder(data, &part).map_err(|error| said(&part, error))?;
        rename(&part, &copy)?;
        sync(&copy)?;
        for old in std::fs::read_dir(&self.state).map_err(|error| said(&self.state, error))?.flatten() {
            if old.file_name().to_string_lossy().starts_with(COPY) && old.path() != copy {
                std::fs::remove_dir_all(old.path()).map_err(|error| said(&old.path(), error))?;
            }
        }
        println!("the data of etcd as it was: {}", copy.display());
        Ok(())
    }

    /// How etcd is, or why that is nothing to bring back. Started without a majority it answers its peers alone.
    fn standing(&self) -> Result<Standing, String> {
        let manifest = self.manifest()?;
        let name = argument(&manifest, "--name=").ok_or("the manifest of etcd does not name its node")?;
        let unread = |error: serde_json::Error| format!("the answer of etcd does not read: {error}");
        let members: Vec<Member> = serde_json::from_slice(&self.members(&manifest)?).map_err(unread)?;
        let status = local::etcd(&self.kubernetes, "maintenance/status").ok();
        let status = status.map(|status| serde_json::from_slice(&status).map_err(unread)).transpose()?;
        standing(&name, status.as_ref(), &members)
    }

    fn members(&self, manifest: &str) -> Result<Vec<u8>, String> {
        members(&self.kubernetes, manifest)
    }

    /// Waits for etcd to answer at all; what it then says counts, at once.
    fn first_answer(&self) -> Result<Standing, String> {
        self.wait_until(|node| node.members(&node.manifest()?).map(drop))?;
        self.standing()
    }

    fn wait_until(&self, look: impl Fn(&Self) -> Result<(), String>) -> Result<(), String> {
        wait(ANSWER, || look(self))
    }

    /// It runs without the flag, alone, and is healthy.
    fn is_settled(&self) -> Result<(), String> {
        let running = self.processes(&self.manifest()?);
        if running.is_empty() {
            return Err("etcd does not run".to_owned());
        }
        if running.iter().any(|(_, words)| words.iter().any(|word| word.starts_with(FLAG))) {
            return Err(format!("etcd still runs with {FLAG}"));
        }
        match self.standing()? {
            Standing::Alone { healthy: true } => Ok(()),
            Standing::Alone { healthy: false } => Err("etcd is not healthy yet".to_owned()),
            Standing::Waits => Err("etcd waits for another member again".to_owned()),
        }
    }
}

/// The members by the word of the node's own etcd, which tells its peers without a majority too.
fn members(kubernetes: &Path, manifest: &str) -> Result<Vec<u8>, String> {
    let url = argument(manifest, "--listen-peer-urls=").unwrap_or_default();
    let address = url.split(',').next().and_then(|url| url.strip_prefix("https://")?.parse().ok());
    let address = address.ok_or("the manifest of etcd does not say where its peers reach it")?;
    local::peer(kubernetes, address, "/members")
}

/// What a node's own etcd says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Etcd {
    /// Nothing.
    Silent,
    /// It runs, and waits for others.
    NoMajority,
    /// It runs in its majority.
    HasLeader,
}

/// Asks the etcd of the node at `root` that this manifest is of.
pub(crate) fn own_etcd(root: &Path, manifest: &str) -> Etcd {
    let kubernetes = root.join("etc/kubernetes");
    let status = local::etcd(&kubernetes, "maintenance/status").ok();
    let status = status.and_then(|status| serde_json::from_slice(&status).ok());
    own(status.as_ref(), || members(&kubernetes, manifest).is_ok())
}

fn own(status: Option<&Status>, answers_peers: impl Fn() -> bool) -> Etcd {
    match status {
        Some(status) if status.has_leader() => Etcd::HasLeader,
        Some(_) => Etcd::NoMajority,
        None if answers_peers() => Etcd::NoMajority,
        None => Etcd::Silent,
    }
}

/// Without a status there is no leader: it would answer its clients.
fn standing(name: &str, status: Option<&Status>, members: &[Member]) -> Result<Standing, String> {
    let has_leader = status.is_some_and(Status::has_leader);
    let refused = |why: &str| Err(format!("nothing of etcd may be given up here: {why}"));
    let (me, others): (Vec<_>, Vec<_>) = members.iter().partition(|member| member.name == name);
    let [me] = me.as_slice() else { return refused("it does not count itself among its members") };
    match others.as_slice() {
        [] => {
            let leads = |status: &Status| status.leader == me.id.to_string() && status.errors.is_empty();
            Ok(Standing::Alone { healthy: status.is_some_and(leads) })
        }
        [other] if !other.name.is_empty() => refused(&format!("its other member, {}, has started", other.name)),
        [_] if has_leader => refused("it has its majority"),
        [_] => Ok(Standing::Waits),
        others => refused(&format!("it has {} other members", others.len())),
    }
}

/// The value of a plain argument in the manifest.
fn argument(manifest: &str, flag: &str) -> Option<String> {
    arguments(manifest).into_iter().find_map(|word| word.strip_prefix(flag).map(str::to_owned))
}

fn is_flag(line: &str) -> bool {
    line.trim().strip_prefix("- ").is_some_and(|word| word.starts_with(FLAG))
}

fn is_flagged(manifest: &str) -> bool {
    manifest.lines().any(is_flag)
}

/// The manifest with the flag as etcd's first argument.
fn with_flag(manifest: &str) -> Result<String, String> {
    let program = |line: &&str| line.trim() == "- etcd";
    if manifest.lines().filter(program).count() != 1 {
        return Err("the manifest of etcd is none of kubeadm's: no line is `- etcd`".to_owned());
    }
    let line = |line: &str| match program(&line) {
        true => format!("{line}\n{}- {FLAG}=true\n", &line[..line.len() - line.trim_start().len()]),
        false => format!("{line}\n"),
    };
    Ok(manifest.lines().map(line).collect())
}

fn without_flag(manifest: &str) -> String {
    manifest.split_inclusive('\n').filter(|line| !is_flag(line)).collect()
}

/// A name in a folder outlives a power cut when the folder is on the disk.
fn sync(path: &Path) -> Result<(), String> {
    let Some(folder) = path.parent() else { return Ok(()) };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| format!("{}: {error}", folder.display()))
}

fn size(folder: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let of = entry.metadata()?;
        sum += if of.is_dir() { size(&entry.path())? } else { of.len() };
    }
    Ok(sum)
}

/// For root alone, on the disk when it returns.
fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_etcd_without_its_majority_is_told_from_one_that_does_not_run() {
        let status = |leader: &str| Status { leader: leader.into(), errors: Vec::new() };
        for (status, peers, expected) in [
            (Some(status("7")), true, Etcd::HasLeader),
            (Some(status("0")), true, Etcd::NoMajority),
            (Some(status("")), true, Etcd::NoMajority),
            (None, true, Etcd::NoMajority),
            (None, false, Etcd::Silent),
        ] {
            assert_eq!(own(status.as_ref(), || peers), expected, "{status:?}");
        }
    }

    const KUBEADMS: &str = "kind: Pod\nmetadata:\n  name: etcd\nspec:\n  containers:\n  - command:\n    - etcd\n    - --data-dir=DATA\n    - --name=cp1\n    image: e\n";

    fn node() -> (tempfile::TempDir, Node) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let node = Node { kubernetes: at("kubernetes"), proc: at("proc"), state: at("state") };
        for folder in [node.kubernetes.join("manifests"), node.proc.clone(), node.state.clone(), at("data/member/wal")]
        {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(at("data/member/wal/0.wal"), "log").unwrap();
        let manifest = KUBEADMS.replace("DATA", &at("data").display().to_string());
        std::fs::write(node.place_of_manifest(), manifest).unwrap();
        (dir, node)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_flag_comes_and_goes_and_nothing_else_changes() {
        let flagged = with_flag(KUBEADMS).unwrap();
        assert!(flagged.contains("    - etcd\n    - --force-new-cluster=true\n    - --data-dir=DATA\n"), "{flagged}");
        assert!(is_flagged(&flagged) && !is_flagged(KUBEADMS));
        assert_eq!(without_flag(&flagged), KUBEADMS);
        assert_eq!(without_flag(KUBEADMS), KUBEADMS);
        assert!(with_flag("kind: Pod\n").unwrap_err().contains("none of kubeadm's"));
        assert_eq!(argument(&flagged, "--name=").as_deref(), Some("cp1"));
    }

    #[test]
    fn only_an_etcd_that_waits_for_one_that_never_started_is_brought_back() {
        let ask = |leader: Option<&str>, members: &[(u64, &str)]| {
            let status = leader.map(|leader| Status { leader: leader.into(), errors: Vec::new() });
            let member = |(id, name): &(u64, &str)| Member { id: *id, name: (*name).into() };
            standing("cp1", status.as_ref(), &members.iter().map(member).collect::<Vec<_>>())
        };
        for leader in [None, Some(""), Some("0")] {
            assert_eq!(ask(leader, &[(8, ""), (7, "cp1")]), Ok(Standing::Waits));
            assert_eq!(ask(leader, &[(7, "cp1")]), Ok(Standing::Alone { healthy: false }));
        }
        assert_eq!(ask(Some("7"), &[(7, "cp1")]), Ok(Standing::Alone { healthy: true }));
        for (leader, members, why) in [
            (None, &[(7, "cp1"), (8, "cp2")][..], "cp2, has started"),
            (Some("7"), &[(7, "cp1"), (8, "")], "has its majority"),
            (None, &[(7, "cp1"), (8, ""), (9, "")], "2 other members"),
            (None, &[(7, "cp3"), (8, "")], "itself"),
            (None, &[(7, "cp1"), (8, "cp1")], "itself"),
        ] {
            let told = ask(leader, members).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
        let alarm = Status { leader: "7".into(), errors: vec!["alarm:NOSPACE".into()] };
        let alone = [Member { id: 7, name: "cp1".into() }];
        assert_eq!(standing("cp1", Some(&alarm), &alone), Ok(Standing::Alone { healthy: false }));
        let text = r#"{"header":{"member_id":"7"},"version":"3.4.13","errors":["etcdserver: no leader"]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!((status.leader.as_str(), status.errors.len()), ("", 1));
        let text = r#"[{"id":7983712020244230872,"peerURLs":["https://192.0.2.12:2380"]}]"#;
        let members: Vec<Member> = serde_json::from_str(text).unwrap();
        assert_eq!((members[0].id, members[0].name.as_str()), (7_983_712_020_244_230_872, ""));
    }

    /// The kubelet sees the one or the other manifest and no third file, wherever the run ends.
    #[test]
    fn wherever_it_is_cut_off_the_next_try_finds_a_manifest_in_its_place() {
        let (_dir, node) = node();
        let manifest = node.manifest().unwrap();
        let folder = node.kubernetes.join("manifests");
        node.stop(&manifest).unwrap();
        assert_eq!(names(&folder), Vec::<String>::new());
        node.put_back().unwrap();
        assert_eq!((names(&folder), node.manifest().unwrap()), (vec![MANIFEST.to_owned()], manifest.clone()));

        // Cut off when the new one was in its place, and the old one still outside.
        node.stop(&manifest).unwrap();
        std::fs::write(node.place_of_manifest(), with_flag(&manifest).unwrap()).unwrap();
        node.put_back().unwrap();
        assert!(is_flagged(&node.manifest().unwrap()) && !node.aside().exists());
        node.unflag().unwrap();
        assert_eq!((names(&folder), node.manifest().unwrap()), (vec![MANIFEST.to_owned()], manifest));
        node.unflag().unwrap();
        assert!(!node.aside().exists());
    }

    #[test]
    fn the_flag_of_the_process_counts_not_only_that_of_the_manifest() {
        let (dir, node) = node();
        assert_eq!(node.is_settled(), Err("etcd does not run".to_owned()));
        let data = format!("--data-dir={}", dir.path().join("data").display());
        let folder = node.proc.join("7");
        std::fs::create_dir_all(&folder).unwrap();
        let words = ["etcd", "--force-new-cluster=true", &data, "--name=cp1", ""];
        std::fs::write(folder.join("cmdline"), words.join("\0")).unwrap();
        assert!(node.is_settled().unwrap_err().contains("still runs with"));
    }

    #[test]
    fn the_data_is_copied_once_a_run_and_only_the_newest_copy_is_kept() {
        let (dir, node) = node();
        let manifest = node.manifest().unwrap();
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        std::fs::create_dir_all(node.state.join(format!("{COPY}{first}.part/half"))).unwrap();
        node.copy(&manifest, first).unwrap();
        let copy = node.state.join(format!("{COPY}{first}"));
        let log = copy.join("member/wal/0.wal");
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "log");
        assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(dir.path().join("data/member/wal/0.wal"), "forced").unwrap();
        node.copy(&manifest, first).unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "log", "as it was before the first try");
        node.copy(&manifest, second).unwrap();
        assert_eq!(names(&node.state), [format!("{COPY}{second}")]);
    }
}
