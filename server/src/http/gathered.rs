//! A stream whose pieces are written together.
//!
//! What speaks HTTP/2 flushes each frame, and a frame has at most 16 KiB unless the client wants larger ones: each goes
//! through the kernel alone, and wakes the client. Here a flush only asks for another turn, which comes after those of
//! all others who are ready to write; what they have written by then goes in one piece.
//!
//! So whoever owns the stream has to be woken, and to read when it is: then everything is sent that was written before.
//! Connections of HTTP/2 do so, since they read all the time. Those of HTTP/1 do not: until [`Gathered::gather`] is
//! called, all is passed on as it comes.
//!
//! It is between TLS and the kernel, and not before TLS, where pieces were mixed in one record: libcurl 7.88, by which
//! ostree pulls on Debian 12, then leaves the end of a record lying until something else arrives, a minute later.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much waits for its flush at most: four records of TLS.
const MOST: usize = 66 * 1024;

/// The stream.
#[derive(Debug)]
pub(super) struct Gathered<S> {
    stream: S,
    gathers: bool,
    waiting: Vec<u8>,
    /// Of what waits, so much the stream has taken.
    taken: usize,
    /// Something was written since the stream itself was flushed.
    flush: bool,
    /// The stream takes nothing now, and wakes its owner when it does again.
    blocked: bool,
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, gathers: false, waiting: Vec::new(), taken: 0, flush: false, blocked: false }
    }

    /// From now on pieces are written together.
    pub(super) fn gather(&mut self) {
        self.gathers = true;
    }

    /// Sends all that waits.
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.send_now(context);
        self.blocked = sent.is_pending();
        sent
    }

    fn send_now(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.waiting.len() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, &self.waiting[self.taken..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += count;
        }
        self.waiting.clear();
        self.taken = 0;
        if self.flush {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what there is room for.
    fn take(&mut self, pieces: &[IoSlice<'_>]) -> usize {
        let before = self.waiting.len();
        for piece in pieces {
            let count = piece.len().min(MOST.saturating_sub(self.waiting.len()));
            let needed = self.waiting.len() + count;
            if needed > self.waiting.capacity() {
                let room = (2 * self.waiting.capacity()).clamp(needed, MOST);
                self.waiting.reserve_exact(room - self.waiting.len());
            }
            self.waiting.extend_from_slice(&piece[..count]);
        }
        self.flush = true;
        self.waiting.len() - before
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.flush {
            // Thousands of connections are silent most of the time.
            self.waiting = Vec::new();
        } else if let Poll::Ready(Err(error)) = self.send(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(piece)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.gathers {
            return Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        }
        if self.waiting.len() >= MOST {
            ready!(self.send(context))?;
        }
        Poll::Ready(Ok(self.take(pieces)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathers {
            return Pin::new(&mut self.stream).poll_flush(context);
        }
        // Who flushes at each end of a turn would be woken for ever by a client that reads nothing.
        if self.flush && !self.blocked {
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::future::join_all;
    use futures_util::task::noop_waker;
    use http_body_util::BodyExt as _;
    use hyper::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use proptest::prelude::*;

    use super::*;

    /// What was written, piece by piece.
    #[derive(Default)]
    struct Pieces(Vec<Vec<u8>>);

    impl AsyncWrite for Pieces {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(piece.to_vec());
            Poll::Ready(Ok(piece.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Pieces {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[test]
    fn what_is_written_in_one_turn_goes_in_one_piece_at_the_next() {
        let waker = noop_waker();
        let mut context = Context::from_waker(&waker);
        let mut stream = Gathered::new(Pieces::default());
        assert!(Pin::new(&mut stream).poll_write(&mut context, b"at once").is_ready());
        assert_eq!(std::mem::take(&mut stream.stream.0), [b"at once"]);
        stream.gather();
        for piece in [&b"one "[..], b"two"] {
            assert!(
                matches!(Pin::new(&mut stream).poll_write(&mut context, piece), Poll::Ready(Ok(n)) if n == piece.len())
            );
            assert!(Pin::new(&mut stream).poll_flush(&mut context).is_ready());
        }
        assert!(stream.stream.0.is_empty());
        let mut room = [0; 1];
        assert!(Pin::new(&mut stream).poll_read(&mut context, &mut ReadBuf::new(&mut room)).is_pending());
        assert_eq!(stream.stream.0, [b"one two"]);
        // More than is kept goes at once.
        let long = vec![7; MOST + 1];
        assert!(matches!(Pin::new(&mut stream).poll_write(&mut context, &long), Poll::Ready(Ok(MOST))));
        assert!(matches!(Pin::new(&mut stream).poll_write(&mut context, &long[MOST..]), Poll::Ready(Ok(1))));
        assert_eq!(stream.stream.0.len(), 2);
        assert!(Pin::new(&mut stream).poll_shutdown(&mut context).is_ready());
        assert_eq!(stream.stream.0.concat(), [b"one two", &long[..]].concat());
    }

    /// How often somebody was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes nothing until there is room again.
    #[derive(Default)]
    struct Full {
        room: bool,
        got: usize,
    }

    impl AsyncWrite for Full {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
            if !self.room {
                return Poll::Pending;
            }
            self.got += piece.len();
            Poll::Ready(Ok(piece.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Full {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// A turn as a connection of HTTP/2 takes it, which flushes at its end whether it has written or not.
    fn turn(stream: &mut Gathered<Full>, context: &mut Context<'_>) {
        let mut room = [0; 1];
        assert!(Pin::new(&mut *stream).poll_read(context, &mut ReadBuf::new(&mut room)).is_pending());
        assert!(Pin::new(stream).poll_flush(context).is_ready());
    }

    #[test]
    fn nobody_is_woken_while_the_stream_takes_nothing() {
        let counter = Arc::new(Woken::default());
        let (waker, woken) = (Waker::from(Arc::clone(&counter)), || counter.0.load(Ordering::Relaxed));
        let mut context = Context::from_waker(&waker);
        let mut stream = Gathered::new(Full::default());
        stream.gather();
        assert!(Pin::new(&mut stream).poll_write(&mut context, b"much").is_ready());
        assert!(Pin::new(&mut stream).poll_flush(&mut context).is_ready());
        assert_eq!(woken(), 1, "for the next turn, which sends it");
        for _ in 0..5 {
            turn(&mut stream, &mut context);
        }
        assert_eq!(woken(), 1, "the stream wakes who waits for it");
        // More comes meanwhile: it waits too.
        assert!(Pin::new(&mut stream).poll_write(&mut context, b" more").is_ready());
        turn(&mut stream, &mut context);
        assert_eq!(woken(), 1);
        stream.stream.room = true;
        turn(&mut stream, &mut context);
        assert_eq!((woken(), stream.stream.got), (1, b"much more".len()));
    }

    #[test]
    fn no_more_memory_is_taken_than_may_wait() {
        let waker = noop_waker();
        let mut context = Context::from_waker(&waker);
        let mut stream = Gathered::new(Full::default());
        stream.gather();
        for _ in 0..20 {
            let _ = Pin::new(&mut stream).poll_write(&mut context, &[7; 5000]);
        }
        assert_eq!((stream.waiting.len(), stream.waiting.capacity()), (MOST, MOST));
    }

    /// Answers with as many bytes as the path says.
    async fn answer(
        request: Request<hyper::body::Incoming>,
    ) -> Result<Response<http_body_util::Full<Bytes>>, std::convert::Infallible> {
        let count = request.uri().path()[1..].parse().unwrap();
        Ok(Response::new(http_body_util::Full::new(vec![count as u8; count].into())))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Over HTTP/2, through a pipe that takes little at a time: nothing is lost, and nothing waits for more to come.
        #[test]
        fn all_answers_come_whole(counts in prop::collection::vec(0..200_000_usize, 1..12), pipe in 1..100_000_usize) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let work = async {
                let (ours, theirs) = tokio::io::duplex(pipe);
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let service = hyper::service::service_fn(answer);
                let mut ours = Gathered::new(ours);
                ours.gather();
                tokio::spawn(server.serve_connection(TokioIo::new(ours), service));
                let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(theirs)).await;
                let (send, connection) = client.unwrap();
                tokio::spawn(connection);
                let asked = counts.iter().map(|count| {
                    let mut send = send.clone();
                    async move {
                        let request = Request::get(format!("http://there/{count}")).body(http_body_util::Full::<Bytes>::default()).unwrap();
                        let body = send.send_request(request).await.unwrap().into_body();
                        body.collect().await.unwrap().to_bytes()
                    }
                });
                let got = join_all(asked).await;
                for (got, count) in got.iter().zip(&counts) {
                    assert!(got.len() == *count && got.iter().all(|byte| *byte == *count as u8));
                }
            };
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), work).await }).unwrap();
        }
    }
}
