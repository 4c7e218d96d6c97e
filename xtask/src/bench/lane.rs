//! A lane to measure on: a network namespace of its own, so that ports 67 and 69 are free and nobody else is asked, and
//! servers that end with the measurement.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::root;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);

/// A network namespace; it is gone when this is dropped.
pub struct Lane {
    name: String,
}

impl Lane {
    /// Makes a namespace with a loopback interface that is up.
    pub fn new(purpose: &str) -> Result<Self> {
        let lane = Self { name: format!("nkd-bench-{purpose}-{}", std::process::id()) };
        ip(&["netns", "add", &lane.name])?;
        ip(&["-n", &lane.name, "link", "set", "lo", "up"])?;
        // tftpd-hpa resolves its address only on a host that has one beside 127.0.0.1.
        ip(&["-n", &lane.name, "address", "add", "192.0.2.1/32", "dev", "lo"])?;
        Ok(lane)
    }

    /// Joins this namespace and another by a cable: `here` with `address` on this side, `there` on the other.
    pub fn connect(&self, (here, address): (&str, &str), other: &Self, (there, its): (&str, &str)) -> Result<()> {
        ip(&["-n", &self.name, "link", "add", here, "type", "veth", "peer", "name", there, "netns", &other.name])?;
        for (lane, device, address) in [(self, here, address), (other, there, its)] {
            ip(&["-n", &lane.name, "address", "add", address, "dev", device])?;
            ip(&["-n", &lane.name, "link", "set", device, "up"])?;
        }
        Ok(())
    }

    /// A command inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = root::command::<&str>("ip", &[]);
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Starts a server inside and waits until `ready` says so.
    pub fn start(&self, mut command: Command, log: &Path, ready: impl Fn(&Self) -> bool) -> Result<Peer> {
        let output = std::fs::File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut peer = Peer { child };
        let deadline = Instant::now() + START;
        while !ready(self) {
            if let Some(status) = peer.child.try_wait()? {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                bail!("{command:?} ended at once with {status}:\n{said}");
            }
            ensure!(
                Instant::now() < deadline,
                "{command:?} was not ready in {} s; see {}",
                START.as_secs(),
                log.display()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(peer)
    }

    /// Whether a socket of this kind (`-t` or `-u`) listens on this port here.
    pub fn listens(&self, kind: &str, port: u16) -> bool {
        let mut command = self.command("ss");
        command.args(["-H", "-l", "-n", kind, "sport", "=", &format!(":{port}")]);
        command.output().is_ok_and(|output| !output.stdout.trim_ascii().is_empty())
    }

    /// Runs a measuring program inside; gives what it printed.
    pub fn measure(&self, mut command: Command) -> Result<String> {
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        let Output { status, stdout, stderr } = &output;
        ensure!(status.success(), "{command:?}: {status}\n{}", String::from_utf8_lossy(stderr));
        Ok(String::from_utf8_lossy(stdout).into_owned())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// A server that runs until this is dropped.
pub struct Peer {
    child: Child,
}

impl Peer {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // SIGTERM first: nginx and dnsmasq end their own children then.
        let pid = self.child.id().to_string();
        let _ = root::command::<&str>("kill", &[]).arg(&pid).status();
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = root::command::<&str>("kill", &[]).args(["-KILL", &pid]).status();
        let _ = self.child.wait();
    }
}

/// The last line of what a measuring program printed, as JSON.
pub fn last_json(printed: &str) -> Result<serde_json::Value> {
    let line = printed.lines().last().context("it printed nothing")?;
    serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))
}

/// A number in it.
pub fn number(value: &serde_json::Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("no number {name} in {value}"))
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = root::command::<&str>("ip", &[]).args(arguments).output().context("cannot run ip of iproute2")?;
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
