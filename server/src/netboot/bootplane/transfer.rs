//! Sends a response: the head, then each segment, files by `sendfile(2)`.
//!
//! Nothing is copied into this process and nothing is queued in it: what the socket does not take waits in the page
//! cache. The head is marked with `MSG_MORE`, so that it shares its packet with the first data, and a large body is corked.
//!
//! `sendfile` waits for the disk when the page cache does not hold the data, and with it every task of its thread, DHCP
//! perhaps among them. So each chunk is probed first, and read on a blocking thread if it is not there.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, send};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::connection::Shared;
use super::response::{Response, Segment};

/// The most bytes in one `sendfile` call, and those that are probed and read together: large, for few calls; bounded,
/// for other connections on the same thread.
const CHUNK: u64 = 2 << 20;

/// A body from this length on is sent corked: only full packets leave, until its end. Without it, each `sendfile` call
/// ends with a small one, which costs the reader a wake-up: measured at a quarter of the throughput of one client.
const CORKED: u64 = 64 * 1024;

/// So many bytes may a connection send before it lets others run, if the socket takes them all.
const TURN: u64 = 8 << 20;

/// The buffer through which a chunk comes into the page cache.
const READ_BUFFER: usize = 128 * 1024;

/// "More follows at once": nix has no name for it.
const MSG_MORE: MsgFlags = MsgFlags::from_bits_retain(nix::libc::MSG_MORE);

/// Where zero bytes come from.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Why a response was cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// The client took nothing for the whole of the limit.
    #[error("the client took no byte for {} s", .0.as_secs())]
    Stalled(Duration),
    /// A file ended before its promised length.
    #[error("the file ended at byte {at}, before its promised end at {end}: it was cut while it was served")]
    FileEnded { at: u64, end: u64 },
    /// The connection or the file failed.
    #[error("sending failed")]
    Io(#[source] io::Error),
}

/// A piece of a response that is not sent yet.
#[derive(Clone, Copy)]
enum Piece<'a> {
    Bytes(&'a [u8]),
    File { file: &'a Arc<File>, offset: u64, len: u64 },
    Zeros(u64),
}

/// Sends `response` over `stream`. `sent` is told the number of body bytes that the network took, as they go.
///
/// # Errors
/// The response is cut off, so the connection cannot be used any more.
pub(super) async fn transmit(
    stream: &TcpStream,
    response: &Response,
    shared: &Shared,
    mut sent: impl FnMut(u64),
) -> Result<(), SendError> {
    let stall = shared.timeouts.stall;
    let mut line = Line { stream, shared, stall, timer: None, moved: 0, moved_before: 0, turn: 0 };
    let mut left = response.body.segments().count();
    let corked = response.body.len() >= CORKED;
    if corked {
        SockRef::from(stream).set_tcp_cork(true).map_err(SendError::Io)?;
    }
    line.push(Piece::Bytes(&response.head), left > 0, |_| {}).await?;
    for segment in response.body.segments() {
        left -= 1;
        let piece = match segment {
            Segment::Bytes(bytes) => Piece::Bytes(bytes),
            Segment::File { file, offset, len } => Piece::File { file, offset: *offset, len: *len },
            Segment::Zeros(len) => Piece::Zeros(*len),
        };
        line.push(piece, left > 0, &mut sent).await?;
    }
    if corked {
        SockRef::from(stream).set_tcp_cork(false).map_err(SendError::Io)?;
    }
    Ok(())
}

/// A socket being written.
struct Line<'a> {
    stream: &'a TcpStream,
    shared: &'a Shared,
    stall: Duration,
    /// Runs from the first wait on; set again only when it fires, because most waits are short.
    timer: Option<std::pin::Pin<Box<Sleep>>>,
    /// Bytes taken by the network, head too.
    moved: u64,
    /// The same when the timer fired last.
    moved_before: u64,
    /// Bytes since others were let run.
    turn: u64,
}

impl Line<'_> {
    /// Sends a piece to its end. `more` says that another follows at once.
    async fn push(&mut self, mut piece: Piece<'_>, more: bool, mut sent: impl FnMut(u64)) -> Result<(), SendError> {
        let mut direct = false;
        // Up to where the file is known to be in the page cache.
        let mut warm = 0;
        while !piece.is_empty() {
            if let Piece::File { file, offset, len } = piece
                && offset >= warm
            {
                let count = len.min(CHUNK);
                self.warm_up(file, offset, count).await?;
                warm = offset.saturating_add(count);
            }
            let write = || piece.write(self.stream, more, warm);
            let attempt = if direct { write() } else { self.stream.try_io(Interest::WRITABLE, write) };
            match attempt {
                Ok(0) => return Err(piece.ended()),
                Ok(count) => {
                    direct = false;
                    let count = count as u64;
                    piece.advance(count);
                    sent(count);
                    self.moved += count;
                    self.turn += count;
                    if self.turn >= TURN {
                        self.turn = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && direct => {
                    return Err(SendError::Stalled(self.stall));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.turn = 0;
                    direct = self.wait().await?;
                }
                Err(error) => return Err(SendError::Io(error)),
            }
        }
        Ok(())
    }

    /// Sees to it that a piece of a file is in the page cache. What the file lacks is left to the sending to find out.
    async fn warm_up(&self, file: &Arc<File>, offset: u64, count: u64) -> Result<(), SendError> {
        if !is_cold(file, offset) && !is_cold(file, offset.saturating_add(count).saturating_sub(1)) {
            return Ok(());
        }
        self.shared.metrics.cold_chunks.inc();
        // Bounds the threads; an error means that the semaphore is closed, which never happens.
        let _permit = self.shared.disk.acquire().await;
        let file = Arc::clone(file);
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; READ_BUFFER];
            let mut done = 0;
            while done < count {
                // At most the length of the buffer, which is a usize.
                let want = (count - done).min(buffer.len() as u64) as usize;
                match file.read_at(&mut buffer[..want], offset.saturating_add(done)) {
                    Ok(0) => break,
                    Ok(read) => done += read as u64,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        read.await.map_err(io::Error::other).and_then(|read| read).map_err(SendError::Io)
    }

    /// Waits for room in the socket. `true` means that nothing went for the whole limit: then one attempt is due
    /// whatever the readiness says, because the kernel calls a socket writable only when a third of its buffer is
    /// free, and a slow reader may need longer than the limit for that while it reads all the time.
    async fn wait(&mut self) -> Result<bool, SendError> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.stall)));
        loop {
            tokio::select! {
                biased;
                ready = self.stream.writable() => return ready.map(|()| false).map_err(SendError::Io),
                () = timer.as_mut() => {
                    let next = timer.deadline() + self.stall;
                    timer.as_mut().reset(next);
                    if self.moved_before == self.moved {
                        return Ok(true);
                    }
                    self.moved_before = self.moved;
                }
            }
        }
    }
}

impl Piece<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::File { len, .. } | Self::Zeros(len) => *len == 0,
        }
    }

    /// Gives the socket as much as it takes at once; of a file, nothing from `warm` on.
    fn write(&self, stream: &TcpStream, more: bool, warm: u64) -> io::Result<usize> {
        let flags = MsgFlags::MSG_NOSIGNAL | if more { MSG_MORE } else { MsgFlags::empty() };
        let count = match self {
            Self::Bytes(bytes) => send(stream.as_raw_fd(), bytes, flags)?,
            Self::Zeros(len) => {
                // At most the length of the array, which is a usize.
                let count = (*len).min(ZEROS.len() as u64) as usize;
                send(stream.as_raw_fd(), &ZEROS[..count], flags)?
            }
            Self::File { file, offset, len } => {
                // At most a chunk, which is a usize.
                let count = (*len).min(warm.saturating_sub(*offset)).min(CHUNK) as usize;
                let mut offset = i64::try_from(*offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
                sendfile(stream, file, Some(&mut offset), count)?
            }
        };
        Ok(count)
    }

    /// Takes off what was sent.
    fn advance(&mut self, count: u64) {
        match self {
            Self::Bytes(bytes) => *bytes = bytes.get(count as usize..).unwrap_or_default(),
            Self::Zeros(len) => *len -= count,
            Self::File { offset, len, .. } => {
                *offset += count;
                *len -= count;
            }
        }
    }

    /// What it means that nothing could be written.
    fn ended(&self) -> SendError {
        match self {
            Self::File { offset, len, .. } => SendError::FileEnded { at: *offset, end: offset.saturating_add(*len) },
            Self::Bytes(_) | Self::Zeros(_) => SendError::Io(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// Whether reading this byte would wait for the disk. A file system that cannot tell counts as warm.
fn is_cold(file: &File, at: u64) -> bool {
    let mut byte = [0];
    preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) == Err(Errno::AGAIN)
}
