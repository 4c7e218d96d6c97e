//! Reading a cluster file: YAML to [`Cluster`], checked as a whole (pure).
//!
//! Every problem is found in one run and stands at its path, `spec.pools[1].machines[0].ip`. [`structure`] holds the shape
//! of the document against the JSON Schema of the type, [`rules`] checks what the fields mean.

mod certificates;
mod kubernetes;
mod machines;
mod rules;
mod structure;
pub mod syntax;

use nkd_api::Problem;
use nkd_api::cluster::{Cluster, Pool};
use serde::Serialize;
use serde_json::Value;

pub use structure::schema;
pub(super) use structure::sources;

/// What a check has found.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// The cluster; none when there are problems.
    #[serde(skip)]
    pub cluster: Option<Cluster>,
    /// What must be put right, in the order of the paths.
    pub problems: Vec<Problem>,
    /// What works and is probably not meant.
    pub warnings: Vec<Problem>,
}

impl Checked {
    /// Adds problems that were found beside the check.
    pub fn add(&mut self, problems: impl IntoIterator<Item = Problem>) {
        self.problems.extend(problems);
        self.problems.sort_by_cached_key(|problem| order(&problem.path));
        if !self.problems.is_empty() {
            self.cluster = None;
        }
    }
}

/// What a source may be that names a path, see [`nkd_api::cluster::Source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paths {
    /// Nothing: the service reads no path that somebody else wrote.
    Refused,
    /// A file that the command line will read.
    Allowed,
}

/// Reads and checks a cluster file as the service takes it: every source is inline or an http(s) address.
#[must_use]
pub fn read(text: &str) -> Checked {
    match parse(text) {
        Ok(document) => check(document, Paths::Refused),
        Err(problem) => Checked { cluster: None, problems: vec![problem], warnings: Vec::new() },
    }
}

/// Reads YAML or JSON of any shape.
///
/// # Errors
/// A problem without a path: the text is not one YAML document.
pub fn parse(text: &str) -> Result<Value, Problem> {
    // The parser would show lines of the file, which may be of a key.
    serde_saphyr::from_str(text).map_err(|error| Problem {
        path: String::new(),
        message: format!("this does not read as YAML: {}", error.without_snippet()),
    })
}

/// Checks a document.
#[must_use]
pub fn check(mut document: Value, paths: Paths) -> Checked {
    let shape = structure::settle(&mut document);
    let mut problems = shape.problems;
    let cluster = serde_json::from_value::<Cluster>(document).map_err(|error| {
        problems.push(Problem { path: String::new(), message: format!("this is not a cluster file: {error}") });
    });
    let mut warnings = Vec::new();
    if let Ok(cluster) = &cluster {
        let mut found = rules::Findings::new(&shape.bad, paths);
        rules::check(cluster, &mut found);
        problems.extend(found.problems);
        warnings = found.warnings;
    }
    warnings.sort_by_cached_key(|warning| order(&warning.path));
    let mut checked = Checked { cluster: cluster.ok(), problems: Vec::new(), warnings };
    checked.add(problems);
    checked
}

/// Sorts list items by their number.
fn order(path: &str) -> Vec<(String, u64)> {
    path.split(']')
        .map(|part| match part.rsplit_once('[') {
            Some((name, index)) if index.parse::<u64>().is_ok() => (name.to_owned(), index.parse().unwrap_or_default()),
            _ => (part.to_owned(), 0),
        })
        .collect()
}

/// How many machines a pool has: `count`, or those that are listed.
#[must_use]
pub fn pool_size(pool: &Pool) -> usize {
    pool.count.map_or(pool.machines.len(), |count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// Host name of machine `index` of a pool, counted from 0: its own, or `<cluster>-<pool>-<n>` with n from 1.
#[must_use]
pub fn hostname(cluster: &str, pool: &Pool, index: usize) -> String {
    let own = pool.machines.get(index).and_then(|machine| machine.hostname.clone());
    own.unwrap_or_else(|| format!("{cluster}-{}-{}", pool.name, index + 1))
}

#[cfg(test)]
pub(super) mod tests;
