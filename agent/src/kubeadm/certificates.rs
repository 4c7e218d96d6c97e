//! The certificates of Kubernetes on this node, without their keys: what kubeadm made, and the kubelet's own.
#![expect(clippy::disallowed_methods, reason = "reads the certificates")]

use std::path::Path;

use nkd_api::agent::NodeCertificate;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;

use crate::tls::validity;

/// Certificates by kubeadm, below `etc/kubernetes/pki`.
const FILES: [&str; 7] = [
    "apiserver",
    "apiserver-kubelet-client",
    "apiserver-etcd-client",
    "etcd/server",
    "etcd/peer",
    "etcd/healthcheck-client",
    "front-proxy-client",
];
/// Kubeconfigs by kubeadm with a certificate in them, below `etc/kubernetes`.
const CONFIGS: [&str; 4] = ["admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf"];
/// The kubelet's certificate and key; it renews them by itself.
const KUBELET: &str = "var/lib/kubelet/pki/kubelet-client-current.pem";

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// Those that read.
    pub certificates: Vec<NodeCertificate>,
    /// The names of those that do not.
    pub unreadable: Vec<String>,
}

impl Shown {
    /// True on a node that is in no cluster.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty() && self.unreadable.is_empty()
    }
}

/// Reads them all below `root`. What is not there is left out: a worker has one.
#[must_use]
pub fn gather(root: &Path) -> Shown {
    let mut shown = Shown::default();
    let kubernetes = root.join("etc/kubernetes");
    for name in FILES {
        shown.add(name, &kubernetes.join("pki").join(format!("{name}.crt")), Some);
    }
    for name in CONFIGS {
        shown.add(name, &kubernetes.join(name), |text| embedded(&text, "client-certificate-data"));
    }
    shown.add("kubelet", &root.join(KUBELET), Some);
    shown
}

impl Shown {
    fn add(&mut self, name: &str, path: &Path, pem: impl FnOnce(String) -> Option<String>) {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            text => text.ok(),
        };
        let written = std::fs::metadata(path).and_then(|data| data.modified()).ok().map(OffsetDateTime::from);
        match text.and_then(pem).and_then(|text| read(name, &text, written)) {
            Some(certificate) => self.certificates.push(certificate),
            None => self.unreadable.push(name.to_owned()),
        }
    }
}

fn read(name: &str, pem: &str, written: Option<OffsetDateTime>) -> Option<NodeCertificate> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let read = validity::summary(&der)?;
    let moment =
        |at: rustls_pki_types::UnixTime| OffsetDateTime::from_unix_timestamp(i64::try_from(at.as_secs()).ok()?).ok();
    let begins = moment(read.not_before)?;
    // kubeadm dates the beginning back to that of the authority. A file whose date lies past the end tells nothing.
    let not_after = moment(read.not_after)?;
    let since = written.filter(|written| *written < not_after).map_or(begins, |written| written.max(begins));
    Some(NodeCertificate {
        name: name.to_owned(),
        subject: read.subject,
        serial: read.serial,
        since: since.replace_nanosecond(0).unwrap_or(since),
        not_after,
    })
}

/// A field of a kubeconfig that kubeadm wrote: base64 on the line of its name.
pub(crate) fn embedded(config: &str, field: &str) -> Option<String> {
    let line =
        config.lines().find_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(field)?.strip_prefix(':'))?;
    let word = line.trim().trim_matches(['"', '\'']);
    // PEM is base64 with a head and a tail.
    let wrapped = format!("-----BEGIN CERTIFICATE-----\n{word}\n-----END CERTIFICATE-----\n");
    let bytes = CertificateDer::from_pem_slice(wrapped.as_bytes()).ok()?;
    String::from_utf8(bytes.to_vec()).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str, group: Option<&str>) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(group) = group {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        }
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x0a, 0xb1]));
        params.not_before = time::macros::datetime!(2000-01-01 0:00 UTC);
        params.not_after = time::macros::datetime!(2100-01-01 0:00 UTC);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    /// Base64 of a text, by the PEM that the standard tools write.
    fn base64(text: &str) -> String {
        use std::io::Write as _;
        let mut child = std::process::Command::new("base64")
            .args(["--wrap=0"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    }

    #[test]
    fn a_control_plane_shows_its_certificates_and_no_key() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(gather(root.path()).is_empty(), "a node of no cluster");
        let (api, _) = made("kube-apiserver", None);
        write("etc/kubernetes/pki/apiserver.crt", &api);
        write("etc/kubernetes/pki/etcd/peer.crt", "nonsense");
        let (admin, key) = made("kubernetes-admin", Some("system:masters"));
        let config = |certificate: &str| {
            format!(
                "users:\n- name: a\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {}\n",
                base64(&key)
            )
        };
        write("etc/kubernetes/admin.conf", &config(&base64(&admin)));
        write("etc/kubernetes/scheduler.conf", &config("!!"));
        let (kubelet, key) = made("system:node:cp1", Some("system:nodes"));
        write("var/lib/kubelet/pki/kubelet-client-current.pem", &format!("{kubelet}{key}"));
        let shown = gather(root.path());
        let names: Vec<_> = shown.certificates.iter().map(|c| (c.name.as_str(), c.subject.as_str())).collect();
        let wanted = [
            ("apiserver", "CN=kube-apiserver"),
            ("admin.conf", "O=system:masters, CN=kubernetes-admin"),
            ("kubelet", "O=system:nodes, CN=system:node:cp1"),
        ];
        assert_eq!(names, wanted);
        assert_eq!(shown.unreadable, ["etcd/peer", "scheduler.conf"]);
        let one = &shown.certificates[0];
        assert_eq!((one.serial.as_str(), one.not_after.year()), ("0ab1", 2100));
        assert!(one.since.year() > 2020, "when it was written, not what it claims: {}", one.since);
        let told = serde_json::to_string(&shown.certificates).unwrap();
        assert!(!told.contains("KEY") && !told.contains("BEGIN"), "{told}");
    }
}
