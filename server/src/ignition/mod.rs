//! Ignition configurations: template and snippets in, checked and typed configuration out. Pure.
//!
//! ```text
//! template.bu --minijinja--> YAML --butane--> Ignition value --merge--> + snippets --check--> typed, spec <= profile's
//! ```

mod butane;
mod check;
mod merge;
pub mod overlay;
mod template;

pub use template::{AgentFiles, InstallerConfig, MachineFacts, ProfileFacts, TemplateSet, Variables};

use nkd_api::Problem;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

/// A configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IgnitionError {
    /// No such template.
    #[error("there is no template `{name}`: known are {known}")]
    UnknownTemplate {
        /// Asked for.
        name: String,
        /// Known names.
        known: String,
    },
    /// The template engine failed.
    #[error("the template `{name}` does not render")]
    Render {
        /// Template.
        name: String,
        /// Cause.
        #[source]
        source: minijinja::Error,
    },
    /// The text is not YAML.
    #[error("{place} is not YAML: {reason}")]
    Yaml {
        /// Template or snippet.
        place: String,
        /// What the parser says.
        reason: String,
    },
    /// The result is not a good configuration.
    #[error("the configuration is not valid: {}", list(.0))]
    Invalid(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("{}: {}", p.path, p.message)).collect::<Vec<_>>().join("; ")
}

/// Renders a template, merges snippets over it, checks the result, and gives the JSON text.
pub fn compose(
    templates: &TemplateSet,
    name: &str,
    variables: &Variables,
    snippets: &[String],
    spec: &str,
) -> Result<Vec<u8>, IgnitionError> {
    let text = templates.render(name, variables)?;
    let mut config = butane::to_ignition(&text, &format!("template {name}"))?;
    for (i, snippet) in snippets.iter().enumerate() {
        let over = butane::to_ignition(snippet, &format!("snippets[{i}]"))?;
        merge::merge(&mut config, over);
    }
    config["ignition"]["version"] = json!(spec);
    let problems = check::problems(&config, spec);
    if !problems.is_empty() {
        return Err(IgnitionError::Invalid(problems));
    }
    Ok(compact(&config))
}

/// Checks a snippet alone, when it is declared.
pub fn check_snippet(snippet: &str, place: &str, spec: &str) -> Result<(), IgnitionError> {
    let mut config = butane::to_ignition(snippet, place)?;
    config["ignition"]["version"] = json!(spec);
    let problems = check::problems(&config, spec);
    if problems.is_empty() { Ok(()) } else { Err(IgnitionError::Invalid(problems)) }
}

/// Where the first stage finds the real configuration.
#[derive(Clone)]
pub struct FirstStage<'a> {
    /// Address of the configuration, `https://`.
    pub url: &'a str,
    /// The only CA to trust, PEM.
    pub ca_pem: &'a str,
    /// Single-use token.
    pub token: &'a str,
    /// The configuration itself, for its digest.
    pub config: &'a [u8],
}

/// The first-stage configuration: merges the real one over TLS with the CA pinned, its digest, and the token.
#[must_use]
pub fn first_stage(stage: &FirstStage<'_>, spec: &str) -> Vec<u8> {
    let digest = hex::encode(Sha512::digest(stage.config));
    compact(&json!({
        "ignition": {
            "version": spec,
            "config": { "merge": [{
                "source": stage.url,
                "httpHeaders": [{ "name": "Authorization", "value": format!("Bearer {}", stage.token) }],
                "verification": { "hash": format!("sha512-{digest}") },
            }]},
            "security": { "tls": { "certificateAuthorities": [{ "source": butane::data_url(stage.ca_pem.as_bytes()) }] } },
            // Ignition retries 503 and transport errors for ever; a machine that waits must be able to restart.
            "timeouts": { "httpTotal": 600 },
        }
    }))
}

fn compact(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests;
