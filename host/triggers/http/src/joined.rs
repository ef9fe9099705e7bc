use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use crate::seats::{Exchange, Seat};
use crate::serve::given_up;

/// Bytes that are copied sooner than described to the kernel piece by piece.
const SMALL: usize = 8 << 10;

/// A stream on which a response's head and its short body go out as one piece, and whose client must take what it is sent.
pub(crate) struct Joined<S> {
    inner: TokioIo<S>,
    pieces: Vec<u8>,
    writes: Writes,
}

impl<S> Joined<S> {
    pub(crate) fn new(stream: S, stall: Stall, seat: Arc<Seat>) -> Self {
        Self {
            inner: TokioIo::new(stream),
            pieces: Vec::new(),
            writes: Writes {
                stall,
                seat,
                waits: None,
            },
        }
    }
}

/// How long nothing of what is written has gone out. There is no timer before a write had to wait, and one for the connection's
/// life from then on: it is set again when it rings too early.
pub(crate) struct Stall {
    patience: Duration,
    listener: &'static str,
    /// When the write under way has waited for too long.
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(crate) fn new(patience: Duration, listener: &'static str) -> Self {
        Self {
            patience,
            listener,
            deadline: None,
            timer: None,
        }
    }

    pub(crate) fn listener(&self) -> &'static str {
        self.listener
    }

    /// Something goes out; answers whether that had to wait.
    pub(crate) fn moves(&mut self) -> bool {
        self.deadline.take().is_some()
    }

    /// Nothing goes out; ready when that has been so for too long.
    pub(crate) fn waits(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience;
        let deadline = *self
            .deadline
            .get_or_insert_with(|| Instant::now() + patience);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        while timer.as_mut().poll(context).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            // It was set for an earlier write.
            timer.as_mut().reset(deadline.into());
        }
        Poll::Pending
    }
}

/// Watches over the writes of a connection.
struct Writes {
    stall: Stall,
    seat: Arc<Seat>,
    /// A connection whose client has something to take yet is not idle.
    waits: Option<Exchange>,
}

impl Writes {
    /// Looks at how a write went; one that waits for too long is an error.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stall.moves() {
                self.waits = None;
            }
            return written;
        }
        if self.waits.is_none() {
            self.waits = Some(self.seat.begin());
        }
        std::task::ready!(self.stall.waits(context));
        given_up(self.stall.listener(), "stalled");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> Read for Joined<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> Write for Joined<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.writes.watch(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.inner).poll_flush(context);
        self.writes.watch(context, written)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.inner).poll_shutdown(context);
        self.writes.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if pieces.len() < 2 || length > SMALL {
            let written = Pin::new(&mut this.inner).poll_write_vectored(context, pieces);
            return this.writes.watch(context, written);
        }
        this.pieces.clear();
        pieces
            .iter()
            .for_each(|piece| this.pieces.extend_from_slice(piece));
        let written = Pin::new(&mut this.inner).poll_write(context, &this.pieces);
        this.writes.watch(context, written)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::seats::Seats;

    async fn seat() -> Arc<Seat> {
        Seats::new(1, false).enter().await.seat.clone()
    }

    #[tokio::test]
    async fn every_byte_goes_out_once_and_in_order() {
        for lengths in [&[3, 4][..], &[0, 1, 9000], &[8 << 10, 1], &[5]] {
            let (near, mut far) = tokio::io::duplex(100);
            let sent: Vec<u8> = (0..lengths.iter().sum::<usize>())
                .map(|n| n as u8)
                .collect();
            let mut rest = sent.clone();
            let lengths = lengths.to_vec();
            let seat = seat().await;
            let writer = tokio::spawn(async move {
                let mut near = Joined::new(
                    near,
                    Stall::new(Duration::from_secs(60), "data"),
                    seat.clone(),
                );
                while !rest.is_empty() {
                    let mut left = &rest[..];
                    let mut pieces = Vec::new();
                    for length in &lengths {
                        let (piece, after) = left.split_at(left.len().min(*length));
                        pieces.push(IoSlice::new(piece));
                        left = after;
                    }
                    let written = poll_fn(|context| {
                        Pin::new(&mut near).poll_write_vectored(context, &pieces)
                    });
                    let written = written.await.unwrap();
                    assert!(written > 0);
                    rest.drain(..written);
                }
            });
            let mut received = Vec::new();
            far.read_to_end(&mut received).await.unwrap();
            writer.await.unwrap();
            assert!(received == sent, "{} bytes came", received.len());
        }
    }

    #[tokio::test]
    async fn who_takes_nothing_is_given_up_and_who_takes_little_is_not() {
        let patience = Duration::from_millis(100);
        let (near, mut far) = tokio::io::duplex(100);
        let mut near = Joined::new(near, Stall::new(patience, "data"), seat().await);
        let writer = tokio::spawn(async move {
            loop {
                let wrote = poll_fn(|context| Pin::new(&mut near).poll_write(context, &[0; 100]));
                if let Err(error) = wrote.await {
                    return error.kind();
                }
            }
        });
        let began = Instant::now();
        while began.elapsed() < 4 * patience {
            let mut some = [0; 10];
            far.read_exact(&mut some).await.unwrap();
            tokio::time::sleep(patience / 10).await;
        }
        assert!(!writer.is_finished());
        let ended = tokio::time::timeout(Duration::from_secs(10), writer).await;
        assert_eq!(ended.unwrap().unwrap(), io::ErrorKind::TimedOut);
    }
}
