//! A file as the body of a request: read piece by piece while it is sent, never whole in memory.
#![expect(clippy::disallowed_methods, reason = "reads the file")]

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

/// Bytes that are read at once; two pieces wait at most.
const PIECE: usize = 256 * 1024;

/// The body.
#[derive(Debug)]
pub struct FileBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    moves: Moves,
}

/// How many pieces have gone.
#[derive(Debug, Clone, Default)]
pub struct Moves(Arc<AtomicU64>);

impl Moves {
    /// So many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl FileBody {
    /// The file as it is now; a thread reads it as it is sent, and ends when the body is dropped.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let (sender, pieces) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || read(file, &sender));
        Ok(Self { pieces, moves: Moves::default() })
    }

    /// To see whether something moves.
    #[must_use]
    pub fn moves(&self) -> Moves {
        self.moves.clone()
    }
}

fn read(mut file: File, sender: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut piece = vec![0; PIECE];
        let read = file.read(&mut piece).map(|length| {
            piece.truncate(length);
            Bytes::from(piece)
        });
        let last = read.as_ref().map_or(true, Bytes::is_empty);
        if matches!(&read, Ok(piece) if piece.is_empty()) || sender.blocking_send(read).is_err() || last {
            return;
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = self.pieces.poll_recv(context);
        if piece.is_ready() {
            self.moves.0.fetch_add(1, Ordering::Relaxed);
        }
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_file_comes_piece_by_piece_and_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..=255u8).cycle().take(2 * PIECE + 7).collect();
        std::fs::write(file.path(), &content).unwrap();
        let mut body = FileBody::open(file.path()).unwrap();
        let (moves, mut seen) = (body.moves(), Vec::new());
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE);
            seen.extend_from_slice(&piece);
        }
        assert!(seen == content && moves.count() >= 3);
        assert!(FileBody::open(Path::new("/nowhere")).is_err());
    }
}
