use std::sync::Arc;

use http::{HeaderValue, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use stepwell_core::Origin;
use tokio::task::JoinHandle;
use wasmtime_wasi_http::WasiBody;

use crate::error::EgressError;

/// A connection that somebody uses. Dropping an HTTP/1.1 one closes it, whatever it was doing; dropping the last handle of an
/// HTTP/2 one too, and a request of it that nobody waits for is reset.
pub(crate) enum Connection {
    Http1(Http1),
    Http2(Http2),
}

pub(crate) struct Http1 {
    pub(crate) sender: http1::SendRequest<WasiBody>,
    pub(crate) _task: Task,
}

#[derive(Clone)]
pub(crate) struct Http2 {
    pub(crate) sender: http2::SendRequest<WasiBody>,
    pub(crate) task: Arc<Task>,
}

impl Http2 {
    /// Whether the pool's is the only handle.
    pub(crate) fn is_unused(&self) -> bool {
        Arc::strong_count(&self.task) == 1
    }
}

/// What drives a connection; it ends with this.
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What became of a request.
pub(crate) enum Sent {
    Answered(Response<Incoming>),
    /// Nothing of it has left.
    Unsent(Box<Request<WasiBody>>, hyper::Error),
    Failed(hyper::Error),
}

impl Connection {
    /// Writes where the request goes: in its `Host` header for HTTP/1.1, in its URL for HTTP/2. Whatever stood there before is
    /// gone.
    pub(crate) fn address(
        &self,
        request: &mut Request<WasiBody>,
        origin: &Origin,
    ) -> Result<(), EgressError> {
        let http2 = matches!(self, Self::Http2(_));
        address(request, origin, http2).map_err(|error| EgressError::Uri(error.to_string()))
    }

    pub(crate) async fn send(&mut self, request: Request<WasiBody>) -> Sent {
        let sent = match self {
            Self::Http1(connection) => connection.sender.try_send_request(request).await,
            Self::Http2(connection) => connection.sender.try_send_request(request).await,
        };
        sent.map_or_else(unsent, Sent::Answered)
    }
}

fn unsent(mut error: TrySendError<Request<WasiBody>>) -> Sent {
    match error.take_message() {
        Some(request) => Sent::Unsent(Box::new(request), error.into_error()),
        None => Sent::Failed(error.into_error()),
    }
}

fn address(
    request: &mut Request<WasiBody>,
    origin: &Origin,
    http2: bool,
) -> Result<(), http::Error> {
    let authority = origin.authority();
    let mut uri = Uri::builder();
    request.headers_mut().remove(header::HOST);
    if http2 {
        uri = uri.scheme(origin.scheme.as_str()).authority(authority);
    } else {
        let host = HeaderValue::from_str(&authority)?;
        request.headers_mut().insert(header::HOST, host);
    }
    let path = match request.uri().path_and_query().map(|path| path.as_str()) {
        None | Some("") => "/".to_owned(),
        Some(query) if query.starts_with('?') => format!("/{query}"),
        Some(path) => path.to_owned(),
    };
    *request.uri_mut() = uri.path_and_query(path).build()?;
    Ok(())
}
