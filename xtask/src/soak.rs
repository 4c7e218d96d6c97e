//! `cargo xtask soak`: tests that are too slow for every change, on machines made of namespaces, and an upgrade on whole ones.

use anyhow::Result;

use crate::build;

/// The files that it runs.
const FILES: [&str; 11] = [
    "boot_chain",
    "control_planes",
    "certificates",
    "cluster_faults",
    "housekeeper",
    "snapshots",
    "updates",
    "whole_upgrade",
    "update_faults",
    "machine_faults",
    "ostree_ed25519",
];

#[derive(clap::Args)]
pub struct Arguments {
    /// Only the tests of this file, like update_faults, or those whose name holds this text
    filter: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    build::packages(&[&build::VM_PACKAGES[..], &build::TEST_PACKAGES[..]].concat())?;
    let (program, agent, kubernetes) = (build::nkd()?, build::agent()?, build::kubernetes()?);
    build::stopped_packages(&build::REGISTRY_CLIENTS)?;
    let (housekeeper, operator) = (build::housekeeper()?, build::operator()?);
    let (bare, image, newer) = (build::lab_image()?, build::cluster_image()?, build::newer_image()?);
    let ostree = build::ostree_ed25519()?;
    let environment = [
        ("NKD_PROGRAM", program.as_os_str()),
        ("NKD_AGENT", agent.as_os_str()),
        ("NKD_KUBERNETES", kubernetes.as_os_str()),
        ("NKD_HOUSEKEEPER", housekeeper.as_os_str()),
        ("NKD_LAB_IMAGE", bare.as_os_str()),
        ("NKD_OSTREE_ED25519", ostree.as_os_str()),
        ("NKD_HOUSEKEEPER_PROGRAM", operator.as_os_str()),
        ("NKD_CLUSTER_IMAGE", image.as_os_str()),
        ("NKD_NEWER_IMAGE", newer.as_os_str()),
    ];
    let is_named = |test: &&str| arguments.filter.as_deref() == Some(*test);
    let whole = FILES.iter().any(is_named);
    let chosen = FILES.iter().copied().filter(|test| !whole || is_named(test));
    let tests: Vec<&str> = chosen.flat_map(|test| ["--test", test]).collect();
    let words = [&["test", "--package", "nkd-vm-tests", "--no-fail-fast"], &tests[..], &["--"]].concat();
    let only = ["--ignored", "--test-threads=1", "--nocapture"];
    let filter: Vec<&str> = arguments.filter.iter().map(String::as_str).filter(|_| !whole).collect();
    build::cargo_with(&[&words[..], &only, &filter].concat(), &environment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::Source;

    /// Names of the tests of its files.
    fn names(sources: &[Source]) -> Vec<&str> {
        let of_file = |source: &&Source| {
            let rest = source.path.strip_prefix("vm-tests/tests/").unwrap_or_default();
            FILES.contains(&rest.split(['/', '.']).next().unwrap_or_default())
        };
        let tests = sources.iter().filter(of_file).flat_map(|source| source.text.split("#[test]").skip(1));
        tests.filter_map(|text| text.split_once("\nfn ")?.1.split('(').next()).collect()
    }

    /// A word of a document runs one file, or one test: neither a part of what it speaks of, nor hours of something else.
    #[test]
    fn what_documents_run_is_one_file_or_one_test() {
        let sources = Source::all().unwrap();
        let tests = names(&sources);
        assert!(tests.len() > FILES.len(), "{tests:?}");
        let mut words = 0;
        for source in &sources {
            for (_, rest) in
                source.text.match_indices("xtask soak ").map(|(at, found)| source.text.split_at(at + found.len()))
            {
                let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
                let word = &rest[..end.unwrap_or(rest.len())];
                if word.is_empty() || FILES.contains(&word) {
                    words += usize::from(!word.is_empty());
                    continue;
                }
                let runs: Vec<&&str> = tests.iter().filter(|test| test.contains(word)).collect();
                assert_eq!(runs.len(), 1, "{}: `cargo xtask soak` with {word} runs {runs:?}", source.path);
                words += 1;
            }
        }
        assert!(words > 0);
    }
}
