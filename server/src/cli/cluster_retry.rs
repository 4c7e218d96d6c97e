//! `nkd cluster retry`.

use nkd_api::cluster::{ClusterStatus, MemberState};
use reqwest::Method;

use super::CliError;
use super::client::{Client, segment};
use super::output::OutputArgs;

/// What is tried again.
#[derive(Debug, clap::Args)]
pub(super) struct RetryArgs {
    /// Name of the cluster
    name: String,
    /// Host name of the node; all that failed when not given
    node: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn retry(client: &Client, arguments: &RetryArgs) -> Result<(), CliError> {
    let mut path = format!("/api/v1/clusters/{}/retry", segment(&arguments.name));
    if let Some(node) = &arguments.node {
        path.push_str(&format!("?node={}", segment(node)));
    }
    let status: ClusterStatus = client.call(Method::POST, &path, None::<&()>).await?;
    arguments.output.print(&status, |status| {
        let asked = |hostname: &str| arguments.node.as_deref().is_none_or(|node| node == hostname);
        let failed = status.members.iter().filter(|m| m.state == MemberState::Failed && asked(&m.hostname));
        let names: Vec<&str> = failed.map(|m| m.hostname.as_str()).collect();
        format!("tried again now: {}; `nkd cluster status {} --watch` shows how it goes", names.join(", "), status.name)
    });
    Ok(())
}
