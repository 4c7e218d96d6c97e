//! `cargo xtask fuzz`: throws packets at the network boot engines that libFuzzer makes up, guided by what they reach.
//!
//! The targets are in `fuzz/`, a workspace of its own. Each run starts from the committed corpus and stops at the first
//! crash: the input that did it is then in `fuzz/artifacts/`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::repository;

/// The largest input: some packets of an Ethernet frame each.
const MAX_INPUT: usize = 4096;

/// What libFuzzer ends with after SIGINT or SIGTERM.
const INTERRUPTED: i32 = 72;

#[derive(Args)]
pub struct Arguments {
    /// Only these targets
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// Inputs to try for each target
    #[arg(long, default_value_t = 100_000)]
    runs: u64,
    /// Add to the committed corpus what reached something new
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Dhcp,
    Tftp,
    Bootplane,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Tftp => "tftp",
            Self::Bootplane => "bootplane",
        }
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let folder = repository().join("fuzz");
    let programs = build(&folder)?;
    let all = [Target::Dhcp, Target::Tftp, Target::Bootplane];
    let wanted = if arguments.targets.is_empty() { &all[..] } else { &arguments.targets };
    let mut crashed = Vec::new();
    for target in wanted {
        if !fuzz(&folder, &programs, target.name(), arguments)? {
            crashed.push(target.name());
        }
    }
    ensure!(crashed.is_empty(), "crashed: {}; the inputs are in fuzz/artifacts", crashed.join(", "));
    Ok(())
}

/// Builds all targets; gives the folder that they are in.
fn build(folder: &Path) -> Result<PathBuf> {
    let root = repository();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--bins", "--target-dir"]).arg(&target).current_dir(folder);
    cargo.env("RUSTC_WRAPPER", folder.join("rustc.sh"));
    ensure!(cargo.status().context("cannot run cargo")?.success(), "the fuzz targets do not build");
    Ok(target.join("debug"))
}

/// Runs one target and prints its line; false if it crashed.
fn fuzz(folder: &Path, programs: &Path, target: &str, arguments: &Arguments) -> Result<bool> {
    let (corpus, artifacts) = (folder.join("corpus").join(target), folder.join("artifacts").join(target));
    std::fs::create_dir_all(&artifacts)?;
    let found = tempfile::tempdir()?;
    let program = programs.join(target);
    let start = Instant::now();
    let mut fuzzer = Command::new(&program);
    fuzzer.arg(format!("-runs={}", arguments.runs)).arg(format!("-max_len={MAX_INPUT}"));
    fuzzer.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"]);
    fuzzer.arg(format!("-artifact_prefix={}/", artifacts.display()));
    fuzzer.arg(found.path()).arg(&corpus);
    let output = fuzzer.output().with_context(|| format!("cannot run {}", program.display()))?;
    let told = String::from_utf8_lossy(&output.stderr);
    let seconds = start.elapsed().as_secs_f64();
    let runs = executed(&told).unwrap_or_default();
    ensure!(output.status.code() != Some(INTERRUPTED), "{target} was interrupted after {runs} runs");
    let crashes = usize::from(!output.status.success());
    let inputs = std::fs::read_dir(&corpus)?.count();
    println!(
        "{target:<10} {runs:>10} runs  {seconds:>7.1} s  {inputs} inputs in the corpus, {} new  {crashes} crashes",
        std::fs::read_dir(found.path())?.count()
    );
    if crashes > 0 {
        eprintln!("{told}");
        return Ok(false);
    }
    // Each run is finished or the figure is worth nothing.
    ensure!(runs >= arguments.runs, "{target} stopped after {runs} runs:\n{told}");
    if arguments.keep {
        keep(&program, &corpus, found.path())?;
    }
    Ok(true)
}

/// Adds those of the new inputs that reach branches which the corpus does not, the shortest first.
fn keep(program: &Path, corpus: &Path, found: &Path) -> Result<()> {
    let mut merge = Command::new(program);
    // By branches only: how often each was taken would make the corpus ten times as large.
    merge.args(["-merge=1", "-use_counters=0", "-verbosity=0"]).arg(format!("-max_len={MAX_INPUT}"));
    let output = merge.arg(corpus).arg(found).output()?;
    ensure!(output.status.success(), "the corpus could not be merged: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Inputs tried, in what libFuzzer says at its end.
fn executed(told: &str) -> Option<u64> {
    let line = told.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::executed;

    #[test]
    fn the_number_of_runs_is_read() {
        let told =
            "Done 100 runs in 1 second(s)\nstat::number_of_executed_units: 100\nstat::average_exec_per_sec: 100\n";
        assert_eq!(executed(told), Some(100));
        assert_eq!(executed("==1== ERROR: libFuzzer: deadly signal\n"), None);
    }
}
