//! The verbs of `nkd cluster` that talk to the service.

use std::time::Duration;

use nkd_api::cluster::{ClusterEvent, ClusterStatus, Health};
use reqwest::Method;
use time::OffsetDateTime;

use super::CliError;
use super::client::{Client, segment};
use super::output::{OutputArgs, age, clock, say, table};

/// Between two looks of `--watch`.
const LOOK: Duration = Duration::from_secs(2);

pub(super) async fn list(client: &Client, output: OutputArgs) -> Result<(), CliError> {
    let clusters: Vec<ClusterStatus> = client.get("/api/v1/clusters").await?;
    output.print(&clusters, |clusters| {
        let now = now();
        let row = |c: &ClusterStatus| {
            let ready = c.members.iter().filter(|m| m.state == nkd_api::cluster::MemberState::Ready).count();
            vec![
                c.name.clone(),
                c.version.clone(),
                word(&c.phase),
                health(&c.health),
                format!("{ready}/{}", c.members.len()),
                if c.endpoints.is_empty() { "-".into() } else { c.endpoints.join(",") },
                age(c.created_at, now),
            ]
        };
        table(&["NAME", "VERSION", "PHASE", "HEALTH", "READY", "ENDPOINT", "AGE"], clusters.iter().map(row))
    });
    Ok(())
}

pub(super) async fn status(client: &Client, name: &str, watch: bool, output: OutputArgs) -> Result<(), CliError> {
    let path = format!("/api/v1/clusters/{}", segment(name));
    let mut last = None;
    loop {
        let status: ClusterStatus = client.poll(&path).await?;
        if last.as_ref() != Some(&status) {
            output.print(&status, text);
            last = Some(status);
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub(super) async fn events(client: &Client, name: &str, limit: u32, output: OutputArgs) -> Result<(), CliError> {
    let path = format!("/api/v1/clusters/{}/events?limit={limit}", segment(name));
    let events: Vec<ClusterEvent> = client.get(&path).await?;
    output.print(&events, |events| {
        let row = |e: &ClusterEvent| vec![clock(e.at), e.cause.clone(), e.message.replace('\n', "\n    ")];
        table(&["TIME", "CAUSE", "MESSAGE"], events.iter().map(row))
    });
    Ok(())
}

/// Who a kubeconfig is for.
#[derive(Debug, clap::Args)]
pub(super) struct AccessArgs {
    /// User name in the certificate [default: your own]
    #[arg(long)]
    user: Option<String>,
    /// Group in the certificate [default: system:masters]
    #[arg(long)]
    group: Option<String>,
    /// Life of the certificate in hours
    #[arg(long, default_value_t = 24)]
    hours: i64,
}

pub(super) async fn kubeconfig(client: &Client, name: &str, access: &AccessArgs) -> Result<(), CliError> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("hours", &access.hours.to_string());
    for (key, value) in [("user", &access.user), ("group", &access.group)] {
        if let Some(value) = value {
            query.append_pair(key, value);
        }
    }
    let path = format!("/api/v1/clusters/{}/kubeconfig?{}", segment(name), query.finish());
    say(&client.text(Method::POST, &path).await?);
    Ok(())
}

fn text(status: &ClusterStatus) -> String {
    let row = |m: &nkd_api::cluster::Member| {
        vec![
            m.hostname.clone(),
            m.pool.clone(),
            word(&m.role),
            word(&m.state),
            m.address.map_or_else(|| "-".into(), |a| a.to_string()),
            m.detail.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    let members = table(&["NODE", "POOL", "ROLE", "STATE", "ADDRESS", "DETAIL"], status.members.iter().map(row));
    let waiting = status.waiting.as_ref().map(|w| format!("waits: {w}\n")).unwrap_or_default();
    let reached = match status.endpoints.is_empty() {
        true => String::new(),
        false => format!("reached at {}\n", status.endpoints.join(", ")),
    };
    format!(
        "{}: {}, Kubernetes {}, {}\n{reached}{waiting}\n{members}",
        status.name,
        word(&status.phase),
        status.version,
        health(&status.health)
    )
}

/// A value of the contract as it is written there.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn health(health: &Health) -> String {
    match health {
        Health::Unknown => "health unknown".into(),
        Health::Healthy => "Healthy".into(),
        Health::Degraded { reasons } => format!("Degraded({})", reasons.join("; ")),
        Health::Unreachable { since, reason } => format!("Unreachable(since {}): {reason}", clock(*since)),
    }
}

#[expect(clippy::disallowed_methods, reason = "ages are shown by the clock of the one who looks")]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
