use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{HeaderMap, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full};
use stepwell_pipeline::Body;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::auth::SUBJECT;
use crate::bodies::{Held, Room, SMALL};
use crate::problem::Problem;
use crate::unread::{discard, drain};

/// How long an answer waits for its connection to be of use for another request.
const ANSWER_WAITS: Duration = Duration::from_millis(20);

/// What nobody may say after a body: who calls, and for whom and how long the request is.
const NO_TRAILERS: [HeaderName; 7] = [
    SUBJECT,
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    COOKIE,
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
];

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// A body of these bytes.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body of nothing.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Reads a whole body. The limit holds while it is read, whatever was announced: nothing larger is ever in memory. One that does
/// not come at once needs room among all that are read, and holds it for as long as its bytes are there.
pub(crate) async fn read<B>(
    headers: &HeaderMap,
    body: B,
    limit: u64,
    timeout: Duration,
    room: Room<'_>,
    progress: &Progress,
) -> Result<Bytes, Problem>
where
    B: HttpBody<Data = Bytes>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > limit {
        discard(headers, body, progress).await;
        return Err(Problem::TooLarge { limit });
    }
    progress.set_unread(true);
    let mut body = pin!(body);
    let read = tokio::time::timeout(timeout, collect(body.as_mut(), limit, room)).await;
    let result = read.unwrap_or(Err(Problem::TooSlow));
    let read = match &result {
        Ok(_) => true,
        Err(Problem::TooLarge { .. } | Problem::NoRoom) => drain(body).await,
        Err(_) => false,
    };
    progress.set_unread(!read);
    result
}

async fn collect<B>(mut body: Pin<&mut B>, limit: u64, room: Room<'_>) -> Result<Bytes, Problem>
where
    B: HttpBody<Data = Bytes>,
{
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    let mut held = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::BrokenBody)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if (first.len() + all.len()) as u64 + data.len() as u64 > limit {
            return Err(Problem::TooLarge { limit });
        }
        if held.is_none() && data.len() <= SMALL && body.is_end_stream() {
            return Ok(data);
        }
        let held = held.get_or_insert_with(|| room.hold());
        held.take(data.len() as u64)?;
        // Most bodies are one frame, which is passed on without a copy.
        if all.is_empty() && first.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    let whole = if all.is_empty() { first } else { all.freeze() };
    Ok(match held {
        Some(held) => held.keep(whole),
        None => whole,
    })
}

/// A response's body that is there as a whole and holds room: until its bytes are in no buffer any more, once it has given them.
pub(crate) struct Counted {
    inner: Body,
    held: Option<Held>,
}

impl Counted {
    pub(crate) fn new(inner: Body, held: Held) -> Self {
        Self {
            inner,
            held: Some(held),
        }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.inner).poll_frame(context);
        frame.map_ok(|frame| {
            frame.map_data(|data| match this.held.take() {
                Some(held) => held.keep(data),
                None => data,
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body on its way to a function, which ends in an error where it becomes too long. What is left of it where the function lets go
/// of it is thrown away.
pub(crate) struct Limited<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    /// None once it has ended, well or not.
    inner: Option<B>,
    left: u64,
    progress: Progress,
    /// Where what is left is thrown away; none where that is not needed.
    discards: Option<Handle>,
    /// Whether its client waits to be asked for it.
    expects: bool,
}

/// How far a request's body was read.
#[derive(Clone, Default)]
pub(crate) struct Progress(Arc<Flags>);

#[derive(Default)]
struct Flags {
    exceeded: AtomicBool,
    unread: AtomicBool,
    /// Whether it is being thrown away, and when that has ended.
    discarding: AtomicBool,
    discarded: Notify,
}

impl Progress {
    /// Whether it was too long.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.0.exceeded.load(Ordering::Relaxed)
    }

    /// Whether there is a body whose end was not read.
    pub(crate) fn is_unread(&self) -> bool {
        self.0.unread.load(Ordering::Relaxed)
    }

    pub(crate) fn set_unread(&self, unread: bool) {
        self.0.unread.store(unread, Ordering::Relaxed);
    }

    /// Waits a moment at most for what is being thrown away.
    pub(crate) async fn settled(&self) {
        if self.0.discarding.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(ANSWER_WAITS, self.0.discarded.notified()).await;
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the request's body is too large")]
struct TooLong;

impl<B> Limited<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    /// Whoever sends over HTTP/2 can be told to stop; over HTTP/1.1 nothing else passes until the body has.
    pub(crate) fn new(request: &Parts, inner: B, limit: u64, progress: Progress) -> Self {
        progress.set_unread(true);
        Self {
            inner: Some(inner),
            left: limit,
            progress,
            discards: (request.version < Version::HTTP_2).then(Handle::current),
            expects: request.headers.contains_key(EXPECT),
        }
    }
}

impl<B> HttpBody for Limited<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(inner) = this.inner.as_mut().filter(|_| !this.progress.is_exceeded()) else {
            return Poll::Ready(None);
        };
        this.expects = false;
        let frame = match std::task::ready!(Pin::new(&mut *inner).poll_frame(context)) {
            None => {
                this.progress.set_unread(false);
                this.inner = None;
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                this.inner = None;
                return Poll::Ready(Some(Err(error.into())));
            }
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    NO_TRAILERS
                        .iter()
                        .for_each(|name| drop(trailers.remove(name)));
                }
                frame
            }
        };
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        let Some(left) = this.left.checked_sub(length) else {
            this.progress.0.exceeded.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(TooLong.into())));
        };
        this.left = left;
        if inner.is_end_stream() {
            this.progress.set_unread(false);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let none = || SizeHint::with_exact(0);
        self.inner.as_ref().map_or_else(none, HttpBody::size_hint)
    }
}

impl<B> Drop for Limited<B>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        if self.expects || inner.is_end_stream() {
            return;
        }
        if let Some(runtime) = self.discards.take() {
            let progress = self.progress.clone();
            progress.0.discarding.store(true, Ordering::Relaxed);
            runtime.spawn(async move {
                if drain(pin!(inner)).await {
                    progress.set_unread(false);
                }
                progress.0.discarded.notify_one();
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use http::Request;
    use http_body_util::StreamBody;
    use stepwell_core::Name;

    use super::*;
    use crate::bodies::Bodies;

    const LONG: Duration = Duration::from_secs(60);

    fn chunks(
        chunks: &'static [&'static str],
    ) -> impl HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin {
        let frames = chunks
            .iter()
            .map(|chunk| Ok::<_, BoxError>(Frame::data(Bytes::from_static(chunk.as_bytes()))));
        StreamBody::new(futures::stream::iter(frames))
    }

    async fn read_within<B>(
        body: B,
        limit: u64,
        timeout: Duration,
        bodies: &Arc<Bodies>,
    ) -> Result<Bytes, Problem>
    where
        B: HttpBody<Data = Bytes>,
    {
        let namespace = &Name::default_namespace();
        let room = Room { bodies, namespace };
        let progress = Progress::default();
        read(&HeaderMap::new(), body, limit, timeout, room, &progress).await
    }

    async fn read_all<B>(body: B, limit: u64) -> Result<Bytes, Problem>
    where
        B: HttpBody<Data = Bytes>,
    {
        read_within(body, limit, LONG, &Bodies::new(100)).await
    }

    #[tokio::test]
    async fn bodies_are_read_up_to_the_limit() {
        assert_eq!(read_all(chunks(&[]), 0).await.unwrap(), "");
        assert_eq!(read_all(chunks(&["abc"]), 3).await.unwrap(), "abc");
        assert_eq!(
            read_all(chunks(&["", "a", "", "bc"]), 3).await.unwrap(),
            "abc"
        );
        for too_long in [chunks(&["abcd"]), chunks(&["ab", "cd"])] {
            let error = read_all(too_long, 3).await.unwrap_err();
            assert!(matches!(error, Problem::TooLarge { limit: 3 }));
        }
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let stalled = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, BoxError>>());
        let bodies = Bodies::new(100);
        let read = read_within(stalled, 3, Duration::from_millis(10), &bodies).await;
        assert!(matches!(read, Err(Problem::TooSlow)));
    }

    #[tokio::test]
    async fn room_is_given_back_however_a_body_ends() {
        let bodies = Bodies::new(5);
        let begun = || {
            let some = Frame::data(Bytes::from_static(b"abc"));
            futures::stream::iter([Ok::<_, BoxError>(some)])
        };
        let soon = Duration::from_millis(10);
        let stalled = || StreamBody::new(begun().chain(futures::stream::pending()));
        assert!(matches!(
            read_within(stalled(), 100, soon, &bodies).await,
            Err(Problem::TooSlow)
        ));
        assert_eq!(bodies.taken(), 0);
        let broken = begun().chain(futures::stream::iter([Err("gone".into())]));
        let broken = read_within(StreamBody::new(broken), 100, LONG, &bodies).await;
        assert!(matches!(broken, Err(Problem::BrokenBody)));
        assert_eq!(bodies.taken(), 0);
        let too_long = read_within(chunks(&["abc", "d"]), 3, LONG, &bodies).await;
        assert!(matches!(too_long, Err(Problem::TooLarge { limit: 3 })));
        assert_eq!(bodies.taken(), 0);
        // As long as its sender is waited for, and as long as its bytes are there.
        let waits = read_within(stalled(), 100, LONG, &bodies);
        let mut waits = Box::pin(waits);
        assert!(futures::poll!(waits.as_mut()).is_pending());
        assert_eq!(bodies.taken(), 3);
        let refused = read_within(chunks(&["abc", "d"]), 100, LONG, &bodies).await;
        assert!(matches!(refused, Err(Problem::NoRoom)));
        assert_eq!(bodies.taken(), 3);
        drop(waits);
        assert_eq!(bodies.taken(), 0);
        let whole = read_within(chunks(&["abc", "de"]), 100, LONG, &bodies).await;
        assert_eq!(
            (whole.as_deref().unwrap(), bodies.taken()),
            (&b"abcde"[..], 5)
        );
        // What comes at once needs no room.
        let at_once = Full::new(Bytes::from_static(b"f"));
        let at_once = read_within(at_once, 100, LONG, &bodies).await;
        assert_eq!(at_once.unwrap(), "f");
        drop(whole);
        assert_eq!(bodies.taken(), 0);
    }

    #[tokio::test]
    async fn a_streamed_body_breaks_off_where_it_is_too_long() {
        let progress = Progress::default();
        let (request, ()) = Request::new(()).into_parts();
        let limited = |body| Limited::new(&request, body, 3, progress.clone());
        let within = limited(chunks(&["ab", "c"]));
        assert_eq!(within.collect().await.unwrap().to_bytes(), "abc");
        assert!(!progress.is_exceeded() && !progress.is_unread());
        let beyond = limited(chunks(&["ab", "cd", "e"]));
        assert!(beyond.collect().await.is_err());
        assert!(progress.is_exceeded() && progress.is_unread());
    }
}
