//! The operator's own certificate authorities (pure). No message repeats a key.

use nkd_api::cluster::{Certificates, KeyPair, Source};
use rcgen::PublicKeyData as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use super::rules::Findings;
use super::syntax::field;

/// Ed25519 (RFC 8410), which kubeadm does not take.
const ED25519: &str = "1.3.101.112";

/// Checks the pairs: certificates are CAs, and every key is the one of its certificate.
pub(super) fn check(certificates: &Certificates, found: &mut Findings<'_>) {
    for (name, pair) in [
        ("cluster", &certificates.cluster),
        ("etcd", &certificates.etcd),
        ("frontProxy", &certificates.front_proxy),
        ("serviceAccount", &certificates.service_account),
    ] {
        if let Some(pair) = pair {
            self::pair(&field("spec.certificates", name), pair, name == "serviceAccount", found);
        }
    }
}

/// Checks certificates that are trusted.
pub(super) fn bundle(at: &str, source: &Source, found: &mut Findings<'_>) {
    let Some(text) = found.source(at, source) else { return };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let good = all.is_ok_and(|all| !all.is_empty() && all.iter().all(|der| X509Certificate::from_der(der).is_ok()));
    if !good {
        found.problem(at, "this is not a certificate in PEM, -----BEGIN CERTIFICATE-----");
    }
}

fn pair(at: &str, pair: &KeyPair, bare: bool, found: &mut Findings<'_>) {
    let public = match found.source(&field(at, "certificate"), &pair.certificate) {
        Some(text) if bare => public_key(&field(at, "certificate"), text, found),
        Some(text) => ca(&field(at, "certificate"), text, found),
        None => None,
    };
    let path = field(at, "key");
    let Some(text) = found.source(&path, &pair.key) else { return };
    let Ok(key) = rcgen::KeyPair::from_pem(text) else {
        return found.problem(
            &path,
            "this is not an RSA or ECDSA private key in PEM without a password, -----BEGIN PRIVATE KEY-----",
        );
    };
    if key.algorithm() == &rcgen::PKCS_ED25519 {
        found.problem(&path, "kubeadm does not take Ed25519: make an RSA or ECDSA key");
    } else if public.is_some_and(|public| public != key.subject_public_key_info()) {
        found.problem(&path, "this is not the key of the certificate");
    }
}

/// The public key of a CA certificate.
fn ca(at: &str, text: &str, found: &mut Findings<'_>) -> Option<Vec<u8>> {
    let der = CertificateDer::from_pem_slice(text.as_bytes()).ok();
    let certificate = der.as_ref().and_then(|der| X509Certificate::from_der(der).ok());
    let Some((_, certificate)) = certificate else {
        found.problem(at, "this is not a certificate in PEM, -----BEGIN CERTIFICATE-----");
        return None;
    };
    if !certificate.is_ca() {
        found.problem(at, "this certificate is not one of a CA: its basic constraints say so");
    }
    taken(at, certificate.public_key(), found)
}

/// A public key alone, or the one of a certificate.
fn public_key(at: &str, text: &str, found: &mut Findings<'_>) -> Option<Vec<u8>> {
    if text.contains("BEGIN CERTIFICATE") {
        found.problem(at, "this is a certificate; service account tokens are checked with the bare public key, -----BEGIN PUBLIC KEY-----");
        return None;
    }
    let der = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).ok();
    let Some((_, key)) = der.as_ref().and_then(|der| SubjectPublicKeyInfo::from_der(der).ok()) else {
        found.problem(at, "this is not a public key in PEM, -----BEGIN PUBLIC KEY-----");
        return None;
    };
    taken(at, &key, found)
}

fn taken(at: &str, key: &SubjectPublicKeyInfo<'_>, found: &mut Findings<'_>) -> Option<Vec<u8>> {
    if key.algorithm.algorithm.to_id_string() == ED25519 {
        found.problem(at, "kubeadm does not take Ed25519: use RSA or ECDSA");
        return None;
    }
    Some(key.raw.to_vec())
}
