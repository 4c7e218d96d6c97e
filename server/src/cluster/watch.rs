//! One look at a cluster: everything that [`super::health`] judges, asked at the same time, each within its own bound.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use nkd_api::agent::KubeadmAction;
use nkd_api::cluster::{API_PORT, Health, MemberState, Role};
use time::OffsetDateTime;
use uuid::Uuid;

use super::etcd::{CLIENT_PORT, Etcd};
use super::health::{CertificateSeen, EtcdSeen, Expected, NodeSeen, Observed, OperatorSeen, PodSeen, Pulses, Told};
use super::kubernetes::Cluster as Api;
use super::pki::{Access, ClusterPki, NamedEndpoint, PkiError};
use super::quorum::MemberHealth;
use super::record::{Record, is_in};
use super::{recovery, renewal};

/// What is remembered between two looks, and forgotten with the service.
#[derive(Debug, Default)]
pub struct Watches(Mutex<HashMap<Uuid, Watched>>);

#[derive(Debug)]
struct Watched {
    told: Told,
    pulses: Pulses,
}

impl Watches {
    /// Hears how a cluster is now; an event when there is one to write.
    pub(super) fn hear(&self, record: &Record, health: &Health, now: OffsetDateTime) -> Option<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched(&mut all, record).told.hear(health, now)
    }

    /// Nodes whose kubelets have renewed nothing for a while, by the clock of the service.
    fn silent(&self, record: &Record, beats: &BTreeMap<String, String>, now: OffsetDateTime) -> BTreeSet<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched(&mut all, record).pulses.hear(beats, now)
    }

    /// Forgets clusters that are gone.
    pub(super) fn keep(&self, clusters: &[Uuid]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|cluster, _| clusters.contains(cluster));
    }
}

fn watched<'a>(all: &'a mut HashMap<Uuid, Watched>, record: &Record) -> &'a mut Watched {
    let new = || Watched { told: Told::of(&record.health), pulses: Pulses::default() };
    all.entry(record.id).or_insert_with(new)
}

/// Everything that can be seen of a cluster, given what its API said of the nodes.
pub(super) async fn observe(
    watches: &Watches,
    record: &Record,
    pki: &ClusterPki,
    api: &Api,
    nodes: Result<Vec<NodeSeen>, String>,
    now: OffsetDateTime,
) -> Result<Observed, PkiError> {
    let settled = |state| is_in(state) && state != MemberState::Leaving;
    let expected: Vec<Expected> = record
        .members
        .iter()
        .filter(|m| settled(m.state))
        .map(|m| Expected {
            name: m.hostname.clone(),
            role: m.role,
            address: m.address,
            since: m.run.filter(|run| is_making(run.action)).and_then(|run| run.ended_at),
        })
        .collect();
    let (pods, etcd, not_ready, beats, operator) = match &nodes {
        // Without the API it takes longer, and what it would tell is not shown.
        Err(_) => (None, None, Vec::new(), None, None),
        Ok(_) => tokio::join!(
            pods(api),
            etcd(pki, &expected, now),
            not_ready(pki, record.name(), &expected, now),
            beats(api),
            operator(record, api)
        ),
    };
    Ok(Observed {
        cluster: record.name().to_owned(),
        nodes,
        known_cause: recovery::reason(record),
        known: record.members.iter().map(|m| m.hostname.clone()).collect(),
        pods,
        etcd,
        not_ready,
        silent: beats.map(|beats| watches.silent(record, &beats, now)).unwrap_or_default(),
        certificates: certificates(record, pki, now)?,
        operator,
        more: renewal::reasons(record, now).into_iter().chain(unreadable(record)).collect(),
        expected,
    })
}

/// True for a run that makes a node.
fn is_making(action: KubeadmAction) -> bool {
    !matches!(action, KubeadmAction::Renew | KubeadmAction::Recover | KubeadmAction::Snapshot)
}

async fn beats(api: &Api) -> Option<BTreeMap<String, String>> {
    let answer = api.heartbeats().await;
    answer.inspect_err(|e| tracing::debug!(error = e as &dyn std::error::Error, "leases cannot be listed")).ok()
}

async fn operator(record: &Record, api: &Api) -> Option<OperatorSeen> {
    if !record.cluster.spec.housekeeper.enabled {
        return None;
    }
    let answer = api.operator().await;
    answer.inspect_err(|e| tracing::debug!(error = e as &dyn std::error::Error, "the operator cannot be seen")).ok()?
}

async fn pods(api: &Api) -> Option<Vec<PodSeen>> {
    let answer = api.control_plane_pods().await;
    answer.inspect_err(|e| tracing::debug!(error = e as &dyn std::error::Error, "pods cannot be listed")).ok()
}

fn control_planes(expected: &[Expected], port: u16) -> impl Iterator<Item = (&str, SocketAddr)> {
    let address = move |e: &Expected| e.address.map(|ip| SocketAddr::new(ip, port));
    let of = expected.iter().filter(|e| e.role == Role::ControlPlane);
    of.filter_map(move |e| address(e).map(|address| (e.name.as_str(), address)))
}

async fn etcd(pki: &ClusterPki, expected: &[Expected], now: OffsetDateTime) -> Option<Vec<EtcdSeen>> {
    let endpoints: Vec<SocketAddr> = control_planes(expected, CLIENT_PORT).map(|(_, address)| address).collect();
    let answer = match Etcd::connect(pki, &endpoints, now) {
        Ok(etcd) => etcd.health().await,
        Err(error) => Err(error),
    };
    let members = answer
        .inspect_err(|e| tracing::debug!(error = e as &dyn std::error::Error, "the members of etcd cannot be listed"))
        .ok()?;
    let seen = members.into_iter().map(|(member, health)| EtcdSeen {
        member: MemberHealth { id: member.id, name: member.name, healthy: health.is_ok(), learner: member.learner },
        cause: health.err(),
    });
    Some(seen.collect())
}

/// Control planes whose own API server does not answer `ok` to /readyz.
async fn not_ready(pki: &ClusterPki, cluster: &str, expected: &[Expected], now: OffsetDateTime) -> Vec<String> {
    let ask = |(name, address): (&str, SocketAddr)| {
        let endpoints = [NamedEndpoint { name: name.to_owned(), address: address.to_string() }];
        let lifetime = time::Duration::hours(1);
        let access =
            Access { cluster, endpoints: &endpoints, current: 0, user: "nkd", group: "system:masters", lifetime };
        let (name, config) = (name.to_owned(), pki.kubeconfig(&access, now));
        async move {
            let ready = match config {
                Ok(config) => match Api::connect(&config).await {
                    Ok(api) => api.ready().await.is_ok(),
                    Err(_) => false,
                },
                Err(_) => false,
            };
            (!ready).then_some(name)
        }
    };
    let answers = futures_util::future::join_all(control_planes(expected, API_PORT).map(ask)).await;
    answers.into_iter().flatten().collect()
}

/// The service's own authorities, and what the nodes have told.
fn certificates(record: &Record, pki: &ClusterPki, now: OffsetDateTime) -> Result<Vec<CertificateSeen>, PkiError> {
    let mut all = Vec::new();
    for expiry in pki.expiries(now)? {
        let since = expiry.not_before;
        all.push(CertificateSeen { name: expiry.name.into(), node: None, since, not_after: expiry.not_after });
    }
    for member in record.members.iter().filter(|m| is_in(m.state)) {
        all.extend(member.certificates.iter().map(|c| CertificateSeen {
            name: c.name.clone(),
            node: Some(member.hostname.clone()),
            since: c.since,
            not_after: c.not_after,
        }));
    }
    Ok(all)
}

fn unreadable(record: &Record) -> impl Iterator<Item = String> {
    let one = |host: &str, name: &String| {
        format!(
            "the certificate {name} of {host} is there and does not read: see `kubeadm certs check-expiration` there"
        )
    };
    let members = record.members.iter().filter(|m| is_in(m.state));
    members.flat_map(move |m| m.unreadable.iter().map(move |name| one(&m.hostname, name)))
}
