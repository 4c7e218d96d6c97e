//! `nkd cluster certs ...`

use clap::{Args, Subcommand};
use nkd_api::cluster::{ClusterCertificate, ClusterCertificates, NodeRenewal};
use reqwest::Method;

use super::CliError;
use super::client::{Client, segment};
use super::context::ContextArgs;
use super::output::{OutputArgs, clock, table};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct CertsArgs {
    #[command(subcommand)]
    command: Option<CertsCommand>,
    /// Name of the cluster
    #[arg(required = true)]
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Renew what kubeadm made on the control planes, one node after the other: each one's API server and etcd restart
    Renew {
        /// Name of the cluster
        name: String,
        /// Only on this control plane
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(super) async fn run(arguments: CertsArgs, context: &ContextArgs) -> Result<(), CliError> {
    let client = context.client()?;
    match (arguments.command, arguments.name) {
        (Some(CertsCommand::Renew { name, node, output }), _) => renew(&client, &name, node.as_deref(), output).await,
        (None, name) => {
            let path = format!("/api/v1/clusters/{}/certificates", segment(&name.unwrap_or_default()));
            let all: ClusterCertificates = client.get(&path).await?;
            arguments.output.print(&all, text);
            Ok(())
        }
    }
}

async fn renew(client: &Client, name: &str, node: Option<&str>, output: OutputArgs) -> Result<(), CliError> {
    let mut path = format!("/api/v1/clusters/{}/certificates/renew", segment(name));
    if let Some(node) = node {
        let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("node", node).finish();
        path = format!("{path}?{query}");
    }
    let all: ClusterCertificates = client.call(Method::POST, &path, None::<&()>).await?;
    output.print(&all, |all| format!("{}\n`nkd cluster certs {name}` shows how far it is", renewals(&all.renewals)));
    Ok(())
}

fn text(all: &ClusterCertificates) -> String {
    let row = |c: &ClusterCertificate| {
        vec![
            c.node.clone().unwrap_or_else(|| "(service)".into()),
            c.name.clone(),
            c.subject.clone(),
            c.not_after.date().to_string(),
            c.days_left.to_string(),
            match (c.renewed_from, &c.node) {
                (Some(from), _) => format!("from {}", from.date()),
                (None, Some(_)) => "by the kubelet".into(),
                (None, None) => "never".into(),
            },
        ]
    };
    let head = ["NODE", "CERTIFICATE", "SUBJECT", "ENDS", "DAYS LEFT", "RENEWED"];
    let mut text = table(&head, all.certificates.iter().map(row));
    for name in &all.unreadable {
        text.push_str(&format!("\n{name} does not read"));
    }
    if !all.renewals.is_empty() {
        text.push_str(&format!("\n\n{}", renewals(&all.renewals)));
    }
    text
}

fn renewals(all: &[NodeRenewal]) -> String {
    let row = |r: &NodeRenewal| {
        let state = serde_json::to_value(r.state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        vec![
            r.node.clone(),
            state,
            format!("{} {}", r.at.date(), clock(r.at)),
            r.detail.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    table(&["NODE", "RENEWAL", "SINCE", "DETAIL"], all.iter().map(row))
}
