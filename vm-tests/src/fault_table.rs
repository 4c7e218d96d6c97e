//! A table of step by fault: what came of each fault at each step. Pure, but for the file.
#![allow(clippy::disallowed_methods, reason = "writes the table into a file")]

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::Error;

/// What a cell says of which nothing is known.
const NOT_HIT: &str = "not hit";

/// Rows are steps, columns faults. A cell that nobody has filled says `not hit`.
#[derive(Debug, Clone)]
pub struct FaultTable {
    steps: Vec<String>,
    faults: Vec<String>,
    cells: BTreeMap<(String, String), String>,
}

impl FaultTable {
    /// With nothing in it.
    pub fn new<S: Into<String>, F: Into<String>>(
        steps: impl IntoIterator<Item = S>,
        faults: impl IntoIterator<Item = F>,
    ) -> Self {
        let steps = steps.into_iter().map(Into::into).collect();
        Self { steps, faults: faults.into_iter().map(Into::into).collect(), cells: BTreeMap::new() }
    }

    /// Says what came of a fault at a step.
    pub fn set(&mut self, step: &str, fault: &str, what: impl Into<String>) {
        self.cells.insert((step.to_owned(), fault.to_owned()), what.into());
    }

    /// What came of a fault at a step; nothing: it was not hit.
    pub fn get(&self, step: &str, fault: &str) -> Option<&str> {
        self.cells.get(&(step.to_owned(), fault.to_owned())).map(String::as_str)
    }

    /// Writes it as `update-faults.md` into a folder.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, Error> {
        let path = folder.join("update-faults.md");
        std::fs::write(&path, self.to_string()).map_err(Error::io(format!("writing {}", path.display())))?;
        Ok(path)
    }
}

impl fmt::Display for FaultTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| step | {} |", self.faults.join(" | "))?;
        writeln!(f, "|---{}|", "|---".repeat(self.faults.len()))?;
        for step in &self.steps {
            let cells = self.faults.iter().map(|fault| self.get(step, fault).unwrap_or(NOT_HIT));
            writeln!(f, "| {step} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_hit_is_never_said_to_be_well() {
        let mut table = FaultTable::new(["staging", "staged"], ["agent", "power"]);
        table.set("staged", "agent", "ok");
        let text =
            "| step | agent | power |\n|---|---|---|\n| staging | not hit | not hit |\n| staged | ok | not hit |\n";
        assert_eq!(table.to_string(), text);
    }
}
