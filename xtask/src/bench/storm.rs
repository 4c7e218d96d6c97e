//! A boot storm: a thousand machines that start at the same time, against the whole service, from their first DHCP packet
//! to their enrolled agents. Everyone has to be answered.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::http::noise;
use super::lane::{Lane, Peer, last_json, number};
use super::{Better, OURS, Programs, Table};

/// Both ends of the cable, and the subnet of both.
const SERVER: (&str, &str) = ("srv0", "10.123.0.1");
const CLIENT: (&str, &str) = ("cli0", "10.123.0.2");
const PREFIX: u8 = 16;
/// The pool, and the subnet that has it.
const POOL: (&str, &str) = ("10.123.8.1", "10.123.15.254");
const POOL_SUBNET: &str = "10.123.8.0/21";

const MACHINES: usize = 1000;
/// How many are on their way at a time.
const IN_FLIGHT: usize = 128;

/// The files of the image: small, so that it is the service that is measured and not the cable.
const IMAGE: [(&str, usize); 4] = [
    ("lab-1-live-kernel-x86_64", 100_000),
    ("lab-1-live-initramfs.x86_64.img", 300_000),
    ("lab-1-live-rootfs.x86_64.img", 100_000),
    ("lab-1-metal.x86_64.raw", 100_000),
];

pub fn measure(programs: &Programs, rounds: usize, table: &mut Table) -> Result<()> {
    let (nkd, storm) = (programs.binary("nkd")?, programs.example("boot_storm")?);
    for _ in 0..rounds {
        round(&nkd, &storm, table)?;
    }
    Ok(())
}

fn round(nkd: &Path, storm: &Path, table: &mut Table) -> Result<()> {
    let stage = Stage::set(nkd)?;
    let idle = stage.usage()?;

    let told = last_json(
        &stage
            .client
            .measure(stage.storm(storm, MACHINES, &[]))
            .with_context(|| format!("the service said last:\n{}", stage.said()))?,
    )?;
    let busy = stage.usage()?;
    let machines: Vec<Value> = serde_json::from_str(&stage.ask(&["machine", "list", "--output", "json"])?)?;
    let enrolled = machines.iter().filter(|machine| is_enrolled(machine)).count();
    ensure!(
        enrolled == MACHINES && machines.len() == MACHINES,
        "{enrolled} of {} machines in the list are enrolled, {MACHINES} should be",
        machines.len()
    );

    let mut add = |name: &str, unit, figure| table.add(&format!("storm_{name}"), unit, Better::Less, OURS, figure);
    add("seconds", "s", number(&told, "seconds")?);
    add("cpu_seconds", "s", busy.cpu_seconds - idle.cpu_seconds);
    add("rss_idle", "MiB", idle.resident);
    add("rss_after", "MiB", busy.resident);
    add("rss_peak", "MiB", busy.peak);
    let mut retries = 0.0;
    for (name, step) in told["steps"].as_object().context("no steps")? {
        add(&format!("{name}_p50"), "ms", number(step, "p50_ms")?);
        add(&format!("{name}_p99"), "ms", number(step, "p99_ms")?);
        retries += number(step, "retries")?;
    }
    add("retries", "", retries);
    table.add("storm_enrolled", "machines", Better::More, OURS, f64::from(u32::try_from(enrolled)?));
    Ok(())
}

/// A service that lets everybody in, and a cable to the machines.
pub(super) struct Stage {
    service: Peer,
    pub client: Lane,
    server: Lane,
    folder: tempfile::TempDir,
    nkd: PathBuf,
}

impl Stage {
    pub fn set(nkd: &Path) -> Result<Self> {
        // Not in memory: commits are part of what is measured.
        let folder = tempfile::tempdir_in("/var/tmp")?;
        let (server, client) = (Lane::new("storm-s")?, Lane::new("storm-c")?);
        let address = |end: (&str, &str)| format!("{}/{PREFIX}", end.1);
        server.connect((SERVER.0, &address(SERVER)), &client, (CLIENT.0, &address(CLIENT)))?;
        // Each machine speaks from the address that it is given.
        client.measure({
            let mut route = client.command("ip");
            route.args(["route", "add", "local", POOL_SUBNET, "dev", CLIENT.0]);
            route
        })?;
        let command = serve(&server, folder.path(), nkd)?;
        let first = folder.path().join("state/first-admin-token");
        let ready = |lane: &Lane| lane.listens("-t", 8443) && first.exists();
        let service = server.start(command, &folder.path().join("log"), ready)?;
        let source = folder.path().join("image");
        std::fs::create_dir(&source)?;
        for (name, size) in IMAGE {
            std::fs::write(source.join(name), noise(size))?;
        }
        // Its first use deletes the file.
        let token = std::fs::read_to_string(&first)?;
        std::fs::write(folder.path().join("token"), token.trim())?;
        let stage = Self { service, client, server, folder, nkd: nkd.to_owned() };
        stage.ask(&["image", "import", source.to_str().context("the folder's name is no text")?, "--name", "storm"])?;
        stage.ask(&["rule", "set", "storm", "--mac", "52:54:*", "--image", "storm"])?;
        Ok(stage)
    }

    /// What `nkd` answers.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let folder = self.folder.path();
        let token = std::fs::read_to_string(folder.join("token"))?;
        let mut command = self.server.command("env");
        command.args(["NKD_SERVER=https://127.0.0.1:8443", "NKD_CONFIG=/nonexistent"]);
        command.arg(format!("NKD_CA={}", folder.join("state/ca.pem").display()));
        command.arg(format!("NKD_TOKEN={token}")).arg(&self.nkd).args(arguments);
        self.server.measure(command)
    }

    /// The machines.
    pub fn storm(&self, storm: &Path, machines: usize, more: &[&str]) -> Command {
        let mut command = self.client.command(storm);
        command.args(["--server", SERVER.1, "--relay", CLIENT.1, "--machines", &machines.to_string()]);
        command.args(["--in-flight", &IN_FLIGHT.to_string()]).args(more);
        command
    }

    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.service.pid())
    }

    /// A file of this stage.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The end of the service's log.
    pub fn said(&self) -> String {
        let text = std::fs::read_to_string(self.file("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

/// The service as an operator sets it up. There is no conflict probe because the addresses of machines that have not
/// started yet answer here.
fn serve(lane: &Lane, folder: &Path, nkd: &Path) -> Result<Command> {
    let settings = folder.join("nkd.toml");
    let text = format!(
        r#"[dhcp]
mode = "server"
conflict_probe = false

[[dhcp.interface]]
name = "{}"
pool = "{}-{}"
"#,
        SERVER.0, POOL.0, POOL.1
    );
    std::fs::write(&settings, text)?;
    let mut command = lane.command(nkd);
    command.args(["serve", "--config"]).arg(settings).arg("--state-dir").arg(folder.join("state"));
    Ok(command)
}

/// Whether the agent's certificate was bought and nobody stopped the machine.
fn is_enrolled(machine: &Value) -> bool {
    let steps = machine["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    machine["stopped"].is_null() && steps.iter().any(|step| step["name"] == "live" && step["state"] == "done")
}

/// What a process uses.
pub(super) struct Usage {
    /// MiB of memory now.
    pub resident: f64,
    /// MiB of memory at most.
    pub peak: f64,
    pub cpu_seconds: f64,
}

impl Usage {
    pub fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let (status, stat) = (read("status")?, read("stat")?);
        ensure!(status.starts_with("Name:\tnkd\n"), "process {pid} is not the service: run this as root, not by sudo");
        let (resident, peak) = (mebibytes(&status, "VmRSS:"), mebibytes(&status, "VmHWM:"));
        let cpu_seconds = cpu_seconds(&stat).context("no times in /proc")?;
        Ok(Self { resident: resident.context("no VmRSS")?, peak: peak.context("no VmHWM")?, cpu_seconds })
    }
}

pub(super) fn mebibytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kibibytes| kibibytes / 1024.0)
}

/// User and system time. Linux counts them in hundredths of a second on every architecture.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Some((times.next()?.ok()? + times.next()?.ok()?) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_process_is_read() {
        assert_eq!(mebibytes("Name:\tnkd\nVmHWM:\t   65536 kB\nVmRSS:\t  1024 kB\n", "VmHWM:"), Some(64.0));
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 5 0 0 0 250 50 0 0 20 0 3 0 100";
        assert_eq!(cpu_seconds(stat), Some(3.0));
    }

    #[test]
    fn a_stopped_machine_is_not_enrolled() {
        let step = |state| serde_json::json!([{ "name": "live", "state": state }]);
        assert!(is_enrolled(&serde_json::json!({ "stopped": null, "steps": step("done") })));
        assert!(!is_enrolled(&serde_json::json!({ "stopped": "twice", "steps": step("done") })));
        assert!(!is_enrolled(&serde_json::json!({ "steps": step("running") })));
    }
}
