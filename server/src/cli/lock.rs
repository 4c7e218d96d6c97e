//! `nkd lock ...`
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use clap::Subcommand;
use nkd_api::lock::Lease;
use reqwest::Method;
use time::OffsetDateTime;

use super::CliError;
use super::client::segment;
use super::context::ContextArgs;
use super::output::{OutputArgs, age, say, table};

#[derive(Debug, Subcommand)]
pub(super) enum LockCommand {
    /// List the nodes that may restart now
    List(OutputArgs),
    /// Take the right to restart away from a node that does not come back
    Release {
        /// Group
        group: String,
        /// Node, as the list has it
        id: String,
    },
}

pub(super) async fn run(command: LockCommand, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    match command {
        LockCommand::List(output) => {
            let leases: Vec<Lease> = client.get("/api/v1/locks").await?;
            let now = OffsetDateTime::now_utc();
            output.print(&leases, |leases| {
                let row = |l: &Lease| {
                    let left = (l.expires - now).whole_minutes().max(0);
                    let from = l.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
                    let (fencing, since, left) = (l.fencing.to_string(), age(l.since, now), format!("in {left}m"));
                    vec![l.group.clone(), l.id.clone(), from, fencing, since, left]
                };
                table(&["GROUP", "NODE", "FROM", "FENCING", "SINCE", "EXPIRES"], leases.iter().map(row))
            });
        }
        LockCommand::Release { group, id } => {
            let path = format!("/api/v1/locks/{}/{}", segment(&group), segment(&id));
            client.send(Method::DELETE, &path, None::<&()>).await?;
            say(&format!("{id}: holds nothing in the group {group} now\n"));
        }
    }
    Ok(())
}
