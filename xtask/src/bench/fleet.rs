//! A thousand enrolled nodes on which nothing happens: what their questions and signs of life cost the service.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::lane::{last_json, number};
use super::storm::Stage;
use super::{Better, OURS, Programs, Table};

/// How long they stay, and how much of that is measured: two signs of life of each.
const STAY: Duration = Duration::from_secs(80);
const MEASURED: Duration = Duration::from_secs(60);
/// How long it may take until all are nodes.
const ENROLLED: Duration = Duration::from_secs(300);

pub fn measure(programs: &Programs, rounds: usize, nodes: u16, table: &mut Table) -> Result<()> {
    let (nkd, storm) = (programs.binary("nkd")?, programs.example("boot_storm")?);
    for _ in 0..rounds {
        round(&nkd, &storm, nodes, table)?;
    }
    Ok(())
}

fn round(nkd: &Path, storm: &Path, nodes: u16, table: &mut Table) -> Result<()> {
    let stage = Stage::set(nkd)?;
    let (told, said) = (stage.file("told"), stage.file("said"));
    let mut command = stage.storm(storm, usize::from(nodes), &["--stay", &STAY.as_secs().to_string()]);
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&told)?).stderr(std::fs::File::create(&said)?);
    let mut child = command.spawn().context("cannot run boot_storm")?;
    let end = Instant::now() + ENROLLED;
    while !std::fs::read_to_string(&said)?.contains("all are nodes") {
        let ended = child.try_wait()?;
        let late = Instant::now() >= end;
        if late && ended.is_none() {
            child.kill()?;
            child.wait()?;
        }
        ensure!(
            ended.is_none() && !late,
            "not all machines became nodes:\n{}\n{}",
            std::fs::read_to_string(&said)?,
            stage.said()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    // The connections are made meanwhile.
    std::thread::sleep((STAY - MEASURED) / 2);
    let (before, begun) = (stage.usage()?, Instant::now());
    std::thread::sleep(MEASURED);
    let (after, seconds) = (stage.usage()?, begun.elapsed().as_secs_f64());
    let status = child.wait()?;
    ensure!(status.success(), "boot_storm: {status}\n{}", std::fs::read_to_string(&said)?);
    let counts = last_json(&std::fs::read_to_string(&told)?)?["fleet"].clone();
    let heartbeats = number(&counts, "heartbeats")?;
    // Each has told it twice, most of them three times.
    let fewest = 2.0 * f64::from(nodes);
    ensure!(heartbeats >= fewest, "{heartbeats} heartbeats were answered, {fewest} should be");

    let mut add = |name: &str, unit, figure| table.add(&format!("fleet_{name}"), unit, Better::Less, OURS, figure);
    add("cpu_percent", "% of a core", (after.cpu_seconds - before.cpu_seconds) / seconds * 100.0);
    add("rss", "MiB", after.resident);
    add("rss_peak", "MiB", after.peak);
    add("connections", "", number(&counts, "connections")?);
    table.add("fleet_heartbeats", "", Better::More, OURS, heartbeats);
    Ok(())
}
