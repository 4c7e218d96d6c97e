//! Runs the programs that hold the formats: `ostree` and `gpg`.

#![expect(clippy::disallowed_methods, reason = "runs programs")]

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A program could not do it.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started.
    #[error("cannot run {program}; install it on the service's host (package `{package}`)")]
    Start {
        /// Its name.
        program: &'static str,
        /// Where Debian has it.
        package: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("{program} {verb}: {said}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// What it was to do.
        verb: String,
        /// Its last words.
        said: String,
    },
    /// It could not be talked to.
    #[error("lost contact with {program}")]
    Lost {
        /// Its name.
        program: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl ProgramError {
    /// Whether the program refused with these words.
    pub(super) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused { said, .. } if said.contains(words))
    }
}

/// Runs `program` to its end; what it printed. `input` goes to its standard input.
pub(super) fn run<S: AsRef<OsStr>>(
    program: &'static str,
    package: &'static str,
    words: &[S],
    input: &[u8],
) -> Result<Vec<u8>, ProgramError> {
    let lost = |source| ProgramError::Lost { program, source };
    let mut command = Command::new(program);
    command.args(words).env("LC_ALL", "C.UTF-8").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| ProgramError::Start { program, package, source })?;
    if let Some(mut pipe) = child.stdin.take() {
        // It may not want to hear it all; its exit code tells. A key is small enough for the pipe.
        let _ = pipe.write_all(input);
    }
    let output = child.wait_with_output().map_err(lost)?;
    judged(program, words, output)
}

/// Runs `program` to its end, or ends it: after `limit`, or when nobody waits for it any more.
pub(super) async fn run_within<S: AsRef<OsStr>>(
    program: &'static str,
    package: &'static str,
    words: &[S],
    limit: Duration,
) -> Result<(), ProgramError> {
    let mut command = tokio::process::Command::new(program);
    command.args(words).env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child =
        command.kill_on_drop(true).spawn().map_err(|source| ProgramError::Start { program, package, source })?;
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(Ok(output)) => judged(program, words, output).map(drop),
        Ok(Err(source)) => Err(ProgramError::Lost { program, source }),
        Err(_) => {
            let said = format!("nothing came to an end in {} minutes", limit.as_secs() / 60);
            Err(ProgramError::Refused { program, verb: verb(words), said })
        }
    }
}

/// What it printed, or its last words.
fn judged<S: AsRef<OsStr>>(program: &'static str, words: &[S], output: Output) -> Result<Vec<u8>, ProgramError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().rsplit('\n').next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let said = if said.is_empty() { format!("it ended with {}", output.status) } else { said };
    Err(ProgramError::Refused { program, verb: verb(words), said })
}

fn verb<S: AsRef<OsStr>>(words: &[S]) -> String {
    let words = words.iter().map(|word| word.as_ref().to_string_lossy());
    words.into_iter().find(|word| !word.starts_with('-')).unwrap_or_default().into_owned()
}
