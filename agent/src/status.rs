//! The local status: a unix socket that tells one JSON document to whoever connects.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nkd_api::agent::Purpose;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

/// Where the socket is.
pub const SOCKET: &str = "/run/nkd-agent.sock";

/// What the agent is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Identity of the machine.
    pub machine: Uuid,
    /// What the agent is here for.
    pub purpose: Purpose,
    /// Generation.
    pub generation: u32,
    /// Address of the service.
    pub server: String,
    /// `connecting`, `enrolling`, `waiting`, `stopped`, `installing`, `installed`, `failed`, `rebooting`.
    pub phase: String,
    /// What the person at the machine was last told.
    pub message: String,
    /// When the service last answered, by its clock.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_contact: Option<OffsetDateTime>,
    /// When the certificate is to be renewed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub renew_after: Option<OffsetDateTime>,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339::option")]
    pub certificate_expires: Option<OffsetDateTime>,
}

/// Opens the socket, in place of one that an earlier run left.
///
/// # Errors
/// When the system says no.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until it is dropped.
pub async fn serve(listener: UnixListener, status: watch::Receiver<Arc<Status>>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let text = serde_json::to_vec(&**status.borrow()).unwrap_or_default();
        // A reader that does not read must not keep the next one waiting.
        let told = timeout(Duration::from_secs(1), async {
            stream.write_all(&text).await?;
            stream.shutdown().await
        });
        if let Ok(Err(error)) = told.await {
            tracing::debug!(%error, "the status was not taken");
        }
    }
}

/// Asks a running agent.
///
/// # Errors
/// When none answers there.
pub async fn ask(path: &Path) -> io::Result<Status> {
    let mut text = Vec::new();
    let exchange = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.read_to_end(&mut text).await
    };
    timeout(Duration::from_secs(5), exchange).await.map_err(io::Error::from)??;
    serde_json::from_slice(&text).map_err(io::Error::from)
}
