use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{ApiError, ErrorCode, Expected};

/// The entity tag of a pipeline's revision.
pub(crate) fn of_revision(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// Reads `If-Match` and `If-None-Match` of a change to a pipeline.
pub(crate) fn expected(headers: &HeaderMap) -> Result<Expected, ApiError> {
    let matching = value(headers, header::IF_MATCH)?;
    let expected = match (matching, value(headers, header::IF_NONE_MATCH)?) {
        (None, None) => Some(Expected::Any),
        (Some("*"), None) => Some(Expected::Exists),
        (Some(tag), None) => Tag::read(tag).map(|tag| Expected::Revision(tag.revision())),
        (None, Some("*")) => Some(Expected::Absent),
        _ => None,
    };
    expected.ok_or_else(|| {
        ApiError::new(
            ErrorCode::BadRequest,
            "the precondition is not one of: one entity tag such as \"1\", with its quotes, or * in if-match, * in if-none-match",
        )
    })
}

/// One entity tag (RFC 9110, section 8.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag<'a> {
    is_weak: bool,
    opaque: &'a str,
}

impl<'a> Tag<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (is_weak, quoted) = match text.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, text),
        };
        let opaque = quoted.strip_prefix('"')?.strip_suffix('"')?;
        let is_opaque = |byte: u8| matches!(byte, 0x21 | 0x23..=0x7e);
        opaque
            .bytes()
            .all(is_opaque)
            .then_some(Self { is_weak, opaque })
    }

    /// The revision that this is the tag of. No pipeline has revision 0: a tag that this API never gave out matches nothing, nor
    /// does a weak one.
    fn revision(self) -> u64 {
        let number: u64 = self.opaque.parse().unwrap_or(0);
        let is_own = !self.is_weak && self.opaque == number.to_string();
        if is_own { number } else { 0 }
    }
}

/// Whether the caller of a GET already has what is tagged with `etag`. Weak tags are as good as strong ones here.
pub(crate) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
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
