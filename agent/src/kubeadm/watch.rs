//! The agent's side of a run: fetches the order, starts the unit, follows the journal.
#![expect(clippy::disallowed_methods, reason = "starts the unit and waits")]

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nkd_api::agent::{KubeadmAction, KubeadmState, KubeadmTask};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::Journal;
use super::snapshot::Snapshots;
use crate::client::{Client, chain};
use crate::files;

/// Between two looks at the journal.
const LOOK: Duration = Duration::from_millis(100);
/// One question to systemd for so many looks: it costs a process.
const LOOKS: u32 = 20;
/// How long systemd may take to answer.
const SYSTEMD: Duration = Duration::from_secs(30);

/// Where a run works.
#[derive(Debug, Clone)]
pub struct Place {
    /// State directory of the agent.
    pub state: PathBuf,
    /// Directory in memory that outlives the agent: orders.
    pub orders: PathBuf,
    /// Where systemctl and systemd-run are looked for.
    pub path: String,
}

/// Sees to it that the run takes place, or finds the one that was begun, and follows it to its end. `progress` hears each
/// step once. An error is worth another try; that kubeadm failed is no error.
///
/// # Errors
/// In one sentence: the order cannot be had, systemd does not start the unit, the journal does not read.
pub async fn carry_out(
    place: &Place,
    client: &Client,
    task: &KubeadmTask,
    progress: impl Fn(&str),
) -> Result<KubeadmState, String> {
    let journal = Journal::new(&place.state);
    let unit = format!("nkd-kubeadm-{}.service", task.operation.simple());
    let mut told = String::new();
    let mut begun = false;
    let mut looks = (0..LOOKS).cycle();
    loop {
        let entry = journal.read().map_err(|error| chain(&error))?.filter(|entry| entry.operation == task.operation);
        match entry.map(|entry| entry.state) {
            Some(KubeadmState::Running { step }) => {
                let before = std::mem::replace(&mut told, step);
                if told != before {
                    progress(&told);
                }
            }
            Some(KubeadmState::Done) if task.action == KubeadmAction::Snapshot => {
                progress("upload");
                return upload(place, client, task).await;
            }
            Some(ended) => return Ok(ended),
            None => {}
        }
        if looks.next() == Some(0) && !is_active(place, &unit).await? {
            // It may have ended between the two looks.
            let entry = journal.read().map_err(|error| chain(&error))?;
            if entry.is_some_and(|e| e.operation == task.operation && !matches!(e.state, KubeadmState::Running { .. }))
            {
                continue;
            }
            if begun {
                return Err(format!("{unit} ended without a word: see `journalctl -u {unit}`"));
            }
            begin(place, client, task, &unit).await?;
            begun = true;
        }
        sleep(LOOK).await;
    }
}

/// Brings a snapshot to the service, which keeps it. What is refused for good has failed.
async fn upload(place: &Place, client: &Client, task: &KubeadmTask) -> Result<KubeadmState, String> {
    let failed = |reason: String| KubeadmState::Failed { step: "upload".to_owned(), reason, log_tail: String::new() };
    let snapshots = Snapshots::new(&place.state);
    let Some((file, proof)) = snapshots.find(task.operation).map_err(|error| chain(&error))? else {
        return Ok(failed("the snapshot that was taken is not on the node any more".to_owned()));
    };
    match client.etcd_snapshot(task.operation, &proof, &file).await {
        Ok(()) => Ok(KubeadmState::Done),
        Err(error) if error.retry() => Err(chain(&error)),
        Err(error) => Ok(failed(chain(&error))),
    }
}

/// Starts the unit with a new order.
async fn begin(place: &Place, client: &Client, task: &KubeadmTask, unit: &str) -> Result<(), String> {
    let order = client.kubeadm(task.operation).await.map_err(|error| chain(&error))?;
    let path = place.orders.join(format!("kubeadm-{}.json", task.operation.simple()));
    files::make_private_dir(&place.orders).map_err(|error| chain(&error))?;
    files::write_json(&path, &order).map_err(|error| chain(&error))?;
    let program = std::env::current_exe().map_err(|error| format!("the agent does not find itself: {error}"))?;
    // One that was killed may be loaded still: systemd forgets a failed unit when it hears that the last of its processes is
    // gone, which it does not everywhere. That there is none is no error.
    let mut forget = Command::new("systemctl");
    forget.args(["reset-failed", unit]);
    output(place, forget).await?;
    let mut command = Command::new("systemd-run");
    command.arg(format!("--unit={unit}")).args(["--collect", "--no-block", "--quiet"]);
    command.args(["--property=Description=kubeadm for nkd", "--property=UMask=0022", "--property=KillMode=process"]);
    command.arg("--").arg(program).arg("kubeadm").arg("--order").arg(&path).arg("--state").arg(&place.state);
    let (code, text) = output(place, command).await?;
    if code != Some(0) {
        return Err(format!("systemd does not start {unit}: {text}"));
    }
    Ok(())
}

async fn is_active(place: &Place, unit: &str) -> Result<bool, String> {
    let mut command = Command::new("systemctl");
    command.args(["show", "--property=ActiveState", "--value", unit]);
    let (code, text) = output(place, command).await?;
    match (code, text.as_str()) {
        (Some(0), "active" | "activating" | "reloading" | "deactivating") => Ok(true),
        (Some(0), "inactive" | "failed" | "") => Ok(false),
        _ => Err(format!("systemd does not say how {unit} is: {text}")),
    }
}

async fn output(place: &Place, mut command: Command) -> Result<(Option<i32>, String), String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.env("PATH", &place.path).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(SYSTEMD, command.output()).await;
    let output = output.map_err(|_| format!("`{program}` did not end"))?;
    let output = output.map_err(|error| format!("`{program}` could not be run: {error}"))?;
    let mut text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        text.push_str(String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok((output.status.code(), text))
}
