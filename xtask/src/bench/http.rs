//! HTTP image serving against nginx with sendfile: throughput, and processor time by gigabyte.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::lane::{Lane, Peer, last_json, number};
use super::{Better, OURS, Programs, Table, peer};

/// The image: large beside the buffers of a socket, small beside the memory of a machine.
const IMAGE: usize = 200_000_000;

/// Clients, and fetches of each in a round.
const LOADS: [(usize, usize); 2] = [(1, 25), (32, 2)];

struct Server {
    name: &'static str,
    port: u16,
    peer: Peer,
}

pub fn measure(programs: &Programs, rounds: usize, table: &mut Table) -> Result<()> {
    let (lane, folder) = (Lane::new("http")?, tempfile::tempdir_in("/var/tmp")?);
    let folder = folder.path();
    let image = folder.join("image");
    std::fs::write(&image, noise(IMAGE)).context("cannot write the image")?;
    // The workers of nginx run as another user.
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;

    let mut ours = lane.command(programs.example("bootplane_demo")?);
    ours.args(["--listen", "127.0.0.1:8080", "--file"]).arg(&image);
    let servers = [
        start(&lane, folder, OURS, 8080, ours)?,
        start(&lane, folder, "nginx-1", 8081, nginx(&lane, folder, 8081, 1)?)?,
        start(&lane, folder, "nginx-2", 8082, nginx(&lane, folder, 8082, 2)?)?,
    ];
    let load = programs.example("http_load")?;
    for _ in 0..rounds {
        for (clients, fetches) in LOADS {
            for server in &servers {
                let mut command = lane.command(&load);
                command.arg(format!("http://127.0.0.1:{}/image", server.port));
                command.args(["--clients", &clients.to_string(), "--rounds", &fetches.to_string()]);
                command.args(["--pid", &server.peer.pid().to_string()]);
                let told = last_json(&lane.measure(command)?)?;
                let (rate, cost) =
                    (number(&told, "megabytes_per_second")?, number(&told, "server_cpu_seconds_per_gigabyte")?);
                table.add(&format!("http_throughput_{clients}"), "MB/s", Better::More, server.name, rate);
                table.add(&format!("http_cpu_{clients}"), "s/GB", Better::Less, server.name, cost);
            }
        }
    }
    Ok(())
}

fn start(lane: &Lane, folder: &Path, name: &'static str, port: u16, command: Command) -> Result<Server> {
    let log = folder.join(format!("{name}.log"));
    Ok(Server { name, port, peer: lane.start(command, &log, |lane| lane.listens("-t", port))? })
}

/// nginx as one sets it up to serve images, with so many workers.
fn nginx(lane: &Lane, folder: &Path, port: u16, workers: usize) -> Result<Command> {
    let (root, own) = (folder.display(), folder.join(format!("nginx-{workers}.conf")));
    let text = format!(
        "worker_processes {workers};
daemon off;
pid {root}/nginx-{workers}.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_requests 100000;
  client_body_temp_path {root}/body;
  proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi;
  scgi_temp_path {root}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"
    );
    std::fs::write(&own, text)?;
    let mut command = lane.command(peer("nginx", "nginx-light")?);
    command.arg("-c").arg(own).args(["-e", "stderr"]);
    Ok(command)
}

/// Bytes without a pattern, the same each time (xorshift), so that nothing on the way compresses them.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
