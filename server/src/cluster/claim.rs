//! Takes a machine for a member: declares it if nobody knows it, lets it in, and assigns it.

use nkd_api::cluster::PoolMachine;
use nkd_api::machine::{Assignment, Identity, LocalBoot, Machine};
use uuid::Uuid;

use super::precheck;
use super::record::{MemberRecord, Record};
use crate::content::image::catalog::CatalogError;
use crate::machine::lifecycle::Input;
use crate::machine::{Registry, RegistryError, Selector};
use crate::service::Service;
use crate::store::{RowEffects, StoreError};

/// No machine could be taken.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Machines.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Images.
    #[error("the image store failed")]
    Images(#[from] CatalogError),
    /// No image for the nodes.
    #[error("there is no image of the profile `{0}` in the store: `nkd image import`, or name one in spec.os.image")]
    NoImage(String),
    /// The machine belongs to another cluster.
    #[error("the machine `{machine}` belongs to the cluster `{cluster}`")]
    Taken {
        /// Machine.
        machine: String,
        /// Cluster.
        cluster: String,
    },
    /// It holds another system.
    #[error(
        "the machine `{machine}` holds the image `{image}`: `nkd machine reinstall {machine}` after assigning `{wanted}`, or forget it"
    )]
    Other {
        /// Machine.
        machine: String,
        /// Its image.
        image: String,
        /// The wanted one.
        wanted: String,
    },
}

/// Takes the machine for member `index`; none when no machine fits yet.
pub async fn claim(service: &Service, record: &Record, index: usize) -> Result<Option<Uuid>, ClaimError> {
    let registry = &service.registry;
    let member = &record.members[index];
    let cause = format!("cluster {}", record.name());
    let clusters = registry.store().clusters().await?;
    let owner = |id: Uuid| clusters.iter().find_map(|(record, _)| Some((record, record.member_of(id)?)));
    let machine = match named(registry, &member.wanted).await? {
        Named::Known(machine) => *machine,
        Named::Nobody(identity) => registry.declare(Some(member.hostname.clone()), identity, &cause).await?,
        Named::Any => {
            let pool = record.cluster.spec.pools.iter().find(|pool| pool.name == member.pool);
            let wanted = pool.and_then(|pool| pool.matches.clone()).unwrap_or_default();
            let free = |m: &Machine| m.accepted && m.assignment.is_none() && owner(m.id).is_none();
            let machines = registry.store().machines().await?;
            match machines.into_iter().find(|m| free(m) && super::fits::fits(&wanted, m)) {
                Some(machine) => machine,
                None => return Ok(None),
            }
        }
    };
    match owner(machine.id) {
        None => {}
        // It comes back when that member has left.
        Some((owner, holder)) if owner.id == record.id && holder.leaving.is_some() => return Ok(None),
        Some((owner, _)) => {
            return Err(ClaimError::Taken { machine: machine.name, cluster: owner.name().to_owned() });
        }
    }
    let assignment = assignment(service, record, member)?;
    if let Some(other) = machine.assignment.as_ref().filter(|a| a.image != assignment.image)
        && machine.installed_generation == Some(machine.generation)
    {
        let (image, wanted) = (other.image.clone(), assignment.image);
        return Err(ClaimError::Other { machine: machine.name, image, wanted });
    }
    let accept =
        Input::Accept { name: Some(member.hostname.clone()), labels: Default::default(), cause: cause.clone() };
    registry.apply(machine.id, accept, RowEffects::default()).await?;
    if machine.installed_generation != Some(machine.generation) || machine.generation == 0 {
        registry.apply(machine.id, Input::Assign { assignment, cause }, RowEffects::default()).await?;
    }
    Ok(Some(machine.id))
}

enum Named {
    /// There is a record.
    Known(Box<Machine>),
    /// It is named, and nobody has seen it.
    Nobody(Identity),
    /// Any machine will do.
    Any,
}

async fn named(registry: &Registry, wanted: &PoolMachine) -> Result<Named, ClaimError> {
    let selectors = [
        wanted.mac.map(Selector::Mac),
        wanted.uuid.clone().map(Selector::Word),
        wanted.serial.clone().map(Selector::Word),
    ];
    let mut asked = false;
    for selector in selectors.into_iter().flatten() {
        asked = true;
        match registry.find(&selector).await {
            Ok(machine) => return Ok(Named::Known(Box::new(machine))),
            Err(RegistryError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let identity = Identity {
        macs: wanted.mac.into_iter().collect(),
        uuid: wanted.uuid.clone(),
        serial: wanted.serial.clone(),
        ..Identity::default()
    };
    Ok(if asked { Named::Nobody(identity) } else { Named::Any })
}

fn assignment(service: &Service, record: &Record, member: &MemberRecord) -> Result<Assignment, ClaimError> {
    let spec = &record.cluster.spec;
    let pool = spec.pools.iter().find(|pool| pool.name == member.pool);
    let image = match &spec.os.image {
        Some(image) => image.clone(),
        None => {
            let images = service.images.list()?;
            let image = precheck::image(spec, images.iter().map(AsRef::as_ref));
            image.ok_or_else(|| ClaimError::NoImage(spec.os.profile.clone()))?.name.clone()
        }
    };
    let snippets = super::snippets::of(record, member);
    Ok(Assignment {
        image,
        template: "node".into(),
        install_disk: member.wanted.install_disk.clone().or_else(|| pool.and_then(|p| p.install_disk.clone())),
        hostname: Some(member.hostname.clone()),
        ssh_authorized_keys: spec.ssh.authorized_keys.clone(),
        kernel_args: pool.map(|p| p.kernel_args.clone()).unwrap_or_default(),
        snippets,
        local_boot: LocalBoot::Exit,
    })
}
