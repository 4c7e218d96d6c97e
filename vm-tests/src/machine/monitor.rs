//! QEMU's monitor protocol (QMP): the few commands that a power button and a camera need.

#![expect(clippy::disallowed_methods, reason = "connects to QEMU's socket, measures limits")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::debugger;
use crate::Error;

/// How long QEMU may take for one answer. Its main loop can be busy for seconds under TCG.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection to the monitor of one QEMU.
#[derive(Debug)]
pub(super) struct Monitor {
    machine: String,
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects as soon as the socket is there. `running` says whether it still makes sense to wait.
    pub fn connect(machine: &str, socket: &Path, mut running: impl FnMut() -> bool) -> Result<Self, Error> {
        let end = Instant::now() + ANSWER;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) if !running() || Instant::now() >= end => {
                    return Err(Error::io(format!("{machine}: connecting to QEMU's monitor {}", socket.display()))(e));
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        let preparing = || Error::io(format!("{machine}: preparing the monitor's socket"));
        stream.set_read_timeout(Some(ANSWER)).map_err(preparing())?;
        stream.set_write_timeout(Some(ANSWER)).map_err(preparing())?;
        let lines = BufReader::new(stream.try_clone().map_err(preparing())?);
        let mut monitor = Self { machine: machine.to_owned(), stream, lines };
        monitor.read("greeting")?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Executes one command and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let request = json!({"execute": command, "arguments": arguments});
        let sent = self.stream.write_all(format!("{request}\n").as_bytes());
        sent.map_err(|e| self.failed(command, e.to_string()))?;
        // Events come between the answers; a guest that sends them without end must not hold us.
        let end = Instant::now() + ANSWER;
        while Instant::now() < end {
            let mut message = self.read(command)?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("no description");
                return Err(self.failed(command, text));
            }
        }
        Err(self.failed(command, format!("no answer within {ANSWER:?}")))
    }

    /// Has QEMU forget what it has translated of the machine's code. The machine goes on at once.
    /// One that was brought to a stand is left alone.
    pub fn forget_translations(&mut self, socket: &Path) -> Result<(), Error> {
        if self.execute("query-status", json!({}))?["running"] != true {
            return Err(self.failed("gdbserver", "the machine stands still, and would go on"));
        }
        let before = self.flushes()?;
        // One that stands still takes its first step as asked: the stop that a debugger begins with comes late otherwise.
        self.execute("stop", json!({}))?;
        let stepped = self.step(socket);
        self.execute("cont", json!({}))?;
        stepped?;
        match self.flushes()? > before {
            true => Ok(()),
            false => Err(self.failed("gdbserver", "it remembers what it has translated")),
        }
    }

    /// Has the machine take one step.
    fn step(&mut self, socket: &Path) -> Result<(), Error> {
        self.human(&format!("gdbserver unix:{},server=on,wait=off", socket.display()))?;
        let stepped = debugger::step(socket);
        // A processor at rest has not taken its step. A stop takes the order back, before nobody connects any more; the machine
        // would stand still at its next instruction.
        self.execute("stop", json!({}))?;
        self.human("gdbserver none")?;
        stepped.map_err(Error::io(format!("{}: a step of QEMU's debugger", self.machine)))
    }

    /// How often QEMU has forgotten all that it had translated.
    fn flushes(&mut self) -> Result<u64, Error> {
        let said = self.human("info jit")?;
        let count = said.lines().find_map(|line| line.strip_prefix("TB flush count")?.trim().parse().ok());
        count.ok_or_else(|| self.failed("info jit", said))
    }

    /// What QEMU says to a command for people.
    fn human(&mut self, command: &str) -> Result<String, Error> {
        let said = self.execute("human-monitor-command", json!({"command-line": command}))?;
        Ok(said.as_str().unwrap_or_default().to_owned())
    }

    fn read(&mut self, command: &str) -> Result<Value, Error> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err(self.failed(command, "QEMU closed the connection")),
            Ok(_) => serde_json::from_str(&line).map_err(|e| self.failed(command, e.to_string())),
            Err(e) => Err(self.failed(command, e.to_string())),
        }
    }

    fn failed(&self, command: &str, reason: impl Into<String>) -> Error {
        Error::Monitor { machine: self.machine.clone(), command: command.to_owned(), reason: reason.into() }
    }
}
