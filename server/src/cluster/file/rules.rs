//! What the fields of a cluster file mean, as far as it is about the whole (pure).

use std::collections::{BTreeMap, BTreeSet};

use nkd_api::Problem;
use nkd_api::cluster::{API_VERSION, Cluster, ClusterSpec, Os, Proxy, Source};
use nkd_api::update::{MaxUnavailable, Window};

use super::syntax::{self, field, shown};
use super::{Paths, certificates, kubernetes, machines};
use crate::content::image::{catalog, profile};
use crate::ignition::{IgnitionError, check_snippet};
use crate::machine::lifecycle::{NAME_RULE, valid_name};

/// What was found, and where nothing more is to be said.
pub(super) struct Findings<'a> {
    /// Problems.
    pub problems: Vec<Problem>,
    /// Warnings.
    pub warnings: Vec<Problem>,
    bad: &'a BTreeSet<String>,
    paths: Paths,
}

impl<'a> Findings<'a> {
    /// `bad` are the paths that the file does not hold as they are: whatever is said of them would be about nothing.
    pub fn new(bad: &'a BTreeSet<String>, paths: Paths) -> Self {
        Self { problems: Vec::new(), warnings: Vec::new(), bad, paths }
    }

    /// True when the value at this path, or one around it, is not the file's.
    pub fn is_bad(&self, path: &str) -> bool {
        let ends = path.char_indices().filter(|(_, c)| matches!(c, '.' | '[')).map(|(end, _)| end);
        self.bad.contains("") || ends.chain([path.len()]).any(|end| self.bad.contains(&path[..end]))
    }

    /// True when a value below this path is not the file's: what the rest adds up to is not known.
    pub fn is_torn(&self, path: &str) -> bool {
        let below = |bad: &String| bad.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[']));
        self.is_bad(path) || self.bad.iter().any(below)
    }

    pub fn problem(&mut self, path: &str, message: impl Into<String>) {
        if !self.is_bad(path) {
            self.problems.push(Problem { path: path.to_owned(), message: message.into() });
        }
    }

    pub fn warn(&mut self, path: &str, message: impl Into<String>) {
        if !self.is_bad(path) {
            self.warnings.push(Problem { path: path.to_owned(), message: message.into() });
        }
    }

    /// Notes a problem if there is one.
    pub fn when(&mut self, path: &str, message: Option<impl Into<String>>) {
        if let Some(message) = message {
            self.problem(path, message);
        }
    }

    /// Notes the second place of a value that may stand once.
    pub fn once(&mut self, seen: &mut BTreeMap<String, String>, value: &str, path: &str) {
        if self.is_bad(path) {
            return;
        }
        match seen.get(value) {
            Some(first) => {
                let message = format!("{} stands at {first} already", shown(value));
                self.problem(path, message);
            }
            None => {
                seen.insert(value.to_owned(), path.to_owned());
            }
        }
    }

    /// Checks where a text comes from, and gives it back when it is here.
    pub fn source<'s>(&mut self, path: &str, source: &'s Source) -> Option<&'s str> {
        let location = match source {
            Source::Inline { inline } if inline.trim().is_empty() => {
                if !self.is_torn(path) {
                    self.problem(path, "the text is empty");
                }
                return None;
            }
            Source::Inline { inline } => return Some(inline),
            Source::Location(location) => location,
        };
        if location.is_empty() {
            self.problem(path, "this is empty: name a file or an https address, or write the text under `inline`");
        } else if location.contains("://") {
            match syntax::web_address(location) {
                Some(url) if url.scheme() == "http" => {
                    self.warn(path, "whoever sits on the way can change what comes over http: use https, or a file");
                }
                Some(_) => {}
                None => self.problem(path, "this is not an http or https address"),
            }
        } else if self.paths == Paths::Refused {
            self.problem(
                path,
                format!(
                    "{} is a path, and the service reads no paths: the nkd command puts the file's text in; by hand, write it under `inline`",
                    shown(location)
                ),
            );
        }
        None
    }

    /// Checks a list of Kubernetes manifests.
    pub fn manifest(&mut self, path: &str, source: &Source) {
        let Some(text) = self.source(path, source) else { return };
        let documents = match serde_saphyr::from_multiple::<serde_json::Value>(text) {
            Ok(documents) => documents,
            Err(error) => {
                return self.problem(path, format!("the manifest does not read as YAML: {}", error.without_snippet()));
            }
        };
        let mut objects = documents.iter().filter(|document| !document.is_null()).enumerate().peekable();
        if objects.peek().is_none() {
            self.problem(path, "the manifest holds no object");
        }
        for (i, object) in objects {
            if !(object["apiVersion"].is_string() && object["kind"].is_string()) {
                self.problem(path, format!("object {} of the manifest has no `apiVersion` and `kind`", i + 1));
            }
        }
    }
}

/// Checks a cluster.
pub(super) fn check(cluster: &Cluster, found: &mut Findings<'_>) {
    if cluster.api_version != API_VERSION {
        found.problem("apiVersion", format!("{} is not known: write {API_VERSION}", shown(&cluster.api_version)));
    }
    if cluster.kind != "Cluster" {
        found.problem("kind", format!("{} is not known: write Cluster", shown(&cluster.kind)));
    }
    if !valid_name(&cluster.metadata.name) {
        found.problem("metadata.name", format!("{}: {NAME_RULE}", shown(&cluster.metadata.name)));
    }
    labels("metadata.labels", &cluster.metadata.labels, found);
    let spec = &cluster.spec;
    os(&spec.os, found);
    kubernetes::check(&spec.kubernetes, found);
    let mut keys = BTreeMap::new();
    for (i, key) in spec.ssh.authorized_keys.iter().enumerate() {
        let path = format!("spec.ssh.authorizedKeys[{i}]");
        match syntax::ssh_key(key) {
            Some(message) => found.problem(&path, message),
            None => {
                if let Some(first) = keys.insert(key, path.clone()) {
                    found.warn(&path, format!("this key stands at {first} already"));
                }
            }
        }
    }
    machines::check(cluster, found);
    if let Some(endpoint) = &spec.endpoint {
        machines::endpoint(cluster, endpoint, found);
    }
    around(spec, found);
    certificates::check(&spec.certificates, found);
}

/// Checks the labels of a node, of a machine or of a cluster.
pub(super) fn labels(path: &str, labels: &BTreeMap<String, String>, found: &mut Findings<'_>) {
    for (key, value) in labels {
        found.when(&field(path, key), syntax::label_key(key).or_else(|| syntax::label_value(value)));
    }
}

fn os(os: &Os, found: &mut Findings<'_>) {
    if profile::by_name(&os.profile).is_none() {
        let known: Vec<String> = profile::builtin().into_iter().map(|p| p.name).collect();
        found.problem("spec.os.profile", format!("{} is not one of: {}", shown(&os.profile), known.join(", ")));
    }
    if let Some(name) = os.image.as_ref().filter(|name| catalog::check_name(name).is_err()) {
        let message = format!("{} is not a name: letters, digits and ._+~-, at most 128", shown(name));
        found.problem("spec.os.image", message);
    }
    if let Some(name) = os.channel.as_ref().filter(|name| !valid_name(name)) {
        found.problem("spec.os.channel", format!("{} is no channel: {NAME_RULE}", shown(name)));
    }
}

/// What stands around the machines: time, proxies, hooks, snippets, the operator.
fn around(spec: &ClusterSpec, found: &mut Findings<'_>) {
    for (i, server) in spec.ntp.iter().enumerate() {
        let named = syntax::endpoint(server).is_ok_and(|(host, _)| host == server.trim_matches(['[', ']']));
        if !named {
            found.problem(
                &format!("spec.ntp[{i}]"),
                format!("{} is not a host name or an address, without a port", shown(server)),
            );
        }
    }
    if let Some(proxy) = &spec.proxy {
        self::proxy(proxy, found);
    }
    for (i, script) in spec.hooks.before.iter().enumerate() {
        let path = format!("spec.hooks.before[{i}]");
        if found.source(&path, script).is_some_and(|text| !text.starts_with("#!")) {
            found.problem(&path, "the script does not say who runs it: begin it with `#!/bin/sh`");
        }
    }
    for (i, manifest) in spec.hooks.after.iter().enumerate() {
        found.manifest(&format!("spec.hooks.after[{i}]"), manifest);
    }
    // The profile's own specification decides; where the profile is not known, any will do to find mistakes.
    let known = profile::by_name(&spec.os.profile);
    let ignition = known.as_ref().map_or("3.3.0", |profile| &profile.ignition_spec);
    for (i, snippet) in spec.snippets.iter().enumerate() {
        let path = format!("spec.snippets[{i}]");
        let Some(text) = found.source(&path, snippet) else { continue };
        match check_snippet(text, "the snippet", ignition) {
            Ok(()) => {}
            Err(IgnitionError::Invalid(problems)) => {
                for problem in problems {
                    found.problem(&path, format!("its {}: {}", problem.path, problem.message));
                }
            }
            // What else the parser shows of the text may be a password.
            Err(IgnitionError::Yaml { reason, .. }) => {
                let first = reason.lines().next().unwrap_or_default();
                found.problem(&path, format!("the snippet is not YAML: {}", first.trim_start_matches("error: ")));
            }
            Err(error) => found.problem(&path, error.to_string()),
        }
    }
    let housekeeper = &spec.housekeeper;
    if housekeeper.max_unavailable == MaxUnavailable::Count(0) {
        found.problem("spec.housekeeper.maxUnavailable", "with 0 no node is ever upgraded: write 1 or more");
    }
    if let Some(Err(why)) = housekeeper.window.as_ref().map(|window| window.parse::<Window>()) {
        found.problem("spec.housekeeper.window", why);
    }
    if let Some(image) = &housekeeper.image
        && !syntax::image_reference(image)
    {
        found.problem("spec.housekeeper.image", "this is not an image: write registry.example/nkd/housekeeper:0.1.0");
    }
}

fn proxy(proxy: &Proxy, found: &mut Findings<'_>) {
    for (path, address) in [("spec.proxy.http", &proxy.http), ("spec.proxy.https", &proxy.https)] {
        if let Some(address) = address
            && syntax::web_address(address).is_none()
        {
            // A proxy's address may hold a password: it is not repeated.
            found.problem(path, "this is not the address of a proxy: write http://proxy.example:3128");
        }
    }
    if proxy.http.is_none() && proxy.https.is_none() && !found.is_torn("spec.proxy") {
        found.warn("spec.proxy", "neither `http` nor `https` is given: there is no proxy");
    }
    for (i, entry) in proxy.no_proxy.iter().enumerate() {
        let name = entry.trim_start_matches("*.").trim_start_matches('.');
        let network = entry.parse::<ipnet::IpNet>().is_ok();
        if !(entry == "*" || network || syntax::is_host(name)) {
            found.problem(
                &format!("spec.proxy.noProxy[{i}]"),
                format!("{} is not a host, a .domain, an address or a network", shown(entry)),
            );
        }
    }
}
