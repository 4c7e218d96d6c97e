//! What comes before an upgrade is told to its cluster: a snapshot of etcd that was proven, and the end of what restarts its
//! control planes already.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use nkd_api::snapshot::SnapshotState;
use nkd_api::upgrade::{Upgrade, UpgradeSnapshot, UpgradeState};
use time::OffsetDateTime;

use super::beside;
use super::follow::UpgradeError;
use crate::cluster::record::Record;
use crate::cluster::snapshot::take::{self, TakeError};
use crate::cluster::snapshot::turn::{self, Gate, Nobody};
use crate::service::Service;
use crate::store::StoreError;

/// The upgrade as it stands before its cluster is told; none: nothing is left to be done before.
pub(super) async fn prepare(
    service: &Service,
    record: &Record,
    upgrade: &Upgrade,
) -> Result<Option<Upgrade>, UpgradeError> {
    let Some(wanted) = upgrade.snapshot.as_ref().filter(|wanted| !wanted.is_taken()) else { return Ok(None) };
    if upgrade.aborted {
        let detail = "it was called off before its cluster was told: nothing has changed".to_owned();
        return Ok(Some(Upgrade { state: UpgradeState::Aborted, detail, ..upgrade.clone() }));
    }
    let store = service.registry.store();
    let of = (upgrade.number, wanted.round);
    let mut rows = store.snapshots(record.id).await?;
    rows.retain(|row| row.upgrade == Some(upgrade.number));
    let mut newest = rows.iter().find(|row| row.state == SnapshotState::Verified).or(rows.first()).cloned();
    let preparing = UpgradeState::Preparing;
    let (state, detail) = match turn::gate(&rows, wanted.round, OffsetDateTime::now_utc()) {
        Gate::Open => (preparing, String::new()),
        Gate::Wait(why) => (preparing, why),
        Gate::Halt(why) => (UpgradeState::Halted, why),
        Gate::Order => match take::order(service, record.id, Some(of), &upgrade.by).await {
            Ok(row) => {
                let detail = format!("{} takes a snapshot of etcd: ordered", row.node);
                newest = Some(row);
                (preparing, detail)
            }
            Err(TakeError::Nobody(Nobody::Now(why))) => (preparing, format!("a snapshot of etcd waits: {why}")),
            Err(TakeError::Store(StoreError::Stale)) => return Ok(Some(upgrade.clone())),
            Err(TakeError::Store(error)) => return Err(error.into()),
            Err(error) => {
                take::not_ordered(service, record, of, crate::http::chain(&error)).await?;
                // The next look says it.
                return Ok(Some(upgrade.clone()));
            }
        },
    };
    let snapshot = Some(UpgradeSnapshot { newest, ..wanted.clone() });
    Ok(Some(Upgrade { state, detail, snapshot, ..upgrade.clone() }))
}

/// Why the cluster is not told yet. None: it may be, and whoever has looked at the cluster before this begins no other work on
/// its control planes: the cluster is written down anew, so that what rests on an older look is stale.
pub(super) async fn held(service: &Service, record: &Record) -> Result<Option<String>, UpgradeError> {
    let store = service.registry.store();
    loop {
        let Some((record, revision)) = store.cluster(record.id).await? else { return Ok(None) };
        if let Some(why) = beside::waits(&record) {
            return Ok(Some(format!("waits: {why}")));
        }
        match store.save_cluster(&record, revision, &[], "service", OffsetDateTime::now_utc()).await {
            Ok(_) => return Ok(None),
            Err(StoreError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
