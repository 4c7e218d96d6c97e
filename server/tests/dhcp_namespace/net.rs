//! Network namespaces, and the service in one of them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nkd_server::netboot::dhcp::{
    BindError, Config, Handle, InterfaceConfig, LeaseStore, Metrics, Mode, Server, Sighting, Sightings,
};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// No wait in these tests is longer.
pub const LIMIT: Duration = Duration::from_secs(20);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A network namespace; it goes away with its last user.
pub struct Namespace {
    handle: File,
}

impl Namespace {
    pub fn new() -> Self {
        let opened = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Self { handle: opened.join().unwrap() };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` on a thread of the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = || {
                setns(&self.handle, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn ip(&self, arguments: &str) {
        self.ip_output(arguments);
    }

    pub fn ip_output(&self, arguments: &str) -> String {
        let output = self.run(|| Command::new("ip").args(arguments.split_whitespace()).output().unwrap());
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Where `ip` finds this namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }

    /// Starts a program that prints to either stream; it is killed with the returned value.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Program {
        let mut child = self.run(|| {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            // Whoever runs the tests may have variables of their own that look like settings of the service.
            for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NKD_")) {
                command.env_remove(name);
            }
            command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"))
        });
        let (sender, lines) = mpsc::channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Program { child, lines }
    }
}

/// A running program.
pub struct Program {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Program {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The first line that holds `text`.
    pub fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        let mut seen = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen = seen + &line + "\n",
                Err(_) => panic!("no line with `{text}` in:\n{seen}"),
            }
        }
    }
}

impl Program {
    /// Kills it.
    pub fn end(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

/// A bridge with our address, and machines on it.
pub struct Lan {
    pub server: Namespace,
    machines: usize,
}

impl Lan {
    pub fn new() -> Self {
        let server = Namespace::new();
        server.ip("link add br0 type bridge forward_delay 0");
        server.ip("addr add 192.0.2.1/24 dev br0");
        server.ip("link set br0 up");
        Self { server, machines: 0 }
    }

    /// A machine with the interface `eth0`.
    pub fn machine(&mut self) -> Namespace {
        let machine = Namespace::new();
        self.machines += 1;
        let port = format!("port{}", self.machines);
        self.server.ip(&format!("link add {port} type veth peer name eth0 netns {}", machine.path()));
        self.server.ip(&format!("link set {port} master br0 up"));
        machine.ip("link set eth0 up");
        let forwarding = || self.server.ip_output(&format!("-d link show {port}")).contains("state forwarding");
        eventually("the port forwards", forwarding);
        machine
    }

    /// Starts the service.
    pub fn serve(&self, config: Config, store: Arc<dyn LeaseStore>) -> Service {
        self.try_serve(config, store).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn try_serve(&self, config: Config, store: Arc<dyn LeaseStore>) -> Result<Service, BindError> {
        let shutdown = CancellationToken::new();
        let (started, start) = mpsc::channel();
        let (sender, sightings) = mpsc::channel();
        let namespace = self.server.handle.try_clone().unwrap();
        let token = shutdown.clone();
        let thread = thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let metrics = Metrics::register(&mut Registry::default());
                match Server::bind(config, store, Arc::new(Recorder(sender)), metrics).await {
                    Ok(server) => {
                        started.send(Ok(server.handle())).unwrap();
                        server.run(token).await;
                    }
                    Err(error) => started.send(Err(error)).unwrap(),
                }
            });
        });
        let handle = start.recv_timeout(LIMIT).unwrap()?;
        Ok(Service { shutdown, thread: Some(thread), handle, sightings })
    }
}

struct Recorder(mpsc::Sender<Sighting>);

impl Sightings for Recorder {
    fn seen(&self, sighting: Sighting) {
        drop(self.0.send(sighting));
    }
}

/// The running service; stopped when dropped.
pub struct Service {
    shutdown: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
    pub handle: Handle,
    pub sightings: mpsc::Receiver<Sighting>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

pub fn config(mode: Mode, first: u8, last: u8) -> Config {
    Config {
        mode,
        interfaces: vec![InterfaceConfig {
            name: "br0".to_owned(),
            server_ip: SERVER,
            subnet: "192.0.2.0/24".parse().unwrap(),
            pool: Some(Ipv4Addr::new(192, 0, 2, first)..=Ipv4Addr::new(192, 0, 2, last)),
            gateway: Some(SERVER),
            dns: vec![SERVER.into()],
            ntp: Vec::new(),
            domain: None,
            lease_time: Duration::from_secs(600),
        }],
        reservations: Vec::new(),
        http_port: 8080,
        router_advertisements: false,
        conflict_probe: false,
        ipxe_dir: None,
    }
}

/// Asks until the answer is yes.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
