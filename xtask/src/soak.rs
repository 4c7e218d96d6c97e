//! `cargo xtask soak`: tests that are too slow for every change, on machines made of namespaces, and an upgrade on whole ones.

use anyhow::{Result, ensure};

use crate::build;
use crate::tidy::source::Source;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only the tests of this file, like update_faults, or those whose name holds this text
    filter: Option<String>,
}

/// Files of tests on machines made of namespaces.
const ON_NODES: [&str; 7] =
    ["control_planes", "certificates", "cluster_faults", "housekeeper", "snapshots", "updates", "update_faults"];
/// Files of tests on whole machines, which need images of systems.
const ON_MACHINES: [&str; 5] = ["boot_chain", "whole_chain", "whole_upgrade", "machine_faults", "ostree_ed25519"];

pub fn run(arguments: &Arguments) -> Result<()> {
    let all = [&ON_NODES[..], &ON_MACHINES].concat();
    let named = all.iter().copied().find(|file| arguments.filter.as_deref() == Some(file));
    let filter = arguments.filter.as_deref().filter(|_| named.is_none());
    let sources = Source::all()?;
    let holds =
        |file: &&str| filter.is_none_or(|filter| names(&sources, file).iter().any(|test| test.contains(filter)));
    let files: Vec<&str> = named.map_or(all, |file| vec![file]).into_iter().filter(holds).collect();
    ensure!(!files.is_empty(), "no file and no test is named like `{}`", filter.unwrap_or_default());
    build::packages(&[&build::VM_PACKAGES[..], &build::TEST_PACKAGES[..]].concat())?;
    build::stopped_packages(&build::REGISTRY_CLIENTS)?;
    let mut environment = vec![
        ("NKD_PROGRAM", build::nkd()?),
        ("NKD_AGENT", build::agent()?),
        ("NKD_KUBERNETES", build::kubernetes()?),
        ("NKD_HOUSEKEEPER", build::housekeeper()?),
        ("NKD_HOUSEKEEPER_PROGRAM", build::operator()?),
    ];
    if files.iter().any(|file| ON_MACHINES.contains(file)) {
        environment.extend([
            ("NKD_LAB_IMAGE", build::lab_image()?),
            ("NKD_CLUSTER_IMAGE", build::cluster_image()?),
            ("NKD_NEWER_IMAGE", build::newer_image()?),
            ("NKD_OSTREE_ED25519", build::ostree_ed25519()?),
        ]);
    }
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
    let tests: Vec<&str> = files.into_iter().flat_map(|test| ["--test", test]).collect();
    let words = [&["test", "--package", "nkd-vm-tests", "--no-fail-fast"], &tests[..], &["--"]].concat();
    let only = ["--ignored", "--test-threads=1", "--nocapture"];
    build::cargo_with(&[&words[..], &only, filter.as_slice()].concat(), &environment)
}

/// Names of the slow tests of a file, and of the files of its folder.
fn names<'a>(sources: &'a [Source], file: &str) -> Vec<&'a str> {
    let of_file = |source: &&Source| {
        let rest = source.path.strip_prefix("vm-tests/tests/").unwrap_or_default();
        rest.split(['/', '.']).next() == Some(file)
    };
    let tests = sources.iter().filter(of_file).flat_map(|source| source.text.split("#[test]").skip(1));
    let slow = tests.filter(|text| text.trim_start().starts_with("#[ignore"));
    slow.filter_map(|text| text.split_once("\nfn ")?.1.split('(').next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_file(word: &str) -> bool {
        ON_NODES.contains(&word) || ON_MACHINES.contains(&word)
    }

    /// A word of a document runs one file, or one test: neither a part of what it speaks of, nor hours of something else.
    #[test]
    fn what_documents_run_is_one_file_or_one_test() {
        let sources = Source::all().unwrap();
        let tests: Vec<&str> = ON_NODES.iter().chain(&ON_MACHINES).flat_map(|file| names(&sources, file)).collect();
        assert!(tests.len() > ON_NODES.len() + ON_MACHINES.len(), "{tests:?}");
        let mut words = 0;
        for source in &sources {
            for (_, rest) in
                source.text.match_indices("xtask soak ").map(|(at, found)| source.text.split_at(at + found.len()))
            {
                let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
                let word = &rest[..end.unwrap_or(rest.len())];
                if word.is_empty() || is_file(word) {
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
