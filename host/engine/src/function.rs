use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use stepwell_core::{Blame, ErrorKind, Gone, Limits, Lingering, StepError};
use tokio::sync::oneshot;
use wasmtime::component::Resource;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::types::{HostIncomingRequest, HostResponseOutparam};
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use crate::blame::shown;
use crate::call::Shared;
use crate::keep::{Exports, Lease};
use crate::meter::Exceeded;
use crate::store::{Environment, StoreState};

/// A streaming HTTP body.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// A body that is there as a whole by the time its head is, and no longer than this, goes out in one frame with its length.
const COLLAPSE: usize = 64 << 10;

/// What `handle` takes.
pub(crate) type Input = (
    Resource<HostIncomingRequest>,
    Resource<HostResponseOutparam>,
);

/// What a response must keep to.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// Bytes that its body may have.
    output: u64,
    /// Whether it answers a HEAD, so that its head speaks of a body that nobody gets.
    head_only: bool,
}

impl Terms {
    pub(crate) fn of(request: &Request<Body>, limits: Limits) -> Self {
        Self {
            output: limits.output,
            head_only: request.method() == Method::HEAD,
        }
    }

    /// How long the body is by its head; none: the head does not say, or no body goes out with it.
    fn announced(self, head: &Parts) -> Result<Option<u64>, StepError> {
        let mut values = head.headers.get_all(header::CONTENT_LENGTH).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        let length = value
            .to_str()
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse().ok());
        let (Some(length), None) = (length, values.next()) else {
            let message = "the guest's response has a content-length that is not one number";
            return Err(StepError::new(ErrorKind::Failed, message));
        };
        let bodiless = self.head_only
            || head.status.is_informational()
            || matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        Ok((!bodiless).then_some(length))
    }
}

/// A guest's own word for why it has no response.
pub(crate) fn answered(code: &impl fmt::Debug) -> StepError {
    let code = shown(code, CODE);
    let message = format!("the guest answered with the error {code}");
    StepError::new(ErrorKind::Failed, message)
}

/// Characters of a guest's error code.
const CODE: usize = 300;

pub(crate) type Guest = Pin<Box<dyn Future<Output = Result<(), StepError>> + Send>>;

/// Calls an HTTP function. The guest runs inside the caller's task: first until the response's head is there, then whenever the
/// body is polled. While nobody polls it, it does not hear that its time is up: whoever holds the body must drop it by then
/// ([`Lingering::until`]). Its instance is free for the next call when it has returned: what it has written by then lives elsewhere.
pub(crate) async fn handle<S: StoreState>(
    shared: &Arc<Shared>,
    pre: Arc<ProxyPre<S>>,
    mut lease: Lease<S>,
    request: Request<Body>,
) -> Result<Response<Body>, StepError> {
    let terms = Terms::of(&request, lease.call.limits);
    let (scheme, request) = incoming(request);
    let (sender, head) = oneshot::channel();
    let mut view = lease.call.store.data_mut().base().http();
    let request = view
        .new_incoming_request(scheme, request)
        .map_err(unanswered)?;
    let outparam = view.new_response_outparam(sender).map_err(unanswered)?;
    let (shared, until) = (shared.clone(), lease.call.until());
    let (guard, failed) = (lease.call.guard(), Arc::new(AtomicBool::new(false)));
    let (of_guest, environment) = (failed.clone(), guard.environment.clone());
    let guest: Guest = Box::pin(guard.run(async move {
        let outcome = async {
            let Lease { call, exports, .. } = &mut lease;
            if exports.is_none() {
                let proxy = shared.instantiate(&*pre, &mut call.store).await?;
                *exports = Some(Exports::Http(proxy));
            }
            let Some(Exports::Http(proxy)) = exports else {
                return Err(wasmtime::Error::msg("the instance is of another world"));
            };
            proxy
                .wasi_http_incoming_handler()
                .call_handle(&mut call.store, request, outparam)
                .await
        }
        .await;
        let outcome = lease.settle(outcome);
        // Said before the store goes, and with it the guest's end of the body: it may be read on another thread.
        of_guest.store(outcome.is_err(), Ordering::Release);
        lease.end(&outcome);
        outcome
    }));

    respond(guest, environment, failed, head, terms, until).await
}

/// Runs a guest until it sends the head of its response or the error that it answers with; it goes on while the body is read.
/// `failed` is set before what a failed guest held is dropped.
pub(crate) async fn respond<E: fmt::Debug>(
    mut guest: Guest,
    environment: Arc<Environment>,
    failed: Arc<AtomicBool>,
    head: oneshot::Receiver<Result<Response<WasiBody>, E>>,
    terms: Terms,
    until: Instant,
) -> Result<Response<Body>, StepError> {
    let mut head = Some(head);
    let (response, outcome) = poll_fn(|cx| {
        // The guest sets the head while it is being polled, so afterwards is the time to look.
        let outcome = match guest.as_mut().poll(cx) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        };
        match (set(&mut head, outcome.is_some(), cx), outcome) {
            (Some(response), outcome) => Poll::Ready(Ok((response, outcome))),
            (None, None) => Poll::Pending,
            (None, Some(Err(error))) => Poll::Ready(Err(error)),
            (None, Some(Ok(()))) => Poll::Ready(Err(StepError::new(
                ErrorKind::Failed,
                "the guest returned without setting a response",
            ))),
        }
    })
    .await?;
    let response = response.map_err(|code| answered(&code))?;

    let state = match outcome {
        None => State::Running(Running {
            guest,
            environment,
            gone: None,
        }),
        Some(outcome) => State::Ended(outcome.err()),
    };
    deliver(response, state, failed, terms, until).await
}

/// The response of a guest that runs in a task of its own, and says in `fate` why its body ends before its end.
pub(crate) async fn deliver_from(
    response: Response<WasiBody>,
    fate: Arc<OnceLock<StepError>>,
    terms: Terms,
    until: Instant,
) -> Result<Response<Body>, StepError> {
    let failed = Arc::new(AtomicBool::new(false));
    deliver(response, State::Elsewhere(fate), failed, terms, until).await
}

async fn deliver(
    response: Response<WasiBody>,
    state: State,
    failed: Arc<AtomicBool>,
    terms: Terms,
    until: Instant,
) -> Result<Response<Body>, StepError> {
    let (mut parts, body) = response.into_parts();
    let announced = terms.announced(&parts)?;
    strip(&mut parts);
    let body = GuestBody {
        state,
        until,
        failed,
        body,
        ready: VecDeque::new(),
        left: terms.output,
        limit: terms.output,
        announced,
        missing: announced.unwrap_or_default(),
        finished: false,
    };
    let (body, lingering) = collapse(body).await?;
    if let Some(lingering) = lingering {
        parts.extensions.insert(lingering);
    }
    Ok(Response::from_parts(parts, body))
}

/// Takes out of a head what RFC 9110 forbids there, and what clients and proxies may therefore misread.
fn strip(head: &mut Parts) {
    if head.status == StatusCode::NO_CONTENT || head.status.is_informational() {
        head.headers.remove(header::CONTENT_LENGTH);
    }
    // It speaks of a connection, and only requests have it.
    head.headers.remove(header::TE);
}

/// The head, if it is set; if it is not, `cx` is told when it is, unless the guest has ended.
fn set<T>(head: &mut Option<oneshot::Receiver<T>>, ended: bool, cx: &mut Context<'_>) -> Option<T> {
    let receiver = head.as_mut()?;
    if ended {
        return receiver.try_recv().ok();
    }
    match Pin::new(receiver).poll(cx) {
        Poll::Ready(Ok(response)) => Some(response),
        Poll::Ready(Err(_)) => {
            // The guest has dropped it, and will end by and by.
            *head = None;
            None
        }
        Poll::Pending => None,
    }
}

fn unanswered(error: wasmtime::Error) -> StepError {
    StepError::new(
        ErrorKind::Failed,
        format!("cannot hand the request to the guest: {error:#}"),
    )
    .blamed(Blame::Host)
}

/// The request as the guest gets it: with a scheme and an authority, its body's errors without details.
fn incoming(mut request: Request<Body>) -> (Scheme, Request<WasiBody>) {
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

/// Takes as much of the body as is there at once. What fails before the head is sent fails the call as a whole, and ends the guest.
async fn collapse(mut body: GuestBody) -> Result<(Body, Option<Lingering>), StepError> {
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
    .await;
    let whole = match whole {
        Ok(whole) => whole,
        Err(error) => {
            body.state = State::Ended(None);
            return Err(error);
        }
    };
    let whole = whole && !body.ready.iter().any(Frame::is_trailers);
    let lingering = body.linger(whole);
    if !whole {
        body.ready.extend(only.map(Frame::data));
        return Ok((body.boxed_unsync(), lingering));
    }
    let bytes = only.unwrap_or_else(|| {
        let mut all = BytesMut::with_capacity(taken);
        for frame in std::mem::take(&mut body.ready) {
            all.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        }
        all.freeze()
    });
    let bytes = Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync();
    Ok((bytes, lingering))
}

/// A response's body together with the guest that is still writing it.
struct GuestBody {
    state: State,
    /// When the guest's time is up.
    until: Instant,
    /// Whether the guest has come to a bad end, on whatever thread, which `state` may not know yet.
    failed: Arc<AtomicBool>,
    body: WasiBody,
    /// Frames that were taken already and go out first.
    ready: VecDeque<Frame<Bytes>>,
    left: u64,
    limit: u64,
    /// How long the head says that it is. Nothing after it tells where a shorter or longer one ends, and what is beyond the end is
    /// taken for the next response of the connection.
    announced: Option<u64>,
    /// Bytes of that length that are still to come.
    missing: u64,
    finished: bool,
}

enum State {
    Running(Running),
    /// In a task of its own.
    Elsewhere(Arc<OnceLock<StepError>>),
    /// The guest is gone, perhaps through this error.
    Ended(Option<StepError>),
}

/// A guest that has not come to its end.
struct Running {
    guest: Guest,
    environment: Arc<Environment>,
    /// Tells others that it is gone, if they were told that it is there.
    gone: Option<Gone>,
}

impl GuestBody {
    /// What lasts as long as the guest, if it has not come to its end, or there is more of the body to read.
    fn linger(&mut self, whole: bool) -> Option<Lingering> {
        if whole && !matches!(self.state, State::Running(..)) {
            return None;
        }
        let (lingering, of_guest) = Lingering::new(self.until);
        if let State::Running(running) = &mut self.state {
            running.gone = Some(of_guest);
        }
        Some(lingering)
    }

    /// Lets the guest go on, then takes what it has written.
    fn poll_guest(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StepError>>> {
        if self.finished {
            return Poll::Ready(None);
        }
        if let State::Running(running) = &mut self.state
            && let Poll::Ready(outcome) = running.guest.as_mut().poll(cx)
        {
            self.state = State::Ended(outcome.err());
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            // What became of the guest is on its way.
            Poll::Ready(None | Some(Err(_)))
                if matches!(self.state, State::Running(..))
                    && self.failed.load(Ordering::Acquire) =>
            {
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.finished = true;
                // A guest that dies takes its end of the body with it, which looks like the body's end.
                let error = match &mut self.state {
                    State::Ended(error) => error.take(),
                    State::Running(..) | State::Elsewhere(_) => None,
                };
                Poll::Ready(error.or_else(|| self.too_short()).map(Err))
            }
            Poll::Ready(Some(Err(_))) => {
                self.finished = true;
                Poll::Ready(Some(Err(self.cut_off())))
            }
            Poll::Ready(Some(Ok(frame))) => match self.count(&frame) {
                Ok(()) => Poll::Ready(Some(Ok(frame))),
                Err(error) => {
                    self.finished = true;
                    // Nobody reads what it would still write.
                    self.state = State::Ended(None);
                    Poll::Ready(Some(Err(error)))
                }
            },
        }
    }

    /// Whether the frame is within the limit, and within what the head says.
    fn count(&mut self, frame: &Frame<Bytes>) -> Result<(), StepError> {
        let Some(data) = frame.data_ref() else {
            // Nothing comes after trailers.
            return self.too_short().map_or(Ok(()), Err);
        };
        let size = data.len() as u64;
        self.left = self
            .left
            .checked_sub(size)
            .ok_or(Exceeded::Output(self.limit))?;
        if let Some(announced) = self.announced {
            self.missing = self.missing.checked_sub(size).ok_or_else(|| {
                let message = format!(
                    "the guest's response has a body of more than the {announced} bytes that its content-length announces"
                );
                StepError::new(ErrorKind::Failed, message)
            })?;
        }
        Ok(())
    }

    fn too_short(&self) -> Option<StepError> {
        let announced = self.announced.filter(|_| self.missing > 0)?;
        let message = format!(
            "the guest's response has a body of {} bytes where its content-length announces {announced}",
            announced - self.missing
        );
        Some(StepError::new(ErrorKind::Failed, message))
    }

    /// Why the body ends before its end.
    fn cut_off(&mut self) -> StepError {
        let error = match &mut self.state {
            State::Ended(error) => error.take(),
            State::Elsewhere(fate) => fate.get().cloned(),
            State::Running(..) => None,
        };
        error.unwrap_or_else(|| {
            StepError::new(
                ErrorKind::Failed,
                "the guest did not finish its response body",
            )
        })
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
            // Whoever reads it says whose response it was.
            frame.map(|frame| frame.map_err(Into::into))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.finished && self.ready.is_empty()
    }
}

impl Drop for GuestBody {
    /// A guest may go on when its response is complete, and when its caller has hung up: until its time is up. One whose time ran
    /// out while nobody read what it wrote is not told: it was not its fault.
    fn drop(&mut self) {
        if let State::Running(running) = std::mem::replace(&mut self.state, State::Ended(None))
            && Instant::now() < self.until
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                let outcome = running.guest.await;
                drop(running.gone);
                if let Err(error) = outcome {
                    running.environment.late.note(&error);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_nothing_that_its_status_forbids() {
        for (status, keeps_length) in [(103, false), (200, true), (204, false), (304, true)] {
            let response = Response::builder()
                .status(status)
                .header("content-length", "5")
                .header("te", "trailers")
                .header("trailer", "x")
                .body(())
                .unwrap();
            let (mut head, ()) = response.into_parts();
            strip(&mut head);
            let length = head.headers.contains_key("content-length");
            assert_eq!(length, keeps_length, "{status}");
            assert!(!head.headers.contains_key("te"), "{status}");
            assert!(head.headers.contains_key("trailer"), "{status}");
        }
    }
}
