//! The file with the token of the first user: it goes away when that token is used for the first time.
#![expect(clippy::disallowed_methods, reason = "opens the state folder")]

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;

use crate::fleet::secret;

/// The file, as long as nobody has used the token in it.
#[derive(Debug, Default)]
pub struct FirstToken(Mutex<Option<Waiting>>);

#[derive(Debug)]
struct Waiting {
    file: PathBuf,
    hash: [u8; 32],
}

impl FirstToken {
    /// The token lies in this file.
    pub async fn lies_in(&self, file: PathBuf, token: &str) {
        *self.0.lock().await = Some(Waiting { file, hash: secret::digest(token.trim()) });
    }

    /// A user has shown a token with this digest. Returns when the file is gone for good, if it was that token.
    pub(super) async fn used(&self, hash: &[u8; 32]) {
        let mut waiting = self.0.lock().await;
        let Some(file) = waiting.as_ref().filter(|first| first.hash == *hash).map(|first| first.file.clone()) else {
            return;
        };
        let removed = tokio::task::spawn_blocking({
            let file = file.clone();
            move || remove(&file)
        });
        if let Ok(Err(error)) = removed.await {
            let file = file.display();
            tracing::warn!(%error, %file, "the file of the first token could not be deleted: delete it yourself");
        }
        *waiting = None;
    }
}

/// Removes a file that may be gone already, durably.
fn remove(file: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}
