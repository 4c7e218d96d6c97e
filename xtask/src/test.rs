//! `cargo xtask test`: installs what the tests need, and runs them tier by tier, the quick ones first.

use std::ffi::OsStr;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::build;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only this tier [default: all of them]
    #[arg(long, value_enum)]
    tier: Vec<Tier>,
    /// Only tests whose name holds this text
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// No root, no machines: unit, property and service tests
    Fast,
    /// Needs root: network namespaces with real peers, file systems, owners of files
    Namespace,
    /// Whole machines
    Vm,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let chosen = |tier| arguments.tier.is_empty() || arguments.tier.contains(&tier);
    BEGUN.get_or_init(Instant::now);
    let filter: Vec<&str> = arguments.filter.iter().map(String::as_str).collect();
    build::packages(&[&build::VM_PACKAGES[..], &build::TEST_PACKAGES[..]].concat())?;
    build::stopped_packages(&build::REGISTRY_CLIENTS)?;
    if chosen(Tier::Fast) {
        let words = ["test", "--workspace", "--exclude", "nkd-vm-tests", "--"];
        tier("fast", &[&words[..], &filter[..]].concat(), &[])?;
    }
    if chosen(Tier::Namespace) {
        let words = ["test", "--package", "nkd-server", "--lib", "--test", "service", "--test", "dhcp_namespace", "--"];
        let only = ["--ignored", "--test-threads=1"];
        tier("namespace", &[&words[..], &only, &filter].concat(), &[])?;
        let words = ["test", "--package", "nkd-vm-tests", "--lib", "--test", "framework", "--", "--test-threads=1"];
        tier("framework", &[&words[..], &filter[..]].concat(), &[])?;
        let (program, agent, kubernetes) = (build::nkd()?, build::agent()?, build::kubernetes()?);
        let environment = [
            ("NKD_PROGRAM", program.as_os_str()),
            ("NKD_AGENT", agent.as_os_str()),
            ("NKD_KUBERNETES", kubernetes.as_os_str()),
        ];
        let words = [
            "test",
            "--package",
            "nkd-server",
            "--test",
            "kubeadm_accepts",
            "--test",
            "etcd_answers",
            "--",
            "--ignored",
            "--test-threads=1",
        ];
        tier("kubeadm", &[&words[..], &filter[..]].concat(), &environment)?;
        let words = ["test", "--package", "nkd-agent", "--lib", "--", "--ignored", "--test-threads=1"];
        let not_installer = ["--skip", "install::"];
        tier("etcd snapshot and GRUB", &[&words[..], &not_installer, &filter[..]].concat(), &environment)?;
        let housekeeper = build::housekeeper()?;
        let environment = [&environment[..], &[("NKD_HOUSEKEEPER", housekeeper.as_os_str())]].concat();
        let tests = ["--test", "nodes", "--test", "service_unit", "--test", "cluster_changes", "--test", "updates"];
        let words = [&["test", "--package", "nkd-vm-tests"], &tests[..], &["--", "--test-threads=1"]].concat();
        tier("nodes", &[&words[..], &filter[..]].concat(), &environment)?;
    }
    if chosen(Tier::Vm) {
        let program = build::nkd()?;
        let image = build::lab_image()?;
        let installer = build::installer()?;
        let words =
            ["test", "--package", "nkd-agent", "--lib", "--", "--ignored", "--skip", "kubeadm::", "--skip", "ostree::"];
        tier("installer", &[&words[..], &filter[..]].concat(), &[("NKD_COREOS_INSTALLER", installer.as_os_str())])?;
        let environment = [("NKD_PROGRAM", program.as_os_str()), ("NKD_LAB_IMAGE", image.as_os_str())];
        // One machine at a time: two share two cores, and every wait would have to be twice as long.
        let words =
            ["test", "--package", "nkd-vm-tests", "--test", "boot_chain", "--", "--test-threads=1", "--nocapture"];
        tier("vm", &[&words[..], &filter[..]].concat(), &environment)?;
        let (image, kubernetes, housekeeper) = (build::cluster_image()?, build::kubernetes()?, build::housekeeper()?);
        let environment = [
            ("NKD_PROGRAM", program.as_os_str()),
            ("NKD_CLUSTER_IMAGE", image.as_os_str()),
            ("NKD_KUBERNETES", kubernetes.as_os_str()),
            ("NKD_HOUSEKEEPER", housekeeper.as_os_str()),
        ];
        let words = ["test", "--package", "nkd-vm-tests", "--test", "whole_chain", "--", "--nocapture"];
        tier("whole chain", &[&words[..], &filter[..]].concat(), &environment)?;
    }
    Ok(())
}

/// When the run began.
static BEGUN: OnceLock<Instant> = OnceLock::new();

fn tier(name: &str, words: &[&str], environment: &[(&str, &OsStr)]) -> Result<()> {
    // Nothing is printed after the runner's own summary, which is what people and CI look for at the end.
    let seconds = BEGUN.get_or_init(Instant::now).elapsed().as_secs();
    eprintln!("== [{seconds} s] {name}: cargo {}", words.join(" "));
    build::cargo_with(words, environment)
}
