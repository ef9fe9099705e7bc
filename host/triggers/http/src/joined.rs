use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes that are copied sooner than described to the kernel piece by piece.
const SMALL: usize = 8 << 10;

/// A stream on which a response's head and its short body go out as one piece.
pub(crate) struct Joined<S> {
    inner: TokioIo<S>,
    pieces: Vec<u8>,
}

impl<S> Joined<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            inner: TokioIo::new(stream),
            pieces: Vec::new(),
        }
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
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
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
            return Pin::new(&mut this.inner).poll_write_vectored(context, pieces);
        }
        this.pieces.clear();
        pieces
            .iter()
            .for_each(|piece| this.pieces.extend_from_slice(piece));
        Pin::new(&mut this.inner).poll_write(context, &this.pieces)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn every_byte_goes_out_once_and_in_order() {
        for lengths in [&[3, 4][..], &[0, 1, 9000], &[8 << 10, 1], &[5]] {
            let (near, mut far) = tokio::io::duplex(100);
            let sent: Vec<u8> = (0..lengths.iter().sum::<usize>())
                .map(|n| n as u8)
                .collect();
            let mut rest = sent.clone();
            let lengths = lengths.to_vec();
            let writer = tokio::spawn(async move {
                let mut near = Joined::new(near);
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
}
