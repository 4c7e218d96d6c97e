//! The service's own certificate authority: its server certificate and the client certificates of the nodes
//! (X.509, RFC 5280; ECDSA P-256).
//!
//! Everything on the boot path is valid from a fixed date in the past, because the clock of a machine may be years
//! off at its first boot.

use std::net::IpAddr;
use std::sync::Arc;

use nkd_api::agent::Purpose;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest, Sha256};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::store::{Store, StoreError};

/// Start of everything's validity.
pub(crate) const VALID_FROM: OffsetDateTime = datetime!(2000-01-01 0:00 UTC);
const CA_LIFE: Duration = Duration::days(20 * 365);
const SERVER_LIFE: Duration = Duration::days(10 * 365);
/// The server certificate is made anew at start when less than this is left.
const SERVER_RENEW: Duration = Duration::days(2 * 365);
/// Life of a client certificate.
pub const CLIENT_LIFE: Duration = Duration::days(30);
const URI_PREFIX: &str = "nkd://machine/";

/// The certificate authority failed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Making a key or certificate failed.
    #[error("making a certificate failed")]
    Make(#[from] rcgen::Error),
    /// A stored key or certificate does not read.
    #[error("the stored {0} does not read: restore a backup")]
    Stored(&'static str),
    /// TLS refused the certificate.
    #[error("TLS refuses the service's own certificate")]
    Tls(#[from] rustls::Error),
    /// The request of a node is not a certificate request.
    #[error("the certificate request is not valid")]
    Request(#[source] rcgen::Error),
    /// The verifier of client certificates could not be made.
    #[error("the client certificate verifier cannot be made")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Who a client certificate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Machine.
    pub machine: Uuid,
    /// What it may do.
    pub purpose: Purpose,
    /// Generation that it belongs to.
    pub generation: u32,
    /// The network boot that it goes back to.
    pub boot: Uuid,
}

impl NodeIdentity {
    fn uri(&self) -> String {
        format!("{URI_PREFIX}{}/{}/{}/{}", self.machine, self.purpose.as_str(), self.generation, self.boot)
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(URI_PREFIX)?.split('/');
        let identity = Self {
            machine: parts.next()?.parse().ok()?,
            purpose: parts.next()?.parse().ok()?,
            generation: parts.next()?.parse().ok()?,
            boot: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(identity)
    }

    /// Reads the identity out of a client certificate that TLS has verified.
    #[must_use]
    pub fn from_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => Self::from_uri(uri),
            _ => None,
        })
    }
}

/// A client certificate with its times.
#[derive(Debug, Clone)]
pub struct Issued {
    /// PEM.
    pub certificate: String,
    /// Two thirds of its life are over then.
    pub renew_after: OffsetDateTime,
    /// End of its life.
    pub expires: OffsetDateTime,
}

/// The authority.
pub struct Pki {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pki(..)")
    }
}

impl Pki {
    /// Reads the authority from the store, or makes it there.
    pub async fn load_or_create(store: &Store, now: OffsetDateTime) -> Result<Self, PkiError> {
        let stored = (store.secret("ca/cert").await?, store.secret("ca/key").await?);
        let (ca_pem, key) = match stored {
            (Some(certificate), Some(key)) => {
                let certificate = String::from_utf8(certificate).map_err(|_| PkiError::Stored("CA certificate"))?;
                let key = String::from_utf8(key).map_err(|_| PkiError::Stored("CA key"))?;
                (certificate, KeyPair::from_pem(&key).map_err(|_| PkiError::Stored("CA key"))?)
            }
            (None, None) => {
                let key = KeyPair::generate()?;
                let mut params = params("nkd service CA", now + CA_LIFE)?;
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
                let pem = params.self_signed(&key)?.pem();
                let key_pem = key.serialize_pem();
                store.save_secrets(&[("ca/cert", pem.as_bytes()), ("ca/key", key_pem.as_bytes())]).await?;
                (pem, key)
            }
            _ => return Err(PkiError::Stored("CA (half of it is missing)")),
        };
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)?;
        Ok(Self { ca_pem, issuer })
    }

    /// The CA certificate, PEM. Public.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// TLS for the service: its certificate for these names and addresses, kept in the store until they change, and a
    /// request for client certificates, which are optional.
    pub async fn server_config(
        &self,
        store: &Store,
        names: &[String],
        addresses: &[IpAddr],
        now: OffsetDateTime,
    ) -> Result<rustls::ServerConfig, PkiError> {
        let mut wanted: Vec<String> = names.iter().cloned().chain(addresses.iter().map(ToString::to_string)).collect();
        wanted.sort();
        wanted.dedup();
        let wanted = wanted.join(" ");
        let kept = (
            store.secret("server/names").await?,
            store.secret("server/cert").await?,
            store.secret("server/key").await?,
        );
        let (certificate, key) = match kept {
            (Some(for_names), Some(certificate), Some(key))
                if for_names == wanted.as_bytes()
                    && expiry(&certificate).is_some_and(|end| end - now > SERVER_RENEW) =>
            {
                (certificate, key)
            }
            _ => {
                let key = KeyPair::generate()?;
                let mut params = params("nkd service", now + SERVER_LIFE)?;
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for name in names {
                    params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
                }
                params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
                let certificate = params.signed_by(&key, &self.issuer)?.pem().into_bytes();
                let key = key.serialize_pem().into_bytes();
                store
                    .save_secrets(&[
                        ("server/names", wanted.as_bytes()),
                        ("server/cert", &certificate),
                        ("server/key", &key),
                    ])
                    .await?;
                (certificate, key)
            }
        };
        let mut chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| PkiError::Stored("server certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| PkiError::Stored("server key"))?;
        let mut roots = rustls::RootCertStore::empty();
        let ca =
            CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(|_| PkiError::Stored("CA certificate"))?;
        // Who does not know the CA yet looks at it here and compares its fingerprint: `nkd login`.
        chain.push(ca.clone());
        roots.add(ca)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
        let mut config =
            rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// A client certificate for a node. Only the public key of the request is used.
    pub fn issue_client(&self, csr_pem: &str, identity: NodeIdentity, now: OffsetDateTime) -> Result<Issued, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(PkiError::Request)?;
        let expires = now + CLIENT_LIFE;
        let mut params = params(&identity.machine.to_string(), expires)?;
        params.distinguished_name.push(DnType::OrganizationName, "nkd:agents");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
        let certificate = params.signed_by(&request.public_key, &self.issuer)?.pem();
        Ok(Issued { certificate, renew_after: now + CLIENT_LIFE * 2 / 3, expires })
    }
}

/// The digest of the public key in a certificate request whose signature holds.
pub fn request_key(csr_pem: &str) -> Result<[u8; 32], PkiError> {
    use rcgen::PublicKeyData;
    let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(PkiError::Request)?;
    Ok(Sha256::digest(request.public_key.subject_public_key_info()).into())
}

/// What every certificate that the service makes has in common: one name, a random serial, valid long since.
pub(crate) fn params(common_name: &str, not_after: OffsetDateTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = VALID_FROM;
    params.not_after = not_after;
    params.serial_number = Some(random_serial()?);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[expect(clippy::disallowed_methods, reason = "serial numbers are random (RFC 5280, 4.1.2.2)")]
fn random_serial() -> Result<SerialNumber, rcgen::Error> {
    let mut serial = [0u8; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
    serial[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&serial))
}

fn expiry(pem: &[u8]) -> Option<OffsetDateTime> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(certificate.validity().not_after.to_datetime())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_their_uri() {
        let (machine, boot) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let identity = NodeIdentity { machine, purpose: Purpose::Node, generation: 3, boot };
        assert_eq!(NodeIdentity::from_uri(&identity.uri()), Some(identity));
        for bad in [
            "nkd://machine/x/node/1",
            "nkd://machine/",
            "http://h",
            "nkd://machine/00000000-0000-0000-0000-000000000007/node/1",
            "nkd://machine/00000000-0000-0000-0000-000000000007/node/1/2",
            "nkd://machine/00000000-0000-0000-0000-000000000007/node/1/00000000-0000-0000-0000-000000000008/2",
        ] {
            assert_eq!(NodeIdentity::from_uri(bad), None, "{bad}");
        }
    }
}
