//! `cargo xtask lab`: two blank machines, one with BIOS and one with UEFI, from network boot to a Ready cluster, watched.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nkd_vm_tests::{Builds, DhcpMode, LabCluster, Machine, Network, Nkd, Rollout, switch_on, within};
use serde_json::Value;

use crate::build;

const IMAGE: &str = "lab";

#[derive(clap::Args)]
pub struct Arguments {
    /// Leave machines and service running at the end, until Enter is pressed
    #[arg(long)]
    keep: bool,
    /// Upgrade the cluster at the end: a release with a newer Kubernetes, node by node, while pods answer
    #[arg(long)]
    upgrade: bool,
    /// Minutes that both machines together may take until they are a cluster
    #[arg(long, default_value_t = 40)]
    minutes: u64,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    build::packages(&build::VM_PACKAGES)?;
    let builds = Builds { program: build::nkd()?, image: build::cluster_image()? };
    let kubernetes = build::kubernetes()?;
    let releases = arguments.upgrade.then(Releases::build).transpose()?;
    let started = Instant::now();
    let net = Network::create("lab").context("the lab's network cannot be made")?;
    let nkd = Nkd::start(&net, &builds, DhcpMode::Server, &[])?;
    say(&started, &format!("nkd serves in the network namespace {}", net.name()));
    nkd.nkd(&net, &["image", "import", &builds.image.display().to_string(), "--name", IMAGE])?;
    say(&started, "the lab image is imported");
    let cluster = match &releases {
        None => LabCluster::create(&net, &kubernetes)?,
        Some(_) => LabCluster::with_housekeeper(&net, &kubernetes)?,
    };
    let rollout = Rollout { cluster: &cluster, net: &net, nkd: &nkd };
    if let Some(releases) = &releases {
        rollout.push_housekeeper(&releases.housekeeper)?;
        say(&started, "the operator's image is in the service's registry");
    }
    let file = cluster.file().display().to_string();
    print!("\n$ nkd cluster apply -f {file}\n{}\n", nkd.nkd(&net, &["cluster", "apply", "-f", &file])?);
    let machines = LabCluster::machines().into_iter().map(|spec| spec.start(&net));
    let mut machines: Vec<Machine> = machines.collect::<Result<_, _>>()?;
    say(&started, "two blank machines are powered on");
    let limit = Duration::from_secs(arguments.minutes * 60);
    watch(&net, &nkd, &started, limit)?;
    cluster.access(&net, &nkd)?;
    show(&net, &nkd, &cluster)?;

    // An upgrade restarts both as well.
    if releases.is_none() {
        say(&started, "power cycle: both machines must boot their disks, install nothing, and be the cluster again");
        cluster.cycle_power(&net, &nkd, &mut machines, within(900))?;
        say(&started, "both are back from their own disks, and the cluster is Ready");
        show(&net, &nkd, &cluster)?;
    }
    for name in LabCluster::MACHINES {
        println!("\n$ nkd machine show {name}\n{}", nkd.nkd(&net, &["machine", "show", name])?);
    }
    if let Some(releases) = &releases {
        let upgraded = upgrade(&rollout, &builds, releases, &mut machines, &started);
        match upgraded {
            Err(error) if arguments.keep => println!("{error:#}"),
            upgraded => upgraded?,
        }
    }
    if arguments.keep {
        let environment: Vec<String> = nkd.environment().iter().map(|(k, v)| format!("{k}={v}")).collect();
        let inside = format!("ip netns exec {}", net.name());
        println!("\nTo look around: {} {inside} {} machine list", environment.join(" "), builds.program.display());
        println!("                {inside} {} get pods -A", cluster.kubectl_line());
        println!("Press Enter to power everything off.");
        std::io::stdin().read_line(&mut String::new()).context("standard input cannot be read")?;
    } else {
        for machine in &mut machines {
            machine.power_off(within(240))?;
        }
    }
    say(&started, &format!("done; logs and kubeconfig are in {}", net.folder().display()));
    Ok(())
}

/// The workload may be silent for so long: a node that has gone away without being drained would cost more.
const SILENCE: Duration = Duration::from_secs(60);

/// What an upgrade needs beside the first image.
struct Releases {
    /// Folder of the lab image with the newer Kubernetes.
    newer: PathBuf,
    /// The operator's image, an archive.
    housekeeper: PathBuf,
}

impl Releases {
    fn build() -> Result<Self> {
        build::packages(&["ostree", "gnupg"])?;
        build::stopped_packages(&build::REGISTRY_CLIENTS)?;
        Ok(Self { newer: build::newer_image()?, housekeeper: build::housekeeper()? })
    }
}

/// Publishes two releases, the one that runs and a newer one, and brings the cluster from one to the other.
fn upgrade(
    rollout: &Rollout<'_>,
    builds: &Builds,
    releases: &Releases,
    machines: &mut [Machine],
    started: &Instant,
) -> Result<()> {
    let probe = rollout.run_workload()?;
    say(started, "two pods of a workload answer on both nodes");
    for (image, version) in [(&builds.image, LabCluster::KUBERNETES), (&releases.newer, LabCluster::NEWER)] {
        println!("\n$ nkd channel publish stable --ostree {}/repo --kubernetes {version}", image.display());
        println!("{}", rollout.publish(&image.join("repo"), version)?);
        if version == LabCluster::KUBERNETES {
            say(started, "published; of the next one the difference from this one is made too, for minutes");
        }
    }
    println!("$ nkd upgrade start {} --release 2\n{}", LabCluster::NAME, rollout.start(2)?);
    rollout.wait_for("complete", within(2400), || switch_on(machines), |line| say(started, line))?;
    let answers = probe.end();
    show(rollout.net, rollout.nkd, rollout.cluster)?;
    let gap = answers.gap.as_secs_f32();
    anyhow::ensure!(answers.good > 0 && answers.gap < SILENCE, "the workload was silent for {gap:.0} s");
    say(
        started,
        &format!(
            "upgraded; the workload answered {} times, at most {gap:.0} s apart ({} s would be an error: emulated processors are slow)",
            answers.good,
            SILENCE.as_secs()
        ),
    );
    Ok(())
}

/// The cluster as an operator sees it.
fn show(net: &Network, nkd: &Nkd, cluster: &LabCluster) -> Result<()> {
    let name = LabCluster::NAME;
    println!("\n$ nkd cluster status {name}\n{}", nkd.nkd(net, &["cluster", "status", name])?);
    println!("$ nkd cluster kubeconfig {name} > {}", cluster.kubeconfig().display());
    println!("$ kubectl get nodes\n{}", cluster.kubectl(net, &["get", "nodes", "--output=wide"])?);
    Ok(())
}

fn say(started: &Instant, text: &str) {
    println!("[{:>4} s] {text}", started.elapsed().as_secs());
}

/// Shows where each machine stands until they are a Ready cluster. A machine that fails ends the wait at once, with its
/// history.
fn watch(net: &Network, nkd: &Nkd, started: &Instant, limit: Duration) -> Result<()> {
    let view = MultiProgress::new();
    let style =
        ProgressStyle::with_template("  {spinner} {prefix:<8} {msg}").context("the live view's template is wrong")?;
    let mut lines: BTreeMap<&str, (ProgressBar, String)> = BTreeMap::new();
    for name in LabCluster::MACHINES {
        let bar = view.add(ProgressBar::new_spinner().with_style(style.clone()).with_prefix(name));
        bar.enable_steady_tick(Duration::from_millis(250));
        lines.insert(name, (bar, String::new()));
    }
    let end = Instant::now() + limit;
    loop {
        let status = LabCluster::status(net, nkd)?;
        for (name, (bar, last)) in &mut lines {
            let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
            let member = members.iter().find(|member| member["hostname"] == *name).unwrap_or(&Value::Null);
            // The service takes the machine in a moment.
            if member["machine"].is_null() {
                continue;
            }
            let machine = nkd.machine(net, name)?;
            let phase = machine["phase"]["name"].as_str().unwrap_or("?").to_owned();
            if phase == "failed" {
                bail!("{name} failed:\n{}", nkd.nkd(net, &["machine", "events", name])?);
            }
            // What kubeadm does stands at its place in the cluster.
            let state = member["state"].as_str().unwrap_or_default();
            let detail = member["detail"].as_str().filter(|_| state != "waiting").unwrap_or_default();
            bar.set_message(format!("{phase:<11} {} {detail}", steps(&machine)));
            let stand = format!("{phase} {detail}");
            if view.is_hidden() && stand != *last {
                say(started, &format!("{name}: {phase:<11} {} {detail}", steps(&machine)));
            }
            *last = stand;
        }
        if LabCluster::is_ready(&status) {
            lines.values().for_each(|(bar, _)| bar.finish());
            say(started, "the cluster is Ready");
            return Ok(());
        }
        if Instant::now() >= end {
            let events = nkd.nkd(net, &["cluster", "events", LabCluster::NAME])?;
            bail!("the cluster is not Ready within {} minutes:\n{status:#}\n{events}", limit.as_secs() / 60);
        }
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// Every step with its seconds: `boot 31s, live 60s, install 25s...`.
fn steps(machine: &Value) -> String {
    let steps = machine["steps"].as_array().cloned().unwrap_or_default();
    let one = |step: &Value| {
        let name = step["name"].as_str().unwrap_or("?");
        match step["state"].as_str() {
            Some("running") => format!("{name}... {}", step["detail"].as_str().unwrap_or_default()),
            _ => format!("{name} {}", seconds(step)),
        }
    };
    steps.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn seconds(step: &Value) -> String {
    let time = |key: &str| -> Option<f64> {
        // RFC 3339 of one day: the time of day is enough here.
        let text = step[key].as_str()?;
        let mut parts = text.get(11..19)?.split(':').map(|p| p.parse::<f64>().ok());
        Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
    };
    match (time("startedAt"), time("endedAt")) {
        (Some(start), Some(end)) => format!("{:.0} s", (end - start).rem_euclid(86_400.0)),
        _ => "?".to_owned(),
    }
}
