//! Debian's package manager: what the chores need of this machine, and where its packages come from.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::{root, stage};

const NONINTERACTIVE: [(&str, &str); 1] = [("DEBIAN_FRONTEND", "noninteractive")];
const ATTEMPTS: u32 = 3;

/// Installs those of `packages` that are not there. What fits none of them, such as a newer version of one that the archive has
/// not, apt takes away: then the archive's comes in its place.
pub fn ensure(packages: &[&str], logs: &Path) -> Result<()> {
    let mut wanted = missing(packages)?;
    for _ in 0..ATTEMPTS {
        if wanted.is_empty() {
            return Ok(());
        }
        install(&wanted, logs)?;
        wanted = missing(packages)?;
        if !wanted.is_empty() {
            eprintln!("apt has taken away what does not fit these: {}", wanted.join(" "));
        }
    }
    ensure!(wanted.is_empty(), "apt cannot have all of {} at once: see {}", packages.join(" "), log(logs).display());
    Ok(())
}

fn log(logs: &Path) -> PathBuf {
    logs.join("apt.log")
}

fn install(packages: &[&str], logs: &Path) -> Result<()> {
    eprintln!("installing Debian packages: {}", packages.join(" "));
    let log = log(logs);
    let install = || {
        let mut command = root::command("apt-get", &NONINTERACTIVE);
        command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        command
    };
    // The lists may be recent enough already; what fails with them is tried again with new ones.
    let mut result = stage::run("apt-get install", &log, install());
    for attempt in 1..ATTEMPTS {
        if result.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_secs(u64::from(attempt) * 3));
        let mut update = root::command("apt-get", &NONINTERACTIVE);
        update.arg("update");
        result =
            stage::run("apt-get update", &log, update).and_then(|()| stage::run("apt-get install", &log, install()));
    }
    result.with_context(|| format!("cannot install {}", packages.join(" ")))
}

/// The same for packages of servers, which Debian would start on the ports of this machine.
pub fn ensure_stopped(packages: &[&str], logs: &Path) -> Result<()> {
    if missing(packages)?.is_empty() {
        return Ok(());
    }
    let policy = Path::new("/usr/sbin/policy-rc.d");
    if policy.exists() {
        // Somebody has decided about this already.
        return ensure(packages, logs);
    }
    let write = |script: &str| {
        let mut command = root::command("sh", &NONINTERACTIVE);
        command.args(["-c", script]);
        stage::run("policy-rc.d", &log(logs), command)
    };
    write("printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d")?;
    let result = ensure(packages, logs);
    write("rm -f /usr/sbin/policy-rc.d")?;
    result
}

/// The Debian mirror that this machine uses, without a slash at its end.
pub fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("cannot run apt-get: the lab image is built on Debian")?;
    let targets = String::from_utf8_lossy(&output.stdout);
    match mirror_of(&targets) {
        Some(mirror) => Ok(mirror),
        None => {
            bail!("apt knows no Debian mirror (is /etc/apt configured, was `apt-get update` run?)")
        }
    }
}

fn mirror_of(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut fields = line.split('|');
        match (fields.next()?, fields.next()?, fields.next()?) {
            ("Debian", "Debian", uri) => Some(uri.trim_end_matches('/').to_owned()),
            _ => None,
        }
    })
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    // Names of unknown packages make dpkg-query fail; the known ones are printed all the same.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status} ${Package}\\n"])
        .args(packages)
        .output()
        .context("cannot run dpkg-query: the chores expect Debian")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let installed: HashSet<&str> = text.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    Ok(packages.iter().copied().filter(|package| !installed.contains(package)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_security_archive_is_not_the_mirror() {
        let targets = "|Other||https://packages.example/apt/\n\
            Debian|Debian-Security|http://mirror.example/debian-security/\n\
            Debian|Debian|http://mirror.example/snapshot/debian/\n";
        assert_eq!(mirror_of(targets).as_deref(), Some("http://mirror.example/snapshot/debian"));
        assert_eq!(mirror_of(""), None);
    }
}
