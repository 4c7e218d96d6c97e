//! The virtual tree that TFTP serves: iPXE binaries and the first script.

use std::sync::Arc;

use async_trait::async_trait;

use super::ipxe;
use super::plane::NetbootFiles;
use super::tftp::{Content, FileRequest, Files, OpenError, TransferReport};
use crate::service::Addresses;
use crate::trace::Traces;

/// The tree.
#[derive(Debug)]
pub struct Tree {
    files: NetbootFiles,
    addresses: Addresses,
    traces: Traces,
}

impl Tree {
    /// Over the folder of iPXE binaries.
    #[must_use]
    pub fn new(files: NetbootFiles, addresses: Addresses, traces: Traces) -> Self {
        Self { files, addresses, traces }
    }
}

#[async_trait]
impl Files for Tree {
    #[expect(clippy::disallowed_methods, reason = "opens the file that is sent")]
    async fn open(&self, request: &FileRequest) -> Result<Content, OpenError> {
        // An iPXE that was signed by someone else looks for this script beside itself.
        if matches!(request.name.as_str(), "autoexec.ipxe" | "boot.ipxe") {
            return Ok(Content::Bytes(ipxe::entry(&self.addresses.boot_url(request.local)).into()));
        }
        let path = self.files.path(&request.name).ok_or(OpenError::NotFound)?;
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), "a boot file is missing: install the ipxe package or set netboot.ipxe_dir");
                return Err(OpenError::NotFound);
            }
            Err(e) => return Err(OpenError::Io(e)),
        };
        let len = file.metadata().map_err(OpenError::Io)?.len();
        Ok(Content::File { file: Arc::new(file), len })
    }

    fn closed(&self, report: &TransferReport) {
        let client = report.request.client;
        let trace = self.traces.at(client.ip()).map(tracing::field::display);
        tracing::info!(trace, %client, file = report.request.name, outcome = ?report.outcome, bytes = report.acknowledged, "TFTP transfer ended");
    }
}
