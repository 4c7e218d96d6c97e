//! What can be done inside a node: programs, files, units.

#![expect(clippy::disallowed_methods, reason = "starts processes and measures limits")]

use std::fs::File;
use std::io::{Seek, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{ENTER, Node, POLL};
use crate::process::{Output, last_lines, line_of, run_as};
use crate::{Error, within};

/// What is the same for every process of a node that a test starts.
const ENVIRONMENT: &[&str] = &[
    "HOME=/root",
    "TERM=dumb",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "KUBECONFIG=/etc/kubernetes/admin.conf",
];

impl Node {
    /// Runs a program of the node in it to its end, as root. A failure of the program is no error here: see
    /// [`Output::success`].
    pub fn run(&self, command: Command, limit: Duration) -> Result<Output, Error> {
        self.run_on(Stdio::null(), command, limit)
    }

    /// Runs a line of shell in it; a failure of it is an error.
    pub fn shell(&self, line: &str, limit: Duration) -> Result<String, Error> {
        let mut command = Command::new("sh");
        command.args(["-euc", line]);
        Ok(self.run(command, limit)?.success()?.text())
    }

    /// Writes a file in the node, which is whole or not there. Its folder is made; `mode` is like `0o600`.
    pub fn write_file(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), Error> {
        const WRITE: &str =
            r#"mkdir -p "$(dirname "$1")"; umask 077; cat > "$1.new"; chmod "$2" "$1.new"; mv "$1.new" "$1""#;
        let keeping = || format!("keeping {path} of {}", self.name());
        let mut file = File::from(memfd_create("file", MFdFlags::MFD_CLOEXEC).map_err(Error::system(keeping()))?);
        file.write_all(bytes).and_then(|()| file.rewind()).map_err(Error::io(keeping()))?;
        let mut command = Command::new("sh");
        command.args(["-euc", WRITE, "sh", path, &format!("{mode:o}")]);
        self.run_on(Stdio::from(file), command, within(20))?.success().map(|_| ())
    }

    /// A file of the node, at most 16 MiB of it.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, Error> {
        let mut command = Command::new("cat");
        command.args(["--", path]);
        Ok(self.run(command, within(20))?.success()?.stdout)
    }

    /// Waits until a unit is active. Fails at once when the unit has failed.
    pub fn expect_unit_active(&self, unit: &str, limit: Duration) -> Result<(), Error> {
        let end = Instant::now() + limit;
        loop {
            let state = self.systemctl(&["is-active", unit])?;
            let failed = state == "failed";
            if state == "active" {
                return Ok(());
            }
            if failed || Instant::now() >= end {
                let status = self.systemctl(&["status", "--no-pager", "--full", "--lines=30", unit])?;
                let detail = format!("; {}\n  log: {}", last_lines(&status), self.console_log().display());
                return Err(match failed {
                    true => Error::Ended { name: format!("{unit} on {}", self.name()), status: state, detail },
                    false => Error::TooLate { what: format!("{unit} on {} is active", self.name()), limit, detail },
                });
            }
            thread::sleep(POLL * 5);
        }
    }

    /// Waits until systemd says `running`: all is started and nothing has failed.
    pub fn expect_running(&self, limit: Duration) -> Result<(), Error> {
        let end = Instant::now() + limit;
        loop {
            let state = self.systemctl(&["is-system-running"])?;
            if state == "running" {
                return Ok(());
            }
            if Instant::now() >= end || state == "degraded" {
                let failed = self.systemctl(&["list-units", "--state=failed", "--plain", "--no-legend"])?;
                let what = format!("{} is running", self.name());
                return Err(Error::Unexpected { what, got: format!("{state}\n{failed}") });
            }
            thread::sleep(POLL);
        }
    }

    pub(crate) fn run_on(&self, input: Stdio, command: Command, limit: Duration) -> Result<Output, Error> {
        run_as(format!("{}: {}", self.name(), line_of(&command)), input, self.command(&command)?, limit)
    }

    /// What systemctl says; it may end with a failure.
    pub(super) fn systemctl(&self, words: &[&str]) -> Result<String, Error> {
        let mut command = Command::new("systemctl");
        command.args(words);
        Ok(self.run(command, within(20))?.text().trim().to_owned())
    }

    /// The same command, moved in here.
    fn command(&self, command: &Command) -> Result<Command, Error> {
        let power = self.power.as_ref().ok_or_else(|| self.is("off", "nothing runs on it"))?;
        let mut moved = Command::new("sh");
        moved.args(["-c", ENTER, "enter", &power.cgroups.word()]);
        moved.args(["nsenter", "--target", &power.init.to_string()]);
        moved.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]);
        moved.args(["env", "-i"]);
        if let Some(folder) = command.get_current_dir() {
            moved.arg("--chdir").arg(folder);
        }
        moved.args(ENVIRONMENT);
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                let mut word = name.to_owned();
                word.push("=");
                word.push(value);
                moved.arg(word);
            }
        }
        moved.arg(command.get_program()).args(command.get_args());
        Ok(moved)
    }
}
