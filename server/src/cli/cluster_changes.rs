//! The verbs of `nkd cluster` that change a cluster.

use std::path::Path;

use nkd_api::cluster::{Applied, Cluster, ClusterStatus, Scale};
use reqwest::Method;

use super::client::{Client, segment};
use super::output::OutputArgs;
use super::{CliError, confirm};
use crate::cluster::diff::line;
use crate::cluster::load;

/// A cluster file that is good as far as it can be seen here.
fn read(path: &Path) -> Result<Cluster, CliError> {
    let checked = load::load(path)?;
    for warning in &checked.warnings {
        eprintln!("warning: {}: {}", warning.path, warning.message);
    }
    checked.cluster.ok_or_else(|| {
        let lines: String = checked.problems.iter().map(|p| format!("\n  {}: {}", p.path, p.message)).collect();
        CliError::Input(format!("{} is not good yet, nothing was changed:{lines}", path.display()))
    })
}

pub(super) async fn apply(
    client: &Client,
    path: &Path,
    allow_removal: bool,
    output: OutputArgs,
) -> Result<(), CliError> {
    let cluster = read(path)?;
    let to = format!("/api/v1/clusters?removals={allow_removal}");
    let applied: Applied = client.call(Method::PUT, &to, Some(&cluster)).await?;
    say_warnings(&applied);
    output.print(&applied, |applied| done(&cluster.metadata.name, applied));
    Ok(())
}

pub(super) async fn diff(client: &Client, path: &Path, output: OutputArgs) -> Result<(), CliError> {
    let cluster = read(path)?;
    let applied: Applied = client.call(Method::POST, "/api/v1/clusters/diff", Some(&cluster)).await?;
    say_warnings(&applied);
    output.print(&applied, |applied| {
        let name = &cluster.metadata.name;
        if applied.created {
            return format!("{name} is new: {} machines are wanted", applied.joining.len());
        }
        if applied.changes.is_empty() {
            return format!("{name} is as the file says");
        }
        let mut lines: Vec<String> = applied.changes.iter().map(line).collect();
        lines.extend(moves(applied));
        lines.join("\n")
    });
    Ok(())
}

pub(super) async fn scale(client: &Client, name: &str, scale: Scale, output: OutputArgs) -> Result<(), CliError> {
    let path = format!("/api/v1/clusters/{}/scale", segment(name));
    let applied: Applied = client.call(Method::POST, &path, Some(&scale)).await?;
    say_warnings(&applied);
    output.print(&applied, |applied| done(name, applied));
    Ok(())
}

pub(super) async fn remove(
    client: &Client,
    name: &str,
    node: &str,
    lost: bool,
    output: OutputArgs,
) -> Result<(), CliError> {
    let path = format!("/api/v1/clusters/{}/nodes/{}?lost={lost}", segment(name), segment(node));
    let status: ClusterStatus = client.call(Method::DELETE, &path, None::<&()>).await?;
    output.print(&status, |s| {
        format!("{node} leaves {}: `nkd cluster status {} --watch` shows how far it is", s.name, s.name)
    });
    Ok(())
}

pub(super) async fn destroy(
    client: &Client,
    name: &str,
    confirm: Option<String>,
    force: bool,
    output: OutputArgs,
) -> Result<(), CliError> {
    let path = format!("/api/v1/clusters/{}", segment(name));
    let status: ClusterStatus = client.get(&path).await?;
    let nodes: Vec<&str> = status.members.iter().map(|m| m.hostname.as_str()).collect();
    let loss = format!("{name} with everything in it is lost, and the disks of {} are wiped.", nodes.join(", "));
    let confirm = confirm::name_of("cluster", name, (confirm, "cluster destroy"), &loss)?;
    let path = format!("{path}?confirm={}&force={force}", segment(&confirm));
    let status: ClusterStatus = client.call(Method::DELETE, &path, None::<&()>).await?;
    output.print(&status, |s| {
        format!("{} is being taken apart: `nkd cluster status {} --watch` shows how far it is", s.name, s.name)
    });
    Ok(())
}

fn say_warnings(applied: &Applied) {
    for warning in &applied.warnings {
        eprintln!("warning: {}: {}", warning.path, warning.message);
    }
}

fn moves(applied: &Applied) -> Vec<String> {
    let one = |names: &[String], what: &str| (!names.is_empty()).then(|| format!("{}: {what}", names.join(", ")));
    let joining = one(&applied.joining, "to join");
    let leaving = one(&applied.leaving, "to leave; drained, taken out, and wiped");
    joining.into_iter().chain(leaving).collect()
}

fn done(name: &str, applied: &Applied) -> String {
    if applied.created {
        return format!(
            "{name} is applied: {} machines are wanted. Power them on; `nkd cluster status {name} --watch` shows how they come up",
            applied.joining.len()
        );
    }
    if applied.changes.is_empty() {
        return format!("{name} is as it was");
    }
    let mut lines = vec![format!("{name} is applied: {} changes", applied.changes.len())];
    lines.extend(moves(applied));
    lines.join("\n")
}
