//! Which of a cluster's API servers answers now.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::net::SocketAddr;
use std::time::Duration;

use nkd_api::cluster::{API_PORT, Role};
use time::OffsetDateTime;

use super::bringup::BringUpError;
use super::kubernetes::Cluster as Api;
use super::order::pki;
use super::pki::{Access, ClusterPki, NamedEndpoint};
use super::record::Record;
use crate::service::Service;

/// How long an answer is waited for, when there are several to ask.
const LIMIT: Duration = Duration::from_secs(5);
/// Each one is asked so much later than the one before: the first that answers is nearly always the first that can.
const STAGGER: Duration = Duration::from_millis(250);
/// Life of the service's own access to a cluster.
const ACCESS_LIFE: time::Duration = time::Duration::hours(1);

/// The service's client of a cluster, and the index of the endpoint that it uses: the first that answers. With one
/// endpoint, or when none answers, the first one: what is asked of it tells why not.
pub async fn reach(service: &Service, record: &Record) -> Result<(usize, Api), BringUpError> {
    let pki = pki(service, record).await?;
    let endpoints = record.endpoints();
    if endpoints.is_empty() {
        return Err(BringUpError::Missing("endpoint"));
    }
    if endpoints.len() > 1 {
        let answers = (0..endpoints.len()).map(|index| Box::pin(answering(&pki, record, &endpoints, index)));
        let first = tokio::time::timeout(LIMIT, futures_util::future::select_ok(answers)).await;
        if let Ok(Ok((found, _))) = first {
            return Ok(found);
        }
    }
    Ok((0, connect(&pki, record, &endpoints, 0).await?))
}

/// The service's clients of the API servers of all control planes, each at its own address, whatever stands before them. Nothing
/// is asked yet.
pub async fn each(service: &Service, record: &Record) -> Result<Vec<(String, Api)>, BringUpError> {
    let pki = pki(service, record).await?;
    let planes = record.members.iter().filter(|member| member.role == Role::ControlPlane);
    let own = |ip| SocketAddr::new(ip, API_PORT).to_string();
    let endpoints = planes.filter_map(|m| Some(NamedEndpoint { name: m.hostname.clone(), address: own(m.address?) }));
    let endpoints: Vec<NamedEndpoint> = endpoints.collect();
    let mut all = Vec::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        all.push((endpoint.name.clone(), connect(&pki, record, &endpoints, index).await?));
    }
    Ok(all)
}

async fn answering(
    pki: &ClusterPki,
    record: &Record,
    endpoints: &[NamedEndpoint],
    index: usize,
) -> Result<(usize, Api), BringUpError> {
    tokio::time::sleep(STAGGER * u32::try_from(index).unwrap_or(u32::MAX)).await;
    let api = connect(pki, record, endpoints, index).await?;
    api.ready().await?;
    Ok((index, api))
}

async fn connect(
    pki: &ClusterPki,
    record: &Record,
    endpoints: &[NamedEndpoint],
    current: usize,
) -> Result<Api, BringUpError> {
    let (cluster, user, group) = (record.name(), "nkd", "system:masters");
    let access = Access { cluster, endpoints, current, user, group, lifetime: ACCESS_LIFE };
    Ok(Api::connect(&pki.kubeconfig(&access, OffsetDateTime::now_utc())?).await?)
}
