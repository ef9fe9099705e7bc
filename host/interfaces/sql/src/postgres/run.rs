//! A guest's statement on a connection: its parameters as the server wants them, its rows as the guest gets them.

use futures::TryStreamExt;
use sqlx::postgres::{PgArguments, PgStatement, PgTypeInfo};
use sqlx::{
    Arguments as _, AssertSqlSafe, Column as _, Either, Executor, Row, SqlSafeStr, Statement as _,
    TypeInfo as _,
};

use super::encode::{Encoded, Form, encode};
use super::{Session, decode, oid, settle};
use crate::pool::Lease;
use crate::{Column, Rows, SqlError, Statement, Value};

/// Most parameters that the server reads as text in one go; the columns of a result have this bound.
const CONVERSIONS: usize = 1_000;

pub(super) async fn query(
    lease: &mut Lease<Session>,
    statement: &Statement,
) -> Result<Rows, SqlError> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    let (prepared, _) = run(lease, statement, |row| {
        let row = decode::read_row(row)?;
        let columns = row.len();
        bytes += row.iter().map(Value::size).sum::<usize>();
        rows.push(row);
        statement.check_result(rows.len(), columns, bytes)
    })
    .await?;
    let columns = prepared
        .columns()
        .iter()
        .map(|column| Column {
            name: column.name().to_owned(),
            type_name: column.type_info().name().to_owned(),
        })
        .collect();
    Ok(Rows { columns, rows })
}

pub(super) async fn execute(
    lease: &mut Lease<Session>,
    statement: &Statement,
) -> Result<u64, SqlError> {
    let (_, changed) = run(lease, statement, |_| Ok(())).await?;
    Ok(if statement.counts_rows() { changed } else { 0 })
}

/// Runs a guest's statement.
async fn run(
    lease: &mut Lease<Session>,
    statement: &Statement,
    mut each: impl FnMut(&sqlx::postgres::PgRow) -> Result<(), SqlError> + Send,
) -> Result<(PgStatement, u64), SqlError> {
    let mut busy = lease.start()?;
    let sql = AssertSqlSafe(statement.sql.clone()).into_sql_str();
    let prepared = busy.connection.prepare_with(sql, &[]).await;
    let prepared = settle(busy, prepared)?;
    let arguments = bind(lease, &prepared, &statement.parameters).await?;

    let mut busy = lease.start()?;
    let mut changed = 0;
    let mut stream = busy.connection.fetch_many(prepared.query_with(arguments));
    let done = loop {
        match stream.try_next().await {
            Ok(Some(Either::Left(done))) => changed = done.rows_affected(),
            // An error in here drops the stream in the middle, so the connection is closed.
            Ok(Some(Either::Right(row))) => each(&row)?,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(stream);
    if is_stale(&done) {
        return Err(stale());
    }
    settle(busy, done)?;
    Ok((prepared, changed))
}

/// A table changed after the connection prepared the statement.
pub(super) fn stale() -> SqlError {
    SqlError::from_sqlstate("40001", "a table changed after the statement was prepared")
}

/// "cached plan must not change result type".
fn is_stale(done: &Result<(), sqlx::Error>) -> bool {
    matches!(done, Err(sqlx::Error::Database(error))
        if error.code().as_deref() == Some("0A000") && error.message().contains("cached plan"))
}

/// The parameters in the form that the server wants.
async fn bind(
    lease: &mut Lease<Session>,
    prepared: &PgStatement,
    parameters: &[Value],
) -> Result<PgArguments, SqlError> {
    let types = match prepared.parameters() {
        Some(Either::Left(types)) => types,
        _ => &[],
    };
    if types.len() != parameters.len() {
        return Err(SqlError::invalid(
            "07001",
            format!(
                "the statement has {} parameters, but {} were given",
                types.len(),
                parameters.len()
            ),
        ));
    }
    let mut encoded = Vec::with_capacity(parameters.len());
    let mut texts = Vec::new();
    for (index, (value, type_info)) in parameters.iter().zip(types).enumerate() {
        let bytes = match encode(index + 1, value, type_info)? {
            Form::Binary(bytes) => bytes,
            Form::Text(text) => {
                texts.push((index, text));
                None
            }
        };
        encoded.push(Encoded {
            type_info: type_info.clone(),
            bytes,
        });
    }
    for some in texts.chunks(CONVERSIONS) {
        convert(lease, some, &mut encoded).await?;
    }
    arguments(encoded)
}

fn arguments(encoded: Vec<Encoded>) -> Result<PgArguments, SqlError> {
    let mut arguments = PgArguments::default();
    for parameter in encoded {
        arguments
            .add(parameter)
            .map_err(|error| SqlError::internal(error.to_string()))?;
    }
    Ok(arguments)
}

/// Has the server read texts as the types of their parameters, and puts in what came of it.
async fn convert(
    lease: &mut Lease<Session>,
    texts: &[(usize, String)],
    encoded: &mut [Encoded],
) -> Result<(), SqlError> {
    let names = type_names(lease, texts, encoded).await?;
    let expressions: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(index, name)| format!("(${}::text)::{name}", index + 1))
        .collect();
    let sql = format!("SELECT {}", expressions.join(", "));
    let text = PgTypeInfo::with_oid(sqlx::postgres::types::Oid(oid::TEXT));
    let parameters = texts
        .iter()
        .map(|(_, value)| Encoded {
            type_info: text.clone(),
            bytes: Some(value.clone().into_bytes()),
        })
        .collect();
    let query = sqlx::query_with(AssertSqlSafe(sql), arguments(parameters)?).persistent(false);
    let mut busy = lease.start()?;
    let row = query.fetch_one(&mut busy.connection).await;
    let row = settle(busy, row)?;
    for (column, (index, _)) in texts.iter().enumerate() {
        let raw = row
            .try_get_raw(column)
            .map_err(|error| SqlError::internal(error.to_string()))?;
        if let (Some(parameter), Ok(bytes)) = (encoded.get_mut(*index), raw.as_bytes()) {
            parameter.bytes = Some(bytes.to_vec());
        }
    }
    Ok(())
}

/// What to call the types of these parameters in a cast.
async fn type_names(
    lease: &mut Lease<Session>,
    texts: &[(usize, String)],
    encoded: &[Encoded],
) -> Result<Vec<String>, SqlError> {
    let oids: Vec<String> = texts
        .iter()
        .filter_map(|(index, _)| encoded.get(*index))
        .map(|parameter| parameter.type_info.oid().map_or(0, |oid| oid.0).to_string())
        .collect();
    if oids.iter().all(|oid| *oid == oid::NUMERIC.to_string()) {
        return Ok(vec!["pg_catalog.numeric".to_owned(); oids.len()]);
    }
    // With the type modifier -1 a name means any length: `bpchar`, where `character` would mean one character.
    let sql = format!(
        "SELECT pg_catalog.format_type(o::pg_catalog.oid, -1) \
         FROM pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) WITH ORDINALITY AS t(o, n) ORDER BY n",
        oids.join(",")
    );
    let mut busy = lease.start()?;
    let rows = sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_all(&mut busy.connection)
        .await;
    settle(busy, rows)?
        .iter()
        .map(|row| {
            row.try_get_unchecked::<String, _>(0)
                .map_err(|error| SqlError::internal(error.to_string()))
        })
        .collect()
}
