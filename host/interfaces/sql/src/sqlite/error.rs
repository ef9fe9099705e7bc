use libsqlite3_sys as ffi;

use crate::{SqlError, SqlErrorKind};

/// Counts a write that found its file as large as it may be.
pub(super) fn hit_store_size() {
    metrics::counter!("stepwell_limit_hits_total", "limit" => "store_size").increment(1);
}

/// What an error of sqlx means to a guest.
pub(super) fn from_sqlx(error: &sqlx::Error) -> SqlError {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().and_then(|code| code.parse().ok());
            from_code(
                code.unwrap_or(ffi::SQLITE_ERROR),
                database.message().to_owned(),
            )
        }
        sqlx::Error::Io(_) => SqlError::unavailable(),
        other => {
            tracing::error!(error = %other, "an SQLite connection failed");
            SqlError::internal("the database connection failed")
        }
    }
}

/// The nearest SQLSTATE of an extended result code.
pub(super) fn from_code(code: i32, message: String) -> SqlError {
    let sqlstate = match (code & 0xff, code) {
        (_, ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY)
        | (_, ffi::SQLITE_CONSTRAINT_ROWID) => "23505",
        (_, ffi::SQLITE_CONSTRAINT_NOTNULL) => "23502",
        (_, ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => "23503",
        (_, ffi::SQLITE_CONSTRAINT_CHECK) => "23514",
        // A value that a STRICT table's column does not take.
        (_, ffi::SQLITE_CONSTRAINT_DATATYPE) => "22P02",
        (ffi::SQLITE_CONSTRAINT, _) => "23000",
        (_, ffi::SQLITE_BUSY_SNAPSHOT) => "40001",
        (ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED, _) => "55P03",
        (ffi::SQLITE_INTERRUPT, _) => "57014",
        (ffi::SQLITE_TOOBIG, _) => {
            return SqlError::too_large("a value or the statement is too large for the database");
        }
        (ffi::SQLITE_MISMATCH, _) => "22P02",
        (ffi::SQLITE_RANGE, _) => "07001",
        (ffi::SQLITE_AUTH, _) => "42501",
        (ffi::SQLITE_READONLY, _) => "25006",
        // Of the disk or of the file: whoever knows the file says which.
        (ffi::SQLITE_FULL, _) => return disk_full(),
        (ffi::SQLITE_NOMEM, _) => "53200",
        (ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN | ffi::SQLITE_PERM, _) => "58030",
        (ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB, _) => "XX001",
        (ffi::SQLITE_INTERNAL | ffi::SQLITE_MISUSE, _) => "XX000",
        _ => of_message(&message),
    };
    let error = SqlError::from_sqlstate(sqlstate, message);
    match error.kind {
        // These name files, or say nothing that a guest could use.
        SqlErrorKind::Unavailable | SqlErrorKind::Internal => {
            tracing::error!(code, error = %error.message, "an SQLite database failed");
            SqlError {
                message: "the database failed".to_owned(),
                ..error
            }
        }
        _ => error,
    }
}

/// The SQLSTATE of [`disk_full`].
pub(super) const NO_SPACE: &str = "53100";

/// There is no room for what was to be written.
fn disk_full() -> SqlError {
    SqlError::from_sqlstate(NO_SPACE, "the database failed")
}

/// SQLite has one code for every mistake in a statement, and tells them apart in words.
fn of_message(message: &str) -> &'static str {
    let words = [
        ("no such table", "42P01"),
        ("no such column", "42703"),
        ("no such function", "42883"),
        ("no such index", "42704"),
        ("already exists", "42P07"),
        ("duplicate column", "42701"),
        ("ambiguous column", "42702"),
        ("not authorized", "42501"),
        ("prohibited", "42501"),
        ("syntax error", "42601"),
        ("incomplete input", "42601"),
        ("unrecognized token", "42601"),
        ("integer overflow", "22003"),
        ("malformed JSON", "22P02"),
    ];
    words
        .into_iter()
        .find(|(part, _)| message.contains(part))
        .map_or("42000", |(_, sqlstate)| sqlstate)
}
