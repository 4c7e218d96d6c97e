//! Look-ups of images that are under way, while the operator goes on with other nodes and updates.
//!
//! Nothing of it is kept: what was found and is not yet written in an update's status is looked up again by whoever leads next.

#![expect(clippy::disallowed_methods, reason = "reads the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use time::Duration;
use tokio::sync::Notify;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::oneshot::{Receiver, channel};
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::chain;
use crate::image::{LookState, Looked, Named, read};
use crate::registry::Registries;

/// By the uid of their update.
pub struct Lookups {
    registries: Arc<Registries>,
    changed: Arc<Notify>,
    all: BTreeMap<String, Lookup>,
}

struct Lookup {
    asked: String,
    failed: u32,
    said: String,
    state: State,
}

enum State {
    UnderWay(Receiver<Result<String, String>>, #[expect(dead_code, reason = "ends with it")] AbortOnDropHandle<()>),
    Found(String),
    Failed(Instant),
}

impl Lookups {
    /// `changed` hears of each end.
    #[must_use]
    pub fn new(registries: Registries, changed: Arc<Notify>) -> Self {
        Self { registries: Arc::new(registries), changed, all: BTreeMap::new() }
    }

    /// Asks for the image of an update. One that it asked for before is another one, or has failed.
    pub fn begin(&mut self, uid: &str, image: &str) {
        let before = self.all.remove(uid).filter(|before| before.asked == image);
        let (failed, said) = before.map_or((0, String::new()), |before| (before.failed, before.said));
        let (answer, receiver) = channel();
        let (registries, changed, name) = (Arc::clone(&self.registries), Arc::clone(&self.changed), image.to_owned());
        let task = tokio::spawn(async move {
            let found = match read(&name) {
                Ok(Named::Tag(tagged)) => registries.digest(&tagged).await.map_err(|error| chain(&error)),
                _ => Err(format!("`{name}` has no tag")),
            };
            match &found {
                Ok(digest) => tracing::info!(image = name, digest, "looked up"),
                Err(error) => tracing::warn!(image = name, %error, "cannot be looked up now"),
            }
            // Nobody may want to know any more.
            let _ = answer.send(found);
            changed.notify_one();
        });
        let state = State::UnderWay(receiver, AbortOnDropHandle::new(task));
        self.all.insert(uid.to_owned(), Lookup { asked: image.to_owned(), failed, said, state });
    }

    /// How far that of an update is.
    pub fn looked(&mut self, uid: &str) -> Option<Looked> {
        let lookup = self.all.get_mut(uid)?;
        if let State::UnderWay(receiver, _) = &mut lookup.state {
            let answer = match receiver.try_recv() {
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Closed) => Some(Err("the look-up ended badly".to_owned())),
                Ok(answer) => Some(answer),
            };
            match answer {
                None => {}
                Some(Ok(digest)) => lookup.state = State::Found(digest),
                Some(Err(said)) => {
                    lookup.state = State::Failed(Instant::now());
                    (lookup.failed, lookup.said) = (lookup.failed.saturating_add(1), said);
                }
            }
        }
        let state = match &lookup.state {
            State::UnderWay(..) => LookState::UnderWay,
            State::Found(digest) => LookState::Found(digest.clone()),
            State::Failed(at) => LookState::Failed(Duration::try_from(at.elapsed()).unwrap_or(Duration::MAX)),
        };
        Some(Looked { asked: lookup.asked.clone(), state, failed: lookup.failed, said: lookup.said.clone() })
    }

    /// Forgets those of all other updates.
    pub fn keep(&mut self, uids: &BTreeSet<&str>) {
        self.all.retain(|uid, _| uids.contains(uid.as_str()));
    }

    /// Ends and forgets all: somebody else may lead.
    pub fn forget(&mut self) {
        self.all.clear();
    }
}
