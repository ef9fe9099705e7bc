//! SQLite stores five kinds of values; the declared type of a column says which of ours a stored one is.

use serde_json::value::RawValue;
use sqlx::sqlite::{SqliteArguments, SqliteRow, SqliteValueRef};
use sqlx::{Arguments as _, Decode, Row, Sqlite, TypeInfo as _, ValueRef as _};
use time::PrimitiveDateTime;
use time::macros::format_description;
use uuid::Uuid;

use crate::value::{check_numeric, parse_timestamp};
use crate::{SqlError, Value};

/// Binds every parameter.
pub(super) fn arguments(parameters: &[Value]) -> Result<SqliteArguments, SqlError> {
    let mut arguments = SqliteArguments::default();
    for parameter in parameters {
        let added = match parameter {
            Value::Null => arguments.add(None::<i64>),
            Value::Boolean(value) => arguments.add(i64::from(*value)),
            Value::S64(value) => arguments.add(*value),
            Value::F64(value) if value.is_nan() => {
                return Err(SqlError::invalid("22003", "SQLite has no NaN"));
            }
            Value::F64(value) => arguments.add(*value),
            Value::Bytes(bytes) => arguments.add(bytes.clone()),
            Value::Array(elements) => arguments.add(array_text(elements)?),
            Value::Other { .. } => return Err(no_other()),
            text => arguments.add(text.text_form()),
        };
        added.map_err(|error| SqlError::internal(error.to_string()))?;
    }
    Ok(arguments)
}

fn no_other() -> SqlError {
    SqlError::invalid("0A000", "SQLite takes no values of other types")
}

/// An array as the JSON that it is stored as.
fn array_text(elements: &[Value]) -> Result<String, SqlError> {
    let mut text = String::from("[");
    for (index, element) in elements.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        match element {
            Value::Null => text.push_str("null"),
            Value::F64(value) if !value.is_finite() => {
                return Err(SqlError::invalid(
                    "22003",
                    "SQLite has no NaN or infinity in arrays",
                ));
            }
            Value::F64(value) => text.push_str(&serde_json::json!(value).to_string()),
            Value::Boolean(_) | Value::S64(_) | Value::Json(_) => {
                text.push_str(&element.text_form().unwrap_or_default());
            }
            Value::Bytes(bytes) => {
                text.push_str(
                    &serde_json::Value::from(format!("\\x{}", hex::encode(bytes))).to_string(),
                );
            }
            Value::Array(_) | Value::Other { .. } => return Err(no_other()),
            Value::Text(_) | Value::Timestamp(_) | Value::Uuid(_) | Value::Numeric(_) => {
                let form = element.text_form().unwrap_or_default();
                text.push_str(&serde_json::Value::from(form).to_string());
            }
        }
    }
    text.push(']');
    Ok(text)
}

/// Reads one row, given the declared type of each column.
pub(super) fn read_row(
    row: &SqliteRow,
    declared: &[Option<Declared>],
) -> Result<Vec<Value>, SqlError> {
    if row.len() != declared.len() {
        return Err(table_changed());
    }
    declared
        .iter()
        .enumerate()
        .map(|(index, declared)| {
            let raw = row
                .try_get_raw(index)
                .map_err(|error| SqlError::internal(error.to_string()))?;
            let stored = stored(raw).map_err(|error| SqlError::internal(error.to_string()))?;
            Ok(match declared {
                Some(declared) => declared.read(stored),
                None => stored,
            })
        })
        .collect()
}

/// Another connection changed a table while the statement ran.
pub(super) fn table_changed() -> SqlError {
    SqlError::from_sqlstate("40001", "a table changed while the statement ran")
}

/// The value as SQLite has it.
fn stored(raw: SqliteValueRef<'_>) -> Result<Value, sqlx::error::BoxDynError> {
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind = raw.type_info().name().to_owned();
    Ok(match kind.as_str() {
        "INTEGER" => Value::S64(<i64 as Decode<Sqlite>>::decode(raw)?),
        "REAL" => Value::F64(<f64 as Decode<Sqlite>>::decode(raw)?),
        "TEXT" => {
            let bytes = <&[u8] as Decode<Sqlite>>::decode(raw)?.to_vec();
            // SQLite does not check that text is UTF-8.
            String::from_utf8(bytes)
                .map_or_else(|error| Value::Bytes(error.into_bytes()), Value::Text)
        }
        _ => Value::Bytes(<&[u8] as Decode<Sqlite>>::decode(raw)?.to_vec()),
    })
}

/// The word for how a value is stored.
pub(super) fn storage_class(value: &Value) -> &'static str {
    match value {
        Value::S64(_) => "INTEGER",
        Value::F64(_) => "REAL",
        Value::Bytes(_) => "BLOB",
        _ => "TEXT",
    }
}

/// A declared type that says more than how a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    meaning: Meaning,
    array: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Plain,
    Boolean,
    Float,
    Bytes,
    Json,
    Timestamp,
    Uuid,
    Numeric,
}

impl Declared {
    /// What the text of a declaration says; none when the stored value is all there is to know.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let upper = text.trim().to_ascii_uppercase();
        let (base, array) = match upper.strip_suffix("[]") {
            Some(base) => (base.trim(), true),
            None => (upper.as_str(), false),
        };
        let word = base.split(['(', ' ']).next().unwrap_or_default();
        let meaning = match word {
            "BOOL" | "BOOLEAN" => Meaning::Boolean,
            "REAL" | "FLOAT" | "DOUBLE" | "FLOAT8" | "FLOAT4" => Meaning::Float,
            "BLOB" | "BYTEA" => Meaning::Bytes,
            "JSON" | "JSONB" => Meaning::Json,
            "TIMESTAMP" | "TIMESTAMPTZ" | "DATETIME" => Meaning::Timestamp,
            "UUID" => Meaning::Uuid,
            "NUMERIC" | "DECIMAL" | "NUMERIC_TEXT" | "DECIMAL_TEXT" => Meaning::Numeric,
            _ => Meaning::Plain,
        };
        (array || meaning != Meaning::Plain).then_some(Self { meaning, array })
    }

    /// The value that a stored one means. One that does not fit its declaration, which SQLite allows, stays as it is.
    fn read(self, stored: Value) -> Value {
        match (&stored, self.array) {
            (Value::Text(text), true) => self.read_array(text).unwrap_or(stored),
            (_, true) => stored,
            (_, false) => self.meaning.read(stored),
        }
    }

    fn read_array(self, text: &str) -> Option<Value> {
        let elements: Vec<&RawValue> = serde_json::from_str(text).ok()?;
        elements
            .into_iter()
            .map(|element| self.meaning.read_element(element.get()))
            .collect::<Option<Vec<Value>>>()
            .map(Value::Array)
    }
}

impl Meaning {
    fn read(self, stored: Value) -> Value {
        match (self, &stored) {
            (Self::Boolean, Value::S64(0)) => Some(Value::Boolean(false)),
            (Self::Boolean, Value::S64(1)) => Some(Value::Boolean(true)),
            (Self::Json, Value::Text(text)) => serde_json::from_str::<&RawValue>(text)
                .ok()
                .map(|_| Value::Json(text.clone())),
            (Self::Json, Value::S64(_) | Value::F64(_)) => stored.text_form().map(Value::Json),
            (Self::Timestamp, Value::Text(text)) => timestamp(text),
            (Self::Uuid, Value::Text(text)) => Uuid::parse_str(text).ok().map(Value::Uuid),
            (Self::Uuid, Value::Bytes(bytes)) => Uuid::from_slice(bytes).ok().map(Value::Uuid),
            (Self::Numeric, Value::S64(_) | Value::F64(_) | Value::Text(_)) => stored
                .text_form()
                .filter(|text| check_numeric(text).is_ok())
                .map(Value::Numeric),
            _ => None,
        }
        .unwrap_or(stored)
    }

    fn read_element(self, json: &str) -> Option<Value> {
        if json == "null" {
            return Some(Value::Null);
        }
        if self == Self::Json {
            return Some(Value::Json(json.to_owned()));
        }
        Some(match serde_json::from_str(json).ok()? {
            serde_json::Value::Bool(value) => Value::Boolean(value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(number) if self != Self::Float => Value::S64(number),
                _ => Value::F64(number.as_f64()?),
            },
            serde_json::Value::String(text) => match (self, text.strip_prefix("\\x")) {
                (Self::Bytes, Some(digits)) => Value::Bytes(hex::decode(digits).ok()?),
                _ => self.read(Value::Text(text)),
            },
            _ => return None,
        })
    }
}

/// RFC 3339, or as SQLite's `CURRENT_TIMESTAMP` has it.
fn timestamp(text: &str) -> Option<Value> {
    let plain = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    parse_timestamp(text)
        .ok()
        .or_else(|| {
            PrimitiveDateTime::parse(text, plain)
                .ok()
                .map(PrimitiveDateTime::assume_utc)
        })
        .map(Value::Timestamp)
}
