//! An upgrade of the lab's cluster, as an operator of the system does it: the registry holds the operator's image, the
//! channel the releases, pods answer all the while.

#![allow(clippy::disallowed_methods, reason = "writes files, runs ostree and skopeo, waits")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Error, LabCluster, Machine, Namespace, Network, Nkd, process, within};

const WEB: &str = include_str!("cluster/web.yaml");
/// Of the nodes, for the workload.
const PORT: &str = "30080";
const ADDRESSES: [&str; 2] = ["192.0.2.11", "192.0.2.21"];
/// The channel.
const CHANNEL: &str = "stable";
/// What a release's ref is called in a repository of the lab image.
const REF: &str = "lab/x86_64/stable";

/// The cluster of the lab with what its upgrades need.
pub struct Rollout<'a> {
    /// The cluster.
    pub cluster: &'a LabCluster,
    /// Its network.
    pub net: &'a Network,
    /// The service.
    pub nkd: &'a Nkd,
}

/// Asks the workload again and again, until it is dropped.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    asks: Option<JoinHandle<Answers>>,
}

/// How the workload has answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answers {
    /// Rounds in which a node answered.
    pub good: u32,
    /// The longest time without an answer.
    pub gap: Duration,
}

impl Rollout<'_> {
    /// Puts the operator's image, an archive, into the registry of the service.
    pub fn push_housekeeper(&self, archive: &Path) -> Result<(), Error> {
        self.nkd.push_housekeeper(self.net, archive)
    }

    /// Publishes a release: the repository of a lab image, and the version of Kubernetes that it holds.
    pub fn publish(&self, repository: &Path, kubernetes: &str) -> Result<String, Error> {
        let repository = repository.display().to_string();
        self.nkd.nkd(self.net, &["channel", "publish", CHANNEL, "--ostree", &repository, "--kubernetes", kubernetes])
    }

    /// A repository beside that of a lab image: the same tree with the files of `overlay` over it, and its own version.
    pub fn spoil(&self, image: &Path, version: &str, overlay: &Path) -> Result<PathBuf, Error> {
        let repository = self.net.folder().join(format!("repo-{version}"));
        let run = |words: &[&str]| {
            let mut command = Command::new("ostree");
            command.arg(format!("--repo={}", repository.display())).args(words);
            process::run(command, within(300))?.success().map(drop)
        };
        std::fs::create_dir_all(&repository).map_err(Error::io(format!("making {}", repository.display())))?;
        run(&["init", "--mode=archive"])?;
        run(&["pull-local", &image.join("repo").display().to_string(), REF])?;
        let trees = [format!("--tree=ref={REF}"), format!("--tree=dir={}", overlay.display())];
        let version = format!("--add-metadata-string=version={version}");
        run(&[
            "commit",
            "--bootable",
            "--owner-uid=0",
            "--owner-gid=0",
            "--branch",
            REF,
            &trees[0],
            &trees[1],
            &version,
        ])?;
        Ok(repository)
    }

    /// Runs the workload, and waits until it answers on every node.
    pub fn run_workload(&self) -> Result<Probe, Error> {
        let file = self.net.folder().join("web.yaml");
        std::fs::write(&file, WEB).map_err(Error::io(format!("writing {}", file.display())))?;
        self.cluster.kubectl(self.net, &["apply", "-f", &file.display().to_string()])?;
        let end = Instant::now() + within(240);
        while let Some(silent) = ADDRESSES.iter().find(|address| !answers(self.net, address)) {
            if Instant::now() >= end {
                let got = self.cluster.kubectl(self.net, &["get", "pods", "-A", "-o", "wide"])?;
                return Err(Error::Unexpected { what: format!("the workload answers on {silent}"), got });
            }
            std::thread::sleep(Duration::from_secs(2));
        }
        Ok(Probe::start(Namespace::clone(self.net)))
    }

    /// The newest upgrade of the cluster.
    pub fn status(&self) -> Result<Value, Error> {
        self.nkd.json(self.net, &["upgrade", "status", LabCluster::NAME])
    }

    /// Begins an upgrade to a release of the channel. What the command said.
    pub fn start(&self, release: u32) -> Result<String, Error> {
        let release = release.to_string();
        let words = ["upgrade", "start", LabCluster::NAME, "--channel", CHANNEL, "--release", &release];
        let end = Instant::now() + within(120);
        loop {
            // Two emulated processors are not always quick enough for the service, which says that nothing answers.
            match self.nkd.nkd(self.net, &words) {
                Err(error) if error.to_string().contains("timed out") && Instant::now() < end => {}
                begun => return begun,
            }
            std::thread::sleep(Duration::from_secs(3));
        }
    }

    /// Waits until the upgrade is in this state, and tells every change: `told` gets a line for each. `keep_on` is called again
    /// and again, to switch on what is off ([`switch_on`]).
    pub fn wait_for(
        &self,
        state: &str,
        limit: Duration,
        mut keep_on: impl FnMut() -> Result<(), Error>,
        mut told: impl FnMut(&str),
    ) -> Result<Value, Error> {
        let end = Instant::now() + limit;
        let mut last = String::new();
        loop {
            let status = self.status()?;
            let line = line(&status);
            if line != last {
                told(&line);
                last = line;
            }
            if status["state"] == state {
                return Ok(status);
            }
            keep_on()?;
            let over = ["complete", "aborted"].iter().any(|word| status["state"] == *word)
                || (status["state"] == "halted" && state == "complete");
            if over || Instant::now() >= end {
                let pods = self.cluster.kubectl(self.net, &["get", "pods,nodes", "-A", "-o", "wide"]);
                let got = format!("{status:#}\n{}", pods.unwrap_or_default());
                return Err(Error::Unexpected { what: format!("the upgrade is {state}"), got });
            }
            std::thread::sleep(Duration::from_secs(3));
        }
    }
}

/// A machine that is off is switched on, which is what its owner would do.
pub fn switch_on(machines: &mut [Machine]) -> Result<(), Error> {
    for machine in machines {
        if !machine.is_on() {
            machine.power_on()?;
        }
    }
    Ok(())
}

/// `running: bios-1 Staging, uefi-1 Waiting`; before there are nodes, what it waits for.
fn line(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let node = |node: &Value| {
        let reason = text(&node["reason"]);
        let reason = if reason.is_empty() { reason } else { format!(" ({reason})") };
        format!("{} {}{reason}", text(&node["name"]), text(&node["state"]))
    };
    let nodes: Vec<String> = status["nodes"].as_array().into_iter().flatten().map(node).collect();
    // With its only control plane the API goes away, and what the operator says with it.
    let detail = text(&status["detail"]);
    let is_away = detail.contains("does not answer");
    let rest = match nodes.is_empty() {
        true => detail,
        false if is_away => format!("{}; {detail}", nodes.join(", ")),
        false => nodes.join(", "),
    };
    let state = text(&status["state"]);
    if rest.is_empty() { state } else { format!("{state}: {rest}") }
}

fn answers(space: &Namespace, address: &str) -> bool {
    let url = format!("http://{address}:{PORT}/");
    let answer = space.curl(&["--max-time", "5", &url], within(8));
    answer.is_ok_and(|answer| answer.status == 200 && answer.text() == "web\n")
}

impl Probe {
    fn start(space: Namespace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let asks = std::thread::spawn(move || {
            let (mut seen, mut last) = (Answers::default(), Instant::now());
            while !asked.load(Ordering::Relaxed) {
                if ADDRESSES.iter().any(|address| answers(&space, address)) {
                    seen.good += 1;
                    seen.gap = seen.gap.max(last.elapsed());
                    last = Instant::now();
                }
                std::thread::sleep(Duration::from_secs(1));
            }
            seen.gap = seen.gap.max(last.elapsed());
            seen
        });
        Self { stop, asks: Some(asks) }
    }

    /// Ends it.
    pub fn end(mut self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        self.asks.take().and_then(|asks| asks.join().ok()).unwrap_or_default()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
