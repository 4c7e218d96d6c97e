//! The files of the repository, and the form of Rust files.

use std::path::Path;

use anyhow::{Context, Result};

use super::Problem;
use crate::{build, repository};

/// Above this, a file says in its `//!` why it is long.
const LONG: usize = 800;
const NAMELESS: [&str; 8] = ["common", "helper", "helpers", "misc", "shared", "util", "utilities", "utils"];

/// A text file that git knows or would add.
pub struct Source {
    /// From the repository's root.
    pub path: String,
    pub text: String,
}

impl Source {
    pub fn all() -> Result<Vec<Self>> {
        let root = repository();
        let words = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"].map(Into::into);
        let listed = build::output_in(&root, "git", &words).context("the files of the repository are git's")?;
        let mut sources = Vec::new();
        for path in listed.split_terminator('\0') {
            // What is deleted and not yet committed is listed too; corpora and images are no text.
            let Ok(bytes) = std::fs::read(root.join(path)) else { continue };
            if let Ok(text) = String::from_utf8(bytes) {
                sources.push(Self { path: path.to_owned(), text });
            }
        }
        Ok(sources)
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Without the test module at the end of a file.
    pub fn production(&self) -> &str {
        let inline = |at: &usize| {
            let mut lines = self.text[*at..].lines().map(str::trim).skip_while(|line| line.starts_with("#["));
            lines.next().is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
        };
        let end = self.text.match_indices("#[cfg(test)]").map(|(at, _)| at).find(inline);
        &self.text[..end.unwrap_or(self.text.len())]
    }

    fn is_test(&self) -> bool {
        let path = Path::new(&self.path);
        path.iter().any(|part| part == "tests")
            || path.file_stem().is_some_and(|s| s.to_string_lossy().ends_with("tests"))
    }
}

/// Rules on the form of one file.
pub fn form(source: &Source) -> Vec<Problem> {
    if !source.is_rust() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    if !source.text.starts_with("//!") {
        problems.push(Problem::new(&source.path, "open the file with `//!`: what it is for"));
    }
    let lines = source.production().lines().count();
    let reason = source.text.lines().any(|line| line.starts_with("//!") && line.contains("800 lines"));
    if lines > LONG && !source.is_test() && !reason {
        let message = format!(
            "{lines} production lines: split it, or say in its `//!` why it is better above 800 lines in one piece"
        );
        problems.push(Problem::new(&source.path, message));
    }
    let parts = source.path.split('/').map(|part| part.trim_end_matches(".rs"));
    for part in parts.filter(|part| NAMELESS.contains(part)) {
        problems.push(Problem::new(&source.path, format!("`{part}` names nothing: call it what it holds")));
    }
    for (index, line) in source.text.lines().enumerate() {
        if line.trim_start().starts_with("#[ignore]") {
            let message = "a test is ignored without a reason: `#[ignore = \"namespace tier: needs root\"]`";
            problems.push(Problem::new(format!("{}:{}", source.path, index + 1), message));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    fn messages(path: &str, text: &str) -> String {
        form(&source(path, text)).iter().map(|problem| format!("{problem}\n")).collect()
    }

    #[test]
    fn broken_forms_are_named() {
        assert_eq!(messages("server/src/a.rs", "//! A.\n"), "");
        assert!(messages("server/src/a.rs", "// A.\n").contains("open the file"));
        assert!(messages("server/src/utils.rs", "//! A.\n").contains("names nothing"));
        assert!(messages("server/tests/common/mod.rs", "//! A.\n").contains("names nothing"));
        assert!(messages("a.rs", "//! A.\n#[test]\n    #[ignore]\n").contains("a.rs:3"));
        assert_eq!(messages("a.rs", "//! A.\n#[ignore = \"slow\"]\n"), "");
    }

    #[test]
    fn long_files_need_a_reason_and_tests_do_not_count() {
        let long = "fn a() {}\n".repeat(801);
        assert!(messages("a.rs", &format!("//! A.\n{long}")).contains("802 production lines"));
        assert_eq!(messages("a.rs", &format!("//! Above 800 lines: one table.\n{long}")), "");
        for more in ["", "#[expect(clippy::a, reason = \"b\")]\n"] {
            assert_eq!(messages("a.rs", &format!("//! A.\n#[cfg(test)]\n{more}mod tests {{\n{long}}}\n")), "");
        }
        assert_eq!(messages("a/tests.rs", &format!("//! A.\n{long}")), "");
        let early = format!("//! A.\n#[cfg(test)]\nmod tests;\n{long}");
        assert!(messages("a.rs", &early).contains("production lines"));
    }
}
