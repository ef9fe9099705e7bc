use std::collections::VecDeque;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use stepwell_core::{Blame, ErrorKind, Limits, StepError};
use tokio::sync::oneshot;
use wasmtime::component::Resource;
use wasmtime_wasi_http::Error as HttpError;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::p2::types::{HostIncomingRequest, HostResponseOutparam};

use crate::call::Shared;
use crate::meter::Exceeded;
use crate::store::StoreState;

/// A streaming HTTP body.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// A body that is there as a whole by the time its head is, and no longer than this, goes out in one frame with its length.
const COLLAPSE: usize = 64 << 10;

/// What `handle` takes.
pub(crate) type Input = (
    Resource<HostIncomingRequest>,
    Resource<HostResponseOutparam>,
);

type Guest = Pin<Box<dyn Future<Output = Result<(), StepError>> + Send>>;

/// Calls an HTTP function. The guest runs inside the caller's task: first until the response's head is there, then whenever the
/// body is polled.
pub(crate) async fn handle<S: StoreState>(
    shared: &Shared,
    pre: Arc<ProxyPre<S>>,
    state: S,
    limits: Limits,
    deadline: Instant,
    request: Request<Body>,
) -> Result<Response<Body>, StepError> {
    let mut call = shared.begin(state, limits, deadline).await?;
    let (scheme, request) = incoming(request);
    let (sender, mut head) = oneshot::channel();
    let mut view = call.store.data_mut().base().http();
    let request = view
        .new_incoming_request(scheme, request)
        .map_err(unanswered)?;
    let outparam = view.new_response_outparam(sender).map_err(unanswered)?;
    let mut guest: Guest = Box::pin(async move {
        let guard = call.guard();
        let outcome = guard
            .run(async {
                let proxy = pre.instantiate_async(&mut call.store).await?;
                let handler = proxy.wasi_http_incoming_handler();
                handler
                    .call_handle(&mut call.store, request, outparam)
                    .await
            })
            .await;
        call.settle(outcome)
    });

    // The guest sets the head while it is being polled, so afterwards is the time to look.
    let (response, outcome) = poll_fn(|cx| {
        let outcome = match guest.as_mut().poll(cx) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        };
        match (head.try_recv(), outcome) {
            (Ok(response), outcome) => Poll::Ready(Ok((response, outcome))),
            (Err(_), None) => Poll::Pending,
            (Err(_), Some(Err(error))) => Poll::Ready(Err(error)),
            (Err(_), Some(Ok(()))) => Poll::Ready(Err(StepError::new(
                ErrorKind::Failed,
                "the guest returned without setting a response",
            ))),
        }
    })
    .await?;
    let response = response.map_err(|code| {
        StepError::new(
            ErrorKind::Failed,
            format!("the guest answered with the error {code:?}"),
        )
    })?;

    let (parts, body) = response.into_parts();
    let body = GuestBody {
        state: match outcome {
            None => State::Running(guest),
            Some(outcome) => State::Ended(outcome.err()),
        },
        body,
        ready: VecDeque::new(),
        left: limits.output,
        limit: limits.output,
        finished: false,
    };
    Ok(Response::from_parts(parts, collapse(body).await?))
}

fn unanswered(error: wasmtime::Error) -> StepError {
    StepError::new(
        ErrorKind::Failed,
        format!("cannot hand the request to the guest: {error:#}"),
    )
    .blamed(Blame::Host)
}

/// The request as the guest gets it: with a scheme and an authority, its body's errors without details.
fn incoming(mut request: Request<Body>) -> (Scheme, Request<UnsyncBoxBody<Bytes, HttpError>>) {
    let scheme = match request.uri().scheme_str() {
        Some("https") => Scheme::Https,
        _ => Scheme::Http,
    };
    let host = request.headers().get(header::HOST);
    if request.uri().authority().is_none() && host.is_none_or(|host| host.to_str().is_err()) {
        request
            .headers_mut()
            .insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    let request = request.map(|body| {
        // Most requests have none, and a box of nothing is no allocation.
        if body.is_end_stream() {
            return Empty::new().map_err(|never| match never {}).boxed_unsync();
        }
        body.map_err(|_| HttpError::ConnectionTerminated)
            .boxed_unsync()
    });
    (scheme, request)
}

/// Takes as much of the body as is there at once. What fails before the head is sent fails the call as a whole.
async fn collapse(mut body: GuestBody) -> Result<Body, StepError> {
    let mut taken = 0;
    let mut only = None;
    let whole = poll_fn(|cx| {
        loop {
            match body.poll_guest(cx) {
                Poll::Pending => return Poll::Ready(Ok(false)),
                Poll::Ready(None) => return Poll::Ready(Ok(true)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok(frame))) => {
                    taken += frame.data_ref().map_or(0, Bytes::len);
                    // Mostly the first frame is the only one, and needs no queue.
                    match (frame.into_data(), &only) {
                        (Ok(data), None) if body.ready.is_empty() => only = Some(data),
                        (frame, _) => {
                            body.ready.extend(only.take().map(Frame::data));
                            body.ready
                                .push_back(frame.map_or_else(|frame| frame, Frame::data));
                        }
                    }
                    if taken > COLLAPSE {
                        return Poll::Ready(Ok(false));
                    }
                }
            }
        }
    })
    .await?;
    if !whole || body.ready.iter().any(Frame::is_trailers) {
        body.ready.extend(only.map(Frame::data));
        return Ok(body.boxed_unsync());
    }
    let bytes = only.unwrap_or_else(|| {
        let mut all = BytesMut::with_capacity(taken);
        for frame in std::mem::take(&mut body.ready) {
            all.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        }
        all.freeze()
    });
    Ok(Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync())
}

/// A response's body together with the guest that is still writing it.
struct GuestBody {
    state: State,
    body: HyperOutgoingBody,
    /// Frames that were taken already and go out first.
    ready: VecDeque<Frame<Bytes>>,
    left: u64,
    limit: u64,
    finished: bool,
}

enum State {
    Running(Guest),
    /// The guest is gone, perhaps through this error.
    Ended(Option<StepError>),
}

impl GuestBody {
    /// Lets the guest go on, then takes what it has written.
    fn poll_guest(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StepError>>> {
        if self.finished {
            return Poll::Ready(None);
        }
        if let State::Running(guest) = &mut self.state
            && let Poll::Ready(outcome) = guest.as_mut().poll(cx)
        {
            self.state = State::Ended(outcome.err());
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.finished = true;
                // A guest that dies takes its end of the body with it, which looks like the body's end.
                match &mut self.state {
                    State::Ended(error) => Poll::Ready(error.take().map(Err)),
                    State::Running(_) => Poll::Ready(None),
                }
            }
            Poll::Ready(Some(Err(_))) => {
                self.finished = true;
                Poll::Ready(Some(Err(self.cut_off())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let size = frame.data_ref().map_or(0, Bytes::len) as u64;
                match self.left.checked_sub(size) {
                    Some(left) => {
                        self.left = left;
                        Poll::Ready(Some(Ok(frame)))
                    }
                    None => {
                        self.finished = true;
                        // Nobody reads what it would still write.
                        self.state = State::Ended(None);
                        Poll::Ready(Some(Err(Exceeded::Output(self.limit).into())))
                    }
                }
            }
        }
    }

    /// Why the body ends before its end.
    fn cut_off(&mut self) -> StepError {
        if let State::Ended(error) = &mut self.state
            && let Some(error) = error.take()
        {
            return error;
        }
        StepError::new(
            ErrorKind::Failed,
            "the guest did not finish its response body",
        )
    }
}

impl http_body::Body for GuestBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(frame) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        self.poll_guest(cx).map(|frame| {
            frame.map(|frame| {
                frame.map_err(|error| {
                    tracing::warn!(%error, "a guest's response was cut off");
                    error.into()
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.finished && self.ready.is_empty()
    }
}

impl Drop for GuestBody {
    /// A guest may go on when its response is complete, and when its caller has hung up: until its time is up.
    fn drop(&mut self) {
        if let State::Running(guest) = std::mem::replace(&mut self.state, State::Ended(None))
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                if let Err(error) = guest.await {
                    tracing::warn!(%error, "a guest failed after its response");
                }
            });
        }
    }
}
