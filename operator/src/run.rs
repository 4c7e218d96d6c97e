//! Looks, decides, acts, and again: while it leads.

#![expect(clippy::disallowed_methods, reason = "reads the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use nkd_api::update::{GROUP, KIND, UPSTREAM_GROUP, VERSION};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::blocked::{Blocked, ROUNDS};
use crate::budget::{BudgetSeen, PodSeen, ill_planes, leaving, obstacles};
use crate::cluster::{Cluster, ClusterError, chain};
use crate::lease::Tenure;
use crate::lookups::Lookups;
use crate::plan::{asks_for_planes, plan};
use crate::seen::{NodeSeen, PodsSeen, Seen};
use crate::serve::Metrics;
use crate::step::{Change, Step};
use crate::turn::{opened, orphans, turns};
use crate::waits::Waits;
use crate::watch::Watched;
use crate::wish::{Source, Wish, remember_roles};

/// Between two looks while an update is under way: what a budget holds back is asked again.
const OFTEN: Duration = Duration::from_secs(5);
/// The same while there is none.
const SELDOM: Duration = Duration::from_secs(60);
/// Shortest time between two looks: many nodes change at once.
const SHORTEST: Duration = Duration::from_millis(500);

/// Where the operator itself runs.
#[derive(Debug, Clone)]
pub struct Own {
    /// Its namespace.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// Its node.
    pub node: Option<String>,
}

/// The operator.
pub struct Operator {
    cluster: Cluster,
    watched: Watched,
    tenure: Tenure,
    own: Own,
    metrics: Metrics,
    stop: CancellationToken,
    /// What held the pods of a node when they were last asked to leave. It is shown, and decides nothing.
    said: BTreeMap<String, String>,
    /// Nodes that could not be written when that was tried last. It is shown, and says in which order they are tried.
    refused: BTreeMap<String, Refused>,
    /// So many writes were refused.
    tried: u64,
    /// A write was not answered in time: what is told, and pods that leave, do not wait for more of them.
    slow: bool,
    /// Something was refused, or nobody knows whether it was: what is there is looked at anew before the next decision.
    unsure: bool,
    /// By node, uids of pods of which nobody heard in time when they were last asked to leave. They are asked after the others.
    late: BTreeMap<String, BTreeSet<String>>,
    waits: Waits,
    blocked: Blocked,
    lookups: Lookups,
}

/// A write on a node that was refused.
struct Refused {
    /// The uid of the update that wanted it.
    update: Option<String>,
    /// What was said.
    why: String,
    /// Its number among those that were refused.
    tried: u64,
}

/// A step that cannot be done now.
#[derive(Debug, thiserror::Error)]
enum StopReason {
    /// Another operator may have the lease, or is about to get it.
    #[error("the lease is not ours for sure any more, or is about to be given back")]
    NotLeading,
    /// The API server does not do it.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl Operator {
    /// An operator that acts while `tenure` holds, and not after `stop`.
    #[must_use]
    pub fn new(
        cluster: Cluster,
        watched: Watched,
        tenure: Tenure,
        own: Own,
        metrics: Metrics,
        lookups: Lookups,
        stop: CancellationToken,
    ) -> Self {
        Self {
            cluster,
            watched,
            tenure,
            own,
            metrics,
            stop,
            said: BTreeMap::new(),
            refused: BTreeMap::new(),
            tried: 0,
            slow: false,
            unsure: false,
            late: BTreeMap::new(),
            waits: Waits::default(),
            blocked: Blocked::default(),
            lookups,
        }
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self, changed: Arc<Notify>) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.watched.wait() => {}
            () = stop.cancelled() => return,
        }
        self.metrics.set_ready();
        let mut led = false;
        while !stop.is_cancelled() {
            let leads = self.tenure.holds();
            self.metrics.looked(leads);
            let mut pause = OFTEN;
            if leads && !led {
                // What the one before us wrote last may not have come to our watch yet.
                led = self.catch_up().await;
            } else if !leads {
                led = false;
                // What was found and not written is another's to look up.
                self.lookups.forget();
            }
            if leads && led {
                let looked = self.look().await;
                led = !std::mem::take(&mut self.unsure);
                match looked {
                    Ok(open) => pause = if open { OFTEN } else { SELDOM },
                    Err(StopReason::Cluster(error)) if error.is_conflict() => pause = SHORTEST,
                    Err(error) => {
                        // What was written last may have come to the cluster, and its answer not to us.
                        led = false;
                        self.metrics.failed();
                        tracing::warn!(error = %chain(&error), "looks again later");
                    }
                }
            }
            let wake = async {
                tokio::time::sleep(SHORTEST).await;
                let _ = tokio::time::timeout(pause.saturating_sub(SHORTEST), changed.notified()).await;
            };
            tokio::select! {
                () = wake => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn catch_up(&mut self) -> bool {
        let now = async { Ok::<_, ClusterError>((self.cluster.nodes().await?, self.cluster.updates().await?)) };
        match now.await {
            Ok((nodes, updates)) => {
                nodes.into_iter().for_each(|node| self.watched.learn(node));
                updates.into_iter().for_each(|update| self.watched.learn_update(update));
                true
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot begin to lead yet");
                false
            }
        }
    }

    /// One look. Whether there is an update that is not finished.
    async fn look(&mut self) -> Result<bool, StopReason> {
        let begun = Instant::now();
        let wishes = self.watched.wishes();
        let (nodes, seen) = self.nodes();
        self.act_for_all(&nodes, opened(&Seen { nodes: seen, ..Seen::default() })).await?;
        let seen = self.nodes().1;
        let turns: Vec<(Wish, Option<String>)> =
            turns(&wishes, &seen).into_iter().map(|(wish, ahead)| (wish.clone(), ahead)).collect();
        let open = !turns.is_empty();
        self.metrics.updates(&wishes);
        // What is known, and what nobody wants any more, is not remembered: another name is asked for anew.
        let unknown = turns.iter().map(|(wish, _)| wish).filter(|wish| wish.unknown().is_some());
        self.lookups.keep(&unknown.map(|wish| wish.uid.as_str()).collect::<BTreeSet<_>>());
        self.blocked.keep(&turns.iter().map(|(wish, _)| wish.uid.as_str()).collect());
        for (wish, ahead) in turns {
            self.serve(&wish, ahead).await?;
        }
        let (nodes, seen) = self.nodes();
        let steps = orphans(&Seen { nodes: seen, ..Seen::default() }, &wishes, OffsetDateTime::now_utc());
        self.act_for_all(&nodes, steps).await?;
        self.metrics.took(begun.elapsed());
        Ok(open)
    }

    /// What no update wants any more, or what somebody has done by hand.
    async fn act_for_all(&mut self, nodes: &[Node], mut steps: Vec<Step>) -> Result<(), StopReason> {
        self.slow = false;
        steps.sort_by_key(|step| self.tried_last(step));
        for step in steps {
            self.act(None, nodes, step).await?;
        }
        Ok(())
    }

    fn nodes(&mut self) -> (Vec<Node>, Vec<NodeSeen>) {
        let nodes = self.watched.nodes();
        let mut seen: Vec<NodeSeen> = nodes.iter().map(NodeSeen::read).collect();
        remember_roles(&self.watched.wishes(), &mut seen);
        self.waits.measure(&mut seen, OffsetDateTime::now_utc(), Instant::now());
        self.refused.retain(|name, _| seen.iter().any(|node| node.name == *name));
        for node in &mut seen {
            node.said = self.said.get(&node.name).cloned().unwrap_or_default();
            node.refused = self.refused.get(&node.name).map(|refused| refused.why.clone()).unwrap_or_default();
        }
        (nodes, seen)
    }

    async fn serve(&mut self, wish: &Wish, ahead: Option<String>) -> Result<(), StopReason> {
        let (nodes, seen) = self.nodes();
        let looked = self.lookups.looked(&wish.uid);
        let mut seen = Seen { nodes: seen, own_node: self.own.node.clone(), ahead, looked };
        if asks_for_planes(wish, &seen) {
            let pods = self.cluster.plane_pods().await?;
            let planes: Vec<&str> =
                seen.nodes.iter().filter(|node| node.control_plane).map(|n| n.name.as_str()).collect();
            let mut ill = ill_planes(&pods, &planes);
            seen.nodes.iter_mut().for_each(|node| node.ill = ill.remove(&node.name));
        }
        self.blocked.recall(&wish.uid, &mut seen.nodes);
        let mut budgets: Option<Vec<BudgetSeen>> = None;
        let mut steps = Vec::new();
        for _ in 0..ROUNDS {
            steps = plan(wish, &seen, OffsetDateTime::now_utc());
            let wanted = steps.iter().filter_map(|step| match step {
                Step::Inspect { node } => Some(node.clone()),
                _ => None,
            });
            let wanted: Vec<String> = wanted.collect();
            if wanted.is_empty() {
                break;
            }
            let budgets = match &mut budgets {
                Some(budgets) => budgets,
                none => none.insert(self.cluster.budgets().await?),
            };
            for name in wanted {
                let leaving = leaving(&self.cluster.pods(&name).await?, &self.own.namespace);
                let obstacles = obstacles(&leaving, budgets);
                if let Some(node) = seen.nodes.iter_mut().find(|node| node.name == name) {
                    node.pods = Some(PodsSeen { leaving, obstacles });
                }
            }
        }
        self.blocked.remember(&wish.uid, &seen.nodes);
        // What an answer that came too late has done all the same is refused no more.
        let is_written = |name: &String| steps.iter().any(|s| matches!(s, Step::Write { node, .. } if node == name));
        self.refused.retain(|name, refused| refused.update.as_ref() != Some(&wish.uid) || is_written(name));
        // What is written and told first does not depend on pods that may take their time to answer, and nothing on nodes
        // that could not be written before.
        steps.sort_by_key(|step| match step {
            Step::Evict { .. } | Step::Delete { .. } => (1, 0),
            _ => match self.tried_last(step) {
                0 => (0, 0),
                tried => (2, tried),
            },
        });
        self.slow = false;
        for step in steps {
            self.act(Some(wish), &nodes, step).await?;
        }
        Ok(())
    }

    /// When the node of this step was tried in vain last; 0: its last write went well. Those tried longest ago go first, so that one
    /// that is never answered for holds up each of the others once.
    fn tried_last(&self, step: &Step) -> u64 {
        match step {
            Step::Write { node, .. } => self.refused.get(node).map_or(0, |refused| refused.tried),
            _ => 0,
        }
    }

    fn may_act(&self) -> Result<(), StopReason> {
        match self.tenure.holds() && !self.stop.is_cancelled() {
            true => Ok(()),
            false => Err(StopReason::NotLeading),
        }
    }

    async fn act(&mut self, wish: Option<&Wish>, nodes: &[Node], step: Step) -> Result<(), StopReason> {
        self.may_act()?;
        match step {
            // So many nodes are held back that it has to wait for the next look.
            Step::Inspect { .. } => Ok(()),
            Step::Write { node, change, reason, message } => {
                let seen = nodes.iter().find(|seen| seen.metadata.name.as_deref() == Some(&node));
                let Some(seen) = seen.filter(|_| !self.slow) else { return Ok(()) };
                match self.write(wish, seen, &change, reason, &message).await {
                    // A policy or a webhook, say: it holds up neither the other nodes, nor what is told.
                    Err(StopReason::Cluster(error)) if error.is_of_this_request() => {
                        self.not_taken(&format!("node {node}"), &error);
                        self.slow |= error.is_late();
                        self.tried += 1;
                        let update = wish.map(|wish| wish.uid.clone());
                        self.refused.insert(node, Refused { update, why: chain(&error), tried: self.tried });
                        Ok(())
                    }
                    written => written,
                }
            }
            Step::Evict { node, pods } => self.clear(node, pods, None).await,
            Step::Delete { node, pods, at_once } => {
                tracing::warn!(node, pods = pods.len(), at_once, "deletes pods that did not leave");
                self.clear(node, pods, Some(at_once)).await
            }
            Step::LookUp { image } => {
                if let Some(wish) = wish {
                    self.lookups.begin(&wish.uid, &image);
                }
                Ok(())
            }
            Step::Tell(status) => {
                let Some(wish) = wish else { return Ok(()) };
                let told = match self.cluster.tell(wish, &status).await {
                    Err(error) if error.is_of_this_request() => {
                        self.not_taken(&wish.full_name(), &error);
                        return Ok(());
                    }
                    told => told?,
                };
                if let Some(told) = told {
                    self.watched.learn_update((wish.source, told));
                }
                if status.phase != wish.status.phase {
                    let why = status.conditions.first().map(|one| one.message.clone()).unwrap_or_default();
                    tracing::info!(update = wish.full_name(), phase = ?status.phase, "{why}");
                    self.publish(&of_update(wish), &format!("{:?}", status.phase), &why, false).await;
                }
                Ok(())
            }
        }
    }

    fn not_taken(&mut self, what: &str, error: &ClusterError) {
        self.unsure = true;
        self.metrics.failed();
        tracing::warn!(error = %chain(error), what, "was not written, and is tried again");
    }

    /// Asks pods to leave, or deletes them, at once or with their time to end. One that is held holds up its node alone; one of
    /// which nothing is heard in time ends the round of its node, since the others would wait as long, and goes last in the next.
    async fn clear(&mut self, node: String, mut pods: Vec<PodSeen>, delete: Option<bool>) -> Result<(), StopReason> {
        let mut late = self.late.remove(&node).unwrap_or_default();
        late.retain(|uid| pods.iter().any(|pod| pod.uid == *uid));
        pods.sort_by_key(|pod| late.contains(&pod.uid));
        let mut held = Vec::new();
        for pod in pods {
            self.may_act()?;
            let answer = match delete {
                Some(at_once) => self.cluster.delete(&pod, at_once).await.map(|()| None),
                None => self.cluster.evict(&pod).await,
            };
            let is_late = answer.as_ref().is_err_and(ClusterError::is_late);
            let said = match answer {
                Err(error) if error.is_of_this_request() => Some(chain(&error)),
                said => said?,
            };
            if delete.is_none() {
                self.metrics.evicted(said.is_none());
            }
            if let Some(said) = said {
                held.push(format!("{}/{}: {said}", pod.namespace, pod.name));
            }
            late.remove(&pod.uid);
            if is_late {
                late.insert(pod.uid);
                break;
            }
        }
        if !late.is_empty() {
            self.late.insert(node.clone(), late);
        }
        self.said.insert(node, held.join("; "));
        Ok(())
    }

    async fn write(
        &mut self,
        wish: Option<&Wish>,
        seen: &Node,
        change: &Change,
        reason: &'static str,
        message: &str,
    ) -> Result<(), StopReason> {
        let name = seen.metadata.name.clone().unwrap_or_default();
        let version = seen.metadata.resource_version.as_deref().unwrap_or_default();
        let written = self.cluster.write(&name, version, change).await?;
        let update = wish.map(Wish::full_name).unwrap_or_default();
        tracing::info!(node = name, update, reason, "{message}");
        self.metrics.wrote(reason);
        let node = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(name.clone()),
            uid: written.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        self.watched.learn(written);
        self.said.remove(&name);
        self.refused.remove(&name);
        let bad = reason == "Failed";
        let update = wish.map(of_update);
        self.publish(&node, reason, message, bad).await;
        if let Some(update) = &update {
            self.publish(update, reason, &format!("{name}: {message}"), bad).await;
        }
        Ok(())
    }

    /// An event that cannot be written stops nothing.
    async fn publish(&self, about: &ObjectReference, reason: &str, note: &str, bad: bool) {
        if let Err(error) = self.cluster.event(about, reason, note, bad, OffsetDateTime::now_utc()).await {
            tracing::warn!(error = %chain(&error), "an event could not be written");
        }
    }
}

fn of_update(wish: &Wish) -> ObjectReference {
    let group = match wish.source {
        Source::Ours => GROUP,
        Source::Upstream => UPSTREAM_GROUP,
    };
    ObjectReference {
        api_version: Some(format!("{group}/{VERSION}")),
        kind: Some(KIND.into()),
        name: Some(wish.name.clone()),
        namespace: wish.namespace.clone(),
        uid: Some(wish.uid.clone()),
        ..ObjectReference::default()
    }
}
