use std::fmt;

/// A value of SQLite or PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// SQL's NULL.
    #[default]
    Null,
    /// A boolean; SQLite stores 0 or 1.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating point number.
    Float(f64),
    /// Text. As a parameter it also serves for every other type, as the database writes it.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// JSON text.
    Json(String),
    /// RFC 3339, in UTC.
    Timestamp(String),
    /// A UUID, in its usual form.
    Uuid(String),
    /// A decimal number of any precision.
    Numeric(String),
    /// A one-dimensional array; its elements are no arrays.
    Array(Vec<Self>),
    /// A value of another type, in PostgreSQL's binary form.
    Other {
        /// The type's name in the database.
        type_name: String,
        /// The binary form.
        data: Vec<u8>,
    },
}

macro_rules! from {
    ($($rust:ty => |$value:ident| $made:expr),* $(,)?) => {$(
        impl From<$rust> for Value {
            fn from($value: $rust) -> Self {
                $made
            }
        }
    )*};
}
from! {
    bool => |value| Self::Bool(value),
    i8 => |value| Self::Int(value.into()),
    i16 => |value| Self::Int(value.into()),
    i32 => |value| Self::Int(value.into()),
    i64 => |value| Self::Int(value),
    u8 => |value| Self::Int(value.into()),
    u16 => |value| Self::Int(value.into()),
    u32 => |value| Self::Int(value.into()),
    f32 => |value| Self::Float(value.into()),
    f64 => |value| Self::Float(value),
    &str => |value| Self::Text(value.to_owned()),
    &String => |value| Self::Text(value.clone()),
    String => |value| Self::Text(value),
    &[u8] => |value| Self::Bytes(value.to_vec()),
    Vec<u8> => |value| Self::Bytes(value),
    serde_json::Value => |value| Self::Json(value.to_string()),
    &serde_json::Value => |value| Self::Json(value.to_string()),
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A type that a column's value may be read as.
pub trait FromValue: Sized {
    /// The value as this type, if it fits.
    fn from_value(value: &Value) -> Option<Self>;
}

impl FromValue for Value {
    fn from_value(value: &Value) -> Option<Self> {
        Some(value.clone())
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl FromValue for bool {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(*value),
            Value::Int(0) => Some(false),
            Value::Int(1) => Some(true),
            _ => None,
        }
    }
}

macro_rules! integers {
    ($($rust:ty),*) => {$(
        impl FromValue for $rust {
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::Int(value) => Self::try_from(*value).ok(),
                    Value::Numeric(value) => value.parse().ok(),
                    _ => None,
                }
            }
        }
    )*};
}
integers!(i8, i16, i32, i64, u8, u16, u32, u64);

impl FromValue for f64 {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Float(value) => Some(*value),
            #[allow(clippy::cast_precision_loss, reason = "SQL does the same")]
            Value::Int(value) => Some(*value as Self),
            Value::Numeric(value) => value.parse().ok(),
            _ => None,
        }
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text)
            | Value::Json(text)
            | Value::Timestamp(text)
            | Value::Uuid(text)
            | Value::Numeric(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Bytes(bytes) => Some(bytes.clone()),
            _ => None,
        }
    }
}

impl FromValue for serde_json::Value {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Json(text) | Value::Text(text) => serde_json::from_str(text).ok(),
            _ => None,
        }
    }
}

/// A result is not what the step expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch(String);

impl Mismatch {
    pub(super) fn rows(count: usize) -> Self {
        Self(format!("expected one row, the query gave {count}"))
    }

    pub(super) fn column(name: &str) -> Self {
        Self(format!("the query gave no column '{name}'"))
    }

    pub(super) fn value<T>(column: &str, value: &Value) -> Self {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Text(_) => "text",
            Value::Bytes(_) => "bytes",
            Value::Json(_) => "JSON",
            Value::Timestamp(_) => "a timestamp",
            Value::Uuid(_) => "a UUID",
            Value::Numeric(_) => "a decimal",
            Value::Array(_) => "an array",
            Value::Other { type_name, .. } => type_name,
        };
        Self(format!(
            "column '{column}' is {kind}, which does not fit {}",
            std::any::type_name::<T>()
        ))
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Rows, params};

    #[test]
    fn parameters_and_columns_convert_both_ways() {
        let row = params![
            1u8,
            "a",
            None::<i64>,
            true,
            2.5,
            vec![1u8],
            serde_json::json!([1])
        ];
        let rows = Rows::new(&["i", "t", "n", "b", "f", "x", "j"], vec![row]);
        let row = rows.one().unwrap();
        assert_eq!(row.get::<i64>("i").unwrap(), 1);
        assert_eq!(row.get::<f64>("i").unwrap(), 1.0);
        assert_eq!(row.get::<String>("t").unwrap(), "a");
        assert_eq!(row.get::<Option<i64>>("n").unwrap(), None);
        assert!(row.get::<bool>("b").unwrap());
        assert_eq!(row.get::<Vec<u8>>("x").unwrap(), [1]);
        assert_eq!(
            row.get::<serde_json::Value>("j").unwrap(),
            serde_json::json!([1])
        );
    }

    #[test]
    fn what_does_not_fit_says_so() {
        let rows = Rows::new(&["n"], vec![vec![Value::Null], vec![Value::Int(300)]]);
        assert!(rows.one().unwrap_err().to_string().contains("gave 2"));
        assert!(
            Rows::default()
                .one()
                .unwrap_err()
                .to_string()
                .contains("gave 0")
        );
        let first = rows.first().unwrap();
        assert!(
            first
                .get::<i64>("n")
                .unwrap_err()
                .to_string()
                .contains("is null")
        );
        assert!(
            first
                .get::<i64>("m")
                .unwrap_err()
                .to_string()
                .contains("no column 'm'")
        );
        assert!(rows.iter().last().unwrap().get::<u8>("n").is_err());
    }
}
