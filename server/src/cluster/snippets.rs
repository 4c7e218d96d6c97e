//! What a cluster adds to the Ignition configuration of a node (pure): its address, time servers, the operator's snippets.

use nkd_api::cluster::{PoolMachine, Source};
use serde_json::json;

use super::record::{MemberRecord, Record};

/// Butane-shaped snippets for a member, in the order in which they are merged.
#[must_use]
pub fn of(record: &Record, member: &MemberRecord) -> Vec<String> {
    let spec = &record.cluster.spec;
    let mut snippets = Vec::new();
    if let Some(file) = network(&spec.os.profile, &member.wanted) {
        snippets.push(file);
    }
    if !spec.ntp.is_empty() {
        let servers: String = spec.ntp.iter().map(|server| format!("server {server} iburst\n")).collect();
        let text = format!("# Written by nkd.\n{servers}driftfile /var/lib/chrony/drift\nmakestep 1.0 3\nrtcsync\n");
        snippets.push(snippet("/etc/chrony.conf", 0o644, &text));
    }
    snippets.extend(spec.snippets.iter().filter_map(|source| match source {
        Source::Inline { inline } => Some(inline.clone()),
        Source::Location(_) => None,
    }));
    snippets
}

/// A fixed address: NetworkManager reads it on NestOS and Fedora CoreOS, systemd-networkd in the lab.
fn network(profile: &str, machine: &PoolMachine) -> Option<String> {
    let (ip, mac) = (machine.ip.as_deref()?, machine.mac?);
    let dns: Vec<String> = machine.dns.iter().map(ToString::to_string).collect();
    if profile == "lab" {
        let gateway = machine.gateway.map(|gateway| format!("Gateway={gateway}\n")).unwrap_or_default();
        let dns: String = dns.iter().map(|dns| format!("DNS={dns}\n")).collect();
        let text = format!("[Match]\nMACAddress={mac}\n\n[Network]\nAddress={ip}\n{gateway}{dns}");
        return Some(snippet("/etc/systemd/network/05-nkd.network", 0o644, &text));
    }
    let family = if ip.contains(':') { "ipv6" } else { "ipv4" };
    let gateway = machine.gateway.map(|gateway| format!(",{gateway}")).unwrap_or_default();
    let dns = if dns.is_empty() { String::new() } else { format!("dns={};\n", dns.join(";")) };
    let text = format!(
        "[connection]\nid=nkd\ntype=ethernet\nautoconnect-priority=100\n\n[ethernet]\nmac-address={mac}\n\n[{family}]\nmethod=manual\naddress1={ip}{gateway}\n{dns}"
    );
    Some(snippet("/etc/NetworkManager/system-connections/nkd.nmconnection", 0o600, &text))
}

fn snippet(path: &str, mode: u32, text: &str) -> String {
    json!({"storage": {"files": [{"path": path, "mode": mode, "overwrite": true, "contents": {"inline": text}}]}})
        .to_string()
}
