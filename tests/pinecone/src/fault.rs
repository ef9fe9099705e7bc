use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Something that goes wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is refused with this status.
    Status {
        /// The status.
        status: u16,
        /// The `Retry-After` header.
        retry_after: Option<String>,
    },
    /// It is answered properly, but late.
    Slow(Duration),
    /// It is answered with something that is no JSON.
    Garbage,
}

impl Fault {
    /// A status without `Retry-After`.
    pub fn status(status: u16) -> Self {
        Self::Status {
            status,
            retry_after: None,
        }
    }
}

pub(crate) fn refuse(status: u16, retry_after: Option<String>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body =
        json!({"code": 14, "message": "the stand-in was asked to refuse this", "details": []});
    let mut response = (status, axum::Json(body)).into_response();
    if let Some(value) = retry_after.and_then(|text| HeaderValue::from_str(&text).ok()) {
        response.headers_mut().insert("retry-after", value);
    }
    response
}
