//! The I/O of leaving: pods, etcd, node, machine, record. Every piece may be done twice.
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::net::SocketAddr;

use nkd_api::cluster::{MemberState, Role};
use time::OffsetDateTime;
use uuid::Uuid;

use super::bringup::{BringUpError, Work};
use super::etcd::{self, Etcd, EtcdMember};
use super::kubernetes::Cluster as Api;
use super::order::{pki, prefix};
use super::quorum::MemberHealth;
use super::record::{Leaving, MemberRecord, Record, Then, is_in};
use super::{change, leave, quorum, spared};
use crate::machine::RegistryError;
use crate::machine::lifecycle::Input;
use crate::service::Service;
use crate::store::{RowEffects, StoreError, Supersede};

/// So many pods are named when a node is drained.
const NAMED: usize = 3;

/// The etcd of a cluster, behind its control planes that are in.
pub(super) async fn etcd(service: &Service, record: &Record) -> Result<Etcd, BringUpError> {
    let pki = pki(service, record).await?;
    let members = record.members.iter().filter(|m| m.role == Role::ControlPlane && is_in(m.state));
    // Those that stay first: they answer.
    let (stay, go): (Vec<_>, Vec<_>) = members.partition(|m| m.leaving.is_none());
    let addresses = stay.into_iter().chain(go).filter_map(|m| m.address);
    let endpoints: Vec<SocketAddr> = addresses.map(|ip| SocketAddr::new(ip, etcd::CLIENT_PORT)).collect();
    Ok(Etcd::connect(&pki, &endpoints, OffsetDateTime::now_utc())?)
}

/// What etcd is asked about one of its members.
type MayIt = fn(&[MemberHealth], u64) -> Result<(), quorum::Why>;

/// Why etcd's member on this control plane has to stay, as etcd is now. None: it may go, or is gone.
async fn has_to_stay(service: &Service, record: &Record, plane: &MemberRecord, may: MayIt) -> Option<String> {
    let asked = async {
        let members = etcd(service, record).await?.health().await?;
        let is_own = |(member, _): &&(EtcdMember, _)| member.is_of(&plane.hostname, plane.address);
        let own = members.iter().find(is_own).map(|(member, _)| member.id);
        Ok::<_, BringUpError>(own.map(|id| may(&etcd::for_quorum(&members), id)))
    };
    match asked.await {
        // It is not among them: it has left already.
        Ok(None | Some(Ok(()))) => None,
        Ok(Some(Err(why))) => Some(why.to_string()),
        Err(error) => Some(crate::http::chain(&error)),
    }
}

/// Why this machine must not be installed again now. None: it may be; in most cases it is in no cluster.
///
/// # Errors
/// The store.
pub async fn may_be_spared(service: &Service, machine: Uuid) -> Result<Option<spared::Why>, StoreError> {
    let store = service.registry.store();
    for (record, _) in store.clusters().await? {
        let Some(index) = record.members.iter().position(|member| member.machine == Some(machine)) else { continue };
        let upgrade = store.newest_upgrade(record.id).await?.map(|(upgrade, _)| upgrade);
        let etcd = match spared::asks_etcd(&record, index) {
            true => has_to_stay(service, &record, &record.members[index], quorum::may_be_lost).await,
            false => None,
        };
        if let Err(why) = spared::may_go(&record, index, upgrade.as_ref(), etcd.as_deref()) {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

impl Work {
    /// Why the control plane whose turn it is must not leave etcd now.
    pub(super) async fn quorum(&self) -> Option<String> {
        let index = leave::next_control_plane(&self.record)?;
        has_to_stay(&self.service, &self.record, &self.record.members[index], quorum::may_remove).await
    }

    /// The machine holds another system than the one that joined.
    pub(super) async fn lose(&mut self, index: usize) -> Result<(), BringUpError> {
        let member = &mut self.record.members[index];
        change::leave(member, Leaving::new(OffsetDateTime::now_utc(), true, Then::SameMachine));
        let said = format!("{}: its machine was installed anew, and it joins again", member.hostname);
        Ok(self.save(vec![said]).await?)
    }

    /// One round of moving pods.
    pub(super) async fn drain(&mut self, index: usize, api: &Api) -> Result<(), BringUpError> {
        let hostname = self.record.members[index].hostname.clone();
        let left = api.drain(&hostname).await?;
        let member = &mut self.record.members[index];
        if left.is_empty() {
            if let Some(leaving) = member.leaving.as_mut() {
                leaving.drained = true;
            }
            member.detail = None;
            return Ok(self.save(vec![format!("{hostname}: its pods are elsewhere")]).await?);
        }
        let more = left.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let detail =
            format!("its pods are moved: {}{more}", left.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", "));
        if member.detail.as_ref() != Some(&detail) {
            member.detail = Some(detail);
            self.save(Vec::new()).await?;
        }
        Ok(())
    }

    /// The last of leaving: everybody forgets it.
    pub(super) async fn part(&mut self, index: usize, api: Option<&Api>) -> Result<(), BringUpError> {
        let member = self.record.members[index].clone();
        let Some(leaving) = member.leaving else { return Ok(()) };
        if let (Some(api), false) = (api, self.record.destroying) {
            if member.role == Role::ControlPlane && leave::leaves_etcd(&member) {
                let etcd = etcd(&self.service, &self.record).await?;
                let members = etcd.members().await?;
                for left in members.iter().filter(|m| m.is_of(&member.hostname, member.address)) {
                    etcd.remove(left.id).await?;
                }
            }
            if let Some(token) = &member.token {
                api.revoke_token(token).await?;
            }
            api.delete_node(&member.hostname).await?;
        }
        let machine = member.machine.filter(|_| leaving.then != Then::SameMachine);
        if let Some(machine) = machine {
            let input = Input::Unassign { cause: format!("cluster {}", self.record.name()) };
            let effects = RowEffects { supersede: Supersede::All, ..RowEffects::default() };
            match self.service.registry.apply(machine, input, effects).await {
                Ok(_) | Err(RegistryError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(machine) = member.machine {
            self.service.orders.forget(machine);
        }
        let said = match leaving.then {
            Then::Gone => {
                self.record.members.remove(index);
                format!("{}: has left", member.hostname)
            }
            Then::OtherMachine | Then::SameMachine => {
                let fresh = &mut self.record.members[index];
                (fresh.state, fresh.detail, fresh.run) = (MemberState::Waiting, None, None);
                (fresh.failures, fresh.token, fresh.generation, fresh.leaving) = (0, None, None, None);
                (fresh.certificates, fresh.unreadable) = (Vec::new(), Vec::new());
                (fresh.renewal, fresh.recovery) = (None, None);
                if leaving.then == Then::OtherMachine {
                    // An address of the file stays; one that was found out was the old machine's.
                    fresh.machine = None;
                    fresh.address = fresh.wanted.ip.as_deref().and_then(|ip| ip.split('/').next()?.parse().ok());
                }
                format!("{}: the old one has left", member.hostname)
            }
        };
        self.save(vec![said]).await?;
        self.forget_tokens().await
    }

    /// Nothing is left of the cluster.
    pub(super) async fn gone(&self) -> Result<(), BringUpError> {
        self.service.registry.store().delete_cluster(self.record.id, self.revision, &prefix(self.record.id)).await?;
        if let Err(error) = self.service.snapshots.vault.forget(self.record.id) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "snapshots of a destroyed cluster are still there"
            );
        }
        tracing::info!(cluster = self.record.name(), "destroyed: its keys, members and history are removed");
        Ok(())
    }
}
