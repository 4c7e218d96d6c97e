//! The boot plane against real clients and bad ones, over loopback.

#![allow(clippy::disallowed_methods, reason = "sockets, files and processes are what is tested")]

mod faults;
mod peers;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use nkd_server::netboot::bootplane::{
    Answer, Body, Cache, Config, Handler, Metrics, Request, Segment, Server, Timeouts,
};
use tokio_util::sync::CancellationToken;

/// No wait in these tests is longer.
const LIMIT: Duration = Duration::from_secs(60);

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ended {
    path: String,
    status: u16,
    sent: u64,
    complete: bool,
}

/// A server in this process, on a thread of its own.
struct Rig {
    address: SocketAddr,
    metrics: Metrics,
    ended: mpsc::Receiver<Ended>,
    shutdown: CancellationToken,
    stopped: mpsc::Receiver<()>,
}

impl Rig {
    fn start() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
        change(&mut config);
        let (metrics, shutdown) = (Metrics::default(), CancellationToken::new());
        let (tell_ended, ended) = mpsc::channel();
        let (tell_stopped, stopped) = mpsc::channel();
        let (tell_address, address) = mpsc::channel();
        let (counters, stop) = (metrics.clone(), shutdown.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let handler = Arc::new(Files::new(tell_ended));
                let server = Server::bind(config, handler, counters).await.expect("a free port");
                tell_address.send(server.local_addrs()[0]).expect("the test waits");
                server.run(stop).await;
            });
            // Nobody may be left to hear it.
            let _ = tell_stopped.send(());
        });
        let address = address.recv_timeout(LIMIT).expect("the server starts");
        Self { address, metrics, ended, shutdown, stopped }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A connection over which this was said.
    fn say(&self, words: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        stream.set_write_timeout(Some(LIMIT)).expect("set");
        stream.write_all(words.as_bytes()).expect("said");
        stream
    }

    /// All that the server answers to this until it closes.
    fn ask(&self, words: &str) -> Vec<u8> {
        let mut all = Vec::new();
        self.say(words).read_to_end(&mut all).expect("an orderly close");
        all
    }

    /// How the next answer ends.
    fn next_ended(&self) -> Ended {
        self.ended.recv_timeout(LIMIT).expect("an answer ends")
    }

    fn wait_stopped(&self) {
        self.stopped.recv_timeout(LIMIT).expect("the server stops");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Bytes that tell where they are.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 31 % 251).expect("below 251")).collect()
}

/// What `/joined` holds: the shape of an initramfs with an overlay behind it.
fn joined() -> Vec<u8> {
    [&pattern(100_001)[1..], &[0; 3], b"070701", &[0; 70_000], b"end"].concat()
}

const LARGE: u64 = 64 << 20;

struct Files {
    small: Arc<File>,
    /// A hole of [`LARGE`] bytes.
    large: Arc<File>,
    /// Shrinks to nothing when it is asked for.
    shrinking: Arc<File>,
    ended: mpsc::Sender<Ended>,
}

impl Files {
    fn new(ended: mpsc::Sender<Ended>) -> Self {
        let [small, large, shrinking] = [(); 3].map(|()| Arc::new(tempfile::tempfile().expect("a file")));
        small.write_all_at(&pattern(100_001), 0).expect("written");
        large.set_len(LARGE).expect("a hole");
        Self { small, large, shrinking, ended }
    }
}

#[async_trait]
impl Handler for Files {
    async fn answer(&self, request: &Request) -> Answer {
        let binary = "application/octet-stream";
        match request.path.as_str() {
            "/text" => Answer::text(200, format!("{}\n", request.query)),
            "/small" => {
                Answer::file(binary, Arc::clone(&self.small), 100_001).with_etag("v1").with_cache(Cache::Immutable)
            }
            "/large" => Answer::file(binary, Arc::clone(&self.large), LARGE),
            "/joined" => Answer::new(
                200,
                binary,
                Body::new(vec![
                    Segment::File { file: Arc::clone(&self.small), offset: 1, len: 100_000 },
                    Segment::Zeros(3),
                    Segment::Bytes(b"070701".as_slice().into()),
                    Segment::Zeros(70_000),
                    Segment::Bytes(b"end".as_slice().into()),
                ]),
            ),
            "/shrinking" => {
                self.shrinking.set_len(10).expect("ten bytes");
                Answer::file(binary, Arc::clone(&self.shrinking), 100)
            }
            "/open" => {
                let file = File::open(&request.query).expect("a file of the test");
                let len = file.metadata().expect("metadata").len();
                Answer::file(binary, Arc::new(file), len)
            }
            "/panic" => panic!("a handler of a test panics, as it should"),
            "/never" => std::future::pending().await,
            "/later" => Answer::unavailable("not yet\n", Duration::from_secs(7)),
            _ => Answer::text(404, "no such file\n"),
        }
    }

    fn finished(&self, request: &Request, status: u16, sent: u64, complete: bool) {
        // The test may be over.
        let _ = self.ended.send(Ended { path: request.path.clone(), status, sent, complete });
    }
}

/// Limits so short that a test can wait for them.
fn short(change: impl FnOnce(&mut Timeouts)) -> impl FnOnce(&mut Config) {
    |config| change(&mut config.timeouts)
}
