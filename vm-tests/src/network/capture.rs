//! Packet captures by tcpdump.

#![expect(clippy::disallowed_methods, reason = "runs tcpdump")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::Namespace;
use crate::process::{Service, run};
use crate::{Error, programs, within};

/// A running capture; it ends when it is dropped, and its file stays in the folder of the network.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Service,
    file: PathBuf,
}

impl Capture {
    pub(super) fn start(space: &Namespace, name: &str, interface: &str, filter: &str) -> Result<Self, Error> {
        programs::require(&["tcpdump"])?;
        let file = space.folder().join(format!("{name}.pcap"));
        let mut command = Command::new("tcpdump");
        // As root and unbuffered: the file is in a folder of root's, and is read while it grows.
        command.args(["-Z", "root", "-n", "-U", "-i", interface, "-w"]).arg(&file).arg(filter);
        let mut tcpdump = space.spawn(&format!("{name}-tcpdump"), command)?;
        tcpdump.expect_log("listening on", within(20))?;
        Ok(Self { tcpdump, file })
    }

    /// One line for each packet so far that passes `filter`, as tcpdump prints it with `-v`, continuation lines joined.
    pub fn packets(&self, filter: &str) -> Result<Vec<String>, Error> {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-v", "-r"]).arg(&self.file).arg(filter);
        let output = run(command, within(30))?;
        // A file that is still being written may end in half a packet; what comes before is good.
        let mut packets: Vec<String> = Vec::new();
        for line in output.text().lines() {
            match packets.last_mut() {
                Some(packet) if line.starts_with(char::is_whitespace) => {
                    packet.push(' ');
                    packet.push_str(line.trim());
                }
                _ => packets.push(line.to_owned()),
            }
        }
        Ok(packets)
    }

    /// Waits until a packet that passes `filter` says `text`, and returns it.
    pub fn expect(&self, filter: &str, text: &str, limit: Duration) -> Result<String, Error> {
        let end = Instant::now() + limit;
        loop {
            if let Some(packet) = self.packets(filter)?.into_iter().find(|packet| packet.contains(text)) {
                return Ok(packet);
            }
            if Instant::now() >= end {
                let what = format!("a packet ({filter}) says {text:?}");
                return Err(Error::TooLate { what, limit, detail: format!("; see {}", self.file.display()) });
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ends the capture, so that its file is whole.
    pub fn stop(mut self) -> Result<PathBuf, Error> {
        self.tcpdump.stop(within(10))?;
        Ok(self.file.clone())
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }
}
