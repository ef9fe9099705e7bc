//! Requests to one Pinecone index: sent again as its own clients do, never past the call's deadline, and their failures
//! told without address or key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stepwell_core::Secret;

use super::retry::{Backoff, Budget, Budgets, MAX_RETRIES, is_retryable, retry_after};
use super::wire::{API_VERSION, ErrorReply};
use crate::client::VectorError;
use crate::config::{base_url, is_open_text};

/// Bytes of a reply: an answer of the largest size, spelt in JSON.
const MAX_REPLY: usize = 32 << 20;
const CONNECT_TIME: Duration = Duration::from_secs(3);

pub(crate) struct Transport {
    name: Arc<str>,
    client: Client,
    base: Url,
    api_key: Secret,
    budget: Arc<Budget>,
}

/// One attempt's failure.
enum Failure {
    /// No reply, or not all of it.
    Connection,
    /// A reply that says no.
    Status {
        status: u16,
        retry_after: Option<Duration>,
        message: Option<String>,
    },
    /// A reply that cannot be used; asking again would bring the same.
    Final(VectorError),
}

impl Transport {
    pub(crate) fn new(
        name: Arc<str>,
        host: &str,
        api_key: &Secret,
        budgets: &Budgets,
    ) -> Result<Self, String> {
        let base = base_url(host).map_err(|mistake| format!("its host {mistake}"))?;
        if is_open_text(&base) {
            tracing::warn!(binding = %name, "the key of this vector index travels unencrypted: its host is an http URL");
        }
        let mut key = HeaderValue::from_str(api_key.expose())
            .map_err(|_| "its api_key has characters that no key has".to_owned())?;
        key.set_sensitive(true);
        let headers = HeaderMap::from_iter([
            (HeaderName::from_static("api-key"), key),
            (
                HeaderName::from_static("x-pinecone-api-version"),
                HeaderValue::from_static(API_VERSION),
            ),
        ]);
        // A redirect would take the key elsewhere.
        let client = Client::builder()
            .user_agent(concat!("stepwell/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIME)
            .build()
            .map_err(|error| format!("its HTTP client cannot be made: {}", error.without_url()))?;
        let budget = budgets.of(&base.origin().ascii_serialization());
        Ok(Self {
            name,
            client,
            base,
            api_key: api_key.clone(),
            budget,
        })
    }

    /// Posts JSON; `None`: the namespace does not exist.
    pub(crate) async fn post<R: DeserializeOwned>(
        &self,
        deadline: Instant,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Option<R>, VectorError> {
        let body = serde_json::to_vec(body).map_err(|error| {
            VectorError::Internal(format!("a request cannot be written: {error}"))
        })?;
        self.post_bytes(deadline, path, body).await
    }

    /// Posts JSON that is written already.
    pub(crate) async fn post_bytes<R: DeserializeOwned>(
        &self,
        deadline: Instant,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Option<R>, VectorError> {
        self.send(deadline, Method::POST, path, &[], Some(body.into()))
            .await
    }

    /// Gets JSON; `None`: the namespace does not exist.
    pub(crate) async fn get<R: DeserializeOwned>(
        &self,
        deadline: Instant,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Option<R>, VectorError> {
        self.send(deadline, Method::GET, path, query, None).await
    }

    async fn send<R: DeserializeOwned>(
        &self,
        deadline: Instant,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<bytes::Bytes>,
    ) -> Result<Option<R>, VectorError> {
        let url = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        let mut backoff = Backoff::default();
        let mut attempt = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VectorError::DeadlineExceeded);
            }
            let mut request = self.client.request(method.clone(), &url).query(query);
            if let Some(body) = &body {
                request = request
                    .header("content-type", "application/json")
                    .body(body.clone());
            }
            let failure = match self.attempt(request.timeout(left)).await {
                Ok(reply) => {
                    self.budget.success();
                    return serde_json::from_slice(&reply).map(Some).map_err(|error| {
                        VectorError::Internal(format!(
                            "the service's answer cannot be read: {error}"
                        ))
                    });
                }
                Err(failure) => failure,
            };
            let (retryable, asked) = match &failure {
                Failure::Connection => (true, None),
                Failure::Status {
                    status,
                    retry_after,
                    ..
                } => (is_retryable(*status), *retry_after),
                Failure::Final(_) => (false, None),
            };
            if retryable {
                self.budget.failure();
                if attempt < MAX_RETRIES && self.budget.allows_retry() {
                    let pause = backoff.next(asked);
                    // A pause past the deadline helps nobody: the caller learns now what it could do later.
                    if Instant::now() + pause < deadline {
                        tokio::time::sleep(pause).await;
                        attempt += 1;
                        counter!("stepwell_vector_retries_total", "binding" => self.name.to_string())
                            .increment(1);
                        continue;
                    }
                }
            }
            return self.outcome(failure, deadline);
        }
    }

    async fn attempt(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, Failure> {
        let connection = |error: reqwest::Error| {
            let error = error.without_url();
            tracing::debug!(binding = %self.name, error = ?error, "request to the vector service failed");
            Failure::Connection
        };
        let response = request.send().await.map_err(connection)?;
        let status = response.status();
        let request_id = header(&response, "x-pinecone-request-id").unwrap_or_default();
        let asked = retry_after(header(&response, "retry-after").as_deref());
        let mut body = Vec::new();
        let mut response = response;
        while let Some(chunk) = response.chunk().await.map_err(connection)? {
            if body.len() + chunk.len() > MAX_REPLY {
                return Err(Failure::Final(VectorError::TooLarge(
                    "the service's answer is too large: ask for fewer vectors, or without values and metadata".into(),
                )));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(body);
        }
        let message = serde_json::from_slice::<ErrorReply>(&body)
            .ok()
            .and_then(ErrorReply::message);
        tracing::debug!(binding = %self.name, status = status.as_u16(), request_id, message, "the vector service refused a request");
        Err(Failure::Status {
            status: status.as_u16(),
            retry_after: asked,
            message,
        })
    }

    /// What a last failure means to the caller.
    fn outcome<R>(&self, failure: Failure, deadline: Instant) -> Result<Option<R>, VectorError> {
        Err(match failure {
            Failure::Final(error) => error,
            Failure::Connection if Instant::now() >= deadline => VectorError::DeadlineExceeded,
            Failure::Connection => VectorError::Unavailable("the service cannot be reached".into()),
            Failure::Status {
                status,
                retry_after,
                message,
            } => {
                let says = message.as_deref().and_then(|message| self.public(message));
                let text = |otherwise: &str| {
                    says.as_deref().map_or_else(
                        || otherwise.to_owned(),
                        |says| format!("{otherwise}: {says}"),
                    )
                };
                match status {
                    404 if message
                        .is_some_and(|it| it.to_ascii_lowercase().contains("namespace")) =>
                    {
                        return Ok(None);
                    }
                    400 | 422 => VectorError::InvalidInput(text("the service refused the call")),
                    401 | 403 => {
                        VectorError::Unavailable("the service refuses the host's key".into())
                    }
                    402 => VectorError::Unavailable("the service's quota is used up".into()),
                    404 => VectorError::NotFound("the service does not know the index".into()),
                    413 => {
                        VectorError::TooLarge(text("the service says that the call is too large"))
                    }
                    429 => VectorError::Overloaded { retry_after },
                    408 | 500 | 502 | 503 | 504 => {
                        VectorError::Unavailable(format!("the service answers {status}"))
                    }
                    _ => VectorError::Internal(format!("the service answers {status}")),
                }
            }
        })
    }

    /// What the service says, if it is safe to pass on.
    fn public(&self, message: &str) -> Option<String> {
        let host = self.base.host_str().unwrap_or_default();
        if message.contains(self.api_key.expose()) || message.contains(host) {
            return None;
        }
        let shown = message.chars().filter(|c| !c.is_control()).take(300);
        Some(shown.collect())
    }
}

fn header(response: &Response, name: &str) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    Some(value.chars().take(200).collect())
}
