//! Runs one long command: its output goes to a log, its progress to the terminal, the log's end to the terminal if it fails.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Quicker than this, and nobody hears of it.
const QUIET: Duration = Duration::from_secs(2);
/// Without a terminal, how often a line says that it is still running.
const HEARTBEAT: Duration = Duration::from_secs(30);
const TAIL_LINES: usize = 30;

/// Runs `command` to its end. A line `stage: NAME` in its output names what it is doing.
pub fn run(name: &str, log: &Path, mut command: Command) -> Result<()> {
    fs::create_dir_all(log.parent().expect("a log file is in a directory"))?;
    let output = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child = command.spawn().with_context(|| format!("{name}: cannot run {:?}", command.get_program()))?;

    let mut progress = Progress::new(name);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        progress.tick(log);
        std::thread::sleep(Duration::from_millis(200));
    };
    progress.finish(status.success());
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            eprintln!("    {line}");
        }
        bail!("{name} failed ({status}); the whole log is {}", log.display());
    }
    Ok(())
}

struct Progress<'a> {
    name: &'a str,
    started: Instant,
    said: Option<Instant>,
    terminal: bool,
}

impl<'a> Progress<'a> {
    fn new(name: &'a str) -> Self {
        Self { name, started: Instant::now(), said: None, terminal: std::io::stderr().is_terminal() }
    }

    fn tick(&mut self, log: &Path) {
        let elapsed = self.started.elapsed();
        let pause = if self.terminal { Duration::from_millis(900) } else { HEARTBEAT };
        if elapsed < QUIET || self.said.is_some_and(|said| said.elapsed() < pause) {
            return;
        }
        self.said = Some(Instant::now());
        let current = current_stage(&fs::read_to_string(log).unwrap_or_default());
        let line = format!("{}{current}: {} s", self.name, elapsed.as_secs());
        if self.terminal {
            eprint!("\r\x1b[K{line} ...");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{line} ...");
        }
    }

    fn finish(&self, success: bool) {
        if self.terminal && self.said.is_some() {
            eprint!("\r\x1b[K");
        }
        if self.said.is_some() || !success {
            let word = if success { "done" } else { "FAILED" };
            eprintln!("{}: {word} after {} s", self.name, self.started.elapsed().as_secs());
        }
    }
}

fn current_stage(log: &str) -> String {
    log.lines()
        .rev()
        .find_map(|line| line.strip_prefix("stage: "))
        .map(|stage| format!(" [{stage}]"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stage_is_the_current_one() {
        assert_eq!(current_stage("stage: 10-a\nnoise\nstage: 20-b\nmore"), " [20-b]");
        assert_eq!(current_stage("noise"), "");
    }

    #[test]
    fn a_failure_names_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("logs/x.log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo why; exit 3"]);
        let error = run("x", &log, command).unwrap_err().to_string();
        assert!(error.contains("x.log"), "{error}");
        assert_eq!(fs::read_to_string(&log).unwrap(), "why\n");
    }
}
