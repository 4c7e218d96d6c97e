//! What a node is made of, before it is built. Pure.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::Error;

/// A node that is not built yet; [`NodeSpec::start`] builds it and switches it on.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    pub(super) name: String,
    pub(super) address: Option<String>,
    pub(super) mac: Option<String>,
    pub(super) kubernetes: Option<Kubernetes>,
    pub(super) agent: Option<PathBuf>,
    pub(super) programs: Vec<(PathBuf, String)>,
    pub(super) files: Vec<File>,
}

/// One version in a folder of Kubernetes.
#[derive(Debug, Clone)]
pub(super) struct Kubernetes {
    pub folder: PathBuf,
    pub version: String,
}

/// A file on the disk of a node.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub path: String,
    pub mode: u32,
    pub bytes: Vec<u8>,
}

impl NodeSpec {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            address: None,
            mac: None,
            kubernetes: None,
            agent: None,
            programs: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Its address on the bridge with the length of the prefix, like `192.0.2.11/24`. Every node has one.
    pub fn address(mut self, address: &str) -> Self {
        self.address = Some(address.to_owned());
        self
    }

    /// The MAC address of its network card; one that is free in its network if nothing is said.
    pub fn mac(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self
    }

    /// A node of Kubernetes: containerd runs, and the kubelet as soon as it is configured. `folder` is what `cargo xtask
    /// image kubernetes` makes, `version` one in it, like `v1.20.2`.
    pub fn kubernetes(mut self, folder: &Path, version: &str) -> Self {
        self.kubernetes = Some(Kubernetes { folder: folder.to_owned(), version: version.to_owned() });
        self
    }

    /// The node agent as `/usr/bin/nkd-agent`, with its unit and that of its balancer. They run if there is an
    /// `/etc/nkd/agent.json` and a `balancer.json` at boot.
    pub fn agent(mut self, program: &Path) -> Self {
        self.agent = Some(program.to_owned());
        self
    }

    /// A program as `/usr/bin/<name>`.
    pub fn program(mut self, program: &Path, name: &str) -> Self {
        self.programs.push((program.to_owned(), name.to_owned()));
        self
    }

    /// A file that is on the disk before the first boot, below `/etc`, `/opt`, `/usr` or `/var`.
    pub fn file(mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.push(File { path: path.to_owned(), mode, bytes: bytes.into() });
        self
    }

    /// The address without the length of the prefix.
    pub(super) fn ip(&self) -> Result<Ipv4Addr, Error> {
        let bad = || Error::Argument(format!("{}: {:?} is no address like 192.0.2.11/24", self.name, self.address));
        let (ip, length) = self.address.as_deref().and_then(|text| text.split_once('/')).ok_or_else(bad)?;
        match length.parse::<u8>() {
            Ok(1..=32) => ip.parse().map_err(|_| bad()),
            _ => Err(bad()),
        }
    }

    /// A name goes into a host name, a control group, a folder and a network namespace.
    pub(super) fn check(&self) -> Result<(), Error> {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = self.name.len() <= 40
            && self.name.starts_with(letter)
            && self.name.ends_with(letter)
            && self.name.chars().all(|c| letter(c) || c == '-');
        match good {
            true => Ok(()),
            false => Err(Error::Argument(format!("{:?} is no name of a node: a-z, 0-9 and -", self.name))),
        }
    }
}

impl File {
    /// Where the file lies in the layers of the disk: the name of the layer and the path in it.
    pub(super) fn place(&self) -> Result<(&str, &str), Error> {
        let clean = !self.path.split('/').any(|part| part == "..");
        let parts = self.path.strip_prefix('/').and_then(|path| path.split_once('/'));
        // Of /var and /etc, these are not in the layers.
        let other = ["/etc/systemd/", "/etc/hosts", "/var/log/", "/var/run/", "/var/lib/containerd/"];
        let other = other.iter().any(|start| self.path.starts_with(start));
        match parts {
            Some((layer @ ("etc" | "opt" | "usr" | "var"), path)) if clean && !other && !path.is_empty() => {
                Ok((layer, path))
            }
            _ => Err(Error::Argument(format!("{} cannot be put on a disk before the first boot", self.path))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_prefix_length() {
        let ip = |text: &str| NodeSpec::new("a").address(text).ip();
        assert_eq!(ip("192.0.2.11/24").unwrap(), Ipv4Addr::new(192, 0, 2, 11));
        for bad in ["192.0.2.11", "192.0.2.11/", "192.0.2.11/33", "192.0.2.11/0", "fd00::1/64", ""] {
            assert!(ip(bad).is_err(), "{bad}");
        }
        assert!(NodeSpec::new("a").ip().is_err());
    }

    #[test]
    fn a_name_is_good_for_a_host_and_a_folder() {
        for good in ["cp1", "w-1", "0"] {
            assert!(NodeSpec::new(good).check().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "..", "a.b", &"a".repeat(41)] {
            assert!(NodeSpec::new(bad).check().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_lies_in_a_layer_and_nowhere_else() {
        let place = |path: &str| {
            File { path: path.to_owned(), mode: 0, bytes: vec![] }
                .place()
                .map(|(layer, path)| (layer.to_owned(), path.to_owned()))
        };
        assert_eq!(place("/etc/nkd/agent.json").unwrap(), ("etc".to_owned(), "nkd/agent.json".to_owned()));
        for bad in ["/root/a", "/etc", "/etc/", "etc/a", "/etc/../root/a", "/etc/systemd/system/a", "/run/a", "/"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
