//! Fetches a URL over and over with some keep-alive clients and says how fast it went.
//!
//! The bodies are discarded in the kernel (`MSG_TRUNC`), so that a client costs little of the machine that it measures.
//!
//! `cargo run --release --example http_load -- http://127.0.0.1:8080/image --clients 32 --rounds 5 --pid 1234`
//!
//! The last line is a JSON object: `megabytes_per_second` (10^6 bytes), `bytes`, `seconds`, and with `--pid`
//! `server_cpu_seconds_per_gigabyte` (user and system time of that process and of its children, by 10^9 bytes).

#![expect(clippy::disallowed_methods, reason = "a measuring program")]

use std::io::Write as _;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use nix::sys::socket::{MsgFlags, recv};

/// The most that one call discards.
const PIECE: usize = 1 << 20;

#[derive(Parser)]
struct Options {
    /// An http URL with a host and perhaps a port.
    url: url::Url,
    /// Clients at a time, each with one connection.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Fetches of each client.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// A process whose time to count, and its children's.
    #[arg(long)]
    pid: Option<u32>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let before = options.pid.map(cpu_seconds).transpose()?;
    let start = Instant::now();
    let clients: Vec<_> = (0..options.clients)
        .map(|_| {
            let (url, rounds) = (options.url.clone(), options.rounds);
            std::thread::spawn(move || client(&url, rounds))
        })
        .collect();
    let mut bytes = 0;
    for client in clients {
        bytes += client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut told = serde_json::json!({
        "clients": options.clients,
        "bytes": bytes,
        "seconds": seconds,
        "megabytes_per_second": bytes as f64 / 1e6 / seconds,
    });
    if let (Some(pid), Some(before)) = (options.pid, before) {
        told["server_cpu_seconds_per_gigabyte"] = ((cpu_seconds(pid)? - before) / (bytes as f64 / 1e9)).into();
    }
    println!("{told}");
    Ok(())
}

/// Fetches the URL so many times over one connection; gives the number of body bytes.
fn client(url: &url::Url, rounds: usize) -> anyhow::Result<u64> {
    let host = url.host_str().context("the URL has no host")?;
    let port = url.port_or_known_default().context("the URL has no port")?;
    let address = (host, port).to_socket_addrs()?.next().context("the host has no address")?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let request = format!("GET {} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n", url.path());
    let mut piece = vec![0; PIECE];
    let mut bytes = 0;
    for _ in 0..rounds {
        stream.write_all(request.as_bytes())?;
        let mut left = body_length(&stream, &mut piece)?;
        bytes += left;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let count = recv(stream.as_raw_fd(), &mut piece[..want], MsgFlags::MSG_TRUNC)?;
            ensure!(count > 0, "the server closed {left} bytes before the end");
            left -= count as u64;
        }
    }
    Ok(bytes)
}

/// Reads a response head and nothing more; gives the length of the body.
fn body_length(stream: &TcpStream, piece: &mut [u8]) -> anyhow::Result<u64> {
    for _ in 0..1000 {
        // Looks at what is there, and takes it only when it holds the whole head.
        let count = recv(stream.as_raw_fd(), &mut piece[..8192], MsgFlags::MSG_PEEK)?;
        ensure!(count > 0, "the server closed within a head");
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut fields);
        if let httparse::Status::Complete(length) = head.parse(&piece[..count])? {
            ensure!(head.code == Some(200), "status {:?}", head.code);
            let named = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
            let body = std::str::from_utf8(named.context("no Content-Length")?.value)?.parse()?;
            recv(stream.as_raw_fd(), &mut piece[..length], MsgFlags::MSG_WAITALL)?;
            return Ok(body);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("the server did not finish a head")
}

/// User and system time of a process and of its children, in seconds.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
    let mut sum = 0;
    for entry in std::fs::read_dir("/proc")? {
        let Some(one) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end meanwhile; only the one that was asked for must be there.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{one}/stat")) else {
            if one == pid {
                bail!("process {pid} is gone");
            }
            continue;
        };
        // The name in parentheses may hold blanks: the fields count from behind it.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        if one == pid || number(1) == u64::from(pid) {
            sum += number(11) + number(12);
        }
    }
    Ok(sum as f64 / ticks as f64)
}
