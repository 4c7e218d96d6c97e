//! Programs of the system.
#![expect(clippy::disallowed_methods, reason = "runs them")]

use std::process::{Command, Stdio};

/// So much of what a program said stands in the reason.
const SAID: usize = 600;

/// Runs a program and gives what it wrote to standard output.
///
/// # Errors
/// In one sentence, with the end of what it wrote to standard error.
pub fn ask(program: &str, words: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(words).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("`{program}` could not be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = if said.trim().is_empty() { text.trim() } else { said.trim() };
    let said = &said[said.ceil_char_boundary(said.len().saturating_sub(SAID))..];
    let verb = words.iter().take(2).copied().collect::<Vec<_>>().join(" ");
    Err(format!("`{program} {verb}` ended with {}: {}", output.status, said.replace('\n', "; ")))
}

/// The same for what says nothing of interest; in the journal of the system stands that it was run.
///
/// # Errors
/// As [`ask`].
pub fn tell(program: &str, words: &[&str]) -> Result<(), String> {
    tracing::info!("{program} {}", words.join(" "));
    ask(program, words).map(drop)
}
