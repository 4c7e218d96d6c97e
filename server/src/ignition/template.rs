//! Templates and their variables (pure).

use std::collections::BTreeMap;

use nkd_api::MacAddr;
use serde::Serialize;

use super::IgnitionError;

/// What a template may use.
#[derive(Debug, Clone, Serialize)]
pub struct Variables {
    /// The machine.
    pub machine: MachineFacts,
    /// Its distribution profile.
    pub profile: ProfileFacts,
    /// How the agent gets there.
    pub agent: AgentFiles,
    /// Keys of the default user.
    pub ssh_authorized_keys: Vec<String>,
    /// A configuration file of the distribution's own installer, if it needs one.
    pub installer_config: Option<InstallerConfig>,
    /// Address of the service as this machine reaches it.
    pub service: String,
}

/// The machine as templates see it.
#[derive(Debug, Clone, Serialize)]
pub struct MachineFacts {
    /// Stable identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// Host name.
    pub hostname: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Hardware addresses.
    pub macs: Vec<MacAddr>,
}

/// The profile as templates see it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileFacts {
    /// Name.
    pub name: String,
    /// Account that gets the SSH keys.
    pub default_user: String,
    /// Prefix of kernel arguments.
    pub karg_prefix: String,
}

/// The agent's files.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentFiles {
    /// Content of `/etc/nkd/agent.json`. Holds a token.
    pub config: String,
    /// Where the binary is, when the image does not carry it.
    pub url: Option<String>,
    /// Its SHA-256.
    pub sha256: Option<String>,
    /// Its unit file.
    pub unit: Option<String>,
    /// That of its balancer.
    pub balancer_unit: Option<String>,
    /// The unit of its updates, likewise.
    pub updater_unit: Option<String>,
    /// The unit that restarts a node whose release is not confirmed, likewise.
    pub deadline_unit: Option<String>,
}

impl std::fmt::Debug for AgentFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AgentFiles(url {:?})", self.url)
    }
}

/// A file for the distribution's installer.
#[derive(Debug, Clone, Serialize)]
pub struct InstallerConfig {
    /// Path.
    pub path: String,
    /// Content.
    pub contents: String,
}

/// The templates by name: the built-in ones, and those of the operator's folder over them.
#[derive(Debug, Clone)]
pub struct TemplateSet(BTreeMap<String, String>);

impl TemplateSet {
    /// The templates that come with the program.
    #[must_use]
    pub fn builtin() -> Self {
        let builtin = [
            ("discovery", include_str!("../../../ignition-templates/discovery/template.bu")),
            ("live-install", include_str!("../../../ignition-templates/live-install/template.bu")),
            ("node", include_str!("../../../ignition-templates/node/template.bu")),
        ];
        Self(builtin.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect())
    }

    /// Adds a template, or replaces the one of that name.
    pub fn insert(&mut self, name: String, text: String) {
        self.0.insert(name, text);
    }

    /// Names of all templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// True when there is a template of that name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Renders one template to YAML. An undefined variable is an error, not an empty text.
    pub fn render(&self, name: &str, variables: &Variables) -> Result<String, IgnitionError> {
        let text = self.0.get(name).ok_or_else(|| IgnitionError::UnknownTemplate {
            name: name.to_owned(),
            known: self.names().collect::<Vec<_>>().join(", "),
        })?;
        let mut engine = minijinja::Environment::new();
        engine.set_undefined_behavior(minijinja::UndefinedBehavior::SemiStrict);
        engine
            .render_str(text, minijinja::Value::from(minijinja::value::Serde(variables)))
            .map_err(|source| IgnitionError::Render { name: name.to_owned(), source })
    }
}
