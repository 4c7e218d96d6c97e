//! Whole disks, from sysfs.

use nkd_api::facts::Disk;

use super::Root;

/// Bytes of a sector in `size`, whatever the disk says of itself.
const SECTOR: u64 = 512;
/// Kinds of block device that are no disks.
const NOT_DISKS: [&str; 9] = ["loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "mtdblock"];

/// A disk, and what stands against writing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// What it is.
    pub disk: Disk,
    /// A stick, a card: not what one installs to.
    pub removable: bool,
    /// It takes no writes.
    pub read_only: bool,
    /// Why it is in use, when it is.
    pub in_use: Option<String>,
}

/// Every disk with a size, by name.
#[must_use]
pub fn list(root: &Root) -> Vec<BlockDevice> {
    let names = root.list("/sys/block");
    names.iter().filter(|name| is_disk(name)).filter_map(|name| device(root, name)).collect()
}

/// The device node behind a path: `/dev/disk/by-id/...` is a link to `../../vda`.
#[must_use]
pub fn resolve(root: &Root, path: &str) -> String {
    let mut path = path.to_owned();
    for _ in 0..8 {
        let Some(target) = root.link(&path) else {
            break;
        };
        path = join(&path, &target);
    }
    path
}

/// The target of a link that stands at `link`, without `..`.
fn join(link: &str, target: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    if !target.starts_with('/') {
        parts.extend(link.split('/').filter(|part| !part.is_empty()));
        parts.pop();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn is_disk(name: &str) -> bool {
    let special = name.starts_with("mmcblk") && (name.contains("boot") || name.ends_with("rpmb"));
    !special
        && !NOT_DISKS
            .iter()
            .any(|kind| name.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
}

fn device(root: &Root, name: &str) -> Option<BlockDevice> {
    let sys = format!("/sys/block/{name}");
    let size_bytes = root.number(&format!("{sys}/size")).filter(|sectors| *sectors > 0)?.checked_mul(SECTOR)?;
    let usb = root.link(&sys).is_some_and(|link| link.contains("/usb"));
    let number = root.text(&format!("{sys}/dev"));
    let disk = Disk {
        device: format!("/dev/{name}"),
        size_bytes,
        model: root.text(&format!("{sys}/device/model")),
        serial: serial(root, &sys, number.as_deref()),
        rotational: root.number(&format!("{sys}/queue/rotational")) == Some(1),
    };
    Some(BlockDevice {
        disk,
        removable: usb || root.number(&format!("{sys}/removable")) == Some(1),
        read_only: root.number(&format!("{sys}/ro")) == Some(1),
        in_use: in_use(root, name, &sys),
    })
}

/// virtio, NVMe, SCSI (unit serial number page), then what udev found.
fn serial(root: &Root, sys: &str, number: Option<&str>) -> Option<String> {
    let page = || {
        let bytes = root.bytes(&format!("{sys}/device/vpd_pg80"))?;
        let text = String::from_utf8_lossy(bytes.get(4..)?).trim_matches(['\0', ' ']).to_owned();
        (!text.is_empty()).then_some(text)
    };
    let udev = || {
        let record = root.text(&format!("/run/udev/data/b{}", number?))?;
        let value = record.lines().find_map(|line| line.strip_prefix("E:ID_SERIAL_SHORT="))?;
        Some(value.to_owned())
    };
    root.text(&format!("{sys}/serial"))
        .or_else(|| root.text(&format!("{sys}/device/serial")))
        .or_else(page)
        .or_else(udev)
}

/// Why the disk or a partition of it is in use.
fn in_use(root: &Root, name: &str, sys: &str) -> Option<String> {
    let mounts = root.text("/proc/self/mountinfo").unwrap_or_default();
    let swaps = root.text("/proc/swaps").unwrap_or_default();
    let partitions = root.list(sys).into_iter().filter(|part| root.exists(&format!("{sys}/{part}/partition")));
    let whole = (name.to_owned(), sys.to_owned());
    let parts = std::iter::once(whole).chain(partitions.map(|part| (part.clone(), format!("{sys}/{part}"))));
    for (part, path) in parts {
        if let Some(number) = root.text(&format!("{path}/dev"))
            && let Some(place) = mounts.lines().find_map(|line| mounted(line, &number))
        {
            return Some(format!("/dev/{part} is mounted on {place}"));
        }
        if swaps.lines().any(|line| line.split_whitespace().next() == Some(&format!("/dev/{part}"))) {
            return Some(format!("/dev/{part} is swap"));
        }
        if let Some(holder) = root.list(&format!("{path}/holders")).first() {
            return Some(format!("/dev/{part} is part of {holder}"));
        }
    }
    None
}

/// The disk that the installed system was written to: a partition of it is, as a whole, its /sysroot or /boot.
#[must_use]
pub fn system_disk(root: &Root) -> Option<String> {
    let mounts = root.text("/proc/self/mountinfo").unwrap_or_default();
    let number = mounts.lines().find_map(|line| {
        // proc_pid_mountinfo(5): device, root within the file system, place.
        let mut fields = line.split(' ').skip(2);
        let (number, inside, place) = (fields.next()?, fields.next()?, fields.next()?);
        (inside == "/" && matches!(place, "/sysroot" | "/boot")).then(|| number.to_owned())
    })?;
    let holds = |name: &String| {
        let parts = root.list(&format!("/sys/block/{name}"));
        parts.iter().any(|part| root.text(&format!("/sys/block/{name}/{part}/dev")).as_ref() == Some(&number))
    };
    root.list("/sys/block").into_iter().filter(|name| is_disk(name)).find(holds).map(|name| format!("/dev/{name}"))
}

/// The place of a mount of device `number` (proc_pid_mountinfo(5), fields 3 and 5).
fn mounted(line: &str, number: &str) -> Option<String> {
    let mut fields = line.split(' ').skip(2);
    (fields.next()? == number).then(|| fields.nth(1).map(str::to_owned))?
}
