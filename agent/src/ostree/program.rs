//! Programs of the system.
#![expect(clippy::disallowed_methods, reason = "runs them")]

use std::process::{Command, Stdio};

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

/// Runs a program and gives what it wrote to standard output.
///
/// # Errors
/// [`ProgramError`]
pub fn ask(program: &str, words: &[&str]) -> Result<String, ProgramError> {
    let mut command = Command::new(program);
    command.args(words).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    let output = command
        .output()
        .map_err(|error| ProgramError { code: None, reason: format!("`{program}` could not be run: {error}") })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = if said.trim().is_empty() { text.trim() } else { said.trim() };
    let said = &said[said.ceil_char_boundary(said.len().saturating_sub(SAID))..];
    let verb = words.iter().take(2).copied().collect::<Vec<_>>().join(" ");
    let reason = format!("`{program} {verb}` ended with {}: {}", output.status, said.replace('\n', "; "));
    Err(ProgramError { code: output.status.code(), reason })
}

/// The same for what says nothing of interest; in the journal of the system stands that it was run.
///
/// # Errors
/// As [`ask`].
pub fn tell(program: &str, words: &[&str]) -> Result<(), ProgramError> {
    tracing::info!("{program} {}", words.join(" "));
    ask(program, words).map(drop)
}
