//! Single values of a cluster file: what they mean and what they may look like (pure).

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use nkd_api::cluster::API_PORT;
use url::Url;

use crate::machine::identity::is_visible;
use crate::machine::lifecycle::valid_name;

/// The path of a field of the map at `path`.
#[must_use]
pub fn field(path: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match (path.is_empty(), plain) {
        (true, true) => name.to_owned(),
        (false, true) => format!("{path}.{name}"),
        (_, false) => {
            let name: String = name.chars().take(SHOWN).collect();
            format!("{path}[{name:?}]")
        }
    }
}

/// The most characters of a value that a message repeats.
const SHOWN: usize = 60;

/// A value as a message shows it.
pub(in crate::cluster) fn shown(text: &str) -> String {
    let visible: String = text.chars().map(|c| if is_visible(c) { c } else { '\u{fffd}' }).take(SHOWN).collect();
    let more = if text.chars().count() > SHOWN { "..." } else { "" };
    format!("`{visible}`{more}")
}

/// `v1.31.4` as its three numbers.
#[must_use]
pub fn version(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.strip_prefix('v')?.split('.').map(number);
    let version = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(version)
}

/// Digits without a sign or a leading zero.
fn number(text: &str) -> Option<u32> {
    let digits =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    digits.then(|| text.parse().ok())?
}

/// True for a DNS name of lower-case labels (RFC 1123) that cannot be taken for an address.
#[must_use]
pub fn dns_name(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(valid_name) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// `10.0.0.10:6443`, `api.rack7.example` or `[fd00::10]:6443` as host and port; the port is 6443 when it is not given.
///
/// # Errors
/// What is wrong and what would be right.
pub fn endpoint(text: &str) -> Result<(String, u16), String> {
    let (host, port) = host_port(text).ok_or_else(|| {
        format!(
            "{} is not an endpoint: write host or host:port, without a scheme; [fd00::10]:6443 for IPv6",
            shown(text)
        )
    })?;
    Ok((host, port.unwrap_or(API_PORT)))
}

/// Host, and port if there is one. An IPv6 address stands in brackets when a port follows.
fn host_port(text: &str) -> Option<(String, Option<u16>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address.to_string(), None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => {
            (host, Some(number(port).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)?))
        }
        _ => (text, None),
    };
    if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().ok().map(|a| (a.to_string(), port));
    }
    let address = host.parse::<std::net::Ipv4Addr>().is_ok();
    (address || dns_name(host)).then(|| (host.to_owned(), port))
}

/// True for a host name or an address, with or without a port.
pub(super) fn is_host(text: &str) -> bool {
    host_port(text).is_some()
}

/// One network, or one of each family with a comma, as kubeadm takes them for pods and services.
///
/// # Errors
/// What is wrong and what would be right.
pub fn subnets(text: &str) -> Result<Vec<IpNet>, String> {
    let mut found: Vec<IpNet> = Vec::new();
    for part in text.split(',') {
        let net: IpNet = part
            .trim()
            .parse()
            .map_err(|_| format!("{} is not a network: write address and prefix length, 10.244.0.0/16", shown(part)))?;
        if net.trunc() != net {
            return Err(format!("{net} names an address inside the network: write {}", net.trunc()));
        }
        if found.iter().any(|other| other.addr().is_ipv4() == net.addr().is_ipv4()) || found.len() == 2 {
            return Err(format!("{}: one network, or one of IPv4 and one of IPv6", shown(text)));
        }
        found.push(net);
    }
    Ok(found)
}

/// True when two networks share an address.
#[must_use]
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Bytes of `>=8Gi`.
///
/// # Errors
/// What would be right.
pub fn least_memory(text: &str) -> Result<u64, String> {
    let read = || {
        let size = text.strip_prefix(">=")?.trim_start();
        let digits = size.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &size[digits.len()..] {
            "Ki" => 10,
            "Mi" => 20,
            "Gi" => 30,
            "Ti" => 40,
            _ => return None,
        };
        number(digits).map(u64::from)?.checked_mul(1 << shift)
    };
    read()
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("{} is not a least memory: write >=8Gi (Ki, Mi, Gi, Ti)", shown(text)))
}

/// Number of `>=4`.
///
/// # Errors
/// What would be right.
pub fn least_cpus(text: &str) -> Result<u32, String> {
    let read = || number(text.strip_prefix(">=")?.trim_start()).filter(|n| *n > 0);
    read().ok_or_else(|| format!("{} is not a least number of processors: write >=4", shown(text)))
}

/// What is wrong with the key of a Kubernetes label or taint.
pub(super) fn label_key(key: &str) -> Option<String> {
    let good = match key.split_once('/') {
        Some((prefix, name)) => dns_name(prefix) && label_word(name),
        None => label_word(key),
    };
    (!good).then(|| {
        format!("{} is not a label key: [prefix/]name, the name at most 63 of A-Z, a-z, 0-9, -, _ and .", shown(key))
    })
}

/// What is wrong with the value of a Kubernetes label or taint.
pub(super) fn label_value(value: &str) -> Option<String> {
    let good = value.is_empty() || label_word(value);
    (!good).then(|| {
        format!(
            "{} is not a label value: at most 63 of A-Z, a-z, 0-9, -, _ and ., with a letter or digit at both ends",
            shown(value)
        )
    })
}

fn label_word(word: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric();
    (1..=63).contains(&word.len())
        && word.bytes().all(|b| inner(b) || b"-_.".contains(&b))
        && word.bytes().next().is_some_and(inner)
        && word.bytes().last().is_some_and(inner)
}

/// What is wrong with a taint.
pub(super) fn taint(text: &str) -> Option<String> {
    let Some((head, effect)) = text.rsplit_once(':') else {
        return Some(format!("{} has no effect: write key=value:NoSchedule", shown(text)));
    };
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Some(format!("{} is not an effect: NoSchedule, PreferNoSchedule or NoExecute", shown(effect)));
    }
    let (key, value) = head.split_once('=').unwrap_or((head, ""));
    label_key(key).or_else(|| label_value(value))
}

/// What is wrong with a line of `authorized_keys`. The message never repeats the line.
pub(super) fn ssh_key(line: &str) -> Option<String> {
    const KINDS: [&str; 7] = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    if line.contains("PRIVATE KEY") {
        return Some("this is a private key: put the public one here (the file that ends in .pub), and replace this key if others could read the file".into());
    }
    if line.contains(['\n', '\r']) {
        return Some("this is more than one line: one list item a key".into());
    }
    let mut words = line.split_ascii_whitespace().skip_while(|word| !KINDS.contains(word));
    let Some(kind) = words.next() else {
        return Some(format!("this is not a public key line of OpenSSH: it holds one of {}", KINDS.join(", ")));
    };
    // The key's own data open with its kind (RFC 4253, 6.6).
    let data = words.next().and_then(|word| STANDARD.decode(word).ok()).unwrap_or_default();
    let named = data.get(..4).and_then(|n| <[u8; 4]>::try_from(n).ok()).map(|n| u32::from_be_bytes(n) as usize);
    let own = named.and_then(|n| data.get(4..4usize.saturating_add(n)));
    let whole = own == Some(kind.as_bytes()) && data.len() > 4 + kind.len();
    (!whole).then(|| format!("the key after {kind} is damaged: copy the whole line of the .pub file"))
}

/// True for `registry.example:5000/path/name`, without a scheme.
pub(super) fn repository(text: &str) -> bool {
    let mut parts = text.split('/');
    let host = parts.next().unwrap_or_default();
    let word = |part: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        part.bytes().all(|b| inner(b) || b"-_.".contains(&b))
            && part.bytes().next().is_some_and(inner)
            && part.bytes().last().is_some_and(inner)
    };
    is_host(host) && parts.all(word)
}

/// True for an image with a tag or a digest, `registry.k8s.io/pause:3.10`.
pub(super) fn image_reference(text: &str) -> bool {
    if let Some((name, digest)) = text.split_once('@') {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        return hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) && name.contains('/') && repository(name);
    }
    let Some((name, tag)) = text.rsplit_once(':') else { return false };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    name.contains('/') && repository(name) && (1..=128).contains(&tag.len()) && tag.bytes().all(plain)
}

/// An http or https address with a host.
pub(super) fn web_address(text: &str) -> Option<Url> {
    let url: Url = text.parse().ok()?;
    (matches!(url.scheme(), "http" | "https") && url.host().is_some()).then_some(url)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*|[v0-9.:/\\[\\]>=GiMKT,@a-z-]{0,40}") {
            let _ = (version(&text), dns_name(&text), endpoint(&text), subnets(&text), least_memory(&text), least_cpus(&text));
            let _ = (label_key(&text), label_value(&text), taint(&text), ssh_key(&text), repository(&text), image_reference(&text));
            let _ = (web_address(&text), field("a", &text), shown(&text));
        }

        #[test]
        fn versions_keep_their_numbers(a in 0u32..100, b in 0u32..100, c in 0u32..100) {
            prop_assert_eq!(version(&format!("v{a}.{b}.{c}")), Some([a, b, c]));
        }

        #[test]
        fn an_endpoint_keeps_host_and_port(address: IpAddr, port in 1u16..) {
            let text = std::net::SocketAddr::new(address, port).to_string();
            prop_assert_eq!(endpoint(&text), Ok((address.to_string(), port)));
            prop_assert_eq!(endpoint(&address.to_string()), Ok((address.to_string(), API_PORT)));
        }
    }

    #[test]
    fn near_misses_are_refused() {
        for text in ["1.31.4", "v1.31", "v1.31.4-rc.1", "v1.031.4", "v1.31.4.5", "v1.31.+4", "v"] {
            assert_eq!(version(text), None, "{text}");
        }
        for text in [
            "https://a:1",
            "a:0",
            "a:65536",
            "10.0.0.300",
            "10.0.0",
            "a_b",
            "A",
            "",
            "a:",
            "[::1",
            "::1:",
            "a b",
            "a/b",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
        for text in
            ["10.0.0.1/16", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/8,fd00::/48,fd01::/48", ""]
        {
            assert!(subnets(text).is_err(), "{text}");
        }
        for text in ["8Gi", ">=8", ">=8GB", ">8Gi", ">=-8Gi", ">=0Gi", ">=1.5Gi", ">=8Gi "] {
            assert!(least_memory(text).is_err(), "{text}");
        }
        for text in ["4", ">=0", ">= x", "=>4"] {
            assert!(least_cpus(text).is_err(), "{text}");
        }
        for text in ["a", "a:NoWay", "=b:NoSchedule", "a=b=c:NoSchedule", "-a:NoSchedule"] {
            assert!(taint(text).is_some(), "{text}");
        }
        for text in ["https://r.example/k8s", "R.example", "r.example/K8s", "r.example//k8s", "r.example/k8s:v1"] {
            assert!(!repository(text), "{text}");
        }
        for text in ["pause:3.9", "registry.k8s.io/pause", "registry.k8s.io/pause:", "registry.k8s.io/pause@sha256:12"]
        {
            assert!(!image_reference(text), "{text}");
        }
    }

    #[test]
    fn good_values_are_taken() {
        assert_eq!(endpoint("[fd00::10]").unwrap(), ("fd00::10".into(), 6443));
        assert_eq!(endpoint("api.rack7.example:443").unwrap(), ("api.rack7.example".into(), 443));
        assert_eq!(subnets("10.244.0.0/16,fd00:10::/56").unwrap().len(), 2);
        assert_eq!(least_memory(">=8Gi").unwrap(), 8 << 30);
        assert_eq!(least_cpus(">= 4").unwrap(), 4);
        for text in ["node-role.kubernetes.io/control-plane:NoSchedule", "gpu=yes:NoExecute"] {
            assert_eq!(taint(text), None);
        }
        assert!(repository("registry.example:5000/k8s") && repository("localhost/k8s"));
        assert!(image_reference("registry.k8s.io/pause:3.10"));
    }

    #[test]
    fn a_public_key_is_told_from_everything_else() {
        let blob = |kind: &str| {
            let mut data = u32::try_from(kind.len()).unwrap().to_be_bytes().to_vec();
            data.extend(kind.as_bytes());
            data.extend([0, 0, 0, 32].into_iter().chain([7; 32]));
            STANDARD.encode(data)
        };
        let key = blob("ssh-ed25519");
        for line in [format!("ssh-ed25519 {key}"), format!("from=\"10.0.0.0/8\" ssh-ed25519 {key} me@here")] {
            assert_eq!(ssh_key(&line), None, "{line}");
        }
        for line in [
            format!("ssh-rsa {key}"),
            format!("ssh-dss {}", blob("ssh-dss")),
            format!("ssh-ed25519 {}", &key[..12]),
            format!("ssh-ed25519 {key}\nssh-ed25519 {key}"),
            "ssh-ed25519".into(),
            "/root/.ssh/id_rsa.pub".into(),
        ] {
            assert!(ssh_key(&line).is_some(), "{line}");
        }
        let private = ssh_key("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA").unwrap();
        assert!(private.contains("private key") && !private.contains("AAAA"), "{private}");
    }
}
