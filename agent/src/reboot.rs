//! Restarts the machine.
#![expect(clippy::disallowed_methods, reason = "runs systemctl")]

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// systemd may take this long to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// And this long to go down: units have their time, logind lets a kubelet end its pods first. Its own watchdog waits as long.
const GOES_DOWN: Duration = Duration::from_secs(600);
/// Whether it goes down, or is about to.
const LOGIND: [&str; 5] = [
    "get-property",
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
    "PreparingForShutdown",
];

/// How to restart.
#[derive(Debug, Clone)]
pub enum Reboot {
    /// `systemctl reboot`; the kernel itself when systemd does not answer in a minute, or does not get there in ten.
    System,
    /// This program, for tests.
    Program(PathBuf),
}

impl Reboot {
    /// Restarts. Comes back only when that did not work, with the reason.
    pub async fn run(&self) -> String {
        match self {
            Self::Program(program) => match Command::new(program).status().await {
                Ok(status) if status.success() => std::future::pending().await,
                Ok(status) => format!("{} ended with {status}", program.display()),
                Err(error) => format!("{} could not be run: {error}", program.display()),
            },
            Self::System => {
                let asked = Command::new("systemctl").arg("reboot").stdin(Stdio::null()).kill_on_drop(true).status();
                match timeout(PATIENCE, asked).await {
                    Ok(Ok(status)) if is_under_way(status) => sleep(GOES_DOWN).await,
                    Ok(Ok(_)) if goes_down().await => {
                        tracing::info!("the system goes down already");
                        sleep(GOES_DOWN).await;
                    }
                    Ok(Ok(status)) => tracing::warn!(%status, "systemctl reboot failed"),
                    Ok(Err(error)) => tracing::warn!(%error, "systemctl cannot be run"),
                    Err(_) => tracing::warn!("systemctl reboot does not end"),
                }
                nix::unistd::sync();
                match reboot(RebootMode::RB_AUTOBOOT) {
                    Ok(never) => match never {},
                    Err(error) => format!("the kernel refuses: {error}"),
                }
            }
        }
    }
}

/// systemd goes down. When it is quick it ends everything of our unit, `systemctl` too, before that has said its last word:
/// a restart by the kernel in that moment would cut off what makes the next deployment, and every database.
fn is_under_way(systemctl: ExitStatus) -> bool {
    systemctl.success() || systemctl.signal().is_some()
}

/// Somebody has said so before, and logind refuses to be told twice.
async fn goes_down() -> bool {
    let says = async |program: &str, words: &[&str]| {
        let asked = Command::new(program).args(words).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = timeout(PATIENCE, asked).await.ok().and_then(Result::ok);
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    says("busctl", &LOGIND).await == "b true" || says("systemctl", &["is-system-running"]).await == "stopping"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_systemctl_that_went_down_with_the_system_has_not_failed() {
        let (well, failed, terminated) = (0, 1 << 8, 15);
        assert!(is_under_way(ExitStatus::from_raw(well)) && is_under_way(ExitStatus::from_raw(terminated)));
        assert!(!is_under_way(ExitStatus::from_raw(failed)));
    }
}
