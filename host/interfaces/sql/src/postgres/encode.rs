//! Our values to the binary form of the type that the server says a parameter has.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgTypeKind};
use sqlx::{Encode, Postgres, Type, TypeInfo as _};
use uuid::Uuid;

use crate::{SqlError, Value};

use super::decode::EPOCH;
use super::oid;

/// A parameter in the form that goes to the server.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) type_info: PgTypeInfo,
    pub(super) bytes: Option<Vec<u8>>,
}

impl Type<Postgres> for Encoded {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("text")
    }
}

impl Encode<'_, Postgres> for Encoded {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match &self.bytes {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                buffer.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.type_info.clone())
    }
}

/// How a value becomes a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// The binary form; none for NULL.
    Binary(Option<Vec<u8>>),
    /// A text that the server must read as the parameter's type first.
    Text(String),
}

/// The form of the parameter number `number`.
pub(super) fn encode(
    number: usize,
    value: &Value,
    type_info: &PgTypeInfo,
) -> Result<Form, SqlError> {
    if let PgTypeKind::Domain(base) = type_info.kind() {
        return encode(number, value, base);
    }
    let wrong = || {
        SqlError::invalid(
            "42804",
            format!(
                "parameter ${number} is {}, which a value of the kind {} cannot be",
                type_info.name(),
                value.kind()
            ),
        )
    };
    let out_of_range = || {
        SqlError::invalid(
            "22003",
            format!(
                "parameter ${number} is out of the range of {}",
                type_info.name()
            ),
        )
    };
    let is_enum = matches!(type_info.kind(), PgTypeKind::Enum(_));
    let oid = type_info.oid().map_or(0, |oid| oid.0);
    let bytes = match (value, oid) {
        (Value::Null, _) => return Ok(Form::Binary(None)),
        (Value::Boolean(value), oid::BOOL) => vec![u8::from(*value)],
        (Value::S64(value), oid::INT8) => value.to_be_bytes().to_vec(),
        (Value::S64(value), oid::INT4) => i32::try_from(*value)
            .map_err(|_| out_of_range())?
            .to_be_bytes()
            .to_vec(),
        (Value::S64(value), oid::INT2) => i16::try_from(*value)
            .map_err(|_| out_of_range())?
            .to_be_bytes()
            .to_vec(),
        (Value::S64(value), oid::OID) => u32::try_from(*value)
            .map_err(|_| out_of_range())?
            .to_be_bytes()
            .to_vec(),
        (Value::F64(value), oid::FLOAT8) => value.to_be_bytes().to_vec(),
        (Value::Bytes(bytes), oid::BYTEA) => bytes.clone(),
        (Value::Uuid(uuid), oid::UUID) => uuid.as_bytes().to_vec(),
        (Value::Text(text), oid::UUID) => Uuid::parse_str(text)
            .map_err(|_| SqlError::invalid("22P02", format!("parameter ${number} is not a UUID")))?
            .as_bytes()
            .to_vec(),
        (Value::Json(text) | Value::Text(text), oid::JSON) => text.clone().into_bytes(),
        (Value::Json(text) | Value::Text(text), oid::JSONB) => {
            let mut bytes = vec![1];
            bytes.extend_from_slice(text.as_bytes());
            bytes
        }
        (Value::Timestamp(time), oid::TIMESTAMP | oid::TIMESTAMPTZ) => {
            let micros = (*time - EPOCH).whole_microseconds();
            i64::try_from(micros)
                .map_err(|_| out_of_range())?
                .to_be_bytes()
                .to_vec()
        }
        (Value::Text(text), _) if is_enum => text.clone().into_bytes(),
        (Value::Other { type_name, data }, _) => {
            if type_name != type_info.name() {
                return Err(wrong());
            }
            data.clone()
        }
        (Value::Bytes(_), _) => return Err(wrong()),
        (Value::Array(elements), _) => {
            if !matches!(type_info.kind(), PgTypeKind::Array(_)) {
                return Err(wrong());
            }
            return Ok(Form::Text(array_text(elements).ok_or_else(wrong)?));
        }
        (_, oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::UNKNOWN) => {
            value.text_form().ok_or_else(wrong)?.into_bytes()
        }
        _ => return Ok(Form::Text(value.text_form().ok_or_else(wrong)?)),
    };
    Ok(Form::Binary(Some(bytes)))
}

/// An array as PostgreSQL reads it from text, every element quoted; none if an element has no text.
fn array_text(elements: &[Value]) -> Option<String> {
    let mut text = String::from("{");
    for (index, element) in elements.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        let form = match element {
            Value::Null => {
                text.push_str("NULL");
                continue;
            }
            Value::Bytes(bytes) => format!("\\x{}", hex::encode(bytes)),
            other => other.text_form()?,
        };
        text.push('"');
        for c in form.chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text.push('}');
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_elements_cannot_leave_their_quotes() {
        let elements = [
            Value::Text("a\",\"b\\".into()),
            Value::Null,
            Value::Text("NULL".into()),
            Value::Bytes(vec![0xff]),
        ];
        assert_eq!(
            array_text(&elements).unwrap(),
            r#"{"a\",\"b\\",NULL,"NULL","\\xff"}"#
        );
        assert!(array_text(&[Value::Array(Vec::new())]).is_none());
    }
}
