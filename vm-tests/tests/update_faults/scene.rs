//! A cluster whose nodes have deployments, a channel with releases, and how its owner looks at an upgrade.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nkd_vm_tests::{ClusterFile, ClusterLab, Error, Node, within};
use serde_json::Value;

use crate::Result;

pub const CLUSTER: &str = "rack7";
/// What the nodes begin with, and what later releases are copies of: a tree with each version of Kubernetes.
pub const OLD: &str = "1111111111111111111111111111111111111111111111111111111111111111";
pub const NEW: &str = "2222222222222222222222222222222222222222222222222222222222222222";
pub const BEFORE: &str = "v1.20.2";
pub const AFTER: &str = "v1.21.0";
const CHANNEL: &str = "stable";
const REF: &str = "lab/x86_64/stable";
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Control planes first, then workers.
pub struct Scene {
    pub lab: ClusterLab,
    pub nodes: Vec<Node>,
    /// What all nodes run.
    pub runs: String,
    builder: PathBuf,
    made: u32,
}

/// A release of the channel.
#[derive(Debug, Clone)]
pub struct Release {
    pub number: String,
    pub commit: String,
}

pub fn unexpected(what: impl Into<String>, got: impl Into<String>) -> Error {
    Error::Unexpected { what: what.into(), got: got.into() }
}

impl Scene {
    /// A Ready cluster of one control plane, with the operator in it; every node has deployments.
    pub fn start(network: &str, workers: u8) -> Result<Self> {
        Self::of(network, 1, workers)
    }

    /// The same of several control planes.
    pub fn of(network: &str, control_planes: u8, workers: u8) -> Result<Self> {
        let file = ClusterFile::named(CLUSTER).control_planes(control_planes).workers(workers);
        let members = file.members();
        let (lab, nodes) = ClusterLab::with_housekeeper_in(network, file)?;
        for (member, node) in members.iter().zip(&nodes) {
            node.lay_out(OLD, lab.kubernetes(), BEFORE, member.images)?;
            node.lay_out(NEW, lab.kubernetes(), AFTER, member.images)?;
            node.deploy(OLD)?;
        }
        let builder = lab.net.folder().join("builder");
        std::fs::create_dir_all(builder.join("tree/usr/bin")).unwrap();
        let scene = Self { lab, nodes, runs: OLD.to_owned(), builder, made: 0 };
        scene.ostree(&["init", "--mode=archive"])?;
        scene.await_operators()?;
        Ok(scene)
    }

    fn ostree(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("ostree");
        command.arg(format!("--repo={}", self.builder.join("repo").display())).args(words);
        Ok(self.lab.net.run(command, within(60))?.success()?.text().trim().to_owned())
    }

    /// A new release of the channel, with the programs of one of the two trees, which every node has.
    pub fn publish(&mut self, kubernetes: &str) -> Result<Release> {
        self.made += 1;
        std::fs::write(self.builder.join("tree/usr/bin/system"), format!("release {}", self.made)).unwrap();
        let tree = format!("--tree=dir={}", self.builder.join("tree").display());
        let version = format!("--add-metadata-string=version={}", self.made);
        let commit = self.ostree(&["commit", "--branch", REF, &tree, &version])?;
        let repository = self.builder.join("repo").display().to_string();
        let words = ["channel", "publish", CHANNEL, "--ostree", &repository, "--kubernetes", kubernetes];
        let said = self.lab.nkd.json(&self.lab.net, &words)?;
        assert_eq!(said["commit"], commit, "{said:#}");
        let like = if kubernetes == BEFORE { OLD } else { NEW };
        for node in &self.nodes {
            node.lay_out_again(&commit, like)?;
        }
        Ok(Release { number: said["number"].to_string(), commit })
    }

    /// Both operators run; one that was killed often is started again later each time.
    pub fn await_operators(&self) -> Result {
        let end = Instant::now() + within(200);
        let words = ["-n", "nkd-system", "rollout", "status", "deployment/housekeeper", "--timeout=30s"];
        while let Err(error) = self.kubectl(&words) {
            if Instant::now() >= end {
                return Err(error);
            }
        }
        Ok(())
    }

    /// `nkd upgrade start`.
    pub fn begin(&self, release: &Release, more: &[&str]) -> Result<String> {
        let words = ["upgrade", "start", CLUSTER, "--channel", CHANNEL, "--release", &release.number];
        self.lab.nkd(&[&words[..], &["--ignore-preflight-errors", "ImagePull"], more].concat())
    }

    /// `nkd upgrade status -o json`. On a busy computer the service may not answer the first time.
    pub fn status(&self) -> Result<Value> {
        let end = Instant::now() + within(30);
        loop {
            match self.lab.nkd.json(&self.lab.net, &["upgrade", "status", CLUSTER]) {
                Err(_) if Instant::now() < end => std::thread::sleep(PAUSE),
                answer => return answer,
            }
        }
    }

    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.lab.kubectl(CLUSTER, words)
    }

    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|_| unexpected("JSON", text))
    }

    pub fn apply(&self, name: &str, text: &str) -> Result {
        let path = self.lab.net.folder().join(name);
        std::fs::write(&path, text).unwrap();
        self.kubectl(&["apply", "-f", &path.display().to_string()]).map(drop)
    }

    /// Nodes that have gone down to start anew are switched on, as firmware would.
    pub fn switch_on(&mut self) -> Result {
        for node in &mut self.nodes {
            if !node.is_on() {
                node.power_on()?;
            }
        }
        Ok(())
    }

    /// Looks at the upgrade until it is as it should be. Tells every change.
    pub fn until(&mut self, what: &str, limit: u64, mut fits: impl FnMut(&mut Self, &Value) -> Result<bool>) -> Result {
        let (end, mut last) = (Instant::now() + within(limit), String::new());
        loop {
            self.switch_on()?;
            let status = self.status()?;
            let line = line(&status);
            if line != last {
                println!("{line}");
                last = line;
            }
            if fits(self, &status)? {
                println!("== {what}");
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(unexpected(what, self.explain()));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The upgrade ends like this, in the words of `nkd upgrade status`.
    pub fn until_state(&mut self, state: &str, limit: u64) -> Result {
        self.until(&format!("the upgrade is {state}"), limit, |_, status| Ok(status["state"] == state))
    }

    /// What there is to see when it is not as it should be.
    pub fn explain(&self) -> String {
        let status = self.status().map_or_else(|error| error.to_string(), |status| format!("{status:#}"));
        let logs = ["-n", "nkd-system", "logs", "-l", "app.kubernetes.io/name=nkd-housekeeper", "--tail=60"];
        let pods = self.kubectl(&["get", "pods,nodes", "-A", "-o", "wide"]);
        let said = self.kubectl(&logs);
        let journals = self.nodes.iter().map(|node| {
            let journal = node.shell("journalctl -u nkd-updater --no-pager | tail -60", within(20));
            format!("== {}: {:?}\n{}", node.name(), node.update_journal(), journal.unwrap_or_default())
        });
        let journals = journals.collect::<Vec<_>>().join("\n");
        format!("{status}\n{}\n{}\n{journals}", pods.unwrap_or_default(), said.unwrap_or_default())
    }

    /// A node runs this and nothing else, and nothing of an update is under way or half done on it.
    pub fn expect_whole(&self, node: &Node, commit: &str, end: &str) -> Result {
        let script = "cd /var/lib/site-os; echo $(cat booted) $(cat default) \
            $([ ! -e counter ] || echo counts) $([ ! -e /run/site-os-staged ] || echo staged) \
            $(ls -A /var/lib/nkd-agent/kubelet-before 2>/dev/null) $(pidof kubeadm)";
        let seen = node.shell(script, within(20))?;
        if seen.trim() != format!("{commit} {commit}") {
            return Err(unexpected(format!("{} runs {commit}, and is whole", node.name()), seen));
        }
        let journal = node.update_journal().unwrap_or_default();
        if journal["job"]["stage"] != end {
            return Err(unexpected(format!("the journal of {} ends {end}", node.name()), format!("{journal:#}")));
        }
        Ok(())
    }

    /// It takes pods, or not; either way no update holds it.
    pub fn expect_open(&self, node: &str, open: bool) -> Result {
        let seen = self.json(&["get", "node", node])?;
        let closed = seen["spec"]["unschedulable"] == true;
        let held = seen["metadata"]["annotations"]["nkd.io/cordoned-by"].is_string();
        match closed == open || held {
            true => Err(unexpected(format!("{node} takes pods: {open}"), format!("{seen:#}"))),
            false => Ok(()),
        }
    }
}

/// `upgrade 1 running: cp1 Staging, w1 Waiting; 0 of 2 nodes are done`
fn line(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = status["nodes"].as_array().into_iter().flatten().map(|node| {
        let reason = text(&node["reason"]);
        let reason = if reason.is_empty() { reason } else { format!(" ({reason})") };
        format!("{} {}{reason}", text(&node["name"]), text(&node["state"]))
    });
    let nodes = nodes.collect::<Vec<_>>().join(", ");
    format!("upgrade {} {}: {nodes}; {}", status["number"], text(&status["state"]), text(&status["detail"]))
}
