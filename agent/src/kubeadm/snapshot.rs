//! A snapshot of etcd, which counts only once an etcd has run on it.
//!
//! ```text
//! check ─▶ save, ask ─▶ restore ─▶ prove: an etcd of the same program on the copy, asked and ended ─▶ keep ─▶ upload (the agent)
//! ```
//! Everything happens in a folder for root alone, which is removed at every end; what a kill or a power cut left there goes
//! when the next run begins, which begins from nothing. The running etcd is only read. What is kept are the newest
//! snapshots with what was found, as `<operation>.db` and `<operation>.json`.
#![expect(clippy::disallowed_methods, reason = "moves files, hashes them, asks the clock")]

use std::fs::{File, Permissions, TryLockError};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nkd_api::Sha256Digest;
use nkd_api::agent::KubeadmOrder;
use nkd_api::snapshot::SnapshotProof;
use time::OffsetDateTime;
use uuid::Uuid;

use super::etcd::{Programs, SNAPSHOT};
use super::renew::wait;
use super::run::{Diary, Failure, failure};
use super::{fit, proof};
use crate::client::chain;
use crate::files::{self, FileError};

/// How long the running etcd may take to answer.
const ANSWER: Duration = Duration::from_secs(300);
/// How many are kept.
const KEPT: usize = 3;
/// What is to stay free beside the snapshot and its restored copy, in MiB; etcd's log takes 64 of them.
const SPARE: u64 = 256;

pub(super) fn snapshot(order: &KubeadmOrder, state: &Path, diary: &mut Diary) -> Result<(), Failure> {
    let etcd = |work: &Path| {
        let mut found = None;
        // After a power cut the run may begin before the kubelet has started it.
        wait(ANSWER, || {
            let etcd = Programs::of_node(Path::new("/etc/kubernetes"), Path::new("/proc"))?;
            etcd.answers(work)?;
            found = Some(etcd);
            Ok(())
        })?;
        found.ok_or_else(|| "etcd does not run on this node".to_owned())
    };
    take(etcd, &Snapshots::new(state), order.operation, |step| diary.step(step))
}

fn take(
    etcd: impl FnOnce(&Path) -> Result<Programs, String>,
    snapshots: &Snapshots,
    operation: Uuid,
    mut step: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let at = |step: &'static str| move |reason: String| failure(step, reason);
    step("check")?;
    let _alone = snapshots.lock().map_err(at("check"))?;
    if snapshots.find(operation).map_err(|error| failure("check", chain(&error)))?.is_some() {
        return Ok(());
    }
    let work = Work::begin(snapshots.0.join("work")).map_err(at("check"))?;
    let etcd = etcd(&work.0).map_err(at("check"))?;
    let wanted = (etcd.size().map_err(at("check"))? >> 20) * 2 + SPARE;
    fit::free_for(&work.0, wanted, "a snapshot of etcd and the copy that proves it need").map_err(at("check"))?;
    step("save")?;
    let taken_at = OffsetDateTime::now_utc();
    let saved = etcd.save(&work.0).map_err(at("save"))?;
    // At once: API servers let etcd forget what is some minutes old, and a large copy takes longer.
    let live = etcd.content_at(&work.0, saved.revision);
    step("restore")?;
    let mut restored = etcd.restore(&work.0).map_err(at("restore"))?;
    step("prove")?;
    let etcd_version = restored.version().map_err(at("prove"))?;
    let (content, kube_system) = restored.content(saved.revision).map_err(at("prove"))?;
    let not_compared = proof::judge(saved, content, kube_system, live).map_err(at("prove"))?;
    drop(restored);
    step("keep")?;
    let file = work.0.join(SNAPSHOT);
    let (sha256, size) = digest(&file).map_err(|error| failure("keep", format!("{}: {error}", file.display())))?;
    let (revision, keys) = (saved.revision, content.keys);
    let found = SnapshotProof { size, sha256, revision, keys, etcd_version, taken_at, not_compared };
    snapshots.keep(operation, &file, &found).map_err(at("keep"))?;
    work.end().map_err(at("keep"))
}

/// The snapshots of this node.
pub(super) struct Snapshots(PathBuf);

impl Snapshots {
    /// In the agent's state directory.
    pub(super) fn new(state: &Path) -> Self {
        Self(state.join("etcd-snapshots"))
    }

    /// The file of a run that ended well, and what was found.
    pub(super) fn find(&self, operation: Uuid) -> Result<Option<(PathBuf, SnapshotProof)>, FileError> {
        let file = self.file(operation);
        let found = files::read_json(&file.with_extension("json"))?;
        Ok(found.filter(|_| file.is_file()).map(|found| (file, found)))
    }

    fn file(&self, operation: Uuid) -> PathBuf {
        self.0.join(format!("{operation}.db"))
    }

    /// A run that the service has given up may still be at work.
    fn lock(&self) -> Result<File, String> {
        files::make_private_dir(&self.0).map_err(|error| chain(&error))?;
        let path = self.0.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err("another snapshot is being taken on this node".to_owned()),
            Err(TryLockError::Error(error)) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Gives it its name when everything is on the disk; older ones than the newest few go.
    fn keep(&self, operation: Uuid, file: &Path, found: &SnapshotProof) -> Result<(), String> {
        let place = self.file(operation);
        let failed = |error: std::io::Error| format!("{}: {error}", place.display());
        let open = File::open(file).map_err(failed)?;
        open.set_permissions(Permissions::from_mode(0o600)).and_then(|()| open.sync_all()).map_err(failed)?;
        files::write_json(&place.with_extension("json"), found).map_err(|error| chain(&error))?;
        std::fs::rename(file, &place).map_err(failed)?;
        File::open(&self.0).and_then(|folder| folder.sync_all()).map_err(failed)?;
        self.prune((found.taken_at, operation)).map_err(failed)
    }

    /// Removes older ones than the newest few, and never the one that was just kept.
    fn prune(&self, new: Taken) -> std::io::Result<()> {
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(&self.0)?.flatten() {
            let path = entry.path();
            let operation = path.file_stem().and_then(|name| name.to_str()?.parse::<Uuid>().ok());
            let Some(operation) = operation else { continue };
            match self.find(operation) {
                Ok(Some((_, found))) => kept.push((found.taken_at, operation)),
                // A half of one, or one that does not read.
                _ => std::fs::remove_file(&path)?,
            }
        }
        for operation in surplus(kept, new) {
            let file = self.file(operation);
            // The file first: what was found says nothing without it.
            std::fs::remove_file(&file)?;
            std::fs::remove_file(file.with_extension("json"))?;
        }
        Ok(())
    }
}

/// When one was taken, and its run.
type Taken = (OffsetDateTime, Uuid);

/// Those that go: all but the new one and the newest others. A date after the new one's is that of a clock which has been set
/// back since, and says nothing: such a one goes before the others.
fn surplus(mut all: Vec<Taken>, new: Taken) -> Vec<Uuid> {
    all.retain(|(_, operation)| *operation != new.1);
    all.sort_unstable_by_key(|(at, operation)| (*at <= new.0, *at, *operation));
    all.dedup();
    all.iter().rev().skip(KEPT - 1).map(|(_, operation)| *operation).collect()
}

/// A folder that is gone when this is.
struct Work(PathBuf);

impl Work {
    fn begin(path: PathBuf) -> Result<Self, String> {
        let work = Self(path);
        work.remove()?;
        files::make_private_dir(&work.0).map_err(|error| chain(&error))?;
        Ok(work)
    }

    fn remove(&self) -> Result<(), String> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("{}: {error}", self.0.display())),
            _ => Ok(()),
        }
    }

    fn end(self) -> Result<(), String> {
        self.remove()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(reason) = self.remove() {
            println!("what a snapshot of etcd needed is still there: {reason}");
        }
    }
}

/// SHA-256 and bytes of a file.
fn digest(path: &Path) -> std::io::Result<(Sha256Digest, u64)> {
    let mut file = File::open(path)?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let (mut buffer, mut size) = (vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            let mut sha256 = [0; 32];
            sha256.copy_from_slice(hash.finish().as_ref());
            return Ok((Sha256Digest(sha256), size));
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
