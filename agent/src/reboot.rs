//! Restarts the machine.
#![expect(clippy::disallowed_methods, reason = "runs systemctl")]

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

/// systemd may take this long to answer, and to begin.
const PATIENCE: Duration = Duration::from_secs(60);
/// And this long to go down: units have their time. Its own watchdog waits as long.
const GOES_DOWN: Duration = Duration::from_secs(600);
/// Before that, logind lets a kubelet end its pods for as long as the cluster's owner has said.
const IS_ABOUT_TO: Duration = Duration::from_secs(3600);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
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
    /// `systemctl reboot`; the kernel itself when systemd has not begun in a minute, or does not get there in ten.
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
                    Ok(Ok(status)) if is_under_way(status) => {}
                    // Somebody has said so before, and logind refuses to be told twice.
                    Ok(Ok(status)) => tracing::warn!(%status, "systemctl reboot failed"),
                    Ok(Err(error)) => tracing::warn!(%error, "systemctl cannot be run"),
                    Err(_) => tracing::warn!("systemctl reboot does not end"),
                }
                let mut waited = Waited::default();
                while !waited.is_enough() {
                    let begun = Instant::now();
                    let seen = seen().await;
                    sleep(LOOK).await;
                    waited.add(seen, begun.elapsed());
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

/// What systemd says of its going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It does not.
    Runs,
    /// Those who have asked for it have their time.
    IsAboutTo,
    /// Units end; or nobody answers any more.
    GoesDown,
}

/// How long it has been so.
#[derive(Debug, Default)]
struct Waited {
    runs: Duration,
    is_about_to: Duration,
    goes_down: Duration,
}

impl Waited {
    fn add(&mut self, seen: Seen, time: Duration) {
        match seen {
            Seen::Runs => self.runs += time,
            Seen::IsAboutTo => self.is_about_to += time,
            Seen::GoesDown => self.goes_down += time,
        }
    }

    /// It does not get there by itself.
    fn is_enough(&self) -> bool {
        self.runs >= PATIENCE || self.is_about_to >= IS_ABOUT_TO || self.goes_down >= GOES_DOWN
    }
}

async fn seen() -> Seen {
    let says = async |program: &str, words: &[&str]| {
        let asked = Command::new(program).args(words).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = timeout(PATIENCE, asked).await.ok().and_then(Result::ok);
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    match says("systemctl", &["is-system-running"]).await.as_str() {
        "" | "stopping" | "offline" | "unknown" => Seen::GoesDown,
        _ if says("busctl", &LOGIND).await == "b true" => Seen::IsAboutTo,
        _ => Seen::Runs,
    }
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

    #[test]
    fn a_system_that_goes_down_has_its_time_and_one_that_does_not_is_reset() {
        use Seen::{GoesDown, IsAboutTo, Runs};
        let is_enough = |seen: &[(Seen, u64)]| {
            let mut waited = Waited::default();
            seen.iter().for_each(|(seen, seconds)| waited.add(*seen, Duration::from_secs(*seconds)));
            waited.is_enough()
        };
        assert!(is_enough(&[(Runs, 60)]) && !is_enough(&[(Runs, 55)]));
        // A kubelet that ends its pods for half an hour, and units after it.
        assert!(!is_enough(&[(Runs, 5), (IsAboutTo, 1800), (GoesDown, 595)]));
        assert!(is_enough(&[(IsAboutTo, 3600)]) && is_enough(&[(GoesDown, 600)]));
    }
}
