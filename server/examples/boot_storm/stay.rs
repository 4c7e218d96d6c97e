//! A machine that has become a node and stays: one connection holds the question for its task, another tells every
//! half-minute that the node lives, as the agent does. A connection that the service has closed is made anew.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nkd_api::agent::{Report, ReportEvent, Task, TaskAnswer};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::client::TlsStream;
use url::Url;
use uuid::Uuid;

use crate::http::{self, Request};

/// As the agent has them.
const HEARTBEAT: Duration = Duration::from_secs(30);
const POLL_WAIT: u64 = 30;
/// A held question and its answer, or a heartbeat and its answer.
const LIMIT: Duration = Duration::from_secs(60);

/// What all of them count.
#[derive(Default)]
pub struct Fleet {
    pub heartbeats: AtomicU64,
    pub answers: AtomicU64,
    /// That were made to tell that a node lives.
    pub connections: AtomicU64,
}

/// A node with its certificate.
pub struct Node {
    pub number: u16,
    pub own: Ipv4Addr,
    pub server: Url,
    pub tls: Arc<rustls::ClientConfig>,
}

impl Node {
    /// Stays until this moment.
    pub async fn stay(&self, fleet: &Fleet, until: Instant) -> Result<()> {
        let (polls, beats) = tokio::join!(self.poll(fleet, until), self.beat(fleet, until));
        polls.context("asking for the task").and(beats.context("telling that it lives"))
    }

    async fn poll(&self, fleet: &Fleet, until: Instant) -> Result<()> {
        let mut line = self.connect().await?;
        let mut url = self.server.join("/agent/v1/task?wait=0")?;
        loop {
            let request = Request { url: &url, token: None, body: None };
            let answer = timeout(LIMIT, http::ask(&mut line, &request));
            let Some(answer) = before(until, answer).await else { return Ok(()) };
            let TaskAnswer { revision, task, .. } = serde_json::from_slice(&answer??)?;
            anyhow::ensure!(matches!(task, Task::Run), "told to {task:?}");
            fleet.answers.fetch_add(1, Ordering::Relaxed);
            url.set_query(Some(&format!("seen={revision}&wait={POLL_WAIT}")));
        }
    }

    async fn beat(&self, fleet: &Fleet, until: Instant) -> Result<()> {
        let mut line = None;
        let url = self.server.join("/agent/v1/report")?;
        // Not all of them at the same time.
        let mut next = Instant::now() + HEARTBEAT * u32::from(self.number % 1000) / 1000;
        loop {
            if before(until, sleep_until(next)).await.is_none() {
                return Ok(());
            }
            next += HEARTBEAT;
            let event = ReportEvent::Heartbeat { uptime: 600 };
            let report = Report { id: Uuid::new_v4(), boot_id: "fleet".into(), event };
            let request = Request { url: &url, token: None, body: Some(serde_json::to_vec(&report)?) };
            let told = match line.as_mut() {
                Some(open) => timeout(LIMIT, http::ask(open, &request)).await?.is_ok(),
                None => false,
            };
            if !told {
                fleet.connections.fetch_add(1, Ordering::Relaxed);
                timeout(LIMIT, http::ask(line.insert(self.connect().await?), &request)).await??;
            }
            fleet.heartbeats.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        http::connect_tls(self.own, &self.server, Arc::clone(&self.tls)).await
    }
}

/// What the future gives, unless the moment comes first.
async fn before<T>(until: Instant, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout_at(until, future).await.ok()
}
