//! Who may restart, as it is kept: every decision is on the disk before it is told.
//!
//! A node of a cluster restarts by the lock or by an upgrade of the cluster, never by both. Each of the two looks for the
//! other within the write that begins it ([`Store::save_locks`], [`Store::begin_upgrade`]): of two that come at once, the
//! second sees the first.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nkd_api::cluster::Role;
use nkd_api::lock::Lease;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::lock::{Asker, Clusters, Node, Planes, Refused, Rollout, Rules};
use crate::cluster::record::{MemberRecord, Record};
use crate::content::channel::Channels;
use crate::store::{Store, StoreError};

/// The leases of a service.
#[derive(Debug)]
pub struct Reboots {
    store: Store,
    rules: Rules,
    /// One at a time decides.
    deciding: Mutex<()>,
}

impl Reboots {
    /// Of a service.
    #[must_use]
    pub fn new(store: Store, rules: Rules) -> Self {
        Self { store, rules, deciding: Mutex::new(()) }
    }

    /// A node asks for a lease. `channels` know what nodes call themselves.
    ///
    /// # Errors
    /// [`StoreError`]; inside, why it gets none.
    pub async fn lock(
        &self,
        asker: &Asker<'_>,
        channels: &Channels,
        now: OffsetDateTime,
    ) -> Result<Result<Lease, Refused>, StoreError> {
        let _deciding = self.deciding.lock().await;
        loop {
            let before = self.store.locks().await?;
            let is_new = !before.holds(asker.group, asker.id, now);
            let rollouts = if is_new { rollouts(&self.store, channels).await? } else { Vec::new() };
            let planes = if is_new { planes(&self.store, channels).await? } else { Vec::new() };
            let mut locks = before.clone();
            let clusters = Clusters { rollouts: &rollouts, planes: &planes };
            let decided = locks.lock(asker, clusters, &self.rules, now);
            if locks == before {
                return Ok(decided);
            }
            match self.store.save_locks(&locks, is_new.then_some(rollouts.as_slice())).await {
                Ok(()) => return Ok(decided),
                // An upgrade has begun in this moment, and it may be of the asker's cluster.
                Err(StoreError::Stale) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A lease ends. False: there was none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unlock(&self, group: &str, id: &str) -> Result<bool, StoreError> {
        let _deciding = self.deciding.lock().await;
        let mut locks = self.store.locks().await?;
        let held = locks.unlock(group, id);
        if held {
            self.store.save_locks(&locks, None).await?;
        }
        Ok(held)
    }

    /// The leases that last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, now: OffsetDateTime) -> Result<Vec<Lease>, StoreError> {
        Ok(self.store.locks().await?.lasting(now).cloned().collect())
    }
}

/// The upgrades that have not ended, with the nodes of their clusters.
async fn rollouts(store: &Store, channels: &Channels) -> Result<Vec<Rollout>, StoreError> {
    let mut rollouts = Vec::new();
    for upgrade in store.upgrades_under_way().await? {
        let (number, state) = (upgrade.number, upgrade.state);
        let nodes = match store.cluster_by_name(&upgrade.cluster).await? {
            Some((record, _)) => nodes(store, channels, &record).await?,
            // It was taken apart in this moment.
            None => Vec::new(),
        };
        rollouts.push(Rollout { cluster: upgrade.cluster, number, state, nodes });
    }
    Ok(rollouts)
}

/// The control planes of clusters that have several.
async fn planes(store: &Store, channels: &Channels) -> Result<Vec<Planes>, StoreError> {
    let mut planes = Vec::new();
    for (mut record, _) in store.clusters().await? {
        record.members.retain(|member| member.role == Role::ControlPlane);
        if record.members.len() > 1 {
            planes.push(Planes { cluster: record.name().to_owned(), nodes: nodes(store, channels, &record).await? });
        }
    }
    Ok(planes)
}

/// The nodes of a cluster, as far as a client of the lock can be told to be one of them.
///
/// # Errors
/// [`StoreError`].
pub async fn nodes(store: &Store, channels: &Channels, record: &Record) -> Result<Vec<Node>, StoreError> {
    let ids: Vec<_> = record.members.iter().filter_map(|member| member.machine).collect();
    let machines = store.machines_of(&ids).await?;
    let machines: BTreeMap<Uuid, Option<IpAddr>> =
        machines.iter().map(|machine| (machine.id, machine.address)).collect();
    let node = |member: &MemberRecord| {
        let seen_at = member.machine.and_then(|id| *machines.get(&id)?);
        let addresses: Vec<_> = member.address.into_iter().chain(seen_at).collect();
        let polls = addresses.iter().filter_map(|address| channels.last_poll(*address)?.node);
        Node { hostname: member.hostname.clone(), asks_as: polls.collect(), addresses }
    };
    Ok(record.members.iter().map(node).collect())
}
