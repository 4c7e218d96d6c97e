//! Where snapshots lie: `<state>/etcd-snapshots/<cluster>/<id>.sealed`, for the service alone, and sealed, because a
//! snapshot holds every secret of its cluster.
//!
//! A file has its name when it is whole, has the digest that its node told, and is on the disk. What broke off has none, and
//! goes with its writer, or when the service starts.
#![expect(clippy::disallowed_methods, reason = "files")]

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io::{self, BufReader, BufWriter, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use nkd_api::snapshot::SnapshotProof;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::content::blob::{BlobError, finish_hash, room};
use crate::store::{Seal, SealedFileError, SealedReader, SealedWriter};

/// A snapshot could not be kept or given out.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A file.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No room.
    #[error(transparent)]
    Room(#[from] BlobError),
    /// Sealing or opening.
    #[error(transparent)]
    Sealed(#[from] SealedFileError),
    /// Another one sends it now.
    #[error("this snapshot is on its way already")]
    Busy,
    /// What came is not what was told.
    #[error("what came is not the snapshot that was told: {0}")]
    Other(String),
    /// There is no such file.
    #[error(
        "the file of this snapshot is not here: it was removed, or the state was restored from a backup, which holds none"
    )]
    Missing,
    /// The thread that did it is no more.
    #[error("keeping it was broken off")]
    Broken,
}

/// The folder of snapshots.
#[derive(Clone)]
pub struct Vault {
    folder: PathBuf,
    seal: Seal,
    /// Those that are on their way.
    coming: Arc<Mutex<HashSet<Uuid>>>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VaultError {
    let path = path.to_path_buf();
    move |source| VaultError::Io { action, path, source }
}

fn name(cluster: Uuid, id: Uuid) -> String {
    format!("etcd-snapshot/{cluster}/{id}")
}

impl Vault {
    /// In the state folder, which is the service's alone.
    #[must_use]
    pub fn new(state_dir: &Path, seal: Seal) -> Self {
        Self { folder: state_dir.join("etcd-snapshots"), seal, coming: Arc::default() }
    }

    fn file(&self, cluster: Uuid, id: Uuid) -> PathBuf {
        self.folder.join(cluster.to_string()).join(format!("{id}.sealed"))
    }

    /// Keeps what comes, if it is what its node told. On the disk when this returns.
    pub async fn receive(
        &self,
        cluster: Uuid,
        id: Uuid,
        proof: SnapshotProof,
        pieces: mpsc::Receiver<Bytes>,
    ) -> Result<(), VaultError> {
        let vault = self.clone();
        let work = move || {
            let _coming = Coming::enter(&vault.coming, id)?;
            vault.write(cluster, id, &proof, pieces)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| VaultError::Broken)?
    }

    fn write(
        &self,
        cluster: Uuid,
        id: Uuid,
        proof: &SnapshotProof,
        mut pieces: mpsc::Receiver<Bytes>,
    ) -> Result<(), VaultError> {
        let place = self.file(cluster, id);
        let folder = place.parent().unwrap_or(&self.folder);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make", folder))?;
        room(folder, proof.size)?;
        let temp = NamedTempFile::with_prefix_in("coming-", folder).map_err(failed("write", folder))?;
        let mut writer = SealedWriter::begin(&self.seal, &name(cluster, id), BufWriter::new(temp.as_file()))?;
        let (mut hash, mut size) = (Context::new(&SHA256), 0);
        while let Some(piece) = pieces.blocking_recv() {
            size += piece.len() as u64;
            if size > proof.size {
                return Err(VaultError::Other(format!("more than its {} bytes came", proof.size)));
            }
            hash.update(&piece);
            writer.write(&piece)?;
        }
        if size != proof.size {
            return Err(VaultError::Other(format!("{size} of its {} bytes came", proof.size)));
        }
        let digest = finish_hash(hash);
        if digest != proof.sha256 {
            return Err(VaultError::Other(format!("its digest is {digest}, not {}", proof.sha256)));
        }
        let file = writer.finish()?.into_inner().map_err(|error| failed("write", &place)(error.into_error()))?;
        file.sync_all().map_err(failed("write", &place))?;
        temp.persist(&place).map_err(|error| failed("write", &place)(error.error))?;
        for folder in [Some(folder), folder.parent(), self.folder.parent()].into_iter().flatten() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("flush", folder))?;
        }
        Ok(())
    }

    /// The bytes of one, in the clear, as they are taken. It breaks off with an error where the file is damaged.
    pub async fn read(
        &self,
        cluster: Uuid,
        id: Uuid,
    ) -> Result<mpsc::Receiver<Result<Bytes, SealedFileError>>, VaultError> {
        let (vault, path) = (self.clone(), self.file(cluster, id));
        let open = move || match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(VaultError::Missing),
            file => {
                let file = BufReader::new(file.map_err(failed("read", &path))?);
                Ok(SealedReader::open(&vault.seal, &name(cluster, id), file)?)
            }
        };
        let mut reader = tokio::task::spawn_blocking(open).await.map_err(|_| VaultError::Broken)??;
        let (sender, pieces) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            while let Some(piece) = reader.read().map(|piece| piece.map(Bytes::from)).transpose() {
                let broken = piece.is_err();
                if sender.blocking_send(piece).is_err() || broken {
                    return;
                }
            }
        });
        Ok(pieces)
    }

    /// Removes one. One that is not there is no error.
    pub fn remove(&self, cluster: Uuid, id: Uuid) -> Result<(), VaultError> {
        let path = self.file(cluster, id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes those of a cluster that is gone.
    pub fn forget(&self, cluster: Uuid) -> Result<(), VaultError> {
        let folder = self.folder.join(cluster.to_string());
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &folder)(error)),
            _ => Ok(()),
        }
    }

    /// Removes every file that is none of these, and is not on its way: of clusters that are gone, and what broke off.
    pub fn sweep(&self, known: &HashSet<(Uuid, Uuid)>) -> Result<(), VaultError> {
        let list = |folder: &Path| match std::fs::read_dir(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries.and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed("list", folder)),
        };
        if !self.coming.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return Ok(());
        }
        for folder in list(&self.folder)?.into_iter().map(|entry| entry.path()) {
            let cluster = folder.file_name().and_then(|name| name.to_str()?.parse::<Uuid>().ok());
            for path in list(&folder)?.into_iter().map(|entry| entry.path()) {
                let file = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".sealed")?.parse().ok());
                if !cluster.zip(file).is_some_and(|id| known.contains(&id)) {
                    std::fs::remove_file(&path).map_err(failed("remove", &path))?;
                }
            }
            if list(&folder)?.is_empty() {
                std::fs::remove_dir(&folder).map_err(failed("remove", &folder))?;
            }
        }
        Ok(())
    }
}

/// One that is on its way.
struct Coming(Arc<Mutex<HashSet<Uuid>>>, Uuid);

impl Coming {
    fn enter(coming: &Arc<Mutex<HashSet<Uuid>>>, id: Uuid) -> Result<Self, VaultError> {
        match coming.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            true => Ok(Self(Arc::clone(coming), id)),
            false => Err(VaultError::Busy),
        }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

#[cfg(test)]
#[path = "vault_tests.rs"]
mod tests;
