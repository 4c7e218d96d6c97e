//! A network of its own: a namespace with a bridge, further hosts on that bridge, and taps for machines.
//!
//! ```text
//!   namespace nkd-<pid>-<n>             192.0.2.1/24, fd00:192::1/64
//!   ┌──────────────────────────────────────────────┐
//!   │ services      br0 ──┬── tap1 ── machine       │
//!   │                     ├── tap2 ── machine       │
//!   │                     └── port3 ─┐              │
//!   └────────────────────────────────┼──────────────┘
//!                      namespace ...-<host>: eth0
//! ```

#![expect(clippy::disallowed_methods, reason = "runs ip, makes folders, writes kernel settings")]

pub(crate) mod capture;
pub(crate) mod janitor;
pub(crate) mod namespace;

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::process::run;
use crate::{Error, folder, programs};
pub use namespace::Namespace;

/// Limit of one `ip` command; it takes milliseconds.
const IP_LIMIT: Duration = Duration::from_secs(20);
const BRIDGE: &str = "br0";

/// How many networks this process has made, for their names.
static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// A network with a bridge, alone in its namespace. It is itself a host on the bridge, the one where the services run:
/// all methods of [`Namespace`] are its own.
///
/// A drop ends every process in it and removes it.
#[derive(Debug)]
pub struct Network {
    here: Namespace,
    ports: AtomicU32,
}

/// A further host on the bridge: a namespace with one interface, `eth0`, for peers and clients that are not machines.
/// All methods of [`Namespace`] are its own. A drop ends every process in it and removes it.
#[derive(Debug)]
pub struct Host {
    here: Namespace,
}

impl Network {
    /// The address of the host where the services run.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    /// The subnet of the bridge.
    pub const SUBNET: &'static str = "192.0.2.0/24";
    /// The interface on which services listen and captures look.
    pub const INTERFACE: &'static str = BRIDGE;

    /// A new network whose logs lie in `$NKD_VM_TEST_DIR/<name>` or `target/vm-tests/<name>`. What an earlier network of
    /// that name left there is removed.
    pub fn create(name: &str) -> Result<Self, Error> {
        Self::create_in(&folder::base().join(name))
    }

    /// A new network with its logs in `folder`, which is emptied.
    pub fn create_in(folder: &Path) -> Result<Self, Error> {
        programs::require(&["ip"])?;
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        janitor::sweep_once()?;
        folder::fresh(folder)?;
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed) + 1;
        let space = format!("{}{}-{number}", janitor::PREFIX, std::process::id());
        let here = Namespace::add(&space, BRIDGE, Some(Self::ADDRESS), folder)?;
        // From here on the drop takes everything away again.
        let net = Self { here, ports: AtomicU32::new(0) };
        folder::fresh(&janitor::runtime_folder(&space))?;
        net.ip(&format!("link add {BRIDGE} address 52:54:00:4e:4b:00 type bridge forward_delay 0 mcast_snooping 0"))?;
        net.ip(&format!("addr add {}/24 brd + dev {BRIDGE}", Self::ADDRESS))?;
        net.ip(&format!("addr add fd00:192::1/64 dev {BRIDGE} nodad"))?;
        net.ip(&format!("link set {BRIDGE} up"))?;
        Ok(net)
    }

    /// Joins a further host to the bridge. `address` is like `192.0.2.2/24`; a host without one can still speak DHCP.
    pub fn host(&self, name: &str, address: Option<&str>) -> Result<Host, Error> {
        let ip = match address {
            None => None,
            Some(text) => {
                let ip = text.split_once('/').and_then(|(ip, _)| ip.parse().ok());
                Some(ip.ok_or_else(|| Error::Argument(format!("{text:?} is no address with a prefix length")))?)
            }
        };
        let host = Host { here: Namespace::add(&format!("{}-{name}", self.name()), "eth0", ip, self.folder())? };
        self.plug(&format!("port{}", self.next_port()), &host, None)?;
        if let Some(address) = address {
            host.ip(&format!("addr add {address} brd + dev eth0"))?;
        }
        Ok(host)
    }

    /// Adds a tap on the bridge and returns its name and its number, which is unique in this network.
    pub(crate) fn add_tap(&self) -> Result<(String, u32), Error> {
        let number = self.next_port();
        let tap = format!("tap{number}");
        self.ip(&format!("tuntap add {tap} mode tap"))?;
        self.ip(&format!("link set {tap} master {BRIDGE} up"))?;
        Ok((tap, number))
    }

    /// A number that nothing else in this network has.
    pub(crate) fn next_port(&self) -> u32 {
        self.ports.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Deref for Network {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.here
    }
}

impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.here
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        janitor::remove(self.here.name());
        if std::thread::panicking() {
            eprintln!("the logs are kept in {}", self.here.folder().display());
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        janitor::remove(self.here.name());
    }
}

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) -> Result<String, Error> {
    let mut command = Command::new("ip");
    command.args(words.split_whitespace());
    Ok(run(command, IP_LIMIT)?.success()?.text())
}
