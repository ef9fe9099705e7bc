use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use stepwell_core::ByteSize;
use tokio::time::{Instant, timeout_at};

use crate::uploads::Upload;
use crate::{ApiError, ErrorCode};

/// How long a sender may pause.
const PAUSE: Duration = Duration::from_secs(30);
/// How long a whole body may take: whoever sends slower than a modem keeps others from sending.
const WHOLE: Duration = Duration::from_secs(300);
/// Bytes that must have come for each second after the first pause.
const PER_SECOND: u64 = 8 << 10;
/// What is set aside for a body before any of it has come: what is announced is not believed.
const FIRST: u64 = 64 << 10;
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
    /// Reads a whole body.
    pub(crate) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
        self.read_as(headers, body, None).await
    }

    /// Reads a whole body into the room of an upload.
    pub(crate) async fn read_upload(
        &self,
        headers: &HeaderMap,
        body: Body,
        upload: &mut Upload<'_>,
    ) -> Result<Bytes, ApiError> {
        self.read_as(headers, body, Some(upload)).await
    }

    /// The sender's `Content-Length` saves work where it is honest, and is not believed.
    async fn read_as(
        &self,
        headers: &HeaderMap,
        mut body: Body,
        mut upload: Option<&mut Upload<'_>>,
    ) -> Result<Bytes, ApiError> {
        only_plain(headers)?;
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.limit) {
            return Err(self.too_large());
        }
        let first = announced.unwrap_or_default().min(FIRST);
        let mut bytes = BytesMut::with_capacity(usize::try_from(first).unwrap_or_default());
        let mut begun = Instant::now();
        loop {
            let next = next(&mut body, begun, bytes.len());
            let next = match &upload {
                None => next.await,
                Some(upload) => tokio::select! {
                    next = next => next,
                    refused = upload.gives_way() => Err(refused),
                },
            };
            let Some(data) = next? else {
                return Ok(bytes.freeze());
            };
            if (bytes.len() + data.len()) as u64 > self.limit {
                return Err(self.too_large());
            }
            if let Some(upload) = &mut upload {
                let full = Instant::now();
                upload.take(data.len() as u64).await?;
                // The sender is not to blame for the time in which nothing was read.
                begun += full.elapsed();
            }
            bytes.extend_from_slice(&data);
        }
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

/// Refuses a body that is not as it is meant: it would be taken for what it is not.
fn only_plain(headers: &HeaderMap) -> Result<(), ApiError> {
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    for encoding in encodings {
        let is_plain = |encoding: &str| {
            let mut encodings = encoding.split(',').map(str::trim);
            encodings.all(|one| one.is_empty() || one.eq_ignore_ascii_case("identity"))
        };
        if !encoding.to_str().is_ok_and(is_plain) {
            let shown = String::from_utf8_lossy(encoding.as_bytes());
            let shown: String = shown.chars().take(100).collect();
            return Err(ApiError::new(
                ErrorCode::UnsupportedEncoding,
                format!("the body has the content encoding '{shown}', and only identity is read"),
            )
            .with_hint("", "send it as it is, without content-encoding")
            .with_header(
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            ));
        }
    }
    Ok(())
}

/// The next part of a body of which so many bytes have come since it begun.
async fn next(body: &mut Body, begun: Instant, read: usize) -> Result<Option<Bytes>, ApiError> {
    let earned = Duration::from_secs(read as u64 / PER_SECOND);
    let ends = [
        (begun + WHOLE, Late::Whole),
        (begun + PAUSE + earned, Late::Slow),
    ];
    loop {
        let pause = (Instant::now() + PAUSE, Late::Pause);
        let (end, late) =
            ends.into_iter().fold(
                pause,
                |first, other| {
                    if other.0 < first.0 { other } else { first }
                },
            );
        let frame = timeout_at(end, body.frame())
            .await
            .map_err(|_| late.refuse())?;
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

/// What of a body has not come in time.
#[derive(Clone, Copy)]
enum Late {
    Pause,
    Slow,
    Whole,
}

impl Late {
    fn refuse(self) -> ApiError {
        let detail = match self {
            Self::Pause => format!("no part of the body came for {} s", PAUSE.as_secs()),
            Self::Slow => format!(
                "the body came slower than {} in a second",
                ByteSize(PER_SECOND)
            ),
            Self::Whole => format!("the body did not come within {} s", WHOLE.as_secs()),
        };
        ApiError::new(ErrorCode::RequestTimeout, detail)
    }
}

/// Reads and forgets what a refused request has left of its body, so that its sender gets to read the refusal: one that is
/// still sending when the connection closes sees a broken pipe instead. Where some of it stays unread, the connection cannot go on,
/// and the response says so.
pub(crate) async fn drain_refused(request: Request, next: Next) -> Response {
    let waits_for_leave = request.headers().contains_key(header::EXPECT);
    let ends_with_it = request.version() <= Version::HTTP_11;
    let left = Arc::new(Mutex::new(None));
    let request = request.map(|body| {
        Body::new(Lent {
            body,
            touched: false,
            ended: false,
            left: left.clone(),
        })
    });
    let mut response = next.run(request).await;
    let left = left.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(Left { body, touched }) = left else {
        return response;
    };
    let status = response.status();
    let is_refused = status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE;
    let is_read = is_refused && (touched || !waits_for_leave) && drain(body).await;
    if !is_read && ends_with_it {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// A body that is given back when it is dropped before its end.
struct Lent {
    body: Body,
    touched: bool,
    ended: bool,
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
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // A body of unknown length does not know by itself that it was read.
        self.ended |= matches!(frame, Poll::Ready(None));
        frame
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
        if !self.ended && !http_body::Body::is_end_stream(&self.body) {
            let left = Left {
                body: std::mem::take(&mut self.body),
                touched: self.touched,
            };
            *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
        }
    }
}

/// Reads the rest of a body; false: it had no end, in time and bytes.
async fn drain(mut body: Body) -> bool {
    let end = Instant::now() + DRAIN;
    let mut read = 0;
    loop {
        match timeout_at(end, body.frame()).await {
            Ok(None) => return true,
            Ok(Some(Ok(frame))) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
            Ok(Some(Err(_))) | Err(_) => return false,
        }
        if read > DRAIN_BYTES {
            return false;
        }
    }
}
