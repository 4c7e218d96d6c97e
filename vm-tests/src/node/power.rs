//! The power of a node: on, off, cut, and what a node that is off leaves in the kernel.

#![expect(clippy::disallowed_methods, reason = "starts processes, waits for them, writes settings of a network")]

use std::fs::OpenOptions;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroups::Cgroups;
use super::console::Console;
use super::{ENTER, Node, POLL, random_id};
use crate::network::{Namespace, Network, janitor};
use crate::process::{end_child, wait_child};
use crate::{Error, folder, within};

const INIT: &str = include_str!("init.sh");

/// The processes of a node that is on.
#[derive(Debug)]
pub(super) struct Power {
    /// Waits for the first process of the node, and ends as that does, when no process of the node is left.
    pub(super) keeper: Child,
    /// The first process, as this computer numbers it.
    pub(super) init: Pid,
    pub(super) cgroups: Cgroups,
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

impl Node {
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

    /// Removes what a node that is off has left in the kernel.
    pub(super) fn clear_away(&mut self) {
        let power = self.power.take();
        janitor::remove(&self.space);
        // A cable is gone with the namespace of one end, but not at once. It may never have been there.
        let _ = self.net.ip(&format!("link del {}", self.port));
        drop(power);
    }

    pub(super) fn is(&self, is: &'static str, wanted: &'static str) -> Error {
        Error::Power { machine: self.name().to_owned(), is, wanted }
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
