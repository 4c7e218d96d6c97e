//! What a node is told and what it tells: the order of a run with everything that kubeadm needs, and how the run goes.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock and the network come in")]

use std::net::IpAddr;
use std::time::Duration;

use nkd_api::agent::{BALANCER_UNIT, KubeadmAction, KubeadmOrder, KubeadmState};
use nkd_api::cluster::{MemberState, Role, Source};
use time::OffsetDateTime;
use uuid::Uuid;

use super::bringup::BringUpError;
use super::etcd::EtcdMember;
use super::kubeadm::{self, KubeadmError, Node};
use super::pki::ClusterPki;
use super::record::{MemberRecord, Record, labels};
use super::snapshot::{self, turn};
use super::{balancer, etcd, part, plan, quorum, reach, recovery, renewal, runtime};
use crate::fleet::pki::NodeIdentity;
use crate::service::Service;
use crate::store::StoreError;

/// How long a manifest may take to arrive.
const FETCH: Duration = Duration::from_secs(60);
/// Life of a bootstrap token, in case that nobody can revoke it.
const TOKEN_LIFE: time::Duration = time::Duration::hours(1);
/// Tries when two writers meet.
const TRIES: usize = 16;

/// The text of a source.
pub(super) async fn text(source: &Source) -> Result<String, BringUpError> {
    let location = match source {
        Source::Inline { inline } => return Ok(inline.clone()),
        Source::Location(location) => location,
    };
    if !location.starts_with("http://") && !location.starts_with("https://") {
        return Err(BringUpError::Path(location.clone()));
    }
    let failed = |e: reqwest::Error| BringUpError::Fetch(location.clone(), e.into());
    let client = reqwest::Client::builder().timeout(FETCH).build().map_err(failed)?;
    let answer = client.get(location).send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
    answer.text().await.map_err(failed)
}

/// The certificates of a cluster.
pub async fn pki(service: &Service, record: &Record) -> Result<ClusterPki, BringUpError> {
    let document = service.registry.store().secret(&pki_name(record.id)).await?;
    Ok(ClusterPki::from_document(&document.ok_or(BringUpError::Missing("PKI"))?)?)
}

/// Name of a cluster's certificates in the store.
#[must_use]
pub fn pki_name(cluster: Uuid) -> String {
    format!("{}pki", prefix(cluster))
}

/// Beginning of the names of everything that the store keeps for a cluster under seal.
pub(super) fn prefix(cluster: Uuid) -> String {
    format!("cluster/{cluster}/")
}

/// Beginning of the names of its join tokens.
pub(super) fn token_prefix(cluster: Uuid) -> String {
    format!("{}join/", prefix(cluster))
}

pub(super) fn token_name(record: &Record, operation: Uuid) -> String {
    format!("{}{operation}", token_prefix(record.id))
}

/// Names of the tokens that somebody may ask for yet.
pub(super) fn live_tokens(record: &Record) -> Vec<String> {
    let joins = record.members.iter().filter_map(|m| m.run).filter(|run| run.action == KubeadmAction::Join);
    joins.filter(|run| run.ended_at.is_none()).map(|run| token_name(record, run.operation)).collect()
}

/// The member's machine as kubeadm sees it.
fn node(record: &Record, member: &MemberRecord) -> Result<Node, BringUpError> {
    let pool = record.cluster.spec.pools.iter().find(|pool| pool.name == member.pool);
    let labels = labels(&record.cluster, member);
    Ok(Node {
        hostname: member.hostname.clone(),
        address: member.address.ok_or(BringUpError::Missing("address"))?,
        role: member.role,
        pool: member.pool.clone(),
        labels,
        taints: pool.and_then(|pool| pool.taints.clone()),
    })
}

/// What the node that holds this certificate needs for its run of kubeadm. Keys leave the store only here: to the node of
/// a control plane, and only what kubeadm needs there. `local`: the address of ours that the node has reached.
pub async fn order(
    service: &Service,
    holder: NodeIdentity,
    operation: Uuid,
    local: IpAddr,
) -> Result<KubeadmOrder, BringUpError> {
    let store = service.registry.store();
    let clusters = store.clusters().await?;
    let (record, _) = clusters.iter().find(|(r, _)| r.member_of(holder.machine).is_some()).ok_or(BringUpError::Over)?;
    let member = record.member_of(holder.machine).ok_or(BringUpError::Over)?;
    let lost = member.leaving.is_some_and(|leaving| leaving.lost);
    let run = member.run.filter(|run| run.operation == operation && run.ended_at.is_none() && !lost);
    let run = run.ok_or(BringUpError::Over)?;
    let pki = pki(service, record).await?;
    let cluster = &record.cluster;
    let endpoint = record.node_endpoint()?;
    let own = node(record, member)?;
    let (config, skip_phases) = match run.action {
        KubeadmAction::Init => {
            let control_planes: Vec<Node> = record
                .members
                .iter()
                .filter(|m| m.role == Role::ControlPlane && m.address.is_some())
                .map(|m| node(record, m))
                .collect::<Result<_, _>>()?;
            let init = kubeadm::Init { endpoint: &endpoint, control_planes: &control_planes };
            (kubeadm::init(cluster, &own, &init)?, kubeadm::init_skip_phases(cluster))
        }
        KubeadmAction::Join => {
            service.orders.asks.asked(holder.machine, operation, OffsetDateTime::now_utc());
            let token = admit(service, record, member, operation).await?;
            let join = kubeadm::Join { endpoint: &endpoint, token: &token, ca_hash: &pki.ca_hash()? };
            (kubeadm::join(cluster, &own, &join)?, kubeadm::join_skip_phases(cluster))
        }
        KubeadmAction::Reset => (String::new(), Vec::new()),
        KubeadmAction::Renew => return renewal_order(record, member, operation),
        KubeadmAction::Recover | KubeadmAction::Snapshot => return Ok(bare(operation, run.action, String::new())),
    };
    let url = service.addresses.api_url(local);
    let with_own = runtime::with_own_registry(cluster, &url, service.pki.ca_pem());
    let closed = Some(url.as_str()).filter(|_| !service.anonymous_pull);
    let mut files = runtime::files(&with_own, cluster.spec.os.profile == "lab", closed)?;
    files.extend(runtime::system_images_ca(&url, service.pki.ca_pem()));
    if member.role == Role::ControlPlane && run.action != KubeadmAction::Reset {
        files.extend(pki.control_plane_files());
    }
    let mut restart = vec![runtime::unit(cluster).to_owned()];
    if let Some(file) = balancer::file(record, run.action, own.address, pki.ca_pem()).map_err(KubeadmError::from)? {
        files.push(file);
        restart.push(BALANCER_UNIT.to_owned());
    }
    let direct: Vec<String> = record.members.iter().filter_map(|m| m.address).map(|ip| ip.to_string()).collect();
    files.extend(runtime::proxy_drop_ins(cluster, &direct));
    let mut before = Vec::new();
    for script in &cluster.spec.hooks.before {
        before.push(text(script).await?);
    }
    Ok(KubeadmOrder {
        operation,
        issued_at: OffsetDateTime::now_utc(),
        action: run.action,
        config,
        skip_phases,
        ignore_preflight_errors: Vec::new(),
        files,
        restart,
        before,
    })
}

/// kubeadm renews by the configuration of `init`, so that it needs no API server: theirs may have ended.
fn renewal_order(record: &Record, member: &MemberRecord, operation: Uuid) -> Result<KubeadmOrder, BringUpError> {
    let endpoint = record.node_endpoint()?;
    let own = node(record, member)?;
    let init = kubeadm::Init { endpoint: &endpoint, control_planes: std::slice::from_ref(&own) };
    Ok(bare(operation, KubeadmAction::Renew, kubeadm::init(&record.cluster, &own, &init)?))
}

/// An order for a node that is made already.
fn bare(operation: Uuid, action: KubeadmAction, config: String) -> KubeadmOrder {
    KubeadmOrder {
        operation,
        issued_at: OffsetDateTime::now_utc(),
        action,
        config,
        skip_phases: Vec::new(),
        ignore_preflight_errors: Vec::new(),
        files: Vec::new(),
        restart: Vec::new(),
        before: Vec::new(),
    }
}

/// Lets a node join, now that nothing of a try before is in its way: gives its token, which is in the cluster then.
async fn admit(
    service: &Service,
    record: &Record,
    member: &MemberRecord,
    operation: Uuid,
) -> Result<String, BringUpError> {
    let store = service.registry.store();
    if let Some(by) = recovery::by(record) {
        return Err(BringUpError::Recovery(by.hostname.clone()));
    }
    let token = store.secret(&token_name(record, operation)).await?.ok_or(BringUpError::Missing("token"))?;
    let token = String::from_utf8_lossy(&token).into_owned();
    put_token(service, record, member, &token).await?;
    if member.role == Role::ControlPlane {
        forget_etcd(service, record, member).await?;
    }
    // A try that was cut off may have come as far as this, since the run was ordered.
    reach::reach(service, record).await?.1.forget_node(&member.hostname).await?;
    // From here on it may run, and a recovery may not be ordered before it has asked again.
    let _no_recovery = service.orders.asks.joins.lock().await;
    let (now, _) = store.cluster(record.id).await?.ok_or(BringUpError::Over)?;
    let machine = member.machine.ok_or(BringUpError::Over)?;
    let runs = now.member_of(machine).and_then(|m| m.run).filter(|run| run.operation == operation);
    runs.filter(|run| run.ended_at.is_none()).ok_or(BringUpError::Over)?;
    if let Some(by) = recovery::by(&now) {
        return Err(BringUpError::Recovery(by.hostname.clone()));
    }
    service.orders.asks.close(machine);
    Ok(token)
}

/// Takes out of etcd what a try of this node left there, before the node removes the data: an etcd that counts on a member
/// without data has no majority, and one that never started would not be added again. kubeadm does neither surely.
async fn forget_etcd(service: &Service, record: &Record, member: &MemberRecord) -> Result<(), BringUpError> {
    let etcd = part::etcd(service, record).await?;
    let is_left = |m: &EtcdMember| m.is_of(&member.hostname, member.address);
    if !etcd.members().await?.iter().any(is_left) {
        return Ok(());
    }
    let members = etcd.health().await?;
    for (left, _) in members.iter().filter(|(m, _)| is_left(m)) {
        quorum::may_remove(&etcd::for_quorum(&members), left.id)?;
        etcd.remove(left.id).await?;
        tracing::info!(node = member.hostname, "what a join before left in etcd is removed");
    }
    Ok(())
}

/// The token of a join is in the cluster from when its node asks for the order, not before: a node that was off for days
/// finds one that lives, and a service that is killed leaves none that nobody knows of.
async fn put_token(service: &Service, record: &Record, member: &MemberRecord, token: &str) -> Result<(), BringUpError> {
    let (id, secret) = token.split_once('.').ok_or(BringUpError::Missing("token"))?;
    let until = OffsetDateTime::now_utc() + TOKEN_LIFE;
    Ok(reach::reach(service, record).await?.1.put_token(id, secret, &member.hostname, until).await?)
}

/// A node tells how its run goes. Durable when this returns; told twice, it counts once.
pub async fn reported(
    service: &Service,
    machine: Uuid,
    operation: Uuid,
    progress: &KubeadmState,
) -> Result<(), BringUpError> {
    let store = service.registry.store();
    for _ in 0..TRIES {
        let now = OffsetDateTime::now_utc();
        let clusters = store.clusters().await?;
        let Some((mut record, revision)) = clusters.into_iter().find(|(r, _)| r.member_of(machine).is_some()) else {
            return Ok(());
        };
        let Some(index) = plan::member_of_operation(&record, operation) else { return Ok(()) };
        let generation = store.machine(machine).await?.map(|(machine, _)| machine.generation);
        let member = &mut record.members[index];
        if member.machine == Some(machine) && turn::under_way(member) {
            snapshot::take::heard(service, record.id, operation, progress).await?;
        }
        let Some(run) = member.run.as_mut().filter(|run| run.ended_at.is_none() && member.machine == Some(machine))
        else {
            return Ok(());
        };
        let mut said = Vec::new();
        match progress {
            _ if run.action == KubeadmAction::Renew => said = renewal::heard(member, progress, now),
            _ if run.action == KubeadmAction::Recover => said = recovery::heard(member, progress, now),
            _ if run.action == KubeadmAction::Snapshot => said = turn::heard(member, progress, now),
            KubeadmState::Running { step } => member.detail = Some(step.clone()),
            KubeadmState::Done => {
                run.ended_at = Some(now);
                (member.failures, member.detail) = (0, None);
                if run.action == KubeadmAction::Reset {
                    if let Some(leaving) = member.leaving.as_mut() {
                        leaving.reset = true;
                    }
                    said.push(format!("{}: kubeadm has undone its part", member.hostname));
                } else {
                    member.generation = generation;
                    if member.leaving.is_none() {
                        member.state = MemberState::Joined;
                    }
                    said.push(format!("{}: joined", member.hostname));
                }
            }
            KubeadmState::Failed { step, reason, .. } => {
                run.ended_at = Some(now);
                if member.leaving.is_none() {
                    member.state = MemberState::Failed;
                }
                member.failures += 1;
                member.detail = Some(format!("{step}: {reason}"));
                said.push(format!("{}: kubeadm failed at {step}: {reason}", member.hostname));
            }
        }
        match store.save_cluster(&record, revision, &said, "agent", now).await {
            Ok(_) => {
                service.orders.learn(&record);
                return Ok(());
            }
            Err(StoreError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Stale.into())
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::cluster;
    use super::super::record::Run;
    use super::*;

    #[test]
    fn a_token_lives_as_long_as_its_join_and_no_longer() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let mut record = Record::new(Uuid::nil(), cluster(1, 3), at);
        let runs = [(KubeadmAction::Init, None), (KubeadmAction::Join, None), (KubeadmAction::Join, Some(at))];
        for (number, ((action, ended_at), member)) in (1u128..).zip(runs.into_iter().zip(&mut record.members)) {
            member.run = Some(Run { operation: Uuid::from_u128(number), action, ordered_at: at, ended_at });
        }
        assert_eq!(live_tokens(&record), [token_name(&record, Uuid::from_u128(2))]);
        record.members.remove(1);
        assert_eq!(live_tokens(&record), Vec::<String>::new(), "its member has gone");
    }
}
