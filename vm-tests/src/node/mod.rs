//! A node: a machine made of namespaces, with real systemd as its first process, up in a second or two.
//!
//! It has processes, network, mounts, host name, message queues and control groups of its own. Its `/usr`, `/etc`, `/var`
//! and `/opt` lie over this computer's, so it has what is installed here, and what it writes stays in its folder. It has no
//! kernel, no boot loader and no disk of its own: what is about those is for a [`Machine`](crate::Machine).

#![expect(clippy::disallowed_methods, reason = "starts processes, makes files, measures limits")]

pub(crate) mod cgroups;
mod console;
pub(crate) mod containerd;
mod disk;
pub(crate) mod spec;
mod units;

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::{Namespace, Network, janitor};
use crate::process::{Output, end_child, last_lines, line_of, run_as, wait_child};
use crate::{Error, folder, programs, within};
use cgroups::Cgroups;
use console::Console;
use disk::Disk;
use spec::NodeSpec;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);
const INIT: &str = include_str!("init.sh");
const ENTER: &str = include_str!("enter.sh");
/// What is the same for every process of a node that a test starts.
const ENVIRONMENT: &[&str] = &[
    "HOME=/root",
    "TERM=dumb",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "KUBECONFIG=/etc/kubernetes/admin.conf",
];

/// A node on a network. It is on after [`NodeSpec::start`], and can be switched off and on; its disk stays. A drop ends it
/// and removes its disk; its logs stay.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    /// Where the bridge is.
    net: Namespace,
    /// The name of its network namespace and of its control groups.
    space: String,
    folder: PathBuf,
    disk: Disk,
    address: Ipv4Addr,
    mac: String,
    port: String,
    routes: Vec<(String, Ipv4Addr)>,
    power: Option<Power>,
}

/// The processes of a node that is on.
#[derive(Debug)]
struct Power {
    /// Waits for the first process of the node, and ends as that does, when no process of the node is left.
    keeper: Child,
    /// The first process, as this computer numbers it.
    init: Pid,
    cgroups: Cgroups,
    _console: Console,
    since: Instant,
}

/// How a node came to be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It wanted to start again: [`Node::power_on`] is what the firmware would do.
    Reboot,
    /// It has shut down.
    PowerOff,
    /// It was killed, or never came up.
    Crash,
}

impl NodeSpec {
    /// Builds the node on a network, switches it on and waits until its units are started. Its logs and its disk lie in
    /// `<network's folder>/<name>/`.
    pub fn start(self, net: &Network) -> Result<Node, Error> {
        programs::require(&["unshare", "nsenter", "pivot_root", "/lib/systemd/systemd"])?;
        self.check()?;
        let address = self.ip()?;
        let space = format!("{}-{}", net.name(), self.name);
        if Path::new("/run/netns").join(&space).exists() {
            return Err(Error::Argument(format!("there is a host or a node {} in the network", self.name)));
        }
        let folder = net.folder().join(&self.name);
        let folder = std::path::absolute(&folder).map_err(Error::io(format!("finding {}", folder.display())))?;
        folder::fresh(&folder)?;
        let number = net.next_port();
        let mac = self.mac.clone().unwrap_or_else(|| format!("52:54:00:4e:4b:{number:02x}"));
        let mut node = Node {
            net: Namespace::clone(net),
            space,
            disk: Disk::at(&folder),
            folder,
            address,
            mac,
            port: format!("port{number}"),
            routes: Vec::new(),
            power: None,
            spec: self,
        };
        node.disk.make(&node.spec, &random_id()?.replace('-', ""))?;
        node.name_in_hosts()?;
        node.power_on()?;
        Ok(node)
    }
}

impl Node {
    /// A node to be; it needs an address.
    pub fn named(name: &str) -> NodeSpec {
        NodeSpec::new(name)
    }

    /// Its name, which is its host name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its address on the bridge.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The MAC address of its network card.
    pub fn mac(&self) -> &str {
        &self.mac
    }

    /// Where its logs and its disk lie. `console.log` has all that its journal had in all boots, `log/` is its `/var/log`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How long it has been on; nothing if it is off.
    pub fn uptime(&self) -> Option<Duration> {
        self.power.as_ref().map(|power| power.since.elapsed())
    }

    /// Whether it is on.
    pub fn is_on(&mut self) -> bool {
        if self.power.as_mut().is_some_and(|power| matches!(power.keeper.try_wait(), Ok(Some(_)))) {
            self.clear_away();
        }
        self.power.is_some()
    }

    /// Runs a program of the node in it to its end, as root. A failure of the program is no error here: see
    /// [`Output::success`].
    pub fn run(&self, command: Command, limit: Duration) -> Result<Output, Error> {
        self.run_on(Stdio::null(), command, limit)
    }

    /// Runs a line of shell in it; a failure of it is an error.
    pub fn shell(&self, line: &str, limit: Duration) -> Result<String, Error> {
        let mut command = Command::new("sh");
        command.args(["-euc", line]);
        Ok(self.run(command, limit)?.success()?.text())
    }

    /// Writes a file in the node, which is whole or not there. Its folder is made; `mode` is like `0o600`.
    pub fn write_file(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), Error> {
        const WRITE: &str =
            r#"mkdir -p "$(dirname "$1")"; umask 077; cat > "$1.new"; chmod "$2" "$1.new"; mv "$1.new" "$1""#;
        let keeping = || format!("keeping {path} of {}", self.name());
        let mut file = File::from(memfd_create("file", MFdFlags::MFD_CLOEXEC).map_err(Error::system(keeping()))?);
        file.write_all(bytes).and_then(|()| file.rewind()).map_err(Error::io(keeping()))?;
        let mut command = Command::new("sh");
        command.args(["-euc", WRITE, "sh", path, &format!("{mode:o}")]);
        self.run_on(Stdio::from(file), command, within(20))?.success().map(|_| ())
    }

    /// A file of the node, at most 16 MiB of it.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, Error> {
        let mut command = Command::new("cat");
        command.args(["--", path]);
        Ok(self.run(command, within(20))?.success()?.stdout)
    }

    /// Waits until a unit is active. Fails at once when the unit has failed.
    pub fn expect_unit_active(&self, unit: &str, limit: Duration) -> Result<(), Error> {
        let end = Instant::now() + limit;
        loop {
            let state = self.systemctl(&["is-active", unit])?;
            let failed = state == "failed";
            if state == "active" {
                return Ok(());
            }
            if failed || Instant::now() >= end {
                let status = self.systemctl(&["status", "--no-pager", "--full", "--lines=30", unit])?;
                let detail = format!("; {}\n  log: {}", last_lines(&status), self.console_log().display());
                return Err(match failed {
                    true => Error::Ended { name: format!("{unit} on {}", self.name()), status: state, detail },
                    false => Error::TooLate { what: format!("{unit} on {} is active", self.name()), limit, detail },
                });
            }
            thread::sleep(POLL * 5);
        }
    }

    /// Waits until systemd says `running`: all is started and nothing has failed.
    pub fn expect_running(&self, limit: Duration) -> Result<(), Error> {
        let end = Instant::now() + limit;
        loop {
            let state = self.systemctl(&["is-system-running"])?;
            if state == "running" {
                return Ok(());
            }
            if Instant::now() >= end || state == "degraded" {
                let failed = self.systemctl(&["list-units", "--state=failed", "--plain", "--no-legend"])?;
                let what = format!("{} is running", self.name());
                return Err(Error::Unexpected { what, got: format!("{state}\n{failed}") });
            }
            thread::sleep(POLL);
        }
    }

    /// Cuts the power: every process of the node is killed at once. What was written is on its disk, for this computer
    /// goes on: what a lost power supply loses is for [`Machine::power_cut`](crate::Machine::power_cut).
    pub fn power_cut(&mut self) -> Result<(), Error> {
        let Some(power) = &mut self.power else { return Err(self.is("off", "its power cannot be cut")) };
        // The first process takes all others with it; the keeper ends when the last is gone.
        let _ = kill(power.init, Signal::SIGKILL);
        let ended = wait_child(&mut power.keeper, within(30)).map_err(Error::io("waiting for a node"))?;
        self.clear_away();
        match ended {
            Some(_) => Ok(()),
            None => Err(Error::Unexpected { what: format!("{} ends by SIGKILL", self.name()), got: "it runs".into() }),
        }
    }

    /// Asks systemd to shut down, and waits until it has.
    pub fn power_off(&mut self, limit: Duration) -> Result<(), Error> {
        self.systemctl(&["poweroff", "--no-wall", "--no-block"])?;
        match self.wait_off(limit)? {
            Ending::PowerOff => Ok(()),
            other => Err(Error::Unexpected { what: format!("{} shuts down", self.name()), got: format!("{other:?}") }),
        }
    }

    /// Waits until it is off, by itself or by its power button. A node that starts again is off, until it is switched on.
    pub fn wait_off(&mut self, limit: Duration) -> Result<Ending, Error> {
        let Some(power) = &mut self.power else { return Err(self.is("off", "nothing to wait for")) };
        let waited = wait_child(&mut power.keeper, limit).map_err(Error::io("waiting for a node"))?;
        let Some(status) = waited else {
            return Err(Error::TooLate { what: format!("{} is off", self.name()), limit, detail: self.tail() });
        };
        self.clear_away();
        Ok(ending(status))
    }

    /// Switches it on again and waits until its units are started. It has a new boot_id and its old machine-id.
    pub fn power_on(&mut self) -> Result<(), Error> {
        if self.is_on() {
            return Err(self.is("on", "it cannot be switched on"));
        }
        let up = self.switch_on().and_then(|()| self.wait_booted(within(60)));
        if up.is_err() {
            if let Some(power) = &mut self.power {
                let _ = kill(power.init, Signal::SIGKILL);
                end_child(&mut power.keeper);
            }
            self.clear_away();
        }
        up
    }

    /// Gives it an empty disk, as a new machine with the old name and cards. It is off afterwards; a node that is on loses
    /// its power first.
    pub fn wipe(&mut self) -> Result<(), Error> {
        if self.is_on() {
            self.power_cut()?;
        }
        self.disk.make(&self.spec, &random_id()?.replace('-', ""))
    }

    /// What its console has said in all its boots, the journal included.
    pub fn logs(&self) -> Result<String, Error> {
        let log = self.console_log();
        let bytes = std::fs::read(&log).map_err(Error::io(format!("reading {}", log.display())))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A route that it has now and after each boot: to `subnet`, over the node at `via`.
    pub fn route(&mut self, subnet: &str, via: Ipv4Addr) -> Result<(), Error> {
        let routing = |node: &Self| crate::network::ip(&format!("-n {} route replace {subnet} via {via}", node.space));
        if self.is_on() {
            routing(self)?;
        }
        self.routes.retain(|(known, _)| known != subnet);
        self.routes.push((subnet.to_owned(), via));
        Ok(())
    }

    pub(crate) fn run_on(&self, input: Stdio, command: Command, limit: Duration) -> Result<Output, Error> {
        run_as(format!("{}: {}", self.name(), line_of(&command)), input, self.command(&command)?, limit)
    }

    /// The same command, moved in here.
    fn command(&self, command: &Command) -> Result<Command, Error> {
        let power = self.power.as_ref().ok_or_else(|| self.is("off", "nothing runs on it"))?;
        let mut moved = Command::new("sh");
        moved.args(["-c", ENTER, "enter", &power.cgroups.word()]);
        moved.args(["nsenter", "--target", &power.init.to_string()]);
        moved.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]);
        moved.args(["env", "-i"]);
        if let Some(folder) = command.get_current_dir() {
            moved.arg("--chdir").arg(folder);
        }
        moved.args(ENVIRONMENT);
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                let mut word = name.to_owned();
                word.push("=");
                word.push(value);
                moved.arg(word);
            }
        }
        moved.arg(command.get_program()).args(command.get_args());
        Ok(moved)
    }

    fn switch_on(&mut self) -> Result<(), Error> {
        let space = Namespace::add(&self.space, "eth0", Some(self.address), &self.folder)?;
        folder::fresh(&janitor::runtime_folder(&self.space))?;
        self.net.plug(&self.port, &space, Some(&self.mac))?;
        // Checked in `start`.
        let address = self.spec.address.as_deref().unwrap_or_default();
        space.ip(&format!("addr add {address} brd + dev eth0"))?;
        space.ip(&format!("route add default via {}", Network::ADDRESS))?;
        for (subnet, via) in &self.routes {
            space.ip(&format!("route add {subnet} via {via}"))?;
        }
        space.inside(forward)?.map_err(Error::io(format!("letting {} forward packets", self.name())))?;
        let cgroups = Cgroups::create(&self.space)?;
        let console = Console::open(&self.console_log())?;
        let log = self.folder.join("init.log");
        let opening = || Error::io(format!("opening {}", log.display()));
        let output = OpenOptions::new().create(true).append(true).open(&log).map_err(opening())?;
        let errors = output.try_clone().map_err(opening())?;
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, "enter", &cgroups.word(), "nsenter"]);
        command.arg(format!("--net=/run/netns/{}", self.space));
        command.args(["unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child=SIGKILL"]);
        command.args(["sh", "-c", INIT]).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("NODE", self.name());
        command.env("DISK", &self.disk.folder).env("LOG", &self.disk.log).env("HOSTS", self.hosts());
        command.env("USR", self.disk.lower_usr(self.spec.kubernetes.as_ref())?).env("CONSOLE", console.path());
        command.env("BOOT_ID", random_id()?).env("HIERARCHIES", cgroups.hierarchies.join(" "));
        command.stdin(Stdio::null()).stdout(output).stderr(errors).current_dir("/").process_group(0);
        let mut keeper = command.spawn().map_err(Error::io("starting a node"))?;
        let since = Instant::now();
        let init = first_child(&mut keeper, within(20));
        let Some(init) = init else {
            let status = end_child(&mut keeper).to_string();
            return Err(Error::Ended { name: self.name().to_owned(), status, detail: self.tail() });
        };
        self.power = Some(Power { keeper, init, cgroups, _console: console, since });
        Ok(())
    }

    /// Waits until systemd has started what it is to start; what has failed is no error here.
    fn wait_booted(&mut self, limit: Duration) -> Result<(), Error> {
        let end = Instant::now() + limit;
        while let Some(power) = &mut self.power {
            let name = PathBuf::from(format!("/proc/{}/comm", power.init));
            if let Ok(Some(status)) = power.keeper.try_wait() {
                let (name, detail) = (self.name().to_owned(), self.tail());
                return Err(Error::Ended { name, status: status.to_string(), detail });
            }
            // Before, it is a shell in the files of this computer.
            let is_systemd = std::fs::read(name).is_ok_and(|name| name == b"systemd\n");
            let state = if is_systemd { self.systemctl(&["is-system-running"])? } else { String::new() };
            if state == "running" || state == "degraded" {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Error::TooLate { what: format!("{} boots", self.name()), limit, detail: self.tail() });
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// What systemctl says; it may end with a failure.
    fn systemctl(&self, words: &[&str]) -> Result<String, Error> {
        let mut command = Command::new("systemctl");
        command.args(words);
        Ok(self.run(command, within(20))?.text().trim().to_owned())
    }

    /// Removes what a node that is off has left in the kernel.
    fn clear_away(&mut self) {
        let power = self.power.take();
        janitor::remove(&self.space);
        // A cable is gone with the namespace of one end, but not at once. It may never have been there.
        let _ = self.net.ip(&format!("link del {}", self.port));
        drop(power);
    }

    fn is(&self, is: &'static str, wanted: &'static str) -> Error {
        Error::Power { machine: self.name().to_owned(), is, wanted }
    }

    fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// The last words for a message.
    fn tail(&self) -> String {
        let init = std::fs::read_to_string(self.folder.join("init.log")).unwrap_or_default();
        let said = init + &self.logs().unwrap_or_default();
        format!("; {}\n  log: {}", last_lines(&said), self.console_log().display())
    }

    /// The names of all nodes of the network, one file for all of them.
    fn hosts(&self) -> PathBuf {
        self.folder.with_file_name("nodes.hosts")
    }

    fn name_in_hosts(&self) -> Result<(), Error> {
        let hosts = self.hosts();
        let failed = || Error::io(format!("writing {}", hosts.display()));
        let first = match OpenOptions::new().create_new(true).append(true).open(&hosts) {
            Ok(mut file) => file.write_all(b"127.0.0.1 localhost\n::1 localhost ip6-localhost\n"),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
        };
        first.map_err(failed())?;
        let mut file = OpenOptions::new().append(true).open(&hosts).map_err(failed())?;
        file.write_all(format!("{} {}\n", self.address, self.name()).as_bytes()).map_err(failed())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(power) = &mut self.power {
            let _ = kill(power.init, Signal::SIGKILL);
            let _ = wait_child(&mut power.keeper, within(30));
        }
        self.clear_away();
        if !folder::keeps_disks() {
            self.disk.remove();
        }
    }
}

/// In the namespace of a node: what kubeadm wants of the network.
fn forward() -> std::io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let bridge = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    match bridge.exists() {
        true => std::fs::write(bridge, "1"),
        false => Ok(()),
    }
}

/// The first child of a process; none if the process has ended or has none within the limit.
fn first_child(parent: &mut Child, limit: Duration) -> Option<Pid> {
    let children = format!("/proc/{0}/task/{0}/children", parent.id());
    let end = Instant::now() + limit;
    loop {
        let text = std::fs::read_to_string(&children).unwrap_or_default();
        if let Some(pid) = text.split_whitespace().next().and_then(|word| word.parse().ok()) {
            return Some(Pid::from_raw(pid));
        }
        if matches!(parent.try_wait(), Ok(Some(_))) || Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The kernel tells what the first process of a node asked it to do by the signal that it seems to have died of.
fn ending(status: ExitStatus) -> Ending {
    match status.signal() {
        Some(signal) if signal == Signal::SIGHUP as i32 => Ending::Reboot,
        Some(signal) if signal == Signal::SIGINT as i32 => Ending::PowerOff,
        _ => Ending::Crash,
    }
}

/// A random UUID, from the kernel.
fn random_id() -> Result<String, Error> {
    let file = "/proc/sys/kernel/random/uuid";
    let text = std::fs::read_to_string(file).map_err(Error::io(format!("reading {file}")))?;
    Ok(text.trim().to_owned())
}
