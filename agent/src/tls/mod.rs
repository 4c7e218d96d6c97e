//! TLS as the agent speaks it: 1.3, one pinned CA, the service's clock.
//!
//! Until the service has told its clock, a certificate of the service is judged at a moment inside its own validity:
//! chain and name count, the dates cannot. From then on the dates are checked with the service's clock. So a stolen
//! service key whose certificate has expired is of use only against an agent that has just started; the price of
//! machines whose clocks are years off.

pub(crate) mod validity;

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::default_provider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::clock::Clock;
use crate::identity::Identity;

/// TLS could not be set up from what is on disk.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA is not PEM, or empty.
    #[error("the CA certificate cannot be used: {0}")]
    Ca(String),
    /// The client certificate or its key.
    #[error("the certificate or key in the state directory cannot be used: {0}")]
    Identity(String),
    /// rustls refuses the whole.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// A certificate and its key that are shown, PEM.
#[derive(Clone, Copy)]
pub struct Presented<'a> {
    /// Certificate and intermediates.
    pub certificate: &'a str,
    /// Private key.
    pub key: &'a str,
}

impl<'a> From<&'a Identity> for Presented<'a> {
    fn from(identity: &'a Identity) -> Self {
        Self { certificate: &identity.certificate, key: &identity.key }
    }
}

/// A client configuration that trusts `ca` alone and shows `presented` when there is one.
///
/// # Errors
/// When the CA, the certificate or the key cannot be used.
pub fn client_config(ca: &str, presented: Option<Presented<'_>>, clock: &Clock) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|error| TlsError::Ca(error.to_string()))?;
        roots.add(certificate).map_err(|error| TlsError::Ca(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Ca("it holds no certificate".into()));
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| TlsError::Ca(error.to_string()))?;
    let verifier = Arc::new(Verifier { inner, clock: clock.clone() });
    let builder = ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match presented {
        None => builder.with_no_client_auth(),
        Some(presented) => {
            let chain = CertificateDer::pem_slice_iter(presented.certificate.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| TlsError::Identity(error.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(presented.key.as_bytes())
                .map_err(|error| TlsError::Identity(error.to_string()))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| TlsError::Identity(error.to_string()))?
        }
    };
    // A resumed session would skip the check of the certificate.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    clock: Clock,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let at = if self.clock.service().is_some() {
            now
        } else {
            // The latest beginning lies inside every validity, unless there is no moment at which the chain holds.
            std::iter::once(end_entity)
                .chain(intermediates)
                .map(|certificate| validity::validity(certificate).map(|(not_before, _)| not_before))
                .collect::<Option<Vec<_>>>()
                .and_then(|beginnings| beginnings.into_iter().max())
                .ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?
        };
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
