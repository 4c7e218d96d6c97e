//! `nkd channel ...`
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::convert::Infallible;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use nkd_api::channel::{
    DeletedChannel, Explained, ExplainedRelease, MarkOrder, PromoteOrder, PruneOrder, Pruned, PublishOrder,
    PublishUpdate, Release, ShownChannel, UnknownRelease,
};
use reqwest::Method;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::channel_mirror::{self as mirror, MirrorArgs};
use super::client::{self, ClientError, segment};
use super::context::ContextArgs;
use super::output::{OutputArgs, age, cell, table};
use super::{CliError, confirm};
use crate::content::channel::PublishLine;
use crate::http::LEFT_OUT;

#[derive(Debug, Subcommand)]
pub(super) enum ChannelCommand {
    /// Publish a commit of an ostree repository as the channel's next release
    Publish(Box<PublishArgs>),
    /// Make a release of a channel the next release of another one
    Promote(PromoteArgs),
    /// Follow a ref of an upstream repository: each new commit there is the channel's next release
    Mirror(Box<MirrorArgs>),
    /// Retire old releases that nobody needs
    Prune {
        /// Channel
        name: String,
        /// So many of the newest releases that are no dead end stay
        #[arg(long, value_name = "NUMBER")]
        keep: u32,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete a channel with all its releases, unless a cluster, an upgrade or a mirror needs it
    Delete {
        /// Channel
        name: String,
        /// The name once more, instead of typing it
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say what is known of a release: a barrier, a dead end, how fast it is rolled out
    Mark(MarkArgs),
    /// Why a machine is led to a release, or not
    Explain {
        /// Channel
        name: String,
        /// Machine: name, id, MAC, UUID or serial number
        machine: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List channels
    List(OutputArgs),
    /// Show a channel's releases
    Show {
        /// Name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Systems that ask for updates from a release that the channel does not have: they are led nowhere
    Unknown {
        /// Name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// How nodes come to a new release.
#[derive(Debug, Args)]
pub(super) struct WayArgs {
    /// Older systems of its channel come to this release before they go to a newer one
    #[arg(long)]
    barrier: bool,
    /// So long until every node may have it, like 90m, 48h or 7d [default: all at once]
    #[arg(long, value_name = "TIME", value_parser = minutes)]
    rollout: Option<u32>,
    /// Although its version, its Kubernetes or its commit is older than that of the newest release
    #[arg(long)]
    allow_downgrade: bool,
}

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// Channel; it is made when it is not there
    name: String,
    /// On the service's host: folder of the repository, a tar of it, or an OCI archive or layout that holds a commit
    #[arg(long, value_name = "PATH")]
    ostree: String,
    /// Ref or commit, or the name of one of several images [default: the only one that there is]
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Version of Kubernetes that it holds, like v1.31.4 [default: what the commit says]
    #[arg(long, value_name = "VERSION")]
    kubernetes: Option<String>,
    /// Version [default: what the commit says]
    #[arg(long)]
    version: Option<String>,
    /// Profile of a new channel: nestos, fedora-coreos or lab [default: the first part of the ref]
    #[arg(long)]
    profile: Option<String>,
    /// Architecture of a new channel [default: the second part of the ref]
    #[arg(long)]
    architecture: Option<String>,
    /// File of OpenPGP public keys, on the service's host; then the commit must be signed with one of them
    #[arg(long, value_name = "FILE")]
    key: Option<String>,
    /// File of ed25519 public keys (base64, one a line), on the service's host; then the commit must be signed with one of them
    #[arg(long, value_name = "FILE")]
    ed25519_key: Option<String>,
    /// What people should know of it
    #[arg(long, value_name = "TEXT", default_value = "")]
    notes: String,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// Channel
    name: String,
    /// Number of the release [default: the newest]
    release: Option<u32>,
    /// The other channel, of the same profile and architecture; it is made when it is not there
    #[arg(long, value_name = "CHANNEL")]
    to: String,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("marks").required(true).multiple(true).args(["barrier", "dead_end", "rollout"]))]
pub(super) struct MarkArgs {
    /// Channel
    name: String,
    /// Number of the release
    release: u32,
    /// Older systems come here first: true or false
    #[arg(long, value_name = "BOOL")]
    barrier: Option<bool>,
    /// Why nothing is to lead here or away from here; an empty text takes it back
    #[arg(long, value_name = "REASON")]
    dead_end: Option<String>,
    /// So long from its publication until every node may have it, like 48h; 0m: at once
    #[arg(long, value_name = "TIME", value_parser = minutes)]
    rollout: Option<u32>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Minutes, from `90m`, `48h` or `7d`.
pub(super) fn minutes(text: &str) -> Result<u32, String> {
    let units = [('m', 1), ('h', 60), ('d', 24 * 60)];
    let read = |(unit, factor): (char, u32)| text.strip_suffix(unit)?.parse::<u32>().ok()?.checked_mul(factor);
    units.into_iter().find_map(read).ok_or_else(|| "write it like 90m, 48h or 7d".to_owned())
}

/// As [`minutes`] reads it.
pub(super) fn span(minutes: u32) -> String {
    match minutes {
        0 => "0m".to_owned(),
        _ if minutes.is_multiple_of(24 * 60) => format!("{}d", minutes / (24 * 60)),
        _ if minutes.is_multiple_of(60) => format!("{}h", minutes / 60),
        _ => format!("{minutes}m"),
    }
}

pub(super) async fn run(command: ChannelCommand, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    match command {
        ChannelCommand::Publish(args) => {
            let absolute = |path: String| std::path::absolute(&path).map_or(path, |p| p.display().to_string());
            let order = PublishOrder {
                ostree: absolute(args.ostree),
                reference: args.reference,
                kubernetes: args.kubernetes,
                version: args.version,
                profile: args.profile,
                architecture: args.architecture,
                key: args.key.map(absolute),
                ed25519_key: args.ed25519_key.map(absolute),
                notes: args.notes,
                barrier: args.way.barrier,
                rollout_minutes: args.way.rollout.unwrap_or(0),
                allow_downgrade: args.way.allow_downgrade,
            };
            let path = format!("/api/v1/channels/{}/releases", segment(&args.name));
            let release = follow(client.send(Method::POST, &path, Some(&order)).await?, &args.name).await?;
            args.output.print(&release, |release| published(&args.name, release));
        }
        ChannelCommand::Promote(args) => {
            let PromoteArgs { name, release, to, way, output } = args;
            let rollout_minutes = way.rollout.unwrap_or(0);
            let WayArgs { barrier, allow_downgrade, .. } = way;
            let order = PromoteOrder { release, to, barrier, rollout_minutes, allow_downgrade };
            let path = format!("/api/v1/channels/{}/promotions", segment(&name));
            let release = follow(client.send(Method::POST, &path, Some(&order)).await?, &order.to).await?;
            output.print(&release, |release| published(&order.to, release));
        }
        ChannelCommand::Mirror(args) => mirror::run(*args, &client).await?,
        ChannelCommand::Prune { name, keep, dry_run, output } => {
            let path = format!("/api/v1/channels/{}/prune", segment(&name));
            let order = PruneOrder { keep, dry_run };
            let pruned: Pruned = patiently(client.call(Method::POST, &path, Some(&order))).await?;
            output.print(&pruned, |pruned| {
                let gone = if pruned.dry_run { "would be retired" } else { "is retired" };
                let gone = pruned.retired.iter().map(|r| (r.number, &r.version, gone.to_owned()));
                let kept = pruned.kept.iter().map(|r| (r.release, &r.version, format!("stays: {}", r.reason)));
                let mut rows: Vec<_> = gone.chain(kept).collect();
                rows.sort();
                let lines =
                    rows.iter().map(|(number, version, what)| format!("{name}: release {number}, {version}: {what}"));
                let lines: Vec<String> = lines.collect();
                if lines.is_empty() { format!("{name}: nothing is older than that") } else { lines.join("\n") }
            });
        }
        ChannelCommand::Delete { name, confirm, output } => {
            let path = format!("/api/v1/channels/{}", segment(&name));
            let ShownChannel { channel, .. } = client.get(&path).await?;
            let count = channel.releases.len();
            let loss = format!("{name} goes with its {count} releases: nothing leads systems there any more.");
            let confirm = confirm::name_of("channel", &name, (confirm, "channel delete"), &loss)?;
            let path = format!("{path}?confirm={}", segment(&confirm));
            let deleted: DeletedChannel = patiently(client.call(Method::DELETE, &path, None::<&()>)).await?;
            output.print(&deleted, |deleted| {
                let count = deleted.channel.releases.len();
                let gone =
                    format!("{name}: deleted with its {count} releases; their objects go when nobody reads them");
                match deleted.last_asked_at {
                    None => gone,
                    Some(at) => {
                        let ago = age(at, OffsetDateTime::now_utc());
                        let asked = format!("its graph was asked for, last {ago} ago or later");
                        format!("{gone}\n{asked}: such systems find no graph there any more")
                    }
                }
            });
        }
        ChannelCommand::Mark(args) => {
            let MarkArgs { name, release, barrier, dead_end, rollout, output } = args;
            let order = MarkOrder { barrier, dead_end, rollout_minutes: rollout };
            let path = format!("/api/v1/channels/{}/releases/{release}", segment(&name));
            let release: Release = client.call(Method::PATCH, &path, Some(&order)).await?;
            output.print(&release, |r| format!("{name}: release {}: {}", r.number, marks(r)));
        }
        ChannelCommand::Explain { name, machine, output } => {
            let path = format!("/api/v1/machines/{}/updates?channel={}", segment(&machine), segment(&name));
            let explained: Explained = client.get(&path).await?;
            output.print(&explained, |e| {
                let state = |r: &ExplainedRelease| r.closed.clone().unwrap_or_else(|| "open".into());
                let rows = e.newer.iter().map(|r| vec![r.release.to_string(), r.version.clone(), state(r)]);
                let list =
                    if e.newer.is_empty() { String::new() } else { table(&["RELEASE", "VERSION", "STATE"], rows) };
                format!("{}: {}\n{list}", e.machine, e.summary).trim_end().to_owned()
            });
        }
        ChannelCommand::List(output) => {
            let channels: Vec<ShownChannel> = client.get("/api/v1/channels").await?;
            let now = OffsetDateTime::now_utc();
            output.print(&channels, |channels| {
                table(
                    &["NAME", "PROFILE", "ARCH", "RELEASES", "NEWEST", "KUBERNETES", "AGE"],
                    channels.iter().map(|ShownChannel { channel: c, missing }| {
                        let newest = c.newest();
                        let is_missing = newest.is_some_and(|r| missing.contains(&r.number));
                        let mark = if is_missing { " (missing)" } else { "" };
                        let of = |field: fn(&Release) -> String| newest.map_or_else(|| "-".into(), field);
                        vec![
                            c.name.clone(),
                            c.profile.clone(),
                            c.architecture.clone(),
                            c.releases.len().to_string(),
                            of(|r| r.version.clone()) + mark,
                            of(|r| r.kubernetes.clone().unwrap_or_else(|| "-".into())),
                            newest.map_or_else(|| "-".into(), |r| age(r.published_at, now)),
                        ]
                    }),
                )
            });
        }
        ChannelCommand::Unknown { name, output } => {
            let path = format!("/api/v1/channels/{}/unknown", segment(&name));
            let answer = client.send(Method::GET, &path, None::<&()>).await?;
            let left_out = answer.headers().get(LEFT_OUT).and_then(|count| count.to_str().ok()?.parse::<u64>().ok());
            let unknown: Vec<UnknownRelease> = client.read(answer).await?;
            let now = OffsetDateTime::now_utc();
            output.print(&unknown, |unknown| {
                let row = |u: &UnknownRelease| {
                    let node = u.node.as_ref().map_or_else(|| "-".into(), |node| cell(node, LONGEST));
                    let runs = if u.payload.is_empty() { "-".into() } else { cell(&u.payload, LONGEST) };
                    vec![runs, node, u.times.to_string(), age(u.first_at, now), age(u.last_at, now)]
                };
                table(&["RUNS", "NODE", "ASKED", "FIRST", "LAST"], unknown.iter().map(row))
            });
            if let Some(count) = left_out.filter(|count| *count > 0) {
                eprintln!(
                    "{count} more were left out since the service started: of too many, those that were asked from least often"
                );
            }
        }
        ChannelCommand::Show { name, output } => {
            let channel: ShownChannel = client.get(&format!("/api/v1/channels/{}", segment(&name))).await?;
            let now = OffsetDateTime::now_utc();
            output.print(&channel, |ShownChannel { channel: c, missing }| {
                table(
                    &["RELEASE", "VERSION", "KUBERNETES", "COMMIT", "SIGNED BY", "AGE", "MARKS", "NOTES"],
                    c.releases.iter().map(|r| {
                        vec![
                            r.number.to_string(),
                            r.version.clone(),
                            r.kubernetes.clone().unwrap_or_else(|| "-".into()),
                            r.commit.chars().take(12).collect(),
                            r.signed_by.clone().unwrap_or_else(|| "-".into()),
                            age(r.published_at, now),
                            if missing.contains(&r.number) { marks_of_missing(r) } else { marks(r) },
                            r.notes.clone(),
                        ]
                    }),
                )
            });
        }
    }
    Ok(())
}

fn published(channel: &str, release: &Release) -> String {
    let commit: String = release.commit.chars().take(12).collect();
    let is = format!("{channel}: release {} is {}, commit {commit}", release.number, release.version);
    match release.kubernetes {
        Some(_) => is,
        None => format!(
            "{is}\nit does not say which Kubernetes it holds (--kubernetes): clusters go to it by --os-only alone"
        ),
    }
}

/// Of a release that nothing leads to, since its commit is not here.
fn marks_of_missing(release: &Release) -> String {
    match (&release.dead_end, marks(release)) {
        (Some(_), marks) => format!("missing, {marks}"),
        (None, marks) if marks == OPEN => "missing: publish it again".into(),
        (None, marks) => format!("missing: publish it again, {marks}"),
    }
}

const OPEN: &str = "open";

/// Characters of what a system says of itself in a table, as long as a commit: whoever reaches the port may say anything.
const LONGEST: usize = 64;

/// What is known of a release, in one cell.
fn marks(release: &Release) -> String {
    let marks = [
        release.promoted_from.as_ref().map(|from| format!("from {} {}", from.channel, from.release)),
        release.barrier.then(|| "barrier".to_owned()),
        release.dead_end.as_ref().map(|reason| format!("dead end: {reason}")),
        (release.rollout_minutes > 0).then(|| format!("rolled out over {}", span(release.rollout_minutes))),
    ];
    let marks: Vec<String> = marks.into_iter().flatten().collect();
    if marks.is_empty() { OPEN.into() } else { marks.join(", ") }
}

/// What takes longer is told to those who see no progress.
const LONG: Duration = Duration::from_secs(2);

/// Waits for the answer to an order that takes its turn, and says so after a while.
async fn patiently<T>(answer: impl Future<Output = T>) -> T {
    tokio::pin!(answer);
    if let Ok(answer) = tokio::time::timeout(LONG, &mut answer).await {
        return answer;
    }
    eprintln!(
        "waiting: the service carries out one order for its channels at a time, and its log says which; to leave here before this one has begun calls it off"
    );
    answer.await
}

/// Shows what publishing does until its last line.
async fn follow(response: reqwest::Response, channel: &str) -> Result<Release, CliError> {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(120));
    let (step, mut steps) = watch::channel(String::new());
    let last = client::follow(response, |line: PublishLine| match line.update {
        PublishUpdate::Step { name } => {
            bar.set_message(name.clone());
            step.send_replace(name);
            None
        }
        PublishUpdate::Done { release } => Some(Ok((*release, line.summary_problem))),
        PublishUpdate::Failed { message } => Some(Err(ClientError::Publish(message))),
    });
    // Without a terminal there is no bar.
    let telling = async {
        while bar.is_hidden() && steps.changed().await.is_ok() {
            // A step that is over by then is not told.
            while let Ok(Ok(())) = tokio::time::timeout(LONG, steps.changed()).await {}
            eprintln!("{}", *steps.borrow());
        }
        std::future::pending::<Infallible>().await
    };
    let last = tokio::select! {
        last = last => last,
        never = telling => match never {},
    };
    bar.finish_and_clear();
    let (release, problem) = last.ok_or_else(|| ClientError::BrokeOff(format!("nkd channel show {channel}")))??;
    if let Some(problem) = problem {
        let is = "the release is published, and nodes pull it; the signed summary of its repository is not written yet";
        eprintln!("warning: {is}: {problem}; the service tries that again by itself: put right what it says");
    }
    Ok(release)
}
