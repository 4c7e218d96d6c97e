//! Pools, machines and their addresses (pure).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nkd_api::cluster::{API_PORT, Cluster, Kubernetes, MachineMatch, Pool, PoolMachine, Role};

use super::rules::{Findings, labels};
use super::syntax::{self, field, shown};
use super::{hostname, pool_size};
use crate::content::image::profile::names_a_disk;
use crate::machine::identity::{usable_text, usable_uuid};
use crate::machine::lifecycle::{NAME_RULE, valid_name};

/// The most nodes of a cluster that Kubernetes is built for.
const NODES: usize = 5000;
/// Networks of pods and services, each with the field that it stands in.
type Subnets = Vec<(&'static str, IpNet)>;

/// What may stand once in all pools, with its first place.
#[derive(Default)]
struct Seen {
    pools: BTreeMap<String, String>,
    keys: [BTreeMap<String, String>; 3],
    hostnames: BTreeMap<String, String>,
    addresses: BTreeMap<String, String>,
}

/// Checks the pools with their machines.
pub(super) fn check(cluster: &Cluster, found: &mut Findings<'_>) {
    let subnets = subnets(&cluster.spec.kubernetes);
    let mut seen = Seen::default();
    for (i, pool) in cluster.spec.pools.iter().enumerate() {
        self::pool(&format!("spec.pools[{i}]"), &cluster.metadata.name, pool, &subnets, &mut seen, found);
    }
    if !found.is_torn("spec.pools") {
        sizes(cluster, found);
    }
}

fn sizes(cluster: &Cluster, found: &mut Findings<'_>) {
    let of = |role| cluster.spec.pools.iter().filter(move |p| p.role == role);
    let planes: usize = of(Role::ControlPlane).map(pool_size).fold(0, usize::saturating_add);
    let workers: usize = of(Role::Worker).map(pool_size).fold(0, usize::saturating_add);
    if of(Role::ControlPlane).next().is_none() {
        found.problem("spec.pools", "no pool has the role control-plane: a cluster needs one, with 1, 3 or 5 machines");
    } else if planes == 0 {
        found.problem("spec.pools", "the control planes have no machine: list one, or write `count: 1`");
    } else if planes.is_multiple_of(2) {
        found.warn(
            "spec.pools",
            format!("{planes} control planes survive no more failures than {}: take an odd number", planes - 1),
        );
    } else if planes > 7 {
        found.warn("spec.pools", format!("{planes} control planes make etcd slow: 3 or 5 are enough"));
    }
    let nodes = planes.saturating_add(workers);
    if nodes > NODES {
        found.problem("spec.pools", format!("{nodes} machines are more than Kubernetes is built for, {NODES}"));
    }
    if workers == 0 && planes > 0 && of(Role::ControlPlane).all(|p| p.taints.is_none()) {
        found.warn(
            "spec.pools",
            "nothing can run ordinary pods: add a worker pool, or `taints: []` to the control planes",
        );
    }
    // kubeadm gives every node a /24 or /64 of the pods' network.
    let kubernetes = &cluster.spec.kubernetes;
    let own_masks = kubernetes.controller_manager.extra_args.keys().any(|k| k.starts_with("node-cidr-mask-size"));
    for net in syntax::subnets(&kubernetes.pod_subnet).unwrap_or_default() {
        let Some(bits) = if net.addr().is_ipv4() { 24_u8 } else { 64 }.checked_sub(net.prefix_len()) else { continue };
        let room = 1_usize << bits.min(16);
        if !own_masks && nodes > room && nodes <= NODES {
            found.problem(
                "spec.kubernetes.podSubnet",
                format!("{net} has room for {room} nodes, and the pools ask for {nodes}: take a larger network"),
            );
        }
    }
}

fn subnets(kubernetes: &Kubernetes) -> Subnets {
    [("podSubnet", &kubernetes.pod_subnet), ("serviceSubnet", &kubernetes.service_subnet)]
        .into_iter()
        .flat_map(|(name, text)| syntax::subnets(text).unwrap_or_default().into_iter().map(move |net| (name, net)))
        .collect()
}

fn pool(at: &str, cluster: &str, pool: &Pool, subnets: &Subnets, seen: &mut Seen, found: &mut Findings<'_>) {
    if valid_name(&pool.name) {
        found.once(&mut seen.pools, &pool.name, &field(at, "name"));
    } else {
        found.problem(&field(at, "name"), format!("{}: {NAME_RULE}", shown(&pool.name)));
    }
    let (listed, size) = (pool.machines.len(), pool_size(pool));
    let more = size.saturating_sub(listed);
    if size < listed {
        found
            .problem(&field(at, "count"), format!("{listed} machines are listed: write {listed} or more, or no count"));
    }
    match &pool.matches {
        Some(matches) => {
            self::matches(&field(at, "match"), matches, found);
            if more == 0 && !found.is_bad(&field(at, "count")) {
                found.warn(&field(at, "match"), "no machine is taken by it: `count` asks for no more than are listed");
            }
        }
        None if more > 0 && !found.is_bad(&field(at, "match")) => found.warn(
            &field(at, "count"),
            format!("{more} of any accepted machines are taken and their disks overwritten: say which by `match`"),
        ),
        None => {}
    }
    labels(&field(at, "labels"), &pool.labels, found);
    for (i, taint) in pool.taints.iter().flatten().enumerate() {
        found.when(&format!("{at}.taints[{i}]"), syntax::taint(taint));
    }
    disk(at, pool.install_disk.as_deref(), found);
    for (i, argument) in pool.kernel_args.iter().enumerate() {
        if argument.is_empty() || argument.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'".contains(c))
        {
            found.problem(&format!("{at}.kernelArgs[{i}]"), "one argument an item, without white space and quotes");
        }
    }
    for (i, machine) in pool.machines.iter().enumerate() {
        self::machine(&format!("{at}.machines[{i}]"), machine, subnets, seen, found);
    }
    // Names that nobody wrote are known only where cluster and pool have names.
    let named = valid_name(cluster) && valid_name(&pool.name) && !found.is_bad(&field(at, "name"));
    for index in 0..size.min(NODES) {
        let (own, place) = match pool.machines.get(index) {
            Some(machine) => (machine.hostname.is_some(), format!("{at}.machines[{index}].hostname")),
            None => (false, field(at, "count")),
        };
        if !own && !named {
            continue;
        }
        let name = hostname(cluster, pool, index);
        if name.len() > 63 {
            found.problem(
                &place,
                format!(
                    "the host name {} is longer than 63: shorten it, or the names of cluster and pool",
                    shown(&name)
                ),
            );
            break;
        }
        found.once(&mut seen.hostnames, &name, &place);
    }
}

fn matches(at: &str, matches: &MachineMatch, found: &mut Findings<'_>) {
    if let Some(memory) = &matches.memory {
        found.when(&field(at, "memory"), syntax::least_memory(memory).err());
    }
    if let Some(cpus) = &matches.cpus {
        found.when(&field(at, "cpus"), syntax::least_cpus(cpus).err());
    }
    if let Some(architecture) = &matches.architecture
        && !["x86_64", "aarch64"].contains(&architecture.as_str())
    {
        found.problem(&field(at, "architecture"), format!("{} is not one of: x86_64, aarch64", shown(architecture)));
    }
    for (name, text) in [("vendor", &matches.vendor), ("product", &matches.product)] {
        if let Some(text) = text {
            let plain = text.strip_suffix('*').unwrap_or(text);
            if text.is_empty() || plain.contains('*') {
                found.problem(&field(at, name), format!("{}: a text, or its beginning and one `*`", shown(text)));
            }
        }
    }
    let bad = |text: &str| text.len() > 128 || text.contains(|c: char| c.is_control() || c == ',');
    for (key, value) in &matches.labels {
        if key.is_empty() || key.contains('=') || bad(key) || bad(value) {
            found.problem(
                &field(&field(at, "labels"), key),
                "a label of a machine has a key without `=`, and at most 128 bytes on each side without `,`",
            );
        }
    }
}

fn disk(at: &str, disk: Option<&str>, found: &mut Findings<'_>) {
    if let Some(disk) = disk.filter(|disk| !names_a_disk(disk)) {
        found.problem(
            &field(at, "installDisk"),
            format!("{} is not the path of a disk: write /dev/sda or /dev/disk/by-id/NAME", shown(disk)),
        );
    }
}

fn machine(at: &str, machine: &PoolMachine, subnets: &Subnets, seen: &mut Seen, found: &mut Findings<'_>) {
    if machine.mac.is_none() && machine.uuid.is_none() && machine.serial.is_none() {
        let wrong = ["mac", "uuid", "serial"].iter().any(|key| found.is_bad(&field(at, key)));
        if !wrong {
            found.problem(at, "nothing says which machine this is: give its mac, uuid or serial");
        }
    }
    let [macs, uuids, serials] = &mut seen.keys;
    if let Some(mac) = machine.mac {
        let path = field(at, "mac");
        if mac.is_usable() {
            found.once(macs, &mac.to_string(), &path);
        } else {
            found.problem(&path, format!("{mac} is not the address of one interface: it is empty or for groups"));
        }
    }
    if let Some(uuid) = &machine.uuid {
        match usable_uuid(uuid) {
            Some(uuid) => found.once(uuids, &uuid, &field(at, "uuid")),
            None => found.problem(
                &field(at, "uuid"),
                format!("{} is not a UUID, or is a placeholder that many boards share", shown(uuid)),
            ),
        }
    }
    if let Some(serial) = &machine.serial {
        if usable_text(serial).as_ref() == Some(serial) {
            found.once(serials, serial, &field(at, "serial"));
        } else {
            found.problem(
                &field(at, "serial"),
                format!("{} is empty, too long, or a placeholder that many boards share", shown(serial)),
            );
        }
    }
    if let Some(name) = &machine.hostname
        && !syntax::dns_name(name)
    {
        found.problem(
            &field(at, "hostname"),
            format!("{} is not a host name: labels of a-z, 0-9 and - (RFC 1123)", shown(name)),
        );
    }
    disk(at, machine.install_disk.as_deref(), found);
    labels(&field(at, "labels"), &machine.labels, found);
    address(at, machine, subnets, seen, found);
}

fn address(at: &str, machine: &PoolMachine, subnets: &Subnets, seen: &mut Seen, found: &mut Findings<'_>) {
    let path = field(at, "ip");
    let Some(text) = &machine.ip else {
        if !found.is_bad(&path) {
            if machine.gateway.is_some() {
                found.problem(
                    &field(at, "gateway"),
                    "a machine without `ip` asks DHCP for its router: add `ip`, or leave this out",
                );
            }
            if !machine.dns.is_empty() {
                found.problem(
                    &field(at, "dns"),
                    "a machine without `ip` asks DHCP for name servers: add `ip`, or leave this out",
                );
            }
        }
        return;
    };
    let Ok(net) = text.parse::<IpNet>() else {
        let like = match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => format!("{address} needs its prefix length: {address}/24"),
            Ok(IpAddr::V6(address)) => format!("{address} needs its prefix length: {address}/64"),
            Err(_) => format!("{} is not an address: write address and prefix length, 10.0.0.11/24", shown(text)),
        };
        return found.problem(&path, like);
    };
    let address = net.addr();
    // A network of one or two addresses has no address of its own.
    let whole = net.max_prefix_len() - net.prefix_len() < 2;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        found.problem(&path, format!("{address} is not the address of a machine"));
    } else if !whole && (address == net.network() || (address.is_ipv4() && address == net.broadcast())) {
        found.problem(&path, format!("{address} is the network {} itself, or its broadcast address", net.trunc()));
    }
    found.once(&mut seen.addresses, &address.to_string(), &path);
    for (name, subnet) in subnets {
        if subnet.contains(&address) {
            found.problem(
                &path,
                format!("{address} lies in spec.kubernetes.{name}, {subnet}: pods or services have such addresses"),
            );
        } else if syntax::overlap(subnet, &net) {
            found.warn(&path, format!("the network {} overlaps spec.kubernetes.{name}, {subnet}", net.trunc()));
        }
    }
    if let Some(gateway) = machine.gateway {
        if gateway == address {
            found.problem(&field(at, "gateway"), format!("{gateway} is the machine itself: name its router"));
        } else if !net.contains(&gateway) {
            found.problem(&field(at, "gateway"), format!("{gateway} is not in the machine's network {}", net.trunc()));
        }
    } else if !found.is_bad(&field(at, "gateway")) {
        found.warn(&path, "the machine has no `gateway`: it reaches its own network only");
    }
    for (i, server) in machine.dns.iter().enumerate() {
        if let Some((name, subnet)) = subnets.iter().find(|(_, subnet)| subnet.contains(server)) {
            found.problem(&format!("{at}.dns[{i}]"), format!("{server} lies in spec.kubernetes.{name}, {subnet}: nodes need name servers before the cluster is there"));
        } else if server.is_unspecified() {
            found.problem(&format!("{at}.dns[{i}]"), format!("{server} is not the address of a name server"));
        }
    }
}

/// Checks where the Kubernetes API is reached.
pub(super) fn endpoint(cluster: &Cluster, text: &str, found: &mut Findings<'_>) {
    const PATH: &str = "spec.endpoint";
    let (host, port) = match syntax::endpoint(text) {
        Ok(endpoint) => endpoint,
        Err(message) => return found.problem(PATH, message),
    };
    let Ok(address) = host.parse::<IpAddr>() else { return };
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return found.problem(PATH, format!("{address} leads other machines nowhere"));
    }
    for (name, subnet) in subnets(&cluster.spec.kubernetes) {
        if subnet.contains(&address) {
            found.problem(
                PATH,
                format!("{address} lies in spec.kubernetes.{name}, {subnet}: it cannot be reached from outside"),
            );
        }
    }
    let planes: usize = cluster
        .spec
        .pools
        .iter()
        .filter(|p| p.role == Role::ControlPlane)
        .map(pool_size)
        .fold(0, usize::saturating_add);
    for (i, pool) in cluster.spec.pools.iter().enumerate() {
        for (j, machine) in pool.machines.iter().enumerate() {
            let own =
                machine.ip.as_ref().and_then(|ip| ip.parse::<IpNet>().ok()).is_some_and(|net| net.addr() == address);
            let place = format!("spec.pools[{i}].machines[{j}]");
            match pool.role {
                _ if !own || found.is_bad(&format!("spec.pools[{i}].role")) => {}
                Role::Worker => found.problem(PATH, format!("{address} is the worker {place}: name a control plane or a load balancer")),
                Role::ControlPlane if port != API_PORT => found.problem(
                    PATH,
                    format!("nobody will answer on port {port} of {address}: its API server listens on {API_PORT}"),
                ),
                Role::ControlPlane if planes > 1 => found.warn(
                    PATH,
                    format!("{address} is {place} alone: without it the cluster is not reached. Name a load balancer, or leave the endpoint out for a balancer on every node"),
                ),
                Role::ControlPlane => {}
            }
        }
    }
}
