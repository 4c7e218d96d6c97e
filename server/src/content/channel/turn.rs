//! One order at a time writes to the repositories, whatever their profile; the others wait for their turn.
//!
//! Who waits is told what for. An order whose client has gone away by then is given up: nobody expects any more what it would
//! do. Once its turn has come it is carried to its end.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{ChannelError, Channels};

/// Between two looks at what is waited for.
const AGAIN: Duration = Duration::from_secs(5);
/// What nobody has ordered: summaries, differences, and what is removed.
const OWN: &str = "what the service does by itself";

/// The right to write.
#[derive(Debug, Default)]
pub(super) struct Turns {
    writing: Mutex<()>,
    /// What is written now.
    what: std::sync::Mutex<String>,
}

/// Of one order, until it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    _writing: MutexGuard<'a, ()>,
}

impl Turns {
    fn begin<'a>(&'a self, writing: MutexGuard<'a, ()>, what: &str) -> Turn<'a> {
        what.clone_into(&mut self.what.lock().unwrap_or_else(PoisonError::into_inner));
        Turn { turns: self, _writing: writing }
    }

    /// What is to come to its end first.
    fn first(&self) -> String {
        let what = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        let what = if what.is_empty() { OWN } else { what.as_str() };
        format!("waiting for its turn: {what} comes to its end first")
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.what.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Who gave the order that a task carries out, and has to wait for its turn.
pub struct Order {
    /// What it is, in a sentence that goes on.
    pub what: String,
    /// Hears what is waited for.
    pub step: Box<dyn Fn(&str) + Send + Sync>,
    /// Its client has gone away.
    pub gone: CancellationToken,
}

tokio::task_local! {
    /// The order of this task, and whether it has begun.
    static ORDER: (Order, AtomicBool);
}

impl Channels {
    /// Carries an order out as [`Self::carry_out`] does, if its client is there still when its turn comes.
    pub fn carry_out_in_turn<F>(&self, order: Order, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.carry_out(ORDER.scope((order, AtomicBool::new(false)), work))
    }

    /// The right to write. Who has to wait for it gives up when the service stops, and an order that has not begun when its
    /// client goes away.
    pub(super) async fn turn(&self) -> Result<Turn<'_>, ChannelError> {
        let what = ORDER.try_with(|(order, _)| order.what.clone()).unwrap_or_else(|_| OWN.to_owned());
        let gone = ORDER.try_with(|(order, begun)| (!begun.load(Ordering::Relaxed)).then(|| order.gone.clone()));
        let gone = gone.ok().flatten().unwrap_or_default();
        let turn = self.turn_of(&what, &gone).await?;
        let _ = ORDER.try_with(|(_, begun)| begun.store(true, Ordering::Relaxed));
        Ok(turn)
    }

    async fn turn_of(&self, what: &str, gone: &CancellationToken) -> Result<Turn<'_>, ChannelError> {
        if gone.is_cancelled() {
            return Err(ChannelError::Left);
        }
        if let Ok(writing) = self.turns.writing.try_lock() {
            return Ok(self.turns.begin(writing, what));
        }
        let (writing, mut told) = (self.turns.writing.lock(), String::new());
        tokio::pin!(writing);
        loop {
            let first = self.turns.first();
            if told != first {
                // What the service does by itself waits untold.
                let _ = ORDER.try_with(|(order, _)| {
                    tracing::info!("{what} is {first}");
                    (order.step)(&first);
                });
                told = first;
            }
            tokio::select! {
                biased;
                () = gone.cancelled() => return Err(ChannelError::Left),
                writing = &mut writing => return Ok(self.turns.begin(writing, what)),
                () = self.stop.cancelled() => return Err(ChannelError::Stopped),
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::store::{Seal, Store};

    /// An order that holds its turn until it is told to end, and takes another one then.
    struct Given {
        gone: CancellationToken,
        heard: mpsc::UnboundedReceiver<String>,
        end: oneshot::Sender<()>,
        task: JoinHandle<Result<(), ChannelError>>,
    }

    fn give(channels: &Arc<Channels>, what: &str) -> Given {
        let (gone, (tell, heard), (end, ending)) =
            (CancellationToken::new(), mpsc::unbounded_channel(), oneshot::channel());
        let (own, begun) = (Arc::clone(channels), tell.clone());
        let step = Box::new(move |step: &str| drop(tell.send(step.to_owned())));
        let task = channels.carry_out_in_turn(Order { what: what.into(), step, gone: gone.clone() }, async move {
            let first = own.turn().await?;
            begun.send("begun".into()).unwrap();
            let _ = ending.await;
            drop(first);
            own.turn().await.map(drop)
        });
        Given { gone, heard, end, task }
    }

    #[tokio::test]
    async fn who_waits_is_told_what_for_and_who_goes_away_meanwhile_has_no_turn() {
        let place = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let seal = Seal::from_key_file(&place.path().join("key"), true).unwrap();
        let store = Store::open(place.path(), seal).await.unwrap();
        let channels = Arc::new(Channels::new(store, place.path()).with_stop(stop.clone()));
        let mut first = give(&channels, "the first");
        assert_eq!(first.heard.recv().await.unwrap(), "begun");
        let (mut leaving, mut staying) = (give(&channels, "the second"), give(&channels, "the third"));
        for waiting in [&mut leaving, &mut staying] {
            let said = "waiting for its turn: the first comes to its end first";
            assert_eq!(waiting.heard.recv().await.unwrap(), said);
        }
        // Nobody expects what an order does whose client went away before it asked for its turn, though the turn is free.
        let gone = CancellationToken::new();
        gone.cancel();
        let idle = Channels::new(channels.store.clone(), place.path());
        assert!(matches!(idle.turn_of("nothing", &gone).await, Err(ChannelError::Left)));
        leaving.gone.cancel();
        assert!(matches!(leaving.task.await.unwrap(), Err(ChannelError::Left)));
        assert_eq!(leaving.heard.recv().await, None, "it has not begun");
        // What has begun is carried to its end, with every turn that it needs.
        first.gone.cancel();
        first.end.send(()).unwrap();
        assert_eq!(staying.heard.recv().await.unwrap(), "begun");
        let mut late = give(&channels, "the fourth");
        late.heard.recv().await.unwrap();
        stop.cancel();
        assert!(matches!(late.task.await.unwrap(), Err(ChannelError::Stopped)));
        staying.end.send(()).unwrap();
        staying.task.await.unwrap().unwrap();
        assert!(matches!(first.task.await.unwrap(), Ok(()) | Err(ChannelError::Stopped)), "it is not left");
    }
}
