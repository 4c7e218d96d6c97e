//! A TFTP server on loopback with files in memory, and a client that sends and reads single packets.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "helpers of tests, with real sockets")]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nkd_server::netboot::tftp::codec::{self, Direction, ErrorCode, Mode, Options, Packet, Request};
use nkd_server::netboot::tftp::{
    Config, Content, FileRequest, Files, Metrics, OpenError, Outcome, Server, TransferReport,
};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything takes here; a test that needs it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The first word of a name that is never opened.
pub const STUCK: &str = "stuck";

/// The files, and what became of the transfers.
#[derive(Default)]
pub struct Tree {
    pub files: HashMap<String, Content>,
    pub reports: Mutex<Vec<TransferReport>>,
}

pub struct Running {
    pub address: SocketAddr,
    pub tree: Arc<Tree>,
    pub registry: Registry,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<io::Result<()>>,
}

#[async_trait]
impl Files for Tree {
    async fn open(&self, request: &FileRequest) -> Result<Content, OpenError> {
        match request.name.as_str() {
            STUCK => std::future::pending().await,
            "denied" => Err(OpenError::Denied("not for this machine".to_owned())),
            "later" => Err(OpenError::NotReady("not yet: try again".to_owned())),
            name => self.files.get(name).cloned().ok_or(OpenError::NotFound),
        }
    }

    fn closed(&self, report: &TransferReport) {
        self.reports.lock().unwrap().push(report.clone());
    }
}

/// Bytes that differ at every place and from period to period of the block numbers.
pub fn pattern(length: usize) -> Bytes {
    (0..length).map(|place| (place ^ (place >> 8) ^ (place >> 16) ^ (place >> 25)) as u8).collect()
}

pub fn loopback() -> Config {
    Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), workers: 2, ..Config::default() }
}

pub async fn serve(config: Config, files: &[(&str, Bytes)]) -> Running {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), Content::Bytes(bytes.clone()))).collect();
    serve_tree(config, Tree { files, ..Tree::default() }).await
}

pub async fn serve_tree(config: Config, tree: Tree) -> Running {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let tree = Arc::new(tree);
    let server = Server::bind(config, Arc::<Tree>::clone(&tree), metrics).await.unwrap();
    let address = server.local_addr();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(server.run(shutdown.clone()));
    Running { address, tree, registry, shutdown, task }
}

impl Running {
    /// A line of the metrics, without its name.
    pub fn metric(&self, start: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse().ok())
    }

    /// Waits until `count` transfers are over, and gives their outcomes.
    pub async fn outcomes(&self, count: usize) -> Vec<Outcome> {
        let seen = || self.tree.reports.lock().unwrap().iter().map(|report| report.outcome).collect::<Vec<_>>();
        let waiting = async {
            while seen().len() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("transfers that end");
        seen()
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("a server that stops").unwrap().unwrap();
    }
}

/// A client that does what it is told and nothing else.
pub struct Client {
    pub socket: UdpSocket,
    pub server: SocketAddr,
    pub buffer: Vec<u8>,
}

pub struct Received {
    pub from: SocketAddr,
    pub packet: Packet<'static>,
}

impl Client {
    pub fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, server, buffer: vec![0; 70_000] }
    }

    pub fn ask(&self, name: &str, options: Options) {
        self.ask_as(name.as_bytes(), Direction::Read, Mode::Octet, options);
    }

    pub fn ask_as(&self, name: &[u8], direction: Direction, mode: Mode, options: Options) {
        let mut out = Vec::new();
        codec::encode(&Packet::Request(Request { direction, name, mode, options }), &mut out);
        self.socket.send_to(&out, self.server).unwrap();
    }

    pub fn send(&self, packet: &Packet<'_>, to: SocketAddr) {
        let mut out = Vec::new();
        codec::encode(packet, &mut out);
        self.socket.send_to(&out, to).unwrap();
    }

    pub fn acknowledge(&self, block: u16, to: SocketAddr) {
        self.send(&Packet::Acknowledgement { block }, to);
    }

    pub fn receive(&mut self) -> Received {
        let (length, from) = self.socket.recv_from(&mut self.buffer).expect("an answer");
        let packet = match codec::parse(&self.buffer[..length]).unwrap() {
            Packet::Data { block, payload } => Packet::Data { block, payload: payload.to_vec().leak() },
            Packet::Error { code, text } => Packet::Error { code, text: text.into_owned().into() },
            Packet::Acknowledgement { block } => Packet::Acknowledgement { block },
            Packet::OptionAcknowledgement(options) => Packet::OptionAcknowledgement(options),
            Packet::Request(_) => panic!("a server that asks"),
        };
        Received { from, packet }
    }

    pub fn receive_data(&mut self) -> (u16, SocketAddr) {
        match self.receive() {
            Received { packet: Packet::Data { block, .. }, from } => (block, from),
            Received { packet, .. } => panic!("no block: {packet:?}"),
        }
    }

    pub fn receive_offer(&mut self) -> (Options, SocketAddr) {
        match self.receive() {
            Received { packet: Packet::OptionAcknowledgement(options), from } => (options, from),
            Received { packet, .. } => panic!("no OACK: {packet:?}"),
        }
    }

    pub fn receive_error(&mut self) -> (ErrorCode, String) {
        match self.receive() {
            Received { packet: Packet::Error { code, text }, .. } => (code, text.into_owned()),
            Received { packet, .. } => panic!("no error: {packet:?}"),
        }
    }

    /// Asks, and asks again as long as nothing comes: a datagram may be lost when the server's queue is full.
    fn ask_until_heard(&mut self, name: &str, options: Options) {
        self.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        for _ in 0..PATIENCE.as_secs() {
            self.ask(name, options);
            if self.socket.peek_from(&mut self.buffer).is_ok() {
                break;
            }
        }
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// Fetches a whole file.
    pub fn fetch(&mut self, name: &str, options: Options) -> Vec<u8> {
        self.ask_until_heard(name, options);
        let (mut block_size, mut window) = (512, 1);
        let mut bytes = Vec::new();
        let (mut expected, mut unacknowledged) = (1u16, 0);
        loop {
            let (length, from) = self.socket.recv_from(&mut self.buffer).expect("a block");
            match codec::parse(&self.buffer[..length]).unwrap() {
                Packet::OptionAcknowledgement(options) => {
                    block_size = options.block_size.unwrap_or(512).into();
                    window = options.window_size.unwrap_or(1);
                    self.acknowledge(0, from);
                }
                Packet::Data { block, payload } if block == expected => {
                    bytes.extend_from_slice(payload);
                    let last = payload.len() < block_size;
                    unacknowledged += 1;
                    if last || unacknowledged == window {
                        unacknowledged = 0;
                        self.acknowledge(block, from);
                    }
                    if last {
                        return bytes;
                    }
                    expected = expected.wrapping_add(1);
                }
                Packet::Data { .. } => self.acknowledge(expected.wrapping_sub(1), from),
                other => panic!("{other:?} while {name} was fetched"),
            }
        }
    }
}

/// Runs blocking client code beside the server.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
