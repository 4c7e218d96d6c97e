//! `nkd user ...` and `nkd audit`
#![expect(clippy::disallowed_methods, reason = "the edge where the clock comes in")]

use clap::{Args, Subcommand};
use nkd_api::user::{AuditEntry, CreatedUser, NewUser, Role, User};
use reqwest::Method;
use time::OffsetDateTime;

use super::CliError;
use super::client::segment;
use super::context::ContextArgs;
use super::output::{OutputArgs, age, cell, table};

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// List users
    List(OutputArgs),
    /// Make a user; its token is printed this once
    Create {
        /// Name
        name: String,
        /// viewer, operator or admin
        #[arg(long)]
        role: Role,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Give a user a new token; the old one is worthless at once
    Token {
        /// Name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove a user
    Remove {
        /// Name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// The newest so many lines
    #[arg(long, default_value_t = 50)]
    limit: u32,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(command: UserCommand, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    match command {
        UserCommand::List(output) => {
            let users: Vec<User> = client.get("/api/v1/users").await?;
            let now = OffsetDateTime::now_utc();
            output.print(&users, |users| {
                table(
                    &["NAME", "ROLE", "AGE"],
                    users.iter().map(|u| vec![u.name.clone(), u.role.to_string(), age(u.created_at, now)]),
                )
            });
        }
        UserCommand::Create { name, role, output } => {
            let created: CreatedUser =
                client.call(Method::POST, "/api/v1/users", Some(&NewUser { name, role })).await?;
            output.print(&created, token_text);
        }
        UserCommand::Token { name, output } => {
            let path = format!("/api/v1/users/{}/token", segment(&name));
            let created: CreatedUser = client.call(Method::POST, &path, None::<&()>).await?;
            output.print(&created, token_text);
        }
        UserCommand::Remove { name } => {
            client.delete(&format!("/api/v1/users/{}", segment(&name))).await?;
            println!("removed {name}");
        }
    }
    Ok(())
}

fn token_text(created: &CreatedUser) -> String {
    format!("{} ({}), token, shown this once:\n{}", created.user.name, created.user.role, created.token)
}

/// Characters of an audit entry's target in a table: a refused one is whatever its client has sent.
const TARGET: usize = 64;

pub(super) async fn audit(args: AuditArgs, context: &ContextArgs) -> Result<(), CliError> {
    let entries: Vec<AuditEntry> = context.client()?.get(&format!("/api/v1/audit?limit={}", args.limit)).await?;
    args.output.print(&entries, |entries| {
        table(
            &["TIME", "WHO", "ACTION", "TARGET", "DETAIL"],
            entries.iter().map(|e| {
                let (date, (hour, minute, second)) = (e.at.date(), e.at.to_hms());
                vec![
                    format!("{date}T{hour:02}:{minute:02}:{second:02}Z"),
                    e.who.clone(),
                    e.action.clone(),
                    cell(&e.target, TARGET),
                    e.detail.clone(),
                ]
            }),
        )
    });
    Ok(())
}
