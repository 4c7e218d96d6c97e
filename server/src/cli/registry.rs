//! `nkd registry ...`
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use clap::Subcommand;
use nkd_api::registry::{Deleted, RegistryGarbage, Repository, Tag};
use reqwest::Method;
use time::OffsetDateTime;

use super::CliError;
use super::channel::minutes;
use super::client::segment;
use super::context::ContextArgs;
use super::output::{OutputArgs, age, bytes, table};

#[derive(Debug, Subcommand)]
pub(super) enum RegistryCommand {
    /// List repositories
    List(OutputArgs),
    /// List the tags of a repository
    Tags {
        /// Repository
        repository: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete a tag, a manifest with its tags, or a repository; `gc` frees the space
    Delete {
        /// REPOSITORY, REPOSITORY:TAG or REPOSITORY@DIGEST
        what: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove blobs that no manifest refers to; the service does so by itself too
    Gc {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Manifests that no tag, no index and no subject leads to, too
        #[arg(long)]
        untagged: bool,
        /// What was pushed within this time stays, like 90m or 0m; a push under way may break [default: 60m, and a day for uploads
        /// that broke off]
        #[arg(long, value_name = "TIME", value_parser = minutes)]
        grace: Option<u32>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(super) async fn run(command: RegistryCommand, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    let now = OffsetDateTime::now_utc();
    match command {
        RegistryCommand::List(output) => {
            let repositories: Vec<Repository> = client.get("/api/v1/registry").await?;
            output.print(&repositories, |repositories| {
                table(
                    &["NAME", "TAGS", "MANIFESTS", "SIZE", "STATE", "AGE"],
                    repositories.iter().map(|r| {
                        let counts = (r.tags.to_string(), r.manifests.to_string());
                        vec![r.name.clone(), counts.0, counts.1, bytes(r.size), state(r.lost), age(r.pushed_at, now)]
                    }),
                )
            });
        }
        RegistryCommand::Tags { repository, output } => {
            let path = format!("/api/v1/registry/tags?repository={}", segment(&repository));
            let tags: Vec<Tag> = client.get(&path).await?;
            output.print(&tags, |tags| {
                let row = |t: &Tag| {
                    let (size, state, age) = (bytes(t.size), state(t.lost), age(t.changed_at, now));
                    vec![t.name.clone(), t.digest.clone(), size, state, age]
                };
                table(&["TAG", "DIGEST", "SIZE", "STATE", "AGE"], tags.iter().map(row))
            });
        }
        RegistryCommand::Delete { what, output } => {
            let (repository, reference) = split(&what);
            let mut path = format!("/api/v1/registry?repository={}", segment(repository));
            if let Some(reference) = reference {
                path.push_str(&format!("&reference={}", segment(reference)));
            }
            let deleted: Deleted = client.call(Method::DELETE, &path, None::<&()>).await?;
            output.print(&deleted, |d| match d.manifests {
                0 => format!("{what}: the tag is gone; `nkd registry gc --untagged` removes what it stood for"),
                n => format!("{what}: {n} manifests and {} tags are gone; `nkd registry gc` frees the space", d.tags),
            });
        }
        RegistryCommand::Gc { dry_run, untagged, grace, output } => {
            let grace = grace.map(|minutes| format!("&graceMinutes={minutes}")).unwrap_or_default();
            let path = format!("/api/v1/registry/garbage?dryRun={dry_run}&untagged={untagged}{grace}");
            let garbage: RegistryGarbage = client.call(Method::POST, &path, None::<&()>).await?;
            output.print(&garbage, |g| {
                let done = if g.dry_run { "would free" } else { "freed" };
                let blobs = format!("{done} {} of {} blobs", bytes(g.bytes), g.blobs.len());
                let uploads = match g.uploads {
                    0 => String::new(),
                    uploads => format!("; {} of {uploads} uploads that broke off", bytes(g.upload_bytes)),
                };
                format!("{blobs}{uploads}; {} manifests without a tag", g.manifests)
            });
        }
    }
    Ok(())
}

/// Of what has lost so many of its blobs.
fn state(lost: u64) -> String {
    match lost {
        0 => "whole".to_owned(),
        1 => "lost 1 blob: push it again".to_owned(),
        lost => format!("lost {lost} blobs: push it again"),
    }
}

/// `library/busybox:1.36`, `library/busybox@sha256:...`; a colon before a slash would be a port, which is no part of this.
fn split(what: &str) -> (&str, Option<&str>) {
    match what.split_once('@').or_else(|| what.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))) {
        Some((repository, reference)) => (repository, Some(reference)),
        None => (what, None),
    }
}
