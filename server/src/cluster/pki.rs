//! The certificate authorities of a cluster, as kubeadm wants them: cluster, etcd and front proxy (X.509, RFC 5280), and
//! the key pair that signs service account tokens (RFC 7519).
//!
//! Authorities that the service makes are ECDSA P-256. The service account key is RSA 2048: the pre-flight check of
//! `kubeadm join --control-plane` refused any other one until 1.25.2 (kubernetes/kubernetes#112508). Everything is valid from a fixed date in the past, because
//! kubeadm gives its own certificates the start of their authority, and the clock of a node may be years off.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nkd_api::Problem;
use nkd_api::agent::NodeFile;
use nkd_api::cluster::{Certificates, KeyPair as GivenPair, Source};
use rcgen::{
    BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    PublicKeyData as _, RsaKeySize,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;

use crate::fleet::pki::{VALID_FROM, params};

const CA_LIFE: Duration = Duration::days(20 * 365);

/// The authorities of a cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Making a key or certificate failed.
    #[error("making a certificate failed")]
    Make(#[from] rcgen::Error),
    /// The operator's own authorities cannot be used.
    #[error("{} of the given certificates and keys cannot be used", .0.len())]
    Invalid(Vec<Problem>),
    /// The stored document is not one.
    #[error("the stored certificates do not read: restore a backup")]
    Document(#[from] serde_json::Error),
    /// A stored key or certificate does not read.
    #[error("the stored {0} does not read: restore a backup")]
    Stored(&'static str),
    /// The authority has come to its end.
    #[error("the cluster's certificate authority ended on {0}: nothing can be signed any more")]
    Ended(OffsetDateTime),
    /// The kubeconfig could not be written.
    #[error("the kubeconfig cannot be written")]
    Kubeconfig(#[from] serde_saphyr::ser::Error),
}

/// A certificate and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// Path below `/etc/kubernetes/pki` without its ending: `etcd/ca`.
    pub name: &'static str,
    /// Its subject, `CN=etcd-ca`.
    pub subject: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Start of its life.
    pub not_before: OffsetDateTime,
    /// End of its life.
    pub not_after: OffsetDateTime,
    /// What is left of it; negative when it is over.
    pub left: Duration,
}

/// A way to a cluster's API from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// Its name in a kubeconfig: `rack7`, or `rack7-cp1` when there are several.
    pub name: String,
    /// Host and port, `10.0.0.10:6443`.
    pub address: String,
}

/// Who a kubeconfig is for.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Where its API is reached.
    pub endpoints: &'a [NamedEndpoint],
    /// Which of them is used unless the user says otherwise.
    pub current: usize,
    /// User name (CN).
    pub user: &'a str,
    /// Group (O), `system:masters`. One: rcgen writes an attribute of a subject once.
    pub group: &'a str,
    /// How long it is good for; never longer than the authority.
    pub lifetime: Duration,
}

/// What a client of the cluster's etcd needs.
#[derive(Clone)]
pub struct EtcdClient {
    /// The only authority to trust, PEM.
    pub ca: String,
    /// Its certificate and private key, PEM.
    pub chain_and_key: String,
}

/// The authorities and the service account key of a cluster.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPki {
    cluster: Pair,
    etcd: Pair,
    front_proxy: Pair,
    service_account: Pair,
}

/// Certificate (or public key) and private key, PEM.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    certificate: String,
    key: String,
}

impl std::fmt::Debug for ClusterPki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterPki(..)")
    }
}

impl ClusterPki {
    /// Takes what the operator gives and makes the rest.
    ///
    /// # Errors
    /// [`PkiError::Invalid`] names everything that is wrong with what was given.
    pub fn create(given: &Certificates, now: OffsetDateTime) -> Result<Self, PkiError> {
        let mut problems = Vec::new();
        let taken = take(given, now, &mut problems);
        if !problems.is_empty() {
            return Err(PkiError::Invalid(problems));
        }
        let authority = |taken: Option<Pair>, name| taken.map_or_else(|| new_authority(name, now), Ok);
        Ok(Self {
            cluster: authority(taken.cluster, "kubernetes")?,
            etcd: authority(taken.etcd, "etcd-ca")?,
            front_proxy: authority(taken.front_proxy, "front-proxy-ca")?,
            service_account: match taken.service_account {
                Some(pair) => pair,
                None => {
                    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
                    Pair { certificate: key.public_key_pem(), key: key.serialize_pem() }
                }
            },
        })
    }

    /// One JSON document with every key in clear: to be sealed before it is stored.
    pub fn to_document(&self) -> Result<Vec<u8>, PkiError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads what [`Self::to_document`] wrote.
    pub fn from_document(document: &[u8]) -> Result<Self, PkiError> {
        let pki: Self = serde_json::from_slice(document)?;
        for (name, pair) in pki.authorities() {
            with_first(&pair.certificate, |_| ()).ok_or(PkiError::Stored(name))?;
        }
        Ok(pki)
    }

    fn authorities(&self) -> [(&'static str, &Pair); 3] {
        [("ca", &self.cluster), ("etcd/ca", &self.etcd), ("front-proxy-ca", &self.front_proxy)]
    }

    /// Certificate of the cluster's authority, PEM. Public.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.cluster.certificate
    }

    /// The files that kubeadm looks for on a control plane and makes everything else from. Workers get none of them.
    #[must_use]
    pub fn control_plane_files(&self) -> Vec<NodeFile> {
        let file = |name: &str, mode, contents: &str| NodeFile {
            path: format!("/etc/kubernetes/pki/{name}"),
            mode,
            contents: contents.to_owned(),
        };
        let mut files = Vec::with_capacity(8);
        for (name, pair) in self.authorities() {
            files.push(file(&format!("{name}.crt"), 0o644, &pair.certificate));
            files.push(file(&format!("{name}.key"), 0o600, &pair.key));
        }
        files.push(file("sa.pub", 0o644, &self.service_account.certificate));
        files.push(file("sa.key", 0o600, &self.service_account.key));
        files
    }

    /// Digest of the public key of the cluster's authority, `sha256:` and 64 hexadecimal digits, as kubeadm's
    /// `caCertHashes` wants it (RFC 7469, section 2.4).
    pub fn ca_hash(&self) -> Result<String, PkiError> {
        with_first(&self.cluster.certificate, |ca| {
            format!("sha256:{}", hex::encode(Sha256::digest(ca.public_key().raw)))
        })
        .ok_or(PkiError::Stored("ca"))
    }

    /// A kubeconfig with a new key and a client certificate of the cluster's authority, and a context for each endpoint.
    pub fn kubeconfig(&self, access: &Access<'_>, now: OffsetDateTime) -> Result<String, PkiError> {
        let subject = (access.user, Some(access.group));
        let (certificate, key) = client("ca", &self.cluster, subject, access.lifetime, now)?;
        let user = format!("{}@{}", access.user, access.cluster);
        let context = |endpoint: &NamedEndpoint| format!("{}@{}", access.user, endpoint.name);
        let cluster = |endpoint: &NamedEndpoint| {
            serde_json::json!({"name": endpoint.name, "cluster": {
                "server": format!("https://{}", endpoint.address),
                "certificate-authority-data": BASE64.encode(&self.cluster.certificate),
            }})
        };
        let entry = |endpoint: &NamedEndpoint| serde_json::json!({"name": context(endpoint), "context": {"cluster": endpoint.name, "user": user}});
        Ok(serde_saphyr::to_string(&serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": access.endpoints.iter().map(cluster).collect::<Vec<_>>(),
            "users": [{"name": user, "user": {
                "client-certificate-data": BASE64.encode(certificate),
                "client-key-data": BASE64.encode(key),
            }}],
            "contexts": access.endpoints.iter().map(entry).collect::<Vec<_>>(),
            "current-context": access.endpoints.get(access.current).map(context),
        }))?)
    }

    /// A new key and client certificate of the etcd authority.
    pub fn etcd_client(&self, user: &str, lifetime: Duration, now: OffsetDateTime) -> Result<EtcdClient, PkiError> {
        let (certificate, key) = client("etcd/ca", &self.etcd, (user, None), lifetime, now)?;
        Ok(EtcdClient { ca: self.etcd.certificate.clone(), chain_and_key: certificate + &key })
    }

    /// The authorities' certificates and their ends. What kubeadm makes on the nodes is not among them.
    pub fn expiries(&self, now: OffsetDateTime) -> Result<Vec<Expiry>, PkiError> {
        let expiry = |(name, pair): (&'static str, &Pair)| {
            with_first(&pair.certificate, |certificate| {
                let validity = certificate.validity();
                let not_after = validity.not_after.to_datetime();
                Expiry {
                    name,
                    subject: certificate.subject().to_string(),
                    serial: hex::encode(certificate.raw_serial()),
                    not_before: validity.not_before.to_datetime(),
                    not_after,
                    left: not_after - now,
                }
            })
            .ok_or(PkiError::Stored(name))
        };
        self.authorities().into_iter().map(expiry).collect()
    }
}

/// What is wrong with the operator's own authorities.
#[must_use]
pub fn problems(given: &Certificates, now: OffsetDateTime) -> Vec<Problem> {
    let mut problems = Vec::new();
    take(given, now, &mut problems);
    problems
}

#[derive(Default)]
struct Taken {
    cluster: Option<Pair>,
    etcd: Option<Pair>,
    front_proxy: Option<Pair>,
    service_account: Option<Pair>,
}

fn take(given: &Certificates, now: OffsetDateTime, problems: &mut Vec<Problem>) -> Taken {
    let mut taken = Taken::default();
    let mut keys: Vec<(&str, Vec<u8>)> = Vec::new();
    let authorities = [
        ("cluster", &given.cluster, &mut taken.cluster),
        ("etcd", &given.etcd, &mut taken.etcd),
        ("frontProxy", &given.front_proxy, &mut taken.front_proxy),
    ];
    for (name, given, place) in authorities {
        let Some(given) = given else { continue };
        let before = problems.len();
        let mut say = Say { path: format!("spec.certificates.{name}"), problems };
        if let Some((pair, key)) = authority(given, now, &mut say) {
            if name == "cluster" && say.problems.len() == before {
                can_sign(&pair, &mut say);
            }
            if let Some((other, _)) = keys.iter().find(|(_, other)| *other == key) {
                say.that(
                    "key",
                    format!("is the key of `{other}` too: whoever holds a certificate of one would be let in by the other; use an authority of its own"),
                );
            }
            keys.push((name, key));
            *place = Some(pair);
        }
    }
    if let Some(given) = &given.service_account {
        let mut say = Say { path: "spec.certificates.serviceAccount".to_owned(), problems };
        taken.service_account = service_account(given, &mut say);
    }
    taken
}

struct Say<'a> {
    path: String,
    problems: &'a mut Vec<Problem>,
}

impl Say<'_> {
    fn that(&mut self, field: &str, message: impl Into<String>) {
        self.problems.push(Problem { path: format!("{}.{field}", self.path), message: message.into() });
    }

    fn inline<'s>(&mut self, field: &str, source: &'s Source) -> Option<&'s str> {
        match source {
            Source::Inline { inline } => Some(inline),
            Source::Location(_) => {
                self.that(field, "is a path or address: the command line puts the text here before it sends the file");
                None
            }
        }
    }

    fn key(&mut self, source: &Source) -> Option<KeyPair> {
        let text = self.inline("key", source)?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).ok().and_then(|der| KeyPair::try_from(&der).ok());
        if key.is_none() {
            self.that("key", "is not a private key without a passphrase, PEM (PKCS #8, PKCS #1 or SEC 1)");
        }
        key
    }
}

/// The pair, and its public key. Problems that leave it readable are said on the way.
fn authority(given: &GivenPair, now: OffsetDateTime, say: &mut Say<'_>) -> Option<(Pair, Vec<u8>)> {
    let key = say.key(&given.key);
    let text = say.inline("certificate", &given.certificate)?;
    let chain: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().unwrap_or_default();
    let parsed: Result<Vec<_>, _> = chain.iter().map(|der| x509_parser::parse_x509_certificate(der)).collect();
    let Some(certificates) = parsed.ok().filter(|all| !all.is_empty()) else {
        say.that("certificate", "is not a certificate, PEM");
        return None;
    };
    for (_, certificate) in &certificates {
        let validity = certificate.validity();
        if validity.not_after.to_datetime() <= now {
            say.that("certificate", format!("ended on {}", date(validity.not_after.to_datetime())));
        } else if validity.not_before.to_datetime() > now {
            say.that("certificate", format!("is not valid before {}", date(validity.not_before.to_datetime())));
        }
    }
    let (_, first) = certificates.first()?;
    if !signs(first) {
        say.that("certificate", "is not that of a certificate authority (basic constraints CA, key usage keyCertSign)");
    }
    let key = key?;
    if ![&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256].contains(&key.algorithm()) {
        say.that("key", "is neither ECDSA (P-256, P-384) nor RSA, and kubeadm reads nothing else");
    }
    if first.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        say.that("key", "does not belong to the certificate");
    }
    let Source::Inline { inline } = &given.key else { return None };
    Some((Pair { certificate: text.to_owned(), key: inline.clone() }, key.der_bytes().to_vec()))
}

fn signs(certificate: &X509Certificate<'_>) -> bool {
    let ca = certificate.basic_constraints().ok().flatten().is_some_and(|extension| extension.value.ca);
    let usage = match certificate.key_usage() {
        Ok(Some(extension)) => extension.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    ca && usage
}

/// A subject that rcgen cannot write back byte by byte would make certificates that nobody accepts.
fn can_sign(pair: &Pair, say: &mut Say<'_>) {
    let signed = || -> Option<bool> {
        let probe = params("probe", VALID_FROM).ok()?;
        let certificate = probe.signed_by(&KeyPair::generate().ok()?, &issuer(pair)?).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate.der()).ok()?;
        with_first(&pair.certificate, |ca| ca.subject().as_raw() == certificate.issuer().as_raw())
    };
    if signed() != Some(true) {
        say.that(
            "certificate",
            "has a subject that the service cannot sign for: an attribute stands in it twice, or a name has two attributes",
        );
    }
}

fn service_account(given: &GivenPair, say: &mut Say<'_>) -> Option<Pair> {
    let key = say.key(&given.key);
    let text = say.inline("certificate", &given.certificate)?;
    let public = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).ok();
    if public.is_none() {
        say.that("certificate", "is not a public key, PEM (`PUBLIC KEY`)");
    }
    let key = key?;
    if key.algorithm() != &PKCS_RSA_SHA256 {
        say.that("key", "is not RSA: kubeadm before 1.25.2 joins no control plane with another one");
    }
    if public?.as_ref() != key.subject_public_key_info() {
        say.that("key", "does not belong to the public key in `certificate`");
    }
    let Source::Inline { inline } = &given.key else { return None };
    Some(Pair { certificate: text.to_owned(), key: inline.clone() })
}

fn new_authority(name: &str, now: OffsetDateTime) -> Result<Pair, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = params(name, now + CA_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// A client certificate for this name and group, and its new key, PEM; never longer than the authority.
fn client(
    name: &'static str,
    authority: &Pair,
    (user, group): (&str, Option<&str>),
    lifetime: Duration,
    now: OffsetDateTime,
) -> Result<(String, String), PkiError> {
    let end = with_first(&authority.certificate, |ca| ca.validity().not_after.to_datetime());
    let end = end.ok_or(PkiError::Stored(name))?;
    if end <= now {
        return Err(PkiError::Ended(end));
    }
    let mut params = params(user, end.min(now + lifetime))?;
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer(authority).ok_or(PkiError::Stored(name))?)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn issuer(pair: &Pair) -> Option<Issuer<'static, KeyPair>> {
    let der = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).ok()?;
    let key = KeyPair::try_from(&der).ok()?;
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).ok()?;
    Issuer::from_ca_cert_der(&certificate, key).ok()
}

/// Looks at the first certificate of a PEM text.
fn with_first<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(look(&certificate))
}

fn date(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
