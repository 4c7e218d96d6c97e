//! TFTP against dnsmasq and tftpd-hpa: lock-step with 512 bytes, and 1468 bytes in windows of 16.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::http::noise;
use super::lane::{Lane, Peer, last_json, number};
use super::{Better, OURS, Programs, Table, peer};

/// The file: the size of a boot loader with its initial system, and below the 65,535 blocks of 512 bytes where block
/// numbers roll over, which not every peer outlives.
const FILE: usize = 8_000_000;

/// Clients at a time, and fetches of each in a round.
const LOADS: [(usize, usize); 3] = [(1, 4), (16, 1), (64, 1)];

/// Block sizes and windows.
const MODES: [(usize, usize); 2] = [(512, 1), (1468, 16)];

struct Server {
    name: &'static str,
    /// TFTP has its port, and not every peer takes another: each has a namespace.
    lane: Lane,
    _peer: Peer,
}

pub fn measure(programs: &Programs, rounds: usize, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let served = folder.path().join("tftp");
    std::fs::create_dir(&served)?;
    std::fs::write(served.join("file"), noise(FILE)).context("cannot write the file")?;
    for readable in [folder.path(), &served] {
        std::fs::set_permissions(readable, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let (ours, load) = (programs.example("tftp_serve")?, programs.example("tftp_load")?);
    let servers = [
        start(folder.path(), OURS, |lane| {
            let mut command = lane.command(ours);
            command.arg("127.0.0.1:69").arg(&served);
            Ok(command)
        })?,
        start(folder.path(), "dnsmasq", |lane| dnsmasq(lane, &served))?,
        start(folder.path(), "tftpd-hpa", |lane| tftpd_hpa(lane, &served))?,
    ];
    for _ in 0..rounds {
        for (block, window) in MODES {
            for (clients, fetches) in LOADS {
                for server in &servers {
                    let mut command = server.lane.command(&load);
                    command.args(["127.0.0.1:69", "file"]);
                    command.args([clients, block, window, fetches].map(|number| number.to_string()));
                    let told = last_json(&server.lane.measure(command)?)?;
                    let name = format!("tftp_{block}_{window}_clients_{clients}");
                    table.add(&name, "MB/s", Better::More, server.name, number(&told, "mb_per_s")?);
                }
            }
        }
    }
    Ok(())
}

fn start(folder: &Path, name: &'static str, command: impl FnOnce(&Lane) -> Result<Command>) -> Result<Server> {
    let lane = Lane::new(name)?;
    let command = command(&lane)?;
    let peer = lane.start(command, &folder.join(format!("{name}.log")), |lane| lane.listens("-u", 69))?;
    Ok(Server { name, lane, _peer: peer })
}

fn dnsmasq(lane: &Lane, served: &Path) -> Result<Command> {
    let mut command = lane.command(peer("dnsmasq", "dnsmasq-base")?);
    command.args([
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--port=0",
        "--user=root",
        "--listen-address=127.0.0.1",
    ]);
    command.args(["--pid-file=", "--log-facility=/dev/null", "--enable-tftp", "--tftp-max=200"]);
    command.arg(format!("--tftp-root={}", served.display()));
    Ok(command)
}

fn tftpd_hpa(lane: &Lane, served: &Path) -> Result<Command> {
    let mut command = lane.command(peer("in.tftpd", "tftpd-hpa")?);
    command.args(["--foreground", "--listen", "--address", "127.0.0.1:69", "--user", "root", "--secure"]).arg(served);
    Ok(command)
}
