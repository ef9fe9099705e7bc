use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A refusal, in one of the two shapes that Pinecone has.
pub(crate) struct Refusal {
    status: u16,
    body: Value,
}

impl Refusal {
    /// The data plane's: a gRPC code.
    pub(crate) fn data(code: u8, message: impl Into<String>) -> Self {
        let status = match code {
            5 => 404,
            8 => 429,
            _ => 400,
        };
        Self {
            status,
            body: json!({"code": code, "message": message.into(), "details": []}),
        }
    }

    /// The control plane's: a word.
    pub(crate) fn control(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            body: json!({"error": {"code": code, "message": message.into()}, "status": status}),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.body)).into_response()
    }
}
