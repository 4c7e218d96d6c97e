//! `cargo xtask soak`: tests that are too slow for every change, on machines made of namespaces, and an upgrade on whole ones.

use anyhow::Result;

use crate::build;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name holds this text
    filter: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    build::packages(&[&build::VM_PACKAGES[..], &build::TEST_PACKAGES[..]].concat())?;
    let (program, agent, kubernetes) = (build::nkd()?, build::agent()?, build::kubernetes()?);
    build::stopped_packages(&build::REGISTRY_CLIENTS)?;
    let housekeeper = build::housekeeper()?;
    let (image, newer) = (build::cluster_image()?, build::newer_image()?);
    let environment = [
        ("NKD_PROGRAM", program.as_os_str()),
        ("NKD_AGENT", agent.as_os_str()),
        ("NKD_KUBERNETES", kubernetes.as_os_str()),
        ("NKD_HOUSEKEEPER", housekeeper.as_os_str()),
        ("NKD_CLUSTER_IMAGE", image.as_os_str()),
        ("NKD_NEWER_IMAGE", newer.as_os_str()),
    ];
    let tests =
        ["control_planes", "certificates", "cluster_faults", "housekeeper", "snapshots", "updates", "whole_upgrade"];
    let tests = tests.map(|test| ["--test", test]).concat();
    let words = [&["test", "--package", "nkd-vm-tests", "--no-fail-fast"], &tests[..], &["--"]].concat();
    let only = ["--ignored", "--test-threads=1", "--nocapture"];
    let filter: Vec<&str> = arguments.filter.iter().map(String::as_str).collect();
    build::cargo_with(&[&words[..], &only, &filter].concat(), &environment)
}
