//! Saves leases in groups, then sends the replies that had to wait for them.
#![expect(clippy::disallowed_methods, reason = "measures how long a save takes")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::super::decision::{Destination, Port};
use super::super::lease::{LeaseChange, LeaseStore};
use super::super::metrics::{Cause, Kind, Metrics};
use super::super::reply::Reply;
use super::link::Link;
use crate::trace::Trace;

/// Largest group; what waits longer is the next one.
const GROUP: usize = 2048;

/// A group of this size says that many machines ask at the same time.
const BUSY: usize = 4;
/// Then a little patience makes the group larger: a flush of the disk costs the same for one lease and for fifty.
const PATIENCE: Duration = Duration::from_millis(3);

/// A reply on its way out.
pub(super) struct Outbound {
    pub interface: usize,
    pub port: Port,
    pub reply: Reply,
    pub to: Destination,
}

/// Changes to save, and the reply that may leave then.
pub(super) struct Commit {
    pub changes: Vec<LeaseChange>,
    pub then: Option<Outbound>,
}

/// Sends and counts.
pub(super) fn send(links: &[Link], out: &Outbound, metrics: &Metrics) {
    let Some(link) = links.get(out.interface) else { return };
    match link.send(&out.reply, out.to, out.port) {
        Ok(()) => drop(metrics.replies.get_or_create(&Kind { kind: out.reply.kind.name() }).inc()),
        Err(error) => {
            metrics.dropped.get_or_create(&Cause { cause: "send" }).inc();
            let machine = out.reply.mac;
            tracing::warn!(trace = %Trace::of_mac(machine), %machine, interface = link.name, to = ?out.to, %error, "DHCP reply was not sent");
        }
    }
}

/// Saves and sends until the queue is closed and empty.
pub(super) async fn run(
    mut queue: mpsc::Receiver<Commit>,
    store: Arc<dyn LeaseStore>,
    links: Arc<Vec<Link>>,
    metrics: Metrics,
) {
    let mut group = Vec::with_capacity(GROUP);
    let mut changes = Vec::with_capacity(GROUP);
    while queue.recv_many(&mut group, GROUP).await > 0 {
        if group.len() >= BUSY && group.len() < GROUP {
            tokio::time::sleep(PATIENCE).await;
            while group.len() < GROUP
                && let Ok(more) = queue.try_recv()
            {
                group.push(more);
            }
        }
        changes.extend(group.iter_mut().flat_map(|commit| commit.changes.drain(..)));
        let started = Instant::now();
        let saved = store.save(&changes).await;
        metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        metrics.commit_changes.observe(changes.len() as f64);
        match saved {
            Ok(()) => {
                for out in group.iter().filter_map(|commit| commit.then.as_ref()) {
                    send(&links, out, &metrics);
                }
            }
            Err(error) => {
                metrics.dropped.get_or_create(&Cause { cause: "store" }).inc_by(group.len() as u64);
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::error!(changes = changes.len(), %error, cause, "leases were not saved, so their machines get no answer yet");
            }
        }
        group.clear();
        changes.clear();
    }
}
