//! Threads that do nothing but move bytes to clients.
//!
//! Each has an event loop of its own, and a connection stays on the one that it was given: between two pieces of a
//! body nothing crosses threads, and no other part of the service waits behind a transfer, nor a transfer behind it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// More would not help: one such thread fills a 10 Gbit/s link.
const MOST: usize = 8;

/// The threads. They end when this is dropped, with whatever runs on them.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    _end: DropGuard,
}

/// One thread's event loop.
struct Lane {
    handle: Handle,
    /// Connections that it has.
    open: Arc<AtomicUsize>,
}

impl Lanes {
    /// Starts a thread for each processor, within reason.
    ///
    /// # Errors
    /// The system gives no more threads or file descriptors.
    pub(super) fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MOST);
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let lanes = (0..count).map(|_| Lane::start(end.clone())).collect::<io::Result<_>>()?;
        Ok(Self { lanes, _end: guard })
    }

    /// Runs `connection` on the thread that has the fewest.
    pub(super) fn spawn(&self, connections: &mut JoinSet<()>, connection: impl Future<Output = ()> + Send + 'static) {
        let Some(lane) = self.lanes.iter().min_by_key(|lane| lane.open.load(Ordering::Relaxed)) else {
            return; // There is one for each processor, and at least one.
        };
        let held = Held::new(&lane.open);
        let task = async move {
            connection.await;
            drop(held);
        };
        connections.spawn_on(task, &lane.handle);
    }
}

impl Lane {
    fn start(end: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let run = move || runtime.block_on(end.cancelled());
        thread::Builder::new().name("boot-plane".to_owned()).spawn(run)?;
        Ok(Self { handle, open: Arc::default() })
    }
}

/// A connection's place in the count of its lane.
struct Held(Arc<AtomicUsize>);

impl Held {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
