//! File names of image builds: `<prefix>-<version>-<role and architecture>`, as NestOS and Fedora CoreOS write them. Pure.

use std::fmt;

/// One build: family, version and architecture.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Build {
    /// `nestos`, `fedora-coreos` or `lab`.
    pub profile: String,
    /// As the build writes it.
    pub version: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
}

impl Build {
    /// Two names of one build. NestOS writes `24.03-LTS-20240903.0` as well as `24.03-LTS.20240903.0`.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.profile == other.profile
            && self.architecture == other.architecture
            && same_version(&self.version, &other.version)
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.profile, self.version, self.architecture)
    }
}

/// Two spellings of one version.
#[must_use]
pub fn same_version(a: &str, b: &str) -> bool {
    let plain = |c: char| if c == '-' { '.' } else { c };
    a.chars().map(plain).eq(b.chars().map(plain))
}

/// How a disk image is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Packing {
    /// gzip: every installer reads it, and fast.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard: newer installers only.
    Zstd,
    /// As it is.
    Raw,
}

impl Packing {
    /// All, the preferred first.
    pub const ALL: [Self; 4] = [Self::Gzip, Self::Xz, Self::Zstd, Self::Raw];

    /// Ending of the file name, and name of the format in stream documents.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Gzip => "raw.gz",
            Self::Xz => "raw.xz",
            Self::Zstd => "raw.zst",
            Self::Raw => "raw",
        }
    }
}

/// What a file of a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Live kernel.
    Kernel,
    /// Live initramfs.
    Initramfs,
    /// Live root file system.
    Rootfs,
    /// Disk image for sectors of 512 bytes.
    Disk(Packing),
    /// Disk image for sectors of 4096 bytes.
    Disk4k(Packing),
    /// Live ISO.
    Iso,
}

/// A file name taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileName {
    /// Whose file it is.
    pub build: Build,
    /// What it is.
    pub role: Role,
}

const PROFILES: [&str; 3] = ["nestos", "fedora-coreos", "lab"];
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

impl FileName {
    /// Takes a file name apart; `None` when it follows no rule.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (profile, rest) = PROFILES.iter().find_map(|p| Some((*p, name.strip_prefix(p)?.strip_prefix('-')?)))?;
        let (architecture, role, version) = ARCHITECTURES.iter().find_map(|arch| {
            endings(arch).into_iter().find_map(|(role, ending)| Some((*arch, role, rest.strip_suffix(&ending)?)))
        })?;
        is_version(version).then(|| Self {
            build: Build { profile: profile.into(), version: version.into(), architecture: architecture.into() },
            role,
        })
    }
}

/// Profile and version of a volume label such as `fedora-coreos-40.20240808.3.0`.
#[must_use]
pub fn parse_label(label: &str) -> Option<(String, String)> {
    let (profile, version) = PROFILES.iter().find_map(|p| Some((*p, label.strip_prefix(p)?.strip_prefix('-')?)))?;
    is_version(version).then(|| (profile.to_owned(), version.to_owned()))
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Build { profile, version, architecture } = &self.build;
        write!(f, "{profile}-{version}{}", ending(self.role, architecture))
    }
}

/// A version as file names may carry it.
#[must_use]
pub fn is_version(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._+~-".contains(c))
}

/// An architecture that nkd boots.
#[must_use]
pub fn is_architecture(text: &str) -> bool {
    ARCHITECTURES.contains(&text)
}

fn ending(role: Role, arch: &str) -> String {
    match role {
        Role::Kernel => format!("-live-kernel-{arch}"),
        Role::Initramfs => format!("-live-initramfs.{arch}.img"),
        Role::Rootfs => format!("-live-rootfs.{arch}.img"),
        Role::Disk(packing) => format!("-metal.{arch}.{}", packing.suffix()),
        Role::Disk4k(packing) => format!("-metal4k.{arch}.{}", packing.suffix()),
        Role::Iso => format!("-live.{arch}.iso"),
    }
}

fn endings(arch: &str) -> Vec<(Role, String)> {
    let disks = Packing::ALL.into_iter().flat_map(|p| [Role::Disk(p), Role::Disk4k(p)]);
    [Role::Kernel, Role::Initramfs, Role::Rootfs, Role::Iso]
        .into_iter()
        .chain(disks)
        .map(|role| (role, ending(role, arch)))
        // Newer builds of Fedora CoreOS.
        .chain([(Role::Kernel, format!("-live-kernel.{arch}")), (Role::Iso, format!("-live-iso.{arch}.iso"))])
        .collect()
}

#[cfg(test)]
#[path = "name_tests.rs"]
mod tests;
