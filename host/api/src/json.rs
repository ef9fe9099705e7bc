use axum::extract::Request;
use serde::de::DeserializeOwned;

use crate::body::BodyLimit;
use crate::{ApiError, ErrorCode};

impl BodyLimit {
    /// Reads a whole JSON body; none at all is an object without members. `form` shows what it looks like.
    pub(crate) async fn read_json<T: DeserializeOwned>(
        &self,
        request: Request,
        form: &str,
    ) -> Result<T, ApiError> {
        let (head, body) = request.into_parts();
        let bytes = self.read(&head.headers, body).await?;
        let text = match bytes.trim_ascii() {
            b"" => b"{}",
            text => text,
        };
        let refuse = |why: String| {
            ApiError::new(
                ErrorCode::BadRequest,
                format!("the body is not of the form {form}: {why}"),
            )
        };
        // A list would be read as the members in their order, which nobody means.
        if !text.starts_with(b"{") {
            return Err(refuse("it is no object".to_owned()));
        }
        serde_json::from_slice(text).map_err(|error| refuse(error.to_string()))
    }
}
