//! Files for `tower_http`'s [`ServeDir`](tower_http::services::ServeDir), read on the thread that sends them as long as
//! the kernel has them in memory.
//!
//! A repository is thousands of small files. `tokio::fs` hands each look at the path, each opening and each read to
//! another thread, which costs more than what is read. Here the kernel is asked for what it can give without waiting
//! for a disk (`RESOLVE_CACHED` of openat2(2), `RWF_NOWAIT` of preadv2(2)); only the rest goes to another thread. So
//! does everything where the kernel knows neither.

#![expect(clippy::disallowed_methods, reason = "opens files: what a file service does")]

use std::fs::{File, Metadata, OpenOptions};
use std::future::Ready;
use std::io::{self, IoSliceMut, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::future::{BoxFuture, Either, FutureExt as _};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tokio::task::{JoinHandle, spawn_blocking};
use tower_http::services::fs::Backend;

/// Where `ServeDir` finds the file of one request. It looks at what is there before it opens it: both are done at once.
#[derive(Debug, Clone, Default)]
pub(super) struct PageCache(Arc<Mutex<Option<(PathBuf, Open)>>>);

/// At once, or by another thread.
type Soon<T> = Either<Ready<io::Result<T>>, BoxFuture<'static, io::Result<T>>>;

impl PageCache {
    fn slot(&self) -> MutexGuard<'_, Option<(PathBuf, Open)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for PageCache {
    type File = Open;
    type Metadata = Metadata;
    type OpenFuture = Soon<Open>;
    type MetadataFuture = Soon<Metadata>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        match self.slot().take() {
            Some((looked_at, open)) if looked_at == path => Either::Left(std::future::ready(Ok(open))),
            _ => soon(path, Ok),
        }
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let (kept, name) = (self.clone(), path.clone());
        soon(path, move |open| {
            let metadata = open.metadata.clone();
            *kept.slot() = Some((name, open));
            Ok(metadata)
        })
    }
}

/// Opens a path, and makes something of it. It may be a pipe that nobody writes: that is not waited for.
fn soon<T: Send + 'static>(path: PathBuf, make: impl FnOnce(Open) -> io::Result<T> + Send + 'static) -> Soon<T> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::CACHED) {
        Ok(file) => Either::Left(std::future::ready(Open::new(file.into()).and_then(make))),
        // Whatever it was: it is said again by who may wait.
        Err(_) => Either::Right(
            away(move || {
                // At most the bits of a C int, which flags are.
                let flags = flags.bits().cast_signed();
                make(Open::new(OpenOptions::new().read(true).custom_flags(flags).open(path)?)?)
            })
            .boxed(),
        ),
    }
}

async fn away<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

/// An open file.
#[derive(Debug)]
pub(super) struct Open {
    file: Arc<File>,
    metadata: Metadata,
    at: u64,
    /// A piece that another thread reads.
    reading: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl Open {
    fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { file: Arc::new(file), metadata, at: 0, reading: None })
    }
}

impl tower_http::services::fs::File for Open {
    type Metadata = Metadata;
    type MetadataFuture<'a> = Ready<io::Result<Metadata>>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        std::future::ready(Ok(self.metadata.clone()))
    }
}

impl AsyncRead for Open {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let open = &mut *self;
        // Its length was promised: what came behind it since is not part of the answer.
        let left = usize::try_from(open.metadata.len().saturating_sub(open.at)).unwrap_or(usize::MAX);
        let count = left.min(buffer.remaining());
        if count == 0 {
            return Poll::Ready(Ok(()));
        }
        if open.reading.is_none() {
            let into = buffer.initialize_unfilled_to(count);
            match preadv2(&open.file, &mut [IoSliceMut::new(into)], open.at, ReadWriteFlags::NOWAIT) {
                Ok(read) => {
                    buffer.advance(read);
                    open.at += read as u64;
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        let (file, at) = (&open.file, open.at);
        let reading = open.reading.get_or_insert_with(|| {
            let file = Arc::clone(file);
            spawn_blocking(move || {
                let mut bytes = vec![0; count];
                let read = file.read_at(&mut bytes, at)?;
                bytes.truncate(read);
                Ok(bytes)
            })
        });
        let read = ready!(Pin::new(reading).poll(context));
        open.reading = None;
        let bytes = read.map_err(io::Error::other)??;
        // A later call may come with less room.
        let taken = bytes.len().min(buffer.remaining());
        buffer.put_slice(&bytes[..taken]);
        open.at += taken as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for Open {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        let at = match position {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.metadata.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.reading = None;
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.at))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rustix::fs::{Advice, fadvise};
    use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

    use super::*;

    /// A file that is on a disk, and what is in it.
    fn file() -> (tempfile::NamedTempFile, Vec<u8>) {
        let mut file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        let bytes: Vec<u8> = (0..750_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        file.write_all(&bytes).unwrap();
        file.as_file().sync_all().unwrap();
        (file, bytes)
    }

    async fn open(file: &tempfile::NamedTempFile) -> Open {
        PageCache::default().open(file.path().into()).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_read_is_the_file_whether_the_kernel_has_it_in_memory_or_not() {
        let (file, bytes) = file();
        for cold in [false, true] {
            for start in [0, 1, 2_999_999, 3_000_000, 4_000_000] {
                let mut open = open(&file).await;
                open.seek(SeekFrom::Start(start as u64)).await.unwrap();
                if cold {
                    fadvise(&open.file, 0, None, Advice::DontNeed).unwrap();
                }
                let mut read = Vec::new();
                open.read_to_end(&mut read).await.unwrap();
                assert!(read == bytes[start.min(bytes.len())..], "from {start}, cold {cold}: {} bytes", read.len());
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_grows_or_shrinks_gives_at_most_what_was_promised() {
        let (file, bytes) = file();
        let (mut short, mut long) = (open(&file).await, open(&file).await);
        file.as_file().write_all_at(b"more", bytes.len() as u64).unwrap();
        let mut read = Vec::new();
        long.read_to_end(&mut read).await.unwrap();
        assert!(read == bytes);
        file.as_file().set_len(1000).unwrap();
        read.clear();
        short.read_to_end(&mut read).await.unwrap();
        assert!(read == bytes[..1000]);
    }

    #[tokio::test]
    async fn what_is_not_there_and_what_is_a_folder_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert_eq!(PageCache::default().open(missing.clone()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(PageCache::default().metadata(missing).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(PageCache::default().metadata(folder.path().into()).await.unwrap().is_dir());
    }
}
