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
use tokio_util::sync::{CancellationToken, DropGuard};

/// More would not help: one such thread fills a 10 Gbit/s link.
const MOST: usize = 8;

/// The threads. They end when this is dropped, with whatever runs on them.
pub(crate) struct Lanes {
    first: Lane,
    more: Vec<Lane>,
    _end: DropGuard,
}

/// One thread's event loop.
pub(crate) struct Lane {
    handle: Handle,
    /// Connections that it has.
    open: Arc<AtomicUsize>,
}

impl Lanes {
    /// Starts a thread for each processor, within reason. They are all called `name`.
    ///
    /// # Errors
    /// The system gives no more threads or file descriptors.
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MOST);
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let first = Lane::start(name, end.clone())?;
        let more = (1..count).map(|_| Lane::start(name, end.clone())).collect::<io::Result<_>>()?;
        Ok(Self { first, more, _end: guard })
    }

    /// The one that has the fewest connections.
    pub(crate) fn least(&self) -> &Lane {
        let open = |lane: &Lane| lane.open.load(Ordering::Relaxed);
        self.more.iter().fold(&self.first, |least, lane| if open(lane) < open(least) { lane } else { least })
    }
}

impl Lane {
    fn start(name: &str, end: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let run = move || runtime.block_on(end.cancelled());
        thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { handle, open: Arc::default() })
    }

    /// Where its connections are spawned.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The same connection, which counts as one of this lane until it ends.
    pub(crate) fn carry(
        &self,
        connection: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let held = Held::new(&self.open);
        async move {
            connection.await;
            drop(held);
        }
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
