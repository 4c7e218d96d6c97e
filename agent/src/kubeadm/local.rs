//! Asks this node's own API server and etcd, which have to show exactly the certificate that is on the disk.
#![expect(clippy::disallowed_methods, reason = "reads the administrator's access and speaks to the node's own servers")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::certificates::embedded;

/// How long a connection, and each step on it, may take.
const LIMIT: Duration = Duration::from_secs(10);
/// More than any answer that is asked for here.
const LONGEST: u64 = 16 << 20;

/// The client port of etcd.
const ETCD: u16 = 2379;

/// A GET as administrator; the body of a 200. `port`: of the API server.
///
/// # Errors
/// In one sentence: it does not answer, shows another certificate, or says no.
pub(super) fn get(kubernetes: &Path, port: u16, path: &str) -> Result<Vec<u8>, String> {
    let admin = read(kubernetes, "admin.conf")?;
    let part = |name| embedded(&admin, name).ok_or_else(|| unreadable(kubernetes, "admin.conf"));
    let (certificate, key) = (part("client-certificate-data")?, part("client-key-data")?);
    let config = client(kubernetes, "pki/apiserver.crt", ("admin.conf", &certificate, &key))?;
    // HTTP 1.0: one answer, in one piece, to the end of the connection.
    let question = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
    ask("the API server", config, &loopback(port), path, &question)
}

/// A GET of etcd's peer port at this address of the node, which answers also without a majority; the body of a 200.
///
/// # Errors
/// As [`get`].
pub(super) fn peer(kubernetes: &Path, address: SocketAddr, path: &str) -> Result<Vec<u8>, String> {
    let config = etcd_client(kubernetes, "pki/etcd/peer.crt")?;
    ask("etcd", config, &[address], path, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"))
}

fn etcd_client(kubernetes: &Path, server: &str) -> Result<ClientConfig, String> {
    let name = "pki/etcd/healthcheck-client.crt";
    let certificate = read(kubernetes, name)?;
    let key = read(kubernetes, "pki/etcd/healthcheck-client.key")?;
    client(kubernetes, server, (name, &certificate, &key))
}

fn loopback(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))]
}

/// A question without arguments to the JSON gateway of etcd, `maintenance/status`; the body of a 200.
///
/// # Errors
/// As [`get`].
pub(super) fn etcd(kubernetes: &Path, path: &str) -> Result<Vec<u8>, String> {
    let config = etcd_client(kubernetes, "pki/etcd/server.crt")?;
    let head = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 2";
    ask("etcd", config, &loopback(ETCD), path, &format!("POST /v3/{path} HTTP/1.0\r\n{head}\r\n\r\n{{}}"))
}

fn ask(who: &str, config: ClientConfig, at: &[SocketAddr], path: &str, question: &str) -> Result<Vec<u8>, String> {
    let port = at.first().map_or(0, SocketAddr::port);
    let socket = at.iter().find_map(|address| TcpStream::connect_timeout(address, LIMIT).ok());
    let socket = socket.ok_or_else(|| format!("nobody listens on port {port}"))?;
    let said = |error: std::io::Error| format!("{who} on port {port}: {error}");
    socket.set_read_timeout(Some(LIMIT)).and_then(|()| socket.set_write_timeout(Some(LIMIT))).map_err(said)?;
    let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(question.as_bytes()).map_err(said)?;
    let mut answer = Vec::new();
    match stream.take(LONGEST).read_to_end(&mut answer) {
        // Go closes the connection without a word.
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(said(error)),
        _ => {}
    }
    body(&answer).map_err(|reason| format!("{path}: {reason}"))
}

fn body(answer: &[u8]) -> Result<Vec<u8>, String> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or("the answer broke off")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(answer[end + 4..].to_vec()),
        _ => Err(head.lines().next().unwrap_or_default().to_owned()),
    }
}

fn read(kubernetes: &Path, name: &str) -> Result<String, String> {
    let path = kubernetes.join(name);
    std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}

fn unreadable(kubernetes: &Path, name: &str) -> String {
    format!("{}: it does not read", kubernetes.join(name).display())
}

/// An access (where it is from, certificates, key), and no trust but in the server's own certificate.
fn client(kubernetes: &Path, server: &str, access: (&str, &str, &str)) -> Result<ClientConfig, String> {
    let (from, certificate, key) = access;
    let shown = read(kubernetes, server)?;
    let server = CertificateDer::from_pem_slice(shown.as_bytes()).map_err(|_| unreadable(kubernetes, server))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    let chain = chain.map_err(|_| unreadable(kubernetes, from))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| unreadable(kubernetes, from))?;
    let provider = Arc::new(default_provider());
    let verifier = Arc::new(Exactly { server, provider: provider.clone() });
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(|error| format!("{from}: {error}"))
}

/// Takes one certificate and no other, whatever its dates: it is the one on this disk.
#[derive(Debug)]
struct Exactly {
    server: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.server {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("it shows another certificate than the one on the disk".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_200_has_a_body() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{}").unwrap(), b"{}");
        assert_eq!(body(b"HTTP/1.0 401 Unauthorized\r\n\r\n{}").unwrap_err(), "HTTP/1.0 401 Unauthorized");
        assert!(body(b"HTTP/1.0 200 OK\r\n").unwrap_err().contains("broke off"));
    }
}
