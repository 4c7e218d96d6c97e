//! `nkd upgrade ...`
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use clap::{Args, Subcommand};
use nkd_api::update::{MaxUnavailable, NodeState, NodeStatus, Window};
use nkd_api::upgrade::{
    Finding, NodeExplained, Part, Planned, Upgrade, UpgradeChange, UpgradeOrder, UpgradeSnapshot, UpgradeState,
    UpgradeVerb,
};
use reqwest::Method;
use time::OffsetDateTime;

use super::CliError;
use super::client::{Client, segment};
use super::cluster_snapshot::limits;
use super::context::ContextArgs;
use super::output::{OutputArgs, age, table};

#[derive(Debug, Subcommand)]
pub(super) enum UpgradeCommand {
    /// Upgrade a cluster to a release of a channel, node by node
    Start(Box<StartArgs>),
    /// How far the newest upgrade of a cluster is
    Status {
        /// Cluster
        cluster: String,
        /// Go on until it is over; the exit code is 0 when it is complete
        #[arg(short, long)]
        watch: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Begin no further node
    Pause(ChangeArgs),
    /// Go on after a pause
    Resume(ChangeArgs),
    /// Stop: nodes that have begun come to their end, others stay as they are
    Abort(ChangeArgs),
    /// Try again what has failed: nodes, or the snapshot of etcd
    Retry(ChangeArgs),
    /// All upgrades of a cluster, the newest first
    History {
        /// Cluster
        cluster: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Why a node stands where it stands
    Explain {
        /// Machine: name, id, MAC, UUID or serial number
        node: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// Cluster
    cluster: String,
    /// Channel [default: the one that the cluster's file names]
    #[arg(long)]
    channel: Option<String>,
    /// Number of the release [default: the newest that is no dead end]
    #[arg(long)]
    release: Option<u32>,
    /// Only the operating system
    #[arg(long, conflicts_with = "kubernetes_only")]
    os_only: bool,
    /// Only Kubernetes, whose programs the nodes hold already
    #[arg(long)]
    kubernetes_only: bool,
    /// Nodes that may be away at the same time, like 2 or 10% [default: what the cluster's file says]
    #[arg(long, value_name = "NUMBER", value_parser = max_unavailable)]
    max_unavailable: Option<MaxUnavailable>,
    /// How long a node that is healthy again is watched before the next one begins, like 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = seconds, default_value = "0s")]
    soak: u32,
    /// After so many failed nodes no further one begins [default: 2, or 1 that went back from the release by itself]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    halt_after: Option<u32>,
    /// How long the pods of a node may take to leave [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = some_seconds)]
    drain_timeout: Option<u32>,
    /// Delete pods that do not leave in time, instead of leaving their node as it was
    #[arg(long)]
    force_drain: bool,
    /// When nodes may begin, in UTC: 22:30+4h, or 'sat,sun 22:30+4h' [default: what the cluster's file says, else any time]
    #[arg(long, value_name = "WINDOW", value_parser = window)]
    window: Option<Window>,
    /// A check of kubeadm that may fail, like ImagePull
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    ignore_preflight_errors: Vec<String>,
    /// Go on though APIs are in use that the new Kubernetes does not have: who asks for them will get nothing
    #[arg(long)]
    ignore_removed_apis: bool,
    /// Take no snapshot of etcd before: only for who has one of their own
    #[arg(long)]
    skip_snapshot: bool,
    /// Only print the plan and what stands in its way
    #[arg(long)]
    dry_run: bool,
    /// Go on until it is over; the exit code is 0 when it is complete
    #[arg(short, long, conflicts_with = "dry_run")]
    watch: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// Cluster
    cluster: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Seconds, from `90s`, `10m` or `2h`.
fn seconds(text: &str) -> Result<u32, String> {
    let units = [('s', 1), ('m', 60), ('h', 3600)];
    let read = |(unit, factor): (char, u32)| text.strip_suffix(unit)?.parse::<u32>().ok()?.checked_mul(factor);
    units.into_iter().find_map(read).ok_or_else(|| "write it like 90s, 10m or 2h".to_owned())
}

/// The same, and not none.
fn some_seconds(text: &str) -> Result<u32, String> {
    match seconds(text)? {
        0 => Err("no pod could ever leave in time: give at least 1s".to_owned()),
        seconds => Ok(seconds),
    }
}

fn window(text: &str) -> Result<Window, String> {
    text.parse()
}

fn max_unavailable(text: &str) -> Result<MaxUnavailable, String> {
    let read: MaxUnavailable = text.parse().map_err(|error: nkd_api::update::NotACount| error.to_string())?;
    if read == MaxUnavailable::Count(0) {
        return Err("with 0 no node would ever begin".to_owned());
    }
    Ok(read)
}

pub(super) async fn run(command: UpgradeCommand, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    match command {
        UpgradeCommand::Start(args) => start(&client, *args).await,
        UpgradeCommand::Status { cluster, watch: true, output } => watch(&client, &cluster, output).await,
        UpgradeCommand::Status { cluster, watch: false, output } => {
            let upgrade: Upgrade = client.get(&of(&cluster, "upgrade")).await?;
            output.print(&upgrade, text);
            Ok(())
        }
        UpgradeCommand::Pause(args) => change(&client, args, UpgradeVerb::Pause, "begins no further node").await,
        UpgradeCommand::Resume(args) => change(&client, args, UpgradeVerb::Resume, "goes on").await,
        UpgradeCommand::Abort(args) => {
            change(&client, args, UpgradeVerb::Abort, "is to stop when nodes that have begun are done").await
        }
        UpgradeCommand::Retry(args) => change(&client, args, UpgradeVerb::Retry, "tries what failed again").await,
        UpgradeCommand::History { cluster, output } => {
            let upgrades: Vec<Upgrade> = client.get(&of(&cluster, "upgrades")).await?;
            output.print(&upgrades, |upgrades| {
                let now = OffsetDateTime::now_utc();
                let row = |u: &Upgrade| {
                    let kubernetes = u.kubernetes.clone().unwrap_or_else(|| "-".into());
                    let end = u.ended_at.map_or_else(|| "-".into(), |at| age(at, now));
                    let state = u.state.as_str().to_owned();
                    let of = |wanted: &UpgradeSnapshot| Some(wanted.newest.as_ref()?.state.as_str().to_owned());
                    let snapshot = u.snapshot.as_ref().and_then(of).unwrap_or_else(|| "none".into());
                    let begun = age(u.started_at, now);
                    vec![u.number.to_string(), release(u), kubernetes, state, snapshot, begun, end, u.by.clone()]
                };
                let head = ["UPGRADE", "RELEASE", "KUBERNETES", "STATE", "SNAPSHOT", "BEGUN", "ENDED", "BY"];
                table(&head, upgrades.iter().map(row))
            });
            Ok(())
        }
        UpgradeCommand::Explain { node, output } => {
            let explained: NodeExplained = client.get(&format!("/api/v1/machines/{}/upgrade", segment(&node))).await?;
            output.print(&explained, |e| {
                let place = e.cluster.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
                format!("{}{place}:\n  {}", e.machine, e.sentences.join("\n  "))
            });
            Ok(())
        }
    }
}

fn of(cluster: &str, what: &str) -> String {
    format!("/api/v1/clusters/{}/{what}", segment(cluster))
}

async fn start(client: &Client, args: StartArgs) -> Result<(), CliError> {
    let order = UpgradeOrder {
        channel: args.channel,
        release: args.release,
        part: match (args.os_only, args.kubernetes_only) {
            (true, _) => Part::Os,
            (_, true) => Part::Kubernetes,
            _ => Part::Both,
        },
        max_unavailable: args.max_unavailable,
        drain_seconds: args.drain_timeout,
        force_drain: args.force_drain,
        soak_seconds: args.soak,
        halt_after: args.halt_after,
        window: args.window,
        ignore_preflight_errors: args.ignore_preflight_errors,
        ignore_removed_apis: args.ignore_removed_apis,
        skip_snapshot: args.skip_snapshot,
        dry_run: args.dry_run,
    };
    let planned: Planned = client.call(Method::POST, &of(&args.cluster, "upgrades"), Some(&order)).await?;
    if !args.watch || args.output.is_table() {
        let (cluster, dry_run) = (args.cluster.clone(), args.dry_run);
        args.output.print(&planned, |planned| plan(planned, &cluster, dry_run));
    }
    let mut refused = planned.findings.iter().filter(|finding| finding.refused);
    if args.dry_run
        && let Some(Finding { message, .. }) = refused.next()
    {
        let more = match refused.count() {
            0 => String::new(),
            count => format!(" (and {count} more)"),
        };
        return Err(CliError::Ended(format!("an upgrade of {} would not be begun: {message}{more}", args.cluster)));
    }
    if args.watch { watch(client, &args.cluster, args.output).await } else { Ok(()) }
}

async fn change(client: &Client, args: ChangeArgs, verb: UpgradeVerb, said: &str) -> Result<(), CliError> {
    let upgrade: Upgrade =
        client.call(Method::PATCH, &of(&args.cluster, "upgrade"), Some(&UpgradeChange { verb })).await?;
    args.output.print(&upgrade, |u| format!("upgrade {} of {} {said}", u.number, u.cluster));
    Ok(())
}

/// Prints every change until nothing more happens by itself.
async fn watch(client: &Client, cluster: &str, output: OutputArgs) -> Result<(), CliError> {
    let (path, mut last) = (of(cluster, "upgrade?watch=true"), None);
    let told = client.watch(&path, |upgrade: Upgrade| {
        if last.as_ref() != Some(&upgrade) {
            output.print(&upgrade, text);
        }
        let ended = ended(&upgrade);
        last = Some(upgrade);
        ended
    });
    told.await?
}

/// How one has ended that does not go on by itself.
fn ended(upgrade: &Upgrade) -> Option<Result<(), CliError>> {
    let Upgrade { number, cluster, detail, .. } = upgrade;
    match upgrade.state {
        UpgradeState::Complete => Some(Ok(())),
        UpgradeState::Aborted => Some(Err(CliError::Ended(format!("upgrade {number} of {cluster} was stopped")))),
        UpgradeState::Halted => {
            let next = next(upgrade).map(|next| format!("; {next}")).unwrap_or_default();
            Some(Err(CliError::Ended(format!("upgrade {number} of {cluster} has halted: {detail}{next}"))))
        }
        _ => None,
    }
}

/// `stable 2 (24.03)`
fn release(upgrade: &Upgrade) -> String {
    let channel = upgrade.order.channel.as_deref().unwrap_or("?");
    let number = upgrade.order.release.map_or_else(|| "?".to_owned(), |number| number.to_string());
    format!("{channel} {number} ({})", upgrade.version)
}

fn plan(planned: &Planned, cluster: &str, dry_run: bool) -> String {
    let upgrade = &planned.upgrade;
    let os = upgrade
        .commit
        .as_ref()
        .map(|commit| format!("system {} ({})", upgrade.version, &commit[..12.min(commit.len())]));
    let kubernetes = upgrade.kubernetes.as_ref().map(|to| match *to == upgrade.from_kubernetes {
        true => format!("Kubernetes stays {to}"),
        false => format!("Kubernetes {} to {to}", upgrade.from_kubernetes),
    });
    let what: Vec<String> = [os, kubernetes].into_iter().flatten().collect();
    let away = upgrade.order.max_unavailable.map_or_else(|| "1".to_owned(), |max| max.to_string());
    let mut lines =
        vec![format!("upgrade {} of {cluster} to {}: {}", upgrade.number, release(upgrade), what.join(", "))];
    if upgrade.snapshot.is_some() {
        lines.push("first a snapshot of etcd, proven by a restore on its node".to_owned());
    }
    lines.push(format!("nodes, at most {away} away at a time: {}", planned.order.join(", ")));
    lines.extend(upgrade.order.window.as_ref().map(|window| format!("nodes begin only within {window} (UTC)")));
    for finding in &planned.findings {
        let word = if finding.refused { "in the way" } else { "know" };
        lines.push(format!("{word}: {}", finding.message));
    }
    lines.push(match dry_run {
        true => "nothing was begun (--dry-run)".to_owned(),
        false => format!("begun: `nkd upgrade status {cluster} --watch` shows how far it is"),
    });
    lines.join("\n")
}

fn text(upgrade: &Upgrade) -> String {
    let now = OffsetDateTime::now_utc();
    let row = |node: &NodeStatus| {
        let reason = if node.reason.is_empty() { "-".to_owned() } else { node.reason.clone() };
        vec![node.name.clone(), format!("{:?}", node.state), age(node.since, now), node.attempt.to_string(), reason]
    };
    let nodes = match upgrade.nodes.is_empty() {
        true if upgrade.state == UpgradeState::Preparing => "the cluster has not been told yet".to_owned(),
        true => "the operator in the cluster has not said anything yet".to_owned(),
        false => table(&["NODE", "STATE", "SINCE", "ATTEMPT", "REASON"], upgrade.nodes.iter().map(row)),
    };
    let detail = if upgrade.detail.is_empty() { String::new() } else { format!(": {}", upgrade.detail) };
    let (number, cluster, state) = (upgrade.number, &upgrade.cluster, upgrade.state.as_str());
    let window = upgrade.order.window.as_ref().map(|window| format!("\nnodes begin only within {window} (UTC)"));
    // The cluster does not know it yet, and so nobody there says it.
    let said = match (upgrade.state, upgrade.aborted, upgrade.paused) {
        (UpgradeState::Preparing, true, _) => ", and called off",
        (UpgradeState::Preparing | UpgradeState::Running, false, true) => ", and is to pause",
        _ => "",
    };
    let head = format!("upgrade {number} of {cluster} to {} is {state}{said}{detail}", release(upgrade));
    let next = next(upgrade).map(|next| format!("\nnext: {next}")).unwrap_or_default();
    format!("{head}\n{}{}{next}\n\n{nodes}\n", snapshot(upgrade), window.unwrap_or_default())
}

/// What a person can do for one that does not go on by itself.
fn next(upgrade: &Upgrade) -> Option<String> {
    let cluster = &upgrade.cluster;
    let failed = upgrade.nodes.iter().any(|node| node.state == NodeState::Failed);
    // All that are there are done: some were not there.
    let lacks = !upgrade.nodes.is_empty() && upgrade.nodes.iter().all(|node| node.state == NodeState::Done);
    let again = failed || lacks || upgrade.snapshot.as_ref().is_some_and(|wanted| !wanted.is_taken());
    match upgrade.state {
        UpgradeState::Halted if again => Some(format!(
            "put it right and run `nkd upgrade retry {cluster}`, or leave it at that with `nkd upgrade abort {cluster}`"
        )),
        UpgradeState::Halted => Some(format!("`nkd upgrade abort {cluster}`")),
        UpgradeState::Paused => Some(format!("`nkd upgrade resume {cluster}` lets it go on")),
        _ => None,
    }
}

/// What became of the snapshot that comes first.
fn snapshot(upgrade: &Upgrade) -> String {
    let Some(wanted) = &upgrade.snapshot else { return "etcd: no snapshot was taken before".to_owned() };
    match &wanted.newest {
        None => "etcd: a snapshot comes first".to_owned(),
        Some(one) => match &one.proof {
            Some(proof) => format!(
                "etcd: snapshot {} of {}, proven by a restore: revision {}, {} keys{}",
                one.id,
                one.node,
                proof.revision,
                proof.keys,
                limits(proof)
            ),
            None => format!("etcd: snapshot {} of {} is {}", one.id, one.node, one.state.as_str()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_are_read() {
        assert_eq!((seconds("90s"), seconds("10m"), seconds("2h")), (Ok(90), Ok(600), Ok(7200)));
        assert!(["", "10", "m", "-1s", "99999999h"].into_iter().all(|text| seconds(text).is_err()));
        assert!(some_seconds("1s") == Ok(1) && some_seconds("0s").unwrap_err().contains("at least 1s"));
        assert_eq!(max_unavailable("10%"), Ok(MaxUnavailable::Percent(10)));
        assert_eq!(max_unavailable("2"), Ok(MaxUnavailable::Count(2)));
        assert!(["0", "0%", "101%", "x", ""].into_iter().all(|text| max_unavailable(text).is_err()));
    }

    #[test]
    fn an_upgrade_that_does_not_go_on_by_itself_says_what_to_do() {
        let upgrade = |state: &str, node: &str| -> Upgrade {
            let node = serde_json::json!({"name": "cp1", "state": node, "since": "2026-01-01T00:00:00Z", "reason": "",
                "attempt": 1});
            let upgrade = serde_json::json!({"cluster": "rack7", "number": 3, "order": {}, "version": "2",
                "fromKubernetes": "v1.20.2", "state": state, "paused": false, "aborted": false, "retry": 0, "by": "ada",
                "startedAt": "2026-01-01T00:00:00Z", "nodes": [node]});
            serde_json::from_value(upgrade).unwrap()
        };
        let said = |state: &str, node: &str| text(&upgrade(state, node));
        let halted = said("halted", "Failed");
        assert!(halted.contains("\nnext: put it right and run `nkd upgrade retry rack7`"), "{halted}");
        assert!(halted.contains("`nkd upgrade abort rack7`"), "{halted}");
        // A retry would be refused: no node has failed.
        let invalid = said("halted", "Waiting");
        assert!(invalid.contains("next: `nkd upgrade abort rack7`") && !invalid.contains("retry"), "{invalid}");
        // A node was not there when the others were done.
        assert!(said("halted", "Done").contains("\nnext: put it right and run `nkd upgrade retry rack7`"));
        assert!(said("paused", "Waiting").contains("next: `nkd upgrade resume rack7`"));
        assert!(!said("running", "Failed").contains("next:"));
    }
}
