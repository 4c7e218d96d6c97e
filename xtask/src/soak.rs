//! `cargo xtask soak`: tests that are too slow for every change, on machines made of namespaces, and an upgrade on whole ones.

use anyhow::Result;

use crate::build;

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
    let (image, newer) = (build::cluster_image()?, build::newer_image()?);
    let environment = [
        ("NKD_PROGRAM", program.as_os_str()),
        ("NKD_AGENT", agent.as_os_str()),
        ("NKD_KUBERNETES", kubernetes.as_os_str()),
        ("NKD_HOUSEKEEPER", housekeeper.as_os_str()),
        ("NKD_HOUSEKEEPER_PROGRAM", operator.as_os_str()),
        ("NKD_CLUSTER_IMAGE", image.as_os_str()),
        ("NKD_NEWER_IMAGE", newer.as_os_str()),
    ];
    let tests = [
        "control_planes",
        "certificates",
        "cluster_faults",
        "housekeeper",
        "updates",
        "update_faults",
        "whole_upgrade",
    ];
    let is_named = |test: &&str| arguments.filter.as_deref() == Some(*test);
    let whole = tests.iter().any(is_named);
    let chosen = tests.iter().copied().filter(|test| !whole || is_named(test));
    let tests: Vec<&str> = chosen.flat_map(|test| ["--test", test]).collect();
    let words = [&["test", "--package", "nkd-vm-tests", "--no-fail-fast"], &tests[..], &["--"]].concat();
    let only = ["--ignored", "--test-threads=1", "--nocapture"];
    let filter: Vec<&str> = arguments.filter.iter().map(String::as_str).filter(|_| !whole).collect();
    build::cargo_with(&[&words[..], &only, &filter].concat(), &environment)
}
