//! What is in the vault is what came, and nobody can read it there.

use std::os::unix::fs::PermissionsExt;

use nkd_api::Sha256Digest;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::*;

const CLUSTER: Uuid = Uuid::from_u128(1);

fn vault(state: &Path) -> Vault {
    Vault::new(state, Seal::from_key(&[7; 32]).unwrap())
}

fn proof(content: &[u8]) -> SnapshotProof {
    SnapshotProof {
        size: content.len() as u64,
        sha256: Sha256Digest(Sha256::digest(content).into()),
        revision: 1,
        keys: 1,
        etcd_version: "3.4.23".into(),
        taken_at: OffsetDateTime::UNIX_EPOCH,
        not_compared: None,
    }
}

async fn send(vault: &Vault, id: u128, proof: SnapshotProof, content: &[u8]) -> Result<(), VaultError> {
    let (sender, pieces) = mpsc::channel(1);
    let kept = vault.receive(CLUSTER, Uuid::from_u128(id), proof, pieces);
    let content = content.to_vec();
    let sent = tokio::spawn(async move {
        for piece in content.chunks(300_000) {
            if sender.send(Bytes::copy_from_slice(piece)).await.is_err() {
                return;
            }
        }
    });
    let kept = kept.await;
    sent.await.unwrap();
    kept
}

async fn fetch(vault: &Vault, id: u128) -> Result<Vec<u8>, VaultError> {
    let mut pieces = vault.read(CLUSTER, Uuid::from_u128(id)).await?;
    let mut all = Vec::new();
    while let Some(piece) = pieces.recv().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

fn files(state: &Path) -> Vec<PathBuf> {
    let list = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    list(state.join("etcd-snapshots")).flat_map(list).collect()
}

#[tokio::test]
async fn what_came_whole_is_kept_sealed_and_nothing_else_is() {
    let state = tempfile::tempdir().unwrap();
    let vault = vault(state.path());
    let content: Vec<u8> = b"every secret of the cluster ".iter().copied().cycle().take(3_000_000).collect();
    send(&vault, 1, proof(&content), &content).await.unwrap();
    assert!(fetch(&vault, 1).await.unwrap() == content);
    let [file] = &files(state.path())[..] else { panic!("one file") };
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read(file).unwrap().windows(12).any(|part| part == b"every secret"));

    // A node that was killed sends it once more.
    send(&vault, 1, proof(&content), &content).await.unwrap();
    let told = proof(&content);
    for (what, sent) in [
        ("bytes came", &content[..2_000_000]),
        ("more than its", &[&content[..], &[0]].concat()),
        ("its digest is", &[&content[..2_999_999], &[0]].concat()),
    ] {
        let refused = send(&vault, 2, told.clone(), sent).await.unwrap_err();
        assert!(matches!(&refused, VaultError::Other(why) if why.contains(what)), "{refused}");
    }
    assert!(matches!(fetch(&vault, 2).await, Err(VaultError::Missing)));
    let huge = SnapshotProof { size: 1 << 60, ..told };
    assert!(matches!(send(&vault, 2, huge, &content).await, Err(VaultError::Room(_))));
    assert_eq!(files(state.path()).len(), 1, "what broke off leaves nothing");

    let _coming = Coming::enter(&vault.coming, Uuid::from_u128(3)).ok().unwrap();
    assert!(matches!(send(&vault, 3, proof(b"x"), b"x").await, Err(VaultError::Busy)));
}

#[tokio::test]
async fn a_file_in_the_place_of_another_or_damaged_does_not_come_out() {
    let state = tempfile::tempdir().unwrap();
    let vault = vault(state.path());
    for id in [1, 2] {
        let content = vec![id; 1_500_000];
        send(&vault, id.into(), proof(&content), &content).await.unwrap();
    }
    let place = |id| vault.file(CLUSTER, Uuid::from_u128(id));
    let mut bytes = std::fs::read(place(1)).unwrap();
    std::fs::write(place(2), &bytes).unwrap();
    assert!(fetch(&vault, 2).await.is_err(), "it is another's");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(place(1), &bytes).unwrap();
    assert!(fetch(&vault, 1).await.is_err(), "a bit is another");
}

#[tokio::test]
async fn what_broke_off_and_what_nobody_knows_goes_when_the_service_starts() {
    let state = tempfile::tempdir().unwrap();
    let vault = vault(state.path());
    vault.sweep(&HashSet::new()).unwrap();
    for id in [1, 2] {
        send(&vault, id, proof(b"x"), b"x").await.unwrap();
    }
    let folder = state.path().join("etcd-snapshots").join(CLUSTER.to_string());
    std::fs::write(folder.join("coming-abc"), "half").unwrap();
    vault.sweep(&HashSet::from([(CLUSTER, Uuid::from_u128(2))])).unwrap();
    assert_eq!(files(state.path()), [vault.file(CLUSTER, Uuid::from_u128(2))]);
    vault.remove(CLUSTER, Uuid::from_u128(2)).unwrap();
    vault.remove(CLUSTER, Uuid::from_u128(2)).unwrap();
    send(&vault, 3, proof(b"x"), b"x").await.unwrap();
    vault.forget(Uuid::from_u128(99)).unwrap();
    assert!(vault.file(CLUSTER, Uuid::from_u128(3)).exists());
    vault.forget(CLUSTER).unwrap();
    assert!(!folder.exists());
}
