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

/// What a packet brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Nothing,
    Unfinished,
    WindowEnded,
    FileEnded,
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
        loop {
            match client.read(&mut buffer)? {
                Read::Nothing => client.repeat(load)?,
                Read::Unfinished => {}
                Read::WindowEnded => client.acknowledge()?,
                Read::FileEnded => {
                    client.acknowledge()?;
                    client.next_round(load)?;
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Many clients in one thread: each that has packets reads them up to its window's end and answers.
fn run_together(load: &Load, clients: &mut [Client]) -> anyhow::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let watch = |index: usize, client: &Client| {
        epoll.add(&client.socket, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, index as u64))
    };
    for (index, client) in clients.iter().enumerate() {
        watch(index, client)?;
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
            let read = client.read_window(&mut buffer)?;
            if read == Read::Nothing {
                continue;
            }
            client.acknowledge()?;
            client.heard = checked;
            if read == Read::FileEnded {
                client.next_round(load)?;
                if client.rounds_left > 0 {
                    watch(index, client)?;
                } else {
                    running -= 1;
                }
            }
        }
        if checked.elapsed() > SILENCE {
            let before = std::mem::replace(&mut checked, Instant::now());
            for client in clients.iter_mut().filter(|client| client.rounds_left > 0 && client.heard < before) {
                client.repeat(load)?;
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

    /// Takes packets until one wants an answer, or none is there.
    fn read_window(&mut self, buffer: &mut [u8]) -> anyhow::Result<Read> {
        if self.rounds_left == 0 {
            return Ok(Read::Nothing);
        }
        loop {
            match self.read(buffer)? {
                Read::Unfinished => {}
                read => return Ok(read),
            }
        }
    }

    /// Takes one packet.
    fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<Read> {
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
                return Ok(Read::Nothing);
            }
            Err(error) => return Err(error.into()),
        };
        match codec::parse(&buffer[..length])? {
            Packet::OptionAcknowledgement(options) => {
                self.block_size = options.block_size.unwrap_or(codec::DEFAULT_BLOCK_SIZE).into();
                self.window = options.window_size.unwrap_or(1);
                Ok(Read::WindowEnded)
            }
            Packet::Data { block, payload } if block == self.expected as u16 => {
                self.expected += 1;
                self.unacknowledged += 1;
                self.bytes += payload.len() as u64;
                Ok(if payload.len() < self.block_size {
                    Read::FileEnded
                } else if self.unacknowledged == self.window {
                    Read::WindowEnded
                } else {
                    Read::Unfinished
                })
            }
            Packet::Data { block, .. } => {
                // A gap: tell the server where it began, once.
                let gap = block.wrapping_sub(self.expected as u16) < self.window && self.unacknowledged > 0;
                self.repeats += u64::from(gap);
                Ok(if gap { Read::WindowEnded } else { Read::Unfinished })
            }
            Packet::Error { code, text } => bail!("the server answered error {code}: {text}"),
            other => bail!("unexpected packet {other:?}"),
        }
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

    /// Begins the next round on a new socket, if there is one.
    fn next_round(&mut self, load: &Load) -> anyhow::Result<()> {
        self.rounds_left -= 1;
        if self.rounds_left > 0 {
            let (bytes, repeats) = (self.bytes, self.repeats);
            *self = Self { bytes, repeats, ..Self::start(load, self.rounds_left)? };
        }
        Ok(())
    }
}
