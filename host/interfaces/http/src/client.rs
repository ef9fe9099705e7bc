use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use stepwell_core::{Origin, Scheme};
use tokio::time::{Instant, timeout};

use crate::dial::Dialer;
use crate::error::EgressError;
use crate::policy::{Access, Policy, Target};

/// Fetches small documents for the host itself from URLs that deployers wrote: only over https, or in the clear from networks that
/// the operator opened; never from any other private address; redirects are not followed.
pub struct GuardedClient {
    dialer: Dialer,
    policy: Arc<Policy>,
}

/// A document that was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It could not be asked for.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// The answer is not the document.
    #[error("the answer's status is {0}, not 200")]
    Status(StatusCode),
    /// It is too large.
    #[error("the document is larger than {0} bytes")]
    TooLarge(usize),
    /// It did not come in time.
    #[error("the document did not come in time")]
    Timeout,
}

impl GuardedClient {
    pub(crate) fn new(dialer: Dialer, policy: Arc<Policy>) -> Self {
        Self { dialer, policy }
    }

    /// Fetches a document of at most `max_bytes` within `time`.
    ///
    /// # Errors
    /// [`FetchError`]; it names no address.
    pub async fn get(
        &self,
        url: &str,
        max_bytes: usize,
        time: Duration,
    ) -> Result<Bytes, FetchError> {
        let by = Instant::now() + time;
        timeout(time, self.fetch(url, max_bytes, by))
            .await
            .map_err(|_| FetchError::Timeout)?
    }

    async fn fetch(&self, url: &str, max_bytes: usize, by: Instant) -> Result<Bytes, FetchError> {
        let (target, path) = read_url(url)?;
        self.policy.check_host(&target.origin.host)?;
        let dialed = self.dialer.dial(&target, by).await?;
        let of_hyper = |error: hyper::Error| EgressError::of_hyper(&error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(dialed.io))
            .await
            .map_err(of_hyper)?;
        let request = Request::get(path)
            .header(header::HOST, target.origin.authority())
            .header(header::CONNECTION, "close")
            .header(header::ACCEPT, "application/json, */*;q=0.1")
            .header(
                header::USER_AGENT,
                concat!("stepwell/", env!("CARGO_PKG_VERSION")),
            )
            .body(Empty::<Bytes>::new())
            .map_err(|error| EgressError::Uri(error.to_string()))?;
        let read = async {
            let response = sender.send_request(request).await.map_err(of_hyper)?;
            if response.status() != StatusCode::OK {
                return Err(FetchError::Status(response.status()));
            }
            let mut body = response.into_body();
            let mut document = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let data = frame.map_err(of_hyper)?.into_data().unwrap_or_default();
                if document.len() + data.len() > max_bytes {
                    return Err(FetchError::TooLarge(max_bytes));
                }
                document.extend_from_slice(&data);
            }
            Ok(document.freeze())
        };
        tokio::pin!(read, connection);
        // The document may be complete while the connection still closes, and the other way round.
        tokio::select! {
            biased;
            document = &mut read => document,
            _ = &mut connection => read.await,
        }
    }
}

fn read_url(url: &str) -> Result<(Target, String), EgressError> {
    let refused = |reason: &str| EgressError::Uri(reason.to_owned());
    let uri: Uri = url.parse().map_err(|_| refused("it is no URL"))?;
    let scheme = uri.scheme_str().and_then(Scheme::parse);
    let scheme = scheme.ok_or_else(|| refused("it begins neither with https:// nor http://"))?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let origin =
        Origin::new(scheme, authority).map_err(|error| EgressError::Uri(error.to_string()))?;
    let access = match scheme {
        Scheme::Https => Access::Opened,
        Scheme::Http => Access::OnlyOpened,
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Ok((Target { origin, access }, path.to_owned()))
}
