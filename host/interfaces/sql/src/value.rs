use serde::de::IgnoredAny;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

use crate::SqlError;

/// A value of either database; what stands behind the cases is in `wit/sql/database.wit`.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// SQL's NULL.
    Null,
    /// True or false.
    Boolean(bool),
    /// An integer.
    S64(i64),
    /// A floating-point number.
    F64(f64),
    /// Text, without U+0000.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A JSON text.
    Json(String),
    /// A point in time, in UTC.
    Timestamp(OffsetDateTime),
    /// A UUID.
    Uuid(Uuid),
    /// A decimal number.
    Numeric(String),
    /// A one-dimensional array; none of its elements is an array.
    Array(Vec<Value>),
    /// A value of another type in PostgreSQL's binary form.
    Other {
        /// The type's name.
        type_name: String,
        /// The binary form.
        data: Vec<u8>,
    },
}

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The name.
    pub name: String,
    /// The type's name in the database.
    pub type_name: String,
}

/// The result of a query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows; each has a value for each column.
    pub rows: Vec<Vec<Value>>,
}

impl Value {
    /// The bytes that this value counts for against a size bound.
    pub fn size(&self) -> usize {
        match self {
            Self::Null | Self::Boolean(_) => 1,
            Self::S64(_) | Self::F64(_) => 8,
            Self::Timestamp(_) | Self::Uuid(_) => 16,
            Self::Text(text) | Self::Json(text) | Self::Numeric(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Other { type_name, data } => type_name.len() + data.len(),
            Self::Array(elements) => elements.iter().map(|element| 8 + element.size()).sum(),
        }
    }

    /// What kind of value this is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean(_) => "boolean",
            Self::S64(_) => "s64",
            Self::F64(_) => "f64",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Json(_) => "json",
            Self::Timestamp(_) => "timestamp",
            Self::Uuid(_) => "uuid",
            Self::Numeric(_) => "numeric",
            Self::Array(_) => "array",
            Self::Other { .. } => "other",
        }
    }

    /// The value as both databases read it from text; none for null, bytes, arrays and other types.
    pub(crate) fn text_form(&self) -> Option<String> {
        match self {
            Self::Boolean(value) => Some(value.to_string()),
            Self::S64(value) => Some(value.to_string()),
            Self::F64(value) if value.is_infinite() => Some(
                if *value > 0.0 {
                    "Infinity"
                } else {
                    "-Infinity"
                }
                .to_owned(),
            ),
            Self::F64(value) => Some(value.to_string()),
            Self::Text(text) | Self::Json(text) | Self::Numeric(text) => Some(text.clone()),
            Self::Timestamp(time) => show_timestamp(*time),
            Self::Uuid(uuid) => Some(uuid.to_string()),
            Self::Null | Self::Bytes(_) | Self::Array(_) | Self::Other { .. } => None,
        }
    }
}

/// Reads an RFC 3339 timestamp, to the microsecond.
pub(crate) fn parse_timestamp(text: &str) -> Result<OffsetDateTime, SqlError> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        // A time near the first or last year may leave them in UTC.
        .and_then(|time| time.checked_to_offset(UtcOffset::UTC))
        .and_then(|time| time.replace_microsecond(time.microsecond()).ok())
        .ok_or_else(|| {
            SqlError::invalid(
                "22007",
                format!("'{}' is not an RFC 3339 timestamp", shorten(text)),
            )
        })
}

/// Writes a timestamp as RFC 3339; none for years that it cannot write.
pub(crate) fn show_timestamp(time: OffsetDateTime) -> Option<String> {
    time.format(&Rfc3339).ok()
}

/// Checks a text that says it is a UUID.
pub(crate) fn parse_uuid(text: &str) -> Result<Uuid, SqlError> {
    Uuid::parse_str(text)
        .map_err(|_| SqlError::invalid("22P02", format!("'{}' is not a UUID", shorten(text))))
}

/// Checks a text that says it is JSON.
pub(crate) fn check_json(text: &str) -> Result<(), SqlError> {
    serde_json::from_str::<IgnoredAny>(text)
        .map(|_| ())
        .map_err(|error| SqlError::invalid("22P02", format!("a json value is not JSON: {error}")))
}

/// Checks a text that says it is a decimal number.
pub(crate) fn check_numeric(text: &str) -> Result<(), SqlError> {
    if matches!(text, "NaN" | "Infinity" | "-Infinity") || is_decimal(text) {
        Ok(())
    } else {
        Err(SqlError::invalid(
            "22P02",
            format!("'{}' is not a decimal number", shorten(text)),
        ))
    }
}

fn is_decimal(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let unsigned = |part: &str| part.strip_prefix(['+', '-']).unwrap_or(part).to_owned();
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let mantissa = unsigned(mantissa);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((&mantissa, "0"));
    digits(whole) && digits(fraction) && digits(&unsigned(exponent))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_numbers() {
        for good in ["0", "-12.340", "+1", "1e5", "1.5E-3", "NaN", "-Infinity"] {
            check_numeric(good).unwrap();
        }
        for bad in [
            "", "-", ".", "1.", ".5", "1e", "0x10", "1 ", "１", "--1", "1.2.3", "inf",
        ] {
            assert!(check_numeric(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn timestamps_are_utc_to_the_microsecond() {
        let time = parse_timestamp("2026-03-01T12:00:00.123456789+02:00").unwrap();
        assert_eq!(show_timestamp(time).unwrap(), "2026-03-01T10:00:00.123456Z");
        for bad in [
            "",
            "2026-03-01",
            "2026-02-30T00:00:00Z",
            "9999-12-31T23:59:59-01:00",
        ] {
            assert!(parse_timestamp(bad).is_err(), "{bad}");
        }
    }
}
