//! The interface's values to ours and back.

use crate::host::wit;
use crate::value::{check_json, check_numeric, parse_timestamp, parse_uuid, show_timestamp};
use crate::{Rows, SqlError, Value};

/// Checks and takes over a guest's parameters.
pub(crate) fn parameters(params: Vec<wit::Value>) -> Result<Vec<Value>, SqlError> {
    params.into_iter().map(Value::try_from).collect()
}

/// `value` and `element` differ in one case only, which WIT has no way to say.
macro_rules! both_ways {
    ($wit:ident, $array_in:expr, $array_out:expr, { $($more:ident)? }) => {
        impl TryFrom<wit::$wit> for Value {
            type Error = SqlError;

            fn try_from(value: wit::$wit) -> Result<Self, SqlError> {
                Ok(match value {
                    wit::$wit::Null => Self::Null,
                    wit::$wit::Boolean(value) => Self::Boolean(value),
                    wit::$wit::S64(value) => Self::S64(value),
                    wit::$wit::F64(value) => Self::F64(value),
                    wit::$wit::Text(text) => Self::Text(without_nul(text)?),
                    wit::$wit::Bytes(bytes) => Self::Bytes(bytes),
                    wit::$wit::Json(text) => {
                        check_json(&text)?;
                        Self::Json(without_nul(text)?)
                    }
                    wit::$wit::Timestamp(text) => Self::Timestamp(parse_timestamp(&text)?),
                    wit::$wit::Uuid(text) => Self::Uuid(parse_uuid(&text)?),
                    wit::$wit::Numeric(text) => {
                        check_numeric(&text)?;
                        Self::Numeric(text)
                    }
                    wit::$wit::Other(wit::OtherValue { type_name, data }) => {
                        Self::Other { type_name, data }
                    }
                    $(wit::$wit::$more(elements) => ($array_in)(elements)?,)?
                })
            }
        }

        impl From<Value> for wit::$wit {
            fn from(value: Value) -> Self {
                match value {
                    Value::Null => Self::Null,
                    Value::Boolean(value) => Self::Boolean(value),
                    Value::S64(value) => Self::S64(value),
                    Value::F64(value) => Self::F64(value),
                    Value::Text(text) => Self::Text(text),
                    Value::Bytes(bytes) => Self::Bytes(bytes),
                    Value::Json(text) => Self::Json(text),
                    // Backends make no timestamps that cannot be written.
                    Value::Timestamp(time) => {
                        show_timestamp(time).map_or(Self::Null, Self::Timestamp)
                    }
                    Value::Uuid(uuid) => Self::Uuid(uuid.to_string()),
                    Value::Numeric(text) => Self::Numeric(text),
                    Value::Other { type_name, data } => {
                        Self::Other(wit::OtherValue { type_name, data })
                    }
                    Value::Array(elements) => ($array_out)(elements),
                }
            }
        }
    };
}

both_ways!(
    Value,
    |elements: Vec<wit::Element>| {
        elements
            .into_iter()
            .map(Value::try_from)
            .collect::<Result<_, _>>()
            .map(Value::Array)
    },
    |elements: Vec<Value>| wit::Value::Array(elements.into_iter().map(Into::into).collect()),
    { Array }
);
both_ways!(
    Element,
    |_: ()| Ok(Value::Null),
    // Backends make no arrays of arrays.
    |_: Vec<Value>| wit::Element::Null,
    {}
);

impl From<Rows> for wit::Rows {
    fn from(rows: Rows) -> Self {
        Self {
            columns: rows
                .columns
                .into_iter()
                .map(|column| wit::Column {
                    name: column.name,
                    type_name: column.type_name,
                })
                .collect(),
            rows: rows
                .rows
                .into_iter()
                .map(|row| row.into_iter().map(Into::into).collect())
                .collect(),
        }
    }
}

/// PostgreSQL cannot store this character, and SQLite's functions stop at it.
fn without_nul(text: String) -> Result<String, SqlError> {
    if text.contains('\0') {
        return Err(SqlError::invalid(
            "22021",
            "a text parameter contains the character U+0000",
        ));
    }
    Ok(text)
}
