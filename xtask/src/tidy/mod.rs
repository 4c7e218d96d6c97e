//! `cargo xtask tidy`: rustfmt, clippy, and the rules of this project that those cannot know.

mod crates;
mod licence;
mod purity;
pub mod source;
mod words;

use std::fmt;

use anyhow::{Result, bail};

use crate::build;
use crate::metadata::Metadata;
use source::Source;

/// A rule is broken.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// A file, or a file and a line.
    place: String,
    /// What is wrong and what would be right.
    message: String,
}

impl Problem {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

pub fn run() -> Result<()> {
    let mut failed = Vec::new();
    let problems = own_rules()?;
    if !problems.is_empty() {
        for problem in &problems {
            eprintln!("{problem}");
        }
        failed.push(format!("{} broken rules", problems.len()));
    }
    for words in [
        &["fmt", "--all", "--check"][..],
        &["clippy", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"],
    ] {
        if let Err(error) = build::cargo(words) {
            failed.push(error.to_string());
        }
    }
    // A workspace of its own: a crate that the others gained has to be locked there as well.
    let fuzz = ["metadata", "--locked", "--quiet", "--format-version=1", "--manifest-path", "fuzz/Cargo.toml"];
    if build::cargo_output(&fuzz).is_err() {
        failed.push("fuzz/Cargo.lock is behind: run `cargo metadata --manifest-path fuzz/Cargo.toml`".to_owned());
    }
    if let Err(error) = purity::impure_code_is_refused() {
        failed.push(format!("{error:#}"));
    }
    if !failed.is_empty() {
        bail!("not tidy: {}", failed.join("; "));
    }
    println!("tidy");
    Ok(())
}

fn own_rules() -> Result<Vec<Problem>> {
    let sources = Source::all()?;
    let mut problems = Vec::new();
    for source in &sources {
        problems.extend(source::form(source));
        problems.extend(words::forbidden(source));
    }
    problems.extend(purity::covered(&sources));
    problems.extend(crates::check(&Metadata::read()?)?);
    Ok(problems)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_repository_keeps_its_rules() {
        let problems = super::own_rules().unwrap();
        assert!(problems.is_empty(), "{}", problems.iter().map(|p| format!("{p}\n")).collect::<String>());
    }
}
