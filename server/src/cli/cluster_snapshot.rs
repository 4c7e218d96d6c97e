//! `nkd cluster snapshot ...`

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::StreamExt;
use nkd_api::Sha256Digest;
use nkd_api::snapshot::{EtcdSnapshot, SnapshotProof, SnapshotState};
use reqwest::Method;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::CliError;
use super::client::{Client, ClientError, segment};
use super::context::ContextArgs;
use super::output::{OutputArgs, bytes, clock, table};

/// Between two looks of `--watch`.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Take a snapshot of etcd on a control plane; it counts once it was restored there and everything came back
    Take {
        /// Name of the cluster
        name: String,
        /// Go on until it is there; the exit code is 0 when it is
        #[arg(short, long)]
        watch: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the snapshots of a cluster, the newest first
    List {
        /// Name of the cluster
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Write a snapshot to standard output, as `etcdctl snapshot save` made it: it holds every secret of the cluster
    Get {
        /// Name of the cluster
        name: String,
        /// Snapshot, as `list` shows it
        id: Uuid,
    },
}

pub(super) async fn run(arguments: SnapshotArgs, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    match arguments.command {
        SnapshotCommand::Take { name, watch, output } => take(&client, &name, watch, output).await,
        SnapshotCommand::List { name, output } => {
            let all: Vec<EtcdSnapshot> = client.get(&of(&name)).await?;
            output.print(&all, |all| text(all));
            Ok(())
        }
        SnapshotCommand::Get { name, id } => get(&client, &name, id).await,
    }
}

fn of(cluster: &str) -> String {
    format!("/api/v1/clusters/{}/snapshots", segment(cluster))
}

async fn take(client: &Client, cluster: &str, watch: bool, output: OutputArgs) -> Result<(), CliError> {
    let mut snapshot: EtcdSnapshot = client.call(Method::POST, &of(cluster), None::<&()>).await?;
    output.print(&snapshot, said);
    if !watch {
        return Ok(());
    }
    loop {
        let seen: EtcdSnapshot = client.poll(&format!("{}/{}", of(cluster), snapshot.id)).await?;
        if (seen.state, &seen.detail) != (snapshot.state, &snapshot.detail) {
            output.print(&seen, said);
        }
        match seen.state {
            SnapshotState::Verified => return Ok(()),
            SnapshotState::Failed => {
                return Err(CliError::Ended(format!("no snapshot of {cluster} was taken: {}", seen.detail)));
            }
            SnapshotState::Taking => {}
        }
        snapshot = seen;
        tokio::time::sleep(LOOK).await;
    }
}

/// What comes is checked; whoever has a file of it knows by the exit code whether it is one.
async fn get(client: &Client, cluster: &str, id: Uuid) -> Result<(), CliError> {
    if std::io::stdout().is_terminal() {
        let message = format!("a snapshot is no text: nkd cluster snapshot get {cluster} {id} > FILE");
        return Err(CliError::Words(message));
    }
    let path = format!("{}/{id}", of(cluster));
    let snapshot: EtcdSnapshot = client.get(&path).await?;
    let answer = client.send(Method::GET, &format!("{path}/data"), None::<&()>).await?;
    let (mut stream, mut hash, mut out) = (answer.bytes_stream(), Sha256::new(), std::io::stdout());
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|source| ClientError::Answer { server: "the service".into(), source })?;
        hash.update(&piece);
        out.write_all(&piece).map_err(|error| CliError::Ended(format!("standard output: {error}")))?;
    }
    out.flush().map_err(|error| CliError::Ended(format!("standard output: {error}")))?;
    let digest = Sha256Digest(hash.finalize().into());
    match snapshot.proof.filter(|proof| proof.sha256 == digest) {
        Some(_) => Ok(()),
        None => Err(CliError::Ended(format!("what came is not the snapshot {id}: its digest is {digest}; try again"))),
    }
}

fn said(snapshot: &EtcdSnapshot) -> String {
    let EtcdSnapshot { id, node, .. } = snapshot;
    match (&snapshot.proof, snapshot.detail.as_str()) {
        (Some(proof), _) => format!(
            "{id}: verified, {} with {} keys at revision {}, by etcd {} on {node}{}",
            bytes(proof.size),
            proof.keys,
            proof.revision,
            proof.etcd_version,
            limits(proof)
        ),
        (None, "") => format!("{id}: ordered of {node}"),
        (None, detail) => format!("{id}: {} on {node}: {detail}", snapshot.state.as_str()),
    }
}

/// What is not proven of it.
pub(super) fn limits(proof: &SnapshotProof) -> String {
    proof.not_compared.as_ref().map(|what| format!("; {what}")).unwrap_or_default()
}

fn text(all: &[EtcdSnapshot]) -> String {
    let row = |s: &EtcdSnapshot| {
        let or = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let proof = s.proof.as_ref();
        vec![
            s.id.to_string(),
            s.state.as_str().to_owned(),
            format!("{} {}", s.ordered_at.date(), clock(s.ordered_at)),
            if s.node.is_empty() { "-".to_owned() } else { s.node.clone() },
            or(s.upgrade.map(|number| number.to_string())),
            s.by.clone(),
            or(proof.map(|proof| bytes(proof.size))),
            or(proof.map(|proof| proof.revision.to_string())),
            or(proof.map(|proof| proof.keys.to_string())),
            or(proof.map(|proof| proof.etcd_version.clone())),
            match proof.and_then(|proof| proof.not_compared.clone()) {
                Some(what) => what,
                None if s.detail.is_empty() => "-".to_owned(),
                None => s.detail.clone(),
            },
        ]
    };
    let head = ["SNAPSHOT", "STATE", "ORDERED", "NODE", "UPGRADE", "BY", "SIZE", "REVISION", "KEYS", "ETCD", "DETAIL"];
    table(&head, all.iter().map(row))
}
