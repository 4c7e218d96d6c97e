//! The console of a node: a terminal of which everything goes to a file.

#![expect(clippy::disallowed_methods, reason = "opens a terminal and a log, waits for the end of it")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::Error;

const LAST_WORDS: Duration = Duration::from_secs(5);

/// The terminal while the node is on.
#[derive(Debug)]
pub(super) struct Console {
    path: PathBuf,
    /// Held open so that the reader does not see an end before the node opens it.
    terminal: Option<File>,
    reader: Option<JoinHandle<()>>,
}

impl Console {
    /// A new terminal whose output is added to `log`.
    pub(super) fn open(log: &Path) -> Result<Self, Error> {
        let failed = || Error::system("opening a terminal");
        let mut master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).map_err(failed())?;
        grantpt(&master).map_err(failed())?;
        unlockpt(&master).map_err(failed())?;
        let path = PathBuf::from(ptsname_r(&master).map_err(failed())?);
        let terminal = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(&path);
        let terminal = terminal.map_err(Error::io(format!("opening {}", path.display())))?;
        let file = OpenOptions::new().create(true).append(true).open(log);
        let mut file = file.map_err(Error::io(format!("opening {}", log.display())))?;
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends with an error when the last process has closed the terminal.
            while let Ok(length @ 1..) = master.read(&mut bytes) {
                // A terminal ends its lines with CR LF.
                let said: Vec<u8> = bytes[..length].iter().copied().filter(|byte| *byte != b'\r').collect();
                let _ = file.write_all(&said);
            }
        });
        Ok(Self { path, terminal: Some(terminal), reader: Some(reader) })
    }

    /// The device.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Console {
    /// Waits for the last words. The processes of the node are gone by now; if one is not, its words are not waited for.
    fn drop(&mut self) {
        self.terminal = None;
        let end = Instant::now() + LAST_WORDS;
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
