//! Rules that accept machines as they appear (pure).

use nkd_api::Problem;
use nkd_api::machine::{AcceptRule, Machine, MatchFields};

/// The first rule that fits, in the order of their names.
#[must_use]
pub fn first_match<'a>(machine: &Machine, rules: &'a [AcceptRule]) -> Option<&'a AcceptRule> {
    rules.iter().find(|rule| fits(machine, &rule.matches))
}

/// True when every given field fits. A rule without a field fits nothing.
#[must_use]
pub fn fits(machine: &Machine, fields: &MatchFields) -> bool {
    if *fields == MatchFields::default() {
        return false;
    }
    let text = |pattern: &Option<String>, value: Option<&String>| match pattern {
        None => true,
        Some(pattern) => value.is_some_and(|value| glob(pattern, value)),
    };
    let identity = &machine.identity;
    let mac = match &fields.mac {
        None => true,
        Some(pattern) => identity.macs.iter().any(|mac| glob(pattern, &mac.to_string())),
    };
    mac && text(&fields.uuid, identity.uuid.as_ref())
        && text(&fields.serial, identity.serial.as_ref())
        && text(&fields.vendor, identity.vendor.as_ref())
        && text(&fields.product, identity.product.as_ref())
        && fields.labels.iter().all(|(key, value)| machine.labels.get(key).is_some_and(|v| glob(value, v)))
}

/// What is wrong with a rule.
#[must_use]
pub fn problems(rule: &AcceptRule) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !super::lifecycle::valid_name(&rule.name) {
        problems.push(Problem { path: "name".into(), message: super::lifecycle::NAME_RULE.into() });
    }
    if rule.matches == MatchFields::default() {
        problems.push(Problem {
            path: "matches".into(),
            message: "name at least one field (mac, uuid, serial, vendor, product, labels): an empty rule would let everything in".into(),
        });
    }
    problems
}

fn glob(pattern: &str, value: &str) -> bool {
    let (pattern, value) = (pattern.to_lowercase(), value.to_lowercase());
    match pattern.strip_suffix('*') {
        Some(beginning) => value.starts_with(beginning),
        None => value == pattern,
    }
}
