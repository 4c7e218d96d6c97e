//! From merged inputs to settings; collects every problem (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nkd_api::MacAddr;
use toml::{Table, Value};

use super::{
    ChannelSettings, DhcpInterface, DhcpSettings, FleetLockSettings, HttpSettings, Inputs, LogSettings,
    NetbootSettings, RegistrySettings, SettingProblem, Settings, SettingsError, TftpSettings,
};
use crate::fleet::lock::GROUPS_OF_ONE;
use crate::netboot::dhcp::{Mode, Reservation};

pub(super) fn settings(inputs: Inputs) -> Result<Settings, SettingsError> {
    known_and_settings(inputs).1
}

/// The names of all settings, as far as their tables are there, and the settings.
pub(super) fn known_and_settings(inputs: Inputs) -> (BTreeSet<String>, Result<Settings, SettingsError>) {
    let Inputs { values, origins, problems } = inputs;
    let shared = Shared { origins, problems, known: BTreeSet::new() };
    let mut root = Reader { table: values, path: String::new(), shared };
    let state_dir: PathBuf = root.parse("state_dir", "a folder").unwrap_or_else(|| "/var/lib/nkd".into());
    let key_file = root.parse("key_file", "a file").unwrap_or_else(|| state_dir.join("secret.key"));
    let advertise = root.parse::<String>("advertise", "a host name or an address");
    if let Some(host) = &advertise
        && (url::Host::parse(host).is_err() || host.contains(|c: char| c.is_whitespace() || "/$()".contains(c)))
    {
        let message = format!("`{host}` is neither a host name nor an address: no scheme, no port, IPv6 in brackets");
        root.problem("advertise", message);
    }
    let discovery_image = root.parse("discovery_image", "the name of an image");
    let templates_dir = root.parse("templates_dir", "a folder");
    let agent_binary = root.parse("agent_binary", "a file");
    let log = root.section("log", |log| LogSettings {
        json: log.choice("format", &[("text", false), ("json", true)]).unwrap_or(false),
        filter: log
            .parse("filter", "a filter: info, or nkd_server::netboot=debug,info")
            .map_or_else(|| "info".into(), |filter: Filter| filter.0),
    });
    let dhcp = root.section("dhcp", |dhcp| DhcpSettings {
        mode: dhcp
            .choice("mode", &[("off", Mode::Off), ("proxy", Mode::Proxy), ("server", Mode::Server)])
            .unwrap_or(Mode::Off),
        router_advertisements: dhcp.flag("router_advertisements").unwrap_or(true),
        conflict_probe: dhcp.flag("conflict_probe").unwrap_or(true),
        require_lease: dhcp.flag("require_lease").unwrap_or(true),
        interfaces: dhcp.list("interface", interface),
        reservations: dhcp.list("reservation", reservation),
    });
    let tftp = root.section("tftp", |tftp| TftpSettings {
        enabled: tftp.flag("enabled").unwrap_or(true),
        listen: tftp.address("listen", 69),
    });
    let http = root.section("http", |http| HttpSettings {
        boot_listen: http.address("boot_listen", 8080),
        api_listen: http.address("api_listen", 8443),
        metrics_listen: http
            .parse("metrics_listen", "an address with a port, 127.0.0.1:9090")
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9090))),
        names: http.strings("names"),
    });
    let netboot = root.section("netboot", |netboot| NetbootSettings {
        ipxe_dir: netboot.parse("ipxe_dir", "a folder").unwrap_or_else(|| "/usr/lib/ipxe".into()),
    });
    let registry = root.section("registry", |registry| RegistrySettings {
        anonymous_pull: registry.flag("anonymous_pull").unwrap_or(true),
    });
    let fleet_lock = root.section("fleet_lock", |lock| FleetLockSettings {
        slots: lock.integer("slots", 1..=1000).and_then(|slots| usize::try_from(slots).ok()).unwrap_or(1),
        lease_minutes: lock.integer("lease_minutes", 1..=10_080).and_then(|n| u32::try_from(n).ok()).unwrap_or(60),
        groups_per_client: (lock.integer("groups_per_client", 1..=1024))
            .and_then(|groups| usize::try_from(groups).ok())
            .unwrap_or(GROUPS_OF_ONE),
    });
    let channels = root.section("channels", |channels| ChannelSettings {
        grace: Duration::from_secs(channels.integer("grace", 1..=2_592_000).unwrap_or(3600)),
    });
    if dhcp.mode == Mode::Server {
        for (i, interface) in dhcp.interfaces.iter().enumerate() {
            if interface.pool.is_none() && dhcp.reservations.is_empty() {
                root.problem_at(
                    format!("dhcp.interface[{i}].pool"),
                    "the mode server needs a pool or reservations: 10.0.0.50-10.0.0.99".into(),
                );
            }
        }
    }
    if dhcp.mode != Mode::Off && dhcp.interfaces.is_empty() {
        root.problem_at(
            "dhcp.interface".into(),
            "name the interface that machines are on: [[dhcp.interface]] name = \"eth1\"".into(),
        );
    }
    root.leftovers();
    let Shared { mut problems, known, .. } = root.shared;
    if problems.is_empty() {
        let settings = Settings {
            state_dir,
            key_file,
            advertise,
            discovery_image,
            templates_dir,
            agent_binary,
            log,
            dhcp,
            tftp,
            http,
            netboot,
            registry,
            fleet_lock,
            channels,
        };
        return (known, Ok(settings));
    }
    problems.sort_by(|a, b| a.name.cmp(&b.name));
    (known, Err(SettingsError(problems)))
}

fn interface(r: &mut Reader) -> DhcpInterface {
    let name = r.parse::<String>("name", "an interface, eth1").unwrap_or_default();
    if name.is_empty() {
        r.problem("name", "every [[dhcp.interface]] needs the name of an interface".into());
    }
    DhcpInterface {
        name,
        server_ip: r.parse("server_ip", "an address"),
        subnet: r.parse("subnet", "a subnet, 10.0.0.0/24"),
        pool: r.pool("pool"),
        gateway: r.parse("gateway", "an address"),
        dns: r.parsed_list("dns", "an address"),
        ntp: r.parsed_list("ntp", "an address"),
        domain: r.parse("domain", "a domain name"),
        lease_time: Duration::from_secs(r.integer("lease_time", 60..=u64::from(u32::MAX - 1)).unwrap_or(3600)),
    }
}

fn reservation(r: &mut Reader) -> Reservation {
    let mac = r.parse::<MacAddr>("mac", "a MAC address");
    let ip = r.parse::<IpAddr>("ip", "an address");
    for (key, missing) in [("mac", mac.is_none()), ("ip", ip.is_none())] {
        if missing && !r.has_problem(key) {
            r.problem(key, "every [[dhcp.reservation]] needs mac and ip".into());
        }
    }
    Reservation {
        mac: mac.unwrap_or(MacAddr([0; 6])),
        ip: ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        hostname: r.parse("hostname", "a host name"),
    }
}

/// A filter of log lines that reads.
struct Filter(String);

impl FromStr for Filter {
    type Err = tracing_subscriber::filter::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        tracing_subscriber::EnvFilter::try_new(text).map(|_| Self(text.to_owned()))
    }
}

#[derive(Default)]
struct Shared {
    origins: BTreeMap<String, String>,
    problems: Vec<SettingProblem>,
    /// Every setting that was looked for, `dhcp.interface[0].pool`.
    known: BTreeSet<String>,
}

struct Reader {
    table: Table,
    path: String,
    shared: Shared,
}

impl Reader {
    fn take(&mut self, key: &str) -> Option<Value> {
        self.shared.known.insert(self.name(key));
        self.table.remove(key)
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn problem(&mut self, key: &str, message: String) {
        let name = self.name(key);
        self.problem_at(name, message);
    }

    fn problem_at(&mut self, name: String, message: String) {
        // The origin of a list element is that of its list.
        let mut at = name.as_str();
        let origin = loop {
            if let Some(origin) = self.shared.origins.get(at) {
                break origin.clone();
            }
            match at.rfind(['.', '[']) {
                Some(end) => at = &at[..end],
                None => break String::new(),
            }
        };
        self.shared.problems.push(SettingProblem { name, origin, message });
    }

    fn has_problem(&self, key: &str) -> bool {
        let name = self.name(key);
        self.shared.problems.iter().any(|p| p.name == name)
    }

    fn text(&mut self, key: &str, what: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            Value::Integer(number) => Some(number.to_string()),
            other => {
                self.problem(key, format!("is a {}, and should be {what}", other.type_str()));
                None
            }
        }
    }

    fn parse<T: FromStr>(&mut self, key: &str, what: &str) -> Option<T> {
        let text = self.text(key, what)?;
        match text.parse() {
            Ok(value) if !text.is_empty() => Some(value),
            _ => {
                self.problem(key, format!("`{text}` is not {what}"));
                None
            }
        }
    }

    fn address(&mut self, key: &str, port: u16) -> SocketAddr {
        self.parse(key, "an address with a port, 0.0.0.0:8080")
            .unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
    }

    fn choice<T: Clone>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let names = choices.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ");
        let text = self.text(key, &format!("one of {names}"))?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| value.clone());
        if found.is_none() {
            self.problem(key, format!("`{text}` is not one of {names}"));
        }
        found
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        match self.take(key)? {
            Value::Boolean(value) => Some(value),
            other => {
                self.problem(key, format!("`{other}` is neither true nor false"));
                None
            }
        }
    }

    fn integer(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let number = value.as_integer().and_then(|n| u64::try_from(n).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            self.problem(key, format!("`{value}` is not a whole number from {} to {}", range.start(), range.end()));
        }
        number
    }

    fn strings(&mut self, key: &str) -> Vec<String> {
        self.parsed_list(key, "text")
    }

    fn parsed_list<T: FromStr>(&mut self, key: &str, what: &str) -> Vec<T> {
        let items = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(single) => vec![single],
        };
        let mut out = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            match item.as_str().and_then(|text| text.parse().ok()) {
                Some(value) => out.push(value),
                None => self.problem(&format!("{key}[{i}]"), format!("{item} is not {what}")),
            }
        }
        out
    }

    fn pool(&mut self, key: &str) -> Option<RangeInclusive<IpAddr>> {
        let text = self.text(key, "a range of addresses")?;
        let range = text.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        let ordered = |(first, last): &(IpAddr, IpAddr)| first <= last && first.is_ipv4() == last.is_ipv4();
        let range = range.filter(ordered).map(|(first, last)| first..=last);
        if range.is_none() {
            self.problem(
                key,
                format!("`{text}` is not a range of addresses: write the lower one first, 10.0.0.50-10.0.0.99"),
            );
        }
        range
    }

    fn section<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let table = match self.take(key) {
            Some(Value::Table(table)) => table,
            None => Table::new(),
            Some(other) => {
                self.problem(key, format!("is a {}, and should be a table: [{key}]", other.type_str()));
                Table::new()
            }
        };
        let path = self.name(key);
        self.inside(table, path, read)
    }

    fn list<T>(&mut self, key: &str, mut read: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let items = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(table @ Value::Table(_)) => vec![table],
            Some(_) => {
                self.problem(key, format!("should be a list of tables: [[{}]]", self.name(key)));
                return Vec::new();
            }
        };
        let mut out = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            let path = format!("{}[{i}]", self.name(key));
            match item {
                Value::Table(table) => out.push(self.inside(table, path, &mut read)),
                other => self.problem_at(path, format!("is a {}, and should be a table", other.type_str())),
            }
        }
        out
    }

    fn inside<T>(&mut self, table: Table, path: String, read: impl FnOnce(&mut Self) -> T) -> T {
        let mut inner = Self { table, path, shared: std::mem::take(&mut self.shared) };
        let value = read(&mut inner);
        inner.leftovers();
        self.shared = inner.shared;
        value
    }

    fn leftovers(&mut self) {
        let keys: Vec<String> = self.table.keys().cloned().collect();
        if keys.is_empty() {
            return;
        }
        let beside = self.name("");
        let names = self.shared.known.iter().filter_map(|name| name.strip_prefix(beside.as_str()));
        let names = names.filter(|name| !name.contains(['.', '['])).collect::<Vec<_>>().join(", ");
        for key in keys {
            self.problem(&key, format!("there is no such setting; there are {names}"));
        }
    }
}
