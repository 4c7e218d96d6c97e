//! The files beside a commit and beside the summary that hold their signatures, and what else carries those.
#![expect(clippy::disallowed_methods, reason = "reads files of a repository")]

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use tempfile::NamedTempFile;

use super::ChannelError;
use super::ed25519::{Detached, Key, Trusted};
use super::repository::{Repository, io};
use super::summary::{SIGNATURE, SUMMARY};

/// More than this beside a commit is no signatures.
const LARGEST: u64 = 1 << 20;

/// The text of a file of ed25519 keys.
pub(super) fn ed25519_keys(path: &Path) -> Result<String, ChannelError> {
    Ok(trusted(path)?.0)
}

fn trusted(path: &Path) -> Result<(String, Trusted), ChannelError> {
    let text = super::repository::small_file(path)?;
    let trusted = Trusted::read(&text).map_err(|line| ChannelError::Ed25519KeyFile { path: path.into(), line })?;
    Ok((text, trusted))
}

impl Repository {
    /// Signs a commit, beside the signatures that it has.
    pub(super) fn sign_ed25519(&self, commit: &str, key: &Key) -> Result<(), ChannelError> {
        let signature = key.sign(&self.commit_bytes(commit)?);
        let path = self.object(commit, "commitmeta");
        let mut detached = read_detached(&path)?;
        let changed = detached.sign(signature).map_err(unreadable(&path))?;
        if changed { self.replace(&path, &detached.write().map_err(unreadable(&path))?) } else { Ok(()) }
    }

    /// Whether a commit bears the signature of this key.
    pub(super) fn bears(&self, commit: &str, key: &Key) -> Result<bool, ChannelError> {
        let signature = key.sign(&self.commit_bytes(commit)?);
        Ok(read_detached(&self.object(commit, "commitmeta"))?.signatures().first() == Some(&signature))
    }

    /// Signs the summary, whose OpenPGP signature is new.
    pub(super) fn sign_summary(&self, key: &Key) -> Result<(), ChannelError> {
        let (summary, path) = (self.path().join(SUMMARY), self.path().join(SIGNATURE));
        let bytes = std::fs::read(&summary).map_err(io("read", &summary))?;
        let mut detached = read_detached(&path)?;
        detached.unsign();
        detached.sign(key.sign(&bytes)).map_err(unreadable(&path))?;
        self.replace(&path, &detached.write().map_err(unreadable(&path))?)
    }

    /// Whose signature a commit bears, of those whose keys are in the file.
    pub(super) fn signer_ed25519(&self, commit: &str, keys: &Path) -> Result<String, ChannelError> {
        let (_, trusted) = trusted(keys)?;
        let signatures = read_detached(&self.object(commit, "commitmeta"))?.signatures();
        let signer = trusted.signer(&self.commit_bytes(commit)?, &signatures);
        let count = signatures.len();
        signer.ok_or_else(|| ChannelError::NotSignedEd25519 { commit: commit.into(), count, path: keys.into() })
    }

    /// Makes those differences anew that lead to one of these commits and carry it without this key's signature: a node
    /// takes the signatures from there, and they were made before it was signed.
    pub(super) fn renew_deltas(&self, commits: &[&str], key: &Key) -> Result<(), ChannelError> {
        for (from, to) in self.deltas()? {
            if !commits.contains(&to.as_str()) {
                continue;
            }
            let path = self.delta_path(&from, &to).join("superblock");
            let superblock = std::fs::read(&path).map_err(io("read", &path))?;
            let signature = key.sign(&self.commit_bytes(&to)?);
            // It stands there as it stands beside the commit.
            if !superblock.windows(signature.len()).any(|window| window == signature) {
                self.replace_delta(&from, &to)?;
            }
        }
        Ok(())
    }

    /// Folder of a difference: both checksums in base64, where `_` is in the place of `/`.
    fn delta_path(&self, from: &str, to: &str) -> PathBuf {
        let short =
            |checksum: &str| STANDARD_NO_PAD.encode(hex::decode(checksum).unwrap_or_default()).replace('/', "_");
        let name = format!("{}-{}", short(from), short(to));
        let (first, rest) = name.split_at(2.min(name.len()));
        self.path().join("deltas").join(first).join(rest)
    }

    /// A commit as it is signed, if it is what its name says.
    pub(super) fn commit_bytes(&self, commit: &str) -> Result<Vec<u8>, ChannelError> {
        let path = self.object(commit, "commit");
        let bytes = std::fs::read(&path).map_err(io("read", &path))?;
        let right = hex::encode(digest(&SHA256, &bytes)) == commit;
        if right { Ok(bytes) } else { Err(ChannelError::Damaged(path)) }
    }

    /// In one step; a file that was begun is removed by ostree, which owns `tmp`.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), ChannelError> {
        let write = || {
            let mut file = NamedTempFile::with_prefix_in("nkd-", self.path().join("tmp"))?;
            file.write_all(bytes)?;
            file.as_file().set_permissions(Permissions::from_mode(0o644))?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            File::open(path.parent().unwrap_or(path))?.sync_all()
        };
        write().map_err(io("write", path))
    }
}

/// What lies beside a commit or summary; nothing may.
fn read_detached(path: &Path) -> Result<Detached, ChannelError> {
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > LARGEST => return Err(io("read", path)(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => std::fs::read(path).map_err(io("read", path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Detached::default()),
        Err(error) => return Err(io("read", path)(error)),
    };
    Detached::read(&bytes).map_err(unreadable(path))
}

fn unreadable(path: &Path) -> impl FnOnce(zgvariant::Error) -> ChannelError {
    let path = path.to_path_buf();
    move |source| ChannelError::Detached { path, source }
}
