//! Orders snapshots, hears how they go, and takes what comes.
#![expect(clippy::disallowed_methods, reason = "the edge where clock and randomness come in")]

use std::collections::BTreeSet;

use nkd_api::agent::{KubeadmAction, KubeadmState};
use nkd_api::facts::ETCD_SNAPSHOT;
use nkd_api::snapshot::{EtcdSnapshot, SnapshotProof, SnapshotState};
use time::OffsetDateTime;
use uuid::Uuid;

use super::turn::{self, Nobody};
use super::vault::{Vault, VaultError};
use crate::cluster::bringup::BringUpError;
use crate::cluster::part;
use crate::cluster::record::{MemberRecord, Record, Run};
use crate::machine::Selector;
use crate::service::Service;
use crate::store::StoreError;

/// Tries when two writers meet.
const TRIES: usize = 16;

/// What the service holds for snapshots.
pub struct Snapshots {
    /// Their files.
    pub vault: Vault,
    /// Held while a row and its run are written, and while rows are held against runs: the row comes first. Nobody waits for
    /// a cluster's answer with it. That a cluster has one at a time is what its revision is for.
    writing: tokio::sync::Mutex<()>,
}

impl Snapshots {
    /// With these files.
    #[must_use]
    pub fn new(vault: Vault) -> Self {
        Self { vault, writing: tokio::sync::Mutex::default() }
    }
}

/// None is taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// By nobody.
    #[error(transparent)]
    Nobody(#[from] Nobody),
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] BringUpError),
    /// Its file.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was not ordered of this node, or not any more.
    #[error("no snapshot with this identity is ordered of this node now")]
    NotOrdered,
}

/// Orders one of a control plane. `upgrade`: the one that it is for, by its number, and the round of its tries. Durable when
/// this returns.
///
/// # Errors
/// [`TakeError`]
pub async fn order(
    service: &Service,
    cluster: Uuid,
    upgrade: Option<(u32, u32)>,
    by: &str,
) -> Result<EtcdSnapshot, TakeError> {
    let store = service.registry.store();
    for _ in 0..TRIES {
        let (mut record, revision) = store.cluster(cluster).await?.ok_or(BringUpError::Over)?;
        let rows = store.snapshots(cluster).await?;
        let failed: Vec<String> = rows
            .iter()
            .take_while(|row| row.state == SnapshotState::Failed)
            .take(turn::TRIES)
            .map(|row| row.node.clone())
            .collect();
        let etcd = part::etcd(service, &record).await?;
        let members = etcd.health().await.map_err(BringUpError::from)?;
        let leader = etcd.leader().await.map_err(BringUpError::from)?;
        let index = turn::choose(&record, &able(service, &record).await?, &members, leader, &failed)?;
        let (now, id) = (OffsetDateTime::now_utc(), Uuid::now_v7());
        let member = &mut record.members[index];
        member.run = Some(Run { operation: id, action: KubeadmAction::Snapshot, ordered_at: now, ended_at: None });
        let node = member.hostname.clone();
        let row = EtcdSnapshot {
            id,
            cluster: record.name().to_owned(),
            upgrade: upgrade.map(|(number, _)| number),
            round: upgrade.map_or(0, |(_, round)| round),
            node: node.clone(),
            by: by.to_owned(),
            state: SnapshotState::Taking,
            detail: String::new(),
            ordered_at: now,
            heard_at: None,
            proof: None,
        };
        let said = format!("{node}: a snapshot of etcd is ordered");
        let _no_look = service.snapshots.writing.lock().await;
        store.add_snapshot(cluster, &row).await?;
        match store.save_cluster(&record, revision, &[said], by, now).await {
            Ok(_) => {
                service.orders.learn(&record);
                return Ok(row);
            }
            Err(StoreError::Stale) => store.delete_snapshot(id).await?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Stale.into())
}

/// The machines of a cluster whose agents know how.
async fn able(service: &Service, record: &Record) -> Result<BTreeSet<Uuid>, TakeError> {
    let mut able = BTreeSet::new();
    for id in record.members.iter().filter_map(|member| member.machine) {
        let machine = service.registry.find(&Selector::Id(id)).await.ok();
        let facts = machine.and_then(|machine| machine.facts);
        if facts.is_some_and(|facts| facts.can.iter().any(|word| word == ETCD_SNAPSHOT)) {
            able.insert(id);
        }
    }
    Ok(able)
}

/// Writes down that an upgrade could have none ordered in this round of its tries.
///
/// # Errors
/// [`StoreError`]
pub async fn not_ordered(
    service: &Service,
    record: &Record,
    (upgrade, round): (u32, u32),
    why: String,
) -> Result<(), StoreError> {
    let now = OffsetDateTime::now_utc();
    let row = EtcdSnapshot {
        id: Uuid::now_v7(),
        cluster: record.name().to_owned(),
        upgrade: Some(upgrade),
        round,
        node: String::new(),
        by: "service".to_owned(),
        state: SnapshotState::Failed,
        detail: why,
        ordered_at: now,
        heard_at: Some(now),
        proof: None,
    };
    service.registry.store().add_snapshot(record.id, &row).await
}

/// A node tells how its run goes.
///
/// # Errors
/// [`StoreError`]
pub async fn heard(service: &Service, cluster: Uuid, id: Uuid, progress: &KubeadmState) -> Result<(), StoreError> {
    let store = service.registry.store();
    let now = OffsetDateTime::now_utc();
    let row = store.snapshots(cluster).await?.into_iter().find(|row| row.id == id);
    if let Some(row) = row.filter(|row| row.state == SnapshotState::Taking) {
        store.change_snapshot(&turn::told(&row, progress, now)).await?;
    }
    service.upgrades.notify_one();
    Ok(())
}

/// The row of a run that is ordered of this machine, and its cluster. One that is verified is among them: its node may not
/// have heard that.
///
/// # Errors
/// [`TakeError`]
pub async fn expected(service: &Service, machine: Uuid, id: Uuid) -> Result<(Uuid, EtcdSnapshot), TakeError> {
    let store = service.registry.store();
    let clusters = store.clusters().await?;
    let of_it = clusters.iter().find_map(|(record, _)| Some((record.id, record.member_of(machine)?)));
    let (cluster, member) = of_it.ok_or(TakeError::NotOrdered)?;
    if !turn::under_way(member) || member.run.is_none_or(|run| run.operation != id) {
        return Err(TakeError::NotOrdered);
    }
    let row = store.snapshots(cluster).await?.into_iter().find(|row| row.id == id);
    let row = row.filter(|row| row.state != SnapshotState::Failed).ok_or(TakeError::NotOrdered)?;
    Ok((cluster, row))
}

/// What came is kept: the row says so, and older ones go.
///
/// # Errors
/// [`TakeError`]
pub async fn came(service: &Service, cluster: Uuid, row: &EtcdSnapshot, proof: SnapshotProof) -> Result<(), TakeError> {
    let store = service.registry.store();
    let now = OffsetDateTime::now_utc();
    let (state, detail) = (SnapshotState::Verified, String::new());
    let verified = EtcdSnapshot { state, detail, heard_at: Some(now), proof: Some(proof), ..row.clone() };
    if row.state == SnapshotState::Taking && !store.change_snapshot(&verified).await? {
        // Given up in this moment.
        service.snapshots.vault.remove(cluster, row.id)?;
        return Err(TakeError::NotOrdered);
    }
    service.upgrades.notify_one();
    let upgrade = store.newest_upgrade(cluster).await?.map(|(upgrade, _)| upgrade);
    let goes_on = upgrade.filter(|upgrade| !upgrade.state.is_end()).map(|upgrade| upgrade.number);
    for id in turn::surplus(&store.snapshots(cluster).await?, row.id, goes_on) {
        // The row first: a file without one goes at the next start.
        store.delete_snapshot(id).await?;
        service.snapshots.vault.remove(cluster, id)?;
    }
    Ok(())
}

/// Holds rows against runs: what is not taken any more has failed, and its run is over.
///
/// # Errors
/// [`TakeError`]
pub async fn look(service: &Service) -> Result<(), TakeError> {
    let _no_order = service.snapshots.writing.lock().await;
    let store = service.registry.store();
    for (cluster, mut row) in store.all_snapshots().await? {
        let now = OffsetDateTime::now_utc();
        if let Some(believed) = turn::set_back(&row, now) {
            store.change_snapshot(&believed).await?;
            row = believed;
        }
        match row.state {
            SnapshotState::Taking => {}
            SnapshotState::Verified if turn::lingers(&row, now) => {
                end(service, cluster, row.id, Vec::new()).await?;
                continue;
            }
            SnapshotState::Verified | SnapshotState::Failed => continue,
        }
        let found = store.cluster(cluster).await?;
        let record = found.as_ref().map(|(record, _)| record);
        let machine = record.and_then(|record| {
            record.members.iter().find(|m| m.run.is_some_and(|run| run.operation == row.id))?.machine
        });
        let seen = match machine {
            Some(id) => service.registry.find(&Selector::Id(id)).await.ok().map(|machine| machine.last_seen),
            None => None,
        };
        let Some(why) = turn::over(&row, record, seen, now) else { continue };
        let said = format!("{}: no snapshot of etcd is taken: {why}", row.node);
        if end(service, cluster, row.id, vec![said]).await? {
            let failed = EtcdSnapshot { state: SnapshotState::Failed, detail: why, heard_at: Some(now), ..row };
            store.change_snapshot(&failed).await?;
        }
    }
    Ok(())
}

/// Ends a run that is no more. False: somebody else has written the cluster; the next look does it.
async fn end(service: &Service, cluster: Uuid, id: Uuid, said: Vec<String>) -> Result<bool, TakeError> {
    let store = service.registry.store();
    let Some((mut record, revision)) = store.cluster(cluster).await? else { return Ok(true) };
    let now = OffsetDateTime::now_utc();
    let runs = |member: &&mut MemberRecord| member.run.is_some_and(|run| run.operation == id && run.ended_at.is_none());
    let Some(member) = record.members.iter_mut().find(runs) else { return Ok(true) };
    member.detail = None;
    if let Some(run) = member.run.as_mut() {
        run.ended_at = Some(now);
    }
    match store.save_cluster(&record, revision, &said, "service", now).await {
        Ok(_) => {
            service.orders.learn(&record);
            Ok(true)
        }
        Err(StoreError::Stale) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes files that no row speaks of.
///
/// # Errors
/// [`TakeError`]
pub async fn sweep(service: &Service) -> Result<(), TakeError> {
    let rows = service.registry.store().all_snapshots().await?;
    let known = rows.into_iter().filter(|(_, row)| row.state != SnapshotState::Failed);
    Ok(service.snapshots.vault.sweep(&known.map(|(cluster, row)| (cluster, row.id)).collect())?)
}
