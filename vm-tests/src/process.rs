//! Processes: short ones with a limit, and services with a log that can be killed and started again.

#![expect(clippy::disallowed_methods, reason = "starts processes, reads their logs, measures limits")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::Error;

/// How often a condition that cannot wake us is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long a service may take to end after SIGTERM before a drop sends SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How much of a short process's output is kept.
const MOST_OUTPUT: u64 = 16 << 20;
/// How many lines of a log an error shows.
pub(crate) const TAIL: usize = 40;

/// How a short process ended and what it said.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, at most 16 MiB of it.
    pub stdout: Vec<u8>,
    /// Standard error, at most 16 MiB of it.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself if it ended with exit code 0, an error with its standard error otherwise.
    pub fn success(self) -> Result<Self, Error> {
        match self.status.success() {
            true => Ok(self),
            false => Err(Error::Command {
                stderr: self.error_text().trim().to_owned(),
                command: self.command,
                status: self.status,
            }),
        }
    }
}

/// A process with a log file: stopped when it is dropped, SIGTERM first, SIGKILL after five seconds.
#[derive(Debug)]
pub struct Service {
    name: String,
    command: Command,
    log: PathBuf,
    /// Where in the log the present run begins.
    log_start: u64,
    child: Option<Child>,
    ended: Option<ExitStatus>,
}

impl Service {
    pub(crate) fn start(name: &str, command: Command, log: PathBuf) -> Result<Self, Error> {
        let mut service = Self { name: name.to_owned(), command, log, log_start: 0, child: None, ended: None };
        service.start_again()?;
        Ok(service)
    }

    /// Starts it once more with the same arguments; its log goes on.
    pub fn start_again(&mut self) -> Result<(), Error> {
        if self.is_running() {
            return Err(Error::Argument(format!("{} runs already", self.name)));
        }
        let opening = || Error::io(format!("opening {}", self.log.display()));
        let log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(opening())?;
        let errors = log.try_clone().map_err(opening())?;
        self.log_start = log.metadata().map_err(opening())?.len();
        self.command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = self.command.spawn().map_err(Error::io(format!("starting `{}`", line_of(&self.command))))?;
        self.child = Some(child);
        self.ended = None;
        Ok(())
    }

    /// Asks it to end with SIGTERM. One that needs longer than `limit` is killed, and that is an error.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        self.signal(Signal::SIGTERM)?;
        match self.wait(limit) {
            Err(late @ Error::TooLate { .. }) => {
                self.kill()?;
                Err(late)
            }
            other => other,
        }
    }

    /// Ends it with SIGKILL, as a crash would.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.signal(Signal::SIGKILL)?;
        self.wait(GRACE).map(|_| ())
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        self.reap();
        if let Some(child) = &self.child {
            kill(pid_of(child), signal).map_err(Error::system(format!("sending {signal} to {}", self.name)))?;
        }
        Ok(())
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        let end = Instant::now() + limit;
        loop {
            self.reap();
            if let Some(status) = self.ended {
                return Ok(status);
            }
            if Instant::now() >= end {
                return Err(Error::TooLate { what: format!("{} ends", self.name), limit, detail: self.tail() });
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until its log says `text` in the present run, and returns that line. Fails at once when it has ended
    /// without saying it.
    pub fn expect_log(&mut self, text: &str, limit: Duration) -> Result<String, Error> {
        let end = Instant::now() + limit;
        loop {
            // In this order, so that the last words of a process that ends are seen.
            let running = self.is_running();
            if let Some(line) = self.log()?.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if !running {
                let status = self.ended.map_or_else(|| "never started".to_owned(), |status| status.to_string());
                return Err(Error::Ended { name: self.name.clone(), status, detail: self.tail() });
            }
            if Instant::now() >= end {
                let what = format!("{} says {text:?} in its log", self.name);
                return Err(Error::TooLate { what, limit, detail: self.tail() });
            }
            thread::sleep(POLL);
        }
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.reap();
        self.child.is_some()
    }

    /// Its process id while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What it has logged since its last start.
    pub fn log(&self) -> Result<String, Error> {
        let reading = || Error::io(format!("reading {}", self.log.display()));
        let mut file = File::open(&self.log).map_err(reading())?;
        file.seek(SeekFrom::Start(self.log_start)).map_err(reading())?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(reading())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Its log file; all runs are in it, one after the other.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    fn reap(&mut self) {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            self.ended = Some(status);
            self.child = None;
        }
    }

    fn tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        format!("; {}\n  log: {}", last_lines(&log), self.log.display())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // `stop` sends SIGKILL in the end; what may still be left goes with the namespace.
        let _ = self.stop(GRACE);
    }
}

/// Runs a process to its end, in a process group of its own that is killed at the limit. Its standard input is empty.
pub(crate) fn run(command: Command, limit: Duration) -> Result<Output, Error> {
    run_as(line_of(&command), Stdio::null(), command, limit)
}

/// The same with an input, and with the command line as messages are to show it.
pub(crate) fn run_as(line: String, input: Stdio, mut command: Command, limit: Duration) -> Result<Output, Error> {
    let start = || Error::io(format!("starting `{line}`"));
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(start())?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let end = Instant::now() + limit;
    let status = loop {
        match child.try_wait().map_err(Error::io(format!("waiting for `{line}`")))? {
            Some(status) => break Some(status),
            None if Instant::now() >= end => break None,
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    if status.is_none() {
        // The group may be gone by now; the process itself is reaped below.
        let _ = killpg(pid_of(&child), Signal::SIGKILL);
        let _ = child.wait();
    }
    // A grandchild may hold the pipe open: its output is not waited for. On a busy computer, the thread that reads may be
    // late by seconds, and what the process said would be lost.
    let take = |from: mpsc::Receiver<Vec<u8>>| from.recv_timeout(Duration::from_secs(10)).unwrap_or_default();
    let (stdout, stderr) = (take(stdout), take(stderr));
    match status {
        Some(status) => Ok(Output { command: line, status, stdout, stderr }),
        None => {
            let text = String::from_utf8_lossy(&stderr).into_owned() + &String::from_utf8_lossy(&stdout);
            Err(Error::TooLate { what: format!("`{line}` ends"), limit, detail: format!("; {}", last_lines(&text)) })
        }
    }
}

/// The process id in the form of signals.
pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Waits for a child until the limit; `None` if it still runs then.
pub(crate) fn wait_child(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>, std::io::Error> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// SIGTERM, then SIGKILL after a while. The child is always gone afterwards.
pub(crate) fn end_child(child: &mut Child) -> ExitStatus {
    let _ = kill(pid_of(child), Signal::SIGTERM);
    if let Ok(Some(status)) = wait_child(child, GRACE) {
        return status;
    }
    let _ = child.kill();
    child.wait().unwrap_or_else(|_| ExitStatus::from_raw(Signal::SIGKILL as i32))
}

/// The last lines of a log, indented for a message.
pub(crate) fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    if lines.is_empty() {
        return "it said nothing".to_owned();
    }
    let tail = &lines[lines.len().saturating_sub(TAIL)..];
    let mut text = "it said:".to_owned();
    for line in tail {
        text.push_str("\n  | ");
        text.push_str(line);
    }
    text
}

/// The command line, for messages.
pub(crate) fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What is over the limit is read and dropped, so that the process does not stall on a full pipe.
            let _ = pipe.by_ref().take(MOST_OUTPUT).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        }
        let _ = sender.send(bytes);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_process_that_does_not_end_is_killed_with_its_children() {
        let error = run(shell("echo early; sleep 1000 & sleep 1000"), Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("| early"), "{error}");
    }

    #[test]
    fn a_failure_carries_the_standard_error() {
        let output = run(shell("echo why >&2; exit 3"), Duration::from_secs(10)).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(output.success().unwrap_err().to_string().contains("why"));
    }

    #[test]
    fn a_service_is_killed_and_started_again_and_its_log_goes_on() {
        let log = std::env::temp_dir().join(format!("nkd-service-test-{}", std::process::id()));
        let _ = std::fs::remove_file(&log);
        let mut service = Service::start("echo", shell("echo run $$; exec sleep 1000"), log.clone()).unwrap();
        let first = service.expect_log("run", Duration::from_secs(10)).unwrap();
        service.kill().unwrap();
        assert!(!service.is_running());
        service.start_again().unwrap();
        let second = service.expect_log("run", Duration::from_secs(10)).unwrap();
        assert_ne!(first, second);
        let status = service.stop(Duration::from_secs(10)).unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), format!("{first}\n{second}\n"));
        std::fs::remove_file(&log).unwrap();
    }

    #[test]
    fn a_service_that_ends_before_it_says_the_word_is_an_error_with_its_last_words() {
        let log = std::env::temp_dir().join(format!("nkd-service-end-{}", std::process::id()));
        let mut service = Service::start("bad", shell("echo no port free; exit 64"), log.clone()).unwrap();
        let error = service.expect_log("listening", Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.contains("64") && error.contains("no port free"), "{error}");
        std::fs::remove_file(&log).unwrap();
    }
}
