//! The programs as they are released: `nkd`, and agent and operator as one static file each.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::elf;
use crate::build;

/// A node image carries the agent, and a machine in the live system holds it in memory.
const AGENT_LIMIT: u64 = 8 << 20;
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-C target-feature=+crt-static";

/// Builds the static agent. It fails if that is not static or too large.
pub fn agent_binary() -> Result<PathBuf> {
    checked_agent(static_binary("nkd-agent", "nkd-agent")?)
}

/// Builds the operator, which is alone in its image and so has to be static.
pub fn housekeeper_binary() -> Result<PathBuf> {
    checked_static(static_binary("nkd-operator", "housekeeper")?)
}

fn static_binary(package: &str, name: &str) -> Result<PathBuf> {
    let mut flags = std::env::var_os("RUSTFLAGS").unwrap_or_default();
    if !flags.to_string_lossy().contains(STATIC) {
        flags.push(if flags.is_empty() { "" } else { " " });
        flags.push(STATIC);
    }
    let words = ["build", "--locked", "--release", "--package", package, "--bin", name, "--target", TARGET];
    build::cargo_with(&words, &[("RUSTFLAGS", flags.as_os_str())])?;
    release(&[TARGET], name)
}

/// Builds the service and command line.
pub fn nkd_binary() -> Result<PathBuf> {
    build::cargo(&["build", "--locked", "--release", "--package", "nkd-server", "--bin", "nkd"])?;
    release(&[], "nkd")
}

fn release(below: &[&str], name: &str) -> Result<PathBuf> {
    let mut path = build::target();
    path.extend(below);
    path.extend(["release", name]);
    path.canonicalize().with_context(|| format!("no {} after the build", path.display()))
}

/// The program, if it runs without any library.
pub fn checked_static(program: PathBuf) -> Result<PathBuf> {
    let file = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let is_static = elf::is_static(&file).with_context(|| program.display().to_string())?;
    ensure!(is_static, "{} is not static: it names a loader", program.display());
    Ok(program)
}

/// The agent, if it is what a node image may carry.
pub fn checked_agent(program: PathBuf) -> Result<PathBuf> {
    let program = checked_static(program)?;
    let size = fs::metadata(&program).with_context(|| format!("cannot read {}", program.display()))?.len();
    ensure!(size <= AGENT_LIMIT, "{} has {size} bytes, more than the {AGENT_LIMIT} allowed", program.display());
    Ok(program)
}

/// The newest glibc that a dynamic program asks for, `2.36`.
pub fn glibc_version(program: &Path) -> Result<String> {
    let output = build::output("objdump", &["-T".into(), OsString::from(program)])?;
    newest_glibc(&output).with_context(|| format!("{} asks for no version of glibc", program.display()))
}

fn newest_glibc(symbols: &str) -> Option<String> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let text = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()
    });
    let newest = versions.max()?;
    Some(newest.iter().map(u32::to_string).collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let symbols = "DF *UND* 0 (GLIBC_2.9) a\nDF *UND* 0 (GLIBC_2.34) b\nDF *UND* 0 (GLIBC_2.2.5) c\n";
        assert_eq!(newest_glibc(symbols).as_deref(), Some("2.34"));
        assert_eq!(newest_glibc("no symbols"), None);
    }

    #[test]
    fn a_large_or_dynamic_agent_is_refused() {
        let own = std::env::current_exe().unwrap();
        assert!(checked_agent(own).unwrap_err().to_string().contains("not static"));
    }
}
