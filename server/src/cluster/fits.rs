//! Does a machine fit what a pool asks for (pure).

use nkd_api::cluster::MachineMatch;
use nkd_api::machine::Machine;

use super::file::syntax;

/// True when every given field fits. A machine that has told no facts fits no condition on them.
#[must_use]
pub fn fits(wanted: &MachineMatch, machine: &Machine) -> bool {
    let facts = machine.facts.as_ref();
    let text = |wanted: &Option<String>, have: &Option<String>| match (wanted, have) {
        (None, _) => true,
        (Some(wanted), Some(have)) => match wanted.strip_suffix('*') {
            Some(start) => have.starts_with(start),
            None => wanted == have,
        },
        (Some(_), None) => false,
    };
    // The kernel manages a little less memory than is built in: a sixteenth is forgiven.
    let enough = |bytes: u64| facts.is_some_and(|f| f.memory_bytes >= bytes - bytes / 16);
    let memory = wanted.memory.as_deref().map(syntax::least_memory);
    let cpus = wanted.cpus.as_deref().map(syntax::least_cpus);
    memory.is_none_or(|least| least.is_ok_and(enough))
        && cpus.is_none_or(|least| least.is_ok_and(|least| facts.is_some_and(|f| f.cpus >= least)))
        && text(&wanted.architecture, &machine.identity.architecture)
        && text(&wanted.vendor, &machine.identity.vendor)
        && text(&wanted.product, &machine.identity.product)
        && wanted.labels.iter().all(|(key, value)| machine.labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use nkd_api::facts::Facts;
    use nkd_api::machine::Identity;

    use super::*;
    use crate::machine::lifecycle::new_machine;

    #[test]
    fn every_given_field_counts() {
        let identity = Identity { vendor: Some("Dell Inc.".into()), ..Identity::default() };
        let mut machine = new_machine(uuid::Uuid::nil(), identity, time::OffsetDateTime::UNIX_EPOCH);
        machine.labels.insert("rack".into(), "7".into());
        let wanted = |text: &str| serde_json::from_str::<MachineMatch>(text).unwrap();
        assert!(fits(&wanted("{}"), &machine));
        assert!(!fits(&wanted(r#"{"memory": ">=8Gi"}"#), &machine), "it has told no facts");
        machine.facts = Some(Facts { memory_bytes: (8 << 30) - (200 << 20), cpus: 4, ..Facts::default() });
        for (text, expected) in [
            (r#"{"memory": ">=8Gi"}"#, true),
            (r#"{"memory": ">=9Gi"}"#, false),
            (r#"{"cpus": ">=4", "labels": {"rack": "7"}}"#, true),
            (r#"{"cpus": ">=5"}"#, false),
            (r#"{"vendor": "Dell*"}"#, true),
            (r#"{"vendor": "Dell"}"#, false),
            (r#"{"labels": {"rack": "8"}}"#, false),
            (r#"{"memory": "8Gi"}"#, false),
        ] {
            assert_eq!(fits(&wanted(text), &machine), expected, "{text}");
        }
    }
}
