//! The etcd of a cluster, by the JSON gateway of its v3 API (etcd 3.4 and later serve it on the client port).
//!
//! The client has a certificate of the cluster's etcd authority that was made for the occasion, and trusts nothing but
//! that authority. Numbers of 64 bits are text in the gateway's JSON (the JSON mapping of protocol buffers).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::{Certificate, Identity};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::pki::{ClusterPki, PkiError};
use super::quorum::MemberHealth;

/// Port of the client API on every control plane that kubeadm makes.
pub const CLIENT_PORT: u16 = 2379;
/// How long one request to one endpoint may take.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// Life of the client's certificate.
pub(super) const LIFE: time::Duration = time::Duration::hours(1);
/// Codes of gRPC after which another endpoint may fare better: deadline exceeded, unavailable.
const TRANSIENT: [i64; 2] = [4, 14];
/// gRPC: not found.
const NOT_FOUND: i64 = 5;

/// etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// The client's certificate could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The client could not be made.
    #[error("the client for the cluster's etcd cannot be made")]
    Client(#[source] reqwest::Error),
    /// Its keys cannot be used.
    #[error("the keys for the cluster's etcd cannot be used")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nobody to ask.
    #[error("no control plane has an address to ask its etcd at")]
    NoEndpoint,
    /// No answer, or a broken one.
    #[error(
        "{what}: etcd at {endpoint} cannot be reached; look at its pod with `crictl ps -a --name etcd` on that node"
    )]
    Unanswered {
        /// What was asked.
        what: &'static str,
        /// Whom.
        endpoint: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// etcd said no.
    #[error("{what}: etcd at {endpoint} says: {message}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Whom.
        endpoint: String,
        /// gRPC's code.
        code: i64,
        /// Its reason.
        message: String,
    },
    /// The answer is not what etcd answers.
    #[error("{what}: the answer of etcd at {endpoint} does not read")]
    Answer {
        /// What was asked.
        what: &'static str,
        /// Whom.
        endpoint: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl EtcdError {
    /// True when another endpoint may answer.
    fn is_transient(&self) -> bool {
        match self {
            Self::Unanswered { .. } => true,
            Self::Refused { code, .. } => TRANSIENT.contains(code),
            _ => false,
        }
    }
}

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdMember {
    /// Identity.
    pub id: u64,
    /// The node's name; empty when it was added and never started.
    pub name: String,
    /// Where the others reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// It does not vote yet.
    pub learner: bool,
}

impl EtcdMember {
    /// It was added, and has told nobody its name yet.
    #[must_use]
    pub fn never_started(&self) -> bool {
        self.name.is_empty()
    }

    /// True when the others are to reach it at this address.
    #[must_use]
    pub fn is_at(&self, address: IpAddr) -> bool {
        let socket = |url: &String| url.split("://").nth(1)?.trim_end_matches('/').parse::<SocketAddr>().ok();
        self.peer_urls.iter().filter_map(socket).any(|socket| socket.ip() == address)
    }

    /// True for the member of this node: by its name, or by its address when it has none yet.
    #[must_use]
    pub fn is_of(&self, hostname: &str, address: Option<IpAddr>) -> bool {
        self.name == hostname || (self.never_started() && address.is_some_and(|address| self.is_at(address)))
    }
}

/// A client of one cluster's etcd.
pub struct Etcd {
    http: reqwest::Client,
    endpoints: Vec<String>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Remove {
    #[serde(rename = "ID")]
    id: String,
}

#[derive(Deserialize)]
struct Members {
    #[serde(default)]
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(default, rename = "clientURLs")]
    client_urls: Vec<String>,
    #[serde(default, rename = "isLearner")]
    learner: bool,
}

#[derive(Deserialize)]
struct Status {
    header: Header,
    /// Left out when there is none.
    #[serde(default)]
    leader: String,
    #[serde(default)]
    errors: Vec<String>,
}

impl Status {
    fn has_leader(&self) -> bool {
        !matches!(self.leader.as_str(), "" | "0")
    }
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    member_id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    code: i64,
    error: String,
    message: String,
}

impl Etcd {
    /// A client of the etcd behind these endpoints, with a new certificate. Nothing is asked yet.
    pub fn connect(pki: &ClusterPki, endpoints: &[SocketAddr], now: OffsetDateTime) -> Result<Self, EtcdError> {
        if endpoints.is_empty() {
            return Err(EtcdError::NoEndpoint);
        }
        let client = pki.etcd_client("nkd", LIFE, now)?;
        let roots = Certificate::from_pem_bundle(client.ca.as_bytes()).map_err(EtcdError::Client)?;
        let identity = Identity::from_pem(client.chain_and_key.as_bytes()).map_err(EtcdError::Client)?;
        let http = reqwest::Client::builder()
            .tls_certs_only(roots)
            .identity(identity)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            // Clusters are on our own networks.
            .no_proxy()
            .timeout(LIMIT)
            .build()
            .map_err(EtcdError::Client)?;
        Ok(Self { http, endpoints: endpoints.iter().map(|address| format!("https://{address}")).collect() })
    }

    /// All members.
    pub async fn members(&self) -> Result<Vec<EtcdMember>, EtcdError> {
        let what = "list the members of etcd";
        let mut last = EtcdError::NoEndpoint;
        for endpoint in &self.endpoints {
            match self.ask::<Members>(what, endpoint, "cluster/member/list", &Empty {}).await {
                Ok(answer) => return answer.members.into_iter().map(|m| member(what, endpoint, m)).collect(),
                Err(error) if error.is_transient() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// True when the first endpoint says that it follows a leader, or is it.
    pub async fn has_leader(&self) -> Result<bool, EtcdError> {
        let endpoint = self.endpoints.first().ok_or(EtcdError::NoEndpoint)?;
        Ok(self.ask::<Status>("status", endpoint, "maintenance/status", &Empty {}).await?.has_leader())
    }

    /// The member that leads, by the first endpoint that answers.
    pub async fn leader(&self) -> Result<Option<u64>, EtcdError> {
        let mut last = EtcdError::NoEndpoint;
        for endpoint in &self.endpoints {
            match self.ask::<Status>("status", endpoint, "maintenance/status", &Empty {}).await {
                Ok(status) => return Ok(status.leader.parse().ok().filter(|leader| *leader != 0)),
                Err(error) if error.is_transient() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Asks the member itself: it answers, is the one that the others know, has no alarm, and follows a leader.
    ///
    /// # Errors
    /// What is wrong with it, in words for people.
    pub async fn healthy(&self, member: &EtcdMember) -> Result<(), String> {
        let mut last = "it was added and has not started yet".to_owned();
        for url in &member.client_urls {
            let endpoint = url.trim_end_matches('/');
            match self.ask::<Status>("status", endpoint, "maintenance/status", &Empty {}).await {
                Ok(status) => return judge(member, &status),
                Err(EtcdError::Refused { message, .. }) => last = format!("it says {message}"),
                Err(error) => {
                    // What exactly fails differs from try to try.
                    tracing::debug!(error = &error as &dyn std::error::Error, "a member of etcd does not answer");
                    last = format!("it does not answer at {endpoint}");
                }
            }
        }
        Err(last)
    }

    /// All members with their health, asked at the same time.
    pub async fn health(&self) -> Result<Vec<(EtcdMember, Result<(), String>)>, EtcdError> {
        let members = self.members().await?;
        let answers = futures_util::future::join_all(members.iter().map(|member| self.healthy(member))).await;
        Ok(members.into_iter().zip(answers).collect())
    }

    /// Removes a member. One that is gone is no error. The caller has asked [`super::quorum::may_remove`].
    pub async fn remove(&self, id: u64) -> Result<(), EtcdError> {
        let what = "remove a member of etcd";
        let mut last = EtcdError::NoEndpoint;
        for endpoint in &self.endpoints {
            let asked = Remove { id: id.to_string() };
            match self.ask::<serde_json::Value>(what, endpoint, "cluster/member/remove", &asked).await {
                Ok(_) | Err(EtcdError::Refused { code: NOT_FOUND, .. }) => return Ok(()),
                Err(error) if error.is_transient() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        what: &'static str,
        endpoint: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, EtcdError> {
        let unanswered = |source| EtcdError::Unanswered { what, endpoint: endpoint.to_owned(), source };
        let answer = self.http.post(format!("{endpoint}/v3/{path}")).json(body).send().await.map_err(unanswered)?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(unanswered)?;
        if status.is_success() {
            let bad = |source| EtcdError::Answer { what, endpoint: endpoint.to_owned(), source };
            return serde_json::from_slice(&bytes).map_err(bad);
        }
        let refusal: Refusal = serde_json::from_slice(&bytes).unwrap_or_default();
        let said = [refusal.message, refusal.error].into_iter().find(|text| !text.is_empty());
        let message = said.unwrap_or_else(|| status.to_string());
        Err(EtcdError::Refused { what, endpoint: endpoint.to_owned(), code: refusal.code, message })
    }
}

/// For the decision whether one may go.
#[must_use]
pub fn for_quorum(members: &[(EtcdMember, Result<(), String>)]) -> Vec<MemberHealth> {
    let one = |(member, health): &(EtcdMember, Result<(), String>)| MemberHealth {
        id: member.id,
        name: member.name.clone(),
        healthy: health.is_ok(),
        learner: member.learner,
    };
    members.iter().map(one).collect()
}

fn member(what: &'static str, endpoint: &str, member: Member) -> Result<EtcdMember, EtcdError> {
    let bad = |_| EtcdError::Answer {
        what,
        endpoint: endpoint.to_owned(),
        source: serde::de::Error::custom(format!("`{}` is no identity of a member", member.id)),
    };
    let id = member.id.parse().map_err(bad)?;
    let Member { name, peer_urls, client_urls, learner, .. } = member;
    Ok(EtcdMember { id, name, peer_urls, client_urls, learner })
}

fn judge(member: &EtcdMember, status: &Status) -> Result<(), String> {
    if status.header.member_id != member.id.to_string() {
        return Err(format!("another member answers in its place: {}", status.header.member_id));
    }
    if !status.errors.is_empty() {
        return Err(status.errors.join("; "));
    }
    if status.has_leader() { Ok(()) } else { Err("it has no leader".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_json_is_read_with_what_it_leaves_out() {
        let text = r#"{"header":{"cluster_id":"1"},"members":[{"ID":"18249187646912138824","name":"cp1",
            "peerURLs":["https://192.0.2.11:2380"],"clientURLs":["https://192.0.2.11:2379"]},
            {"ID":"2","peerURLs":["https://192.0.2.12:2380"],"isLearner":true}]}"#;
        let read: Members = serde_json::from_str(text).unwrap();
        let read: Vec<_> = read.members.into_iter().map(|m| member("list", "e", m).unwrap()).collect();
        assert_eq!((read[0].id, read[0].name.as_str(), read[0].learner), (18_249_187_646_912_138_824, "cp1", false));
        assert_eq!((read[1].id, read[1].client_urls.len(), read[1].learner), (2, 0, true));
        let bad =
            Member { id: "x".into(), name: String::new(), peer_urls: vec![], client_urls: vec![], learner: false };
        assert!(matches!(member("list", "e", bad), Err(EtcdError::Answer { .. })));
    }

    #[test]
    fn a_member_is_healthy_when_it_is_itself_and_follows_a_leader() {
        let member = EtcdMember { id: 7, name: "cp1".into(), peer_urls: vec![], client_urls: vec![], learner: false };
        let judged = |text: &str| judge(&member, &serde_json::from_str(text).unwrap());
        assert_eq!(judged(r#"{"header":{"member_id":"7"},"leader":"9"}"#), Ok(()));
        assert!(judged(r#"{"header":{"member_id":"7"}}"#).unwrap_err().contains("no leader"));
        assert!(judged(r#"{"header":{"member_id":"8"},"leader":"9"}"#).unwrap_err().contains("another member"));
        let alarm = r#"{"header":{"member_id":"7"},"leader":"9","errors":["memberID:7 alarm:NOSPACE "]}"#;
        assert!(judged(alarm).unwrap_err().contains("NOSPACE"));
    }
}
