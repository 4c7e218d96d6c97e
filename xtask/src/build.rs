//! What the chores build before they run anything: programs, images, and Debian packages installed.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::image;
use crate::{apt, repository};

/// Packages that whole machines need.
pub const VM_PACKAGES: [&str; 11] = [
    "curl",
    "cpio",
    "dnsmasq-base",
    "ignition",
    "iproute2",
    "ipxe",
    "ipxe-qemu",
    "ovmf",
    "qemu-system-x86",
    "qemu-utils",
    "tcpdump",
];

/// Packages that the tests need beside [`VM_PACKAGES`].
pub const TEST_PACKAGES: [&str; 22] = [
    "atftp",
    "busybox",
    "e2fsprogs",
    "faketime",
    "gcc",
    "gnupg",
    "gpgv",
    "grub-common",
    "grub-pc-bin",
    "isc-dhcp-client",
    "libcap2-bin",
    "openssh-client",
    "openssl",
    "ostree",
    "python3",
    "sqlite3",
    "tftp-hpa",
    "udhcpc",
    "util-linux",
    "xorriso",
    "xz-utils",
    "zstd",
];

/// Clients of the registry. Debian would start containerd, which the tests do themselves.
pub const REGISTRY_CLIENTS: [&str; 3] = ["containerd", "podman", "skopeo"];

/// Installs Debian packages that are missing.
pub fn packages(names: &[&str]) -> Result<()> {
    apt::ensure(names, &image::logs()?)
}

/// The same for packages of servers, which are not started.
pub fn stopped_packages(names: &[&str]) -> Result<()> {
    apt::ensure_stopped(names, &image::logs()?)
}

/// Where cargo puts what it builds. In CI the checkout is new and this is in the cache.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// Builds the `nkd` program as the tests use it.
pub fn nkd() -> Result<PathBuf> {
    cargo(&["build", "--package", "nkd-server", "--bin", "nkd"])?;
    Ok(target().join("debug/nkd"))
}

/// Builds the agent as the tests of namespace machines use it.
pub fn agent() -> Result<PathBuf> {
    cargo(&["build", "--package", "nkd-agent"])?;
    Ok(target().join("debug/nkd-agent"))
}

/// Builds the operator's program as one test runs it beside a cluster, under a clock of its own.
pub fn operator() -> Result<PathBuf> {
    cargo(&["build", "--package", "nkd-operator"])?;
    Ok(target().join("debug/housekeeper"))
}

/// Builds Kubernetes for the tests, or finds what the same inputs made earlier.
pub fn kubernetes() -> Result<PathBuf> {
    image::kubernetes()
}

/// Builds the operator's image, or finds what the same program made earlier.
pub fn housekeeper() -> Result<PathBuf> {
    image::housekeeper()
}

/// Builds an ostree that checks ed25519 signatures, or finds the one that was built earlier.
pub fn ostree_ed25519() -> Result<PathBuf> {
    Ok(image::ostree()?.join("bin/ostree"))
}

/// Builds the lab image, or finds the one that the same inputs made earlier.
pub fn lab_image() -> Result<PathBuf> {
    image::lab("1", None)
}

/// The same with Kubernetes in it.
pub fn cluster_image() -> Result<PathBuf> {
    image::lab("1", Some(nkd_vm_tests::LabCluster::KUBERNETES))
}

/// The release after that one: another version of the image with a newer Kubernetes.
pub fn newer_image() -> Result<PathBuf> {
    image::lab("2", Some(nkd_vm_tests::LabCluster::NEWER))
}

/// The installer that the lab image carries.
pub fn installer() -> Result<PathBuf> {
    image::installer()
}

/// Runs cargo in the repository; its output is the caller's.
pub fn cargo(words: &[&str]) -> Result<()> {
    cargo_with(words, &[])
}

/// The same with further environment.
pub fn cargo_with(words: &[&str], environment: &[(&str, &OsStr)]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(words)
        .envs(environment.iter().copied())
        .current_dir(repository())
        .status()
        .context("cargo cannot be run")?;
    ensure!(status.success(), "cargo {} failed ({status})", words.join(" "));
    Ok(())
}

/// What cargo prints, run in the repository.
pub fn cargo_output(words: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    text(Command::new(cargo).current_dir(repository()), &words)
}

/// What a program prints; its errors are in the message if it fails.
pub fn output(program: impl AsRef<OsStr>, words: &[OsString]) -> Result<String> {
    text(&mut Command::new(program), words)
}

/// The same in a folder.
pub fn output_in(folder: &Path, program: &str, words: &[OsString]) -> Result<String> {
    text(Command::new(program).current_dir(folder), words)
}

/// The same with further environment.
pub fn output_with(program: &str, words: &[OsString], environment: &[(&str, &str)]) -> Result<String> {
    text(Command::new(program).envs(environment.iter().copied()), words)
}

/// What a program prints when that is no text.
pub fn output_bytes(program: &str, words: &[OsString]) -> Result<Vec<u8>> {
    bytes(&mut Command::new(program), words)
}

fn text(command: &mut Command, words: &[OsString]) -> Result<String> {
    String::from_utf8(bytes(command, words)?).context("its output is no text")
}

fn bytes(command: &mut Command, words: &[OsString]) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.args(words).output().with_context(|| format!("{name} cannot be run"))?;
    ensure!(
        output.status.success(),
        "{name} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(output.stdout)
}
