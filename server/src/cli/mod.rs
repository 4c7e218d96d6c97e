//! The command line: nouns and verbs, one file a noun.

mod channel;
mod channel_mirror;
mod client;
mod cluster;
mod cluster_certs;
mod cluster_changes;
mod cluster_retry;
mod cluster_service;
mod cluster_snapshot;
mod confirm;
mod context;
mod image;
mod lock;
mod machine;
mod output;
mod registry;
mod rule;
mod trust;
mod upgrade;
mod user;

use std::path::PathBuf;

use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cluster::load::LoadError;
use crate::serve::{self, ServeError};
use crate::settings::{Inputs, Settings, SettingsError, Sources};
use crate::store::{BackupError, HeldUpgrade, backup, restore};
use client::ClientError;

/// Turns racks of bare machines into clusters on an immutable, image-based OS.
#[derive(Debug, Parser)]
#[command(name = "nkd", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    context: context::ContextArgs,
}

impl Cli {
    /// What this program was called with; it ends when that makes no sense. An empty variable of the environment is as none,
    /// an empty word is not.
    #[must_use]
    pub fn of_this_program() -> Self {
        let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        let command = Self::command();
        let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(None::<&'static str>) } else { arg });
        Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service: DHCP, TFTP, HTTP boot, API, agents
    Serve(ServeArgs),
    /// Machines: list, show, events, explain, accept, assign, reinstall, forget
    #[command(subcommand, visible_alias = "machines")]
    Machine(machine::MachineCommand),
    /// Rules that accept machines as they appear
    #[command(subcommand, visible_alias = "rules")]
    Rule(rule::RuleCommand),
    /// Node images: import, list, show, remove, gc
    #[command(subcommand, visible_alias = "images")]
    Image(image::ImageCommand),
    /// Channels of releases that nodes are updated to: publish, promote, mirror, list, show, mark, prune, delete, explain, unknown
    #[command(subcommand, visible_alias = "channels")]
    Channel(channel::ChannelCommand),
    /// Nodes that may restart now, having asked by the FleetLock protocol: list, release
    #[command(subcommand, visible_alias = "locks")]
    Lock(lock::LockCommand),
    /// Container images that nodes pull: list, tags, delete, gc; podman and skopeo push them
    #[command(subcommand)]
    Registry(registry::RegistryCommand),
    /// Clusters: apply, list, status, events, kubeconfig; their files: schema, template, check, import
    #[command(subcommand, visible_alias = "clusters")]
    Cluster(cluster::ClusterCommand),
    /// Upgrades of clusters: start, status, pause, resume, abort, retry, history, explain
    #[command(subcommand, visible_alias = "upgrades")]
    Upgrade(upgrade::UpgradeCommand),
    /// Users of the service and their roles
    #[command(subcommand, visible_alias = "users")]
    User(user::UserCommand),
    /// The audit trail
    Audit(user::AuditArgs),
    /// Remember a service and a token for this user
    Login(context::LoginArgs),
    /// Forget the remembered service and token
    Logout,
    /// What the service is and who is asking
    Status(output::OutputArgs),
    /// Write the service's state into one private file; works while it runs
    Backup(BackupArgs),
    /// Put a backup in place of an empty state folder
    Restore(BackupArgs),
    /// Print the OpenAPI document of the service
    Openapi,
    /// Print a completion script
    Completion {
        /// Shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct SettingsArgs {
    /// Settings file [default: /etc/nkd/nkd.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State folder
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// One setting: `dhcp.mode=proxy`; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = name_value)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print the settings as they would be used, as a settings file, and end
    #[arg(long)]
    print_settings: bool,
}

#[derive(Debug, Args)]
struct BackupArgs {
    /// The backup file
    file: PathBuf,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Printing the settings.
    #[error("the settings cannot be printed")]
    Print(#[from] toml::ser::Error),
    /// The service.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// Talking to the service.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The remembered service.
    #[error(transparent)]
    Context(#[from] context::ContextError),
    /// Whom to trust.
    #[error(transparent)]
    Trust(#[from] trust::TrustError),
    /// A cluster file that cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// What was watched has ended in another way than it should.
    #[error("{0}")]
    Ended(String),
    /// The words of the command do not go together; nothing was done.
    #[error("{0}")]
    Words(String),
    /// An input that is wrong on its face.
    #[error("{0}")]
    Input(String),
    /// A file that is an input.
    #[error("cannot read {path}", path = path.display())]
    File {
        /// File.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

impl CliError {
    /// 1 for failures and for what the service has refused, 2 (as clap has it) for words that are wrong, 64 (EX_USAGE) for
    /// settings and inputs that are.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let is_input = match self {
            Self::Words(_) => return 2,
            Self::Settings(_) | Self::Input(_) | Self::File { .. } | Self::Load(_) => true,
            Self::Context(error) => error.is_input(),
            Self::Client(error) => matches!(error, ClientError::Ca { .. } | ClientError::Insecure(_)),
            Self::Trust(error) => matches!(error, trust::TrustError::Address(_)),
            Self::Backup(error) => error.is_input(),
            Self::Print(_) | Self::Serve(_) | Self::Ended(_) => false,
        };
        if is_input { 64 } else { 1 }
    }
}

/// An error with its causes, once each.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = source.source();
    }
    // Some of it may be the bytes of somebody's file.
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Runs one command.
pub async fn run(cli: Cli) -> Result<(), CliError> {
    let context = cli.context;
    match cli.command {
        Command::Serve(args) => {
            let settings = settings(&args.settings)?;
            if args.print_settings {
                output::say(&settings.to_toml()?);
                return Ok(());
            }
            serve::init_log(&settings.log);
            Ok(serve::serve(settings).await?)
        }
        Command::Machine(command) => machine::run(command, &context).await,
        Command::Rule(command) => rule::run(command, &context).await,
        Command::Image(command) => image::run(command, &context).await,
        Command::Channel(command) => channel::run(command, &context).await,
        Command::Lock(command) => lock::run(command, &context).await,
        Command::Registry(command) => registry::run(command, &context).await,
        Command::Cluster(command) => cluster::run(command, &context).await,
        Command::Upgrade(command) => upgrade::run(command, &context).await,
        Command::User(command) => user::run(command, &context).await,
        Command::Audit(args) => user::audit(args, &context).await,
        Command::Login(args) => context::login(args, &context).await,
        Command::Logout => Ok(context::logout()?),
        Command::Status(output) => {
            let status: serde_json::Value = context.client()?.get("/api/v1/status").await?;
            output.print(&status, |status| {
                let rows = status
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(k, v)| vec![k.clone(), v.as_str().map_or_else(|| v.to_string(), str::to_owned)]);
                output::table(&["WHAT", "VALUE"], rows)
            });
            Ok(())
        }
        Command::Backup(args) => {
            let settings = settings(&args.settings)?;
            let bytes = backup(&settings.state_dir, &settings.key_file, &args.file).await?;
            println!(
                "{}: {bytes} bytes. It holds the key file: keep it as you would keep the state itself.",
                args.file.display()
            );
            Ok(())
        }
        Command::Restore(args) => {
            let settings = settings(&args.settings)?;
            let held = restore(&args.file, &settings.state_dir, &settings.key_file).await?;
            println!(
                "restored to {}.\nMachines that were not known to be installed are stopped (nkd machine release) and rules assign nothing \
                 (nkd rule set), so that an old state installs nothing.\nImages, the repositories of channels and the layers of container images are not part of a backup: nkd image import, nkd channel publish, podman push",
                settings.state_dir.display()
            );
            for HeldUpgrade { cluster, number } in held {
                println!(
                    "Upgrade {number} of {cluster} went on when the backup was made, and is held: nkd upgrade resume {cluster}, or nkd upgrade abort {cluster}"
                );
            }
            Ok(())
        }
        Command::Openapi => {
            output::say(&format!("{}\n", crate::http::openapi().to_pretty_json().unwrap_or_default()));
            Ok(())
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "nkd", &mut script);
            output::say(&String::from_utf8_lossy(&script));
            Ok(())
        }
    }
}

fn settings(args: &SettingsArgs) -> Result<Settings, SettingsError> {
    let mut flags = args.set.clone();
    flags.extend(args.state_dir.iter().map(|d| ("state_dir".to_owned(), d.display().to_string())));
    let environment =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    Inputs::gather(&Sources { file: args.config.clone(), flags, environment }).validate()
}

/// Reads `NAME=VALUE`.
fn name_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}
