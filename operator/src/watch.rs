//! What there is in the cluster, kept up to date by watches.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, watcher};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, chain, resource};
use crate::wish::{Source, Wish};

/// The API server ends a watch after so many seconds. What has died without a word, as with the power of a control plane, is
/// noticed a few seconds later than that, and by kube's own default after five minutes.
const WATCH_SECONDS: u32 = 40;

fn watching() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

/// Updates and nodes.
pub struct Watched {
    nodes: Store<Node>,
    ours: Store<DynamicObject>,
    upstream: Store<DynamicObject>,
    /// Nodes as our own writes left them, which the watch has not brought yet. Without them a decision could be made twice.
    fresh: BTreeMap<String, Node>,
    /// The same of updates, by uid.
    fresh_updates: BTreeMap<String, (Source, DynamicObject)>,
}

impl Watched {
    /// Begins to watch; `changed` hears of everything that happens.
    #[must_use]
    pub fn begin(cluster: &Cluster, changed: &Arc<Notify>, stop: &CancellationToken) -> Self {
        let (nodes, writer) = reflector::store::<Node>();
        let stream = watcher(Api::<Node>::all(cluster.client()), watching());
        tokio::spawn(follow("nodes", stream.default_backoff().reflect(writer), changed.clone(), stop.clone()));
        let updates = |source: Source, name: &'static str| {
            let resource = resource(source);
            let writer = reflector::store::Writer::new(resource.clone());
            let store = writer.as_reader();
            let stream = watcher(Api::<DynamicObject>::all_with(cluster.client(), &resource), watching());
            tokio::spawn(follow(name, stream.default_backoff().reflect(writer), changed.clone(), stop.clone()));
            store
        };
        let ours = updates(Source::Ours, "updates of nkd.io");
        let upstream = updates(Source::Upstream, "updates of housekeeper.io");
        Self { nodes, ours, upstream, fresh: BTreeMap::new(), fresh_updates: BTreeMap::new() }
    }

    /// Waits until nodes and our updates are known. The other resource may be missing.
    pub async fn wait(&self) {
        // An error means that the watch has ended, and then the program does too.
        let _ = self.nodes.wait_until_ready().await;
        let _ = self.ours.wait_until_ready().await;
    }

    /// All updates that are not being deleted.
    pub fn wishes(&mut self) -> Vec<Wish> {
        let of = |source: Source, store: &Store<DynamicObject>| {
            store.state().into_iter().map(|object| (source, DynamicObject::clone(&object))).collect::<Vec<_>>()
        };
        let mut updates = [of(Source::Ours, &self.ours), of(Source::Upstream, &self.upstream)].concat();
        newest(&mut updates, &mut self.fresh_updates, |(_, update)| &update.metadata, |metadata| metadata.uid.as_ref());
        let there = updates.iter().filter(|(_, update)| update.metadata.deletion_timestamp.is_none());
        there.filter_map(|(source, update)| Wish::read(*source, update)).collect()
    }

    /// All nodes, by name.
    pub fn nodes(&mut self) -> Vec<Node> {
        let mut nodes: Vec<Node> = self.nodes.state().iter().map(|node| Node::clone(node)).collect();
        newest(&mut nodes, &mut self.fresh, |node| &node.metadata, |metadata| metadata.name.as_ref());
        nodes.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
        nodes
    }

    /// An update as it is now.
    pub fn learn_update(&mut self, (source, update): (Source, DynamicObject)) {
        if let Some(uid) = update.metadata.uid.clone() {
            self.fresh_updates.insert(uid, (source, update));
        }
    }

    /// A node as it is now.
    pub fn learn(&mut self, node: Node) {
        if let Some(name) = node.metadata.name.clone() {
            self.fresh.insert(name, node);
        }
    }
}

/// Puts what is newer by our own writes in the place of what the watch has brought, and forgets it when that has caught up.
/// What the watch does not have any more was deleted.
fn newest<T: Clone>(
    seen: &mut [T],
    fresh: &mut BTreeMap<String, T>,
    metadata: impl Fn(&T) -> &ObjectMeta,
    key: impl Fn(&ObjectMeta) -> Option<&String>,
) {
    fresh.retain(|name, fresh| {
        let seen = seen.iter_mut().find(|seen| key(metadata(seen)) == Some(name));
        seen.is_some_and(|seen| {
            let newer = version(metadata(fresh)) > version(metadata(seen));
            if newer {
                seen.clone_from(fresh);
            }
            newer
        })
    });
}

/// Versions of one resource are numbers that rise, in every API server that there is.
fn version(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

async fn follow<K>(
    what: &'static str,
    stream: impl futures_util::Stream<Item = Result<watcher::Event<K>, watcher::Error>>,
    changed: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut stream = std::pin::pin!(stream);
    loop {
        let next = tokio::select! {
            next = stream.next() => next,
            () = stop.cancelled() => return,
        };
        match next {
            Some(Ok(_)) => changed.notify_one(),
            Some(Err(error)) => tracing::warn!(error = %chain(&error), "cannot watch {what}"),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_written_last_is_seen_until_the_watch_has_caught_up() {
        let node = |name: &str, version: u64| -> Node {
            let metadata = json!({"name": name, "resourceVersion": version.to_string()});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let mut fresh = BTreeMap::from([("a".to_owned(), node("a", 10)), ("gone".to_owned(), node("gone", 4))]);
        let mut look = |version: u64| {
            let mut seen = [node("a", version), node("b", 3)];
            newest(&mut seen, &mut fresh, |node| &node.metadata, |metadata| metadata.name.as_ref());
            (seen.map(|node| super::version(&node.metadata)), fresh.len())
        };
        assert_eq!(look(9), ([10, 3], 1), "by number: 9 is older than 10");
        assert_eq!(look(10), ([10, 3], 0));
        assert_eq!(look(11), ([11, 3], 0));
    }
}
