//! `nkd channel mirror ...`
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use nkd_api::channel::{Mirror, MirrorOrder};
use reqwest::Method;
use time::OffsetDateTime;

use super::CliError;
use super::channel::{minutes, span};
use super::client::{Client, segment};
use super::output::{OutputArgs, age, table};
use crate::content::channel::mirror::MirrorNow;

/// How often it is looked whether a look has ended.
const POLL: Duration = Duration::from_millis(500);

/// What says how a mirror is to be.
const SETTINGS: [&str; 10] = [
    "from",
    "reference",
    "key",
    "ed25519_key",
    "insecure_unsigned",
    "upstream_ca",
    "profile",
    "architecture",
    "kubernetes",
    "every",
];

#[derive(Debug, Args)]
pub(super) struct MirrorArgs {
    /// Channel; the first release makes it when it is not there. With nothing else: show how its mirror goes; without it: list all mirrors
    #[arg(required_if_eq("now", "true"), required_if_eq("off", "true"))]
    name: Option<String>,
    /// Address of the upstream's ostree repository: https, http or file
    #[arg(long, value_name = "ADDRESS", requires = "reference", requires = "name")]
    from: Option<String>,
    /// Ref of the upstream
    #[arg(long = "ref", value_name = "REF", requires = "from")]
    reference: Option<String>,
    /// File of armored OpenPGP public keys, on the service's host; every commit must be signed with one of them
    #[arg(long, value_name = "FILE", requires = "from", conflicts_with = "insecure_unsigned")]
    key: Option<String>,
    /// File of ed25519 public keys (base64, one a line), on the service's host; every commit must be signed with one of them
    #[arg(long, value_name = "FILE", requires = "from", conflicts_with = "insecure_unsigned")]
    ed25519_key: Option<String>,
    /// Take commits whoever made them
    #[arg(long, requires = "from")]
    insecure_unsigned: bool,
    /// File of certificates, on the service's host, from which the upstream's has to come
    #[arg(long, value_name = "FILE", requires = "from")]
    upstream_ca: Option<String>,
    /// Profile of a new channel: nestos, fedora-coreos or lab [default: the first part of the ref]
    #[arg(long, requires = "from")]
    profile: Option<String>,
    /// Architecture of a new channel [default: the second part of the ref]
    #[arg(long, requires = "from")]
    architecture: Option<String>,
    /// Version of Kubernetes of the releases that come [default: what each commit says]
    #[arg(long, value_name = "VERSION", requires = "from")]
    kubernetes: Option<String>,
    /// From one look to the next, like 90m, 6h or 7d [default: 6h]
    #[arg(long, value_name = "TIME", value_parser = minutes, requires = "from")]
    every: Option<u32>,
    /// Look at once, and wait for the end of it; exits with an error when the mirror stands still
    #[arg(long, conflicts_with_all = SETTINGS, conflicts_with = "off")]
    now: bool,
    /// Follow nothing any more; the releases stay
    #[arg(long, conflicts_with_all = SETTINGS, conflicts_with = "output")]
    off: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(args: MirrorArgs, client: &Client) -> Result<(), CliError> {
    let Some(name) = args.name else { return list(&args.output, client).await };
    let path = format!("/api/v1/channels/{}/mirror", segment(&name));
    if args.off {
        client.delete(&path).await?;
        println!("{name}: follows nothing any more");
        return Ok(());
    }
    let absolute = |path: String| std::path::absolute(&path).map_or(path, |p| p.display().to_string());
    let has_looked = args.now;
    let now: MirrorNow = match (args.from, args.reference) {
        (Some(from), Some(reference)) => {
            let order = MirrorOrder {
                from,
                reference,
                key: args.key.map(absolute),
                ed25519_key: args.ed25519_key.map(absolute),
                unsigned: args.insecure_unsigned,
                ca: args.upstream_ca.map(absolute),
                profile: args.profile,
                architecture: args.architecture,
                kubernetes: args.kubernetes,
                every_minutes: args.every,
            };
            client.call(Method::PUT, &path, Some(&order)).await?
        }
        _ if has_looked => look(client, &path).await?,
        _ => client.get(&path).await?,
    };
    args.output.print(&now, |now| shown(now, OffsetDateTime::now_utc()));
    let mirror = now.mirror;
    match mirror.problem {
        Some(_) if has_looked => Err(CliError::Ended(format!(
            "the channel {0} is as it was: put right what its mirror stands still for (`nkd channel mirror {0}` says it)",
            mirror.channel
        ))),
        _ => Ok(()),
    }
}

async fn list(output: &OutputArgs, client: &Client) -> Result<(), CliError> {
    let mirrors: Vec<MirrorNow> = client.get("/api/v1/mirrors").await?;
    let now = OffsetDateTime::now_utc();
    output.print(&mirrors, |mirrors| {
        let ago =
            |at: Option<OffsetDateTime>| at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(at, now)));
        let row = |MirrorNow { mirror, looking_since }: &MirrorNow| {
            let state = match (looking_since, &mirror.problem) {
                (Some(_), _) => "looking",
                (None, Some(_)) => "stands still",
                (None, None) if mirror.succeeded_at.is_none() => "new",
                (None, None) => "follows",
            };
            let (looked, succeeded) = (ago(mirror.looked_at), ago(mirror.succeeded_at));
            vec![mirror.channel.clone(), mirror.reference.clone(), mirror.from.clone(), state.into(), looked, succeeded]
        };
        table(&["CHANNEL", "REF", "FROM", "STATE", "LOOKED", "LAST SUCCESS"], mirrors.iter().map(row))
    });
    Ok(())
}

/// Has the service look, and waits until it has. A look that was under way does not count.
async fn look(client: &Client, path: &str) -> Result<MirrorNow, CliError> {
    let asked: Mirror = client.call::<(), _>(Method::POST, &format!("{path}/look"), None).await?;
    let bar = ProgressBar::new_spinner().with_message(format!("looking at {}", asked.from));
    bar.enable_steady_tick(Duration::from_millis(120));
    let looked = loop {
        match client.get::<MirrorNow>(path).await {
            Ok(now) if now.mirror.looked_at == asked.looked_at => tokio::time::sleep(POLL).await,
            other => break other,
        }
    };
    bar.finish_and_clear();
    Ok(looked?)
}

fn shown(MirrorNow { mirror, looking_since }: &MirrorNow, now: OffsetDateTime) -> String {
    let ago = |at: Option<OffsetDateTime>| at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(at, now)));
    let files: Vec<&str> = mirror.key.iter().chain(&mirror.ed25519_key).map(String::as_str).collect();
    let trust = match files.as_slice() {
        [] => "whoever made it: no key was given".to_owned(),
        files => format!("signed with a key of {}", files.join(" and one of ")),
    };
    let next = match looking_since {
        Some(since) => format!("looking now, since {}", age(*since, now)),
        None if mirror.next_look_at <= now => "the next time now".to_owned(),
        None => format!("the next time in {}", age(now, mirror.next_look_at)),
    };
    let mut lines = vec![
        format!("{}: follows {} of {}", mirror.channel, mirror.reference, mirror.from),
        format!("takes:        {trust}"),
        format!("looked:       {}; {next}, every {}", ago(mirror.looked_at), span(mirror.every_minutes)),
        format!("last success: {}", ago(mirror.succeeded_at)),
    ];
    if let Some(problem) = &mirror.problem {
        let looks = if mirror.failures == 1 { "look" } else { "looks" };
        lines.push(format!("stands still: {problem} ({} {looks} without success)", mirror.failures));
    }
    lines.join("\n")
}
