//! What is told about an update (pure).

use std::collections::BTreeMap;

use nkd_api::update::{Condition, Counts, FoundImage, NodeState, NodeStatus, Phase, PlaneAtWork, UpdateStatus};
use time::OffsetDateTime;

use crate::image;
use crate::seen::{NodeSeen, Seen};
use crate::step::{REFUSED, Why};
use crate::wish::Wish;

/// How a Node comes back that was deleted.
pub(crate) fn comes_back(wish: &Wish, nodes: &[NodeSeen], name: &str) -> String {
    if nodes.iter().all(|node| node.name != name) {
        return "`systemctl restart kubelet` on it registers it again".into();
    }
    let labels: Vec<String> = wish.spec.node_selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("it is back without its labels: `kubectl label node {name} {}`", labels.join(" "))
}

/// The status of an update. `settled`: nothing is yet to be written for it. Where nothing has changed, it is what was told before: times do not move.
#[must_use]
pub fn status(
    wish: &Wish,
    seen: &Seen,
    told: &BTreeMap<&str, (NodeState, String)>,
    planes: Vec<PlaneAtWork>,
    why: Option<&Why>,
    settled: bool,
    now: OffsetDateTime,
) -> UpdateStatus {
    let now = now.replace_nanosecond(0).unwrap_or(now);
    let before: BTreeMap<&str, &NodeStatus> =
        wish.status.nodes.iter().map(|before| (before.name.as_str(), before)).collect();
    let missing: Vec<NodeStatus> = wish
        .missing(&seen.nodes)
        .into_iter()
        .map(|plane| {
            let same = before.get(plane.name.as_str()).filter(|before| before.state == NodeState::Failed);
            NodeStatus {
                name: plane.name.clone(),
                state: NodeState::Failed,
                since: same.map_or(now, |before| before.since),
                reason: format!(
                    "its Node was deleted when it was on its way: {}",
                    comes_back(wish, &seen.nodes, &plane.name)
                ),
                attempt: before.get(plane.name.as_str()).map_or(0, |before| before.attempt),
            }
        })
        .collect();
    let mut unavailable = missing.len() as u32;
    let mut nodes: Vec<NodeStatus> = seen
        .nodes
        .iter()
        .filter_map(|node| {
            let (state, reason) = told.get(node.name.as_str())?;
            unavailable += u32::from(!node.ready || node.held());
            let before = before.get(node.name.as_str()).filter(|before| before.state == *state);
            let mine = node.desired.as_ref().filter(|desired| desired.uid == wish.uid);
            Some(NodeStatus {
                name: node.name.clone(),
                state: *state,
                since: before.map_or(now, |before| before.since),
                reason: reason.clone(),
                attempt: mine.map_or(0, |desired| desired.attempt),
            })
        })
        .collect();
    nodes.extend(missing);
    let counts = counts(&nodes, unavailable);
    let phase = match phase(wish, &nodes, counts, why) {
        Phase::Complete if !settled => Phase::Progressing,
        Phase::Aborted if !settled => Phase::Aborting,
        other => other,
    };
    let conditions = conditions(wish, phase, &nodes, counts, why, now);
    let release = Some(wish.spec.release.clone());
    let image = found_image(wish, seen, now);
    UpdateStatus {
        phase,
        conditions,
        nodes,
        counts,
        observed_generation: wish.generation,
        release,
        image,
        planes_at_work: planes,
    }
}

/// What an image by its tag was found to be: as it was told before, or as it was found now. Nodes begin when it can be read here.
fn found_image(wish: &Wish, seen: &Seen, now: OffsetDateTime) -> Option<FoundImage> {
    let wanted = wish.problem.is_none() && !wish.spec.abort;
    match wish.unknown().filter(|_| wanted) {
        Some(asked) => image::found(asked, seen.looked.as_ref(), now),
        None => wish.found().cloned(),
    }
}

pub(crate) fn at_work(state: NodeState) -> bool {
    matches!(state, NodeState::Draining | NodeState::Upgrading | NodeState::Rebooting | NodeState::Soaking)
}

fn counts(nodes: &[NodeStatus], unavailable: u32) -> Counts {
    let count = |fits: &dyn Fn(&NodeStatus) -> bool| nodes.iter().filter(|node| fits(node)).count() as u32;
    Counts {
        total: nodes.len() as u32,
        done: count(&|node| node.state == NodeState::Done),
        in_progress: count(&|node| at_work(node.state)),
        failed: count(&|node| node.state == NodeState::Failed),
        unavailable,
    }
}

fn phase(wish: &Wish, nodes: &[NodeStatus], counts: Counts, why: Option<&Why>) -> Phase {
    let spec = &wish.spec;
    let code = why.map(|why| why.code);
    let all = |fits: &dyn Fn(NodeState) -> bool| !nodes.is_empty() && nodes.iter().all(|node| fits(node.state));
    if spec.abort {
        // What was staged and never began is Waiting by now. What was never understood is over, too.
        let over = nodes.iter().all(|node| !at_work(node.state));
        if over { Phase::Aborted } else { Phase::Aborting }
    } else if wish.problem.is_some() {
        Phase::Invalid
    } else if all(&|state| state == NodeState::Done) {
        Phase::Complete
    } else if code == Some("AnotherUpdate") {
        Phase::Pending
    } else if is_stuck(counts, code) || all(&|state| matches!(state, NodeState::Done | NodeState::Failed)) {
        Phase::Halted
    } else if spec.paused {
        Phase::Paused
    } else if counts.done + counts.in_progress + counts.failed == 0 {
        Phase::Pending
    } else {
        Phase::Progressing
    }
}

/// Nothing goes on before somebody has put right what failed.
fn is_stuck(counts: Counts, code: Option<&str>) -> bool {
    let by_failure = counts.failed > 0 && counts.in_progress == 0;
    code == Some("NodesFailed") || (by_failure && matches!(code, Some("ControlPlaneFailed" | "MaxUnavailable")))
}

fn conditions(
    wish: &Wish,
    phase: Phase,
    nodes: &[NodeStatus],
    counts: Counts,
    why: Option<&Why>,
    now: OffsetDateTime,
) -> Vec<Condition> {
    let far = format!("{} of {} nodes are done, {} at work", counts.done, counts.total, counts.in_progress);
    let (mut reason, mut message) = (format!("{phase:?}"), far.clone());
    if let Some(why) = why.filter(|_| phase != Phase::Complete) {
        reason = why.code.to_owned();
        message = format!("{far}; {}", why.text);
    }
    let failed: Vec<String> = nodes
        .iter()
        .filter(|node| matches!(node.state, NodeState::Failed | NodeState::Blocked))
        .map(|node| format!("{}: {}", node.name, node.reason))
        .collect();
    let stopped = why.filter(|why| [image::UNKNOWN, REFUSED].contains(&why.code));
    let degraded = !failed.is_empty() || stopped.is_some() || matches!(phase, Phase::Halted | Phase::Invalid);
    let (degraded_reason, degraded_message) = match phase {
        Phase::Invalid => ("Invalid".to_owned(), message.clone()),
        _ if counts.failed > 0 => ("NodesFailed".to_owned(), failed.join("; ")),
        _ if let Some(why) = stopped => (why.code.to_owned(), why.text.clone()),
        _ if degraded => ("Blocked".to_owned(), failed.join("; ")),
        // Never an empty text: API servers of old take one for null, and refuse it.
        _ => ("AsExpected".to_owned(), "nothing is wrong".to_owned()),
    };
    let condition = |kind: &str, is: bool, reason: String, message: String| {
        let status = if is { "True" } else { "False" }.to_owned();
        let before = wish.status.conditions.iter().find(|before| before.kind == kind && before.status == status);
        Condition {
            kind: kind.to_owned(),
            status,
            reason,
            message,
            observed_generation: wish.generation,
            last_transition_time: before.map_or(now, |before| before.last_transition_time),
        }
    };
    let progressing = matches!(phase, Phase::Progressing | Phase::Aborting);
    vec![
        condition("Progressing", progressing, reason.clone(), message.clone()),
        condition("Degraded", degraded, degraded_reason, degraded_message),
        condition("Complete", phase == Phase::Complete, reason, message),
    ]
}
