//! `nkd channel ...`
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::StreamExt;
use indicatif::ProgressBar;
use nkd_api::channel::{Channel, PublishOrder, PublishUpdate, Release};
use reqwest::Method;
use time::OffsetDateTime;

use super::CliError;
use super::client::{ClientError, segment};
use super::context::ContextArgs;
use super::output::{OutputArgs, age, table};

#[derive(Debug, Subcommand)]
pub(super) enum ChannelCommand {
    /// Publish a commit of an ostree repository as the channel's next release
    Publish(Box<PublishArgs>),
    /// List channels
    List(OutputArgs),
    /// Show a channel's releases
    Show {
        /// Name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// Channel; it is made when it is not there
    name: String,
    /// Folder of the repository, on the service's host
    #[arg(long, value_name = "REPOSITORY")]
    ostree: String,
    /// Ref or commit [default: the only ref that there is]
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Version of Kubernetes that it holds, like v1.31.4
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
    /// What people should know of it
    #[arg(long, value_name = "TEXT", default_value = "")]
    notes: String,
    #[command(flatten)]
    output: OutputArgs,
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
                notes: args.notes,
            };
            let path = format!("/api/v1/channels/{}/releases", segment(&args.name));
            let release = follow(client.send(Method::POST, &path, Some(&order)).await?).await?;
            let (name, short) = (args.name, |r: &Release| r.commit.chars().take(12).collect::<String>());
            args.output
                .print(&release, |r| format!("{name}: release {} is {}, commit {}", r.number, r.version, short(r)));
        }
        ChannelCommand::List(output) => {
            let channels: Vec<Channel> = client.get("/api/v1/channels").await?;
            let now = OffsetDateTime::now_utc();
            output.print(&channels, |channels| {
                table(
                    &["NAME", "PROFILE", "ARCH", "RELEASES", "NEWEST", "KUBERNETES", "AGE"],
                    channels.iter().map(|c| {
                        let newest = c.newest();
                        let of = |field: fn(&Release) -> String| newest.map_or_else(|| "-".into(), field);
                        vec![
                            c.name.clone(),
                            c.profile.clone(),
                            c.architecture.clone(),
                            c.releases.len().to_string(),
                            of(|r| r.version.clone()),
                            of(|r| r.kubernetes.clone().unwrap_or_else(|| "-".into())),
                            newest.map_or_else(|| "-".into(), |r| age(r.published_at, now)),
                        ]
                    }),
                )
            });
        }
        ChannelCommand::Show { name, output } => {
            let channel: Channel = client.get(&format!("/api/v1/channels/{}", segment(&name))).await?;
            let now = OffsetDateTime::now_utc();
            output.print(&channel, |c| {
                table(
                    &["RELEASE", "VERSION", "KUBERNETES", "COMMIT", "SIGNED BY", "AGE", "NOTES"],
                    c.releases.iter().map(|r| {
                        vec![
                            r.number.to_string(),
                            r.version.clone(),
                            r.kubernetes.clone().unwrap_or_else(|| "-".into()),
                            r.commit.chars().take(12).collect(),
                            r.signed_by.clone().unwrap_or_else(|| "-".into()),
                            age(r.published_at, now),
                            r.notes.clone(),
                        ]
                    }),
                )
            });
        }
    }
    Ok(())
}

/// Shows what publishing does until its last line.
async fn follow(response: reqwest::Response) -> Result<Release, CliError> {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(120));
    let mut stream = response.bytes_stream();
    let mut buffer: Vec<u8> = Vec::new();
    while let Some(chunk) = stream.next().await {
        buffer
            .extend_from_slice(&chunk.map_err(|source| ClientError::Answer { server: "the service".into(), source })?);
        while let Some(end) = buffer.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(PublishUpdate::Step { name }) => bar.set_message(name),
                Ok(PublishUpdate::Done { release }) => {
                    bar.finish_and_clear();
                    return Ok(release);
                }
                Ok(PublishUpdate::Failed { message }) => {
                    bar.finish_and_clear();
                    return Err(ClientError::Publish(message).into());
                }
                Err(_) => {}
            }
        }
    }
    Err(ClientError::Publish("the answer broke off; it may still go on: nkd channel list".into()).into())
}
