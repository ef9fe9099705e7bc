use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{ApiError, ErrorCode, Expected};

/// The entity tag of a pipeline's revision.
pub(crate) fn of_revision(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// Reads `If-Match` and `If-None-Match` of a change to a pipeline.
pub(crate) fn expected(headers: &HeaderMap) -> Result<Expected, ApiError> {
    let matching = value(headers, header::IF_MATCH)?;
    match (matching, value(headers, header::IF_NONE_MATCH)?) {
        (None, None) => Ok(Expected::Any),
        (Some("*"), None) => Ok(Expected::Exists),
        // No pipeline has revision 0: a tag that this API never gave out matches nothing.
        (Some(tag), None) if !tag.contains(',') => {
            let number = tag.trim_matches('"').parse();
            Ok(Expected::Revision(number.unwrap_or(0)))
        }
        (None, Some("*")) => Ok(Expected::Absent),
        _ => Err(ApiError::new(
            ErrorCode::BadRequest,
            "the precondition is not one of: one entity tag or * in if-match, * in if-none-match",
        )),
    }
}

/// Whether the caller of a GET already has what is tagged with `etag`.
pub(crate) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == "*" || tag == etag)
}

/// The header that goes with a response.
pub(crate) fn header_value(etag: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(etag).map_err(ApiError::internal)
}

fn value(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(&name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value
            .to_str()
            .map(|text| Some(text.trim()))
            .map_err(|_| ApiError::new(ErrorCode::BadRequest, format!("{name} is not ASCII text"))),
        (Some(_), Some(_)) => Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("{name} is there more than once"),
        )),
    }
}
