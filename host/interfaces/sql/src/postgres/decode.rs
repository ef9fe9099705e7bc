//! PostgreSQL's binary forms to our values.

use sqlx::postgres::{PgRow, PgTypeInfo, PgTypeKind};
use sqlx::{Row, TypeInfo as _, ValueRef as _};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::value::show_timestamp;
use crate::{SqlError, Value};

use super::oid;

/// 2000-01-01T00:00:00Z, where PostgreSQL's clock starts.
pub(super) const EPOCH: OffsetDateTime = time::macros::datetime!(2000-01-01 00:00 UTC);

/// Reads one row.
pub(super) fn read_row(row: &PgRow) -> Result<Vec<Value>, SqlError> {
    (0..row.len())
        .map(|index| {
            let raw = row
                .try_get_raw(index)
                .map_err(|error| SqlError::internal(error.to_string()))?;
            if raw.is_null() {
                return Ok(Value::Null);
            }
            let bytes = raw
                .as_bytes()
                .map_err(|error| SqlError::internal(error.to_string()))?;
            Ok(read(&raw.type_info(), bytes))
        })
        .collect()
}

/// The value of a binary form; what cannot be read, or has no case of its own, stays in that form.
fn read(type_info: &PgTypeInfo, bytes: &[u8]) -> Value {
    known(type_info, bytes).unwrap_or_else(|| Value::Other {
        type_name: type_info.name().to_owned(),
        data: bytes.to_vec(),
    })
}

fn known(type_info: &PgTypeInfo, bytes: &[u8]) -> Option<Value> {
    match type_info.kind() {
        PgTypeKind::Domain(base) => return known(base, bytes),
        PgTypeKind::Enum(_) => return text(bytes).map(Value::Text),
        PgTypeKind::Array(element) => return array(element, bytes),
        _ => {}
    }
    Some(match type_info.oid()?.0 {
        oid::BOOL => Value::Boolean(bytes == [1]),
        oid::INT2 => Value::S64(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        oid::INT4 => Value::S64(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        oid::INT8 => Value::S64(i64::from_be_bytes(bytes.try_into().ok()?)),
        oid::OID => Value::S64(u32::from_be_bytes(bytes.try_into().ok()?).into()),
        oid::FLOAT4 => Value::F64(f32::from_be_bytes(bytes.try_into().ok()?).into()),
        oid::FLOAT8 => Value::F64(f64::from_be_bytes(bytes.try_into().ok()?)),
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::CHAR | oid::UNKNOWN => {
            Value::Text(text(bytes)?)
        }
        oid::BYTEA => Value::Bytes(bytes.to_vec()),
        oid::JSON => Value::Json(text(bytes)?),
        // One byte of version comes first.
        oid::JSONB => Value::Json(text(bytes.strip_prefix(&[1])?)?),
        oid::UUID => Value::Uuid(Uuid::from_slice(bytes).ok()?),
        oid::TIMESTAMP | oid::TIMESTAMPTZ => {
            let micros = i64::from_be_bytes(bytes.try_into().ok()?);
            let time = EPOCH.checked_add(Duration::microseconds(micros))?;
            show_timestamp(time).map(|_| Value::Timestamp(time))?
        }
        oid::NUMERIC => Value::Numeric(numeric(bytes)?),
        oid::VOID => Value::Null,
        _ => return None,
    })
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

/// Reads big-endian numbers off a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn i32(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }
}

/// Dimensions, a flag for nulls, the elements' type, then for each dimension its length and lower bound, then the elements.
fn array(element: &PgTypeInfo, bytes: &[u8]) -> Option<Value> {
    let mut reader = Reader(bytes);
    let dimensions = reader.i32()?;
    let _has_nulls = reader.i32()?;
    let _element_oid = reader.i32()?;
    if dimensions == 0 {
        return Some(Value::Array(Vec::new()));
    }
    if dimensions != 1 {
        return None;
    }
    let length = usize::try_from(reader.i32()?).ok()?;
    let _lower_bound = reader.i32()?;
    let mut elements = Vec::with_capacity(length.min(bytes.len() / 4));
    for _ in 0..length {
        elements.push(match reader.i32()? {
            -1 => Value::Null,
            size => read(element, reader.take(usize::try_from(size).ok()?)?),
        });
    }
    Some(Value::Array(elements))
}

/// How many digits of ten thousand follow, the power of the first, the sign, the decimal places to show, then the digits.
fn numeric(bytes: &[u8]) -> Option<String> {
    let mut reader = Reader(bytes);
    let count = reader.u16()?;
    let weight = i16::from_be_bytes(reader.take(2)?.try_into().ok()?);
    let sign = reader.u16()?;
    let places = usize::from(reader.u16()?);
    let negative = match sign {
        0x0000 => false,
        0x4000 => true,
        0xC000 => return Some("NaN".to_owned()),
        0xD000 => return Some("Infinity".to_owned()),
        0xF000 => return Some("-Infinity".to_owned()),
        _ => return None,
    };
    let digits = (0..count)
        .map(|_| reader.u16())
        .collect::<Option<Vec<u16>>>()?;
    let digit = |power: i32| {
        usize::try_from(i32::from(weight) - power)
            .ok()
            .and_then(|index| digits.get(index))
            .copied()
            .unwrap_or(0)
    };
    let mut text = String::new();
    if negative {
        text.push('-');
    }
    let mut whole = String::new();
    for power in (0..=i32::from(weight).max(0)).rev() {
        whole.push_str(&format!("{:04}", digit(power)));
    }
    let trimmed = whole.trim_start_matches('0');
    text.push_str(if trimmed.is_empty() { "0" } else { trimmed });
    if places > 0 {
        let mut fraction = String::new();
        let mut power = -1;
        while fraction.len() < places {
            fraction.push_str(&format!("{:04}", digit(power)));
            power -= 1;
        }
        fraction.truncate(places);
        text.push('.');
        text.push_str(&fraction);
    }
    Some(text)
}
