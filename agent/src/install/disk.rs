//! Which disk to write: a pure choice among what the machine has.

use crate::facts::block::BlockDevice;

/// No disk can be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The machine has nothing that would do.
    #[error("no disk can take the image of {size} bytes{}", inventory(.seen))]
    None {
        /// Bytes of the image.
        size: u64,
        /// Every disk, and why not.
        seen: Vec<String>,
    },
    /// More than one would do.
    #[error("more than one disk can take the image; name one: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// The named disk is not there.
    #[error("the machine has no disk {wanted}{}", inventory(.seen))]
    Missing {
        /// As the task names it.
        wanted: String,
        /// Every disk.
        seen: Vec<String>,
    },
    /// The named disk will not do.
    #[error("the disk {wanted} cannot take the image: {reason}")]
    Unsuitable {
        /// As the task names it.
        wanted: String,
        /// Why not.
        reason: String,
    },
}

fn inventory(all: &[String]) -> String {
    if all.is_empty() { "; the machine has no disk at all".into() } else { format!("; it has {}", all.join(", ")) }
}

/// Chooses the disk for an image of `size` bytes: `wanted` (a device node, links resolved), or the only suitable one.
///
/// # Errors
/// [`DiskError`], with every candidate named.
pub fn choose(devices: &[BlockDevice], wanted: Option<&str>, size: u64) -> Result<String, DiskError> {
    if let Some(wanted) = wanted {
        let Some(device) = devices.iter().find(|device| device.disk.device == wanted) else {
            return Err(DiskError::Missing { wanted: wanted.to_owned(), seen: describe(devices, size) });
        };
        // An operator who names a disk may mean a removable one.
        return match too_small(device, size).or_else(|| device.in_use.clone()).or_else(|| read_only(device)) {
            None => Ok(wanted.to_owned()),
            Some(reason) => Err(DiskError::Unsuitable { wanted: wanted.to_owned(), reason }),
        };
    }
    let suitable: Vec<&BlockDevice> = devices.iter().filter(|device| unsuitable(device, size).is_none()).collect();
    match suitable.as_slice() {
        [] => Err(DiskError::None { size, seen: describe(devices, size) }),
        [device] => Ok(device.disk.device.clone()),
        many => Err(DiskError::Ambiguous(
            many.iter().map(|device| format!("{} ({} bytes)", device.disk.device, device.disk.size_bytes)).collect(),
        )),
    }
}

fn unsuitable(device: &BlockDevice, size: u64) -> Option<String> {
    let removable = device.removable.then(|| "it is removable".to_owned());
    removable.or_else(|| read_only(device)).or_else(|| too_small(device, size)).or_else(|| device.in_use.clone())
}

fn read_only(device: &BlockDevice) -> Option<String> {
    device.read_only.then(|| "it is read-only".to_owned())
}

fn too_small(device: &BlockDevice, size: u64) -> Option<String> {
    let bytes = device.disk.size_bytes;
    (bytes < size).then(|| format!("it has {bytes} bytes, the image {size}"))
}

fn describe(devices: &[BlockDevice], size: u64) -> Vec<String> {
    devices
        .iter()
        .map(|device| match unsuitable(device, size) {
            Some(reason) => format!("{} ({reason})", device.disk.device),
            None => device.disk.device.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use nkd_api::facts::Disk;
    use proptest::prelude::*;

    use super::*;

    fn device(name: &str, size_bytes: u64) -> BlockDevice {
        let disk = Disk { device: format!("/dev/{name}"), size_bytes, ..Disk::default() };
        BlockDevice { disk, removable: false, read_only: false, in_use: None }
    }

    #[test]
    fn the_only_suitable_disk_is_chosen() {
        let stick = BlockDevice { removable: true, ..device("sda", 9000) };
        let medium = BlockDevice { in_use: Some("/dev/sdb1 is mounted on /run/medium".into()), ..device("sdb", 9000) };
        let devices = [stick, medium, device("sdc", 10), device("vda", 9000)];
        assert_eq!(choose(&devices, None, 5000), Ok("/dev/vda".into()));
    }

    #[test]
    fn a_choice_between_two_is_left_to_the_operator() {
        let error = choose(&[device("vda", 9000), device("vdb", 8000)], None, 5000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "more than one disk can take the image; name one: /dev/vda (9000 bytes), /dev/vdb (8000 bytes)"
        );
    }

    #[test]
    fn every_disk_that_will_not_do_is_named_with_the_reason() {
        let error = choose(&[BlockDevice { removable: true, ..device("sda", 9000) }, device("vda", 10)], None, 5000);
        assert_eq!(
            error.unwrap_err().to_string(),
            "no disk can take the image of 5000 bytes; it has /dev/sda (it is removable), \
             /dev/vda (it has 10 bytes, the image 5000)"
        );
        let error = choose(&[], None, 5000).unwrap_err();
        assert_eq!(error.to_string(), "no disk can take the image of 5000 bytes; the machine has no disk at all");
    }

    #[test]
    fn a_named_disk_is_checked_too() {
        let busy = BlockDevice { in_use: Some("/dev/vda2 is swap".into()), ..device("vda", 9000) };
        let devices = [busy, device("vdb", 10)];
        assert!(matches!(choose(&devices, Some("/dev/vda"), 5000), Err(DiskError::Unsuitable { .. })));
        assert!(matches!(choose(&devices, Some("/dev/vdb"), 5000), Err(DiskError::Unsuitable { .. })));
        assert!(matches!(choose(&devices, Some("/dev/vdc"), 5000), Err(DiskError::Missing { .. })));
        assert_eq!(choose(&devices, Some("/dev/vdb"), 10), Ok("/dev/vdb".into()));
    }

    proptest! {
        #[test]
        fn what_is_chosen_holds_the_image_and_is_free(
            disks in proptest::collection::vec((0u64..100, any::<bool>(), any::<bool>(), any::<bool>()), 0..5),
            size in 0u64..100,
        ) {
            let devices: Vec<BlockDevice> = disks
                .into_iter()
                .enumerate()
                .map(|(i, (bytes, removable, read_only, used))| BlockDevice {
                    removable,
                    read_only,
                    in_use: used.then(|| "mounted".to_owned()),
                    ..device(&format!("vd{i}"), bytes)
                })
                .collect();
            if let Ok(chosen) = choose(&devices, None, size) {
                let device = devices.iter().find(|device| device.disk.device == chosen).unwrap();
                prop_assert!(device.disk.size_bytes >= size);
                prop_assert!(!device.removable && !device.read_only && device.in_use.is_none());
            }
        }
    }
}
