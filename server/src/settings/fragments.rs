//! Where settings come from, and their merge.
#![expect(clippy::disallowed_methods, reason = "reads the settings files")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{SettingProblem, Settings, SettingsError, read};

/// Environment variables with our prefix that are not settings of the service.
const NOT_SETTINGS: [&str; 6] = ["NKD_SERVER", "NKD_TOKEN", "NKD_CA", "NKD_CONFIG", "NKD_LOG", "NKD_UPDATE_GOLDEN"];

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The main file. It must exist when it was named; the default one need not.
    pub file: Option<PathBuf>,
    /// `NAME=VALUE` from flags, in order.
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub environment: Vec<(String, String)>,
}

/// Merged values, each with its origin.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    pub(super) values: Table,
    pub(super) origins: BTreeMap<String, String>,
    pub(super) problems: Vec<SettingProblem>,
}

const DEFAULT_FILE: &str = "/etc/nkd/nkd.toml";

impl Inputs {
    /// Reads and merges everything.
    #[must_use]
    pub fn gather(sources: &Sources) -> Self {
        let mut inputs = Self::default();
        let (main, required) = match &sources.file {
            Some(file) => (file.clone(), true),
            None => (PathBuf::from(DEFAULT_FILE), false),
        };
        inputs.file(&main, required);
        for fragment in fragments(&main.with_extension("d")) {
            inputs.file(&fragment, true);
        }
        for (name, value) in &sources.environment {
            // `NKD_TEST_...` and the command line's own variables are no settings.
            if NOT_SETTINGS.contains(&name.as_str()) {
                continue;
            }
            if let Some(path) = name.strip_prefix("NKD_") {
                inputs.put(&path.to_lowercase().replace("__", "."), value, name);
            }
        }
        for (name, value) in &sources.flags {
            inputs.put(name, value, "a flag");
        }
        inputs
    }

    /// Reads the merged values into settings.
    pub fn validate(self) -> Result<Settings, SettingsError> {
        read::settings(self)
    }

    fn file(&mut self, path: &Path, required: bool) {
        let origin = path.display().to_string();
        let problem = |message: String| SettingProblem { name: String::new(), origin: origin.clone(), message };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => return,
            Err(e) => return self.problems.push(problem(format!("cannot be read: {e}"))),
        };
        match text.parse::<Table>() {
            Ok(table) => {
                note_origins(&table, "", &origin, &mut self.origins);
                merge(&mut self.values, table);
            }
            Err(e) => self.problems.push(problem(format!("is not TOML: {}", e.to_string().trim_end()))),
        }
    }

    /// Sets one value from text: read as TOML when it is that, as a plain string otherwise.
    fn put(&mut self, path: &str, text: &str, origin: &str) {
        let value = format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
        let value = value.filter(|v| !v.is_datetime()).unwrap_or_else(|| Value::String(text.to_owned()));
        let mut table = &mut self.values;
        let mut parts: Vec<&str> = path.split('.').collect();
        let Some(last) = parts.pop() else { return };
        for part in parts {
            let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            let Value::Table(inner) = entry else { return };
            table = inner;
        }
        table.insert(last.to_owned(), value);
        self.origins.insert(path.to_owned(), origin.to_owned());
    }
}

fn fragments(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files
}

fn note_origins(table: &Table, path: &str, origin: &str, origins: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let Value::Table(inner) = value {
            note_origins(inner, &at, origin, origins);
        }
        origins.insert(at, origin.to_owned());
    }
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
