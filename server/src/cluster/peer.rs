//! What one etcd says on the port of its peers.
//!
//! An etcd that was started without a majority answers no client at all until it has one. Its peers it tells at once whom
//! it knows: that is how a new member asks who is there (`/members`). A connection there speaks no HTTP/2 but gRPC's, and
//! ALPN has to stay away from it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use time::OffsetDateTime;

use super::etcd::{CLIENT_PORT, Etcd, EtcdError, EtcdMember, LIFE, LIMIT};
use super::pki::ClusterPki;

/// Port of the peers on every control plane that kubeadm makes.
const PEER_PORT: u16 = 2380;

/// What one etcd knows without asking another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdWord {
    /// It follows a leader, or is it. One that answers no clients has none since it was started.
    pub has_leader: bool,
    /// All members that it knows.
    pub members: Vec<EtcdMember>,
}

#[derive(Deserialize)]
struct Member {
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(default, rename = "clientURLs")]
    client_urls: Vec<String>,
    #[serde(default, rename = "isLearner")]
    learner: bool,
}

/// Asks the etcd at this address alone. It answers also when there is no majority.
pub async fn word(pki: &ClusterPki, address: IpAddr, now: OffsetDateTime) -> Result<EtcdWord, EtcdError> {
    let clients = Etcd::connect(pki, &[SocketAddr::new(address, CLIENT_PORT)], now)?;
    let (members, has_leader) = tokio::join!(members(pki, address, now), clients.has_leader());
    let has_leader = match has_leader {
        Err(EtcdError::Unanswered { .. }) => false,
        other => other?,
    };
    Ok(EtcdWord { has_leader, members: members? })
}

async fn members(pki: &ClusterPki, address: IpAddr, now: OffsetDateTime) -> Result<Vec<EtcdMember>, EtcdError> {
    let what = "ask one etcd for its members";
    let endpoint = format!("https://{}", SocketAddr::new(address, PEER_PORT));
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(pki, now)?)
        .https_only(true)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(LIMIT)
        .build()
        .map_err(EtcdError::Client)?;
    let unanswered = |source| EtcdError::Unanswered { what, endpoint: endpoint.clone(), source };
    let answer = client.get(format!("{endpoint}/members")).send().await.map_err(unanswered)?;
    let answer = answer.error_for_status().map_err(unanswered)?.bytes().await.map_err(unanswered)?;
    let bad = |source| EtcdError::Answer { what, endpoint: endpoint.clone(), source };
    let members: Vec<Member> = serde_json::from_slice(&answer).map_err(bad)?;
    let one =
        |Member { id, name, peer_urls, client_urls, learner }| EtcdMember { id, name, peer_urls, client_urls, learner };
    Ok(members.into_iter().map(one).collect())
}

/// As every client of etcd, and without ALPN.
fn tls(pki: &ClusterPki, now: OffsetDateTime) -> Result<ClientConfig, EtcdError> {
    let client = pki.etcd_client("nkd", LIFE, now)?;
    let (ca, own) = (client.ca.as_bytes(), client.chain_and_key.as_bytes());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(ca) {
        roots.add(authority.map_err(failed)?).map_err(failed)?;
    }
    let chain = CertificateDer::pem_slice_iter(own).collect::<Result<_, _>>().map_err(failed)?;
    let key = PrivateKeyDer::from_pem_slice(own).map_err(failed)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(failed)?;
    config.with_root_certificates(roots).with_client_auth_cert(chain, key).map_err(failed)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> EtcdError {
    EtcdError::Tls(error.into())
}
