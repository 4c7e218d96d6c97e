//! Board, processor, memory, kernel and operating system.

use nkd_api::facts::Firmware;

use super::Root;

/// What boards say when nobody filled the field in.
const PLACEHOLDERS: [&str; 17] = [
    "not specified",
    "not available",
    "not applicable",
    "not settable",
    "to be filled by o.e.m.",
    "to be filled by o.e.m",
    "to be filled in by o.e.m.",
    "default string",
    "system serial number",
    "system product name",
    "system manufacturer",
    "unknown",
    "none",
    "n/a",
    "o.e.m.",
    "oem",
    "empty",
];

/// A field of SMBIOS, unless it says nothing.
pub(super) fn board(root: &Root, field: &str) -> Option<String> {
    let text = root.text(&format!("/sys/class/dmi/id/{field}"))?;
    let lower = text.to_lowercase();
    let filler = text.chars().all(|c| matches!(c, '0' | 'x' | 'X' | '.' | '-' | ' '));
    (!filler && !PLACEHOLDERS.contains(&lower.as_str()) && lower != "0123456789" && lower != "123456789")
        .then_some(text)
}

/// The system UUID, unless it is a filler: all zeros, all ones, or the well-known `03000200-0400-0500-0006-...`.
pub(super) fn uuid(root: &Root) -> Option<String> {
    let text = root.text("/sys/class/dmi/id/product_uuid")?.to_lowercase();
    let uuid = uuid::Uuid::try_parse(&text).ok()?;
    let same = uuid.as_bytes().windows(2).all(|pair| pair[0] == pair[1]);
    let filler = text.starts_with("03000200-0400-0500-0006-") || text.starts_with("00020003-0004-0005-0006-");
    (!same && !filler).then_some(text)
}

pub(super) fn firmware(root: &Root) -> Firmware {
    if root.exists("/sys/firmware/efi") {
        Firmware::Uefi
    } else if cfg!(target_arch = "x86_64") {
        Firmware::Bios
    } else {
        Firmware::Unknown
    }
}

/// Model of the first processor, and the number of logical ones.
pub(super) fn processors(root: &Root) -> (String, u32) {
    let text = root.text("/proc/cpuinfo").unwrap_or_default();
    let field = |line: &str, name: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    let model = text.lines().find_map(|line| field(line, "model name")).unwrap_or_default();
    let count = text.lines().filter(|line| field(line, "processor").is_some()).count();
    (model, u32::try_from(count).unwrap_or(u32::MAX))
}

/// Bytes of memory that the kernel manages.
pub(super) fn memory(root: &Root) -> u64 {
    let text = root.text("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// `PRETTY_NAME`, and the version of the node image: `NESTOS_VERSION`, else `VERSION_ID`.
pub(super) fn os(root: &Root) -> (String, String) {
    let release = root.text("/etc/os-release").or_else(|| root.text("/usr/lib/os-release")).unwrap_or_default();
    let image = root.text("/usr/lib/nestos/version").unwrap_or_default();
    let version = setting(&image, "NESTOS_VERSION")
        .or_else(|| setting(&release, "NESTOS_VERSION"))
        .or_else(|| setting(&release, "VERSION_ID"));
    (setting(&release, "PRETTY_NAME").unwrap_or_default(), version.unwrap_or_default())
}

/// `NAME=value` or `NAME="value"` (os-release(5)).
fn setting(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?.trim();
    let bare = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(value);
    (!bare.is_empty()).then(|| bare.to_owned())
}

/// True on a system that lives in memory.
pub(super) fn live(root: &Root) -> bool {
    let cmdline = root.text("/proc/cmdline").unwrap_or_default();
    let marked = cmdline.split_whitespace().any(|argument| {
        let key = argument.split('=').next().unwrap_or_default();
        key.ends_with(".live.rootfs_url") || key.ends_with(".liveiso") || argument.starts_with("root=live:")
    });
    marked || root.exists("/run/ostree-live") || (argument(&cmdline, "ostree").is_none() && in_memory(root))
}

/// True when `/` is a file system of memory.
fn in_memory(root: &Root) -> bool {
    let mounts = root.text("/proc/self/mountinfo").unwrap_or_default();
    let mut kind = mounts
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some("/"))
        .filter_map(|line| line.split_once(" - ")?.1.split(' ').next());
    kind.next_back().is_some_and(|kind| matches!(kind, "overlay" | "squashfs" | "tmpfs" | "ramfs" | "rootfs" | "erofs"))
}

/// Checksum of the booted deployment: the folder `/sysroot/ostree/deploy/OS/deploy/CHECKSUM.SERIAL` that `/` is.
///
/// A root that is mounted in another way (composefs) is none of them. Then it is where the kernel's
/// `ostree=/ostree/boot.1/OS/BOOTCSUM/0` leads, a link to such a folder; ostree renames those links whenever it writes its
/// deployments anew, so they do not tell for the whole life of a system.
pub(super) fn deployment(root: &Root) -> Option<String> {
    let checksum = |folder: &str| {
        let checksum = folder.split('.').next()?;
        (checksum.len() == 64 && checksum.bytes().all(|b| b.is_ascii_hexdigit())).then(|| checksum.to_owned())
    };
    let running = root.identity("/");
    for system in root.list("/sysroot/ostree/deploy") {
        let folder = format!("/sysroot/ostree/deploy/{system}/deploy");
        let is_root = |name: &String| running.is_some() && root.identity(&format!("{folder}/{name}")) == running;
        if let Some(found) = root.list(&folder).into_iter().find(is_root).and_then(|name| checksum(&name)) {
            return Some(found);
        }
    }
    let cmdline = root.text("/proc/cmdline")?;
    let place = argument(&cmdline, "ostree")?;
    let target = root.link(&format!("/sysroot{place}")).or_else(|| root.link(place))?;
    checksum(target.trim_end_matches('/').rsplit('/').next()?)
}

fn argument<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    cmdline.split_whitespace().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='))
}
