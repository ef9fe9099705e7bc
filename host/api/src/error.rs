use std::collections::BTreeMap;
use std::fmt;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use stepwell_core::Problem;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoResponses, ToSchema};

use crate::model::{Mistake, ProblemDetails};

/// The `code` of a problem: what programs act on. Each has one status and one title.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ToSchema)]
#[schema(rename_all = "kebab-case")]
pub enum ErrorCode {
    BadRequest,
    Unauthorized,
    Forbidden,
    QuotaExceeded,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    VersionExists,
    InUse,
    Conflict,
    Stale,
    TooLarge,
    UnsupportedEncoding,
    NotWasm,
    CoreModule,
    Truncated,
    InvalidComponent,
    UnknownImport,
    UnknownWorld,
    CompileTimeout,
    CompileFailed,
    InvalidName,
    InvalidVersion,
    InvalidPipeline,
    PluginGone,
    Busy,
    Internal,
    Corrupt,
    Unsupported,
    Unavailable,
    Timeout,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 31] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::QuotaExceeded,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::VersionExists,
        Self::InUse,
        Self::Conflict,
        Self::Stale,
        Self::TooLarge,
        Self::UnsupportedEncoding,
        Self::NotWasm,
        Self::CoreModule,
        Self::Truncated,
        Self::InvalidComponent,
        Self::UnknownImport,
        Self::UnknownWorld,
        Self::CompileTimeout,
        Self::CompileFailed,
        Self::InvalidName,
        Self::InvalidVersion,
        Self::InvalidPipeline,
        Self::PluginGone,
        Self::Busy,
        Self::Internal,
        Self::Corrupt,
        Self::Unsupported,
        Self::Unavailable,
        Self::Timeout,
    ];

    /// The word in `code`, and the last part of `type`.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The status of a response with this code.
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    /// What every problem with this code has in common.
    pub fn title(self) -> &'static str {
        self.row().2
    }

    #[rustfmt::skip]
    fn row(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::BadRequest => ("bad-request", StatusCode::BAD_REQUEST, "the request cannot be read"),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED, "a valid token is needed"),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "the caller has no right to this"),
            Self::QuotaExceeded => ("quota-exceeded", StatusCode::FORBIDDEN, "a quota of the namespace is used up"),
            Self::NotFound => ("not-found", StatusCode::NOT_FOUND, "there is no such thing"),
            Self::MethodNotAllowed => ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "the method does not apply here"),
            Self::RequestTimeout => ("request-timeout", StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time"),
            Self::VersionExists => ("version-exists", StatusCode::CONFLICT, "the version exists with other bytes"),
            Self::InUse => ("in-use", StatusCode::CONFLICT, "the thing is in use"),
            Self::Conflict => ("conflict", StatusCode::CONFLICT, "another change came in between"),
            Self::Stale => ("stale", StatusCode::PRECONDITION_FAILED, "the precondition does not hold"),
            Self::TooLarge => ("too-large", StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"),
            Self::UnsupportedEncoding => ("unsupported-encoding", StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body's encoding is not known"),
            Self::NotWasm => ("not-wasm", StatusCode::UNPROCESSABLE_ENTITY, "the file is not WebAssembly"),
            Self::CoreModule => ("core-module", StatusCode::UNPROCESSABLE_ENTITY, "the file is a core module, not a component"),
            Self::Truncated => ("truncated", StatusCode::UNPROCESSABLE_ENTITY, "the file is cut off"),
            Self::InvalidComponent => ("invalid-component", StatusCode::UNPROCESSABLE_ENTITY, "the component is not valid"),
            Self::UnknownImport => ("unknown-import", StatusCode::UNPROCESSABLE_ENTITY, "the component imports what nobody provides"),
            Self::UnknownWorld => ("unknown-world", StatusCode::UNPROCESSABLE_ENTITY, "the component's world is not known"),
            Self::CompileTimeout => ("compile-timeout", StatusCode::UNPROCESSABLE_ENTITY, "the component takes too long to compile"),
            Self::CompileFailed => ("compile-failed", StatusCode::UNPROCESSABLE_ENTITY, "the component cannot be compiled"),
            Self::InvalidName => ("invalid-name", StatusCode::UNPROCESSABLE_ENTITY, "the name is not valid"),
            Self::InvalidVersion => ("invalid-version", StatusCode::UNPROCESSABLE_ENTITY, "the version is not valid"),
            Self::InvalidPipeline => ("invalid-pipeline", StatusCode::UNPROCESSABLE_ENTITY, "the pipeline document has mistakes"),
            Self::PluginGone => ("plugin-gone", StatusCode::CONFLICT, "a plugin version is gone"),
            Self::Busy => ("busy", StatusCode::SERVICE_UNAVAILABLE, "the host is busy"),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "the host failed"),
            Self::Corrupt => ("corrupt", StatusCode::INTERNAL_SERVER_ERROR, "stored data is corrupt"),
            Self::Unsupported => ("unsupported", StatusCode::NOT_IMPLEMENTED, "this host cannot do that"),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "something the host needs is unavailable"),
            Self::Timeout => ("timeout", StatusCode::GATEWAY_TIMEOUT, "the work took too long"),
        }
    }
}

/// Why a request was refused or failed: RFC 9457's problem details, and what is only for the log.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    detail: String,
    errors: Vec<Problem>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<String>,
}

impl ApiError {
    /// A problem; `detail` says what was attempted and with what, to a person (lower case, no full stop).
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            headers: Vec::new(),
            cause: None,
        }
    }

    /// `what` (`plugin a@1.0.0`) is not there.
    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no {what}"))
    }

    /// A failure of the host itself; the cause goes to the log alone.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::new(
            ErrorCode::Internal,
            "the host failed to answer; its log says why",
        )
        .caused_by(cause)
    }

    /// As much of this is under way as the host takes on; it is worth another try in a few seconds.
    pub fn busy(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::Busy, detail)
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("5"))
    }

    /// The same, with every mistake that was found.
    #[must_use]
    pub fn with_errors(mut self, errors: impl IntoIterator<Item = Problem>) -> Self {
        self.errors.extend(errors);
        self
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn with_hint(self, path: &str, hint: impl Into<String>) -> Self {
        let message = self.detail.clone();
        self.with_errors([Problem {
            path: path.to_owned(),
            line: None,
            column: None,
            message,
            hint: Some(hint.into()),
        }])
    }

    /// The same, with a header of the response.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The same, with a cause for the log that the caller does not see.
    #[must_use]
    pub fn caused_by(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// What programs act on.
    pub fn code(&self) -> ErrorCode {
        self.code
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (code, status) = (self.code.as_str(), self.code.status());
        if status.is_server_error() {
            let cause = self.cause.as_deref().unwrap_or("none given");
            tracing::error!(
                code,
                detail = self.detail,
                cause,
                "a management request failed"
            );
        }
        let problem = ProblemDetails {
            r#type: format!("urn:stepwell:problem:{code}"),
            title: self.code.title().to_owned(),
            status: status.as_u16(),
            detail: self.detail,
            code: code.to_owned(),
            errors: self.errors.into_iter().map(Mistake::from).collect(),
        };
        let mut response = (status, axum::Json(problem)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response.headers_mut().extend(self.headers);
        response
    }
}

/// What every operation may answer besides its own responses.
pub(crate) struct Failures;

impl IntoResponses for Failures {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("ProblemDetails")))
            .build();
        let response = ResponseBuilder::new()
            .description("A problem (RFC 9457); `code` says which")
            .content("application/problem+json", content)
            .build();
        BTreeMap::from([("default".to_owned(), RefOr::T(response))])
    }
}

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::*;

    #[test]
    fn the_description_and_the_replies_spell_codes_alike() {
        let schema = serde_json::to_value(ErrorCode::schema()).unwrap();
        let described: Vec<&str> = schema["enum"]
            .as_array()
            .unwrap()
            .iter()
            .map(|code| code.as_str().unwrap())
            .collect();
        let replied = ErrorCode::ALL.map(ErrorCode::as_str);
        assert_eq!(described, replied);
        for code in ErrorCode::ALL {
            assert!(code.status().as_u16() >= 400, "{code:?}");
        }
    }
}
