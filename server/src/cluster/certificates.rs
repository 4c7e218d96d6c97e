//! The certificates of a cluster: what nodes tell of theirs is kept, all of them are shown, and renewals are asked for.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use nkd_api::agent::NodeCertificate;
use nkd_api::cluster::{ClusterCertificate, ClusterCertificates, Role};
use nkd_api::upgrade::Upgrade;
use time::OffsetDateTime;
use uuid::Uuid;

use super::bringup::BringUpError;
use super::pki::{ClusterPki, PkiError};
use super::record::{MemberRecord, Record};
use super::renewal::{self, KUBELET, Refused};
use super::{health, order};
use crate::service::Service;
use crate::store::StoreError;

/// Tries when two writers meet.
const TRIES: usize = 16;
/// More than kubeadm has ever made.
const MOST: usize = 64;
/// Longest name or subject that is kept, in bytes.
const LONGEST: usize = 256;

/// Nothing is renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to renew.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The cluster has gone meanwhile.
    #[error("the cluster is gone")]
    Gone,
}

/// A node tells its certificates. Durable when this returns.
pub async fn reported(
    service: &Service,
    machine: Uuid,
    mut certificates: Vec<NodeCertificate>,
    mut unreadable: Vec<String>,
) -> Result<(), BringUpError> {
    let store = service.registry.store();
    certificates.truncate(MOST);
    unreadable.truncate(MOST);
    for text in
        certificates.iter_mut().flat_map(|c| [&mut c.name, &mut c.subject, &mut c.serial]).chain(&mut unreadable)
    {
        text.truncate(text.floor_char_boundary(LONGEST));
    }
    for _ in 0..TRIES {
        let clusters = store.clusters().await?;
        let found = clusters.into_iter().find(|(r, _)| r.member_of(machine).is_some());
        let Some((mut record, revision)) = found else { return Ok(()) };
        let Some(member) = record.members.iter_mut().find(|m| m.machine == Some(machine)) else { return Ok(()) };
        if member.certificates == certificates && member.unreadable == unreadable {
            return Ok(());
        }
        let said: Vec<String> = changes(member, &certificates).into_iter().collect();
        member.certificates.clone_from(&certificates);
        member.unreadable.clone_from(&unreadable);
        match store.save_cluster(&record, revision, &said, "agent", OffsetDateTime::now_utc()).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Stale.into())
}

/// Certificates that took the place of others: somebody renewed them.
fn changes(member: &MemberRecord, new: &[NodeCertificate]) -> Option<String> {
    let old = |name: &str| member.certificates.iter().find(|old| old.name == name);
    let changed: Vec<&str> = new
        .iter()
        .filter(|new| old(&new.name).is_some_and(|old| old.serial != new.serial))
        .map(|new| new.name.as_str())
        .collect();
    (!changed.is_empty()).then(|| format!("{} has new certificates: {}", member.hostname, changed.join(", ")))
}

/// All certificates of a cluster.
pub async fn view(service: &Service, record: &Record) -> Result<ClusterCertificates, BringUpError> {
    let pki = order::pki(service, record).await?;
    let upgrade = service.registry.store().newest_upgrade(record.id).await?.map(|(upgrade, _)| upgrade);
    Ok(shown(record, &pki, upgrade.as_ref(), OffsetDateTime::now_utc())?)
}

/// All certificates of a cluster, by what is known now. `upgrade`: its newest.
pub fn shown(
    record: &Record,
    pki: &ClusterPki,
    upgrade: Option<&Upgrade>,
    now: OffsetDateTime,
) -> Result<ClusterCertificates, PkiError> {
    let mut certificates = Vec::new();
    for expiry in pki.expiries(now)? {
        certificates.push(ClusterCertificate {
            node: None,
            name: expiry.name.to_owned(),
            subject: expiry.subject,
            serial: expiry.serial,
            not_after: expiry.not_after,
            days_left: days(expiry.left),
            renewed_from: None,
        });
    }
    for member in &record.members {
        certificates.extend(member.certificates.iter().map(|c| ClusterCertificate {
            node: Some(member.hostname.clone()),
            name: c.name.clone(),
            subject: c.subject.clone(),
            serial: c.serial.clone(),
            not_after: c.not_after,
            days_left: days(c.not_after - now),
            renewed_from:
                (member.role == Role::ControlPlane && c.name != KUBELET).then(|| health::due(c.since, c.not_after)),
        }));
    }
    let unreadable = |m: &MemberRecord| m.unreadable.iter().map(|u| format!("{}: {u}", m.hostname)).collect::<Vec<_>>();
    Ok(ClusterCertificates {
        certificates,
        renewals: renewal::view(record, upgrade, now),
        unreadable: record.members.iter().flat_map(unreadable).collect(),
    })
}

/// Whole days, rounded down.
fn days(left: time::Duration) -> i64 {
    left.whole_seconds().div_euclid(86_400)
}

/// An operator asks for new certificates. Durable when this returns.
pub async fn renew(service: &Service, cluster: &str, node: Option<&str>, who: &str) -> Result<Record, RenewError> {
    let store = service.registry.store();
    for _ in 0..TRIES {
        let now = OffsetDateTime::now_utc();
        let (mut record, revision) = store.cluster_by_name(cluster).await?.ok_or(RenewError::Gone)?;
        let said = renewal::request(&mut record, node, now)?;
        if said.is_empty() {
            return Ok(record);
        }
        match store.save_cluster(&record, revision, &said, who, now).await {
            Ok(_) => return Ok(record),
            Err(StoreError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Stale.into())
}
