//! `cargo xtask lab`: two blank machines, one with BIOS and one with UEFI, from network boot to enrolled nodes, watched.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nkd_vm_tests::{BootOrder, Builds, DhcpMode, Firmware, Machine, Network, Nic, Nkd, within};
use serde_json::Value;

use crate::build;

const IMAGE: &str = "lab";

#[derive(clap::Args)]
pub struct Arguments {
    /// Leave machines and service running at the end, until Enter is pressed
    #[arg(long)]
    keep: bool,
    /// Minutes that both machines together may take
    #[arg(long, default_value_t = 40)]
    minutes: u64,
}

struct Racked {
    name: &'static str,
    mac: &'static str,
    firmware: Firmware,
    nic: Nic,
}

/// Disk first, as machines are racked: an empty disk falls through to the network. The UEFI machine has no ROM on its
/// card, so that the firmware's own PXE and our TFTP are used.
const MACHINES: [Racked; 2] = [
    Racked { name: "bios-1", mac: "52:54:00:00:00:01", firmware: Firmware::Bios, nic: Nic::VirtioWithIpxe },
    Racked { name: "uefi-1", mac: "52:54:00:00:00:02", firmware: Firmware::Uefi, nic: Nic::VirtioBare },
];

pub fn run(arguments: &Arguments) -> Result<()> {
    build::packages(&[&build::VM_PACKAGES[..]].concat())?;
    let builds = builds()?;
    let started = Instant::now();
    let net = Network::create("lab").context("the lab's network cannot be made")?;
    let nkd = Nkd::start(&net, &builds, DhcpMode::Server, &[])?;
    say(&started, &format!("nkd serves in the network namespace {}", net.name()));
    nkd.nkd(&net, &["image", "import", &builds.image.display().to_string(), "--name", IMAGE])?;
    say(&started, "the lab image is imported");
    let mut machines = Vec::new();
    for racked in &MACHINES {
        nkd.nkd(&net, &["machine", "declare", racked.name, "--mac", racked.mac, "--image", IMAGE])?;
        let machine = Machine::named(racked.name)
            .firmware(racked.firmware)
            .nic(racked.nic)
            .mac(racked.mac)
            .disk_gib(4)
            .boot(BootOrder::DiskThenNetwork)
            .start(&net)?;
        machines.push(machine);
    }
    say(&started, "two blank machines are powered on");
    let limit = Duration::from_secs(arguments.minutes * 60);
    watch(&net, &nkd, &started, limit)?;
    println!("\n$ nkd machine list\n{}", nkd.nkd(&net, &["machine", "list"])?);

    say(&started, "power cycle: both machines must boot their disks and install nothing");
    for machine in &mut machines {
        machine.power_off(within(180))?;
        machine.power_on()?;
    }
    for (machine, racked) in machines.iter().zip(&MACHINES) {
        machine.console().expect("login:", within(600))?;
        let record = nkd.machine(&net, racked.name)?;
        if record["installedGeneration"] != 1 || record["phase"]["name"] != "enrolled" {
            bail!("{} is not what it was before the power cycle: {record:#}", racked.name);
        }
        say(&started, &format!("{} is back from its own disk", racked.name));
    }
    for racked in &MACHINES {
        println!("\n$ nkd machine show {}\n{}", racked.name, nkd.nkd(&net, &["machine", "show", racked.name])?);
    }
    if arguments.keep {
        let environment: Vec<String> = nkd.environment().iter().map(|(k, v)| format!("{k}={v}")).collect();
        println!(
            "\nTo look around: {} ip netns exec {} {} machine list",
            environment.join(" "),
            net.name(),
            builds.program.display()
        );
        println!("Press Enter to power everything off.");
        std::io::stdin().read_line(&mut String::new()).context("standard input cannot be read")?;
    } else {
        for machine in &mut machines {
            machine.power_off(within(180))?;
        }
    }
    say(&started, "done; logs are in target/vm-tests/lab");
    Ok(())
}

fn builds() -> Result<Builds> {
    let program = build::nkd()?;
    let image: PathBuf = build::lab_image()?;
    Ok(Builds { program, image })
}

fn say(started: &Instant, text: &str) {
    println!("[{:>4} s] {text}", started.elapsed().as_secs());
}

/// Shows where each machine stands until all are enrolled. A machine that fails ends the wait at once, with its history.
fn watch(net: &Network, nkd: &Nkd, started: &Instant, limit: Duration) -> Result<()> {
    let view = MultiProgress::new();
    let style =
        ProgressStyle::with_template("  {spinner} {prefix:<8} {msg}").context("the live view's template is wrong")?;
    let mut lines: BTreeMap<&str, (ProgressBar, String)> = BTreeMap::new();
    for racked in &MACHINES {
        let bar = view.add(ProgressBar::new_spinner().with_style(style.clone()).with_prefix(racked.name));
        bar.enable_steady_tick(Duration::from_millis(250));
        lines.insert(racked.name, (bar, String::new()));
    }
    let end = Instant::now() + limit;
    loop {
        let mut enrolled = 0;
        for (name, (bar, last)) in &mut lines {
            let machine = nkd.machine(net, name)?;
            let phase = machine["phase"]["name"].as_str().unwrap_or("?").to_owned();
            let text = format!("{phase:<11} {}", steps(&machine));
            bar.set_message(text.clone());
            if view.is_hidden() && phase != *last {
                say(started, &format!("{name}: {text}"));
            }
            *last = phase.clone();
            match phase.as_str() {
                "enrolled" => {
                    bar.finish();
                    enrolled += 1;
                }
                "failed" => bail!("{name} failed:\n{}", nkd.nkd(net, &["machine", "events", name])?),
                _ => {}
            }
        }
        if enrolled == lines.len() {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!(
                "not both machines enrolled within {} minutes:\n{}",
                limit.as_secs() / 60,
                nkd.nkd(net, &["machine", "events"])?
            );
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
