//! One network namespace: what can be done inside it.

#![expect(clippy::disallowed_methods, reason = "starts processes and opens the namespace's file")]

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::capture::Capture;
use super::ip;
use crate::process::{Output, Service, run};
use crate::{Error, programs};

/// A network namespace, as a host on the bridge.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
    interface: &'static str,
    address: Option<Ipv4Addr>,
    folder: PathBuf,
}

/// An answer to a request made with [`Namespace::http_get`] or [`Namespace::curl`].
#[derive(Debug)]
pub struct HttpAnswer {
    /// The status of the last answer, after redirects if curl was told to follow them.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl HttpAnswer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Namespace {
    pub(crate) fn add(
        name: &str,
        interface: &'static str,
        address: Option<Ipv4Addr>,
        folder: &Path,
    ) -> Result<Self, Error> {
        ip(&format!("netns add {name}"))?;
        let space = Self { name: name.to_owned(), interface, address, folder: folder.to_owned() };
        match space.prepare() {
            Ok(()) => Ok(space),
            Err(e) => {
                super::janitor::remove(name);
                Err(e)
            }
        }
    }

    /// Joins another namespace to the bridge of this one, by a cable with the end `port` here and `eth0` there.
    pub(crate) fn plug(&self, port: &str, host: &Namespace, mac: Option<&str>) -> Result<(), Error> {
        let mac = mac.map(|mac| format!("address {mac}")).unwrap_or_default();
        self.ip(&format!("link add {port} type veth peer name eth0 {mac} netns {}", host.name))?;
        self.ip(&format!("link set {port} master {} up", super::BRIDGE))?;
        host.ip("link set eth0 up").map(|_| ())
    }

    fn prepare(&self) -> Result<(), Error> {
        self.ip("link set lo up")?;
        // Nobody here has a neighbour with the same address: no second lost on detecting one.
        let setting = "/proc/sys/net/ipv6/conf/default/accept_dad";
        self.inside(|| std::fs::write(setting, "0"))?.map_err(Error::io(format!("writing {setting}")))
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the bridge.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.address
    }

    /// Where logs, screenshots and captures lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a process in here. Its output goes to `<folder>/<name>.log`; it is stopped when the service is dropped.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Service, Error> {
        Service::start(name, self.command(&command), self.folder.join(format!("{name}.log")))
    }

    /// Runs a process in here to its end. A failure of the process is no error here: see [`Output::success`].
    pub fn run(&self, command: Command, limit: Duration) -> Result<Output, Error> {
        run(self.command(&command), limit)
    }

    /// The same command, moved in here: for a caller that wants to start it in a way of its own.
    pub fn command(&self, command: &Command) -> Command {
        let mut moved = Command::new("ip");
        moved.args(["netns", "exec", &self.name]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => moved.env(name, value),
                None => moved.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            moved.current_dir(folder);
        }
        moved
    }

    /// Runs `work` on a thread inside this namespace. Sockets made there stay in it wherever they are used later.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let path = Path::new("/run/netns").join(&self.name);
        let file = File::open(&path).map_err(Error::io(format!("opening {}", path.display())))?;
        let enter = || setns(file, CloneFlags::CLONE_NEWNET).map_err(Error::system(format!("entering {}", self.name)));
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                enter()?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Asks for `url` by GET from in here. An answer of any status is a success.
    pub fn http_get(&self, url: &str, limit: Duration) -> Result<HttpAnswer, Error> {
        self.curl(&[url], limit)
    }

    /// Runs curl with these arguments (method, headers, certificates, URL) from in here.
    pub fn curl(&self, arguments: &[&str], limit: Duration) -> Result<HttpAnswer, Error> {
        programs::require(&["curl"])?;
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--write-out", "%{stderr}\n%{http_code}"]);
        command.args(arguments);
        let output = self.run(command, limit)?.success()?;
        let status = output.error_text().lines().last().and_then(|line| line.trim().parse().ok());
        let status = status.ok_or_else(|| Error::Argument(format!("curl {arguments:?} gave no status")))?;
        Ok(HttpAnswer { status, body: output.stdout })
    }

    /// Captures what passes the interface, into `<folder>/<name>.pcap`, until the capture is dropped. `filter` is one of
    /// tcpdump's, like `udp port 67 or udp port 68`; empty for all.
    pub fn capture(&self, name: &str, filter: &str) -> Result<Capture, Error> {
        Capture::start(self, name, self.interface, filter)
    }

    /// Runs `ip` in here with these words, like `link set tap1 down`.
    pub fn ip(&self, words: &str) -> Result<String, Error> {
        ip(&format!("-n {} {words}", self.name))
    }
}
