//! `nkd cluster ...`

use std::path::{Path, PathBuf};

use clap::Subcommand;
use nkd_api::Problem;
use nkd_api::cluster::Scale;
use serde::Serialize;

use super::CliError;
use super::cluster_certs::{self, CertsArgs};
use super::cluster_changes;
use super::cluster_retry::{self, RetryArgs};
use super::cluster_service::{self, AccessArgs};
use super::cluster_snapshot::{self, SnapshotArgs};
use super::context::ContextArgs;
use super::output::{OutputArgs, say};
use crate::cluster::file::{self, Checked, Paths};
use crate::cluster::import::import;
use crate::cluster::load;
use crate::cluster::template::{Platform, template};
use crate::machine::lifecycle::{NAME_RULE, valid_name};

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Print the JSON Schema of a cluster file, for editors
    Schema,
    /// Print a cluster file with comments, to begin with
    Template {
        /// Where its machines run
        #[arg(long, value_enum)]
        platform: Platform,
        /// Name of the cluster
        #[arg(long, default_value = "cluster")]
        name: String,
    },
    /// Read a cluster file with the files that it names, and say everything that is wrong with it
    Check {
        /// Cluster file, YAML or JSON; - for standard input
        #[arg(short, long)]
        file: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say what a cluster is to be: a file that is wrong changes nothing
    Apply {
        /// Cluster file, YAML or JSON; - for standard input
        #[arg(short, long)]
        file: PathBuf,
        /// Nodes that the file no longer names leave: they are drained, taken out, and their disks wiped
        #[arg(long)]
        allow_removal: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say what applying a cluster file would change, and change nothing
    Diff {
        /// Cluster file, YAML or JSON; - for standard input
        #[arg(short, long)]
        file: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say how many machines a pool is to have: new ones join, those that are too many leave and are wiped
    Scale {
        /// Name of the cluster
        name: String,
        /// Pool
        #[arg(long)]
        pool: String,
        /// Machines
        #[arg(long)]
        count: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Take a node out: it is drained and wiped, and its machine goes back to the pool
    Remove {
        /// Name of the cluster
        name: String,
        /// Name of the node
        node: String,
        /// Its machine is gone: do not ask it, only make everybody forget it
        #[arg(long)]
        lost: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Take a cluster apart: everything in it is lost, its machines are wiped and go back to the pool
    Destroy {
        /// Name of the cluster
        name: String,
        /// The name once more, instead of typing it
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
        /// Do not wait for machines that do not answer: what they hold is wiped when they come back
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List clusters
    List(OutputArgs),
    /// Show how far a cluster and each of its nodes has come, and its health
    Status {
        /// Name of the cluster
        name: String,
        /// Show it again whenever it changes
        #[arg(short, long)]
        watch: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show what happened to a cluster
    Events {
        /// Name of the cluster
        name: String,
        /// The newest so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show the certificates of a cluster and when they end; `certs renew` renews them
    Certs(CertsArgs),
    /// Snapshots of etcd: take, list, get
    Snapshot(SnapshotArgs),
    /// Try again now what failed, on one node or on all of them
    Retry(RetryArgs),
    /// Print a kubeconfig, with a certificate that is made for it
    Kubeconfig {
        /// Name of the cluster
        name: String,
        #[command(flatten)]
        access: AccessArgs,
    },
    /// Print a cluster file of openEuler's NestOS Kubernetes Deployer as a cluster file of ours
    Import {
        /// Its cluster_config.yaml; - for standard input
        file: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// What a check says.
#[derive(Serialize)]
struct Report<'a> {
    file: String,
    #[serde(flatten)]
    checked: &'a Checked,
}

pub(super) async fn run(command: ClusterCommand, context: &ContextArgs) -> Result<(), CliError> {
    match command {
        ClusterCommand::Schema => {
            say(&format!("{:#}\n", file::schema()));
            Ok(())
        }
        ClusterCommand::Template { platform, name } => {
            if !valid_name(&name) {
                return Err(CliError::Words(format!("cluster template: `{name}`: {NAME_RULE}")));
            }
            say(&template(platform, &name));
            Ok(())
        }
        ClusterCommand::Apply { file, allow_removal, output } => {
            cluster_changes::apply(&context.client()?, &file, allow_removal, output).await
        }
        ClusterCommand::Diff { file, output } => cluster_changes::diff(&context.client()?, &file, output).await,
        ClusterCommand::Scale { name, pool, count, output } => {
            cluster_changes::scale(&context.client()?, &name, Scale { pool, count }, output).await
        }
        ClusterCommand::Remove { name, node, lost, output } => {
            cluster_changes::remove(&context.client()?, &name, &node, lost, output).await
        }
        ClusterCommand::Destroy { name, confirm, force, output } => {
            cluster_changes::destroy(&context.client()?, &name, confirm, force, output).await
        }
        ClusterCommand::List(output) => cluster_service::list(&context.client()?, output).await,
        ClusterCommand::Status { name, watch, output } => {
            cluster_service::status(&context.client()?, &name, watch, output).await
        }
        ClusterCommand::Events { name, limit, output } => {
            cluster_service::events(&context.client()?, &name, limit, output).await
        }
        ClusterCommand::Certs(arguments) => cluster_certs::run(arguments, context).await,
        ClusterCommand::Snapshot(arguments) => cluster_snapshot::run(arguments, context).await,
        ClusterCommand::Retry(arguments) => cluster_retry::retry(&context.client()?, &arguments).await,
        ClusterCommand::Kubeconfig { name, access } => {
            cluster_service::kubeconfig(&context.client()?, &name, &access).await
        }
        ClusterCommand::Check { file, output } => check(&file, output),
        ClusterCommand::Import { file, output } => carry_over(&file, output),
    }
}

fn check(path: &Path, output: OutputArgs) -> Result<(), CliError> {
    let checked = load::load(path)?;
    let file = path.display().to_string();
    output.print(&Report { file: file.clone(), checked: &checked }, |_| {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        format!(
            "{}{}{file}: {}, {}",
            lines("", &checked.problems),
            lines("warning: ", &checked.warnings),
            count(checked.problems.len(), "problem"),
            count(checked.warnings.len(), "warning"),
        )
    });
    match checked.problems.len() {
        0 => Ok(()),
        _ => Err(CliError::Input(format!(
            "{file} is not good yet: put right what is named, and run `nkd cluster check -f {file}` again; `nkd cluster schema` lists all fields"
        ))),
    }
}

fn lines(mark: &str, problems: &[Problem]) -> String {
    let line = |p: &Problem| match p.path.as_str() {
        "" => format!("{mark}{}\n", p.message),
        path => format!("{mark}{path}: {}\n", p.message),
    };
    problems.iter().map(line).collect()
}

fn carry_over(path: &Path, output: OutputArgs) -> Result<(), CliError> {
    let name = path.display();
    let document = file::parse(&load::text(path)?).map_err(|p| CliError::Input(format!("{name}: {}", p.message)))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let imported = import(&document, &|key| load::text(&folder.join(key)).map_err(|e| super::describe(&e)));
    eprint!("{}{}", lines("problem: ", &imported.problems), lines("note: ", &imported.notes));
    let Some(cluster) = imported.cluster else {
        return Err(CliError::Input(format!(
            "{name} cannot be carried over: put right what is named as a problem, and import it again"
        )));
    };
    let whole = serde_json::to_value(&cluster).unwrap_or_default();
    eprint!("{}", lines("to complete: ", &file::check(whole, Paths::Allowed).problems));
    if output.is_table() {
        say(&serde_saphyr::to_string(&cluster).unwrap_or_default());
    } else {
        output.print(&cluster, |_| String::new());
    }
    eprintln!("complete the file, keep the files that it names where it says, and run `nkd cluster check -f FILE`");
    Ok(())
}
