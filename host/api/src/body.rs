use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use stepwell_core::ByteSize;
use tokio::time::{Instant, timeout_at};

use crate::{ApiError, ErrorCode};

/// How long a sender may pause.
const PAUSE: Duration = Duration::from_secs(30);
/// How long a whole body may take: whoever sends slower than a modem keeps others from sending.
const WHOLE: Duration = Duration::from_secs(300);
/// How long, and how much of, the body of a refused request is still read.
const DRAIN: Duration = Duration::from_secs(10);
const DRAIN_BYTES: u64 = 1 << 30;

/// What a body may be.
pub(crate) struct BodyLimit {
    /// `the component`.
    pub(crate) what: &'static str,
    /// Bytes.
    pub(crate) limit: u64,
    /// Where the limit can be changed, if it can.
    pub(crate) setting: Option<&'static str>,
}

impl BodyLimit {
    /// Reads a whole body. The sender's `Content-Length` saves work where it is honest, and is not believed.
    pub(crate) async fn read(
        &self,
        headers: &HeaderMap,
        mut body: Body,
    ) -> Result<Bytes, ApiError> {
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.limit) {
            return Err(self.too_large());
        }
        // What is announced is taken in one piece; it is memory only as far as it comes.
        let announced = announced.and_then(|length| usize::try_from(length).ok());
        let mut bytes = BytesMut::with_capacity(announced.unwrap_or_default());
        let end = Instant::now() + WHOLE;
        while let Some(data) = next(&mut body, end).await? {
            if (bytes.len() + data.len()) as u64 > self.limit {
                return Err(self.too_large());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    }

    fn too_large(&self) -> ApiError {
        let (what, limit) = (self.what, ByteSize(self.limit));
        match self.setting {
            Some(setting) => ApiError::new(
                ErrorCode::TooLarge,
                format!("{what} is larger than {limit}, the limit that {setting} sets"),
            )
            .with_hint(
                "",
                format!("send less, or raise {setting} in the host's configuration"),
            ),
            None => ApiError::new(
                ErrorCode::TooLarge,
                format!("{what} is larger than {limit}, the limit"),
            ),
        }
    }
}

async fn next(body: &mut Body, end: Instant) -> Result<Option<Bytes>, ApiError> {
    loop {
        let pause = Instant::now() + PAUSE;
        let frame = timeout_at(pause.min(end), body.frame())
            .await
            .map_err(|_| {
                let detail = if end < pause {
                    format!("the body did not come within {} s", WHOLE.as_secs())
                } else {
                    format!("no part of the body came for {} s", PAUSE.as_secs())
                };
                ApiError::new(ErrorCode::RequestTimeout, detail)
            })?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(
                    ApiError::new(ErrorCode::BadRequest, "the body broke off").caused_by(error)
                );
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Reads and forgets what a refused request has left of its body, so that its sender gets to read the refusal: one that is
/// still sending when the connection closes sees a broken pipe instead.
pub(crate) async fn drain_refused(request: Request, next: Next) -> Response {
    let waits_for_leave = request.headers().contains_key(header::EXPECT);
    let left = Arc::new(Mutex::new(None));
    let request = request.map(|body| {
        Body::new(Lent {
            body,
            touched: false,
            left: left.clone(),
        })
    });
    let response = next.run(request).await;
    if response.status().is_client_error() {
        let left = left.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Left { body, touched }) = left
            && (touched || !waits_for_leave)
        {
            drain(body).await;
        }
    }
    response
}

/// A body that is given back when it is dropped before its end.
struct Lent {
    body: Body,
    touched: bool,
    left: Arc<Mutex<Option<Left>>>,
}

struct Left {
    body: Body,
    touched: bool,
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.touched = true;
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !http_body::Body::is_end_stream(&self.body) {
            let left = Left {
                body: std::mem::take(&mut self.body),
                touched: self.touched,
            };
            *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
        }
    }
}

async fn drain(mut body: Body) {
    let end = Instant::now() + DRAIN;
    let mut read = 0;
    while let Ok(Some(Ok(frame))) = timeout_at(end, body.frame()).await {
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if read > DRAIN_BYTES {
            break;
        }
    }
}
