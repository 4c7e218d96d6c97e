//! Reading a cluster file from disk with the files that it names.
#![expect(clippy::disallowed_methods, reason = "the edge where files come in")]

use std::io::Read as _;
use std::path::Path;

use nkd_api::Problem;
use serde_json::{Value, json};

use super::file::{self, Checked, Paths, sources};

/// The longest cluster file, and the longest text that it may name.
const LIMIT: u64 = 4 << 20;

/// A cluster file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file itself.
    #[error("cannot read {file}")]
    File {
        /// File.
        file: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

/// Reads and checks a cluster file, `-` for standard input. The paths in it are relative to its folder; their texts stand
/// in the result. A file that cannot be read is a problem of the field that names it.
///
/// # Errors
/// [`LoadError`] when there is no text to check.
pub fn load(path: &Path) -> Result<Checked, LoadError> {
    let mut document = match file::parse(&text(path)?) {
        Ok(document) => document,
        Err(problem) => return Ok(Checked { cluster: None, problems: vec![problem], warnings: Vec::new() }),
    };
    let missing = inline(&mut document, path.parent().unwrap_or(Path::new("")));
    // What could not be read is said once, by the reason why.
    let mut checked = file::check(document, if missing.is_empty() { Paths::Refused } else { Paths::Allowed });
    checked.add(missing);
    Ok(checked)
}

/// The text of a file, `-` for standard input.
///
/// # Errors
/// [`LoadError`].
pub fn text(path: &Path) -> Result<String, LoadError> {
    let text = if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { read(path) };
    text.map_err(|source| LoadError::File { file: path.display().to_string(), source })
}

/// Puts the texts of files in the place of their paths.
fn inline(document: &mut Value, folder: &Path) -> Vec<Problem> {
    let mut problems = Vec::new();
    sources(document, &mut |at, source| {
        let Value::String(location) = &*source else { return };
        if location.is_empty() || location.contains("://") {
            return;
        }
        let path = folder.join(location);
        match read(&path) {
            Ok(text) => *source = json!({ "inline": text }),
            Err(error) => problems
                .push(Problem { path: at.to_owned(), message: format!("cannot read {}: {error}", path.display()) }),
        }
    });
    problems
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(std::io::Error::other("it is a folder: name its files one by one"));
    }
    if file.take(LIMIT + 1).read_to_string(&mut text)? as u64 > LIMIT {
        return Err(std::io::Error::other(format!("it is longer than {} MiB", LIMIT >> 20)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_beside_the_file_and_every_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("cni.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: cni}\n");
        let file = |cni: &str| {
            format!(
                "apiVersion: nkd.io/v1alpha1\nkind: Cluster\nmetadata: {{name: c}}\nspec:\n  kubernetes: {{version: v1.31.4, cni: {{manifest: {cni}}}}}\n  \
                 pools: [{{name: cp, role: control-plane, count: 1}}]\n  hooks: {{before: [./none.sh, .], after: [https://a.example/b.yaml]}}\n"
            )
        };
        write("cluster.yaml", &file("./cni.yaml"));
        let checked = load(&dir.path().join("cluster.yaml")).unwrap();
        let paths: Vec<&str> = checked.problems.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths, ["spec.hooks.before[0]", "spec.hooks.before[1]"], "{:?}", checked.problems);
        assert!(checked.cluster.is_none());
        write("none.sh", "#!/bin/sh\n");
        write("cluster.yaml", &file("./cni.yaml").replace(", .]", "]"));
        let cluster = load(&dir.path().join("cluster.yaml")).unwrap().cluster.unwrap();
        let text = serde_json::to_value(&cluster).unwrap();
        assert_eq!(text["spec"]["hooks"]["before"][0], json!({"inline": "#!/bin/sh\n"}));
        assert!(text["spec"]["kubernetes"]["cni"]["manifest"]["inline"].as_str().unwrap().contains("Namespace"));
        assert_eq!(text["spec"]["hooks"]["after"][0], "https://a.example/b.yaml", "an address stays");
        assert!(load(&dir.path().join("gone.yaml")).is_err());
    }
}
