//! Programs of the system.
#![expect(clippy::disallowed_methods, reason = "runs them")]

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A program that only says how things are has ended by then, or does not answer.
pub const STATUS: Duration = Duration::from_secs(120);
/// So much of what a program writes is kept, the end of it.
const KEPT: usize = 16 << 20;
/// More than a pipe holds: so much is read of it at a time.
const PIPE: usize = 1 << 20;
/// Between two looks whether a program has ended, at most, in milliseconds.
const PAUSE: u16 = 100;
/// So much of what a program said stands in the reason.
const SAID: usize = 600;

/// A program did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ProgramError {
    /// Its exit code; none: it did not come to an end of its own, or could not be run.
    pub code: Option<i32>,
    /// In one sentence, with the end of what it wrote to standard error.
    pub reason: String,
}

impl From<ProgramError> for String {
    fn from(error: ProgramError) -> Self {
        error.reason
    }
}

/// Runs a program and gives what it wrote to standard output. What it leaves running is not waited for, though it holds the same
/// output.
///
/// # Errors
/// [`ProgramError`]
pub fn ask(program: &str, words: &[&str]) -> Result<String, ProgramError> {
    run(program, words, None)
}

/// The same of a program that has so much time, and is killed then.
///
/// # Errors
/// As [`ask`].
pub fn ask_within(limit: Duration, program: &str, words: &[&str]) -> Result<String, ProgramError> {
    run(program, words, Some(limit))
}

fn run(program: &str, words: &[&str], limit: Option<Duration>) -> Result<String, ProgramError> {
    let mut command = Command::new(program);
    command.args(words).env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let not_run = |error| ProgramError { code: None, reason: format!("`{program}` could not be run: {error}") };
    let mut child = command.spawn().map_err(not_run)?;
    let (status, text, said) = attend(&mut child, limit).map_err(not_run)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    if status.is_some_and(|status| status.success()) {
        return Ok(text);
    }
    let said = String::from_utf8_lossy(&said);
    let said = if said.trim().is_empty() { text.trim() } else { said.trim() };
    let said = &said[said.ceil_char_boundary(said.len().saturating_sub(SAID))..];
    let verb = words.iter().take(2).copied().collect::<Vec<_>>().join(" ");
    let ended = match status {
        Some(status) => format!("ended with {status}"),
        None => format!("did not end within {} s, and was killed", limit.unwrap_or_default().as_secs()),
    };
    let reason = format!("`{program} {verb}` {ended}: {}", said.replace('\n', "; "));
    Err(ProgramError { code: status.and_then(|status| status.code()), reason })
}

/// Waits for the end of a program, and of nobody else; no status: its time was over. What it has written to both outputs.
fn attend(child: &mut Child, limit: Option<Duration>) -> io::Result<(Option<ExitStatus>, Vec<u8>, Vec<u8>)> {
    let (out, err) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
    let mut pipes = [Pipe::new(out)?, Pipe::new(err)?];
    let begun = Instant::now();
    let mut pause = 1;
    let status = loop {
        // Asked for before it is read: all that it wrote is there then.
        let status = child.try_wait()?;
        for pipe in &mut pipes {
            if pipe.read()? {
                pause = 1;
            }
        }
        if status.is_some() {
            break status;
        }
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            child.kill()?;
            child.wait()?;
            break None;
        }
        let open = pipes.iter().filter_map(|pipe| pipe.from.as_ref());
        let mut open: Vec<_> = open.map(|from| PollFd::new(from.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut open, PollTimeout::from(pause)) {
            Err(error) if error != nix::errno::Errno::EINTR => return Err(error.into()),
            _ => pause = (2 * pause).min(PAUSE),
        }
    };
    let [out, err] = pipes.map(|pipe| pipe.said);
    Ok((status, out, err))
}

/// An output of a program. It may stay open when the program has ended: by what that has left running.
struct Pipe {
    from: Option<File>,
    said: Vec<u8>,
}

impl Pipe {
    fn new(from: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(from) = &from {
            fcntl(from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { from: from.map(File::from), said: Vec::new() })
    }

    /// Takes what is there; whether that was anything.
    fn read(&mut self) -> io::Result<bool> {
        let Some(from) = &mut self.from else { return Ok(false) };
        let before = self.said.len();
        let read = from.by_ref().take(PIPE as u64).read_to_end(&mut self.said);
        let came = self.said.len() > before;
        self.said.drain(..self.said.len().saturating_sub(KEPT));
        match read {
            // Not all that may be read at a time: it has ended.
            Ok(length) if length < PIPE => {
                self.from = None;
                Ok(true)
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(came),
            Err(error) => Err(error),
        }
    }
}

/// The same for what says nothing of interest; in the journal of the system stands that it was run.
///
/// # Errors
/// As [`ask`].
pub fn tell(program: &str, words: &[&str]) -> Result<(), ProgramError> {
    tracing::info!("{program} {}", words.join(" "));
    ask(program, words).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_writes_is_read_to_its_end() {
        let text = ask("sh", &["-c", "seq 200000; seq 200000 >&2"]).unwrap();
        assert_eq!((text.lines().count(), text.lines().last()), (200_000, Some("200000")));
        let error = ask("sh", &["-c", "echo out; seq 9 >&2; exit 3"]).unwrap_err();
        assert_eq!(error.code, Some(3));
        assert!(error.reason.ends_with("8; 9"), "{}", error.reason);
        assert!(ask("sh", &["-c", "echo out; exit 3"]).unwrap_err().reason.ends_with(": out"));
        assert!(ask("no-such-program", &[]).unwrap_err().reason.contains("could not be run"));
    }

    #[test]
    fn what_a_program_leaves_running_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let [go, over] = ["go", "over"].map(|name| dir.path().join(name));
        let left = r#"(for i in $(seq 300); do [ -e "$1" ] && exit; sleep 0.1; done; : >"$2") & echo said; echo why >&2; exit $3"#;
        let run = |code: &str| {
            let [go, over] = [&go, &over].map(|path| path.display().to_string());
            ask("sh", &["-c", left, "sh", &go, &over, code])
        };
        let (well, ill) = (run("0"), run("1"));
        assert!(!over.exists(), "it was waited for");
        crate::files::write_public(&go, b"").unwrap();
        assert_eq!(well.unwrap(), "said\n");
        assert!(ill.unwrap_err().reason.ends_with(": why"));
    }

    #[test]
    fn a_program_that_does_not_end_in_its_time_is_killed() {
        let error = ask_within(Duration::from_millis(50), "sleep", &["60"]).unwrap_err();
        assert_eq!(error.code, None);
        assert!(error.reason.contains("did not end within"), "{}", error.reason);
        assert_eq!(ask_within(STATUS, "echo", &["well"]).unwrap(), "well\n");
    }
}
