//! Whose turn it is among several updates, and what is left of those that are gone (pure).

use std::collections::BTreeSet;

use nkd_api::update::{Note, NoteState, ReportedState};
use time::{Duration, OffsetDateTime};

use crate::seen::{NodeSeen, Seen};
use crate::step::{Change, Step, write};
use crate::wish::Wish;

/// So long a node may be silent that was told to go by an update that is gone: as long as by the default of those that are not.
const SILENT: Duration = Duration::minutes(45);

/// Updates that are not finished, the older first, each with the name of one that comes before it.
#[must_use]
pub fn turns<'a>(wishes: &'a [Wish], nodes: &[NodeSeen]) -> Vec<(&'a Wish, Option<String>)> {
    let mut open: Vec<&Wish> = wishes.iter().filter(|wish| !wish.is_finished(wishes)).collect();
    open.sort_by_key(|wish| wish.order());
    let claims =
        |wish: &Wish| wish.problem.is_none() || nodes.iter().any(|node| node.busy_for() == Some(wish.uid.as_str()));
    let mut ahead: Option<String> = None;
    let mut turns = Vec::new();
    for wish in open {
        turns.push((wish, ahead.clone()));
        if ahead.is_none() && claims(wish) {
            ahead = Some(wish.full_name());
        }
    }
    turns
}

/// Nodes that an administrator has opened, and that no update is at work on, are nobody's any more: whoever closes them next is
/// not the operator, and they are not away.
#[must_use]
pub fn opened(seen: &Seen) -> Vec<Step> {
    let open = |node: &&NodeSeen| node.cordoned_by.is_some() && !node.unschedulable && node.busy_for().is_none();
    let release = |node: &NodeSeen| {
        let change = Change { cordoned_by: Some(None), ..Change::default() };
        write(node, change, "Opened", "an administrator has opened it".to_owned())
    };
    seen.nodes.iter().filter(open).map(release).collect()
}

/// What updates have left on nodes that are no longer there, or are finished and still at work on one. A node that is
/// upgrading comes to its end first; one that has failed or is silent stays closed, for nobody knows what is wrong with it.
#[must_use]
pub fn orphans(seen: &Seen, wishes: &[Wish], now: OffsetDateTime) -> Vec<Step> {
    let there: BTreeSet<&str> = wishes.iter().map(|wish| wish.uid.as_str()).collect();
    let open = wishes.iter().filter(|wish| !wish.is_finished(wishes));
    let open: BTreeSet<&str> = open.map(|wish| wish.uid.as_str()).collect();
    let steps = seen.nodes.iter().filter_map(|node| {
        let at_work = node.busy_for().filter(|uid| !open.contains(uid));
        let dead = |uid: &str| !there.contains(uid) || at_work == Some(uid);
        node.owners().into_iter().find(|uid| dead(uid))?;
        let (note, desired) = (node.note.as_ref(), node.desired.as_ref());
        if node.busy_for().is_some_and(|uid| !dead(uid)) {
            return None;
        }
        let busy = node.busy_for().is_some();
        let going = busy && desired.is_some_and(|d| d.go && dead(&d.uid));
        let end = node.report().map(|said| said.state).filter(|state| state.is_end());
        let goes_on = going && end.is_none();
        let heard = node.report().map(|said| said.state);
        let is_news = note.is_none_or(|note| dead(&note.uid) && note.heard != heard);
        if let Some(desired) = desired.filter(|_| goes_on && is_news) {
            // How long it says that counts from now, as it does while its update is there.
            let since = now.replace_nanosecond(0).unwrap_or(now);
            let (uid, attempt, retry) = (desired.uid.clone(), desired.attempt, desired.retry.unwrap_or_default());
            let note = Note { uid, attempt, state: NoteState::Begun, since, retry, reason: String::new(), heard };
            let change = Change { note: Some(Some(note)), ..Change::default() };
            let word = heard.map_or("nothing yet", ReportedState::as_str);
            return Some(write(node, change, "Heard", format!("its agent says: {word}")));
        }
        if goes_on && node.waited < SILENT {
            return None;
        }
        let mut change = Change::default();
        if busy && !goes_on && end != Some(ReportedState::Failed) && node.cordoned_by.is_some() {
            change.uncordon();
        }
        if note.is_some_and(|note| dead(&note.uid)) {
            change.note = Some(None);
        }
        if desired.is_some_and(|desired| dead(&desired.uid)) {
            change.desired = Some(None);
        }
        let message = "the update that it belonged to is no longer there".to_owned();
        (change != Change::default()).then(|| write(node, change, "UpdateGone", message))
    });
    steps.collect()
}
