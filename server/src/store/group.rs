//! Group commit: writes that wait while the disk is busy are committed together, each in a savepoint of its own.
//!
//! ```text
//! BEGIN   SAVEPOINT  write 1  RELEASE   SAVEPOINT  write 2  ROLLBACK TO (it failed)   ...   COMMIT   answers
//! ```
//! One power-safe commit costs one flush of the disk, however many writes are in it: a thousand machines that boot at
//! the same time wait for far fewer. Nobody is answered, and no reader sees a write, before the commit.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Acquire, Sqlite, SqlitePool, Transaction};
use tokio::sync::{mpsc, oneshot};

use super::{StoreError, is_full};

/// Writes that may wait.
const QUEUE: usize = 1024;
/// The most in one commit: the first of them waits for the last.
const GROUP: usize = 64;

/// Something to write, all or nothing.
#[async_trait]
pub(super) trait Write: Send + Sync + 'static {
    /// What came of it.
    type Output: Send + 'static;

    /// Writes. An error undoes what this did, and nothing else.
    async fn write(&self, tx: &mut Transaction<'_, Sqlite>) -> Result<Self::Output, StoreError>;
}

/// Where writes are given in. Clones give to the same queue.
#[derive(Clone, Debug)]
pub(super) struct Writer(mpsc::Sender<Box<dyn Pending>>);

impl Writer {
    /// Starts the task that writes; it ends with the last clone of this.
    pub fn start(pool: SqlitePool) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        tokio::spawn(run(pool, queue));
        Self(sender)
    }

    /// Writes, and returns when it is durable. Dropping the future does not undo a write that was given in.
    pub async fn write<W: Write>(&self, write: W) -> Result<W::Output, StoreError> {
        let (reply, answer) = oneshot::channel();
        let pending = Waiting { write, outcome: None, reply };
        // Both fail only when the runtime ends.
        let closed = |()| StoreError::Database(sqlx::Error::PoolClosed);
        self.0.send(Box::new(pending)).await.map_err(|_| closed(()))?;
        answer.await.map_err(|_| closed(()))?
    }
}

struct Waiting<W: Write> {
    write: W,
    outcome: Option<Result<W::Output, StoreError>>,
    reply: oneshot::Sender<Result<W::Output, StoreError>>,
}

/// A write of any kind, with somebody who waits for it.
#[async_trait]
trait Pending: Send {
    /// Writes in a savepoint. An error means that the whole transaction is lost.
    async fn write(&mut self, group: &mut Transaction<'_, Sqlite>) -> Result<(), sqlx::Error>;

    /// Tells what came of it, after the commit.
    fn answer(self: Box<Self>, committed: Result<(), Arc<sqlx::Error>>);
}

#[async_trait]
impl<W: Write> Pending for Waiting<W> {
    async fn write(&mut self, group: &mut Transaction<'_, Sqlite>) -> Result<(), sqlx::Error> {
        let mut savepoint = group.begin().await?;
        let outcome = self.write.write(&mut savepoint).await;
        // SQLite gives a whole transaction up on some errors (a full disk): then the savepoint is gone too.
        let ended = match &outcome {
            Ok(_) => savepoint.commit().await,
            Err(_) => savepoint.rollback().await,
        };
        self.outcome = Some(outcome);
        ended
    }

    fn answer(self: Box<Self>, committed: Result<(), Arc<sqlx::Error>>) {
        let answer = match (self.outcome, committed) {
            // It was refused by what it found, and changed nothing: no commit could alter that.
            (Some(Err(error)), _) => Err(error),
            (Some(outcome), Ok(())) => outcome,
            (None, Ok(())) => Err(StoreError::Database(sqlx::Error::WorkerCrashed)),
            (_, Err(error)) if is_full(&error) => Err(StoreError::Full(error)),
            (_, Err(error)) => Err(StoreError::Commit(error)),
        };
        // Who asked may be gone.
        drop(self.reply.send(answer));
    }
}

async fn run(pool: SqlitePool, mut queue: mpsc::Receiver<Box<dyn Pending>>) {
    while let Some(first) = queue.recv().await {
        let mut group = vec![first];
        let committed = commit(&pool, &mut queue, &mut group).await.map_err(Arc::new);
        for pending in group {
            pending.answer(committed.clone());
        }
    }
}

/// Writes the first of the group and all that wait, and commits.
async fn commit(
    pool: &SqlitePool,
    queue: &mut mpsc::Receiver<Box<dyn Pending>>,
    group: &mut Vec<Box<dyn Pending>>,
) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    let mut next = 0;
    while next < group.len() {
        group[next].write(&mut tx).await?;
        next += 1;
        if group.len() < GROUP
            && let Ok(another) = queue.try_recv()
        {
            group.push(another);
        }
    }
    tx.commit().await
}
