//! A load of TFTP clients against any server, for measurements.
//!
//! `tftp_load SERVER:PORT FILE CLIENTS BLOCK_SIZE WINDOW ROUNDS`: each client fetches the file ROUNDS times, one after
//! the other; the last line is one JSON object. All clients share one thread, so that the load costs little beside the
//! server. Options are sent only if they differ from RFC 1350.
#![allow(clippy::disallowed_methods, reason = "a measuring program: sockets and the clock are its business")]

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nkd_server::netboot::tftp::codec::{self, Direction, Mode, Options, Packet, Request};

/// Silence after which a client sends its last packet again.
const SILENCE: Duration = Duration::from_secs(1);
/// Silences in a row after which the run fails.
const MAX_SILENCES: u32 = 20;

struct Load {
    server: SocketAddr,
    file: String,
    asked: Options,
    rounds: u32,
}

struct Client {
    socket: UdpSocket,
    connected: bool,
    expected: u64,
    unacknowledged: u16,
    block_size: usize,
    window: u16,
    bytes: u64,
    rounds_left: u32,
    repeats: u64,
    heard: Instant,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, file, clients, block_size, window, rounds] = arguments.as_slice() else {
        bail!("usage: tftp_load SERVER:PORT FILE CLIENTS BLOCK_SIZE WINDOW ROUNDS");
    };
    let (block_size, window): (u16, u16) = (block_size.parse()?, window.parse()?);
    let load = Load {
        server: server.parse().context("SERVER:PORT")?,
        file: file.clone(),
        asked: Options {
            block_size: (block_size != codec::DEFAULT_BLOCK_SIZE).then_some(block_size),
            window_size: (window != 1).then_some(window),
            ..Options::default()
        },
        rounds: rounds.parse()?,
    };
    let count: usize = clients.parse()?;
    let begun = Instant::now();
    let mut clients = (0..count).map(|_| Client::start(&load, load.rounds)).collect::<anyhow::Result<Vec<_>>>()?;
    match clients.as_mut_slice() {
        [only] => run_alone(&load, only)?,
        many => run_together(&load, many)?,
    }
    let seconds = begun.elapsed().as_secs_f64();
    let bytes: u64 = clients.iter().map(|client| client.bytes).sum();
    let repeats: u64 = clients.iter().map(|client| client.repeats).sum();
    let report = serde_json::json!({
        "clients": count, "block_size": block_size, "window": clients.first().map_or(0, |client| client.window),
        "seconds": seconds, "bytes": bytes, "repeats": repeats, "mb_per_s": bytes as f64 / 1e6 / seconds,
    });
    println!("{report}");
    Ok(())
}

/// One client waits in `recv`: the shortest way from packet to packet.
fn run_alone(load: &Load, client: &mut Client) -> anyhow::Result<()> {
    let mut buffer = vec![0; 70_000];
    while client.rounds_left > 0 {
        client.socket.set_nonblocking(false)?;
        client.socket.set_read_timeout(Some(SILENCE))?;
        match client.next(load, &mut buffer) {
            Ok(true) | Err(None) => {}
            Ok(false) => continue,
            Err(Some(error)) => return Err(error),
        }
        loop {
            match client.next(load, &mut buffer) {
                Ok(true) => {}
                Ok(false) => break,
                Err(None) => client.repeat(load)?,
                Err(Some(error)) => return Err(error),
            }
        }
    }
    Ok(())
}

fn run_together(load: &Load, clients: &mut [Client]) -> anyhow::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, client) in clients.iter().enumerate() {
        epoll.add(&client.socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
    }
    let mut buffer = vec![0; 70_000];
    let mut events = [EpollEvent::empty(); 256];
    let mut running = clients.len();
    let mut checked = Instant::now();
    while running > 0 {
        let count = epoll.wait(&mut events, EpollTimeout::try_from(SILENCE)?)?;
        for event in &events[..count] {
            let index = event.data() as usize;
            let client = &mut clients[index];
            // A window's packets come together; lock-step brings one at a time.
            for _ in 0..client.window.max(1) {
                match client.next(load, &mut buffer) {
                    Ok(true) => {}
                    Ok(false) if client.rounds_left > 0 => {
                        epoll.add(&client.socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
                        break;
                    }
                    Ok(false) => {
                        running -= 1;
                        epoll.delete(&client.socket)?;
                        break;
                    }
                    Err(None) => break,
                    Err(Some(error)) => return Err(error),
                }
                if client.unacknowledged == 0 {
                    break;
                }
            }
        }
        if checked.elapsed() > SILENCE {
            checked = Instant::now();
            for client in clients.iter_mut().filter(|client| client.rounds_left > 0) {
                if client.heard.elapsed() > SILENCE {
                    client.repeat(load)?;
                }
            }
        }
    }
    Ok(())
}

impl Client {
    fn start(load: &Load, rounds: u32) -> anyhow::Result<Self> {
        let any = SocketAddr::new(if load.server.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        let client = Self {
            socket,
            connected: false,
            expected: 1,
            unacknowledged: 0,
            block_size: codec::DEFAULT_BLOCK_SIZE.into(),
            window: 1,
            bytes: 0,
            rounds_left: rounds,
            repeats: 0,
            heard: Instant::now(),
        };
        client.request(load)?;
        Ok(client)
    }

    fn request(&self, load: &Load) -> io::Result<()> {
        let mut out = Vec::new();
        let request =
            Request { direction: Direction::Read, name: load.file.as_bytes(), mode: Mode::Octet, options: load.asked };
        codec::encode(&Packet::Request(request), &mut out);
        self.socket.send_to(&out, load.server).map(drop)
    }

    /// Takes one packet. `Ok(false)` if the round is over (the next has begun, on a new socket), `Err(None)` if nothing
    /// is there.
    fn next(&mut self, load: &Load, buffer: &mut [u8]) -> Result<bool, Option<anyhow::Error>> {
        let received = if self.connected {
            self.socket.recv(buffer)
        } else {
            self.socket.recv_from(buffer).and_then(|(length, from)| {
                self.connected = true;
                self.socket.connect(from).map(|()| length)
            })
        };
        let length = match received {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(None);
            }
            Err(error) => return Err(Some(error.into())),
        };
        self.take(load, &buffer[..length]).map_err(Some)
    }

    fn take(&mut self, load: &Load, packet: &[u8]) -> anyhow::Result<bool> {
        if self.unacknowledged == 0 {
            self.heard = Instant::now();
        }
        match codec::parse(packet)? {
            Packet::OptionAcknowledgement(options) => {
                self.block_size = options.block_size.unwrap_or(codec::DEFAULT_BLOCK_SIZE).into();
                self.window = options.window_size.unwrap_or(1);
                self.acknowledge()?;
            }
            Packet::Data { block, payload } => {
                if block != self.expected as u16 {
                    // A gap: tell the server where it began, once.
                    if block.wrapping_sub(self.expected as u16) < self.window && self.unacknowledged > 0 {
                        self.repeats += 1;
                        self.acknowledge()?;
                    }
                    return Ok(true);
                }
                self.expected += 1;
                self.unacknowledged += 1;
                self.bytes += payload.len() as u64;
                let last = payload.len() < self.block_size;
                if last || self.unacknowledged >= self.window {
                    self.acknowledge()?;
                }
                if last {
                    return self.next_round(load);
                }
            }
            Packet::Error { code, text } => bail!("the server answered error {code}: {text}"),
            other => bail!("unexpected packet {other:?}"),
        }
        Ok(true)
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.unacknowledged = 0;
        let [high, low] = ((self.expected - 1) as u16).to_be_bytes();
        self.socket.send(&[0, 4, high, low]).map(drop)
    }

    fn repeat(&mut self, load: &Load) -> anyhow::Result<()> {
        self.repeats += 1;
        self.heard = Instant::now();
        ensure!(self.repeats < u64::from(MAX_SILENCES), "the server is silent at block {}", self.expected);
        if self.connected {
            self.acknowledge()?
        } else {
            self.request(load)?
        }
        Ok(())
    }

    fn next_round(&mut self, load: &Load) -> anyhow::Result<bool> {
        let next = Self::start_if(load, self.rounds_left - 1)?;
        let (bytes, repeats, window) = (self.bytes, self.repeats, self.window);
        match next {
            Some(client) => *self = Self { bytes, repeats, ..client },
            None => (self.rounds_left, self.window) = (0, window),
        }
        Ok(false)
    }

    fn start_if(load: &Load, rounds: u32) -> anyhow::Result<Option<Self>> {
        if rounds == 0 { Ok(None) } else { Self::start(load, rounds).map(Some) }
    }
}
