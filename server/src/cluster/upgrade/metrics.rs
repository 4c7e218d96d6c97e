//! What an API server's metrics tell about APIs that a later version does not have (pure).

/// A gauge of every API server since 1.19: 1 for each deprecated API that was asked for since it started.
const NAME: &str = "apiserver_requested_deprecated_apis{";

/// An API that is in use, and goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deprecated {
    /// `policy/v1beta1 podsecuritypolicies`
    pub name: String,
    /// Minor version of the first release without it.
    pub removed_in: u64,
}

/// Those of a page of metrics in the text format of Prometheus that go by `minor`.
#[must_use]
pub fn gone_by(text: &str, minor: u64) -> Vec<Deprecated> {
    let read = |line: &str| {
        let (labels, value) = line.strip_prefix(NAME)?.rsplit_once("} ")?;
        let label = |name: &str| {
            labels
                .split(',')
                .find_map(|pair| Some(pair.split_once('=')?).filter(|(key, _)| *key == name)?.1.get(1..))
                .and_then(|text| text.strip_suffix('"'))
        };
        let (major, removed_in) = label("removed_release")?.split_once('.')?;
        let removed_in: u64 = removed_in.parse().ok().filter(|_| major == "1")?;
        let group = label("group").unwrap_or_default();
        let version = label("version")?;
        let slash = if group.is_empty() { "" } else { "/" };
        let name = format!("{group}{slash}{version} {}", label("resource")?);
        (value.trim() != "0" && removed_in <= minor).then_some(Deprecated { name, removed_in })
    };
    let mut found: Vec<Deprecated> = text.lines().filter_map(read).collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_is_found_and_nothing_else() {
        let line = |group: &str, removed: &str, value: u8| {
            format!(
                "{NAME}group=\"{group}\",removed_release=\"{removed}\",resource=\"ingresses\",subresource=\"\",version=\"v1beta1\"}} {value}\n"
            )
        };
        let text = format!(
            "# HELP x\n{}{}{}{}{}apiserver_other{{a=\"b\"}} 1\n",
            line("extensions", "1.22", 1),
            line("extensions", "1.22", 1),
            line("policy", "1.25", 1),
            line("batch", "1.21", 0),
            line("", "", 1)
        );
        let found = gone_by(&text, 22);
        assert_eq!(found, [Deprecated { name: "extensions/v1beta1 ingresses".into(), removed_in: 22 }]);
        assert!(gone_by(&text, 21).is_empty());
        assert_eq!(gone_by(&text, 25).len(), 2);
    }
}
