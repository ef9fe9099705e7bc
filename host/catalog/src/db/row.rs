use std::str::FromStr;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use crate::CatalogError;

/// A row of either database.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    pub(crate) fn int(&self, column: usize) -> Result<i64, CatalogError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        })
    }

    pub(crate) fn unsigned(&self, column: usize) -> Result<u64, CatalogError> {
        unsigned(self.int(column)?)
    }

    pub(crate) fn text(&self, column: usize) -> Result<String, CatalogError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        })
    }

    pub(crate) fn optional_unsigned(&self, column: usize) -> Result<Option<u64>, CatalogError> {
        let number: Option<i64> = match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        };
        number.map(unsigned).transpose()
    }

    pub(crate) fn optional_time(
        &self,
        column: usize,
    ) -> Result<Option<OffsetDateTime>, CatalogError> {
        let millis: Option<i64> = match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        };
        millis.map(time_of).transpose()
    }

    pub(crate) fn optional_parsed<T>(&self, column: usize) -> Result<Option<T>, CatalogError>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let text: Option<String> = match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        };
        text.map(|text| {
            text.parse()
                .map_err(|error: T::Err| CatalogError::Corrupt(error.to_string()))
        })
        .transpose()
    }

    pub(crate) fn bytes(&self, column: usize) -> Result<Vec<u8>, CatalogError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        })
    }

    pub(crate) fn parsed<T>(&self, column: usize) -> Result<T, CatalogError>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        self.text(column)?
            .parse()
            .map_err(|error: T::Err| CatalogError::Corrupt(error.to_string()))
    }

    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        column: usize,
    ) -> Result<T, CatalogError> {
        serde_json::from_str(&self.text(column)?)
            .map_err(|error| CatalogError::Corrupt(error.to_string()))
    }

    pub(crate) fn time(&self, column: usize) -> Result<OffsetDateTime, CatalogError> {
        time_of(self.int(column)?)
    }
}

fn unsigned(number: i64) -> Result<u64, CatalogError> {
    u64::try_from(number)
        .map_err(|_| CatalogError::Corrupt(format!("{number} where no negative number can be")))
}

fn time_of(millis: i64) -> Result<OffsetDateTime, CatalogError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
        .map_err(|error| CatalogError::Corrupt(error.to_string()))
}

/// A number as it is stored.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A time as it is stored.
pub(crate) fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The current time as it is stored.
pub(crate) fn now() -> i64 {
    millis(OffsetDateTime::now_utc())
}
