//! Distribution profiles: the exact kernel arguments and installer files of each family of images. Pure.
//!
//! `nestos` and `fedora-coreos` follow those projects; `lab` is the stand-in built from Debian packages, which answers
//! to the arguments of NestOS and carries the installer of Fedora CoreOS.
//!
//! The NestOS installer from January 2024 up to 0.20.0 refuses to install without an image file, an image address or
//! `offline: true`. [`InstallerImage`] has no fourth case, so a configuration that meets this trap cannot be written.

use std::fmt::Write as _;

use nkd_api::Sha256Digest;
use nkd_api::profile::Profile;
use url::Url;

/// An argument that a kernel command line or an installer file cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// White space, quotes or control characters.
    #[error("kernel argument `{0}` cannot be used: it is empty or has white space, quotes or control characters")]
    Argument(String),
    /// The device is not a path under `/dev`.
    #[error("install device `{0}` cannot be used: give a path under /dev, such as /dev/vda or /dev/disk/by-id/...")]
    Device(String),
    /// A configuration over plain HTTP with nothing to check it by.
    #[error("{0} is fetched without TLS and has no digest: give its digest or an https address")]
    Unverified(Url),
    /// An offline install cannot be asked for by kernel arguments.
    #[error("`{0}` has no kernel argument for an offline install: give an image address or use an installer file")]
    OfflineByArgument(String),
}

/// The profiles that the service knows.
#[must_use]
pub fn builtin() -> Vec<Profile> {
    vec![nestos(), fedora_coreos(), lab()]
}

/// The profile of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<Profile> {
    builtin().into_iter().find(|p| p.name == name)
}

/// A kernel that has given up starts again: only so does the boot loader get to count a release that does not boot.
fn installed_args() -> Vec<String> {
    vec!["panic=30".into()]
}

fn nestos() -> Profile {
    Profile {
        name: "nestos".into(),
        description: "NestOS, the immutable system of openEuler".into(),
        karg_prefix: "nestos".into(),
        ignition_spec: "3.3.0".into(),
        default_user: "nest".into(),
        // The installed system has it from its image.
        live_args: vec!["mitigations=auto,nosmt".into()],
        installed_args: installed_args(),
        installer: "nestos-installer".into(),
        agent_in_image: false,
    }
}

fn fedora_coreos() -> Profile {
    Profile {
        name: "fedora-coreos".into(),
        description: "Fedora CoreOS".into(),
        karg_prefix: "coreos".into(),
        ignition_spec: "3.4.0".into(),
        default_user: "core".into(),
        live_args: Vec::new(),
        installed_args: installed_args(),
        installer: "coreos-installer".into(),
        agent_in_image: false,
    }
}

fn lab() -> Profile {
    Profile {
        name: "lab".into(),
        description: "The lab image: a NestOS-like system from Debian packages".into(),
        karg_prefix: "nestos".into(),
        ignition_spec: "3.3.0".into(),
        default_user: "nest".into(),
        // The last console is /dev/console: the serial line, which the tests read.
        live_args: vec!["systemd.gpt_auto=0".into(), "console=tty0".into(), "console=ttyS0,115200".into()],
        installed_args: installed_args(),
        installer: "coreos-installer".into(),
        agent_in_image: true,
    }
}

/// What a live boot needs beside its profile.
#[derive(Debug, Clone)]
pub struct LiveBoot<'a> {
    /// Where the live root file system is; http or https. It answers HEAD.
    pub rootfs_url: &'a Url,
    /// Consoles of the machine (`ttyS0,115200`), the last one being `/dev/console`; empty for those of the profile.
    pub console: &'a [String],
    /// More arguments, at the end.
    pub extra: &'a [String],
}

/// Kernel arguments of a live boot that reads its Ignition configuration from an appended initrd.
///
/// # Errors
/// [`ProfileError::Argument`] when an argument would not stay one argument.
pub fn live_args(profile: &Profile, boot: &LiveBoot<'_>) -> Result<Vec<String>, ProfileError> {
    let mut args = vec![
        format!("{}.live.rootfs_url={}", profile.karg_prefix, boot.rootfs_url),
        "ignition.firstboot".to_owned(),
        "ignition.platform.id=metal".to_owned(),
    ];
    let own_console = !boot.console.is_empty();
    args.extend(profile.live_args.iter().filter(|a| !(own_console && a.starts_with("console="))).cloned());
    args.extend(boot.console.iter().map(|c| format!("console={c}")));
    args.extend(boot.extra.iter().cloned());
    args.iter().try_for_each(|a| check_argument(a))?;
    Ok(args)
}

/// Where the installer takes the disk image from.
#[derive(Debug, Clone)]
pub enum InstallerImage<'a> {
    /// From the live system itself.
    Offline,
    /// From an address. Who verifies the digest of what was written must be someone else: the installer knows signatures only.
    Url {
        /// The image, raw or compressed.
        url: &'a Url,
        /// Without a signature at `<url>.sig`.
        insecure: bool,
    },
}

/// What an install needs beside its profile.
#[derive(Debug, Clone)]
pub struct InstallerConfig<'a> {
    /// The disk to write: a path under `/dev`.
    pub dest_device: &'a str,
    /// Where the disk image comes from.
    pub image: InstallerImage<'a>,
    /// Where the configuration of the installed system comes from.
    pub ignition_url: Option<&'a Url>,
    /// Its digest.
    pub ignition_hash: Option<&'a Sha256Digest>,
    /// Consoles of the installed system.
    pub console: &'a [String],
    /// Kernel arguments of the installed system beside those of the profile.
    pub append_kargs: &'a [String],
}

/// A file for the live system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallerFile {
    /// Absolute path in the live system.
    pub path: String,
    /// Its YAML text.
    pub contents: String,
}

/// The installer's configuration file. The installer reads these before the `*.inst.*` kernel arguments.
///
/// # Errors
/// [`ProfileError`] when a value is not usable, or the configuration would come unverified.
pub fn installer_config(profile: &Profile, config: &InstallerConfig<'_>) -> Result<InstallerFile, ProfileError> {
    check(config, config.ignition_hash.is_some())?;
    let mut yaml = String::from("# Written by nkd.\n");
    let mut line = |key: &str, value: &str| {
        // A JSON string is a YAML string. Writing to a `String` cannot fail.
        let _ = writeln!(yaml, "{key}: {value}");
    };
    match &config.image {
        InstallerImage::Offline => line("offline", "true"),
        InstallerImage::Url { url, insecure } => {
            line("image-url", &quoted(url.as_str()));
            if *insecure {
                line("insecure", "true");
            }
        }
    }
    line("dest-device", &quoted(config.dest_device));
    if let Some(url) = config.ignition_url {
        line("ignition-url", &quoted(url.as_str()));
    }
    if let Some(hash) = config.ignition_hash {
        line("ignition-hash", &quoted(&format!("sha256-{hash}")));
    }
    if !config.console.is_empty() {
        line("console", &quoted_list(config.console.iter()));
    }
    if !config.append_kargs.is_empty() || !profile.installed_args.is_empty() {
        line("append-karg", &quoted_list(profile.installed_args.iter().chain(config.append_kargs)));
    }
    Ok(InstallerFile { path: format!("/etc/{}/installer.d/10-nkd.yaml", profile.karg_prefix), contents: yaml })
}

/// The fallback without an installer file: kernel arguments. They know neither digests nor consoles.
///
/// # Errors
/// [`ProfileError`] when a value is not usable, or the image is offline, or the configuration would come unverified.
pub fn installer_kargs(profile: &Profile, config: &InstallerConfig<'_>) -> Result<Vec<String>, ProfileError> {
    check(config, false)?;
    let prefix = &profile.karg_prefix;
    let InstallerImage::Url { url, insecure } = &config.image else {
        return Err(ProfileError::OfflineByArgument(profile.name.clone()));
    };
    let mut args =
        vec![format!("{prefix}.inst.install_dev={}", config.dest_device), format!("{prefix}.inst.image_url={url}")];
    if *insecure {
        args.push(format!("{prefix}.inst.insecure"));
    }
    args.extend(config.ignition_url.map(|url| format!("{prefix}.inst.ignition_url={url}")));
    args.iter().try_for_each(|a| check_argument(a))?;
    Ok(args)
}

/// The longest path of a disk.
const DISK_LIMIT: usize = 255;

/// True for the path of a disk under `/dev`: names as udev gives them, none empty, none that leads elsewhere.
#[must_use]
pub fn names_a_disk(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c);
    let fits = |name: &str| !matches!(name, "" | "." | "..") && name.chars().all(plain);
    path.len() <= DISK_LIMIT && path.strip_prefix("/dev/").is_some_and(|rest| rest.split('/').all(fits))
}

fn check(config: &InstallerConfig<'_>, hashed: bool) -> Result<(), ProfileError> {
    if !names_a_disk(config.dest_device) {
        return Err(ProfileError::Device(config.dest_device.to_owned()));
    }
    if let Some(url) = config.ignition_url
        && url.scheme() != "https"
        && !hashed
    {
        return Err(ProfileError::Unverified(url.clone()));
    }
    config.console.iter().chain(config.append_kargs).try_for_each(|a| check_argument(a))
}

fn check_argument(argument: &str) -> Result<(), ProfileError> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'');
    if argument.is_empty() || argument.contains(bad) {
        return Err(ProfileError::Argument(argument.to_owned()));
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quoted_list<'a>(items: impl Iterator<Item = &'a String>) -> String {
    format!("[{}]", items.map(|i| quoted(i)).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests;
