//! Words that have no place in a finished file. This file is the only one that may hold them.

use super::Problem;
use super::source::Source;

const OWN: &str = "xtask/src/tidy/words.rs";
/// Unfinished work; whole words, as they are written.
const UNFINISHED: [&str; 6] = ["TODO", "FIXME", "XXX", "todo!", "unimplemented!", "dbg!"];

pub fn forbidden(source: &Source) -> Vec<Problem> {
    // A corpus holds what a fuzzer came upon, a licence what its authors wrote.
    if source.path == OWN || source.path.contains("/corpus/") || source.path == "LICENSE" {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let mut say = |message: String| problems.push(Problem::new(format!("{}:{}", source.path, index + 1), message));
        if let Some(word) = UNFINISHED.iter().find(|word| holds(line, word)) {
            say(format!("`{word}`: finish it, or leave it out and say so in an issue"));
        }
    }
    problems
}

/// True if `word` is there on its own, not as a part of another.
fn holds(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let after = line[at + word.len()..].chars().next();
        let longer = word.ends_with(part) && after.is_some_and(part);
        !longer && !line[..at].ends_with(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        forbidden(&Source { path: path.into(), text: text.into() }).len()
    }

    #[test]
    fn unfinished_work_is_found_as_a_word() {
        assert_eq!(found("a.rs", "// TODO: later\nfn a() { todo!() }\nlet x = dbg!(1);\n"), 3);
        assert_eq!(found("a.rs", "let todo = MASTODON; // XXXX autodoc"), 0);
    }
}
