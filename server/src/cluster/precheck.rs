//! What can be said of a cluster file before a machine is powered on: does it fit what the service has?
#![expect(clippy::disallowed_methods, reason = "asks whether an endpoint answers")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nkd_api::Problem;
use nkd_api::channel::Channel;
use nkd_api::cluster::{Cluster, ClusterSpec, PoolMachine, Runtime};
use nkd_api::image::Image;
use nkd_api::machine::Machine;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::change::is_same;
use super::file::{hostname, pool_size, syntax};
use super::fits::fits;
use super::housekeeper::IMAGE;
use super::record::{MemberRecord, Record, members};
use super::runtime::OWN_HOST;
use crate::content::image::catalog::CatalogError;
use crate::content::registry::spec::{Reference, Repository};
use crate::machine::identity::usable_uuid;
use crate::service::Service;
use crate::store::StoreError;

/// How long an endpoint may take to answer.
const ENDPOINT: Duration = Duration::from_secs(2);

/// What says that there is an operator.
const HOUSEKEEPER: &str = "spec.housekeeper.enabled";

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prechecked {
    /// Nothing can come of it.
    pub problems: Vec<Problem>,
    /// It may be meant, or mend itself.
    pub warnings: Vec<Problem>,
}

/// The check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PrecheckError {
    /// Store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Images.
    #[error("the image store failed")]
    Images(#[from] CatalogError),
}

/// Holds a file against images, machines, other clusters, and its endpoint.
pub async fn precheck(service: &Service, cluster: &Cluster) -> Result<Prechecked, PrecheckError> {
    let store = service.registry.store();
    let (images, machines) = (service.images.list()?, store.machines().await?);
    let clusters: Vec<Record> = store.clusters().await?.into_iter().map(|(record, _)| record).collect();
    let mut found = judge(cluster, &images, &machines, &clusters);
    if finds_ours(&cluster.spec, service.anonymous_pull) && holds(service, IMAGE).await {
        found.warnings.retain(|warning| warning.path != HOUSEKEEPER);
    }
    if let Some(name) = &cluster.spec.os.channel {
        let channel = store.channel(name).await?.map(|(channel, _)| channel);
        judge_channel(&cluster.spec, name, channel.as_ref(), &mut found);
    }
    if let Some(endpoint) = &cluster.spec.endpoint
        && let Some(warning) = endpoint_warning(cluster, endpoint).await
    {
        found.warnings.push(Problem { path: "spec.endpoint".into(), message: warning });
    }
    Ok(found)
}

/// The image that nodes without a named one get: of their profile and version of Kubernetes, else one whose version
/// nobody has said; the newest.
pub(super) fn image<'a>(spec: &ClusterSpec, images: impl Iterator<Item = &'a Image>) -> Option<&'a Image> {
    let fitting = images.filter(|image| {
        let version = image.kubernetes.as_ref();
        image.profile == spec.os.profile && version.is_none_or(|version| *version == spec.kubernetes.version)
    });
    fitting.max_by_key(|image| (image.kubernetes.is_some(), image.imported_at))
}

/// Nodes look for images of our own host in the registry of the service, and are let in. A file may say otherwise.
fn finds_ours(spec: &ClusterSpec, anonymous: bool) -> bool {
    let runtime = match spec.kubernetes.runtime {
        Runtime::Containerd => true,
        Runtime::Crio => anonymous,
        Runtime::Docker | Runtime::Isulad => false,
    };
    runtime && spec.kubernetes.registries.iter().all(|registry| registry.host != OWN_HOST)
}

/// The registry of the service has it.
async fn holds(service: &Service, image: &str) -> bool {
    let name = image.split_once('/').and_then(|(_, name)| name.split_once(':'));
    let Some((Ok(repository), Ok(tag))) =
        name.map(|(name, tag)| (name.parse::<Repository>(), tag.parse::<Reference>()))
    else {
        return false;
    };
    service.oci.manifest(&repository, &tag).await.is_ok()
}

/// Where the cluster's upgrades come from.
fn judge_channel(spec: &ClusterSpec, name: &str, channel: Option<&Channel>, found: &mut Prechecked) {
    let profile = &spec.os.profile;
    let path = || "spec.os.channel".to_owned();
    match channel {
        None => {
            let message = format!("there is no channel `{name}` yet: `nkd channel publish {name}` makes it");
            found.warnings.push(Problem { path: path(), message });
        }
        // It stands in the way of upgrades alone.
        Some(channel) if channel.profile != *profile => {
            let message = format!(
                "the channel `{name}` is of {}, and the cluster of {profile}: upgrades take another one",
                channel.profile
            );
            found.warnings.push(Problem { path: path(), message });
        }
        Some(_) => {}
    }
}

/// The part that asks nobody (pure).
fn judge(cluster: &Cluster, images: &[Arc<Image>], machines: &[Machine], clusters: &[Record]) -> Prechecked {
    let mut found = Prechecked::default();
    let name = &cluster.metadata.name;
    let own = clusters.iter().find(|record| record.name() == name);
    judge_image(cluster, own, images, &mut found);
    let housekeeper = &cluster.spec.housekeeper;
    if housekeeper.enabled && housekeeper.image.is_none() {
        let push = if finds_ours(&cluster.spec, true) { "push it to this service's registry, " } else { "" };
        let ways = format!("{push}have it in the node image, or name another in spec.housekeeper.image");
        let message = format!("nodes pull {IMAGE}, or have it: {ways}");
        found.warnings.push(Problem { path: HOUSEKEEPER.into(), message });
    }
    let mut others: Vec<(&Record, &MemberRecord)> = Vec::new();
    for record in clusters.iter().filter(|record| record.name() != name) {
        others.extend(record.members.iter().map(|member| (record, member)));
    }
    for (i, pool) in cluster.spec.pools.iter().enumerate() {
        for (j, wanted) in pool.machines.iter().enumerate() {
            let path = format!("spec.pools[{i}].machines[{j}]");
            let known = machines.iter().find(|machine| is_machine(machine, wanted));
            judge_machine(&path, wanted, known, own, &others, &mut found);
        }
        for index in 0..pool_size(pool) {
            let hostname = hostname(name, pool, index);
            let listed = pool.machines.get(index);
            let path = match listed {
                Some(_) => format!("spec.pools[{i}].machines[{index}].hostname"),
                None => format!("spec.pools[{i}].count"),
            };
            if let Some((other, _)) = others.iter().find(|(_, member)| member.hostname == hostname) {
                let message = format!("{hostname} is the name of a node of the cluster {}", other.name());
                found.problems.push(Problem { path, message });
                continue;
            }
            let namesake = machines.iter().find(|machine| machine.name == hostname);
            let is_other = |machine: &&Machine| match listed {
                Some(wanted) => !is_machine(machine, wanted),
                None => true,
            };
            let ours = |machine: &Machine| own.is_some_and(|record| record.member_of(machine.id).is_some());
            if let Some(machine) = namesake.filter(is_other).filter(|machine| !ours(machine)) {
                let keys: Vec<String> = machine.identity.macs.iter().map(ToString::to_string).collect();
                let message = format!(
                    "{hostname} is the name of another machine ({}): give one of them another name, or `nkd machine forget {hostname}`",
                    keys.join(", ")
                );
                found.problems.push(Problem { path, message });
            }
        }
        let more = pool_size(pool).saturating_sub(pool.machines.len());
        let taken = own.map_or(0, |record| {
            let counted = |m: &&MemberRecord| m.pool == pool.name && m.machine.is_some() && m.leaving.is_none();
            record.members.iter().filter(counted).count().saturating_sub(pool.machines.len())
        });
        let wanted = pool.matches.clone().unwrap_or_default();
        let free = machines.iter().filter(|m| m.accepted && m.assignment.is_none() && fits(&wanted, m)).count();
        if more > taken + free {
            let message = format!(
                "{more} machines are to be taken, and {} of those that are accepted fit now: it waits for more",
                taken + free
            );
            found.warnings.push(Problem { path: format!("spec.pools[{i}].count"), message });
        }
    }
    found
}

/// What nodes that join are installed from.
fn judge_image(cluster: &Cluster, own: Option<&Record>, images: &[Arc<Image>], found: &mut Prechecked) {
    let spec = &cluster.spec;
    let version = &spec.kubernetes.version;
    let stays = |wanted: &MemberRecord| own.is_some_and(|own| own.members.iter().any(|member| is_same(member, wanted)));
    let joins = !members(cluster).iter().all(stays);
    // An upgrade takes a cluster further than its image; that stands in nobody's way while no node joins.
    let lacking = |found: &mut Prechecked, path: &str, message| {
        let problem = Problem { path: path.into(), message };
        if joins { found.problems.push(problem) } else { found.warnings.push(problem) }
    };
    let import = format!("`nkd image import SOURCE --kubernetes {version}`");
    let Some(name) = &spec.os.image else {
        if image(spec, images.iter().map(AsRef::as_ref)).is_none() {
            let profile = &spec.os.profile;
            let message =
                format!("no image of the profile {profile} holds {version}: {import}, or name one in spec.os.image");
            lacking(found, "spec.kubernetes.version", message);
        }
        return;
    };
    let Some(image) = images.iter().find(|image| image.name == *name) else {
        return lacking(found, "spec.os.image", format!("there is no image {name}: `nkd image list` shows all"));
    };
    if image.profile != spec.os.profile {
        let message = format!("{name} is of the profile {}, not {}", image.profile, spec.os.profile);
        found.problems.push(Problem { path: "spec.os.image".into(), message });
    }
    match &image.kubernetes {
        Some(held) if held != version => {
            let message =
                format!("the image {name} holds {held}, not {version}: {import}, and name that in spec.os.image");
            lacking(found, "spec.kubernetes.version", message);
        }
        Some(_) => {}
        None => found.warnings.push(Problem {
            path: "spec.os.image".into(),
            message: format!("nobody has said which Kubernetes {name} holds: it has to be {version}"),
        }),
    }
}

fn judge_machine(
    path: &str,
    wanted: &PoolMachine,
    known: Option<&Machine>,
    own: Option<&Record>,
    others: &[(&Record, &MemberRecord)],
    found: &mut Prechecked,
) {
    let mut problem = |path: String, message: String| found.problems.push(Problem { path, message });
    let taken = others.iter().find(|(_, member)| {
        let other = &member.wanted;
        (known.is_some() && member.machine == known.map(|machine| machine.id))
            || (wanted.mac.is_some() && wanted.mac == other.mac)
            || (wanted.uuid.is_some() && wanted.uuid == other.uuid)
            || (wanted.serial.is_some() && wanted.serial == other.serial)
    });
    if let Some((record, member)) = taken {
        let message = format!("this machine is {} of the cluster {}", member.hostname, record.name());
        return problem(path.to_owned(), message);
    }
    let address = wanted.ip.as_deref().and_then(|ip| ip.split('/').next()?.parse::<IpAddr>().ok());
    if let Some((record, member)) = others.iter().find(|(_, member)| address.is_some() && member.address == address) {
        let message = format!("this is the address of {} of the cluster {}", member.hostname, record.name());
        problem(format!("{path}.ip"), message);
    }
    let Some(machine) = known else { return };
    if own.is_some_and(|record| record.member_of(machine.id).is_some()) {
        return;
    }
    let name = &machine.name;
    if machine.stopped.is_some() {
        let message = format!("{name} is stopped after an alarm: look into it, then `nkd machine release {name}`");
        found.warnings.push(Problem { path: path.to_owned(), message });
    } else if machine.assignment.is_some() && machine.installed_generation == Some(machine.generation) {
        let message = format!(
            "{name} holds a system: it is taken as it is when that is the cluster's image, otherwise `nkd machine forget {name}` first"
        );
        found.warnings.push(Problem { path: path.to_owned(), message });
    }
}

fn is_machine(machine: &Machine, wanted: &PoolMachine) -> bool {
    let identity = &machine.identity;
    wanted.mac.is_some_and(|mac| identity.macs.contains(&mac))
        || wanted.uuid.as_deref().and_then(usable_uuid).is_some_and(|uuid| identity.uuid == Some(uuid))
        || (wanted.serial.is_some() && wanted.serial == identity.serial)
}

/// Why an endpoint will not do as it is now. One that is a machine of the file cannot answer yet.
async fn endpoint_warning(cluster: &Cluster, endpoint: &str) -> Option<String> {
    let (host, port) = syntax::endpoint(endpoint).ok()?;
    let machines = cluster.spec.pools.iter().flat_map(|pool| &pool.machines);
    let mut ips = machines.filter_map(|machine| machine.ip.as_deref()?.split('/').next());
    if ips.any(|ip| ip == host) {
        return None;
    }
    let found = match timeout(ENDPOINT, tokio::net::lookup_host((host.as_str(), port))).await {
        Ok(Ok(found)) => found.collect::<Vec<SocketAddr>>(),
        Ok(Err(error)) => return Some(format!("{host} has no address that the service can find: {error}")),
        Err(_) => return Some(format!("the name servers do not say which address {host} has")),
    };
    let address = found.first()?;
    match timeout(ENDPOINT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => None,
        // Nobody is behind it yet, and that is said by the machine itself.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => None,
        Ok(Err(error)) => Some(format!("{address} cannot be reached from the service: {error}; nodes need it to join")),
        Err(_) => Some(format!("{address} does not answer the service; nodes need it to join")),
    }
}

#[cfg(test)]
#[path = "precheck_tests.rs"]
mod tests;
