use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};
use wasmtime_wasi_http::Error as HttpError;

use crate::connection::Connection;
use crate::error::EgressError;
use crate::flight::Flight;
use crate::policy::Target;
use crate::pool::Pool;

/// What one call may still receive.
pub(crate) struct Allowance {
    limit: u64,
    left: AtomicU64,
}

impl Allowance {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            left: AtomicU64::new(limit),
        }
    }

    fn take(&self, bytes: usize) -> Result<(), EgressError> {
        let bytes = bytes as u64;
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .map(drop)
            .map_err(|_| EgressError::TooLarge(self.limit))
    }
}

/// The body of a response, read no faster than the guest reads it. With its end the connection goes back to its pool; dropped
/// before, it takes its connection with it.
pub(crate) struct ResponseBody {
    incoming: Incoming,
    allowance: Arc<Allowance>,
    between: Duration,
    stall: Pin<Box<Sleep>>,
    held: Option<Held>,
}

/// What a response holds until its end.
pub(crate) struct Held {
    pub(crate) pool: Arc<Pool>,
    pub(crate) target: Target,
    pub(crate) connection: Connection,
    pub(crate) flight: Flight,
    /// Tells the deployer that the response broke off: many guests only learn that it ended.
    pub(crate) note: Box<dyn Fn(&EgressError) + Send>,
}

impl ResponseBody {
    pub(crate) fn new(
        incoming: Incoming,
        allowance: Arc<Allowance>,
        between: Duration,
        held: Held,
    ) -> Self {
        let mut body = Self {
            incoming,
            allowance,
            between,
            stall: Box::pin(sleep(between)),
            held: Some(held),
        };
        if body.incoming.is_end_stream() {
            body.finish();
        }
        body
    }

    fn finish(&mut self) {
        if let Some(held) = self.held.take() {
            held.pool.give_back(&held.target, held.connection);
            held.flight.finished();
        }
    }

    fn fail(&mut self, error: EgressError) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Some(held) = self.held.take() {
            (held.note)(&error);
            held.flight.cut_off(&error);
        }
        Poll::Ready(Some(Err(error.into())))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let size = frame.data_ref().map_or(0, Bytes::len);
                if let Err(error) = self.allowance.take(size) {
                    return self.fail(error);
                }
                let next = Instant::now() + self.between;
                self.stall.as_mut().reset(next);
                if self.incoming.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => self.fail(EgressError::of_hyper(&error)),
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Pending => match self.stall.as_mut().poll(cx) {
                Poll::Ready(()) => self.fail(EgressError::BodyTimeout),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
