//! Whether this node is fit for kubeadm, as far as kubeadm does not look itself: its clock, and room on its disks. What is
//! told here takes a second; kubeadm would wait minutes for what cannot come, and then not know why.
#![expect(clippy::disallowed_methods, reason = "asks the system for its clock and its room")]

use std::path::Path;

use nkd_api::agent::{KubeadmAction, KubeadmOrder};
use time::{Duration, OffsetDateTime};

/// How far the clock of a node may be from the service's. Certificates that kubeadm makes are good from and to moments of
/// the node's clock, and the service's access to the cluster lives an hour.
const SKEW: Duration = Duration::minutes(5);
/// What is wanted free, in MiB. etcd begins with two files of 64 MiB.
const KUBELET: (&str, u64) = ("/var/lib/kubelet", 64);
const ETCD: (&str, u64) = ("/var/lib/etcd", 256);

/// What is wrong with the clock.
pub(super) fn clock(order: &KubeadmOrder) -> Result<(), String> {
    skew(OffsetDateTime::now_utc(), order.issued_at)
}

fn skew(node: OffsetDateTime, service: OffsetDateTime) -> Result<(), String> {
    if (node - service).abs() <= SKEW {
        return Ok(());
    }
    let second = |at: OffsetDateTime| {
        let second = at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
        second.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
    };
    Err(format!(
        "this node's clock is at {}, the service's at {}: certificates made here would be of no use; set the clock that is \
         wrong",
        second(node),
        second(service)
    ))
}

/// Which file system is too full.
pub(super) fn room(order: &KubeadmOrder) -> Result<(), String> {
    wanted(order).into_iter().try_for_each(|(path, mebibytes)| free(Path::new(path), mebibytes))
}

fn wanted(order: &KubeadmOrder) -> Vec<(&'static str, u64)> {
    // Only a control plane is given these keys.
    let keys = order.files.iter().any(|file| file.path.starts_with("/etc/kubernetes/pki/etcd/"));
    let control_plane = order.action == KubeadmAction::Init || keys;
    [KUBELET].into_iter().chain(control_plane.then_some(ETCD)).collect()
}

/// Whether kubeadm has its room.
pub(super) fn free(path: &Path, mebibytes: u64) -> Result<(), String> {
    free_for(path, mebibytes, "kubeadm needs")
}

/// A folder that is not there yet will be in the file system of the one above. `who`: what needs it.
pub(super) fn free_for(path: &Path, mebibytes: u64, who: &str) -> Result<(), String> {
    let Some(there) = path.ancestors().find(|folder| folder.exists()) else { return Ok(()) };
    let stat = nix::sys::statvfs::statvfs(there)
        .map_err(|error| format!("the file system of {} does not say how full it is: {error}", path.display()))?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size()) >> 20;
    if free >= mebibytes {
        return Ok(());
    }
    Err(format!("{}: {free} MiB are free, and {who} {mebibytes} MiB there: make room", path.display()))
}

#[cfg(test)]
mod tests {
    use nkd_api::agent::NodeFile;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_clock_may_be_off_by_minutes_and_not_by_years() {
        let service = datetime!(2026-11-23 10:00 UTC);
        assert_eq!(skew(datetime!(2026-11-23 09:56 UTC), service), Ok(()));
        assert_eq!(skew(datetime!(2026-11-23 10:04 UTC), service), Ok(()));
        for node in [datetime!(1970-01-01 00:03 UTC), datetime!(2031-01-01 00:00 UTC)] {
            let told = skew(node, service).unwrap_err();
            assert!(told.contains(&node.year().to_string()) && told.contains("2026-11-23T10:00:00Z"), "{told}");
        }
    }

    #[test]
    fn room_is_asked_for_where_the_node_will_write() {
        let file = |path: &str| NodeFile { path: path.into(), mode: 0o600, contents: String::new() };
        let order = |action, files| KubeadmOrder {
            operation: uuid::Uuid::nil(),
            action,
            issued_at: OffsetDateTime::UNIX_EPOCH,
            config: String::new(),
            skip_phases: Vec::new(),
            ignore_preflight_errors: Vec::new(),
            files,
            restart: Vec::new(),
            before: Vec::new(),
        };
        assert_eq!(wanted(&order(KubeadmAction::Join, vec![file("/etc/kubernetes/pki/ca.crt")])), [KUBELET]);
        let control_plane = order(KubeadmAction::Join, vec![file("/etc/kubernetes/pki/etcd/ca.key")]);
        assert_eq!(wanted(&control_plane), [KUBELET, ETCD]);
        assert_eq!(wanted(&order(KubeadmAction::Init, vec![])), [KUBELET, ETCD]);
    }

    #[test]
    fn a_folder_that_is_not_there_has_the_room_of_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not/there");
        assert_eq!(free(&path, 0), Ok(()));
        let told = free(&path, u64::MAX >> 20).unwrap_err();
        assert!(told.contains("make room") && told.contains("not/there"), "{told}");
    }
}
