//! A node: a machine made of namespaces, with real systemd as its first process, up in a second or two.
//!
//! It has processes, network, mounts, host name, message queues and control groups of its own. Its `/usr`, `/etc`, `/var`
//! and `/opt` lie over this computer's, so it has what is installed here, and what it writes stays in its folder. It has no
//! kernel, no boot loader and no disk of its own: what is about those is for a [`Machine`](crate::Machine).

#![expect(clippy::disallowed_methods, reason = "starts processes, makes files, measures limits")]

pub(crate) mod cgroups;
mod console;
pub(crate) mod containerd;
mod deployments;
mod disk;
mod inside;
mod power;
pub(crate) mod spec;
mod units;

use std::fs::OpenOptions;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::network::{Namespace, Network};
use crate::process::{last_lines, wait_child};
use crate::{Error, folder, programs, within};
use disk::Disk;
pub use power::Ending;
use power::Power;
use spec::NodeSpec;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);
const ENTER: &str = include_str!("enter.sh");

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

/// A random UUID, from the kernel.
fn random_id() -> Result<String, Error> {
    let file = "/proc/sys/kernel/random/uuid";
    let text = std::fs::read_to_string(file).map_err(Error::io(format!("reading {file}")))?;
    Ok(text.trim().to_owned())
}
