//! `cargo xtask test`: installs what the tests need, and runs them tier by tier, the quick ones first.

use std::ffi::OsStr;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::build;
use crate::suite::{Suite, Target};

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
        begin("fast");
        // They wait more than they compute: twice as many threads as processors.
        let words = ["test", "--workspace", "--exclude", "nkd-vm-tests", "--", "--test-threads=4"];
        build::cargo(&[&words[..], &filter[..]].concat())?;
    }
    if !chosen(Tier::Namespace) && !chosen(Tier::Vm) {
        return Ok(());
    }
    let suite = Suite::build()?;
    let run = |name: &str, targets: &[Target<'_>], words: &[&str], environment: &[(&str, &OsStr)]| {
        begin(name);
        suite.run(targets, &[words, &filter[..]].concat(), environment)
    };
    let program = ("NKD_PROGRAM", suite.program("nkd")?.as_os_str());
    if chosen(Tier::Namespace) {
        let slow = ["--ignored", "--test-threads=1"];
        run("namespace", &[("server", "nkd_server"), ("server", "service"), ("server", "dhcp_namespace")], &slow, &[])?;
        run("framework", &[("vm-tests", "nkd_vm_tests"), ("vm-tests", "framework")], &["--test-threads=1"], &[])?;
        let kubernetes = build::kubernetes()?;
        let housekeeper = build::housekeeper()?;
        let agent = ("NKD_AGENT", suite.program("nkd-agent")?.as_os_str());
        let environment =
            [program, agent, ("NKD_KUBERNETES", kubernetes.as_os_str()), ("NKD_HOUSEKEEPER", housekeeper.as_os_str())];
        // The first looks whether this computer is as it was, and wants nothing beside it.
        run("nodes", &[("vm-tests", "nodes")], &["--test-threads=1"], &environment)?;
        begin("clusters of nodes, kubeadm, etcd, GRUB");
        let cluster = |target| vec![(("vm-tests", target), [&["--test-threads=1"], &filter[..]].concat())];
        let slow = [&slow[..], &filter[..]].concat();
        // One after the other: these compute, and the clusters have two processors.
        let peers = vec![
            (("server", "kubeadm_accepts"), slow.clone()),
            (("server", "etcd_answers"), slow.clone()),
            (("agent", "nkd_agent"), [&slow[..], &["--skip", "install::"]].concat()),
        ];
        let at_once = [cluster("cluster_changes"), cluster("updates"), cluster("service_unit"), peers];
        suite.run_at_once(&at_once, &environment)?;
    }
    if chosen(Tier::Vm) {
        let image = build::lab_image()?;
        let installer = build::installer()?;
        let words = ["--ignored", "--skip", "kubeadm::", "--skip", "ostree::"];
        let environment = [("NKD_COREOS_INSTALLER", installer.as_os_str())];
        run("installer", &[("agent", "nkd_agent")], &words, &environment)?;
        // One machine at a time: two share two cores, and every wait would have to be twice as long.
        let words = ["--test-threads=1", "--nocapture"];
        let environment = [program, ("NKD_LAB_IMAGE", image.as_os_str())];
        run("vm", &[("vm-tests", "boot_chain")], &words, &environment)?;
        let (image, kubernetes, housekeeper) = (build::cluster_image()?, build::kubernetes()?, build::housekeeper()?);
        let environment = [
            program,
            ("NKD_CLUSTER_IMAGE", image.as_os_str()),
            ("NKD_KUBERNETES", kubernetes.as_os_str()),
            ("NKD_HOUSEKEEPER", housekeeper.as_os_str()),
        ];
        run("whole chain", &[("vm-tests", "whole_chain")], &["--nocapture"], &environment)?;
    }
    Ok(())
}

/// When the run began.
static BEGUN: OnceLock<Instant> = OnceLock::new();

// Nothing is printed after the runner's own summary, which is what people and CI look for at the end.
fn begin(tier: &str) {
    eprintln!("== [{} s] {tier}", BEGUN.get_or_init(Instant::now).elapsed().as_secs());
}
