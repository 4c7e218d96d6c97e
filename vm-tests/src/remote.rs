//! A shell on a machine, over SSH.

#![allow(clippy::disallowed_methods, reason = "runs ssh and ssh-keygen, waits")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;

use crate::{Error, Namespace, programs};

/// The user of every node image.
const USER: &str = "nest";
/// Between two tries to connect.
const PAUSE: Duration = Duration::from_secs(2);

/// A key pair of a test.
#[derive(Debug, Clone)]
pub struct SshKey {
    path: PathBuf,
    public: String,
}

impl SshKey {
    /// Makes one in a folder.
    pub fn create(folder: &Path) -> Result<Self, Error> {
        programs::require(&["ssh", "ssh-keygen"])?;
        let path = folder.join("ssh-key");
        for old in [path.clone(), path.with_extension("pub")] {
            let _ = std::fs::remove_file(old);
        }
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(&path);
        crate::process::run(command, Duration::from_secs(20))?.success()?;
        let public = path.with_extension("pub");
        let text = std::fs::read_to_string(&public).map_err(Error::io(format!("reading {}", public.display())))?;
        Ok(Self { path, public: text.trim().to_owned() })
    }

    /// The line for `authorized_keys`.
    pub fn public(&self) -> &str {
        &self.public
    }
}

/// A machine that lets a key in.
#[derive(Debug)]
pub struct Remote {
    space: Namespace,
    key: SshKey,
    address: String,
}

impl Remote {
    /// From a namespace to an address.
    pub fn new(space: &Namespace, key: &SshKey, address: &str) -> Self {
        Self { space: space.clone(), key: key.clone(), address: address.to_owned() }
    }

    /// Runs a script as root; what it printed. A machine that restarts is waited for, until the limit; a script that has
    /// begun is not begun again.
    pub fn run(&self, script: &str, limit: Duration) -> Result<String, Error> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_secs(5));
            let said = self.space.run(self.command(script), left)?;
            // 255: ssh itself has failed, not what it ran.
            let unreached = said.status.code() == Some(255) && !said.error_text().contains("closed by remote host");
            if !unreached || Instant::now() >= end {
                return said.success().map(|said| said.text());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn command(&self, script: &str) -> Command {
        let script = base64::engine::general_purpose::STANDARD.encode(script);
        let mut command = Command::new("ssh");
        command.args(["-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=10", "-i"]);
        command.arg(&self.key.path).arg(format!("{USER}@{}", self.address));
        command.arg(format!("echo {script} | base64 -d | sudo sh"));
        command
    }
}
