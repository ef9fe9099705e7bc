use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use stepwell_core::{ErrorKind, Gone, Lingering, StepError};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use crate::call::timeout;
use crate::epoch::Ticking;
use crate::function::{Body, Terms, answered, deliver_from};
use crate::keep::Discard;
use crate::room::Room;
use crate::service::Head;
use crate::store::StoreState;

/// A call on its way into an instance that answers several.
pub(crate) struct Ticket<S> {
    pub(crate) state: S,
    pub(crate) request: Request<Body>,
    pub(crate) head: oneshot::Sender<Head>,
}

/// A call's place in such an instance, until its response has been read.
pub(crate) struct Seat<S: StoreState> {
    room: Arc<Room<S>>,
    until: Instant,
    /// Whether `until` is the limit's doing, not the caller's.
    by_wall: bool,
    /// What it means for the instance if this is dropped now.
    unfinished: Option<Discard>,
    /// The end of what the guest does in this call's place.
    gone: Option<Gone>,
    _ticking: Ticking,
}

impl<S: StoreState> Seat<S> {
    pub(crate) fn new(room: Arc<Room<S>>, until: Instant, by_wall: bool, ticking: Ticking) -> Self {
        Self {
            room,
            until,
            by_wall,
            unfinished: Some(Discard::Cancelled),
            gone: None,
            _ticking: ticking,
        }
    }

    pub(crate) fn send(&self, ticket: Ticket<S>) {
        self.room.send(ticket);
    }

    /// Waits for the head of the response; the rest comes with its body.
    pub(crate) async fn answer(
        mut self,
        head: oneshot::Receiver<Head>,
        terms: Terms,
    ) -> Result<Response<Body>, StepError> {
        let response = match tokio::time::timeout_at(self.until.into(), head).await {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(code))) => {
                self.unfinished = None;
                return Err(answered(&code));
            }
            Ok(Err(_)) => return Err(self.failure().await),
            Err(_) => return Err(self.overdue()),
        };
        // Whoever hangs up from now on is seen by the guest when it writes.
        self.unfinished = None;
        // What a guest does when its last call is over, it does in that call's place.
        let (lingering, gone) = Lingering::new(self.until);
        self.gone = Some(gone);
        let (fate, until) = (Arc::new(OnceLock::new()), self.until);
        let of_body = fate.clone();
        let response = response.map(|body| {
            SeatedBody {
                body,
                fate: of_body,
                alarm: None,
                seat: Some(self),
            }
            .boxed_unsync()
        });
        let mut response = deliver_from(response, fate, terms, until).await?;
        response.extensions_mut().insert(lingering);
        Ok(response)
    }

    /// Why the instance has dropped the call.
    async fn failure(&self) -> StepError {
        let mut fate = self.room.fate.clone();
        let ended = fate.wait_for(Option::is_some);
        let error = match tokio::time::timeout_at(self.until.into(), ended).await {
            Ok(Ok(error)) => error.clone(),
            _ => None,
        };
        error.unwrap_or_else(|| {
            StepError::new(
                ErrorKind::Failed,
                "the guest returned without setting a response",
            )
        })
    }

    fn overdue(&mut self) -> StepError {
        self.unfinished = Some(Discard::Timeout);
        timeout(&self.room.limits, self.by_wall)
    }
}

impl<S: StoreState> Drop for Seat<S> {
    fn drop(&mut self) {
        self.room.leave(self.unfinished, self.gone.take());
    }
}

/// A response's body with the seat that its guest writes it from.
struct SeatedBody<S: StoreState> {
    body: WasiBody,
    /// Why it ends before its end.
    fate: Arc<OnceLock<StepError>>,
    /// Set when it has to be waited for.
    alarm: Option<Pin<Box<Sleep>>>,
    /// None when it has come to its end.
    seat: Option<Seat<S>>,
}

impl<S: StoreState> SeatedBody<S> {
    fn cut_off(
        &mut self,
        error: Option<StepError>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Some(error) = error {
            let _ = self.fate.set(error);
        }
        self.seat = None;
        Poll::Ready(Some(Err(HttpError::ConnectionTerminated)))
    }
}

impl<S: StoreState> http_body::Body for SeatedBody<S> {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        let Some(seat) = &mut this.seat else {
            return Poll::Ready(None);
        };
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if this.body.is_end_stream() {
                    this.seat = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => {
                let error = seat.room.fate.borrow().clone();
                this.cut_off(error)
            }
            Poll::Ready(None) => {
                // An instance that dies takes its end of the body with it, which looks like the body's end.
                let error = seat.room.fate.borrow().clone();
                match error {
                    Some(error) => this.cut_off(Some(error)),
                    None => {
                        this.seat = None;
                        Poll::Ready(None)
                    }
                }
            }
            Poll::Pending => {
                let until = seat.until.into();
                let alarm = this
                    .alarm
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                if alarm.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let error = seat.overdue();
                this.cut_off(Some(error))
            }
        }
    }
}
