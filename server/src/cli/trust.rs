//! Whom `nkd login` trusts when nobody has brought it the CA's file: it looks at the certificates that the service shows,
//! and goes by the fingerprint of the CA. Nothing is sent before that is settled.
#![expect(clippy::disallowed_methods, reason = "opens a connection, asks on the terminal")]

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use url::{Host, Url};

use crate::fleet::fingerprint::Fingerprint;

/// The service is not trusted. Nothing was sent to it, and nothing is remembered.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The address is no https address.
    #[error("--server `{0}` is not an address: write https://HOST:8443")]
    Address(String),
    /// No certificates could be had.
    #[error("{server} cannot be reached: is the service running?")]
    Connect {
        /// Address.
        server: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The service shows its own certificate and none that it comes from.
    #[error("{0} does not show its CA: give the CA's file with --ca FILE")]
    NoCa(String),
    /// Nobody is there to ask.
    #[error(
        "{server} shows the CA {shown}, and nobody is here to say whether that is right: compare it with what the log of \
         `nkd serve` says, then run `nkd login` with --ca-fingerprint {shown}, or give the CA's file with --ca FILE"
    )]
    NobodyToAsk {
        /// Address.
        server: String,
        /// Fingerprint.
        shown: Fingerprint,
    },
    /// The person said no.
    #[error("{0} is not trusted: nothing was sent to it, and nothing is remembered")]
    Refused(String),
    /// Another CA than the wanted one.
    #[error(
        "the CA of {server} is {shown}, not {wanted}: this is another service, or somebody is in between; nothing was \
         sent to it, and nothing is remembered"
    )]
    Other {
        /// Address, or the CA's file.
        server: String,
        /// Fingerprint of what is there.
        shown: Fingerprint,
        /// Fingerprint that was given.
        wanted: Fingerprint,
    },
}

/// The longest that the service may take to show its certificates.
const LIMIT: Duration = Duration::from_secs(10);

/// The CA of a service, PEM, if it has the wanted fingerprint, or if the person at the terminal says that it is right.
///
/// Whether the service is what it shows is for the connection to find out that is made with this CA.
pub(super) async fn settle(server: &str, wanted: Option<Fingerprint>) -> Result<String, TrustError> {
    let ca = shown_ca(server).await?;
    let shown = Fingerprint::of(&ca);
    match wanted {
        Some(wanted) if wanted == shown => {}
        Some(wanted) => return Err(TrustError::Other { server: server.to_owned(), shown, wanted }),
        None if !std::io::stdin().is_terminal() => {
            return Err(TrustError::NobodyToAsk { server: server.to_owned(), shown });
        }
        None if yes(server, shown) => {}
        None => return Err(TrustError::Refused(server.to_owned())),
    }
    let text = base64::engine::general_purpose::STANDARD.encode(&ca);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    Ok(format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")))
}

/// Checks the file that was given, too, if there is a fingerprint to check it by.
pub(super) fn check_file(file: &str, pem: &str, wanted: Fingerprint) -> Result<(), TrustError> {
    match Fingerprint::of_pem(pem) {
        Some(shown) if shown != wanted => Err(TrustError::Other { server: file.to_owned(), shown, wanted }),
        // What is no certificate is said by whoever reads it next.
        _ => Ok(()),
    }
}

fn yes(server: &str, shown: Fingerprint) -> bool {
    eprintln!(
        "{server} is not known here yet. It shows this CA:\n\n    {shown}\n\nThe log of `nkd serve` says which one is right."
    );
    let mut answer = String::new();
    loop {
        eprint!("Is it this one? (yes/no) ");
        answer.clear();
        match std::io::stdin().read_line(&mut answer).map(|length| (length, answer.trim())) {
            Ok((_, "yes")) => return true,
            Ok((0, _) | (_, "no")) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

/// The last certificate of the chain that the service shows. The handshake ends there, before anything is sent.
async fn shown_ca(server: &str) -> Result<CertificateDer<'static>, TrustError> {
    let bad = || TrustError::Address(server.to_owned());
    let url = Url::parse(server).ok().filter(|url| url.scheme() == "https").ok_or_else(bad)?;
    let (name, address) = match url.host().ok_or_else(bad)? {
        Host::Domain(name) => (ServerName::try_from(name.to_owned()).map_err(|_| bad())?, name.to_owned()),
        Host::Ipv4(ip) => (ServerName::from(std::net::IpAddr::V4(ip)), ip.to_string()),
        Host::Ipv6(ip) => (ServerName::from(std::net::IpAddr::V6(ip)), ip.to_string()),
    };
    let port = url.port_or_known_default().ok_or_else(bad)?;
    let failed = |source| TrustError::Connect { server: server.to_owned(), source };
    let onlooker = Arc::new(Onlooker::default());
    let config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&onlooker) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let look = async {
        let stream = TcpStream::connect((address.as_str(), port)).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map(drop)
    };
    let ended = tokio::time::timeout(LIMIT, look).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let chain = std::mem::take(&mut *onlooker.seen.lock().unwrap_or_else(PoisonError::into_inner));
    match (chain, ended) {
        (None, Err(error)) => Err(failed(error)),
        (chain, _) => {
            let last = chain.unwrap_or_default().into_iter().skip(1).next_back();
            last.filter(signs_itself).ok_or_else(|| TrustError::NoCa(server.to_owned()))
        }
    }
}

/// True for the certificate at the root. One further down is made anew now and then, by somebody else.
fn signs_itself(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, read)| read.subject() == read.issuer())
}

/// Looks at the certificates and refuses them all.
#[derive(Debug, Default)]
struct Onlooker {
    seen: Mutex<Option<Vec<CertificateDer<'static>>>>,
}

impl ServerCertVerifier for Onlooker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates).map(|one| one.clone().into_owned()).collect();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain);
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = CryptoProvider::get_default();
        provider.map(|p| p.signature_verification_algorithms.supported_schemes()).unwrap_or_default()
    }
}
