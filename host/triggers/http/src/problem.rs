use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use serde::Serialize;
use stepwell_core::{ErrorKind, RunId, StepError};
use stepwell_pipeline::{Body, NotAdmitted};

use crate::auth::Refusal;
use crate::body;

/// Every reply has this header: the key into logs and traces.
pub const RUN_ID: HeaderName = HeaderName::from_static("stepwell-run-id");

/// Bytes of a plugin's words that callers are shown.
const MAX_DETAIL: usize = 4 << 10;

/// Why a request gets no result. This is all that callers learn, and the only place that decides statuses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("there is no route for this path")]
    NoRoute,
    #[error("the host has just started and does not know its routes yet")]
    RoutesUnknown,
    #[error("this path does not take this method")]
    WrongMethod { allow: String },
    #[error("{0}")]
    Refused(Refusal),
    #[error("the request's body is larger than {limit} bytes, which is the limit of this route")]
    TooLarge { limit: u64 },
    #[error("the request's body did not arrive in time")]
    TooSlow,
    #[error("the host is busy: it holds as much of requests' and responses' bodies as it can")]
    NoRoom,
    #[error("the request's body broke off")]
    BrokenBody,
    #[error("{0}")]
    Malformed(String),
    #[error("{0}")]
    Unsupported(&'static str),
    #[error("{0}")]
    NotAdmitted(#[from] NotAdmitted),
    #[error("{}", .0.public())]
    Run(#[from] StepError),
    /// With the reason, which is the log's.
    #[error("the run failed")]
    UnusableReply(String),
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::RoutesUnknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Refused(Refusal::Forbidden) => StatusCode::FORBIDDEN,
            Self::Refused(Refusal::Unavailable(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Refused(_) => StatusCode::UNAUTHORIZED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BrokenBody | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Self::NoRoom
            | Self::NotAdmitted(NotAdmitted::Busy { .. } | NotAdmitted::Quota { .. }) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::NotAdmitted(NotAdmitted::ShuttingDown) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Run(error) => match error.kind {
                ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
                ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
                ErrorKind::Failed | ErrorKind::Trap | ErrorKind::Limit => {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            },
            Self::UnusableReply(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoRoute => "not-found",
            Self::RoutesUnknown => "unavailable",
            Self::WrongMethod { .. } => "method-not-allowed",
            Self::Refused(Refusal::Forbidden) => "forbidden",
            Self::Refused(Refusal::Unavailable(_)) => "unavailable",
            Self::Refused(_) => "unauthorized",
            Self::TooLarge { .. } => "too-large",
            Self::TooSlow => "too-slow",
            Self::BrokenBody => "broken-body",
            Self::Malformed(_) => "malformed",
            Self::Unsupported(_) => "unsupported",
            Self::NoRoom | Self::NotAdmitted(NotAdmitted::Busy { .. }) => "busy",
            Self::NotAdmitted(NotAdmitted::Quota { .. }) => "quota",
            Self::NotAdmitted(NotAdmitted::ShuttingDown) => "shutting-down",
            // Which limit or trap it was is for the pipeline's owner.
            Self::Run(error) => match error.kind {
                ErrorKind::Invalid => "invalid",
                ErrorKind::Unavailable => "unavailable",
                ErrorKind::Timeout => "timeout",
                ErrorKind::Failed | ErrorKind::Trap | ErrorKind::Limit => "failed",
            },
            Self::UnusableReply(_) => "failed",
        }
    }

    pub(crate) fn into_response(self, run: RunId) -> Response<Body> {
        let status = self.status();
        let detail = self.to_string();
        let document = Document {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: detail
                .get(..detail.floor_char_boundary(MAX_DETAIL))
                .unwrap_or_default(),
            code: self.code(),
            run_id: run,
        };
        let bytes = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(body::full(Bytes::from(bytes)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(CONTENT_TYPE, json);
        match self {
            Self::WrongMethod { allow } => {
                if let Ok(allow) = HeaderValue::try_from(allow) {
                    headers.insert(ALLOW, allow);
                }
            }
            Self::Refused(refusal) => {
                if let Some(challenge) = refusal.challenge() {
                    headers.insert(WWW_AUTHENTICATE, challenge);
                }
            }
            Self::NoRoom | Self::RoutesUnknown => {
                headers.insert(RETRY_AFTER, HeaderValue::from(1));
            }
            Self::NotAdmitted(
                NotAdmitted::Busy { retry_after } | NotAdmitted::Quota { retry_after, .. },
            ) => {
                let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u64;
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            _ => {}
        }
        with_run_id(response, run)
    }
}

/// The response, with the run's id on it.
pub(crate) fn with_run_id(mut response: Response<Body>, run: RunId) -> Response<Body> {
    let mut buffer = [0; 36];
    if let Ok(id) = HeaderValue::from_str(run.encode(&mut buffer)) {
        response.headers_mut().insert(RUN_ID, id);
    }
    response
}

/// RFC 9457.
#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    run_id: RunId,
}
