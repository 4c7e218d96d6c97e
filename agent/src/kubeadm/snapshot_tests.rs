//! Snapshots of a real etcd, in a root of its own as a container has one.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

/// One that was kept at this hour.
fn keep(snapshots: &Snapshots, operation: u128, hour: i64) {
    let file = snapshots.0.join("work.db");
    std::fs::write(&file, "a snapshot").unwrap();
    let (sha256, size) = digest(&file).unwrap();
    let taken_at = OffsetDateTime::UNIX_EPOCH + time::Duration::hours(hour);
    let found = SnapshotProof {
        size,
        sha256,
        revision: 1,
        keys: 1,
        etcd_version: "3.4.23".into(),
        taken_at,
        not_compared: None,
    };
    snapshots.keep(Uuid::from_u128(operation), &file, &found).unwrap();
}

#[test]
fn the_one_that_was_just_kept_stays_whatever_the_clock_said_before() {
    let state = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(state.path());
    drop(snapshots.lock().unwrap());
    let there =
        || -> Vec<u128> { (1..=9).filter(|n| snapshots.find(Uuid::from_u128(*n)).unwrap().is_some()).collect() };
    for (operation, hour) in [(1, 10), (2, 11), (3, 12), (4, 13)] {
        keep(&snapshots, operation, hour);
    }
    assert_eq!(there(), [2, 3, 4], "the newest three");
    // The clock was ahead until now.
    keep(&snapshots, 5, 1);
    assert_eq!(there(), [3, 4, 5]);
    keep(&snapshots, 6, 2);
    assert_eq!(there(), [4, 5, 6], "what it said then counts for less than what it says now");
    keep(&snapshots, 7, 3);
    assert_eq!(there(), [5, 6, 7]);
    // Kept twice, after a kill.
    keep(&snapshots, 5, 1);
    assert_eq!(there(), [5, 6, 7]);
}

/// A running etcd in a root that holds nothing but its programs.
struct World {
    dir: tempfile::TempDir,
    port: u16,
    etcd: Child,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

impl World {
    fn start(port: u16) -> Self {
        let programs = std::env::var_os("NKD_KUBERNETES").map(|folder| PathBuf::from(folder).join("sys/usr/bin"));
        let programs = programs.expect("NKD_KUBERNETES is what `cargo xtask image kubernetes` makes");
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let copy = |from: &Path, to: &str| {
            let to = root.join(to.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        };
        for name in ["etcd", "etcdctl"] {
            copy(&programs.join(name), &format!("usr/bin/{name}"));
            let libraries = Command::new("ldd").arg(programs.join(name)).output().unwrap();
            let libraries = String::from_utf8(libraries.stdout).unwrap();
            libraries
                .split_whitespace()
                .filter(|word| word.starts_with('/'))
                .for_each(|path| copy(Path::new(path), path));
        }
        std::fs::create_dir(root.join("data")).unwrap();
        let mut etcd = Command::new("chroot");
        etcd.arg(&root).arg("/usr/bin/etcd").args(Self::arguments(port)).args([
            format!("--advertise-client-urls=http://127.0.0.1:{port}"),
            format!("--listen-peer-urls=http://127.0.0.1:{}", port + 1),
        ]);
        let log = File::create(dir.path().join("log")).unwrap();
        let etcd = etcd.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let world = Self { dir, port, etcd };
        let end = Instant::now() + Duration::from_secs(60);
        while !world.ctl(&["put", "/registry/pods/a", "1"]) {
            assert!(Instant::now() < end, "{}", std::fs::read_to_string(world.dir.path().join("log")).unwrap());
            std::thread::sleep(Duration::from_millis(100));
        }
        world
    }

    fn arguments(port: u16) -> Vec<String> {
        vec!["--data-dir=/data".to_owned(), format!("--listen-client-urls=http://127.0.0.1:{port}")]
    }

    fn ctl(&self, words: &[&str]) -> bool {
        let mut command = Command::new("chroot");
        command.arg(self.root()).args(["/usr/bin/etcdctl", &format!("--endpoints=http://127.0.0.1:{}", self.port)]);
        command.args(words).env("ETCDCTL_API", "3").output().unwrap().status.success()
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Takes one; `meanwhile` hears each step before it begins.
    fn take(&self, state: &Path, operation: u128, mut meanwhile: impl FnMut(&str)) -> Result<Vec<String>, String> {
        let mut steps = Vec::new();
        let etcd = |_: &Path| Programs::new(self.root(), &Self::arguments(self.port));
        let ended = take(etcd, &Snapshots::new(state), Uuid::from_u128(operation), |step| {
            meanwhile(step);
            steps.push(step.to_owned());
            Ok(())
        });
        assert!(!state.join("etcd-snapshots/work").exists(), "the folder is gone at every end");
        assert_eq!(self.running(), 1, "the etcd of the copy has ended");
        ended.map(|()| steps).map_err(|failure| failure.to_string())
    }

    /// How many etcds have this root.
    fn running(&self) -> usize {
        let of_root = |entry: &std::fs::DirEntry| {
            std::fs::read_link(entry.path().join("root")).is_ok_and(|root| root == self.root())
                && std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "etcd")
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter(of_root).count()
    }
}

#[test]
#[ignore = "needs NKD_KUBERNETES, and root"]
fn the_running_etcd_says_what_it_held_until_it_has_forgotten_that() {
    let world = World::start(23990);
    assert!(world.ctl(&["put", "/registry/pods/b", "1"]));
    let work = tempfile::tempdir().unwrap();
    let etcd = Programs::new(world.root(), &World::arguments(world.port)).unwrap();
    let saved = etcd.save(work.path()).unwrap();
    let live = etcd.content_at(work.path(), saved.revision).unwrap();
    assert_eq!((saved.revision, live.keys, live.hash.is_some()), (3, 2, true));
    assert!(world.ctl(&["del", "/registry/pods/a"]) && world.ctl(&["put", "/registry/pods/c", "1"]));
    assert_eq!(etcd.content_at(work.path(), saved.revision).unwrap().hash, live.hash, "it remembers");
    assert!(world.ctl(&["compact", "5"]));
    let forgotten = etcd.content_at(work.path(), saved.revision).unwrap_err();
    assert_eq!(forgotten, "it has forgotten revision 3 already");
}

fn damage(file: &Path) {
    use std::os::unix::fs::FileExt;
    File::options().write(true).open(file).unwrap().write_all_at(b"XXXX", 9000).unwrap();
}

#[test]
#[ignore = "needs NKD_KUBERNETES, and root"]
fn a_snapshot_counts_once_it_was_restored_and_everything_came_back() {
    let world = World::start(23790);
    let state = tempfile::tempdir().unwrap();
    let at = |name: &str| state.path().join("etcd-snapshots").join(name);
    let refused = world.take(state.path(), 1, |_| {}).unwrap_err();
    assert!(refused.starts_with("prove: ") && refused.contains("kube-system is not in"), "{refused}");
    assert!(world.ctl(&["put", "/registry/namespaces/kube-system", "x"]) && world.ctl(&["put", "/other", "x"]));

    // A run before was cut off, and the etcd goes on being used, and compacted, while the copy is looked at.
    std::fs::create_dir_all(at("work/data/member")).unwrap();
    std::fs::write(at(&format!("{}.json", Uuid::from_u128(9))), "{").unwrap();
    let steps = world.take(state.path(), 2, |step| {
        if step == "restore" {
            assert!(world.ctl(&["put", "/registry/pods/b", "1"]) && world.ctl(&["del", "/registry/pods/a"]));
        }
    });
    assert_eq!(steps.unwrap(), ["check", "save", "restore", "prove", "keep"]);
    let (file, proof) = Snapshots::new(state.path()).find(Uuid::from_u128(2)).unwrap().unwrap();
    assert_eq!((proof.revision, proof.keys, proof.etcd_version.as_str()), (4, 2, "3.4.23"));
    let (sha256, size) = digest(&file).unwrap();
    assert_eq!((proof.sha256, proof.size), (sha256, size));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!at(&format!("{}.json", Uuid::from_u128(9))).exists());
    assert_eq!(world.take(state.path(), 2, |_| {}).unwrap(), ["check"], "it is there already");

    let compacted = world.take(state.path(), 3, |step| {
        if step == "restore" {
            assert!(world.ctl(&["put", "/registry/pods/c", "1"]) && world.ctl(&["compact", "7"]));
        }
    });
    compacted.unwrap();
    // Before it was forgotten, the running etcd was asked.
    let (_, proof) = Snapshots::new(state.path()).find(Uuid::from_u128(3)).unwrap().unwrap();
    assert_eq!((proof.keys, proof.not_compared), (2, None));
    let damaged = world.take(state.path(), 4, |step| {
        if step == "restore" {
            damage(&at("work/snapshot.db"));
        }
    });
    let damaged = damaged.unwrap_err();
    assert!(damaged.starts_with("restore: ") && damaged.contains("expected sha256"), "{damaged}");
    let held = Snapshots::new(state.path()).lock().unwrap();
    assert!(Snapshots::new(state.path()).lock().unwrap_err().contains("another snapshot"));
    drop(held);

    // The newest three stay.
    for operation in [5, 6] {
        world.take(state.path(), operation, |_| {}).unwrap();
    }
    let there = |operation| Snapshots::new(state.path()).find(Uuid::from_u128(operation)).unwrap().is_some();
    assert_eq!([2, 3, 4, 5, 6].map(there), [false, true, false, true, true]);
    assert_eq!(std::fs::read_dir(at("")).unwrap().count(), 7, "three, what was found, and the lock");
}

struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, mebibytes: u32) -> Self {
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={mebibytes}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "nkd-test"]).arg(&path).status().unwrap();
        assert!(done.success());
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs NKD_KUBERNETES, and root"]
fn a_disk_without_room_is_told_before_and_when_it_fills_up_nothing_is_left() {
    let world = World::start(23890);
    assert!(world.ctl(&["put", "/registry/namespaces/kube-system", "x"]));
    let small = SmallDisk::mount(world.dir.path().join("small"), 8);
    let refused = world.take(&small.0, 1, |_| {}).unwrap_err();
    assert!(refused.starts_with("check: ") && refused.contains("MiB are free, and a snapshot of etcd"), "{refused}");

    let disk = SmallDisk::mount(world.dir.path().join("disk"), 280);
    let filler = disk.0.join("filler");
    let full = world.take(&disk.0, 2, |step| {
        if step == "restore" {
            let mut file = File::create(&filler).unwrap();
            assert!(std::io::copy(&mut std::io::repeat(1).take(1 << 30), &mut file).is_err(), "it is full now");
        }
    });
    let full = full.unwrap_err();
    assert!(full.starts_with("restore: ") && full.contains("no space left"), "{full}");
    std::fs::remove_file(&filler).unwrap();
    world.take(&disk.0, 2, |_| {}).unwrap();
}
