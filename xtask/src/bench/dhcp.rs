//! DHCP against kea and dnsmasq: the highest rate of whole exchanges (discover, offer, request, acknowledgement) that a
//! server keeps up with, asked for by perfdhcp as a relay would ask.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::lane::{Lane, Peer};
use super::{Better, OURS, Programs, Table, peer};

/// Both ends of the cable, and the subnet of both.
const SERVER: (&str, &str) = ("srv0", "10.123.0.1");
const CLIENT: (&str, &str) = ("cli0", "10.123.0.2");
const PREFIX: u8 = 16;
const POOL: (&str, &str) = ("10.123.1.0", "10.123.250.255");

/// So many machines are simulated: fewer than the pool has addresses.
const MACHINES: usize = 50_000;

/// Exchanges a second to begin with, and seconds of each step.
const FIRST_RATE: f64 = 500.0;
const SECONDS: u32 = 3;

/// What a server may lose and still keep up.
const LOSS: f64 = 0.01;

/// What a socket may hold that was opened while this lives. perfdhcp takes the default, some 160 packets: it loses answers
/// by itself when a server gives many at once, and that would be counted as the server's loss.
struct Room {
    before: String,
}

/// Default size of a receive buffer. It is the whole machine's: there is none of a network namespace.
const RECEIVE_DEFAULT: &str = "/proc/sys/net/core/rmem_default";
const RECEIVE_LIMIT: &str = "/proc/sys/net/core/rmem_max";

impl Room {
    fn make() -> Result<Self> {
        let before = std::fs::read_to_string(RECEIVE_DEFAULT).context(RECEIVE_DEFAULT)?;
        let limit = std::fs::read_to_string(RECEIVE_LIMIT).context(RECEIVE_LIMIT)?;
        std::fs::write(RECEIVE_DEFAULT, limit.trim()).context(RECEIVE_DEFAULT)?;
        Ok(Self { before })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(RECEIVE_DEFAULT, self.before.trim()) {
            eprintln!("{RECEIVE_DEFAULT} could not be set to {} again: {error}", self.before.trim());
        }
    }
}

/// A way to start a server: the lane, a folder for its files, the command.
type Start<'a> = dyn Fn(&Lane, &Path) -> Result<Command> + 'a;

pub fn measure(programs: &Programs, rounds: usize, table: &mut Table) -> Result<()> {
    let nkd = programs.binary("nkd")?;
    let perfdhcp = peer("perfdhcp", "kea-admin")?;
    let ours = |lane: &Lane, folder: &Path| ours(lane, folder, &nkd);
    let servers: [(&'static str, &Start<'_>); 3] = [(OURS, &ours), ("kea", &kea), ("dnsmasq", &dnsmasq)];
    for _ in 0..rounds {
        for (name, command) in servers {
            let rate = highest_rate(name, command, &perfdhcp).with_context(|| name.to_owned())?;
            table.add("dhcp_rate", "exchanges/s", Better::More, name, rate);
        }
    }
    Ok(())
}

/// Starts a server with no leases and raises the rate until it falls behind.
fn highest_rate(name: &str, command: &Start<'_>, perfdhcp: &Path) -> Result<f64> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let (server, client) = (Lane::new(&format!("{name}-s"))?, Lane::new(&format!("{name}-c"))?);
    let address = |end: (&str, &str)| format!("{}/{PREFIX}", end.1);
    server.connect((SERVER.0, &address(SERVER)), &client, (CLIENT.0, &address(CLIENT)))?;
    let log = folder.path().join("log");
    let _peer: Peer = server.start(command(&server, folder.path())?, &log, |lane| lane.listens("-u", 67))?;
    let (mut best, mut step, mut rate) = (0.0_f64, 2.0, FIRST_RATE);
    // Doubles, and after the first failure goes on from the best in smaller steps: to within a tenth of the limit.
    for _ in 0..20 {
        // A step that fails is tried once more: something else on this machine may have been the cause.
        let mut kept = exchanges(&client, perfdhcp, rate)?;
        if kept < rate * (1.0 - LOSS) {
            kept = kept.max(exchanges(&client, perfdhcp, rate)?);
        }
        if kept >= rate * (1.0 - LOSS) {
            best = rate;
        } else if step < 1.1 || best == 0.0 {
            // Nothing was kept up with: then what was answered is the figure.
            return Ok(if best == 0.0 { kept } else { best });
        } else {
            step = f64::sqrt(step);
        }
        rate = if best == 0.0 { rate / step } else { best * step };
    }
    Ok(best)
}

/// Exchanges finished in a second, at this rate.
fn exchanges(client: &Lane, perfdhcp: &Path, rate: f64) -> Result<f64> {
    let mut command = client.command(perfdhcp);
    command.args(["-4", "-l", CLIENT.0, "-r", &format!("{rate:.0}"), "-R", &MACHINES.to_string()]);
    command.args(["-p", &SECONDS.to_string(), "-W", "1", SERVER.1]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let room = Room::make()?;
    let child = command.spawn().context("cannot run perfdhcp")?;
    std::thread::sleep(Duration::from_millis(500));
    drop(room);
    let output = child.wait_with_output().context("cannot run perfdhcp")?;
    // 3 says that some exchanges were not finished.
    ensure!(matches!(output.status.code(), Some(0 | 3)), "perfdhcp: {}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let (sent, received) =
        finished(&told).with_context(|| format!("perfdhcp did not say what it received:\n{told}"))?;
    Ok(if sent == 0.0 { 0.0 } else { rate * received / sent })
}

/// Discoveries sent and acknowledgements received, in what perfdhcp says.
fn finished(told: &str) -> Option<(f64, f64)> {
    let (discover, request) = told.split_once("Statistics for: REQUEST-ACK")?;
    let number = |part: &str, name: &str| {
        let line = part.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    };
    Some((number(discover, "sent packets")?, number(request, "received packets")?))
}

fn ours(lane: &Lane, folder: &Path, nkd: &Path) -> Result<Command> {
    let settings = folder.join("nkd.toml");
    let text = format!(
        r#"[log]
filter = "warn"

[dhcp]
mode = "server"
conflict_probe = false
router_advertisements = false

[[dhcp.interface]]
name = "{}"
pool = "{}-{}"

[tftp]
enabled = false
"#,
        SERVER.0, POOL.0, POOL.1
    );
    std::fs::write(&settings, text)?;
    let mut command = lane.command(nkd);
    command.args(["serve", "--config"]).arg(settings).arg("--state-dir").arg(folder.join("state"));
    Ok(command)
}

fn kea(lane: &Lane, folder: &Path) -> Result<Command> {
    let settings = folder.join("kea.json");
    let text = serde_json::json!({ "Dhcp4": {
        "interfaces-config": { "interfaces": [SERVER.0] },
        "lease-database": { "type": "memfile", "persist": true, "name": folder.join("leases.csv") },
        "valid-lifetime": 3600,
        "subnet4": [{
            "id": 1,
            "subnet": format!("10.123.0.0/{PREFIX}"),
            "pools": [{ "pool": format!("{} - {}", POOL.0, POOL.1) }],
        }],
        "loggers": [{ "name": "kea-dhcp4", "severity": "ERROR", "output_options": [{ "output": "stderr" }] }],
    }});
    std::fs::write(&settings, text.to_string())?;
    let mut command = lane.command("env");
    command.arg(format!("KEA_PIDFILE_DIR={}", folder.display()));
    command.arg(format!("KEA_LOCKFILE_DIR={}", folder.display()));
    command.arg(peer("kea-dhcp4", "kea-dhcp4-server")?).arg("-c").arg(settings);
    Ok(command)
}

fn dnsmasq(lane: &Lane, folder: &Path) -> Result<Command> {
    let mut command = lane.command(peer("dnsmasq", "dnsmasq-base")?);
    command.args([
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--port=0",
        "--user=root",
        "--pid-file=",
        "--no-ping",
    ]);
    command.args(["--log-facility=/dev/null", "--quiet-dhcp", "--dhcp-authoritative", "--dhcp-lease-max=100000"]);
    command.arg(format!("--interface={}", SERVER.0));
    command.arg(format!("--dhcp-range={},{},255.255.0.0,1h", POOL.0, POOL.1));
    command.arg(format!("--dhcp-leasefile={}", folder.join("leases").display()));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::finished;

    #[test]
    fn what_perfdhcp_says_is_read() {
        let told = "***Statistics for: DISCOVER-OFFER***\nsent packets: 100\nreceived packets: 99\n\n\
                    ***Statistics for: REQUEST-ACK***\nsent packets: 99\nreceived packets: 98\n";
        assert_eq!(finished(told), Some((100.0, 98.0)));
        assert_eq!(finished("perfdhcp: no such interface"), None);
    }
}
