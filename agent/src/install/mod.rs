//! An installation: disk, configuration, image, installer.

mod disk;
mod fetch;
mod installer;
mod relay;
#[cfg(test)]
mod tests;
mod wipe;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use nkd_api::agent::InstallTask;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

pub use fetch::Patience;
pub use wipe::wipe_system;

use crate::client::{Client, chain};
use crate::facts::{Root, block};
use crate::files;
use crate::state::InstallFailure;
use installer::Log;
use relay::{Verdict, Wanted};

/// The installer may take this long for its last steps, once it has the whole image.
const FINISH: Duration = Duration::from_secs(900);

/// Where an installation works.
#[derive(Debug, Clone)]
pub struct Workplace {
    /// Root of /sys, /proc and /dev.
    pub root: Root,
    /// For the Ignition configuration; in memory.
    pub run_dir: PathBuf,
    /// Where the installer is looked for.
    pub path: String,
    /// When to give up on the image.
    pub patience: Patience,
}

/// Removes the configuration, which may hold secrets.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        if let Err(error) = files::remove(&self.0) {
            tracing::warn!(error = %chain(&error), "the configuration stays behind");
        }
    }
}

/// Writes the disk. `progress` hears the step and 0 to 100.
///
/// # Errors
/// [`InstallFailure`]; the disk does not boot then.
pub async fn install(
    place: &Workplace,
    client: &Client,
    task: &InstallTask,
    progress: impl Fn(&'static str, u8),
) -> Result<(), InstallFailure> {
    progress("fetch", 0);
    if !installer::is_program_name(&task.installer) {
        return Err(failure("task", false, format!("`{}` is not the name of an installer", task.installer)));
    }
    let wanted_disk = task.disk.as_deref().map(|device| block::resolve(&place.root, device));
    // A controller may still be looking for its disks: worth another try.
    let device = disk::choose(&block::list(&place.root), wanted_disk.as_deref(), task.image_size)
        .map_err(|error| failure("disk", !matches!(error, disk::DiskError::Ambiguous(_)), error.to_string()))?;
    let config = configuration(client, task.generation, place.patience).await?;
    write(place, task, &device, &config, &progress).await
}

/// The Ignition configuration, asked for until it comes or the patience ends.
async fn configuration(client: &Client, generation: u32, patience: Patience) -> Result<Bytes, InstallFailure> {
    let mut tries = 1;
    loop {
        match client.install_config(generation).await {
            Ok(config) if serde_json::from_slice::<serde_json::Value>(&config).is_ok() => return Ok(config),
            Ok(_) => return Err(failure("config", true, "the configuration that the service sent is not JSON".into())),
            Err(error) if error.retry() && tries < patience.tries => {
                tracing::warn!(error = %chain(&error), "the configuration did not come, trying again");
                sleep(patience.wait(tries)).await;
                tries += 1;
            }
            Err(error) => {
                let reason = format!("the configuration could not be fetched: {}", chain(&error));
                return Err(failure("config", error.retry(), reason));
            }
        }
    }
}

/// Writes `device`, once everything else is known.
async fn write(
    place: &Workplace,
    task: &InstallTask,
    device: &str,
    config: &[u8],
    progress: &impl Fn(&'static str, u8),
) -> Result<(), InstallFailure> {
    let ignition = Removed(place.run_dir.join(format!("install-{}.ign", task.generation)));
    files::make_private_dir(&place.run_dir)
        .and_then(|()| files::write_private(&ignition.0, config))
        .map_err(|error| failure("config", false, chain(&error)))?;

    let log = Log::default();
    let (verdict, result) = run(place, task, &ignition.0, device, &log, progress).await?;
    let ended = judge(&verdict, result, &task.image_sha256.to_string());
    let Err(mut failure) = ended else {
        return Ok(());
    };
    failure.log_tail = log.tail();
    if verdict != Verdict::Untouched {
        let path = place.root.path(device);
        let wiped = tokio::task::spawn_blocking(move || wipe::wipe(&path)).await.map_err(std::io::Error::other);
        if let Err(error) = wiped.flatten() {
            failure.retry = false;
            failure.reason = format!("{}; and the disk {device} could not be cleared: {error}", failure.reason);
        }
    }
    Err(failure)
}

/// Runs relay and installer side by side.
#[expect(clippy::disallowed_methods, reason = "opens the relay's socket")]
async fn run(
    place: &Workplace,
    task: &InstallTask,
    ignition: &Path,
    device: &str,
    log: &Log,
    progress: &impl Fn(&'static str, u8),
) -> Result<(Verdict, Result<ExitStatus, String>), InstallFailure> {
    let wanted = Wanted {
        url: task.image_url.clone(),
        sha256: task.image_sha256,
        size: task.image_size,
        patience: place.patience,
    };
    let socket = |error: std::io::Error| failure("write", false, format!("no loopback socket for the image: {error}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(socket)?;
    let port = listener.local_addr().map_err(socket)?.port();
    let url = format!("http://127.0.0.1:{port}/{}", wanted.file_name());
    let (sender, receiver) = watch::channel(Verdict::Untouched);
    let device = place.root.path(device);
    let arguments = installer::arguments(task, &url, ignition, &device.to_string_lossy());
    tracing::info!(program = task.installer, ?arguments, "the installer starts");
    let result = tokio::select! {
        result = installer::run(&task.installer, &arguments, &place.path, log) => {
            result.map_err(|error| format!("`{}` could not be run: {error}", task.installer))
        }
        () = relay::serve(listener, wanted, sender) => Err("the relay ended".into()),
        result = follow(receiver.clone(), task.image_size, progress) => Err(result),
    };
    let verdict = receiver.borrow().clone();
    Ok((verdict, result))
}

/// Tells the progress; ends only when the installer does not.
async fn follow(mut verdict: watch::Receiver<Verdict>, size: u64, progress: &impl Fn(&'static str, u8)) -> String {
    loop {
        let now = verdict.borrow_and_update().clone();
        match now {
            Verdict::Untouched => {}
            Verdict::Relaying(bytes) => {
                let percent = bytes.saturating_mul(100).checked_div(size).unwrap_or(100);
                progress("write", u8::try_from(percent.min(99)).unwrap_or(99));
            }
            Verdict::Verified => progress("verify", 100),
            Verdict::Mismatch(_) | Verdict::FetchFailed(_) | Verdict::Dropped(_) => {}
        }
        let ended = !matches!(now, Verdict::Untouched | Verdict::Relaying(_));
        let limit = if ended { FINISH } else { Duration::MAX };
        match timeout(limit, verdict.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return format!("the installer did not end in {} s and was stopped", FINISH.as_secs()),
        }
    }
}

/// What the end of the installer and the verdict on the image mean together.
fn judge(verdict: &Verdict, result: Result<ExitStatus, String>, sha256: &str) -> Result<(), InstallFailure> {
    let ended = match &result {
        Ok(status) => format!("the installer ended with {status}"),
        Err(reason) => reason.clone(),
    };
    let good = result.is_ok_and(|status| status.success());
    match verdict {
        Verdict::Verified if good => Ok(()),
        Verdict::Mismatch(found) => Err(failure(
            "verify",
            false,
            format!("the image's SHA-256 is {found}, the service said {sha256}; nothing was installed"),
        )),
        Verdict::FetchFailed(error) => Err(failure("fetch", true, error.to_string())),
        _ if good => {
            Err(failure("verify", false, "the installer says that it is done, but it never had the whole image".into()))
        }
        Verdict::Verified => Err(failure("finish", false, ended)),
        Verdict::Untouched | Verdict::Relaying(_) | Verdict::Dropped(_) => Err(failure("write", false, ended)),
    }
}

fn failure(step: &'static str, retry: bool, reason: String) -> InstallFailure {
    InstallFailure { step, retry, reason, log_tail: String::new() }
}
