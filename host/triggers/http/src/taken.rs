//! Whether clients take what the streams of an HTTP/2 connection have for them.
//!
//! The connection itself says nothing of it: its pings are answered and its socket is written to, while a client gives a stream no
//! room to send. So each stream's task is watched: after a turn in which its response gave something, it is the client that it waits for.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::Executor;

use crate::joined::Stall;

/// Bytes of a response that are handed out at once. So much of each stream may be left in the connection's buffers when the stream's
/// task is gone.
const PIECE: usize = 16 << 10;

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::Nothing) };
}

/// What a stream's response did while the stream's task was polled.
#[derive(Clone, Copy)]
enum Turn {
    /// It was not asked.
    Nothing,
    /// It gave something, so that it is the client's turn.
    Gave,
    /// It is the pipeline's turn.
    Waits,
}

/// Runs the streams of one connection, and gives those up that their client leaves where they are.
#[derive(Clone)]
pub(crate) struct Streams {
    patience: Duration,
    listener: &'static str,
    open: Arc<AtomicUsize>,
}

impl Streams {
    pub(crate) fn new(patience: Duration, listener: &'static str) -> Self {
        Self {
            patience,
            listener,
            open: Arc::default(),
        }
    }

    /// Waits until there has been no stream for as long as a client may take for what is left in buffers.
    pub(crate) async fn left(&self) {
        let mut idle = false;
        loop {
            tokio::time::sleep(self.patience).await;
            let none = self.open.load(Ordering::Relaxed) == 0;
            if idle && none {
                return;
            }
            idle = none;
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (patience, listener) = (self.patience, self.listener);
        let open = Open::new(&self.open);
        tokio::spawn(async move {
            let _open = open;
            let mut stream = pin!(stream);
            let (mut stall, mut untaken) = (Stall::new(patience, listener), false);
            poll_fn(|context| {
                TURN.set(Turn::Nothing);
                ready_or_stalled(stream.as_mut(), context, &mut stall, &mut untaken)
            })
            .await;
        });
    }
}

fn ready_or_stalled<F: Future<Output = ()>>(
    stream: Pin<&mut F>,
    context: &mut Context<'_>,
    stall: &mut Stall,
    untaken: &mut bool,
) -> Poll<()> {
    if stream.poll(context).is_ready() {
        return Poll::Ready(());
    }
    match TURN.get() {
        Turn::Nothing => {}
        Turn::Gave => {
            stall.moves();
            *untaken = true;
        }
        Turn::Waits => {
            stall.moves();
            *untaken = false;
        }
    }
    if *untaken {
        ready!(stall.waits(context));
        metrics::counter!("stepwell_streams_given_up_total", "listener" => stall.listener())
            .increment(1);
        // Dropped, it is reset.
        return Poll::Ready(());
    }
    Poll::Pending
}

/// A stream that counts as open.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response's body that says when it is the client's turn. On HTTP/2 it comes in pieces, so that most of it is here and not in the
/// connection's buffers while the client takes nothing.
pub(crate) struct Taken<B> {
    inner: B,
    streamed: bool,
    /// What is left of the frame that is handed out.
    rest: Bytes,
}

impl<B> Taken<B> {
    /// `streamed`: whether it goes out on a stream of HTTP/2.
    pub(crate) fn new(inner: B, streamed: bool) -> Self {
        Self {
            inner,
            streamed,
            rest: Bytes::new(),
        }
    }

    fn piece(&mut self) -> Bytes {
        if self.rest.len() > PIECE {
            return self.rest.split_to(PIECE);
        }
        // The last one may be left where it is by its client, and must not keep all of the others in memory.
        Bytes::copy_from_slice(&std::mem::take(&mut self.rest))
    }
}

impl<B> HttpBody for Taken<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if !this.streamed {
            return Pin::new(&mut this.inner).poll_frame(context);
        }
        if this.rest.is_empty() {
            TURN.set(Turn::Waits);
            let frame = match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) if data.len() > PIECE => this.rest = data,
                frame => {
                    TURN.set(Turn::Gave);
                    let frame = frame.map_or_else(|frame| frame, Frame::data);
                    return Poll::Ready(Some(Ok(frame)));
                }
            }
        }
        TURN.set(Turn::Gave);
        Poll::Ready(Some(Ok(Frame::data(this.piece()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.size_hint();
        if self.rest.is_empty() {
            return inner;
        }
        let rest = self.rest.len() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn a_streamed_body_comes_in_pieces_and_whole() {
        for length in [0, 1, PIECE, PIECE + 1, 2 * PIECE, 5 * PIECE + 7] {
            let bytes: Bytes = (0..length).map(|n| n as u8).collect::<Vec<_>>().into();
            for streamed in [true, false] {
                let mut body = Taken::new(Full::new(bytes.clone()), streamed);
                let (mut received, mut largest) = (Vec::new(), 0);
                while let Some(frame) = body.frame().await {
                    let data = frame.unwrap().into_data().unwrap();
                    largest = largest.max(data.len());
                    received.extend_from_slice(&data);
                    let left = (length - received.len()) as u64;
                    assert_eq!(body.size_hint().exact(), Some(left));
                    assert_eq!(body.is_end_stream(), left == 0);
                }
                assert!(received == bytes, "{length}");
                let most = if streamed { length.min(PIECE) } else { length };
                assert_eq!(largest, most, "{length}");
            }
        }
    }
}
