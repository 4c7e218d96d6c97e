//! What clients cost the boot plane, in memory and descriptors. A process of its own, because both are counted by process.

#![allow(clippy::disallowed_methods, reason = "sockets, files and processes are what is tested")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nkd_server::netboot::bootplane::{Answer, Config, Handler, Metrics, Request, Server};
use tokio_util::sync::CancellationToken;

const IMAGE: u64 = 2 << 30;
const STUCK: usize = 100;
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

struct Image(Arc<File>);

#[async_trait]
impl Handler for Image {
    async fn answer(&self, _: &Request) -> Answer {
        Answer::file("application/octet-stream", Arc::clone(&self.0), IMAGE)
    }
}

/// The most memory that this process ever had, in KiB.
fn high_water() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

fn allow_descriptors(count: usize) {
    let (pid, limit) = (std::process::id().to_string(), format!("--nofile={count}:"));
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status().expect("prlimit of util-linux");
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_cost_no_memory_and_descriptors_may_run_out() {
    let image = tempfile::tempfile().expect("a file");
    image.set_len(IMAGE).expect("a hole");
    let config = Config::new(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
    let metrics = Metrics::default();
    let server = Server::bind(config, Arc::new(Image(Arc::new(image))), metrics.clone()).await.expect("a free port");
    let address = server.local_addrs()[0];
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let idle = descriptors();

    let (before, counted) = (high_water(), metrics.clone());
    let clients = tokio::task::spawn_blocking(move || {
        let ask = || {
            let mut stream = TcpStream::connect(address).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(120))).expect("set");
            stream.write_all(GET).expect("said");
            stream
        };
        // These read one byte and then nothing more.
        let mut stuck: Vec<_> = (0..STUCK).map(|_| ask()).collect();
        for stream in &mut stuck {
            stream.read_exact(&mut [0]).expect("a byte");
        }
        assert_eq!(counted.connections.get(), STUCK as i64);
        // This one reads all, in pieces that do not fit the server's.
        let (mut reader, mut piece, mut all) = (ask(), vec![0; 50_000], 0_u64);
        loop {
            match reader.read(&mut piece).expect("more") {
                0 => break,
                count => all += count as u64,
            }
        }
        assert!(all > IMAGE);
        stuck
    });
    let stuck = clients.await.expect("the clients are content");
    let grown = high_water() - before;
    assert!(grown < 8 * 1024, "2 GiB and {STUCK} stuck readers took {grown} KiB");
    drop(stuck);
    // The server closes its ends in its own time. A number that is still taken now and free a moment later would be room for more.
    for _ in 0..1000 {
        if metrics.connections.get() == 0 && descriptors() <= idle {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(descriptors() <= idle, "{} descriptors stay open, {idle} were", descriptors());

    // No descriptor is left for the connection that the client has already: the server must come back to it.
    let mut client = TcpStream::connect(address).expect("a connection");
    client.read_exact(&mut []).expect("nothing");
    let mut waiting = Vec::new();
    let failures = metrics.accept_errors.get();
    let allowed = descriptors() + 8;
    allow_descriptors(allowed);
    while let Ok(more) = TcpStream::connect(address) {
        waiting.push(more);
        assert!(waiting.len() < 64, "descriptors do not run out");
    }
    for _ in 0..1000 {
        if metrics.accept_errors.get() > failures {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(metrics.accept_errors.get() > failures, "accepting did not fail");
    allow_descriptors(1024);
    let answered = tokio::task::spawn_blocking(move || {
        let last = waiting.last_mut().expect("someone waits");
        last.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        last.write_all(GET).expect("said");
        last.read_exact(&mut [0]).expect("it is served in the end");
    });
    answered.await.expect("the client is content");
    drop(client);
    shutdown.cancel();
    running.await.expect("an orderly end");
}
