//! The management API as the client commands use it.

use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::cli::ClientArgs;
use crate::input;

/// Speaks to one host.
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    /// As it was given; none: `default`.
    namespace: Option<String>,
    token: Option<String>,
}

/// A command has failed; the variant decides the exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The host refused, or the request failed there: exit code 1.
    #[error("{}", describe(.0))]
    Refused(Value),
    /// Something on this side failed: exit code 1.
    #[error("{0}")]
    Local(String),
    /// The command was used wrongly: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// No host answers: exit code 3.
    #[error(
        "no host answers at {url}: {reason}; is it running? start it with 'stepwell serve', or name another with --url"
    )]
    Unreachable { url: String, reason: String },
}

impl Failure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Local(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
        }
    }

    /// The failure as problem+json.
    pub(crate) fn to_json(&self) -> Value {
        let (title, code) = match self {
            Self::Refused(problem) => return problem.clone(),
            Self::Local(_) => ("Failed", "failed"),
            Self::Usage(_) => ("Wrong usage", "usage"),
            Self::Unreachable { .. } => ("Host not reachable", "unreachable"),
        };
        serde_json::json!({
            "type": format!("urn:stepwell:problem:{code}"),
            "title": title,
            "detail": self.to_string(),
            "code": code,
        })
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Local(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Local(format!("{error:#}"))
    }
}

/// A problem+json in words: its detail, then each of its errors.
fn describe(problem: &Value) -> String {
    let text = |key: &str| problem.get(key).and_then(Value::as_str);
    let mut message = text("detail")
        .or_else(|| text("title"))
        .unwrap_or("the host refused")
        .to_owned();
    if let Some(run) = text("run_id") {
        message.push_str(&format!(
            "\n  run {run}: 'stepwell logs' shows what happened"
        ));
    }
    for error in problem
        .get("errors")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if let Ok(error) = serde_json::from_value::<stepwell_core::Problem>(error.clone()) {
            message.push_str(&format!("\n  {error}"));
        }
    }
    message
}

impl Client {
    pub(crate) fn new(args: &ClientArgs) -> Result<Self, Failure> {
        let base = args.url.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            return Err(Failure::Usage(format!(
                "--url '{base}' is not a URL: write http://HOST:PORT"
            )));
        }
        sendable("--token", args.token.as_deref())?;
        let mut http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .no_proxy();
        if let Some(file) = &args.ca {
            http = http.tls_certs_only(authorities(file)?);
        }
        let http = http
            .build()
            .map_err(|error| Failure::Local(error.to_string()))?;
        Ok(Self {
            http,
            base,
            namespace: args.namespace.clone(),
            token: args.token.clone(),
        })
    }

    /// A request for something in the namespace.
    pub(crate) fn scoped(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(
            method,
            &format!(
                "/api/v1/namespaces/{}/{path}",
                self.namespace().unwrap_or("default")
            ),
        )
    }

    /// The namespace that was asked for by name.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// A request for anything else.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request; an answer that is no success becomes a [`Failure`].
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request
            .send()
            .await
            .map_err(|error| self.transport(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        Err(Failure::Refused(problem(status, &body)))
    }

    /// Sends a request and reads a JSON answer (`null` when there is none).
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let response = self.send(request).await?;
        let body = response
            .bytes()
            .await
            .map_err(|error| self.transport(&error))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .map_err(|error| Failure::Local(format!("the host's answer is not JSON: {error}")))
    }

    /// Every item of a list of the namespace, page by page.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        self.every(|| self.scoped(Method::GET, path)).await
    }

    /// Every item of the list that these requests ask for, page by page.
    pub(crate) async fn every(
        &self,
        ask: impl Fn() -> RequestBuilder,
    ) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut request = ask().query(&[("limit", "200")]);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let page = self.json(request).await?;
            items.extend(
                page.get("items")
                    .and_then(Value::as_array)
                    .cloned()
                    .unwrap_or_default(),
            );
            cursor = page
                .get("next_cursor")
                .and_then(Value::as_str)
                .map(str::to_owned);
            if cursor.is_none() {
                return Ok(items);
            }
        }
    }

    pub(crate) fn transport(&self, error: &reqwest::Error) -> Failure {
        // The innermost cause says it best: "connection refused".
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        if error.is_builder() {
            return Failure::Usage(format!("--url '{}' is not a URL: {cause}", self.base));
        }
        if error.is_connect() || error.is_timeout() {
            let mut reason = cause.to_string();
            if reason.contains("certificate") {
                reason.push_str(" (--ca names the authority to trust)");
            }
            return Failure::Unreachable {
                url: self.base.clone(),
                reason,
            };
        }
        Failure::Local(format!("the connection to {} broke: {error}", self.base))
    }
}

/// Refuses an option's value that no header can carry.
pub(crate) fn sendable(option: &str, value: Option<&str>) -> Result<(), Failure> {
    let is_control = |c: char| c.is_control() && c != '\t';
    match value {
        Some(value) if value.chars().any(is_control) => Err(Failure::Usage(format!(
            "{option} has a line break or another control character: write it on one line"
        ))),
        _ => Ok(()),
    }
}

/// The certificates of a file.
fn authorities(file: &Path) -> Result<Vec<Certificate>, Failure> {
    let unusable =
        |error: &dyn std::fmt::Display| Failure::Usage(format!("--ca {}: {error}", file.display()));
    let text = input::read(file, input::MOST_TEXT).map_err(|error| unusable(&error))?;
    let found = Certificate::from_pem_bundle(&text).map_err(|error| unusable(&error))?;
    if found.is_empty() {
        return Err(unusable(&"there is no certificate in it"));
    }
    Ok(found)
}

/// The problem+json of an answer, made up from the status where there is none.
fn problem(status: StatusCode, body: &[u8]) -> Value {
    match serde_json::from_slice::<Value>(body) {
        Ok(value @ Value::Object(_)) => value,
        _ => serde_json::json!({
            "type": "about:blank",
            "title": status.canonical_reason().unwrap_or("Error"),
            "status": status.as_u16(),
            "detail": format!("the host answered {status}: {}", String::from_utf8_lossy(body).chars().take(300).collect::<String>()),
        }),
    }
}
